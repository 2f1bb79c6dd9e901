//! What the state machine needs of the write log.
//!
//! Owns the trait [`WriteLog`]. Entries enter in order and leave in order. The log holds the bytes
//! in memory that outlives the process; this seam only names them.

use super::LinkIndex;
use crate::identity::Place;
use blkrep_types::{ByteLen, Extent, Record, RecordKind, Seq, VolumeIndex};

/// An entry to append.
#[derive(Debug, Clone, Copy)]
pub struct NewEntry {
    /// What it does.
    pub kind: RecordKind,
    /// To which volume.
    pub volume: VolumeIndex,
    /// Where.
    pub extent: Option<Extent>,
    /// The one link it is for; every link if `None`.
    pub link: Option<LinkIndex>,
    /// A local write belongs to it and is not done.
    pub local: bool,
}

/// An entry's place and the first byte of its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Its place in the order.
    pub seq: Seq,
    /// First byte of its data in the log's data memory; meaningless without data.
    pub position: usize,
}

/// An entry as it is.
#[derive(Debug, Clone, Copy)]
pub struct LogEntry {
    /// What it does, where, with its name.
    pub record: Record,
    /// First byte of its data.
    pub position: usize,
    /// The one link it is for.
    pub link: Option<LinkIndex>,
    /// Its bytes are complete: it may be sent.
    pub published: bool,
    /// No local write of it is outstanding.
    pub local_done: bool,
    /// Its bytes are there instead of in memory.
    pub away: Option<Away>,
}

/// Where the bytes of an entry lie in the disk queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Away {
    /// The first sector in its file.
    pub sector: u32,
    /// CRC32 of the bytes.
    pub crc: u32,
}

/// What a successor must know of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkMark {
    /// Every write after `held` is in the log for it.
    pub following: bool,
    /// A mirror was begun and not ended.
    pub mirror_open: bool,
    /// Nothing up to here is held for it.
    pub held: Seq,
    /// The last name it has durably, if `acked_known`.
    pub acked: Place,
    /// The target has acknowledged something.
    pub acked_known: bool,
}

/// Volumes, by bit, whose flushes went wrong since the host started: a successor must not forget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FlushTroubles {
    /// A flush failed: regions that were open then may have lost what was written.
    pub failed: u64,
    /// A flush failed and nobody was told yet.
    pub untold: u64,
}

/// The ordered memory of a group.
pub trait WriteLog {
    /// The last name given; the base if the log is empty.
    fn head(&self) -> Place;

    /// The name directly before the oldest entry held.
    fn base(&self) -> Place;

    /// Appends an entry if there is room. One without data is published at once.
    fn append(&mut self, entry: &NewEntry) -> Option<Slot>;

    /// The entry at a place.
    ///
    /// # Panics
    /// If the log does not hold it.
    fn entry(&self, seq: Seq) -> LogEntry;

    /// Its bytes are complete.
    fn publish(&mut self, seq: Seq);

    /// Changes what an unpublished entry does.
    fn replace_kind(&mut self, seq: Seq, kind: RecordKind);

    /// Its local write is done.
    fn set_local_done(&mut self, seq: Seq);

    /// Forgets every entry up to `seq`.
    fn free_through(&mut self, seq: Seq);

    /// Lends the slot of a complete entry to an operation that writes it out.
    fn lend(&mut self, seq: Seq);

    /// That operation is over. With `away` the bytes of the entry, if it is still held, are there, and
    /// its slot is free.
    fn take_back(&mut self, seq: Seq, away: Option<Away>);

    /// Remembers for a successor which file holds what is away; 0 for none.
    fn remember_queue(&mut self, file: u64);

    /// No further entry fits, whatever its size.
    fn is_out_of_entries(&self) -> bool;

    /// Data bytes held.
    fn used(&self) -> ByteLen;

    /// Data bytes it can hold.
    fn capacity(&self) -> ByteLen;

    /// Remembers a link for a successor.
    fn mark_link(&mut self, link: LinkIndex, mark: &LinkMark);

    /// What is remembered of flushes that failed.
    fn flush_troubles(&self) -> FlushTroubles;

    /// Remembers flushes that failed for a successor.
    fn set_flush_troubles(&mut self, troubles: FlushTroubles);
}
