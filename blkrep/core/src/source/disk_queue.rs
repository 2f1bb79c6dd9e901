//! The disk queue of a group: what leaves memory, when, and what its failure means.
//!
//! Owns when bytes of the log are written out and which: memory keeps the oldest for the links, newer
//! ones go to disk. Names and places stay in memory, so whatever is done with an entry is done with one
//! that is away too; what the queue's disk cannot take or give back becomes dirt, as with a log that
//! runs over. Limits and reports enter; jobs leave. Never touches a file.

use super::{Away, Connection, GroupEvent, LinkIndex, SourceGroup, Transmit, WriteLog};
use crate::ahead::AwayRecord;
use crate::dirty::Words;
use crate::queue::{QueueLimits, Segments, room_of};
use blkrep_types::{ByteLen, Errno, Nanos, Seq};
use std::time::Duration;

/// Bytes of one write: large enough for any disk, small enough that a disk that hangs holds little.
const WRITE_BYTES: u64 = 1 << 20;

/// Operations of one write.
pub const WRITE_OPERATIONS: usize = 256;

/// A queue whose disk failed is tried again after this long: long enough not to fill the event log,
/// short enough for somebody who made room.
const RETRY: Duration = Duration::from_secs(5);

/// Entries looked at in one turn for what a link reads ahead.
const LOOK: usize = 1024;

/// An operation to write out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutPart {
    /// Its place in the order.
    pub seq: Seq,
    /// First byte of its slot.
    pub position: usize,
    /// Length of its bytes.
    pub len: usize,
    /// The first sector in the file.
    pub sector: u32,
    /// CRC32 of its bytes, for whoever writes to fill in.
    pub crc: u32,
}

/// A write to the queue's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteOut {
    /// Its operations, one after the other in the file.
    pub parts: Vec<OutPart>,
    /// It begins a segment: there must be room for all of that.
    pub fresh: bool,
}

/// Something to do with the queue's file.
#[derive(Debug)]
pub enum QueueJob {
    /// Write operations.
    Write(WriteOut),
    /// Give a segment back to the filesystem.
    Clear {
        /// The first sector.
        sector: u32,
        /// How much.
        bytes: ByteLen,
    },
}

/// What a status shows of a group's queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QueueStatus {
    /// Bytes of the log in memory, and at most.
    pub memory: (ByteLen, ByteLen),
    /// Bytes of operations that are only on disk.
    pub disk: ByteLen,
    /// Bytes on disk at most; `None` without a queue.
    pub disk_max: Option<ByteLen>,
    /// Why it takes nothing for the moment.
    pub failed: Option<Errno>,
}

/// The queue of a group.
#[derive(Debug, Default)]
pub(super) struct DiskQueue {
    /// What it may hold; `None`: nothing more is written out.
    limits: Option<QueueLimits>,
    segments: Option<Segments>,
    /// Every entry up to here stays where it is.
    settled: Seq,
    /// The last entry of the write that goes on.
    writing: Option<Seq>,
    since: Nanos,
    failed: Option<(Errno, Nanos)>,
}

impl<L: WriteLog, W: Words> SourceGroup<L, W> {
    /// Gives the group an empty queue of such segments.
    ///
    /// # Panics
    /// If the one it has is in use.
    pub fn open_queue(&mut self, segment_bytes: ByteLen) {
        assert!(self.queue_is_idle(), "a queue is drained before it goes");
        self.queue.segments = Some(Segments::new(segment_bytes));
        self.queue.failed = None;
    }

    /// Takes the group's queue away.
    ///
    /// # Panics
    /// If it is in use.
    pub fn close_queue(&mut self) {
        assert!(self.queue_is_idle(), "a queue is drained before it goes");
        self.queue.segments = None;
    }

    /// Remembers for a successor which file holds what is away; 0 for none.
    pub fn remember_queue(&mut self, file: u64) {
        if let Some(log) = &mut self.log {
            log.remember_queue(file);
        }
    }

