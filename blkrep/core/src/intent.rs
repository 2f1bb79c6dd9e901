//! The intent map: regions with a write that may be neither durable here nor on every target.
//!
//! Owns which regions are open and when each may be closed. Admitted and completed writes, flushes
//! and time enter; what must be committed or flushed leaves. A region's bit is durable before a
//! write to it is submitted or sent; it is cleared, lazily, when the region is idle, its writes are
//! complete and flushed, and every link has them durably or has them as durable dirt. Never writes.

use crate::dirty::{Bits, MapLayout};
use crate::persist::{CommitNo, KeptMap};
use blkrep_types::{Extent, Nanos, Seq, VolumeIndex};
use std::time::Duration;

/// No region slot.
const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Region {
    bit: u64,
    volume: VolumeIndex,
    in_flight: u32,
    /// The highest place of a write to it.
    last: Seq,
    idle_since: Nanos,
    /// The first flush of its volume that covers all its completed writes.
    flush: u64,
}

/// When regions are closed.
#[derive(Debug, Clone, Copy)]
pub struct IntentOptions {
    /// A region is closed after this long without a write.
    pub idle: Duration,
    /// Above this many open regions a region is closed after a second: what is open is compared
    /// after a crash of the host.
    pub regions_calm: usize,
}

impl Default for IntentOptions {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(20),
            regions_calm: 4096,
        }
    }
}

/// How long a region stays open at least, however many there are.
const IDLE_MIN: Duration = Duration::from_secs(1);

/// What closing found out.
#[derive(Debug, Default, Clone)]
pub struct CloseRound {
    /// Volumes that need a flush before their idle regions can be closed.
    pub flush: Vec<VolumeIndex>,
    /// Idle and flushed regions wait for a link.
    pub waits_for_links: bool,
    /// Regions closed.
    pub closed: usize,
}

/// The intent map of a group.
#[derive(Debug)]
pub struct IntentMap {
    layout: MapLayout,
    kept: KeptMap,
    slots: Vec<u32>,
    regions: Vec<Region>,
    options: IntentOptions,
}

impl IntentMap {
    /// The map as it was read; every region found open stays open until it is flushed and covered.
    #[must_use]
    pub fn new(bits: Bits, layout: MapLayout, options: IntentOptions) -> Self {
        let count = usize::try_from(layout.bits()).expect("64-bit platform");
        let mut map = Self {
            kept: KeptMap::new(bits, &layout),
            layout,
            slots: vec![NONE; count],
            regions: Vec::with_capacity(options.regions_calm),
            options,
        };
        let mut from = 0;
        while let Some(bit) = map.kept.bits().next(from) {
            from = bit + 1;
            if let Some((volume, _)) = map.layout.locate(bit) {
                map.open(bit, volume).flush = 1;
            }
        }
        map
    }

    fn open(&mut self, bit: u64, volume: VolumeIndex) -> &mut Region {
        let slot = &mut self.slots[usize::try_from(bit).expect("64-bit platform")];
        if *slot == NONE {
            *slot = u32::try_from(self.regions.len()).expect("fewer regions than 2^32");
            self.regions.push(Region {
                bit,
                volume,
                in_flight: 0,
                last: Seq::ZERO,
                idle_since: Nanos::default(),
                flush: 0,
            });
        }
        &mut self.regions[usize::try_from(*slot).expect("64-bit platform")]
    }

    /// A write wants to begin. `None`: it may. Else it waits for that commit.
    pub fn admit(&mut self, volume: VolumeIndex, extent: Extent) -> Option<CommitNo> {
        let (first, last) = self.layout.bits_of(volume, extent);
        for bit in first..=last {
            self.open(bit, volume).in_flight += 1;
        }
        let commit = self.kept.set(first, last);
        if self.kept.is_done(commit) {
            return None;
        }
        self.kept.hurry();
        Some(commit)
    }

    /// An admitted write got its place.
    pub fn sequenced(&mut self, volume: VolumeIndex, extent: Extent, seq: Seq) {
        let (first, last) = self.layout.bits_of(volume, extent);
        for bit in first..=last {
            let region = self.open(bit, volume);
            region.last = region.last.max(seq);
        }
    }

