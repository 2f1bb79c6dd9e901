//! A group that has lost its backing and is served by the target of one of its links.
//!
//! Owns when a link can serve, what becomes of requests then, and reads on their way to the target and
//! back. That the backing is lost is durable before [`SourceGroup::serve_from`] is called; nothing here
//! takes it back. Never lets a request reach a backing: what it holds may be stale. See ADR 12.
//!
//! ```text
//! write: range lock -> Seq and log slot -> the target has received it, or durably
//! read:  a record of the stream -> the target's answer, in parts
//! ```

use super::link::Link;
use super::request::{RequestOp, Stage};
use super::{
    Action, Connection, ContentPart, Gate, GroupEvent, LinkIndex, MirrorPhase, NewEntry,
    NewRequest, PeerRole, RequestId, SourceGroup, Transmit, WelcomeFacts, WorkerId, WriteLog,
};
use crate::dirty::Words;
use crate::identity::{Place, Verdict, place};
use blkrep_types::{ByteOffset, DataState, Errno, Mode, RecordKind, Seq, VolumeIndex, planted};
use std::collections::VecDeque;

/// Reads that a target is asked for at once: enough to fill a line, few enough that its journal and the log
/// keep their room for writes.
const READS_MAX: usize = 64;

/// Why a link cannot serve its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CannotServe {
    /// Nothing failed: the group waits for nobody.
    NotFrozen,
    /// There is no such link.
    NoLink,
    /// It has no connection, or transmission is held.
    NotConnected,
    /// The target lacks something that the log does not hold, or its replica is not `ok`.
    NotEqual,
    /// The target has not got everything durably yet: what was flushed here must not go with this host's
    /// power.
    Draining,
    /// The target is of a version that answers no reads.
    TooOld,
}

impl CannotServe {
    /// In words, for a status and an error.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotFrozen => "no backing of the group has failed",
            Self::NoLink => "the group has no such link",
            Self::NotConnected => "the link is not connected, or its transmission is held",
            Self::NotEqual => {
                "the target lacks more than what the log holds, or its replica is not ok"
            }
            Self::Draining => "the target has not got everything yet",
            Self::TooOld => "the target is of a version that answers no reads",
        }
    }
}

/// A read that the target was asked for.
#[derive(Debug, Clone, Copy)]
struct Asked {
    place: Place,
    id: RequestId,
    /// Bytes of it that came.
    got: u64,
}

/// The group has lost its backing.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) link: LinkIndex,
    /// Reads that have no place in the stream yet.
    waiting: VecDeque<RequestId>,
    asked: Vec<Asked>,
}

impl<W: Words> Link<W> {
    /// True if the target answers reads.
    fn answers_reads(&self) -> bool {
        self.peer.as_ref().is_some_and(|peer| peer.reads)
    }

    /// True if the target has, as a group that it serves asks for, what was written up to this place.
    pub(super) fn serves(&self, place: Seq, durable: bool) -> bool {
        let durable = durable && !planted!(FlushNotAtTarget);
        match durable || self.mode == Mode::Sync {
            true => self.held >= place,
            false => self.received.max(self.held) >= place,
        }
    }
}

impl<L: WriteLog, W: Words> SourceGroup<L, W> {
    /// True if the group has lost its backing: nothing may be read from it or written to it.
    #[must_use]
    pub const fn is_lost(&self) -> bool {
        self.served.is_some()
    }

    /// The link whose target serves the group.
    #[must_use]
    pub fn serving(&self) -> Option<LinkIndex> {
        let served = self.served.as_ref().map(|served| served.link);
        served.filter(|_| self.gate == Gate::Served)
    }

