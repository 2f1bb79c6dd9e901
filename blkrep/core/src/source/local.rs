//! Completion: from the end of a local operation to the application's answer.
//!
//! Owns what a local success or failure means for log, maps and gate, and when the answer may be
//! given. Reports of workers enter; answers leave. Never hides an error: before the application
//! gets it, its extent is dirty on every link.

use super::request::{Request, Stage};
use super::{
    Action, Gate, GroupEvent, NewRequest, OnBackingError, RequestId, RequestOp, SourceGroup,
    WriteLog,
};
use crate::dirty::Words;
use blkrep_types::{Errno, Extent, Generation, Seq, VolumeIndex, planted};

impl<L: WriteLog, W: Words> SourceGroup<L, W> {
    /// A local write or zero has ended.
    pub fn local_done(&mut self, id: RequestId, result: Result<(), Errno>) {
        let request = *self.requests.get(id);
        assert_eq!(request.stage, Stage::Local, "it was handed out");
        let (volume, extent) = (request.new.volume, request.extent());
        // Without a backing the log has it, and that is all there is to do here.
        let result = if self.is_lost() { Ok(()) } else { result };
        if let Err(errno) = result {
            self.backing_failed(volume, Some(extent), errno);
            if self.gate == Gate::Frozen && !self.has_ended(volume) {
                return self.park(id);
            }
            self.doubt(volume, extent);
        }
        if let Some(slot) = request.slot {
            self.log_mut().set_local_done(slot.seq);
        }
        if request.intent {
            let flush = self.volumes[volume.as_usize()].flush.covering();
            self.intent.done(self.now, volume, extent, flush);
        }
        self.came_again(volume, extent);
        self.unlock(volume, id);
        if result.is_ok() && request.new.op_is_durable_zero() && !self.is_lost() {
            self.flush_for(id);
        } else {
            self.answer_when_acked(id, result);
        }
        if request.slot.is_some() {
            self.free_and_go_on();
        }
    }

    /// Lets go of a range and starts those who waited for it.
    pub(super) fn unlock(&mut self, volume: VolumeIndex, holder: u32) {
        let mut granted = std::mem::take(&mut self.granted);
        self.volumes[volume.as_usize()]
            .lock
            .release(holder, &mut granted);
        for holder in granted.drain(..) {
            if let Some(job) = super::blocks::job_of(holder) {
                self.job_locked(job);
            } else {
                self.locked(holder);
            }
        }
        if self.granted.capacity() < granted.capacity() {
            self.granted = granted;
        }
    }

    /// The backing did not do what was asked.
    fn backing_failed(&mut self, volume: VolumeIndex, extent: Option<Extent>, errno: Errno) {
        self.event(GroupEvent::BackingError {
            volume,
            extent,
            errno,
        });
        if self.options.on_backing_error == OnBackingError::Freeze && self.gate == Gate::Open {
            self.gate = Gate::Frozen;
            self.event(GroupEvent::Frozen);
        }
    }

    /// What the backing holds there is not what targets get.
    fn doubt(&mut self, volume: VolumeIndex, extent: Extent) {
        if self.has_links() && !planted!(FailedWriteNotDirty) {
            let (first, last) = self.layout.bits_of(volume, extent);
            for link in self.links.iter_mut().flatten() {
                link.mark_dirty(first, last);
            }
        }
    }

    /// A read failed at the backing. Under the policy `freeze` it waits to be tried again.
    pub fn read_failed(&mut self, new: NewRequest, errno: Errno) {
        let extent = new.extent;
        if matches!(self.gate, Gate::Open | Gate::Fenced) {
            self.event(GroupEvent::BackingError {
                volume: new.volume,
                extent,
                errno,
            });
        }
        if self.options.on_backing_error == OnBackingError::Freeze && self.gate == Gate::Open {
            self.gate = Gate::Frozen;
            self.event(GroupEvent::Frozen);
        }
        if matches!(self.gate, Gate::Frozen | Gate::Served) {
            self.submit(new);
        } else {
            let (tag, result) = (new.tag, Err(errno));
            self.act(new.worker, Action::Complete { tag, result });
        }
    }

    /// A flush failed: nothing that it would have covered can be called durable any more.
    pub(super) fn flush_failed(&mut self, volume: VolumeIndex, errno: Errno) {
        self.backing_failed(volume, None, errno);
    }