    /// A write of a predecessor has this place and may not be acknowledged.
    pub fn adopt(&mut self, volume: VolumeIndex, extent: Extent, seq: Seq) {
        let (first, last) = self.layout.bits_of(volume, extent);
        for bit in first..=last {
            let region = self.open(bit, volume);
            region.last = region.last.max(seq);
            region.flush = region.flush.max(1);
        }
        self.kept.set(first, last);
    }

    /// A write of a predecessor is to be issued again: until that is [`IntentMap::done`] its
    /// regions stay open, as if it were under way.
    pub fn expect(&mut self, volume: VolumeIndex, extent: Extent) {
        let (first, last) = self.layout.bits_of(volume, extent);
        for bit in first..=last {
            self.open(bit, volume).in_flight += 1;
        }
        self.kept.set(first, last);
    }

    /// Every region may have a complete write that is not durable: flush number `flush` of its volume
    /// will cover it. The commit that makes that durable.
    pub fn open_all(&mut self, now: Nanos, flush: impl Fn(VolumeIndex) -> u64) -> CommitNo {
        let mut commit = CommitNo::default();
        for bit in 0..self.layout.bits() {
            if let Some((volume, _)) = self.layout.locate(bit) {
                let region = self.open(bit, volume);
                region.idle_since = now;
                region.flush = region.flush.max(flush(volume));
                commit = commit.max(self.kept.set(bit, bit));
            }
        }
        commit
    }

    /// Regions that a predecessor left open may have writes up to `seq`.
    pub fn adopt_open(&mut self, seq: Seq) {
        for region in &mut self.regions {
            region.last = region.last.max(seq);
        }
    }

    /// An admitted write is complete here; flush number `flush` of its volume will cover it.
    pub fn done(&mut self, now: Nanos, volume: VolumeIndex, extent: Extent, flush: u64) {
        let (first, last) = self.layout.bits_of(volume, extent);
        for bit in first..=last {
            let region = self.open(bit, volume);
            assert!(region.in_flight > 0, "only an admitted write completes");
            region.in_flight -= 1;
            region.idle_since = now;
            region.flush = region.flush.max(flush);
        }
    }

    /// A flush failed: regions that it may have been meant to cover are never closed in this run,
    /// for a later success says nothing about what the failed one lost. That a region was written
    /// again since it began does not save what was written before.
    pub fn flush_failed(&mut self, volume: VolumeIndex, succeeded: u64) {
        for region in &mut self.regions {
            if region.volume == volume && region.flush > succeeded {
                region.flush = u64::MAX;
            }
        }
    }

    /// Closes what can be closed. `flushed` says which flush of a volume has succeeded, `covered`
    /// whether every link has a region's extent up to a place, durably or as durable dirt.
    /// `idle` overrides how long a region must have been idle.
    pub fn close_idle(
        &mut self,
        now: Nanos,
        idle: Option<Duration>,
        flushed: impl Fn(VolumeIndex) -> u64,
        covered: impl Fn(VolumeIndex, Extent, Seq) -> bool,
    ) -> CloseRound {
        let calm = self.regions.len() <= self.options.regions_calm;
        let normal = if calm { self.options.idle } else { IDLE_MIN };
        let idle = idle.unwrap_or(normal);
        let mut round = CloseRound::default();
        let mut index = 0;
        while index < self.regions.len() {
            let region = self.regions[index];
            index += 1;
            if region.in_flight > 0 || now.since(region.idle_since) < idle {
                continue;
            }
            if flushed(region.volume) < region.flush {
                if !round.flush.contains(&region.volume) {
                    round.flush.push(region.volume);
                }
                continue;
            }
            let Some((volume, extent)) = self.layout.locate(region.bit) else {
                continue;
            };
            if !covered(volume, extent, region.last) {
                round.waits_for_links = true;
                continue;
            }
            index -= 1;
            self.close(index);
            round.closed += 1;
        }
        round
    }

    fn close(&mut self, index: usize) {
        let gone = self.regions.swap_remove(index);
        self.slots[usize::try_from(gone.bit).expect("64-bit platform")] = NONE;
        if let Some(moved) = self.regions.get(index) {
            let slot = usize::try_from(moved.bit).expect("64-bit platform");
            self.slots[slot] = u32::try_from(index).expect("fewer regions than 2^32");
        }
        self.kept.clear(gone.bit, gone.bit);
    }

