//! What completed writes may rely on: the promise of a link in `memory` or `sync` mode.
//!
//! Owns, for each link, whether the target has what was completed, what happens to writes when the link
//! is lost, and whether an answer may be given. Positions, acknowledgements, commits and time enter;
//! answers leave. That a link no longer keeps its promise is durable in its map's head before the first
//! write completes without it.
//!
//! ```text
//! Degraded -> Joining -> Recording -> Kept <-> Lost -> Degrading -> Degraded
//!    ^           |           |                             ^
//!    +-----------+           +-----------------------------+
//! ```

use super::link::Link;
use super::{
    Connection, GroupEvent, LinkIndex, MirrorPhase, RequestId, SourceGroup, Transmit, WriteLog,
};
use crate::dirty::Words;
use crate::persist::CommitNo;
use blkrep_types::{DataState, Errno, LossPolicy, Mode, Nanos, OnLoss, Seq, planted};

/// What a link's target has of what was completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// Writes complete without it; that is on record.
    Degraded,
    /// It gets everything again; what completed before this place is still on its way.
    Joining {
        /// The last place given before it got everything again.
        through: Seq,
    },
    /// It has everything; that goes on record.
    Recording(CommitNo),
    /// It has everything that completed.
    Kept,
    /// It had everything until then; nothing has completed without it since.
    Lost {
        /// When it was lost.
        since: Nanos,
    },
    /// Writes are to complete without it; that goes on record first.
    Degrading(CommitNo),
}

impl Protection {
    /// True if no write completes without the target's acknowledgement, or may have.
    #[must_use]
    pub const fn holds(self) -> bool {
        match self {
            Self::Kept | Self::Lost { .. } | Self::Degrading(_) => true,
            Self::Degraded | Self::Joining { .. } | Self::Recording(_) => false,
        }
    }

    /// What the record says while it is so.
    const fn on_record(self) -> bool {
        match self {
            Self::Recording(_) | Self::Kept | Self::Lost { .. } => true,
            Self::Degraded | Self::Joining { .. } | Self::Degrading(_) => false,
        }
    }

    /// True if `next` may follow.
    const fn may_become(self, next: Self) -> bool {
        matches!(
            (self, next),
            (Self::Degraded, Self::Joining { .. })
                | (Self::Joining { .. }, Self::Degraded | Self::Recording(_))
                | (Self::Recording(_), Self::Kept | Self::Degrading(_))
                | (Self::Kept, Self::Lost { .. } | Self::Degrading(_))
                | (Self::Lost { .. }, Self::Kept | Self::Degrading(_))
                | (Self::Degrading(_), Self::Degraded)
        )
    }
}

/// Whether an answer may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Answer {
    /// Now.
    Now,
    /// An acknowledgement, a record or an operator is waited for.
    Later,
    /// As an error.
    Never,
}

impl<W: Words> Link<W> {
    /// True if records flow and everything written now is among them.
    fn takes_everything(&self) -> bool {
        let flows = self.connection == Connection::Up && self.transmit == Transmit::Started;
        flows && self.is_following()
    }

    /// True if the target lacks nothing but what the log holds.
    fn is_whole(&self) -> bool {
        let mirror = &self.mirror;
        let idle = mirror.phase == MirrorPhase::Idle && !mirror.open && mirror.wanted.is_none();
        idle && !self.differs() && self.data_state == DataState::Ok
    }

    /// True if the target has, as the mode asks, what was written up to this place.
    fn has(&self, place: Seq) -> bool {
        match self.mode {
            Mode::Async => true,
            Mode::Memory => self.received >= place,
            Mode::Sync if planted!(SyncWaitsForReceived) => self.received >= place,
            Mode::Sync => self.held >= place,
        }
    }

    /// Whether what was written up to `place` may be answered as far as this link goes.
    fn answer(&self, place: Seq, now: Nanos) -> Answer {
        if self.mode == Mode::Async {
            return Answer::Now;
        }
        let flows = self.takes_everything();
        if !self.protection.holds() {
            return if flows && !self.has(place) {
                Answer::Later
            } else {
                Answer::Now
            };
        }
        // What a mirror brings has places of its own, and until its end the target keeps to the state
        // before it.
        let whole = self.is_whole() || planted!(AcksCountInMirror);
        if flows && whole && self.has(place) {
            return Answer::Now;
        }
        if self.has_failed(now) {
            Answer::Never
        } else {
            Answer::Later
        }
    }

    /// The same for the link whose target serves the group: nothing else has it.
    fn serving_answer(&self, place: Seq, durable: bool, now: Nanos) -> Answer {
        if self.serves(place, durable) {
            Answer::Now
        } else if self.mode != Mode::Async && self.has_failed(now) {
            Answer::Never
        } else {
            Answer::Later
        }
    }

    /// When patience with a lost link ends, if it does.
    fn patience_ends(&self) -> Option<Nanos> {
        match self.protection {
            Protection::Lost { since } if self.loss.on_loss != OnLoss::Block => {
                Some(since.after(self.loss.timeout))
            }
            _ => None,
        }
    }

    /// True if writes wait for the link for as long as it is lost.
    fn blocks(&self) -> bool {
        let promised = self.mode != Mode::Async && self.protection.holds();
        promised && self.loss.on_loss == OnLoss::Block && !self.takes_everything()
    }

    /// True if writes get an error because the link is lost.
    pub(super) fn has_failed(&self, now: Nanos) -> bool {
        let fails = self.loss.on_loss == OnLoss::Fail;
        fails && self.patience_ends().is_some_and(|end| now >= end)
    }