    /// True if something is only on disk, for look-ahead to find.
    #[must_use]
    pub fn has_away(&self) -> bool {
        let segments = self.queue.segments.as_ref();
        segments.is_some_and(|segments| segments.first().is_some())
    }

    /// How much may be on disk; `None` writes nothing more out.
    pub fn limit_queue(&mut self, limits: Option<QueueLimits>) {
        self.queue.limits = limits;
        self.queue.failed = None;
    }

    /// Nothing is on disk, and nothing is done there.
    #[must_use]
    pub fn queue_is_idle(&self) -> bool {
        let idle = self.queue.segments.as_ref().is_none_or(Segments::is_idle);
        idle && self.queue.writing.is_none()
    }

    /// After the links of a predecessor were added: takes over what it had on disk, in a file with such
    /// segments. Without the file that is dirt on every link that has not got it.
    pub fn adopt_queue(&mut self, segment_bytes: Option<ByteLen>) {
        let (base, head) = (self.log_ref().base().1, self.log_ref().head().1);
        let mut segments = segment_bytes.map(Segments::new);
        let (mut seq, mut last) = (base, None);
        while seq < head {
            seq = seq.next();
            let entry = self.log_ref().entry(seq);
            let Some(away) = entry.away else {
                continue;
            };
            last = Some(seq);
            if let Some(segments) = &mut segments {
                segments.adopt(seq, away.sector, entry.record.data_len().get());
            }
        }
        if let Some(mut segments) = segments {
            segments.adopted();
            self.queue.segments = Some(segments);
        } else if let Some(last) = last {
            for index in self.link_indices() {
                let link = self.link(index);
                let lacks = link.is_some_and(|link| link.is_following() && link.held < last);
                if lacks {
                    self.give_up_for(index);
                }
            }
        }
        self.queue.settled = last.unwrap_or(base);
        self.free();
    }

    /// The next thing to do with the queue's file; its end is to be reported.
    pub fn next_queue_job(&mut self) -> Option<QueueJob> {
        let segments = self.queue.segments.as_mut()?;
        if let Some(sector) = segments.next_to_clear() {
            let bytes = segments.segment_bytes();
            return Some(QueueJob::Clear { sector, bytes });
        }
        let job = self.next_write().map(QueueJob::Write);
        self.tell_queue_changes();
        job
    }

    /// True if memory is full enough to write something out.
    fn is_pressed(&self) -> bool {
        let log = self.log.as_ref();
        log.is_some_and(|log| log.used().get() > log.capacity().get() / 2)
    }

    fn next_write(&mut self) -> Option<WriteOut> {
        let limits = self.queue.limits?;
        let held_up = self.queue.failed.is_some_and(|(_, retry)| self.now < retry);
        let busy = self.queue.writing.is_some();
        // What a target that serves lacks is not given up when a disk fails.
        let busy = busy || self.is_lost();
        if busy || held_up || !self.is_pressed() || !self.any_following() {
            return None;
        }
        self.keep_oldest();
        let log = self.log.as_ref().expect("it is pressed");
        let segments = self.queue.segments.as_mut()?;
        let (mut seq, head) = (self.queue.settled.max(log.base().1), log.head().1);
        let most = WRITE_BYTES.min(log.capacity().get() / 8);
        let (mut parts, mut bytes, mut room) = (Vec::new(), 0, None);
        while seq < head && parts.len() < WRITE_OPERATIONS {
            let entry = log.entry(seq.next());
            if !(entry.published && entry.local_done) {
                break;
            }
            let len = entry.record.data_len();
            if len > ByteLen::ZERO {
                let (bytes_of, len) = (len.as_usize(), len.get());
                let most = match room {
                    Some(most) => most,
                    None => *room.insert(segments.room(len, &limits)?.min(most.max(room_of(len)))),
                };
                if bytes + room_of(len) > most {
                    break;
                }
                if parts.is_empty() {
                    parts.reserve(WRITE_OPERATIONS);
                }
                parts.push(OutPart {
                    seq: seq.next(),
                    position: entry.position,
                    len: bytes_of,
                    sector: u32::try_from(bytes / crate::queue::SECTOR_BYTES).expect("one write"),
                    crc: 0,
                });
                bytes += room_of(len);
            }
            seq = seq.next();
        }
        let (first, last) = (parts.first()?.seq, parts.last()?.seq);
        let room = segments.take(first, last, bytes);
        for part in &mut parts {
            part.sector += room.sector;
            self.log_mut().lend(part.seq);
        }
        (self.queue.writing, self.queue.since) = (Some(last), self.now);
        Some(WriteOut {
            parts,
            fresh: room.fresh,
        })
    }

