//! The handshake of a link: from the peer's answer to the beginning of the stream.
//!
//! Owns how a verdict of `identity` is carried out. The peer's facts and its map enter; where the
//! stream begins leaves.

use super::mirror_pace::InFlight;
use super::{
    Connection, DownReason, GroupEvent, LinkIndex, MirrorPhase, PeerRole, Rejection, SourceGroup,
    StreamStart, WelcomeFacts, WriteLog,
};
use crate::dirty::Words;
use crate::identity::{SourceIdentity, Verdict, judge, place};
use blkrep_types::{DataState, Extent, MirrorKind, RecordKind, VolumeIndex, WriteName, planted};

impl<L: WriteLog, W: Words> SourceGroup<L, W> {
    /// A driver begins to talk to its peer.
    pub fn negotiating(&mut self, index: LinkIndex) {
        if let Some(link) = self.link_mut(index) {
            link.connect_to(Connection::Negotiating);
        }
    }

    /// Takes the peer's answer.
    ///
    /// # Errors
    /// The handshake ends. The group is fenced if the peer knows a newer generation.
    pub fn welcome(&mut self, index: LinkIndex, peer: &WelcomeFacts) -> Result<(), Rejection> {
        let verdict = self.verdict(index, peer);
        let verdict = match self.judge_without_backing(index, peer, verdict) {
            Ok(verdict) => verdict,
            Err(reason) => Verdict::Refuse(reason),
        };
        match verdict {
            Verdict::Stale(newer) => {
                self.fence(newer);
                return Err(Rejection::Stale { newer });
            }
            Verdict::Refuse(reason) => {
                self.event(GroupEvent::Refused {
                    link: index,
                    reason: reason.clone(),
                });
                return Err(Rejection::Refused { reason });
            }
            Verdict::Resume
            | Verdict::Difference
            | Verdict::DifferenceFromDisk
            | Verdict::Everything(..)
            | Verdict::First(_) => {}
        }
        // Asked now: a mirror of everything forgets what was acknowledged before the stream begins.
        let set_back = self.is_set_back(index, peer);
        if let Some(link) = self.link_mut(index) {
            // A handshake that broke off may have forgotten it already.
            link.set_back = set_back || link.set_back && link.acked.is_none();
            link.data_state = peer.data_state;
            link.peer = Some(peer.clone());
            link.plan = Some(verdict);
        }
        Ok(())
    }

    fn verdict(&self, index: LinkIndex, peer: &WelcomeFacts) -> Verdict {
        let Some(link) = self.link(index) else {
            return Verdict::Refuse("the link was removed".to_owned());
        };
        let log = self.log_ref();
        let named = self.name_at(peer.durable.seq);
        let named = named.is_some_and(|at| at == place(peer.durable) || planted!(ResumeClosest));
        let identity = SourceIdentity {
            history: &self.history,
            head: log.head(),
            following: link.is_following(),
            in_log: named,
            memory_floor: link.acked,
            disk_floor: link.floor.map(place),
            overwrite: link.overwrite,
            first_mirror: link.first_mirror,
        };
        let ours = self.history.current();
        let floor_counts = link.floor.is_some_and(|floor| floor.generation == ours);
        let identity = SourceIdentity {
            disk_floor: identity.disk_floor.filter(|_| floor_counts),
            ..identity
        };
        judge(&identity, peer)
    }

    /// Takes one extent that the target no longer has.
    pub fn map_part(&mut self, index: LinkIndex, volume: VolumeIndex, extent: Extent) {
        let (first, last) = self.layout.bits_of(volume, extent);
        if let Some(link) = self.link_mut(index) {
            link.mark_dirty(first, last);
        }
    }

    /// The target cannot tell what it lacks.
    pub fn map_unknown(&mut self, index: LinkIndex) {
        self.compare_all(index);
    }

    fn compare_all(&mut self, index: LinkIndex) {
        let layout = &self.layout;
        let link = self.links[index.as_usize()].as_mut().expect("it exists");
        layout.fill(&mut link.compare);
        link.keep_all(layout);
        link.mirror.restart_compare();
    }

