//! Finding the live batches again after a stop or a crash.
//!
//! Batches are written one at a time, each durable before the next: so a bad one with a later one
//! behind it was durable once and is corrupt, and so is one that the head knows. One of which
//! nothing tells is the torn end that was never acknowledged. What follows a corrupt batch is reported as lost, because it
//! may not be applied out of order.

use super::batch::{Batch, BatchInfo, BatchRecord, read_head};
use super::{JOURNAL_BLOCK_BYTES, JournalState, SCAN_AHEAD_BYTES, Space};
use crate::error::FormatError;
use blkrep_io::Slice;
use blkrep_types::{ByteLen, Errno, WriteName, planted};

/// Fills bytes from an offset of the journal's file.
pub type ReadAt<'a> = dyn FnMut(u64, &mut [u8]) -> Result<(), Errno> + 'a;

/// What a scan comes across, in order.
#[derive(Debug)]
pub enum Damage<'a> {
    /// A good batch, to be applied.
    Good(&'a Batch),
    /// A batch that was acknowledged and will not be applied: it is damaged, or comes after one
    /// that is. Its records say which extents now differ.
    Lost(&'a Batch),
    /// One or more batches of which not even the extents are known.
    Unknown,
}

/// Where the journal ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScanEnd {
    /// Behind the last batch found.
    pub head: u64,
    /// The number of the next batch.
    pub number: u64,
    /// The last record found, lost or not: everything up to it was acknowledged.
    pub last: WriteName,
    /// Something was lost.
    pub damaged: bool,
}

/// A walk over the live part of a journal.
#[derive(Debug)]
pub struct Scan {
    state: JournalState,
    space: Space,
    batch_bytes_max: u64,
    end: ScanEnd,
    buffer: Slice,
    records: Vec<BatchRecord>,
    /// The disk could not read where the next batch would be: that cannot pass for a torn end.
    unreadable: bool,
}

enum Head {
    Good(BatchInfo),
    None,
    Unreadable,
}

enum Look {
    Good(Batch),
    /// Head and table are good, bytes of a record are not.
    Damaged(Batch),
    Bad,
}

impl Scan {
    /// A walk from the checkpoint of `state`, with a buffer for one batch.
    #[must_use]
    pub fn new(state: JournalState, buffer: Slice) -> Self {
        let batch_bytes_max = buffer.len() as u64;
        let space = Space::new(state.capacity, state.position, state.position);
        let end = ScanEnd {
            head: state.position,
            number: state.number,
            last: state.before,
            damaged: false,
        };
        Self {
            state,
            space,
            batch_bytes_max,
            end,
            buffer,
            records: Vec::new(),
            unreadable: false,
        }
    }