    /// Whether the target of a link could serve the group from now on.
    ///
    /// # Errors
    /// Why not.
    pub fn may_serve_from(&self, index: LinkIndex) -> Result<(), CannotServe> {
        let link = self.link(index).ok_or(CannotServe::NoLink)?;
        if self.gate != Gate::Frozen {
            return Err(CannotServe::NotFrozen);
        }
        let flows = link.connection == Connection::Up && link.transmit == Transmit::Started;
        if !flows || link.worker.is_none() {
            return Err(CannotServe::NotConnected);
        }
        if !link.answers_reads() {
            return Err(CannotServe::TooOld);
        }
        let mirror = &link.mirror;
        let idle = mirror.phase == MirrorPhase::Idle && !mirror.open && mirror.wanted.is_none();
        let equal = link.is_following() && !link.differs() && link.data_state == DataState::Ok;
        // What was begun without a place in the log is nowhere but here.
        let changes = |op| matches!(op, RequestOp::Write { .. } | RequestOp::Zero { .. });
        let mut all = self.requests.ids().into_iter();
        let unnamed = all.any(|id| {
            let request = self.requests.get(id);
            let begun = matches!(request.stage, Stage::Local | Stage::Parked);
            let named = request.slot.is_some() || !changes(request.new.op);
            begun && !named && self.holds_range(id, request)
        });
        if !idle || !equal || unnamed {
            return Err(CannotServe::NotEqual);
        }
        match link.held >= self.log_ref().head().1 {
            true => Ok(()),
            false => Err(CannotServe::Draining),
        }
    }

    /// As [`Self::may_serve_from`]; if so, nothing gets a place in the order until [`Self::serve_from`] or
    /// [`Self::unpin`] is called, once the group's record says what it is to say.
    ///
    /// # Errors
    /// Why not.
    pub fn pin(&mut self, index: LinkIndex) -> Result<(), CannotServe> {
        self.may_serve_from(index)?;
        self.pinned = Some(index);
        Ok(())
    }

    /// The group is not served by a target after all, and its record says so.
    pub fn unpin(&mut self) {
        self.pinned = None;
        self.go_on();
    }

    /// True if the link that was pinned can still serve: nothing was given up meanwhile.
    #[must_use]
    pub fn still_serves(&self, index: LinkIndex) -> bool {
        self.gate == Gate::Frozen
            && self
                .link(index)
                .is_some_and(|link| link.is_following() && !link.differs())
    }

    /// From now on the target of this link serves the group; that its backing is lost is durable. A start
    /// that finds this on record says it before the first link is there.
    pub fn serve_from(&mut self, index: LinkIndex) {
        self.pinned = None;
        if self.served.is_some() {
            return;
        }
        self.served = Some(Served {
            link: index,
            waiting: VecDeque::with_capacity(self.options.requests_max),
            asked: Vec::with_capacity(READS_MAX),
        });
        if self.gate == Gate::Fenced {
            return;
        }
        self.gate = Gate::Served;
        self.event(GroupEvent::Served { link: index });
        if self.log.is_none() {
            return;
        }
        self.forget_awaited();
        for volume in 0..self.volumes.len() {
            for id in self.volumes[volume].flush.take_next() {
                self.answer_when_acked(id, Ok(()));
            }
        }
        for id in std::mem::take(&mut self.parked) {
            self.begin_there(id);
        }
        self.free();
        self.go_on();
    }

    /// Begins again what waited for an operator.
    fn begin_there(&mut self, id: RequestId) {
        let request = *self.requests.get(id);
        match request.new.op {
            RequestOp::Write { .. } | RequestOp::Zero { .. } if self.holds_range(id, &request) => {
                self.start_local(id);
            }
            RequestOp::Write { .. } | RequestOp::Zero { .. } => {
                self.requests.get_mut(id).become_stage(Stage::Locking);
                self.begin(id);
            }
            RequestOp::Read | RequestOp::Flush => self.begin(id),
        }
    }

    /// What would be written to the backing only gets its bytes into the log.
    pub(super) fn keep(&mut self, id: RequestId, copied: bool) {
        let request = *self.requests.get(id);
        match (request.new.op, request.slot) {
            (RequestOp::Write { .. }, Some(slot)) if !copied => {
                let (tag, extent) = (request.new.tag, request.extent());
                let action = Action::Keep {
                    id,
                    tag,
                    extent,
                    slot,
                };
                self.act(request.new.worker, action);
            }
            _ => self.local_done(id, Ok(())),
        }
    }