    /// Before a target is told to take over this generation, the durable map must say that
    /// everything may differ. True when that is so.
    fn prepare(&mut self, index: LinkIndex) -> bool {
        let link = self.link_mut(index).expect("a handshake has its link");
        let kind = match link.plan {
            Some(Verdict::Everything(kind, _) | Verdict::First(kind)) => kind,
            _ => return true,
        };
        if link.prepared.is_none() {
            self.everything(index, kind);
            let link = self.link_mut(index).expect("a handshake has its link");
            link.prepared = Some(link.kept.touch_header());
            link.kept.hurry();
        }
        let link = self.link_mut(index).expect("a handshake has its link");
        link.prepared
            .is_some_and(|commit| link.kept.is_done(commit))
    }

    /// The handshake is done: carries the verdict out. `None` while a map is being made durable:
    /// to be called again when it is.
    ///
    /// # Panics
    /// If there was no answer of the peer.
    pub fn begin_stream(&mut self, index: LinkIndex) -> Option<StreamStart> {
        self.judge_again(index);
        if !self.prepare(index) {
            return None;
        }
        let link = self.link_mut(index).expect("a handshake has its link");
        let plan = link.plan.take().expect("the peer has answered");
        let peer = link.peer.clone().expect("the peer has answered");
        link.prepared = None;
        let set_back = std::mem::take(&mut link.set_back);
        link.connect_to(Connection::Up);
        let mut start = StreamStart {
            after: peer.durable,
            head: self.head_name(),
            generation: self.history.current(),
            mirror: None,
            reason: "the log has everything since",
            set_back,
        };
        match plan {
            Verdict::Resume => self.resume(index, &peer),
            Verdict::Difference => {
                start.reason = "the dirty map has everything since";
                self.fall_behind(index);
            }
            Verdict::DifferenceFromDisk => {
                start.reason = "maps on disk and the intent map have everything since";
                self.fall_behind(index);
                self.compare_from_disk(index);
            }
            Verdict::Everything(_, reason) => {
                start.reason = reason;
                start.after = self.begin_anew(index);
            }
            Verdict::First(_) => {
                start.reason = "it was asked for, or the target is new";
                start.after = self.begin_anew(index);
            }
            Verdict::Stale(_) | Verdict::Refuse(_) => unreachable!("no stream after these"),
        }
        let now = self.now;
        let link = self.link_mut(index).expect("a handshake has its link");
        link.progress_at = now;
        link.mirror.retry_at = now;
        link.in_flight = InFlight::begins_after(link.last_handed_out());
        link.mirror.pace.acked(link.received);
        start.mirror = link.mirror.kind_if_due();
        self.event(GroupEvent::LinkUp {
            link: index,
            start: start.clone(),
        });
        self.store_mark(index);
        self.free();
        self.look_after_promises();
        self.want_mirror(index);
        self.mirror_step(index);
        if self.is_lost() {
            self.go_on();
        }
        Some(start)
    }

    /// What the stream was to go on with may have been given up since the peer answered: the log ran
    /// over, transmission was stopped, or another link's acknowledgement freed what only this peer lacks.
    fn judge_again(&mut self, index: LinkIndex) {
        let link = self.link(index).expect("a handshake has its link");
        let peer = link.peer.as_ref().expect("the peer has answered");
        if matches!(link.plan, Some(Verdict::Resume)) {
            let plan = self.verdict(index, peer);
            self.link_mut(index).expect("it is there").plan = Some(plan);
        }
    }

    /// True if the target lacks what it acknowledged to this source as durable.
    fn is_set_back(&self, index: LinkIndex, peer: &WelcomeFacts) -> bool {
        let acked = self.link(index).and_then(|link| link.acked);
        peer.role == PeerRole::Replica
            && peer.durable.generation == self.history.current()
            && acked.is_some_and(|acked| place(peer.durable) < acked)
    }

    /// The target forgets what it had: the stream begins after the last name given here.
    fn begin_anew(&mut self, index: LinkIndex) -> WriteName {
        let head = self.head_name();
        let link = self.link_mut(index).expect("a handshake has its link");
        link.go_to(head.seq.next());
        link.released = head.seq;
        head
    }

