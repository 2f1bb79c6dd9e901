//! Admission: from a request to its local write.
//!
//! Owns the order of the steps: range lock, intent, place in the order with its log slot, local
//! write. Each step is taken as soon as the one before is done. Never waits itself.

use super::request::{Request, Stage};
use super::{
    Action, Connection, Gate, LinkIndex, NewEntry, NewRequest, RequestId, RequestOp, SourceGroup,
    Transmit, WriteLog,
};
use crate::dirty::Words;
use blkrep_types::{Errno, RecordKind, Seq, planted};

/// Without an acknowledgement for this long a link does not count as draining.
const DRAINING: std::time::Duration = std::time::Duration::from_secs(1);

impl<L: WriteLog, W: Words> SourceGroup<L, W> {
    /// Takes a request of an application. Reads are only handed over while the gate is closed.
    pub fn submit(&mut self, new: NewRequest) {
        let request = Request {
            new,
            stage: Stage::Locking,
            slot: None,
            intent: false,
            wait_for: Seq::ZERO,
        };
        match self.gate {
            Gate::Open | Gate::Frozen | Gate::Served if self.has_ended(new.volume) => {
                let (tag, result) = (new.tag, Err(Errno::EIO));
                return self.act(new.worker, Action::Complete { tag, result });
            }
            Gate::Open if new.op != RequestOp::Read && self.fails_for_a_link() => {
                self.came_in_vain(&new);
                let (tag, result) = (new.tag, Err(Errno::EIO));
                return self.act(new.worker, Action::Complete { tag, result });
            }
            Gate::Served if self.refuses_there(&new) => {
                let (tag, result) = (new.tag, Err(Errno::EIO));
                return self.act(new.worker, Action::Complete { tag, result });
            }
            Gate::Open | Gate::Served => {}
            Gate::Fenced => {
                return self.act(
                    new.worker,
                    Action::Complete {
                        tag: new.tag,
                        result: Err(Errno::EIO),
                    },
                );
            }
            Gate::Frozen => {
                let id = self.requests.insert(Request {
                    stage: Stage::Parked,
                    ..request
                });
                return self.parked.push_back(id);
            }
        }
        let id = self.requests.insert(request);
        self.begin(id);
    }

    /// Begins a request that waits for nothing.
    pub(super) fn begin(&mut self, id: RequestId) {
        let new = self.requests.get(id).new;
        match new.op {
            RequestOp::Read if self.is_lost() => self.read_there(id),
            RequestOp::Read => {
                self.requests.remove(id);
                let extent = new.extent.expect("a read has an extent");
                let tag = new.tag;
                self.act(new.worker, Action::Read { tag, extent });
            }
            RequestOp::Flush => self.begin_flush(id),
            RequestOp::Write { .. } | RequestOp::Zero { .. } => {
                let extent = new.extent.expect("a write has an extent");
                let volume = &mut self.volumes[new.volume.as_usize()];
                assert!(
                    extent.end().get() <= volume.len.get(),
                    "a queue hands over what is within its volume"
                );
                if volume.lock.acquire(id, extent) {
                    self.locked(id);
                }
            }
        }
    }

    /// The range is held.
    pub(super) fn locked(&mut self, id: RequestId) {
        if self.requests.get(id).stage == Stage::Left {
            return self.range_came_too_late(id);
        }
        if !self.has_links() {
            return self.start_local(id);
        }
        if self.is_lost() {
            return self.intended(id);
        }
        let request = self.requests.get_mut(id);
        request.intent = true;
        let (volume, extent) = (request.new.volume, request.extent());
        match self.intent.admit(volume, extent) {
            None => self.intended(id),
            Some(_) if planted!(SubmitBeforeIntent) => self.intended(id),
            Some(commit) => {
                let request = self.requests.get_mut(id);
                request.become_stage(Stage::Intending);
                self.intent_commits.push(commit);
                self.intent_waiters.push(id);
            }
        }
    }

    /// Nothing delays it. Places are given in the order of arrival here.
    pub(super) fn enter_order(&mut self, id: RequestId) {
        if self.log_waiters.is_empty() && self.sequence(id) {
            return;
        }
        if self.log_waiters.is_empty() {
            self.log_wait_since = self.now;
        }
        let request = self.requests.get_mut(id);
        if request.stage != Stage::Queued {
            request.become_stage(Stage::Queued);
        }
        self.log_waiters.push_back(id);
    }

