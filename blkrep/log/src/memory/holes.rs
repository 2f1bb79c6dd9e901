//! Which bytes of the data memory nobody has.
//!
//! Owns the holes between slots, in their order. A slot is one piece. Slots are taken one after the
//! other, as in a ring, and given back in any order: what went to the disk queue leaves a hole in
//! the middle. Rebuilt from the entries by a successor. Never looks at an entry.

/// Holes that are expected at most: each end of what is held, each stretch on disk, and padding.
/// More cost a larger list, once.
const HOLES: usize = 1024;

/// Bytes from here to there.
pub(super) type Piece = (u64, u64);

/// The holes of `size` bytes: sorted, apart from one another.
#[derive(Debug)]
pub(super) struct Holes {
    size: u64,
    free: u64,
    /// Where the last slot ended.
    cursor: u64,
    holes: Vec<Piece>,
}

impl Holes {
    /// Everything is free.
    pub(super) fn all(size: u64) -> Self {
        let mut holes = Vec::with_capacity(HOLES);
        holes.push((0, size));
        Self {
            size,
            free: size,
            cursor: 0,
            holes,
        }
    }

    /// What these slots leave; the last of them is the newest. `None` if they overlap or do not fit.
    pub(super) fn around(size: u64, mut slots: Vec<Piece>) -> Option<Self> {
        let cursor = slots.last().map_or(0, |slot| slot.1);
        slots.sort_unstable();
        let mut all = Self::all(size);
        all.cursor = cursor;
        all.holes.clear();
        let mut end = 0;
        for (from, to) in slots.into_iter().chain([(size, size)]) {
            if from < end || to < from || to > size {
                return None;
            }
            if from > end {
                all.holes.push((end, from));
            }
            end = to;
        }
        all.free = all.holes.iter().map(|hole| hole.1 - hole.0).sum();
        Some(all)
    }

    /// Bytes that nobody has.
    pub(super) const fn free(&self) -> u64 {
        self.free
    }

    /// Takes `room` bytes from a multiple of `align` on: where the piece begins, with what is lost
    /// before it, and where the slot does.
    pub(super) fn take(&mut self, room: u64, align: u64) -> Option<(u64, u64)> {
        if self.free == self.size {
            // Nothing is held: the largest slot fits at the beginning.
            self.cursor = 0;
        }
        let next = self.holes.partition_point(|hole| hole.1 <= self.cursor);
        let behind = (next..self.holes.len()).map(|index| (index, self.cursor));
        let before = (0..self.holes.len().min(next + 1)).map(|index| (index, 0));
        let found = behind.chain(before).find_map(|(index, least)| {
            let (from, to) = self.holes[index];
            let from = from.max(least);
            let start = from.next_multiple_of(align);
            (start + room <= to).then_some((index, from, start))
        });
        let (index, from, start) = found?;
        let end = start + room;
        let hole = self.holes[index];
        match (hole.0 < from, end < hole.1) {
            (true, true) => {
                self.holes[index].1 = from;
                self.holes.insert(index + 1, (end, hole.1));
            }
            (true, false) => self.holes[index].1 = from,
            (false, true) => self.holes[index].0 = end,
            (false, false) => {
                self.holes.remove(index);
            }
        }
        self.free -= end - from;
        self.cursor = end;
        Some((from, start))
    }

    /// Takes a piece back.
    ///
    /// # Panics
    /// If nobody had it.
    pub(super) fn give(&mut self, (from, to): Piece) {
        let next = self.holes.partition_point(|hole| hole.0 < from);
        let before = next.checked_sub(1).map(|index| self.holes[index].1);
        let after = self.holes.get(next).map(|hole| hole.0);
        assert!(
            before.is_none_or(|end| end <= from) && after.is_none_or(|start| to <= start),
            "only what was taken is given back"
        );
        self.free += to - from;
        match (before == Some(from), after == Some(to)) {
            (true, true) => self.holes[next - 1].1 = self.holes.remove(next).1,
            (true, false) => self.holes[next - 1].1 = to,
            (false, true) => self.holes[next].0 = from,
            (false, false) => self.holes.insert(next, (from, to)),
        }
    }
}