    /// The last name given here.
    fn head_name(&self) -> WriteName {
        let (incarnation, seq) = self.log_ref().head();
        WriteName {
            generation: self.history.current(),
            incarnation,
            seq,
        }
    }

    fn resume(&mut self, index: LinkIndex, peer: &WelcomeFacts) {
        let (after, head) = (peer.durable.seq, self.log_ref().head().1);
        let mut seq = after.next();
        let mut ends = false;
        while seq <= head {
            let entry = self.log_ref().entry(seq);
            ends |= entry.record.kind == RecordKind::MirrorEnd && entry.link == Some(index);
            seq = seq.next();
        }
        let link = self.link_mut(index).expect("a handshake has its link");
        link.go_to(after.next());
        if planted!(ResumeOneTooLate) {
            link.next = link.next.next();
        }
        link.released = after;
        link.received = after;
        link.held = after;
        link.acked = Some(place(peer.durable));
        link.mirror.restart_compare();
        let whole = peer.data_state == DataState::Ok;
        if !whole && !ends && !link.mirror.open {
            link.mirror.wanted = Some(MirrorKind::Difference);
        }
        self.ask_again(index, after);
    }

    /// What the log has for the link becomes dirt; a mirror follows.
    fn fall_behind(&mut self, index: LinkIndex) {
        let head = self.log_ref().head().1;
        let link = self.link(index).expect("a handshake has its link");
        if link.is_following() {
            self.turn_behind(index);
        }
        let link = self.link_mut(index).expect("a handshake has its link");
        link.go_to(head.next());
        link.released = head;
        link.received = blkrep_types::Seq::ZERO;
        link.mirror.restart_compare();
        match link.mirror.phase {
            MirrorPhase::Running | MirrorPhase::Ending => link.mirror.go(MirrorPhase::Waiting),
            MirrorPhase::Idle | MirrorPhase::Waiting | MirrorPhase::Paused => {}
        }
        link.mirror.wanted.get_or_insert(MirrorKind::Difference);
    }

    /// Everything that the durable map or the intent map names is compared.
    fn compare_from_disk(&mut self, index: LinkIndex) {
        let layout = &self.layout;
        let link = self.links[index.as_usize()].as_mut().expect("it exists");
        for (volume, extent) in self.intent.open_extents() {
            let (first, last) = layout.bits_of(volume, extent);
            link.mark_compare(first, last);
        }
        for word in 0..link.kept.bits().word_count() {
            let doubtful = link.kept.bits().word(word) & !link.live.word(word);
            let all = link.compare.word(word) | doubtful;
            link.compare.set_word(word, all);
        }
    }

    fn everything(&mut self, index: LinkIndex, kind: MirrorKind) {
        self.fall_behind(index);
        let layout = &self.layout;
        let link = self.links[index.as_usize()].as_mut().expect("it exists");
        match kind {
            MirrorKind::Full => {
                layout.fill(&mut link.live);
                link.compare.clear_all();
                link.keep_all(layout);
            }
            MirrorKind::Checksum => self.compare_all(index),
            MirrorKind::Difference => {}
        }
        let link = self.link_mut(index).expect("a handshake has its link");
        link.acked = None;
        link.epoch = None;
        link.floor = None;
        link.floor_seq = blkrep_types::Seq::ZERO;
        link.mirror.wanted = Some(kind);
    }

    /// The connection ended, and nothing of it is in flight any more. Idempotent.
    pub fn link_down(&mut self, index: LinkIndex, reason: DownReason) {
        let Some(link) = self.link_mut(index) else {
            return;
        };
        if link.connection == Connection::Down {
            return;
        }
        let was_up = link.connection == Connection::Up;
        link.connect_to(Connection::Down);
        link.again = None;
        link.released = link.last_handed_out();
        link.plan = None;
        link.prepared = None;
        link.mirror.forget_compares();
        if was_up {
            self.event(GroupEvent::LinkDown {
                link: index,
                reason,
            });
        }
        self.free();
        self.look_after_promises();
        self.room_freed();
    }
}
