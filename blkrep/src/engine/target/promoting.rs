//! Promotion: the replica becomes a source's data.
//!
//! Everything durable is applied first; a held mirror that has not ended is given up, so that what
//! is promoted is the prefix it always was; then a new generation is written down, once.

use super::control::{Promotion, PromotionVolume, Reply, TargetCommandError, TargetEvent};
use super::files::NO_JOURNAL;
use super::session::Phase;
use super::worker::{Mode, TargetWorker};
use blkrep_core::target::{PromoteRequest, check_promote};
use blkrep_io::{Host, Io};
use blkrep_store::superblock::ReplicaRole;
use blkrep_types::{DataState, Generation};
use blkrep_wire::FarewellCode;
use std::fmt;

/// A promotion that was asked for.
pub(super) struct PromotionOrder {
    force: bool,
    inconsistent: bool,
    reply: Option<Reply<Box<Promotion>>>,
}

impl PromotionOrder {
    /// Whoever asked for it takes a replica that is not consistent.
    pub(super) const fn may_be_inconsistent(&self) -> bool {
        self.inconsistent
    }
}

impl fmt::Debug for PromotionOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "PromotionOrder(force {}, inconsistent {})",
            self.force, self.inconsistent
        )
    }
}

impl<H: Host> TargetWorker<H> {
    pub(super) fn promote_asked(
        &mut self,
        io: &mut H::Io,
        force: bool,
        inconsistent: bool,
        reply: Reply<Box<Promotion>>,
    ) {
        match self.mode {
            Mode::Serving => {}
            Mode::Promoting(_) => return reply(Err(TargetCommandError::Promoting)),
            Mode::Recovering | Mode::Resetting => {
                let why = "the journal is being recovered; try again in a moment".to_owned();
                return reply(Err(TargetCommandError::Failed(why)));
            }
            Mode::Stopping | Mode::Done => return reply(Err(TargetCommandError::Closing)),
        }
        let connected = self
            .session
            .as_ref()
            .is_some_and(|s| s.phase() != Phase::Closing)
            || self.next_session.is_some();
        // What the data will be worth is known only when the journal is applied: it may hold a whole first
        // mirror that a pause kept from the bases.
        let has_all = self.is_quiet() && self.applier.is_idle();
        let state = match self.facts.state() {
            DataState::NotReady if has_all => DataState::NotReady,
            _ => DataState::Ok,
        };
        let request = PromoteRequest {
            connected,
            state,
            force,
            inconsistent,
        };
        if let Err(refusal) = check_promote(&request) {
            return reply(Err(refusal.into()));
        }
        if let Some((waiting, ..)) = self.next_session.take() {
            io.shutdown(&waiting);
        }
        if let Some(session) = &mut self.session {
            session.end(
                FarewellCode::Promoted,
                "the replica is being promoted".to_owned(),
            );
        }
        self.interrupt_task();
        self.facts.lift_pause(true);
        self.hurry_retries(self.now);
        let reply = Some(reply);
        self.mode = Mode::Promoting(PromotionOrder {
            force,
            inconsistent,
            reply,
        });
    }

    /// A promotion that cannot be finished is answered.
    pub(super) fn end_promotion_unfinished(&mut self, why: TargetCommandError) {
        if let Mode::Promoting(order) = &mut self.mode {
            let reply = order.reply.take();
            self.mode = Mode::Serving;
            self.facts.lift_pause(false);
            if let Some(reply) = reply {
                reply(Err(why));
            }
        }
    }

    pub(super) fn advance_promotion(&mut self, io: &mut H::Io) {
        let ready =
            self.session.is_none() && self.is_quiet() && self.applier.is_idle() && self.persist();
        if !ready {
            return;
        }
        if self.applier.needs_flush() {
            self.begin_flush(io);
            return;
        }
        let Mode::Promoting(mut order) = std::mem::replace(&mut self.mode, Mode::Serving) else {
            return;
        };
        let reply = order.reply.take().expect("answered once");
        let request = PromoteRequest {
            connected: false,
            state: self.facts.state(),
            force: order.force,
            inconsistent: order.inconsistent,
        };
        if let Err(refusal) = check_promote(&request) {
            self.facts.lift_pause(false);
            return reply(Err(refusal.into()));
        }
        let generation = new_generation(io);
        match self.commit_promotion(generation) {
            Ok(promotion) => {
                self.event(&TargetEvent::Promoted {
                    history: promotion.history.clone(),
                });
                self.mode = Mode::Done;
                self.control.close();
                reply(Ok(promotion));
            }
            Err(why) => {
                self.facts.lift_pause(false);
                reply(Err(TargetCommandError::Failed(why)));
            }
        }
    }

    fn commit_promotion(&mut self, generation: Generation) -> Result<Box<Promotion>, String> {
        let before = self.facts.clone();
        let journal = self.files.replica.journal;
        self.applier.discard_hold(&mut self.facts);
        let applied = self.applier.applied();
        self.facts.promoted(generation, applied);
        self.files.replica.role = ReplicaRole::Promoted;
        self.files.replica.journal = NO_JOURNAL;
        if let Err(error) = self.files.persist(&mut self.facts) {
            // The disk may have the one or the other: it gets the old facts again before
            // anything else is done.
            self.facts = before;
            self.facts.changed();
            self.files.replica.role = ReplicaRole::Target;
            self.files.replica.journal = journal;
            self.restart_applier();
            return Err(error.to_string());
        }
        let lens = self.files.bases.iter().map(|base| base.geometry.len);
        let volumes = self.files.replica().volumes.iter().cloned().zip(lens);
        Ok(Box::new(Promotion {
            group: self.files.group().clone(),
            source: self.files.replica().source.clone(),
            history: self.facts.history.clone(),
            applied,
            data_state: self.facts.state(),
            part: self.facts.part().clone(),
            volumes: volumes
                .map(|(volume, base_len)| PromotionVolume { volume, base_len })
                .collect(),
        }))
    }

    /// Walks the journal again from the checkpoint.
    fn restart_applier(&mut self) {
        let state = &self.journal.state;
        self.applier =
            blkrep_core::target::Applier::new(state.before, state.number, self.journal.next);
    }
}

fn new_generation(io: &mut impl Io) -> Generation {
    let mut bytes = [0; 16];
    while bytes == [0; 16] {
        bytes[..8].copy_from_slice(&io.random().to_le_bytes());
        bytes[8..].copy_from_slice(&io.random().to_le_bytes());
    }
    Generation::from_bytes(bytes)
}