    /// With nothing on disk: the oldest quarter of memory stays there for the links that lack it.
    fn keep_oldest(&mut self) {
        let segments = self.queue.segments.as_ref();
        if segments.is_none_or(|segments| segments.first().is_some()) {
            return;
        }
        let log = self.log.as_ref().expect("a group with links has a log");
        let slowest = self.links.iter().flatten().filter(|l| l.is_following());
        let from = slowest.map(|link| link.held).min();
        let mut seq = from.unwrap_or(log.base().1).max(log.base().1);
        let (head, mut left) = (log.head().1, log.capacity().get() / 4);
        while seq < head {
            let entry = log.entry(seq.next());
            let len = entry.record.data_len().get();
            if len > left {
                break;
            }
            left -= len;
            seq = seq.next();
        }
        self.queue.settled = self.queue.settled.max(seq);
    }

    /// A write to the file has ended.
    ///
    /// # Panics
    /// If none was begun.
    pub fn written_out(&mut self, write: &WriteOut, result: Result<(), Errno>) {
        self.queue.writing = None;
        let mut bytes = 0;
        for part in &write.parts {
            // What a driver reads now stays where it reads it.
            let read = |link: &super::link::Link<W>| {
                part.seq > link.released && part.seq <= link.last_read()
            };
            let read = self.links.iter().flatten().any(read);
            let away = (result.is_ok() && !read).then_some(Away {
                sector: part.sector,
                crc: part.crc,
            });
            let held = self.log_ref().base().1 < part.seq;
            self.log_mut().take_back(part.seq, away);
            if held && away.is_some() {
                bytes += u64::try_from(part.len).expect("64-bit platform");
            }
            self.queue.settled = part.seq;
        }
        let limits = self.queue.limits;
        let segments = self.queue.segments.as_mut().expect("it was written to");
        segments.written(result.is_ok().then_some(bytes), limits.as_ref());
        match result {
            Ok(()) => self.queue.failed = None,
            Err(errno) => self.queue_failed(errno),
        }
        // Its entries may have been freed meanwhile, and the segment not before it was written.
        self.drain_queue();
        self.go_on();
    }

    fn queue_failed(&mut self, errno: Errno) {
        let again = self.queue.failed.is_some_and(|(before, _)| before == errno);
        self.queue.failed = Some((errno, self.now.after(RETRY)));
        if !again {
            self.event(GroupEvent::QueueFailed { errno });
        }
    }

    /// A segment was given back, or could not be.
    pub fn segment_cleared(&mut self, sector: u32) {
        if let Some(segments) = &mut self.queue.segments {
            segments.cleared(sector);
        }
    }

    /// Bytes of an entry that a link needs cannot be had from the disk: they are dirt.
    pub fn away_lost(&mut self, index: LinkIndex, seq: Seq, errno: Errno) {
        let lacks = |link: &super::link::Link<W>| link.is_following() && link.held < seq;
        if self.link(index).is_some_and(lacks) {
            self.event(GroupEvent::QueueUnreadable { link: index, errno });
            self.give_up_for(index);
        }
    }

