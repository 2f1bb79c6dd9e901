//! The worker of one replica.
//!
//! Owns the replica's files, its state machine, its connection and its buffers, and joins them to
//! a ring: completions come in here and are handed to the part they belong to (`journaling`,
//! `applying`, and the connection in this file). Between completions [`TargetWorker::turn`] does
//! everything that has become possible.

use super::applying::Applying;
use super::control::{Command, TargetControl, TargetEvent, TargetStatus, TargetWatch};
use super::files::{FileOf, Opened, ReplicaFiles};
use super::joined::JoinedBuffers;
use super::journaling::{Journaling, SocketOf};
use super::keeping::{Journal, open_journal};
use super::notes::Notes;
use super::policy::{TargetError, TargetSettings};
use super::session::{Phase, Session};
use blkrep_core::target::{Applier, Facts, Incoming};
use blkrep_io::{Completion, Host, Io, Op, Region, Slice, Token, Worker};
use blkrep_types::{ByteLen, Errno, Nanos, NodeName, WriteName};
use blkrep_wire::limits::{PACKED_PLAIN_MAX, SOURCE_BODY_MAX, TARGET_BODY_MAX, buffer_bytes};
use blkrep_wire::{FRAME_HEADER_BYTES, Hello, Inflater, RefuseCode};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// What an operation was for, in the upper byte of its token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A write, zero or read of a base; below it the flight.
    Base,
    /// A flush of a base; below it the volume.
    Flush,
    /// The write of a batch.
    Batch,
    /// The write of the journal's head; below it which copy.
    Head,
    /// The read of a batch.
    Load,
    /// A receive; below it the connection.
    Receive,
    /// A send; below it the connection.
    Send,
    /// The send of a refusal; below it its number.
    Refusal,
}

/// A status is looked at by people: ten a second are plenty.
const SHOW_INTERVAL: Duration = Duration::from_millis(100);

const KIND_SHIFT: u32 = 52;
const KINDS: [Kind; 8] = [
    Kind::Base,
    Kind::Flush,
    Kind::Batch,
    Kind::Head,
    Kind::Load,
    Kind::Receive,
    Kind::Send,
    Kind::Refusal,
];

pub(super) fn token(kind: Kind, rest: u64) -> Token {
    let number = KINDS.iter().position(|each| *each == kind).expect("listed") as u64;
    assert!(rest >> KIND_SHIFT == 0, "the rest of a token is small");
    number << KIND_SHIFT | rest
}

fn split(token: Token) -> (Kind, u64) {
    let number = usize::try_from(token >> KIND_SHIFT).expect("64-bit platform");
    let kind = *KINDS.get(number).expect("only our own tokens come back");
    (kind, token & ((1 << KIND_SHIFT) - 1))
}

/// What the worker as a whole is about.
#[derive(Debug)]
pub(super) enum Mode {
    /// What is left of a damaged journal is applied; then it begins anew.
    Recovering,
    /// Records are received and applied.
    Serving,
    /// The journal begins anew as soon as nothing is under way: what it holds cannot be read.
    Resetting,
    /// Everything durable is applied, then the replica becomes a source.
    Promoting(super::promoting::PromotionOrder),
    /// Everything received becomes durable, then it ends.
    Stopping,
    /// It has ended, or the ring is of no more use.
    Done,
}

/// An operation that is to be begun.
type NextOp<H> = (Token, Op<FileOf<H>, SocketOf<H>>);

