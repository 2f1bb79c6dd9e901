//! The end of a volume's device while requests wait.
//!
//! Owns who gets an error when a device is taken away: everybody who waits for something other than
//! the disk. What the disk has is waited for elsewhere. Nothing is hidden from links: what a write
//! may have left half done is dirty. Never touches the other volumes of the group.

use super::request::Stage;
use super::{Action, RequestId, SourceGroup, WriteLog};
use crate::dirty::Words;
use blkrep_types::{Errno, VolumeIndex};

impl<L: WriteLog, W: Words> SourceGroup<L, W> {
    /// The device of a volume goes away: what waits for an operator, for a range, for the state
    /// directory, for room in the log or for a target gets EIO, and so does what still comes. No
    /// request waits for anything but the disk afterwards.
    pub fn end_volume(&mut self, volume: VolumeIndex) {
        self.volumes[volume.as_usize()].ended = true;
        self.requests_are_lost(volume);
        let requests = &self.requests;
        let is_ours = |id: RequestId| requests.get(id).new.volume == volume;
        let (mut holding, mut acking) = (Vec::new(), Vec::new());
        let stays = |id: &RequestId, gone: &mut Vec<RequestId>| {
            let ours = is_ours(*id);
            if ours {
                gone.push(*id);
            }
            !ours
        };
        self.parked.retain(|id| stays(id, &mut holding));
        self.throttling.retain(|id| stays(id, &mut holding));
        self.log_waiters.retain(|id| stays(id, &mut holding));
        self.log_wait_since = self.now;
        self.ack_waiters.retain(|id| stays(id, &mut acking));
        self.take_intending(volume, &mut holding);
        self.leave_range_waiters(volume);
        for id in holding {
            self.give_up(id);
        }
        self.fail_reads(Some(volume));
        for id in acking {
            self.answer(id, Err(Errno::EIO));
        }
        if self.log.is_some() {
            self.free_and_go_on();
        }
    }

    /// The volume has a device again.
    pub fn begin_volume(&mut self, volume: VolumeIndex) {
        self.volumes[volume.as_usize()].ended = false;
    }

    /// True if no request of a volume is under way.
    #[must_use]
    pub fn volume_is_idle(&self, volume: VolumeIndex) -> bool {
        let mut requests = self.requests.iter();
        requests.all(|request| request.new.volume != volume)
    }

    /// True if the device of a volume is going away.
    pub(super) fn has_ended(&self, volume: VolumeIndex) -> bool {
        self.volumes[volume.as_usize()].ended
    }

    /// Takes out who waits for an intent of the volume.
    fn take_intending(&mut self, volume: VolumeIndex, taken: &mut Vec<RequestId>) {
        let mut index = 0;
        while index < self.intent_waiters.len() {
            let id = self.intent_waiters[index];
            if self.requests.get(id).new.volume == volume {
                self.intent_commits.remove(index);
                self.intent_waiters.remove(index);
                taken.push(id);
            } else {
                index += 1;
            }
        }
    }

    /// Answers who waits for a range. Its place in the queue for the range goes when its turn comes.
    fn leave_range_waiters(&mut self, volume: VolumeIndex) {
        let mut gone = Vec::new();
        for request in self.requests.iter_mut() {
            if request.new.volume == volume && request.stage == Stage::Locking {
                request.become_stage(Stage::Left);
                gone.push((request.new.worker, request.new.tag));
            }
        }
        for (worker, tag) in gone {
            let result = Err(Errno::EIO);
            self.act(worker, Action::Complete { tag, result });
        }
    }

    /// The range of a request that was answered already.
    pub(super) fn range_came_too_late(&mut self, id: RequestId) {
        let request = self.requests.remove(id);
        self.unlock(request.new.volume, id);
    }

    /// Lets go of everything a request holds and answers it with an error.
    fn give_up(&mut self, id: RequestId) {
        self.end_parked(id);
        self.answer(id, Err(Errno::EIO));
    }
}
