//! Where a target may differ, as its source knows it.
//!
//! Owns one question: would a difference of this extent be found? Never changes anything.

use super::{LinkIndex, SourceGroup, WriteLog};
use crate::dirty::{Bits, Words};
use blkrep_types::{Extent, Seq, VolumeIndex};

impl<L: WriteLog, W: Words> SourceGroup<L, W> {
    /// True if the extent is dirty, to be compared or being compared for a link, or the log holds a write to it that is
    /// not durable at the target or not finished here. The intent map is not asked: it counts after a
    /// crash of the host, when its regions have become extents to be compared.
    #[must_use]
    pub fn covers(&self, link: LinkIndex, volume: VolumeIndex, extent: Extent) -> bool {
        let Some(state) = self.link(link) else {
            return false;
        };
        let (first, last) = self.layout.bits_of(volume, extent);
        let marked = |bits: &Bits<W>| bits.next(first).is_some_and(|bit| bit <= last);
        let compared = state.mirror.compares.iter();
        let mut compared = compared.map(|compare| (compare.volume, compare.extent));
        marked(&state.live)
            || marked(&state.compare)
            || compared.any(|(other, part)| other == volume && part.overlaps(extent))
            || self.log_covers(link, volume, extent)
    }

    fn log_covers(&self, link: LinkIndex, volume: VolumeIndex, extent: Extent) -> bool {
        let (Some(log), Some(state)) = (&self.log, self.link(link)) else {
            return false;
        };
        let (base, head) = (log.base().1.get(), log.head().1.get());
        let mut entries = (base + 1..=head).map(|seq| log.entry(Seq::new(seq)));
        entries.any(|entry| {
            let here = entry.record.volume == volume;
            let touched = entry
                .record
                .extent
                .is_some_and(|other| other.overlaps(extent));
            let held = state.is_following() && entry.record.seq > state.held;
            here && touched && (held || !entry.local_done)
        })
    }
}