/// The worker of one replica.
pub struct TargetWorker<H: Host> {
    pub(super) files: ReplicaFiles<H>,
    pub(super) settings: TargetSettings,
    pub(super) watch: Arc<dyn TargetWatch>,
    pub(super) control: TargetControl<SocketOf<H>>,
    pub(super) facts: Facts,
    pub(super) incoming: Incoming,
    pub(super) applier: Applier,
    pub(super) journal: Journal,
    pub(super) journaling: Journaling,
    pub(super) applying: Applying,
    pub(super) notes: Notes<H>,
    pub(super) session: Option<Session<SocketOf<H>>>,
    /// A connection that waits until the one before it is gone.
    pub(super) next_session: Option<(SocketOf<H>, Box<Hello>, u16)>,
    /// How the connection wants to take the replica over.
    pub(super) adopting: Option<blkrep_wire::Start>,
    /// What is left to say of each.
    refusals: Vec<(u64, SocketOf<H>, Slice)>,
    pub(super) serial: u64,
    pub(super) mode: Mode,
    /// Operations under way.
    pub(super) flying: usize,
    pub(super) now: Nanos,
    pub(super) received_bytes: u64,
    pub(super) last_heard: Option<Nanos>,
    /// What is wrong, in words.
    pub(super) trouble: Option<String>,
    /// Not before then the facts are written again.
    pub(super) persist_at: Option<Nanos>,
    /// Of further connections that are gone.
    pub(super) joined_buffers: Vec<JoinedBuffers>,
    /// Operations of further connections that are to be begun.
    pub(super) joined_ops: Vec<NextOp<H>>,
    receive_buffer: Slice,
    inflate_buffer: Slice,
    send_buffer: Slice,
    shown: Option<Nanos>,
    /// Something may have changed since.
    show_due: bool,
}

impl<H: Host> fmt::Debug for TargetWorker<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TargetWorker({})", self.files.group())
    }
}

impl<H: Host> TargetWorker<H> {
    /// The worker of an open replica. Replays its journal while it serves.
    ///
    /// # Errors
    /// The journal is of a newer version, its disk fails, or there is no memory.
    pub fn new(
        opened: Opened<H>,
        settings: TargetSettings,
        watch: Arc<dyn TargetWatch>,
    ) -> Result<Self, TargetError> {
        let Opened {
            mut files,
            mut facts,
            mut notes,
        } = opened;
        let journal = open_journal(&mut files, &mut facts, &settings, &mut notes)?;
        for note in &notes {
            watch.event(files.group(), note);
        }
        let memory = |bytes: usize| {
            Region::anonymous(bytes)
                .map(|region| region.whole())
                .map_err(|errno| blkrep_io::HostError {
                    operation: "allocate buffers for",
                    path: files.directory().to_owned(),
                    errno,
                })
        };
        let notes_kept = Notes::open(&files);
        let from = journal.state.number;
        let shapes = files.volume_shapes();
        let volumes = files.bases.len();
        let applier = Applier::new(journal.state.before, from, journal.next);
        let worker = Self {
            notes: notes_kept,
            incoming: Incoming::new(journal.last, shapes),
            journaling: Journaling::new(settings.batch_bytes()),
            applying: Applying::new(volumes, journal.last, settings.retry),
            receive_buffer: memory(buffer_bytes(SOURCE_BODY_MAX))?,
            inflate_buffer: memory(PACKED_PLAIN_MAX)?,
            send_buffer: memory(FRAME_HEADER_BYTES + TARGET_BODY_MAX)?,
            mode: if journal.damaged {
                Mode::Recovering
            } else {
                Mode::Serving
            },
            applier,
            journal,
            facts,
            files,
            settings,
            watch,
            control: TargetControl::default(),
            session: None,
            next_session: None,
            adopting: None,
            refusals: Vec::new(),
            serial: 0,
            flying: 0,
            now: Nanos::new(0),
            received_bytes: 0,
            last_heard: None,
            trouble: None,
            persist_at: None,
            joined_buffers: Vec::new(),
            joined_ops: Vec::new(),
            shown: None,
            show_due: false,
        };
        worker.show_notes();
        Ok(worker)
    }

    /// The handle by which others reach it.
    #[must_use]
    pub fn control(&self) -> TargetControl<SocketOf<H>> {
        self.control.clone()
    }

    pub(super) fn event(&self, event: &TargetEvent) {
        self.watch.event(self.files.group(), event);
    }

    pub(super) fn submit(
        &mut self,
        io: &mut H::Io,
        token: Token,
        op: Op<super::files::FileOf<H>, SocketOf<H>>,
    ) {
        self.flying += 1;
        io.submit(token, op);
    }

    /// What takes packed frames of the one connection. Its memory, too, is free only when that is gone.
    pub(super) fn inflater(&self) -> Option<Inflater> {
        Inflater::new(self.inflate_buffer.clone())
    }

    /// The buffers of the one connection. They are free only when it is gone.
    pub(super) fn session_buffers(&self) -> (Slice, Slice) {
        (self.receive_buffer.clone(), self.send_buffer.clone())
    }

