//! Flushes: one sync of a backing serves everybody who asked before it began.
//!
//! Owns the numbering of a volume's flushes and who waits for which. Requests and reports enter;
//! syncs and answers leave. A flush number that has succeeded says that every write completed
//! before it was submitted is durable.

use super::request::Stage;
use super::{Action, FlushTroubles, Gate, RequestId, SourceGroup, WriteLog};
use crate::dirty::Words;
use blkrep_types::{Errno, Seq, VolumeIndex, planted};

#[derive(Debug)]
pub(super) struct FlushState {
    started: u64,
    succeeded: u64,
    in_flight: bool,
    /// Wait for the flush in flight.
    current: Vec<RequestId>,
    /// Wait for the one after it.
    next: Vec<RequestId>,
    /// Somebody wants one more, without waiting.
    again: bool,
    /// A flush failed that nobody had asked for: whoever flushes next must hear of it, or a later
    /// success would promise what the failure has taken.
    untold: Option<Errno>,
}

impl FlushState {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self {
            started: 0,
            succeeded: 0,
            in_flight: false,
            current: Vec::with_capacity(capacity),
            next: Vec::with_capacity(capacity),
            again: false,
            untold: None,
        }
    }

    /// The number of the first flush that will cover a write completed now.
    pub(super) const fn covering(&self) -> u64 {
        self.started + 1
    }

    /// Those whose flush has not begun.
    pub(super) fn take_next(&mut self) -> Vec<RequestId> {
        self.again = false;
        std::mem::take(&mut self.next)
    }

    pub(super) const fn succeeded(&self) -> u64 {
        self.succeeded
    }

    /// What a flush that ended with `result` means for those who waited for it; `nobody` of them asked
    /// for a flush.
    fn tell(&mut self, nobody: bool, result: Result<(), Errno>) -> Result<(), Errno> {
        if nobody && !planted!(FailedFlushForgotten) {
            self.untold = result.err().or(self.untold);
            return result;
        }
        let earlier = self.untold.take().map_or(Ok(()), Err);
        result.and(earlier)
    }
}

impl<L: WriteLog, W: Words> SourceGroup<L, W> {
    /// An application asks for a flush.
    pub(super) fn begin_flush(&mut self, id: RequestId) {
        let head = self.log.as_ref().map_or(Seq::ZERO, |log| log.head().1);
        let request = self.requests.get_mut(id);
        request.stage = Stage::Flushing;
        request.wait_for = head;
        if self.is_lost() {
            return self.answer_when_acked(id, Ok(()));
        }
        self.queue_flush(id);
    }

    /// A write that must be durable has been done without being so.
    pub(super) fn flush_for(&mut self, id: RequestId) {
        self.requests.get_mut(id).become_stage(Stage::Flushing);
        self.queue_flush(id);
    }

    fn queue_flush(&mut self, id: RequestId) {
        let volume = self.requests.get(id).new.volume;
        let flush = &mut self.volumes[volume.as_usize()].flush;
        if planted!(FlushJoinsRunning) && flush.in_flight {
            return flush.current.push(id);
        }
        flush.next.push(id);
        self.start_flush(volume);
    }

    /// Flushes a volume for the sake of its intent map.
    pub(super) fn flush_soon(&mut self, volume: VolumeIndex) {
        self.volumes[volume.as_usize()].flush.again = true;
        self.start_flush(volume);
    }

    fn start_flush(&mut self, volume: VolumeIndex) {
        let flush = &mut self.volumes[volume.as_usize()].flush;
        if flush.in_flight || (flush.next.is_empty() && !flush.again) {
            return;
        }
        flush.in_flight = true;
        flush.again = false;
        flush.started += 1;
        std::mem::swap(&mut flush.current, &mut flush.next);
        let number = flush.started;
        let me = self.me;
        self.act(me, Action::Sync { volume, number });
    }