    /// What a handshake may lead to without a backing: the stream goes on from the log, or, where the memory of
    /// the log is gone, from what the target that serves has. `Err`: neither.
    pub(super) fn judge_without_backing(
        &mut self,
        index: LinkIndex,
        peer: &WelcomeFacts,
        verdict: Verdict,
    ) -> Result<Verdict, String> {
        let Some(served) = &self.served else {
            return Ok(verdict);
        };
        let serves = served.link == index;
        if matches!(verdict, Verdict::Stale(_) | Verdict::Refuse(_)) {
            return Ok(verdict);
        }
        if serves && !peer.reads {
            return Err(CannotServe::TooOld.as_str().to_owned());
        }
        let link = self.link(index).expect("a handshake has its link");
        let acked = link.acked.max(link.floor.map(place));
        let ours = peer.durable.generation == self.history.current();
        let has_all = ours && acked.is_none_or(|acked| place(peer.durable) >= acked);
        if verdict == Verdict::Resume && has_all {
            return Ok(verdict);
        }
        let whole = peer.role == PeerRole::Replica && peer.data_state == DataState::Ok;
        if serves && has_all && whole && !self.has_joined(index) {
            // What it has is all that there is: it is the group.
            let link = self.link_mut(index).expect("just seen");
            link.live.clear_all();
            link.compare.clear_all();
            return Ok(Verdict::Difference);
        }
        Err(if serves {
            "the group has lost its backing, and the target that served it lacks what it had: promote another target of the group, or this one with what it has".to_owned()
        } else {
            "the group has lost its backing, and there is nothing that this target could be mirrored from: connect it again when the group was taken over".to_owned()
        })
    }

    /// True if a mirror may go on: without a backing there is nothing to read, and only one that has nothing to
    /// send may be begun and ended, to say where the stream goes on.
    pub(super) fn may_mirror(&self, index: LinkIndex) -> bool {
        let nothing = self.link(index).is_some_and(|link| !link.differs());
        self.served
            .as_ref()
            .is_none_or(|served| served.link == index && nothing)
    }

    /// A read waits for its place in the stream.
    pub(super) fn read_there(&mut self, id: RequestId) {
        self.requests.get_mut(id).become_stage(Stage::Reading);
        let served = self.served.as_mut().expect("the backing is lost");
        served.waiting.push_back(id);
        self.ask();
    }

    /// Gives places to reads, while there is room and a connection.
    pub(super) fn ask(&mut self) {
        let Some(index) = self.serving().filter(|index| self.flows(*index)) else {
            return;
        };
        if self.gives_no_places() {
            return;
        }
        while let Some(served) = &self.served
            && served.asked.len() < READS_MAX
            && let Some(id) = served.waiting.front().copied()
        {
            let request = self.requests.get(id);
            let entry = NewEntry {
                kind: RecordKind::Read,
                volume: request.new.volume,
                extent: request.new.extent,
                link: Some(index),
                local: false,
            };
            let Some(slot) = self.log_mut().append(&entry) else {
                return;
            };
            self.note_age(slot.seq);
            let place = self.log_ref().head();
            assert_eq!(place.1, slot.seq, "it was appended just now");
            let served = self.served.as_mut().expect("just seen");
            served.waiting.pop_front();
            served.asked.push(Asked { place, id, got: 0 });
        }
    }

    /// A stream goes on after this place: what was asked before it will not be answered any more, what was
    /// asked behind it is asked again.
    pub(super) fn ask_again(&mut self, index: LinkIndex, after: Seq) {
        let Some(served) = self.served.as_mut().filter(|each| each.link == index) else {
            return;
        };
        let mut lost: Vec<_> = served
            .asked
            .extract_if(.., |each| each.place.1 <= after)
            .collect();
        lost.sort_by_key(|each| each.place.1);
        for each in lost.into_iter().rev() {
            served.waiting.push_front(each.id);
        }
        for each in &mut served.asked {
            each.got = 0;
        }
    }