    /// Walks to the end. `read` fills bytes from an offset of the file; `found` is told of every
    /// batch in order.
    ///
    /// # Errors
    /// A batch was written by a newer program.
    pub fn run(
        mut self,
        read: &mut ReadAt<'_>,
        found: &mut dyn FnMut(Damage<'_>),
    ) -> Result<ScanEnd, FormatError> {
        loop {
            match self.look_for(self.end.number, read)? {
                Look::Good(batch) => self.take(batch, found),
                Look::Damaged(batch) => {
                    let later = self.search(batch.info().end(), read)?;
                    if later.is_none() && !self.unreadable && !self.known() {
                        return Ok(self.end);
                    }
                    self.end.damaged = true;
                    self.take(batch, found);
                }
                Look::Bad => {
                    let later = self.search(self.end.head, read)?;
                    match later {
                        Some(info) => self.jump(&info, found),
                        None if self.unreadable || self.known() => {
                            self.end.damaged = true;
                            found(Damage::Unknown);
                            if self.known() {
                                self.end.number = self.state.durable + 1;
                                self.end.last = self.state.last;
                            }
                            return Ok(self.end);
                        }
                        None => return Ok(self.end),
                    }
                }
            }
        }
    }

    /// True if the head knows that the next batch was durable.
    const fn known(&self) -> bool {
        self.end.number <= self.state.durable
    }

    fn take(&mut self, batch: Batch, found: &mut dyn FnMut(Damage<'_>)) {
        self.unreadable = false;
        let info = *batch.info();
        found(if self.end.damaged {
            Damage::Lost(&batch)
        } else {
            Damage::Good(&batch)
        });
        self.end.head = info.end();
        self.end.number = info.number + 1;
        self.end.last = info.last;
        (self.buffer, self.records) = batch.recycle();
    }

    fn jump(&mut self, later: &BatchInfo, found: &mut dyn FnMut(Damage<'_>)) {
        self.end.damaged = true;
        self.unreadable = false;
        found(Damage::Unknown);
        self.end.head = later.position;
        self.end.number = later.number;
    }

    /// The batch `number` at the head, or at the start of the next lap.
    fn look_for(&mut self, number: u64, read: &mut ReadAt<'_>) -> Result<Look, FormatError> {
        let next_lap = self.end.head.next_multiple_of(self.state.capacity);
        let here = self.end.head;
        let places = [here, next_lap];
        let count = if here == next_lap { 1 } else { 2 };
        for position in &places[..count] {
            match self.head_at(*position, read)? {
                Head::Good(info) if info.number == number => return self.whole(&info, read),
                Head::Unreadable => self.unreadable = true,
                Head::Good(_) | Head::None => {}
            }
        }
        Ok(Look::Bad)
    }

    /// True if a batch at `position` could be a live one.
    fn within(&self, position: u64, bytes: u64) -> bool {
        position + bytes <= self.state.position + self.state.capacity
            && position % self.state.capacity + bytes <= self.state.capacity
    }

    fn head_at(&self, position: u64, read: &mut ReadAt<'_>) -> Result<Head, FormatError> {
        if !self.within(position, JOURNAL_BLOCK_BYTES) {
            return Ok(Head::None);
        }
        let block = self.buffer.part(0..to_usize(JOURNAL_BLOCK_BYTES));
        if block
            .with_mut(|bytes| read(self.space.file_offset(position), bytes))
            .is_err()
        {
            return Ok(Head::Unreadable);
        }
        match block.with(|bytes| read_head(bytes, &self.state.id, position)) {
            Ok((info, _)) if self.plausible(&info) => Ok(Head::Good(info)),
            Err(error) if error.is_newer() => Err(error),
            Ok(_) | Err(_) => Ok(Head::None),
        }
    }

    fn plausible(&self, info: &BatchInfo) -> bool {
        info.bytes <= self.batch_bytes_max && self.within(info.position, info.bytes)
    }

    fn whole(&mut self, info: &BatchInfo, read: &mut ReadAt<'_>) -> Result<Look, FormatError> {
        let all = self.buffer.part(0..to_usize(info.bytes));
        let offset = self.space.file_offset(info.position);
        if all.with_mut(|bytes| read(offset, bytes)).is_err() {
            self.unreadable = true;
            return Ok(Look::Bad);
        }
        let records = std::mem::take(&mut self.records);
        match Batch::read(self.buffer.clone(), records, &self.state.id, info.position) {
            Ok(batch) if batch.damaged() && !planted!(TornBatchTaken) => Ok(Look::Damaged(batch)),
            Ok(batch) => Ok(Look::Good(batch)),
            Err(error) if error.is_newer() => Err(error),
            Err(_) => Ok(Look::Bad),
        }
    }

    /// The first batch after `from` with a number later than the one that is missing.
    fn search(&self, from: u64, read: &mut ReadAt<'_>) -> Result<Option<BatchInfo>, FormatError> {
        let missing = self.end.number;
        let next_lap = (from + 1).next_multiple_of(self.state.capacity);
        let ranges = [(from, next_lap), (next_lap, next_lap + self.state.capacity)];
        for (start, lap_end) in ranges {
            let mut position = start;
            let stop = lap_end.min(start + SCAN_AHEAD_BYTES);
            while position < stop && self.within(position, JOURNAL_BLOCK_BYTES) {
                match self.head_at(position, read)? {
                    Head::Good(info) if info.number > missing => return Ok(Some(info)),
                    Head::Good(_) | Head::None | Head::Unreadable => {}
                }
                position += JOURNAL_BLOCK_BYTES;
            }
        }
        Ok(None)
    }
}

fn to_usize(bytes: u64) -> usize {
    ByteLen::new(bytes).as_usize()
}
