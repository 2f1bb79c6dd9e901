//! What a link reads back of the disk queue, ahead of need.
//!
//! Owns the link's memory for that: a ring of stretches, each of them operations that lie side by
//! side in the file, read at once. What is to be read enters in order, what is complete and checked
//! leaves in order. Never reads itself, and never hands out bytes whose sum is wrong.

use crate::queue::{SECTOR_BYTES, room_of};
use blkrep_types::{Seq, planted};
use std::collections::VecDeque;

/// Bytes of one read at most: as much as a disk likes.
const STRETCH_BYTES: usize = 1 << 20;

/// Operations that can be held: the memory is usually full before.
const ITEMS: usize = 4096;

fn u64_of(value: usize) -> u64 {
    u64::try_from(value).expect("64-bit platform")
}

/// An operation whose bytes are on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AwayRecord {
    /// Its place in the order.
    pub seq: Seq,
    /// The first sector of its bytes in the file.
    pub sector: u32,
    /// Their CRC32.
    pub crc: u32,
    /// How many there are.
    pub len: usize,
}

/// A read to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Read {
    /// For its end.
    pub id: u64,
    /// The first sector in the file.
    pub sector: u32,
    /// Where the bytes go.
    pub at: usize,
    /// How many.
    pub bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// To be read.
    Asked,
    /// Being read.
    Reading,
    /// Read and right.
    Good,
    /// Not read, or wrong.
    Bad,
}

#[derive(Debug)]
struct Stretch {
    id: u64,
    sector: u32,
    at: usize,
    bytes: usize,
    stage: Stage,
    /// Operations of it that are still wanted.
    wanted: usize,
}

#[derive(Debug)]
struct Item {
    seq: Seq,
    at: usize,
    len: usize,
    crc: u32,
    stretch: u64,
}

/// The memory of one link, and what is in it.
#[derive(Debug)]
pub struct ReadAhead {
    size: usize,
    stretches: VecDeque<Stretch>,
    items: VecDeque<Item>,
    last_id: u64,
    /// Everything up to here was looked at.
    looked: Seq,
}

impl ReadAhead {
    /// Over so many bytes of memory.
    ///
    /// # Panics
    /// If that is less than one read.
    #[must_use]
    pub fn new(size: usize) -> Self {
        assert!(size >= STRETCH_BYTES, "one read fits");
        Self {
            size,
            stretches: VecDeque::with_capacity(64),
            items: VecDeque::with_capacity(ITEMS),
            last_id: 0,
            looked: Seq::ZERO,
        }
    }

    /// Everything up to here was asked for, or is not away.
    #[must_use]
    pub const fn looked(&self) -> Seq {
        self.looked
    }

    /// Nothing up to here is to be looked at again.
    pub fn look_after(&mut self, seq: Seq) {
        self.looked = self.looked.max(seq);
    }

    /// Where `len` bytes would go.
    fn place(&self, len: usize) -> Option<usize> {
        let (Some(first), Some(last)) = (self.stretches.front(), self.stretches.back()) else {
            return Some(0);
        };
        let end = last.at + last.bytes;
        if last.at >= first.at {
            let ahead = (end + len <= self.size).then_some(end);
            // One byte apart, so that a full ring is not an empty one.
            return ahead.or_else(|| (len < first.at).then_some(0));
        }
        (end + len < first.at).then_some(end)
    }

