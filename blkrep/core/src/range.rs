//! Which writes of a volume may run together.
//!
//! Owns the range lock: overlapping holders run one after the other in the order in which they
//! asked, all others at once. A holder with its extent enters, and is granted at once or when the
//! last of those before it has let go. Never knows what a holder does.

use blkrep_types::{Extent, planted};

/// Who holds or waits for a range.
pub type Holder = u32;

#[derive(Debug, Clone, Copy)]
struct Entry {
    extent: Extent,
    holder: Holder,
    /// Ticket of the asking: earlier is smaller.
    order: u64,
    /// Earlier entries that overlap and have not let go.
    blockers: u32,
}

/// Bytes of a volume that share a counter: far apart, requests rarely do.
const GRAIN_SHIFT: u32 = 16;
/// Counters of a lock; parts of a volume that are this many grains apart share one.
const COUNTERS: usize = 512;
/// An extent of more grains is only counted as a wide one.
const GRAINS_MAX: usize = 16;

/// The range lock of one volume. Searching is linear: a volume has a few hundred requests in
/// flight at most, which is one or two pages of memory. Most requests are not near any other: then
/// counters of who is where say so, and nothing is searched.
#[derive(Debug)]
pub struct RangeLock {
    entries: Vec<Entry>,
    next: u64,
    /// Entries that are not granted yet.
    waiting: usize,
    /// Entries by where they are.
    near: Box<[u16; COUNTERS]>,
    /// Entries too long to be counted so.
    wide: usize,
}

impl Default for RangeLock {
    fn default() -> Self {
        Self::with_capacity(0)
    }
}

/// The counters of an extent, unless it is a wide one.
fn counters(extent: Extent) -> Option<impl Iterator<Item = usize>> {
    let grain = |byte: u64| usize::try_from(byte >> GRAIN_SHIFT).expect("64-bit platform");
    let (first, last) = (grain(extent.offset().get()), grain(extent.end().get() - 1));
    (last - first < GRAINS_MAX).then(|| (first..=last).map(|grain| grain % COUNTERS))
}