    /// Writes the facts down if they changed. False if that failed: nothing that depends on them
    /// may be done before it is tried again.
    pub(super) fn persist(&mut self) -> bool {
        if !self.facts.unsaved() {
            return true;
        }
        if self.persist_at.is_some_and(|at| self.now < at) {
            return false;
        }
        let before = self.files.replica().data_state;
        match self.files.persist(&mut self.facts) {
            Ok(()) => {
                self.persist_at = None;
                self.trouble = None;
                let after = self.facts.state();
                if before != after {
                    self.event(&TargetEvent::State {
                        from: before,
                        to: after,
                    });
                    self.ack();
                }
                true
            }
            Err(error) => {
                self.persist_at = Some(self.now.after(self.applying.retries.policy().delay));
                let reason = error.to_string();
                if self.trouble.as_ref() != Some(&reason) {
                    self.event(&TargetEvent::StateFailed {
                        reason: reason.clone(),
                    });
                    self.trouble = Some(reason);
                }
                false
            }
        }
    }

    /// The source is to hear how far we are.
    pub(super) fn ack(&mut self) {
        if let Some(session) = &mut self.session {
            session.ack_due = true;
        }
    }

    /// Does everything that has become possible.
    fn turn(&mut self, io: &mut H::Io) {
        self.now = io.now();
        self.take_commands(io);
        self.check_time(io);
        self.retry_head(io);
        self.advance_mode(io);
        self.pump_apply(io);
        self.pump_session(io);
        self.pump_journal(io);
        self.pump_session(io);
        self.show();
    }

    fn take_commands(&mut self, io: &mut H::Io) {
        while let Some(command) = self.control.take() {
            match command {
                Command::Session {
                    socket,
                    hello,
                    version,
                } => {
                    self.offered(io, socket, hello, version);
                }
                Command::Join { socket, join } => self.join(io, socket, &join),
                Command::Pause(paused, reply) => {
                    self.facts.set_paused(paused);
                    let done = self.persist();
                    let event = if paused {
                        TargetEvent::Paused
                    } else {
                        TargetEvent::Resumed
                    };
                    self.event(&event);
                    self.ack();
                    reply(if done {
                        Ok(())
                    } else {
                        let why = self.trouble.clone().unwrap_or_default();
                        Err(super::control::TargetCommandError::Failed(why))
                    });
                }
                Command::Retry(policy) => self.set_retry(policy),
                Command::Promote {
                    force,
                    inconsistent,
                    reply,
                } => {
                    self.promote_asked(io, force, inconsistent, reply);
                }
                Command::TaskEnded(task, end) => self.task_ended(task, end),
                Command::Stop => self.stop_asked(),
            }
        }
    }

    fn stop_asked(&mut self) {
        if matches!(self.mode, Mode::Stopping | Mode::Done) {
            return;
        }
        self.interrupt_task();
        if let Some(session) = &mut self.session {
            let text = "the target stops".to_owned();
            session.end(blkrep_wire::FarewellCode::Stopping, text);
        }
        self.next_session = None;
        self.mode = Mode::Stopping;
    }

    /// Silence, retries and checkpoints that have come due.
    fn check_time(&mut self, io: &mut H::Io) {
        let now = self.now;
        if self.persist_at.is_some_and(|at| now >= at) {
            self.persist_at = None;
        }
        if let Some(session) = self.session.as_mut().filter(|session| !session.closed) {
            if !session.receiving && session.phase() != Phase::Closing {
                // It is we who do not listen, while a frame waits for room: that is not silence.
                session.heard = now;
            }
            if now >= session.heard.after(session.hello.timeout) {
                if session.phase() == Phase::Closing {
                    session.drop_it("the source does not take the farewell");
                } else {
                    let text = "nothing was heard from the source for too long".to_owned();
                    session.end(blkrep_wire::FarewellCode::Timeout, text);
                    session.heard = now;
                }
            }
            if now >= session.said.after(session.hello.heartbeat) {
                session.ack_due = true;
                session.said = now;
            }
        }
        self.retry_notes();
        self.checkpoint_if_due(io);
    }