    /// Asks for the next operation; false if there is no room now.
    pub fn ask(&mut self, record: &AwayRecord) -> bool {
        assert!(record.seq > self.looked, "asked for once, in order");
        let room = usize::try_from(room_of(u64_of(record.len))).expect("64-bit platform");
        let Some(place) = self.place(room).filter(|_| self.items.len() < ITEMS) else {
            return false;
        };
        let joins = self.stretches.back().filter(|last| {
            let next = u64::from(last.sector) * SECTOR_BYTES + u64_of(last.bytes);
            last.stage == Stage::Asked
                && last.at + last.bytes == place
                && next == u64::from(record.sector) * SECTOR_BYTES
                && last.bytes + room <= STRETCH_BYTES
        });
        if joins.is_none() {
            self.last_id += 1;
            self.stretches.push_back(Stretch {
                id: self.last_id,
                sector: record.sector,
                at: place,
                bytes: 0,
                stage: Stage::Asked,
                wanted: 0,
            });
        }
        let stretch = self.stretches.back_mut().expect("just seen");
        stretch.bytes += room;
        stretch.wanted += 1;
        self.items.push_back(Item {
            seq: record.seq,
            at: place,
            len: record.len,
            crc: record.crc,
            stretch: stretch.id,
        });
        self.looked = record.seq;
        true
    }

    /// True if there is a read to begin.
    #[must_use]
    pub fn has_asked(&self) -> bool {
        let last = self.stretches.back();
        last.is_some_and(|stretch| stretch.stage == Stage::Asked)
    }

    /// The next read to begin.
    pub fn next_read(&mut self) -> Option<Read> {
        let asked = |stretch: &&mut Stretch| stretch.stage == Stage::Asked;
        let stretch = self.stretches.iter_mut().find(asked)?;
        stretch.stage = Stage::Reading;
        Some(Read {
            id: stretch.id,
            sector: stretch.sector,
            at: stretch.at,
            bytes: stretch.bytes,
        })
    }

    /// A read has ended; `sum` says what the bytes at a place are. The first operation that is still
    /// wanted and cannot be had.
    ///
    /// # Panics
    /// If it was not begun.
    pub fn done(
        &mut self,
        id: u64,
        read: bool,
        sum: impl Fn(usize, usize) -> u32,
    ) -> Result<(), Seq> {
        let stretch = self.stretches.iter_mut().find(|stretch| stretch.id == id);
        let stretch = stretch.expect("a read is kept to its end");
        assert_eq!(stretch.stage, Stage::Reading, "a read ends once");
        let mut items = self.items.iter().filter(|item| item.stretch == id);
        let right = |item: &Item| {
            read && (planted!(ReadBackUnchecked) || sum(item.at, item.len) == item.crc)
        };
        let bad = items.find(|item| !right(item)).map(|item| item.seq);
        stretch.stage = match bad {
            None => Stage::Good,
            Some(_) => Stage::Bad,
        };
        self.drop_passed();
        bad.map_or(Ok(()), Err)
    }

    /// Where the bytes of an operation are, if they are here and right.
    #[must_use]
    pub fn place_of(&self, seq: Seq) -> Option<usize> {
        let index = self.items.binary_search_by_key(&seq, |item| item.seq);
        let item = &self.items[index.ok()?];
        let stretch = self.stretches.iter().find(|s| s.id == item.stretch)?;
        (stretch.stage == Stage::Good).then_some(item.at)
    }

    /// Nothing up to here is wanted any more.
    pub fn passed(&mut self, through: Seq) {
        while let Some(item) = self.items.front().filter(|item| item.seq <= through) {
            let id = item.stretch;
            self.items.pop_front();
            let stretch = self.stretches.iter_mut().find(|stretch| stretch.id == id);
            stretch.expect("it has items").wanted -= 1;
        }
        self.drop_passed();
    }

    /// Nothing is wanted any more; the next look is for what follows `looked`.
    pub fn forget(&mut self, looked: Seq) {
        self.items.clear();
        for stretch in &mut self.stretches {
            stretch.wanted = 0;
        }
        self.drop_passed();
        self.looked = looked;
    }

    /// True while reads are under way.
    #[must_use]
    pub fn is_reading(&self) -> bool {
        let mut stages = self.stretches.iter().map(|stretch| stretch.stage);
        stages.any(|stage| stage == Stage::Reading)
    }

    fn drop_passed(&mut self) {
        while let Some(first) = self.stretches.front() {
            if first.wanted > 0 || first.stage == Stage::Reading {
                return;
            }
            self.stretches.pop_front();
        }
    }
}