    pub(super) fn park(&mut self, id: RequestId) {
        self.requests.get_mut(id).become_stage(Stage::Parked);
        self.parked.push_back(id);
    }

    /// Says what happens when the backing fails. What is frozen goes on when that is no longer
    /// wanted.
    pub fn set_policy(&mut self, policy: OnBackingError) {
        self.options.on_backing_error = policy;
        if policy == OnBackingError::Pass {
            self.thaw();
        }
    }

    /// The operator says that the backing works again: what waits is tried again.
    pub fn thaw(&mut self) {
        if self.gate != Gate::Frozen {
            return;
        }
        self.gate = Gate::Open;
        self.event(GroupEvent::Thawed);
        let mut waiting = std::mem::take(&mut self.parked);
        while let Some(id) = waiting.pop_front() {
            let request = *self.requests.get(id);
            let held = request.slot.is_some() || request.intent || self.holds_range(id, &request);
            match request.new.op {
                RequestOp::Write { .. } | RequestOp::Zero { .. } if held => self.start_local(id),
                RequestOp::Read | RequestOp::Flush => self.begin(id),
                RequestOp::Write { .. } | RequestOp::Zero { .. } => {
                    self.requests.get_mut(id).become_stage(Stage::Locking);
                    self.begin(id);
                }
            }
        }
    }

    pub(super) fn holds_range(&self, id: RequestId, request: &Request) -> bool {
        self.volumes[request.new.volume.as_usize()].lock.knows(id)
    }

    /// A newer generation exists: from now on every request gets EIO. What was written stays dirt.
    pub fn fence(&mut self, newer: Generation) {
        if self.gate == Gate::Fenced {
            return;
        }
        self.gate = Gate::Fenced;
        self.event(GroupEvent::Fenced { newer });
        self.await_nothing();
        self.fail_reads(None);
        while let Some(id) = self.parked.pop_front() {
            self.end_parked(id);
            self.answer(id, Err(Errno::EIO));
        }
        for id in std::mem::take(&mut self.ack_waiters) {
            self.answer(id, Err(Errno::EIO));
        }
        self.free_and_go_on();
    }

    /// A request that waits, for an operator or to be begun, is not tried again. Without its range there is nothing
    /// of it to end: it never began.
    pub(super) fn end_parked(&mut self, id: RequestId) {
        let request = *self.requests.get(id);
        if !self.holds_range(id, &request) {
            return;
        }
        let volume = request.new.volume;
        if request.slot.is_some() {
            // Targets get it, and nobody knows what the disk has of it.
            self.doubt(volume, request.extent());
        }
        if let Some(slot) = request.slot {
            self.log_mut().set_local_done(slot.seq);
        }
        if request.intent {
            let flush = self.volumes[volume.as_usize()].flush.covering();
            self.intent.done(self.now, volume, request.extent(), flush);
        }
        self.unlock(volume, id);
    }

    /// Gives the answer, or waits for the links whose mode asks for it.
    pub(super) fn answer_when_acked(&mut self, id: RequestId, result: Result<(), Errno>) {
        let request = self.requests.get(id);
        let place = match request.new.op {
            RequestOp::Flush => request.wait_for,
            RequestOp::Write { .. } | RequestOp::Zero { .. } | RequestOp::Read => {
                request.slot.map_or(Seq::ZERO, |slot| slot.seq)
            }
        };
        let durable = self.requests.get(id).is_durable();
        let answer = self.answer_of(place, durable);
        let answer = answer.map(|acked| result.and(acked));
        if result.is_err() || answer.is_some() {
            return self.answer(id, answer.unwrap_or(result));
        }
        if self.has_ended(self.requests.get(id).new.volume) {
            return self.answer(id, Err(Errno::EIO));
        }
        let request = self.requests.get_mut(id);
        request.become_stage(Stage::Acking);
        request.wait_for = place;
        self.ack_waiters.push(id);
    }

    /// Answers the application.
    pub(super) fn answer(&mut self, id: RequestId, result: Result<(), Errno>) {
        let request = self.requests.remove(id);
        let result = match self.gate {
            Gate::Fenced => Err(Errno::EIO),
            Gate::Open | Gate::Frozen | Gate::Served => result,
        };
        let tag = request.new.tag;
        self.act(request.new.worker, Action::Complete { tag, result });
    }
}

impl NewRequest {
    const fn op_is_durable_zero(&self) -> bool {
        matches!(self.op, RequestOp::Zero { fua: true, .. })
    }
}
