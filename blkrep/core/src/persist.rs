//! The durable copy of a bitmap, kept sector by sector.
//!
//! Owns which sectors of a map file differ from the bits in memory and which commit made which bit
//! durable. Bits that were set enter, commits leave; one commit serves everybody who waits. Never
//! writes anything: the engine writes the sectors of a commit and reports how it went.

use crate::dirty::{Bits, MapLayout, SECTOR_BITS, SECTOR_WORDS};

/// One commit of a map file. Numbers grow; a later successful commit includes all earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct CommitNo(u64);

/// A bitmap and the state of its file.
#[derive(Debug)]
pub struct KeptMap {
    bits: Bits,
    /// For each sector, the commit that holds the last bit set in it.
    set_by: Vec<CommitNo>,
    /// For each sector, whether it waits in `changed`.
    marked: Vec<bool>,
    changed: Vec<u32>,
    writing: Vec<u32>,
    started: u64,
    done: CommitNo,
    in_flight: bool,
    header_changed: bool,
    urgent: bool,
}

fn sector_of(bit: u64) -> usize {
    usize::try_from(bit / SECTOR_BITS).expect("64-bit platform")
}

impl KeptMap {
    /// The map as it was read from its file.
    #[must_use]
    pub fn new(bits: Bits, layout: &MapLayout) -> Self {
        let sectors = usize::try_from(layout.sectors()).expect("64-bit platform");
        Self {
            bits,
            set_by: vec![CommitNo(0); sectors],
            marked: vec![false; sectors],
            changed: Vec::with_capacity(sectors),
            writing: Vec::with_capacity(sectors),
            started: 0,
            done: CommitNo(0),
            in_flight: false,
            header_changed: false,
            urgent: false,
        }
    }

    /// The bits as they should be in the file.
    #[must_use]
    pub const fn bits(&self) -> &Bits {
        &self.bits
    }

