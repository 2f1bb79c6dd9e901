//! Where a disk queue keeps what memory has no room for.
//!
//! Owns the segments of a queue's file: which is filled, which hold something, which are to be given
//! back to the filesystem, how much they may take. Lengths and places in the order enter; positions in
//! the file leave. An operation is never split over two segments. Never reads or writes the file.
//!
//! ```text
//! a segment: free -> filled -> full -> drained -> cleared -> free
//! ```

use blkrep_types::{ByteLen, Seq, planted};
use std::collections::VecDeque;

/// The grain of places in the file.
pub const SECTOR_BYTES: u64 = 512;

/// Segments a queue can have: what a place in the log's entry can name, 2 TiB in the smallest
/// segments.
const SEGMENTS: usize = 1024;

/// Percent of the limit by which a queue must fall below its alert level before that is over: a
/// queue that stays about there alerts once.
const ALERT_SLACK: u64 = 10;

/// How much a queue may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    /// Bytes on disk at most.
    pub bytes_max: ByteLen,
    /// The alert level, in percent of that.
    pub alert_percent: u8,
}

/// What an operator is to hear of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueChange {
    /// It holds something from now on.
    Spilling,
    /// It holds nothing any more.
    Drained,
    /// It is above its alert level.
    Alert,
    /// It is below it again.
    AlertOver,
    /// It takes no more.
    Full,
}

#[derive(Debug)]
struct Segment {
    index: u32,
    used: u64,
    /// The first and last place in the order that has bytes here.
    first: Seq,
    last: Seq,
}

/// Room for one write to the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// The first sector.
    pub sector: u32,
    /// Nothing was written to its segment since that was free.
    pub fresh: bool,
}

/// The segments of a queue.
#[derive(Debug)]
pub struct Segments {
    segment_bytes: u64,
    /// The oldest first; the last one is filled.
    held: VecDeque<Segment>,
    /// Free again, to be used before new ones.
    free: Vec<u32>,
    /// Drained, and not given back yet.
    drained: VecDeque<u32>,
    /// Being given back.
    clearing: usize,
    /// Segments that the file has ever had.
    ever: u32,
    /// Room was given, and its write has not ended: what the segment had before it.
    writing: Option<u64>,
    /// Bytes of operations that are only here.
    bytes: u64,
    alert: bool,
    full: bool,
    spilling: bool,
    changes: VecDeque<QueueChange>,
}

impl Segments {
    /// An empty file.
    #[must_use]
    pub fn new(segment_bytes: ByteLen) -> Self {
        Self {
            segment_bytes: segment_bytes.get(),
            held: VecDeque::with_capacity(SEGMENTS),
            free: Vec::with_capacity(SEGMENTS),
            drained: VecDeque::with_capacity(SEGMENTS),
            clearing: 0,
            ever: 0,
            writing: None,
            bytes: 0,
            alert: false,
            full: false,
            spilling: false,
            changes: VecDeque::with_capacity(8),
        }
    }

    /// Takes over one operation that a predecessor wrote, in the order of places.
    pub fn adopt(&mut self, seq: Seq, sector: u32, len: u64) {
        let at = u64::from(sector) * SECTOR_BYTES;
        let index = u32::try_from(at / self.segment_bytes).expect("fewer segments than sectors");
        let end = at % self.segment_bytes + room_of(len);
        match self.held.back_mut().filter(|last| last.index == index) {
            Some(last) => (last.last, last.used) = (seq, last.used.max(end)),
            None => self.held.push_back(Segment {
                index,
                used: end,
                first: seq,
                last: seq,
            }),
        }
        self.bytes += len;
        self.spilling = true;
    }

    /// After the last operation was taken over: what lies between is free.
    pub fn adopted(&mut self) {
        let held = |index: u32| self.held.iter().any(|segment| segment.index == index);
        let ever = self.held.iter().map(|segment| segment.index + 1).max();
        self.ever = ever.unwrap_or(0);
        let free: Vec<_> = (0..self.ever).filter(|index| !held(*index)).collect();
        self.drained.extend(free);
    }

    /// Bytes of operations that are only here.
    #[must_use]
    pub const fn bytes(&self) -> ByteLen {
        ByteLen::new(self.bytes)
    }

    /// Bytes of the file that are in use.
    #[must_use]
    pub fn taken(&self) -> ByteLen {
        let used: u64 = self.held.iter().map(|segment| segment.used).sum();
        ByteLen::new(used)
    }

    /// Bytes of a segment.
    #[must_use]
    pub const fn segment_bytes(&self) -> ByteLen {
        ByteLen::new(self.segment_bytes)
    }

    /// The first place that may have bytes here.
    #[must_use]
    pub fn first(&self) -> Option<Seq> {
        self.held.front().map(|segment| segment.first)
    }