    /// A sync has ended.
    pub fn flush_done(&mut self, volume: VolumeIndex, number: u64, result: Result<(), Errno>) {
        let flush = &mut self.volumes[volume.as_usize()].flush;
        assert!(
            flush.in_flight && flush.started == number,
            "one flush at a time"
        );
        flush.in_flight = false;
        let mut waiting = std::mem::take(&mut flush.current);
        if self.served.is_some() {
            return self.flushed_there(waiting);
        }
        // One that was needed for a write of its own hears of that write and not of what was before.
        let asked = |id: &RequestId| self.requests.get(*id).new.op == super::RequestOp::Flush;
        let told = flush.tell(!waiting.iter().any(asked), result);
        match result {
            Ok(()) => flush.succeeded = number,
            Err(errno) => {
                let succeeded = flush.succeeded;
                if !planted!(FailedFlushClosesRegions) {
                    self.intent.flush_failed(volume, succeeded);
                }
                self.flush_failed(volume, errno);
            }
        }
        self.note_flush_troubles(volume, result.is_err());
        let parks = told.is_err() && self.gate == Gate::Frozen && !self.has_ended(volume);
        if parks && !waiting.is_empty() {
            // They have not heard of it yet; a later success does not bring back what is lost.
            self.volumes[volume.as_usize()].flush.untold = told.err();
            self.note_flush_troubles(volume, true);
        }
        for id in waiting.drain(..) {
            // A write that this flush was for is told at once: tried again, it would hear the next flush
            // succeed, which does not bring it back either.
            let asked = self.requests.get(id).new.op == super::RequestOp::Flush;
            if parks && asked {
                self.park(id);
            } else {
                self.answer_when_acked(id, told);
            }
        }
        let flush = &mut self.volumes[volume.as_usize()].flush;
        if flush.current.is_empty() {
            flush.current = waiting;
        }
        self.start_flush(volume);
    }

    /// The backing is lost: it matters no more what it said.
    fn flushed_there(&mut self, waiting: Vec<RequestId>) {
        for id in waiting {
            self.answer_when_acked(id, Ok(()));
        }
    }

    /// A flush that no worker was asked for has failed: that of an orderly stop. A successor must not
    /// promise what it may have lost.
    pub fn flush_was_lost(&mut self, volume: VolumeIndex, errno: Errno) {
        let flush = &mut self.volumes[volume.as_usize()].flush;
        flush.untold = Some(errno);
        let succeeded = flush.succeeded;
        self.intent.flush_failed(volume, succeeded);
        self.note_flush_troubles(volume, true);
    }

    /// Remembers for a successor what this flush left.
    fn note_flush_troubles(&mut self, volume: VolumeIndex, failed: bool) {
        let bit = 1_u64 << volume.get();
        let untold = self.volumes[volume.as_usize()].flush.untold.is_some();
        let Some(log) = self.log.as_mut() else {
            return;
        };
        let before = log.flush_troubles();
        let now = FlushTroubles {
            failed: before.failed | if failed { bit } else { 0 },
            untold: before.untold & !bit | if untold { bit } else { 0 },
        };
        if now != before {
            log.set_flush_troubles(now);
        }
    }

    /// A flush that failed for a predecessor counts as one of ours: what it may have lost is not
    /// safe because the next one succeeds, and whoever was not told of it has to be.
    pub(super) fn adopt_flush_troubles(&mut self) {
        let troubles = self.log_ref().flush_troubles();
        for index in 0..self.volumes.len() {
            let volume = VolumeIndex::new(u16::try_from(index).expect("few volumes"));
            if troubles.failed >> index & 1 == 1 {
                self.intent.flush_failed(volume, 0);
            }
            let flush = &mut self.volumes[index].flush;
            if troubles.untold >> index & 1 == 1 {
                flush.untold = Some(Errno::EIO);
            }
            self.note_flush_troubles(volume, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The simulator's seed 1884: a flush for the intent map failed, nobody heard of it, and the
    /// application's next flush succeeded without the writes that the first one had lost.
    #[test]
    fn a_failed_flush_that_nobody_waited_for_is_told_to_the_next_who_does() {
        let mut flush = FlushState::with_capacity(4);
        assert_eq!(flush.tell(true, Err(Errno::EIO)), Err(Errno::EIO));
        assert_eq!(flush.tell(true, Ok(())), Ok(()));
        assert_eq!(flush.tell(false, Ok(())), Err(Errno::EIO));
        assert_eq!(flush.tell(false, Ok(())), Ok(()));
        assert_eq!(flush.tell(false, Err(Errno::ENOSPC)), Err(Errno::ENOSPC));
        assert_eq!(flush.tell(false, Ok(())), Ok(()));
    }
}