    /// The extents of all open regions.
    pub fn open_extents(&self) -> impl Iterator<Item = (VolumeIndex, Extent)> + '_ {
        self.regions
            .iter()
            .filter_map(|region| self.layout.locate(region.bit))
    }

    /// Number of open regions.
    #[must_use]
    pub fn open_count(&self) -> usize {
        self.regions.len()
    }

    /// The state of the file.
    #[must_use]
    pub const fn kept(&self) -> &KeptMap {
        &self.kept
    }

    /// The state of the file, to commit it.
    pub const fn kept_mut(&mut self) -> &mut KeptMap {
        &mut self.kept
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use blkrep_types::{ByteLen, ByteOffset, ExtentSize};

    const VOLUME: VolumeIndex = VolumeIndex::new(0);

    fn extent(offset: u64, len: u64) -> Extent {
        Extent::new(ByteOffset::new(offset), ByteLen::new(len)).unwrap()
    }

    fn map() -> IntentMap {
        let layout = MapLayout::new([(ByteLen::new(1 << 30), ExtentSize::INTENT)]);
        let options = IntentOptions {
            idle: Duration::from_secs(30),
            regions_calm: 100,
        };
        IntentMap::new(Bits::clear_of(layout.bits()), layout, options)
    }

    fn at(seconds: u64) -> Nanos {
        Nanos::default().after(Duration::from_secs(seconds))
    }

    fn commit(map: &mut IntentMap) {
        map.kept_mut().begin();
        map.kept_mut().finish(true);
    }

    #[test]
    fn a_write_waits_until_its_bit_is_durable_and_its_neighbour_does_not() {
        let mut map = map();
        let wait = map.admit(VOLUME, extent(0, 4096)).unwrap();
        assert!(map.kept().wants_commit(false));
        assert_eq!(map.admit(VOLUME, extent(4096, 4096)), Some(wait));
        commit(&mut map);
        assert!(map.kept().is_done(wait));
        assert_eq!(map.admit(VOLUME, extent(8192, 4096)), None);
    }

    #[test]
    fn a_region_is_closed_only_idle_flushed_and_covered() {
        let mut map = map();
        map.admit(VOLUME, extent(0, 512));
        commit(&mut map);
        map.sequenced(VOLUME, extent(0, 512), Seq::new(7));
        let close = |map: &mut IntentMap, now, flushed: u64, acked: u64| {
            map.close_idle(now, None, |_| flushed, |_, _, seq| seq <= Seq::new(acked))
        };
        assert_eq!(close(&mut map, at(100), 9, 9).closed, 0, "in flight");
        map.done(at(100), VOLUME, extent(0, 512), 3);
        assert_eq!(close(&mut map, at(129), 9, 9).closed, 0, "not idle");
        assert_eq!(
            close(&mut map, at(130), 2, 9).flush,
            [VOLUME],
            "not flushed"
        );
        assert!(
            close(&mut map, at(130), 3, 6).waits_for_links,
            "not covered"
        );
        assert_eq!(close(&mut map, at(130), 3, 7).closed, 1);
        assert_eq!(map.open_count(), 0);
        assert!(map.kept().wants_commit(true) && !map.kept().wants_commit(false));
    }

    #[test]
    fn a_region_that_a_failed_flush_may_have_lost_stays_open_though_written_again() {
        let mut map = map();
        for flush in [1, 2] {
            // The second one is done while flush 1 runs.
            map.admit(VOLUME, extent(0, 512));
            commit(&mut map);
            map.done(at(0), VOLUME, extent(0, 512), flush);
        }
        map.flush_failed(VOLUME, 0);
        let round = map.close_idle(at(100), None, |_| 2, |_, _, _| true);
        assert_eq!((round.closed, map.open_count()), (0, 1));
    }

    #[test]
    fn regions_found_open_stay_open_until_flushed() {
        let layout = MapLayout::new([(ByteLen::new(1 << 30), ExtentSize::INTENT)]);
        let mut bits = Bits::clear_of(layout.bits());
        bits.set(3, 4);
        let mut map = IntentMap::new(bits, layout, IntentOptions::default());
        assert_eq!(map.open_count(), 2);
        assert_eq!(
            map.open_extents().next(),
            Some((VOLUME, extent(12 << 20, 4 << 20)))
        );
        let idle = Some(Duration::ZERO);
        assert_eq!(
            map.close_idle(at(0), idle, |_| 0, |_, _, _| true).flush,
            [VOLUME]
        );
        assert_eq!(map.close_idle(at(0), idle, |_| 1, |_, _, _| true).closed, 2);
    }
}