impl RangeLock {
    /// A lock with room for `capacity` holders without allocation.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self {
            entries: Vec::with_capacity(capacity),
            next: 0,
            waiting: 0,
            near: Box::new([0; COUNTERS]),
            wide: 0,
        }
    }

    /// False if nobody can be where `extent` is.
    fn may_be_taken(&self, extent: Extent) -> bool {
        match counters(extent) {
            Some(mut places) => self.wide > 0 || places.any(|place| self.near[place] > 0),
            None => !self.entries.is_empty(),
        }
    }

    /// Asks for `extent`; true if it is granted at once.
    pub fn acquire(&mut self, holder: Holder, extent: Extent) -> bool {
        debug_assert!(
            self.entries.iter().all(|entry| entry.holder != holder),
            "a holder asks once"
        );
        let overlapping = |entry: &Entry| u32::from(entry.extent.overlaps(extent));
        let blockers = if self.may_be_taken(extent) && !planted!(SkipRangeLock) {
            self.entries.iter().map(overlapping).sum()
        } else {
            0
        };
        match counters(extent) {
            Some(places) => places.for_each(|place| self.near[place] += 1),
            None => self.wide += 1,
        }
        self.waiting += usize::from(blockers > 0);
        self.entries.push(Entry {
            extent,
            holder,
            order: self.next,
            blockers,
        });
        self.next += 1;
        blockers == 0
    }

    /// Lets go; appends those who are granted their range by it, in the order of their asking.
    ///
    /// # Panics
    /// If the holder was not granted anything.
    pub fn release(&mut self, holder: Holder, granted: &mut Vec<Holder>) {
        let index = self
            .entries
            .iter()
            .position(|entry| entry.holder == holder)
            .expect("only a holder lets go");
        let gone = self.entries.swap_remove(index);
        assert!(gone.blockers == 0, "only what is granted is let go");
        match counters(gone.extent) {
            Some(places) => places.for_each(|place| self.near[place] -= 1),
            None => self.wide -= 1,
        }
        if self.waiting == 0 {
            return;
        }
        let from = granted.len();
        for entry in &mut self.entries {
            if entry.order > gone.order && entry.extent.overlaps(gone.extent) {
                entry.blockers -= 1;
                if entry.blockers == 0 {
                    granted.push(entry.holder);
                }
            }
        }
        self.waiting -= granted.len() - from;
        if granted.len() - from > 1 {
            let order = |holder: &Holder| {
                let entry = self.entries.iter().find(|entry| entry.holder == *holder);
                entry.map(|entry| entry.order)
            };
            granted[from..].sort_by_key(order);
        }
    }

    /// True if `holder` holds or waits for a range.
    #[must_use]
    pub fn knows(&self, holder: Holder) -> bool {
        self.entries.iter().any(|entry| entry.holder == holder)
    }

    /// True if nobody holds or waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use blkrep_types::{ByteLen, ByteOffset};
    use proptest::prelude::*;

    fn extent(offset: u64, len: u64) -> Extent {
        Extent::new(ByteOffset::new(offset), ByteLen::new(len)).unwrap()
    }

    #[test]
    fn overlapping_holders_run_in_the_order_of_asking() {
        let mut lock = RangeLock::default();
        let mut granted = Vec::new();
        assert!(lock.acquire(1, extent(0, 10)));
        assert!(!lock.acquire(2, extent(5, 10)));
        assert!(!lock.acquire(3, extent(12, 10)), "behind the waiting 2");
        assert!(lock.acquire(4, extent(30, 1)));
        lock.release(1, &mut granted);
        assert_eq!(granted, [2]);
        lock.release(2, &mut granted);
        assert_eq!(granted, [2, 3]);
        lock.release(4, &mut granted);
        lock.release(3, &mut granted);
        assert!(lock.is_empty());
    }

    proptest! {
        #[test]
        fn overlapping_holders_never_run_together_and_nobody_starves(
            asks in proptest::collection::vec((0_u64..40, 1_u64..12), 1..60),
            picks in proptest::collection::vec(any::<prop::sample::Index>(), 60),
            scale in prop::sample::select(vec![1_u64, 4096, 1 << 14, 1 << 16, 1 << 22]),
        ) {
            let mut lock = RangeLock::default();
            let mut running: Vec<(u32, Extent)> = Vec::new();
            let mut picks = picks.into_iter().cycle();
            let mut granted = Vec::new();
            let extents: Vec<_> = asks.iter().map(|(o, l)| extent(o * scale, l * scale)).collect();
            let mut started = Vec::new();
            let mut run = |running: &mut Vec<(u32, Extent)>, holder: u32| {
                let wanted = extents[holder as usize];
                assert!(running.iter().all(|(_, other)| !other.overlaps(wanted)));
                running.push((holder, wanted));
                started.push(holder);
            };
            for (number, wanted) in extents.iter().enumerate() {
                let holder = u32::try_from(number).unwrap();
                if lock.acquire(holder, *wanted) {
                    run(&mut running, holder);
                }
                if running.len() > 3 {
                    let (gone, _) = running.swap_remove(picks.next().unwrap().index(running.len()));
                    lock.release(gone, &mut granted);
                    granted.drain(..).for_each(|next| run(&mut running, next));
                }
            }
            while !running.is_empty() {
                let (gone, _) = running.swap_remove(picks.next().unwrap().index(running.len()));
                lock.release(gone, &mut granted);
                granted.drain(..).for_each(|next| run(&mut running, next));
            }
            prop_assert!(lock.is_empty());
            prop_assert_eq!(started.len(), extents.len());
            for (place, holder) in started.iter().enumerate() {
                for earlier in &started[..place] {
                    let overlap = extents[*earlier as usize].overlaps(extents[*holder as usize]);
                    prop_assert!(!overlap || earlier < holder, "first asked, first served");
                }
            }
        }
    }
}
