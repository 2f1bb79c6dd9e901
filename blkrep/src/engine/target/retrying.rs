//! The worker's side of writes that a base did not take.
//!
//! Such a write keeps its place and the journal its bytes; it is tried again after a while, and nothing
//! new is applied meanwhile: the replica stays at its last state, and can be promoted, once the base takes
//! writes again. Only at the limit of the policy its extent becomes dirt.

use super::control::{TargetCommandError, TargetEvent};
use super::session::Phase;
use super::worker::{Mode, TargetWorker};
use blkrep_core::target::{Failure, FlightId, RetryPolicy, Trouble};
use blkrep_io::Host;
use blkrep_types::{Errno, Nanos, RecordKind, planted};
use std::path::PathBuf;

/// Failures of one write after which a promotion that waits for it is given back.
const PROMOTION_FAILURES_MAX: u32 = 2;

/// Writes that a base does not take, for a status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retrying {
    /// Why, and since when.
    pub trouble: Trouble,
    /// The base.
    pub path: PathBuf,
    /// How often a write is tried again.
    pub policy: RetryPolicy,
}

impl<H: Host> TargetWorker<H> {
    /// A write did not reach its base.
    pub(super) fn write_failed(&mut self, flight: FlightId, errno: Errno) {
        let volume = self.applier.flight(flight).record.volume;
        if planted!(FailedWriteNotRetried) {
            self.applier.completed(&mut self.facts, flight, true);
            return;
        }
        let failure = self
            .applying
            .retries
            .failed(flight, volume, errno, self.now);
        match failure {
            Failure::GivenUp => {
                self.applier.completed(&mut self.facts, flight, false);
                self.base_failed(volume.as_usize(), errno);
            }
            Failure::Again(news) => {
                if news {
                    self.tell_retrying();
                }
                // The source hears that nothing is applied.
                self.ack();
                self.promotion_waits(flight);
            }
        }
    }

    fn tell_retrying(&self) {
        if let Some(retrying) = self.retrying() {
            self.event(&TargetEvent::Retrying {
                why: retrying.trouble.why,
                path: retrying.path.display().to_string(),
                errno: retrying.trouble.errno,
                policy: retrying.policy,
            });
        }
    }

    /// A write is in its base, or what came back was read.
    pub(super) fn write_ended(&mut self, flight: FlightId) {
        if let Some(trouble) = self.applying.retries.succeeded(flight) {
            let path = &self.files.replica().volumes[trouble.volume.as_usize()].path;
            self.event(&TargetEvent::RetryEnded {
                path: path.display().to_string(),
                failures: trouble.failures,
                lasted: self.now.since(trouble.since),
            });
            self.ack();
        }
    }

    /// Tries again what has waited long enough.
    pub(super) fn retry_writes(&mut self, io: &mut H::Io) {
        if self.adopts() {
            return;
        }
        while let Some(flight) = self.applying.retries.next(self.now) {
            let flying = *self.applier.flight(flight);
            match flying.record.kind {
                RecordKind::Zero { free, .. } => {
                    self.applying.retries.begun(flight);
                    self.zero_base(io, flight, free);
                }
                _ => {
                    if !self.load(io, flying.batch) {
                        return;
                    }
                    self.applying.retries.begun(flight);
                    self.write_base(io, flight);
                }
            }
        }
    }

    /// Another history takes the replica over: what is in its journal means nothing any more.
    pub(super) fn adopts(&self) -> bool {
        let session = self.session.as_ref();
        session.is_some_and(|session| session.phase() == Phase::Adopting)
    }

    /// What waits is dirt instead: its journal goes.
    pub(super) fn give_up_waiting(&mut self) {
        while let Some(flight) = self.applying.retries.give_up_one() {
            self.applier.completed(&mut self.facts, flight, false);
        }
    }

    /// True if no operation on a base is under way.
    pub(super) fn nothing_flies(&self) -> bool {
        self.applier.flying() == self.applying.retries.waiting()
    }

    /// A promotion does not wait for a base for ever: it is given back, and nothing has changed; or it goes on
    /// without the write, if it may leave the replica inconsistent.
    fn promotion_waits(&mut self, flight: FlightId) {
        let Mode::Promoting(order) = &self.mode else {
            return;
        };
        if self.applying.retries.failures(flight) < PROMOTION_FAILURES_MAX {
            return;
        }
        if order.may_be_inconsistent() {
            self.give_up_waiting();
        } else if let Some(retrying) = self.retrying() {
            self.end_promotion_unfinished(TargetCommandError::Unwritable(format!(
                "what is in the journal cannot be written to {}: {}; make it take writes and try again, or give up \
                 what it does not take: --inconsistent --yes",
                retrying.path.display(),
                retrying.trouble.errno
            )));
        }
    }

    /// The policy changed.
    pub(super) fn set_retry(&mut self, policy: RetryPolicy) {
        self.applying.retries.set_policy(policy, self.now);
    }

    /// What is wrong with the bases, if something is.
    pub(super) fn retrying(&self) -> Option<Retrying> {
        let trouble = *self.applying.retries.trouble()?;
        let volume = &self.files.replica().volumes[trouble.volume.as_usize()];
        Some(Retrying {
            trouble,
            path: volume.path.clone(),
            policy: self.applying.retries.policy(),
        })
    }

    /// Tried at once, because somebody waits.
    pub(super) fn hurry_retries(&mut self, now: Nanos) {
        self.applying.retries.hurry(now);
    }
}