    fn protect(&mut self, next: Protection) {
        assert!(
            self.protection.may_become(next),
            "protection goes from {:?} to {next:?}",
            self.protection
        );
        self.protection = next;
    }

    fn record_protection(&mut self) -> CommitNo {
        let commit = self.kept.touch_header();
        self.kept.hurry();
        commit
    }

    /// What the map's head is to say.
    pub(super) const fn promise_on_record(&self) -> bool {
        self.protection.on_record()
    }

    /// One step; true if that changed something.
    fn step_protection(&mut self, now: Nanos, head: Seq) -> bool {
        let asked = self.mode != Mode::Async;
        let in_step = asked && self.takes_everything() && self.is_whole();
        let next = match self.protection {
            Protection::Degraded if in_step => Protection::Joining { through: head },
            Protection::Joining { .. } if !in_step => Protection::Degraded,
            Protection::Joining { through } if self.held >= through => {
                Protection::Recording(self.record_protection())
            }
            Protection::Recording(_) if !in_step => Protection::Degrading(self.record_protection()),
            Protection::Recording(commit) if self.kept.is_done(commit) => Protection::Kept,
            Protection::Kept | Protection::Lost { .. } if !asked => {
                Protection::Degrading(self.record_protection())
            }
            Protection::Kept if !in_step => Protection::Lost { since: now },
            Protection::Lost { .. } if in_step => Protection::Kept,
            Protection::Lost { .. } if self.gives_up(now) => {
                Protection::Degrading(self.record_protection())
            }
            Protection::Degrading(commit) if self.kept.is_done(commit) => Protection::Degraded,
            _ => return false,
        };
        self.protect(next);
        true
    }

    /// True if writes are to complete without a link that was lost.
    fn gives_up(&self, now: Nanos) -> bool {
        let goes_on = self.loss.on_loss == OnLoss::Continue;
        goes_on && self.patience_ends().is_some_and(|end| now >= end)
    }
}

impl<L: WriteLog, W: Words> SourceGroup<L, W> {
    /// Looks whether links keep their promise, and answers whoever need not wait for one.
    pub(super) fn look_after_promises(&mut self) {
        for index in self.link_indices() {
            self.look_after_promise(index);
        }
        self.acks_came();
        if self.fails_for_the_serving_link() {
            self.fail_reads(None);
        }
    }

    fn look_after_promise(&mut self, index: LinkIndex) {
        let (now, head) = (self.now, self.log_ref().head().1);
        let Some(mut before) = self.link(index).map(|link| link.protection) else {
            return;
        };
        while let Some(link) = self.link_mut(index)
            && link.step_protection(now, head)
        {
            let after = link.protection;
            match (before, after) {
                (Protection::Degrading(_), Protection::Degraded) if link.mode != Mode::Async => {
                    link.degradations += 1;
                    self.event(GroupEvent::Degraded { link: index });
                }
                (Protection::Recording(_), Protection::Kept) => {
                    self.event(GroupEvent::Protected { link: index });
                }
                _ => {}
            }
            before = after;
        }
    }

    /// The first time at which patience with a lost link ends.
    pub(super) fn patience_with_links_ends(&self) -> Option<Nanos> {
        let links = self.links.iter().flatten();
        links.filter_map(Link::patience_ends).min()
    }

    /// True if nothing may be written because a link is lost whose policy is `fail`.
    pub(super) fn fails_for_a_link(&self) -> bool {
        let mut links = self.links.iter().flatten();
        links.any(|link| link.mode != Mode::Async && link.has_failed(self.now))
    }

    /// True if every request under way waits for a link that is lost and whose policy is `block`: for
    /// as long as it is.
    #[must_use]
    pub fn waits_for_lost_links(&self) -> bool {
        let waiting = self.ack_waiters.len();
        if let Some(serving) = self.serving().and_then(|index| self.link(index)) {
            return self.requests.len() > 0 && !serving.takes_everything();
        }
        let mut links = self.links.iter().flatten();
        waiting > 0 && waiting == self.requests.len() && links.any(Link::blocks)
    }

    /// Whether what was written up to this place may be answered: all links must agree.
    fn judge_answer(&self, place: Seq, durable: bool) -> Answer {
        let (serving, now) = (self.serving(), self.now);
        let answers = self.each_link().map(|(index, link)| match serving {
            Some(serving) if serving == index => link.serving_answer(place, durable, now),
            _ => link.answer(place, now),
        });
        answers.max().unwrap_or(Answer::Now)
    }

    /// Gives the answer now, `Err` for an error, or says that it has to wait.
    pub(super) fn answer_of(&self, place: Seq, durable: bool) -> Option<Result<(), Errno>> {
        match self.judge_answer(place, durable) {
            Answer::Now => Some(Ok(())),
            Answer::Later => None,
            Answer::Never => Some(Err(Errno::EIO)),
        }
    }

    /// Answers those whose acknowledgement came, or will not come.
    pub(super) fn acks_came(&mut self) {
        if self.ack_waiters.is_empty() {
            return;
        }
        let mut waiting = std::mem::take(&mut self.ack_waiters);
        waiting.retain(|id: &RequestId| {
            let request = self.requests.get(*id);
            let answer = self.answer_of(request.wait_for, request.is_durable());
            if let Some(result) = answer {
                self.answer(*id, result);
            }
            answer.is_none()
        });
        self.ack_waiters = waiting;
    }

    /// Says what happens to writes when a link is lost.
    pub fn set_loss_policy(&mut self, index: LinkIndex, policy: LossPolicy) {
        if let Some(link) = self.link_mut(index) {
            link.loss = policy;
        }
        self.look_after_promises();
    }
}