    /// Takes a part of an answer; `copy` brings its bytes to the tag's memory, behind so many. False if it
    /// answers nothing that was asked.
    pub fn content(
        &mut self,
        index: LinkIndex,
        part: &ContentPart,
        copy: impl FnOnce(WorkerId, u16, usize),
    ) -> bool {
        let sent = self.link(index).map(Link::last_handed_out);
        let serves = |served: &&mut Served| served.link == index;
        let Some(served) = self.served.as_mut().filter(serves) else {
            return false;
        };
        let named = |each: &Asked| each.place == (part.incarnation, part.seq);
        let Some(at) = served.asked.iter().position(named) else {
            // Whoever asked was told something else meanwhile.
            return sent.is_some_and(|sent| part.seq <= sent);
        };
        let asked = &mut served.asked[at];
        let new = self.requests.get(asked.id).new;
        let extent = new.extent.expect("a read has an extent");
        let next = ByteOffset::new(extent.offset().get() + asked.got);
        let fits = part.extent.offset() == next && part.extent.end() <= extent.end();
        if new.volume != part.volume || !fits {
            return false;
        }
        if part.known {
            let before = usize::try_from(asked.got).expect("64-bit platform");
            asked.got += part.extent.len().get();
            copy(new.worker, new.tag, before);
        }
        let over = !part.known || part.extent.end() == extent.end();
        if over {
            let id = served.asked.swap_remove(at).id;
            let result = if part.known { Ok(()) } else { Err(Errno::EIO) };
            self.answer(id, result);
            self.ask();
        }
        true
    }

    /// True if requests fail because the link that serves was lost for too long.
    pub(super) fn fails_for_the_serving_link(&self) -> bool {
        let serving = self.serving().and_then(|index| self.link(index));
        serving.is_some_and(|link| link.mode != Mode::Async && link.has_failed(self.now))
    }

    /// Reads get an error: of one volume, or all of them.
    pub(super) fn fail_reads(&mut self, of: Option<VolumeIndex>) {
        let Some(served) = self.served.as_mut() else {
            return;
        };
        let requests = &self.requests;
        let ours = |id: RequestId| of.is_none_or(|of| requests.get(id).new.volume == of);
        let waiting = std::mem::take(&mut served.waiting);
        let mut gone = Vec::new();
        for id in waiting {
            if ours(id) {
                gone.push(id);
            } else {
                served.waiting.push_back(id);
            }
        }
        let asked = served.asked.extract_if(.., |each| ours(each.id));
        gone.extend(asked.map(|each| each.id));
        for id in gone {
            self.answer(id, Err(Errno::EIO));
        }
    }

    /// True if a request gets an error at once: the link that serves was lost for too long, or another one whose
    /// policy is `fail`.
    pub(super) fn refuses_there(&self, new: &NewRequest) -> bool {
        let changes = new.op != RequestOp::Read;
        self.fails_for_the_serving_link() || changes && self.fails_for_a_link()
    }

    /// True while it is decided whether a target serves, or if the log does not keep for it yet.
    pub(super) fn gives_no_places(&self) -> bool {
        let serving = self.serving();
        let joined = serving.is_none_or(|index| {
            self.link(index).is_some_and(Link::is_following) && self.has_joined(index)
        });
        self.pinned.is_some() || !joined
    }

    /// True if what the target has durably is a place of this log: from then on the log says what it lacks. Before,
    /// when the memory of the log was lost, a target that loses its power as well has nothing but what it had, and
    /// must not have missed anything.
    pub(super) fn has_joined(&self, index: LinkIndex) -> bool {
        let acked = self.link(index).and_then(|link| link.acked);
        acked.is_some_and(|acked| self.name_at(acked.1) == Some(acked))
    }

    /// True if the log holds what the target that serves has not got: it is kept, whoever waits for room.
    pub(super) fn keeps_for_the_serving_link(&self) -> bool {
        let serving = self.serving().and_then(|index| self.link(index));
        serving.is_some_and(|link| {
            let least = self.slowest().and_then(|index| self.link(index));
            !link.is_following() || least.is_none_or(|least| least.held >= link.held)
        })
    }
}
