//! What is wrong with a disk: errors it answers, lies it tells, sectors it cannot read.
//!
//! Owns what was injected and how often it still happens. A disk asks at every operation; what it
//! does about it is its own.

use super::disk::as_usize;
use super::pages::{Pages, SECTOR};
use super::random::SimRandom;
use blkrep_types::Errno;
use std::collections::BTreeSet;
use std::ops::Range;

/// What a disk does wrong, and says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFault {
    /// Which operations.
    pub kind: FaultKind,
    /// What they answer.
    pub errno: Errno,
    /// Only those that touch these bytes; all if `None`.
    pub bytes: Option<Range<u64>>,
    /// How often; then the disk is good again.
    pub times: u32,
}

/// The operations that a fault hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// Reads.
    Read,
    /// Writes and zeroing; a random part of the bytes may have been written.
    Write,
    /// Flushes; what was to be flushed may be lost later although it still reads back.
    Sync,
}

/// What a disk does wrong without saying so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskLie {
    /// What.
    pub kind: LieKind,
    /// Only operations that touch these bytes; all if `None`.
    pub bytes: Option<Range<u64>>,
    /// How often.
    pub times: u32,
}

/// A disk's lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LieKind {
    /// A read brings one flipped bit; the next one brings what is there.
    FlippedRead,
    /// A read brings for one sector what it held when the lie was injected, if that has changed.
    StaleRead,
    /// A write is answered, reads back, and is gone after the next power cut, flushed or not.
    LostWrite,
}

/// Everything that is wrong with one disk.
#[derive(Debug, Clone, Default)]
pub(super) struct Faults {
    errors: Vec<DiskFault>,
    /// Each with the bytes at the time it was injected.
    lies: Vec<(DiskLie, Pages)>,
    /// Sectors that cannot be read until they are written.
    unreadable: BTreeSet<usize>,
}

impl Faults {
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn inject(&mut self, fault: DiskFault) {
        self.errors.push(fault);
    }

    pub(super) fn deceive(&mut self, lie: DiskLie, now: Pages) {
        self.lies.push((lie, now));
    }

    /// What lies were to be told of is not there any more.
    pub(super) fn forget_lies(&mut self) {
        self.lies.clear();
    }

    /// The sectors of these bytes cannot be read from now on.
    pub(super) fn spoil(&mut self, range: &Range<usize>) {
        self.unreadable
            .extend(range.start / SECTOR..range.end.div_ceil(SECTOR));
    }

    /// Whole sectors were written: they can be read again.
    pub(super) fn written(&mut self, range: &Range<usize>) {
        if !self.unreadable.is_empty() {
            let whole = range.start.div_ceil(SECTOR)..range.end / SECTOR;
            self.unreadable.retain(|sector| !whole.contains(sector));
        }
    }

    /// What an operation answers.
    pub(super) fn error(&mut self, kind: FaultKind, range: &Range<usize>) -> Result<(), Errno> {
        let sectors = range.start / SECTOR..range.end.div_ceil(SECTOR);
        if kind == FaultKind::Read && self.unreadable.range(sectors).next().is_some() {
            return Err(Errno::EIO);
        }
        let hit = |fault: &DiskFault| fault.kind == kind && meets(fault.bytes.as_ref(), range);
        let Some(index) = self.errors.iter().position(hit) else {
            return Ok(());
        };
        let fault = &mut self.errors[index];
        let errno = fault.errno;
        fault.times = fault.times.saturating_sub(1);
        if fault.times == 0 {
            self.errors.remove(index);
        }
        Err(errno)
    }

    /// True if a write is to be lost.
    pub(super) fn loses(&mut self, range: &Range<usize>) -> bool {
        let found = self.lie(LieKind::LostWrite, range, |_, _| true);
        found.is_some()
    }

    /// Changes what a read brings.
    pub(super) fn falsify(
        &mut self,
        range: &Range<usize>,
        bytes: &mut [u8],
        random: &mut SimRandom,
    ) {
        let stale = self.lie(LieKind::StaleRead, range, |then, hit| {
            let now = &bytes[hit.start - range.start..hit.end - range.start];
            then.bytes(hit.clone()) != now
        });
        if let Some((then, hit)) = stale {
            let old = then.bytes(hit.clone());
            let now = &mut bytes[hit.start - range.start..hit.end - range.start];
            let cuts = |at: usize| (hit.start + at) / SECTOR;
            let first = (0..now.len()).find(|at| now[*at] != old[*at]);
            let sector = first.map(cuts);
            for at in (0..now.len()).filter(|at| Some(cuts(*at)) == sector) {
                now[at] = old[at];
            }
        }
        if let Some((_, hit)) = self.lie(LieKind::FlippedRead, range, |_, _| true) {
            let at = hit.start - range.start + random.index(hit.len());
            bytes[at] ^= 1 << random.below(8);
        }
    }

    /// The first lie of a kind that these bytes meet and that `fits`, counted as told: the bytes
    /// of its time, and where it meets them.
    fn lie(
        &mut self,
        kind: LieKind,
        range: &Range<usize>,
        fits: impl Fn(&Pages, &Range<usize>) -> bool,
    ) -> Option<(Pages, Range<usize>)> {
        let hit = |(lie, then): &(DiskLie, Pages)| {
            let wanted = lie.bytes.clone().unwrap_or(0..u64::MAX);
            let met = range.start.max(as_usize(wanted.start))
                ..range.end.min(as_usize(wanted.end)).min(then.len());
            (lie.kind == kind && !met.is_empty() && fits(then, &met)).then_some(met)
        };
        let (index, met) = (0..self.lies.len()).find_map(|at| Some((at, hit(&self.lies[at])?)))?;
        let (lie, then) = &mut self.lies[index];
        let then = then.clone();
        lie.times = lie.times.saturating_sub(1);
        if lie.times == 0 {
            self.lies.remove(index);
        }
        Some((then, met))
    }
}

fn meets(bytes: Option<&Range<u64>>, range: &Range<usize>) -> bool {
    bytes.is_none_or(|bytes| as_usize(bytes.start) < range.end && range.start < as_usize(bytes.end))
}