    /// Nothing is held, written or given back: the file may go.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.held.is_empty() && self.drained.is_empty() && self.clearing == 0
    }

    /// A write to the file has not ended.
    #[must_use]
    pub const fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    /// The last try found no room.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.full
    }

    /// Bytes that the next write may have at most, if its first operation has `first` bytes; `None` if
    /// the limit does not allow another segment.
    #[must_use]
    pub fn room(&mut self, first: u64, limits: &QueueLimits) -> Option<u64> {
        let last = self.held.back();
        let left = last.map_or(0, |last| self.segment_bytes - last.used);
        if left >= room_of(first) {
            return Some(left);
        }
        let count = self.held.len() + self.drained.len() + self.clearing;
        let count = u64::try_from(count).expect("64-bit platform");
        let fits = (count + 1).saturating_mul(self.segment_bytes) <= limits.bytes_max.get();
        let named = u64::from(self.ever + 1) * (self.segment_bytes / SECTOR_BYTES);
        let named = !self.free.is_empty() || named <= u64::from(u32::MAX);
        if fits && named && room_of(first) <= self.segment_bytes {
            return Some(self.segment_bytes);
        }
        self.found_full();
        None
    }

    /// Says that nothing more is taken, once.
    pub fn found_full(&mut self) {
        if !std::mem::replace(&mut self.full, true) {
            self.changes.push_back(QueueChange::Full);
        }
    }

    /// Takes room for a write of operations from `first` to `last`, with `bytes` together, in one
    /// segment. To be followed by its end.
    ///
    /// # Panics
    /// If [`Segments::room`] does not allow it, or another write has not ended.
    pub fn take(&mut self, first: Seq, last: Seq, bytes: u64) -> Room {
        assert!(self.writing.is_none(), "one write at a time");
        let left = self.held.back().map(|last| self.segment_bytes - last.used);
        if left.is_none_or(|left| left < bytes) {
            let index = self.free.pop().unwrap_or_else(|| {
                self.ever += 1;
                self.ever - 1
            });
            self.held.push_back(Segment {
                index,
                used: 0,
                first,
                last,
            });
        }
        let segment = self.held.back_mut().expect("just seen");
        let at = segment.used;
        segment.used += bytes;
        segment.last = last;
        assert!(segment.used <= self.segment_bytes, "asked for before");
        self.writing = Some(at);
        let sector = (u64::from(segment.index) * self.segment_bytes + at) / SECTOR_BYTES;
        Room {
            sector: u32::try_from(sector).expect("checked when the segment was taken"),
            fresh: at == 0,
        }
    }

    /// The write has ended; `bytes` of it are only here from now on.
    ///
    /// # Panics
    /// If there was none.
    pub fn written(&mut self, bytes: Option<u64>, limits: Option<&QueueLimits>) {
        let before = self.writing.take().expect("a write ends once");
        match bytes {
            Some(bytes) => {
                self.bytes += bytes;
                self.full = false;
            }
            None => self.held.back_mut().expect("it was written to").used = before,
        }
        if self.bytes > 0 && !std::mem::replace(&mut self.spilling, true) {
            self.changes.push_back(QueueChange::Spilling);
        }
        self.look_at_level(limits);
    }

    /// An operation that was only here is needed no more.
    pub const fn gone(&mut self, bytes: u64) {
        self.bytes -= bytes;
    }

    /// Nothing up to here is needed any more.
    pub fn free_through(&mut self, seq: Seq, limits: Option<&QueueLimits>) {
        while let Some(oldest) = self.held.front() {
            let written = self.writing.is_some() && self.held.len() == 1;
            let over = oldest.last <= seq || planted!(SegmentClearedEarly) && oldest.first <= seq;
            if written || !over {
                break;
            }
            self.drained.push_back(oldest.index);
            self.held.pop_front();
            self.full = false;
        }
        if self.held.is_empty() && std::mem::take(&mut self.spilling) {
            self.changes.push_back(QueueChange::Drained);
        }
        self.look_at_level(limits);
    }

    /// The next segment to give back, as its first sector; its end is to be told.
    pub fn next_to_clear(&mut self) -> Option<u32> {
        let index = self.drained.pop_front()?;
        self.clearing += 1;
        let sector = u64::from(index) * (self.segment_bytes / SECTOR_BYTES);
        Some(u32::try_from(sector).expect("it was a place once"))
    }

    /// A segment was given back, or could not be: it is free either way.
    pub fn cleared(&mut self, sector: u32) {
        let index = u64::from(sector) * SECTOR_BYTES / self.segment_bytes;
        self.clearing -= 1;
        self.free
            .push(u32::try_from(index).expect("it was a place once"));
    }

    fn look_at_level(&mut self, limits: Option<&QueueLimits>) {
        let taken = u128::from(self.taken().get());
        let above = |percent: u64| {
            limits.is_some_and(|limits| {
                taken * 100 >= u128::from(limits.bytes_max.get()) * u128::from(percent)
            })
        };
        let level = limits.map_or(0, |limits| u64::from(limits.alert_percent));
        let alert = match self.alert {
            false => taken > 0 && above(level),
            true => taken > 0 && above(level.saturating_sub(ALERT_SLACK)),
        };
        if alert != std::mem::replace(&mut self.alert, alert) {
            let change = match alert {
                true => QueueChange::Alert,
                false => QueueChange::AlertOver,
            };
            self.changes.push_back(change);
        }
    }

    /// The next thing that an operator is to hear.
    pub fn next_change(&mut self) -> Option<QueueChange> {
        self.changes.pop_front()
    }
}

/// What an operation takes in the file.
#[must_use]
pub const fn room_of(len: u64) -> u64 {
    len.next_multiple_of(SECTOR_BYTES)
}