    /// The words of one sector.
    pub fn sector(&self, sector: u32) -> impl Iterator<Item = u64> + '_ {
        let first = usize::try_from(sector).expect("64-bit platform") * SECTOR_WORDS;
        (first..first + SECTOR_WORDS).map(|word| self.bits.word(word))
    }

    fn mark(&mut self, sector: usize) {
        if !self.marked[sector] {
            self.marked[sector] = true;
            self.changed
                .push(u32::try_from(sector).expect("a map has fewer sectors"));
        }
    }

    /// Sets bits; the commit that makes them durable, which may be done already.
    pub fn set(&mut self, first: u64, last: u64) -> CommitNo {
        let mut commit = CommitNo(0);
        for sector in sector_of(first)..=sector_of(last) {
            let base = u64::try_from(sector).expect("64-bit platform") * SECTOR_BITS;
            let (from, to) = (first.max(base), last.min(base + SECTOR_BITS - 1));
            if self.bits.set(from, to) > 0 {
                self.set_by[sector] = CommitNo(self.started + 1);
                self.mark(sector);
            }
            commit = commit.max(self.set_by[sector]);
        }
        commit
    }

    /// Clears bits; the file follows when there is a commit anyway or time for one.
    pub fn clear(&mut self, first: u64, last: u64) {
        for sector in sector_of(first)..=sector_of(last) {
            let base = u64::try_from(sector).expect("64-bit platform") * SECTOR_BITS;
            let (from, to) = (first.max(base), last.min(base + SECTOR_BITS - 1));
            if self.bits.clear(from, to) > 0 {
                self.mark(sector);
            }
        }
    }

    /// Clears, in one word, all bits that are not in `keep`.
    pub fn retain_word(&mut self, word: usize, keep: u64) {
        if self.bits.set_word(word, self.bits.word(word) & keep) {
            self.mark(word / SECTOR_WORDS);
        }
    }

    /// The commit that makes the bits from `first` to `last` durable as they are now.
    #[must_use]
    pub fn commit_of(&self, first: u64, last: u64) -> CommitNo {
        (sector_of(first)..=sector_of(last))
            .map(|sector| self.set_by[sector])
            .max()
            .unwrap_or_default()
    }

    /// True if that commit has succeeded.
    #[must_use]
    pub fn is_done(&self, commit: CommitNo) -> bool {
        commit <= self.done
    }

    /// Somebody waits: a commit is to begin as soon as none is in flight.
    pub const fn hurry(&mut self) {
        self.urgent = true;
    }

    /// The header of the file is to be written; the commit that does it.
    pub const fn touch_header(&mut self) -> CommitNo {
        self.header_changed = true;
        CommitNo(self.started + 1)
    }

    /// The sectors of the commit in flight.
    #[must_use]
    pub fn writing(&self) -> &[u32] {
        &self.writing
    }

    /// True if a commit has begun and not ended.
    #[must_use]
    pub const fn in_flight(&self) -> bool {
        self.in_flight
    }

    /// True if a commit should begin now: somebody waits, or `lazily` and something changed.
    #[must_use]
    pub const fn wants_commit(&self, lazily: bool) -> bool {
        let changed = self.header_changed || !self.changed.is_empty();
        !self.in_flight && changed && (self.urgent || lazily)
    }

    /// Begins a commit of every changed sector. The content is what [`KeptMap::sector`] says
    /// before anything else changes.
    ///
    /// # Panics
    /// If one is in flight.
    pub fn begin(&mut self) -> &[u32] {
        assert!(!self.in_flight, "one commit at a time");
        self.in_flight = true;
        self.urgent = false;
        self.header_changed = false;
        self.started += 1;
        self.writing.clear();
        self.writing.append(&mut self.changed);
        for sector in &self.writing {
            self.marked[usize::try_from(*sector).expect("64-bit platform")] = false;
        }
        &self.writing
    }

    /// The commit in flight has ended. What a failed one held goes into the next.
    ///
    /// # Panics
    /// If none is in flight.
    pub fn finish(&mut self, success: bool) {
        assert!(self.in_flight, "a commit was begun");
        self.in_flight = false;
        if success {
            self.done = CommitNo(self.started);
            self.writing.clear();
            return;
        }
        self.header_changed = true;
        for index in 0..self.writing.len() {
            let sector = usize::try_from(self.writing[index]).expect("64-bit platform");
            self.mark(sector);
        }
        self.writing.clear();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use blkrep_types::{ByteLen, ExtentSize};

    fn map() -> KeptMap {
        let layout = MapLayout::new([(ByteLen::new(1 << 40), ExtentSize::INTENT)]);
        KeptMap::new(Bits::clear_of(layout.bits()), &layout)
    }

    #[test]
    fn a_bit_set_while_a_commit_is_in_flight_waits_for_the_next_one() {
        let mut map = map();
        let first = map.set(0, 0);
        map.hurry();
        assert!(map.wants_commit(false));
        assert_eq!(map.begin(), &[0]);
        let second = map.set(1, 1);
        map.finish(true);
        assert!(map.is_done(first) && !map.is_done(second));
        map.begin();
        map.finish(true);
        assert!(map.is_done(second));
        assert_eq!(map.set(1, 1), second, "a durable bit asks for nothing");
        assert!(!map.wants_commit(true));
    }

    #[test]
    fn what_a_failed_commit_held_is_durable_with_the_next_successful_one() {
        let mut map = map();
        let commit = map.set(5, 4000);
        map.begin();
        map.finish(false);
        assert!(!map.is_done(commit) && map.wants_commit(true));
        assert_eq!(map.begin(), &[0, 1]);
        map.finish(true);
        assert!(map.is_done(commit));
    }

    #[test]
    fn a_bit_cleared_and_set_again_is_not_durable_until_written_again() {
        let mut map = map();
        let commit = map.set(7, 7);
        map.begin();
        map.finish(true);
        assert!(map.is_done(commit));
        map.clear(7, 7);
        map.begin();
        let again = map.set(7, 7);
        map.finish(true);
        assert!(!map.is_done(again));
    }
}