    /// Moves on to what follows when the worker is not simply serving.
    fn advance_mode(&mut self, io: &mut H::Io) {
        match &self.mode {
            Mode::Serving | Mode::Done => {}
            Mode::Recovering => {
                if self.facts.paused() {
                    // What is left of the journal has to be applied before it can begin anew.
                    self.facts.set_paused(false);
                    self.event(&TargetEvent::Resumed);
                }
                if self.applier.is_idle() && self.is_quiet() {
                    if self.applier.needs_flush() {
                        self.begin_flush(io);
                    } else {
                        self.reset_journal();
                    }
                }
            }
            Mode::Resetting => {
                // Nothing of the old journal is applied again: everything counts as different.
                self.applying.give_up_rewind();
                self.give_up_waiting();
                if !self.applier.is_flying() && self.is_quiet() && self.persist() {
                    self.reset_journal();
                }
            }
            Mode::Promoting(_) => self.advance_promotion(io),
            Mode::Stopping => {
                let drained = self.journaling.is_drained() || self.journaling.failed();
                if drained && self.journal.has_unknown() && !self.journaling.failed() {
                    // One attempt: a head that fails is late by its retry, and nobody waits for it.
                    self.note_durable(io);
                }
                let drained = self.journaling.is_drained() || self.journaling.failed();
                if self.session.is_none() && drained && self.nothing_flies() {
                    self.mode = Mode::Done;
                    self.control.close();
                }
            }
        }
        self.adopt_if_asked();
    }

    /// True if neither journal nor flush is under way.
    pub(super) fn is_quiet(&self) -> bool {
        self.journaling.is_drained() && !self.applying.is_busy()
    }

    /// The journal begins anew after the last durable record.
    pub(super) fn reset_journal(&mut self) {
        self.facts.base = self.journal.last;
        self.begin_anew();
        if matches!(self.mode, Mode::Recovering | Mode::Resetting) && self.trouble.is_none() {
            self.mode = Mode::Serving;
        }
    }

    /// A new, empty journal after `facts.base`.
    pub(super) fn begin_anew(&mut self) {
        if self.persist_at.is_some_and(|at| self.now < at) {
            return;
        }
        self.interrupt_task();
        self.journaling.forget();
        match super::keeping::begin_journal(&mut self.files, &mut self.facts, &self.settings) {
            Ok(journal) => {
                self.persist_at = None;
                self.trouble = None;
                self.applier = Applier::new(journal.last, journal.next, journal.next);
                self.incoming.restart(journal.last);
                self.applying.restart(journal.last);
                self.journal = journal;
            }
            Err(error) => {
                self.persist_at = Some(self.now.after(self.applying.retries.policy().delay));
                self.trouble = Some(error.to_string());
                self.event(&TargetEvent::StateFailed {
                    reason: error.to_string(),
                });
            }
        }
    }

    /// What the last durable record is for a source that asks.
    pub(super) fn durable(&self) -> WriteName {
        self.journal.last
    }

    fn show(&mut self) {
        let fresh = self
            .shown
            .is_some_and(|shown| self.now < shown.after(SHOW_INTERVAL));
        if fresh && !matches!(self.mode, Mode::Done) {
            self.show_due = true;
            return;
        }
        self.show_due = false;
        self.shown = Some(self.now);
        let replica = self.files.replica();
        self.control.show(TargetStatus {
            group: replica.group.clone(),
            source: replica.source.clone(),
            link: replica.link.clone(),
            connected_since: self.streaming_since(),
            connections: self.session.as_ref().map_or(0, |s| 1 + s.joined.len()),
            out_of_order: self.session.as_ref().map_or(ByteLen::ZERO, |session| {
                ByteLen::new(session.out_of_order() as u64)
            }),
            last_heard: self.last_heard,
            data_state: self.facts.state(),
            applying: self.applying_word(),
            retrying: self.retrying(),
            held: self.applier.is_holding(),
            history: self.facts.history.clone(),
            received: self.incoming.last(),
            durable: self.durable(),
            applied: self.applier.applied(),
            journal_used: blkrep_types::ByteLen::new(self.journal.space.used()),
            journal_capacity: blkrep_types::ByteLen::new(self.journal.space.capacity()),
            dirty: self.facts.part().bytes(),
            received_bytes: self.received_bytes,
            volumes: replica.volumes.clone(),
            trouble: self.trouble.clone(),
        });
    }