    /// Everything that a link has not got becomes dirt.
    fn give_up_for(&mut self, index: LinkIndex) {
        self.turn_behind(index);
        let now = self.now;
        if let Some(link) = self.link_mut(index) {
            link.overflows += 1;
            link.mirror.overflowed(now);
        }
        self.event(GroupEvent::Behind { link: index });
        self.free();
        self.look_after_promises();
        self.go_on();
    }

    /// The queue makes room in memory soon, so that a write may wait for it a little.
    pub(super) fn queue_makes_room(&self) -> bool {
        let queue = &self.queue;
        let patient = self.now.since(queue.since) < self.options.throttle_max;
        let (Some(_), Some(segments)) = (queue.limits, &queue.segments) else {
            return false;
        };
        let log = self.log_ref();
        if queue.writing.is_some() {
            return patient;
        }
        let more = queue.settled < log.head().1 && !log.is_out_of_entries();
        more && queue.failed.is_none() && !segments.is_full()
    }

    /// What lies on disk of this entry is needed no more.
    pub(super) fn note_gone(&mut self, bytes: u64) {
        if let Some(segments) = &mut self.queue.segments {
            segments.gone(bytes);
        }
    }

    /// Entries up to the log's base are gone.
    pub(super) fn drain_queue(&mut self) {
        let base = self.log_ref().base().1;
        if let Some(segments) = &mut self.queue.segments {
            segments.free_through(base, self.queue.limits.as_ref());
        }
        self.tell_queue_changes();
    }

    fn tell_queue_changes(&mut self) {
        while let Some(change) = self.queue.segments.as_mut().and_then(Segments::next_change) {
            self.event(GroupEvent::Queue { change });
        }
    }

    /// The next operations of a link that are only on disk, after `looked`: those that fit `ask`. What
    /// was looked at.
    #[must_use]
    pub fn look_ahead(
        &self,
        index: LinkIndex,
        looked: Seq,
        mut ask: impl FnMut(&AwayRecord) -> bool,
    ) -> Seq {
        let first = self.queue.segments.as_ref().and_then(Segments::first);
        let (Some(first), Some(log), Some(link)) = (first, &self.log, self.link(index)) else {
            return looked;
        };
        let flows = link.connection == Connection::Up && link.transmit == Transmit::Started;
        if !flows || !link.is_following() {
            return looked;
        }
        let before = Seq::new(first.get().saturating_sub(1));
        let mut seq = looked.max(link.last_read()).max(before);
        seq = seq.max(log.base().1);
        let end = self.queue.settled.min(log.head().1);
        for _ in 0..LOOK {
            if seq >= end {
                break;
            }
            let entry = log.entry(seq.next());
            let ours = entry.link.is_none_or(|owner| owner == index);
            if let Some(away) = entry.away.filter(|_| ours) {
                let record = AwayRecord {
                    seq: seq.next(),
                    sector: away.sector,
                    crc: away.crc,
                    len: entry.record.data_len().as_usize(),
                };
                if !ask(&record) {
                    break;
                }
            }
            seq = seq.next();
        }
        seq
    }

    /// Places up to here were handed to the driver of a link and are no longer read by it.
    #[must_use]
    pub fn released(&self, index: LinkIndex) -> Seq {
        self.link(index).map_or(Seq::ZERO, |link| link.released)
    }

    /// What a status shows.
    #[must_use]
    pub fn queue_status(&self) -> QueueStatus {
        let log = self.log.as_ref();
        let segments = self.queue.segments.as_ref();
        QueueStatus {
            memory: log.map_or_else(Default::default, |log| (log.used(), log.capacity())),
            disk: segments.map_or(ByteLen::ZERO, Segments::bytes),
            disk_max: self.queue.limits.map(|limits| limits.bytes_max),
            failed: self.queue.failed.map(|(errno, _)| errno),
        }
    }
}