    /// Lets those go on whose intent became durable.
    pub(super) fn intents_committed(&mut self) {
        let mut index = 0;
        while index < self.intent_waiters.len() {
            if self.intent.kept().is_done(self.intent_commits[index]) {
                // In order, so that nobody is overtaken for long; few wait at a time.
                self.intent_commits.remove(index);
                let id = self.intent_waiters.remove(index);
                self.intended(id);
            } else {
                index += 1;
            }
        }
    }

    /// Lets those go on for whom there is room now.
    pub(super) fn room_freed(&mut self) {
        while let Some(id) = self.log_waiters.front().copied() {
            if !self.sequence(id) {
                return;
            }
            self.log_waiters.pop_front();
            self.log_wait_since = self.now;
        }
        self.let_delayed_go();
    }

    /// Gives a write its place and slot, marks what the log does not keep, and starts the local
    /// write. False if it has to wait for room.
    fn sequence(&mut self, id: RequestId) -> bool {
        let request = *self.requests.get(id);
        let (volume, extent) = (request.new.volume, request.extent());
        let kind = match request.new.op {
            RequestOp::Zero { free, .. } => RecordKind::Zero {
                mirror: false,
                free,
            },
            RequestOp::Write { .. } | RequestOp::Read | RequestOp::Flush => {
                RecordKind::Data { mirror: false }
            }
        };
        let entry = NewEntry {
            kind,
            volume,
            extent: Some(extent),
            link: None,
            local: true,
        };
        let unsaid = planted!(DiscardNotSequenced) && matches!(kind, RecordKind::Zero { .. });
        let slot = loop {
            if self.gives_no_places() {
                return false;
            }
            if !self.any_following() || unsaid {
                break None;
            }
            if let Some(slot) = self.log_mut().append(&entry) {
                break Some(slot);
            }
            if self.give_up_awaited_tail() {
                continue;
            }
            if self.keeps_for_the_serving_link() || self.worth_waiting() {
                return false;
            }
            self.overflow();
        };
        if let Some(slot) = slot {
            if request.intent {
                self.intent.sequenced(volume, extent, slot.seq);
            }
            self.note_age(slot.seq);
            self.written += extent.len().get();
        }
        self.requests.get_mut(id).slot = slot;
        let (first, last) = self.layout.bits_of(volume, extent);
        let now = self.now;
        for link in self.links.iter_mut().flatten() {
            let unseen = planted!(MirrorForgetsBehindCursor) && last < link.mirror.cursor;
            if !link.is_following() && !unseen {
                link.mark_dirty(first, last);
                link.dirtied(now, extent.len());
                // Its bit stands for it on this link, though another one has it in the log.
                let through = slot.map_or(Seq::ZERO, |slot| slot.seq);
                link.dirt_through = link.dirt_through.max(through);
            }
        }
        self.start_local(id);
        true
    }

    /// True while the log is full but will soon have room: a local write of ours holds it, or the
    /// slowest link is draining and the oldest waiter's patience is not over.
    fn worth_waiting(&self) -> bool {
        let waited = if self.log_waiters.is_empty() {
            std::time::Duration::ZERO
        } else {
            self.now.since(self.log_wait_since)
        };
        if self.tail_is_ours() {
            return true;
        }
        if self.queue_makes_room() && waited < self.options.throttle_max {
            return true;
        }
        let draining = self.slowest().is_some_and(|index| self.drains(index));
        draining && waited < self.options.throttle_max
    }

    /// True if a link has got something lately.
    pub(super) fn drains(&self, index: LinkIndex) -> bool {
        self.link(index).is_some_and(|link| {
            link.connection == Connection::Up
                && link.transmit == Transmit::Started
                && self.now.since(link.progress_at) < DRAINING
        })
    }

    /// Hands the local operation to the request's worker.
    pub(super) fn start_local(&mut self, id: RequestId) {
        let request = self.requests.get_mut(id);
        let copied = request.stage == Stage::Parked;
        request.become_stage(Stage::Local);
        if self.is_lost() {
            return self.keep(id, copied);
        }
        let request = self.requests.get(id);
        let (new, slot, extent) = (request.new, request.slot, request.extent());
        let volume = new.volume;
        let action = match new.op {
            RequestOp::Zero { free, .. } => Action::Zero {
                id,
                volume,
                extent,
                free,
            },
            RequestOp::Write { fua } => Action::Write {
                id,
                tag: new.tag,
                volume,
                extent,
                slot,
                durable: fua && !planted!(FuaAsPlainWrite),
                copied,
            },
            RequestOp::Read | RequestOp::Flush => unreachable!("only writes are admitted"),
        };
        self.act(new.worker, action);
    }
}