    fn completed(&mut self, io: &mut H::Io, token: Token, result: Result<u32, Errno>) {
        let (kind, rest) = split(token);
        match kind {
            Kind::Base => self.base_done(rest, result),
            Kind::Flush => self.flush_done(rest, result),
            Kind::Batch => self.batch_done(result),
            Kind::Head => self.head_done(io, rest, result),
            Kind::Load => self.load_done(rest, result),
            Kind::Receive => self.received(rest, result),
            Kind::Send => self.sent(io, rest, result),
            Kind::Refusal => self.refusal_sent(io, rest, result),
        }
    }

    /// Says no to a connection and ends it.
    pub(super) fn refuse(
        &mut self,
        io: &mut H::Io,
        socket: SocketOf<H>,
        source: &NodeName,
        code: RefuseCode,
        text: String,
    ) {
        /// Refusals under way at once; more than these are simply closed.
        const REFUSALS_MAX: usize = 4;
        self.event(&TargetEvent::Refused {
            source: source.clone(),
            reason: text.clone(),
        });
        if self.refusals.len() >= REFUSALS_MAX {
            io.shutdown(&socket);
            return;
        }
        let history = self.facts.history.clone();
        let Some(slice) = super::acceptor::refusal(code, history, text) else {
            io.shutdown(&socket);
            return;
        };
        self.serial += 1;
        self.refusals
            .push((self.serial, socket.clone(), slice.clone()));
        self.submit(
            io,
            token(Kind::Refusal, self.serial),
            Op::Send { socket, slice },
        );
    }

    fn refusal_sent(&mut self, io: &mut H::Io, serial: u64, result: Result<u32, Errno>) {
        let Some(at) = self.refusals.iter().position(|each| each.0 == serial) else {
            return;
        };
        let (_, socket, left) = &mut self.refusals[at];
        let sent = usize::try_from(result.unwrap_or(0)).expect("64-bit platform");
        if sent > 0 && sent < left.len() {
            *left = left.part(sent..left.len());
            let (socket, slice) = (socket.clone(), left.clone());
            let op = Op::Send { socket, slice };
            return self.submit(io, token(Kind::Refusal, serial), op);
        }
        io.shutdown(socket);
        self.refusals.swap_remove(at);
    }
}

#[cfg(test)]
impl<H: Host> TargetWorker<H> {
    /// For a test that failed.
    pub(super) fn tell(&self) -> String {
        format!(
            "{:?}, {}, received {}, durable {}, {:?}, {:?}, {} under way, session {:?}, {:?}",
            self.mode,
            self.facts.state(),
            self.incoming.last(),
            self.durable(),
            self.applier.cursor(),
            self.journal.space,
            self.flying,
            self.session.as_ref().map(Session::phase),
            self.trouble
        )
    }
}

impl<H: Host> Worker<H::Io> for TargetWorker<H> {
    fn start(&mut self, io: &mut H::Io) {
        self.control.attach(io.waker());
        self.turn(io);
    }

    fn on_completion(&mut self, io: &mut H::Io, completion: Completion<SocketOf<H>>) {
        self.now = io.now();
        assert!(self.flying > 0, "what completes was submitted");
        self.flying -= 1;
        self.completed(io, completion.token, completion.result);
    }

    fn on_turn(&mut self, io: &mut H::Io) {
        self.turn(io);
    }

    fn deadline(&self) -> Option<Nanos> {
        if matches!(self.mode, Mode::Done) {
            return None;
        }
        let open = self.session.as_ref().filter(|session| !session.closed);
        let session = open.map(|session| {
            let (beat, silence) = (session.hello.heartbeat, session.hello.timeout);
            let own = (session.heard, session.said);
            let joined = session.joined.iter().filter(|joined| !joined.shut);
            let joined = joined.map(|joined| (joined.heard, joined.said()));
            let all = joined.chain([own]);
            let due = all.map(|(heard, said)| heard.after(silence).min(said.after(beat)));
            due.min().expect("a session has a connection")
        });
        let show = self.show_due.then_some(self.shown).flatten();
        let show = show.map(|shown| shown.after(SHOW_INTERVAL));
        let times = [
            session,
            self.persist_at,
            self.journaling.retry_at(),
            self.journaling.head_retry_at(),
            self.applying.due(),
            self.notes.due(),
            show,
        ];
        times.into_iter().flatten().min()
    }

    fn finished(&self) -> bool {
        matches!(self.mode, Mode::Done) && self.flying == 0
    }
}
