//! What the control plane can ask of a target worker, and what it sees of it.
//!
//! Owns a bounded mailbox and a snapshot, each behind a mutex that is held for a copy. Answers to
//! commands go to a function that the asker gives; it is called on the worker's thread and must
//! not block.

use super::notes::{TaskEnd, TaskOrder};
use super::retrying::Retrying;
use blkrep_core::target::{Part, PromoteRefusal, RetryPolicy, WriteTrouble};
use blkrep_io::Waker;
use blkrep_store::superblock::ReplicaVolume;
use blkrep_types::{
    ByteLen, DataState, Errno, GroupName, History, LinkName, Nanos, NodeName, NoteId, NoteReport,
    WriteName,
};
use blkrep_wire::limits::CONNECTIONS_MAX;
use blkrep_wire::{Applying, Hello, Join};
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Commands that wait at once: the control plane asks one at a time, and all connections of a session may
/// join together.
const COMMANDS_MAX: usize = 16 + CONNECTIONS_MAX;

/// What happened at a target, for events.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum TargetEvent {
    /// A replica was made here.
    Created { group: GroupName },
    /// A source is connected.
    Connected { source: NodeName },
    /// It is no longer.
    Disconnected { source: NodeName, reason: String },
    /// One of several connections was lost; the source sends again what was on it.
    ConnectionLost {
        source: NodeName,
        index: u8,
        reason: String,
    },
    /// A source was refused.
    Refused { source: NodeName, reason: String },
    /// The worth of the data changed.
    State { from: DataState, to: DataState },
    /// A base does not take writes; they are tried again.
    Retrying {
        why: WriteTrouble,
        path: String,
        errno: Errno,
        policy: RetryPolicy,
    },
    /// It took what it had not taken, after so many failures in so long.
    RetryEnded {
        path: String,
        failures: u64,
        lasted: Duration,
    },
    /// A write to a base failed for good; its extent counts as different.
    WriteFailed { path: String, errno: Errno },
    /// A flush of a base failed; what it covered is applied again.
    FlushFailed { path: String, errno: Errno },
    /// The journal failed; nothing is received until it works again.
    JournalFailed { errno: Errno },
    /// What was acknowledged and not applied was damaged; it counts as different.
    JournalCorrupt { what: String },
    /// The journal is full: the source is held back.
    JournalFull,
    /// What was in the journal at the start is applied.
    Replayed { through: WriteName },
    /// A held mirror outgrew the journal; it is applied as it comes.
    HoldGivenUp,
    /// The facts could not be written down; tried again.
    StateFailed { reason: String },
    /// Part of the recorded state was damaged and has been replaced.
    StateRepaired { what: String },
    /// Another history took the replica over.
    Adopted { history: History },
    /// Applying is paused.
    Paused,
    /// Applying goes on.
    Resumed,
    /// The replica was promoted.
    Promoted { history: History },
    /// A note was reached, or a task is over.
    Note { report: Box<NoteReport> },
    /// A note cannot be read.
    NoteUnreadable { name: WriteName },
}

/// Hears how a task ended; called once, from any thread.
pub type TaskDone = Box<dyn FnOnce(TaskEnd) + Send>;

/// Hears of a target's events, and runs its tasks. Called on the worker's thread: it must not block.
pub trait TargetWatch: Send + Sync {
    /// Something happened.
    fn event(&self, group: &GroupName, event: &TargetEvent);

    /// Says whether a task may be run here, and if not, why.
    ///
    /// # Errors
    /// Tasks are off, or the program is not allowed.
    fn admits(&self, _group: &GroupName, _order: &TaskOrder) -> Result<(), String> {
        Err("tasks are off at this target".to_owned())
    }

    /// Runs a task that was admitted. `done` is called when it is over, whatever becomes of it; not before
    /// this returns.
    fn run(&self, _group: &GroupName, order: TaskOrder, done: TaskDone) {
        drop((order, done));
        unreachable!("only what was admitted is run");
    }

    /// Kills the task that runs; nobody waits for its end any more.
    fn cancel(&self, _group: &GroupName, _task: NoteId) {}

    /// Nanoseconds since 1970.
    fn now(&self) -> u64 {
        0
    }
}

/// What a status shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetStatus {
    /// The group.
    pub group: GroupName,
    /// Where it comes from.
    pub source: NodeName,
    /// The link's name there.
    pub link: LinkName,
    /// The source is connected, since then.
    pub connected_since: Option<Nanos>,
    /// How many connections it has.
    pub connections: usize,
    /// Bytes received whose turn has not come: what came before them is still under way on another
    /// connection.
    pub out_of_order: ByteLen,
    /// When it was last heard.
    pub last_heard: Option<Nanos>,
    /// What the data is worth.
    pub data_state: DataState,
    /// What applying does.
    pub applying: Applying,
    /// A base that does not take writes.
    pub retrying: Option<Retrying>,
    /// A mirror is held.
    pub held: bool,
    /// The generations.
    pub history: History,
    /// The last record received.
    pub received: WriteName,
    /// The last one durable here.
    pub durable: WriteName,
    /// The last one in the bases.
    pub applied: WriteName,
    /// Bytes the journal holds.
    pub journal_used: ByteLen,
    /// Bytes it can hold.
    pub journal_capacity: ByteLen,
    /// Bytes in extents known to differ.
    pub dirty: ByteLen,
    /// Bytes of records received since the start.
    pub received_bytes: u64,
    /// Its volumes.
    pub volumes: Vec<ReplicaVolume>,
    /// What is wrong, in words.
    pub trouble: Option<String>,
}

/// A volume of a promoted group.
#[derive(Debug, Clone)]
pub struct PromotionVolume {
    /// What it is and where.
    pub volume: ReplicaVolume,
    /// The size of its base.
    pub base_len: ByteLen,
}

/// What a promotion leaves for the engine that serves the group from now on. The worker holds the
/// bases until it has finished; then they can be claimed.
#[derive(Debug, Clone)]
pub struct Promotion {
    /// The group.
    pub group: GroupName,
    /// The former source.
    pub source: NodeName,
    /// The generations, the new one last; its branch is the last write in the bases.
    pub history: History,
    /// The last write in the bases, by its old name.
    pub applied: WriteName,
    /// What the data was worth.
    pub data_state: DataState,
    /// Extents that the former source had acknowledged and that are not in the bases.
    pub part: Part,
    /// The volumes, by index.
    pub volumes: Vec<PromotionVolume>,
}

/// Why a command was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetCommandError {
    /// A promotion was refused.
    #[error(transparent)]
    Promote(#[from] PromoteRefusal),
    /// Another command of that kind is being carried out.
    #[error("a promotion is under way")]
    Promoting,
    /// A base does not take what a promotion has to write.
    #[error("{0}")]
    Unwritable(String),
    /// The disk failed.
    #[error("{0}")]
    Failed(String),
    /// The worker is ending, or too much waits.
    #[error("the replica is closing")]
    Closing,
}

pub(super) type Reply<T> = Box<dyn FnOnce(Result<T, TargetCommandError>) + Send>;

pub(super) enum Command<S> {
    Session {
        socket: S,
        hello: Box<Hello>,
        version: u16,
    },
    Join {
        socket: S,
        join: Box<Join>,
    },
    Pause(bool, Reply<()>),
    Retry(RetryPolicy),
    Promote {
        force: bool,
        inconsistent: bool,
        reply: Reply<Box<Promotion>>,
    },
    TaskEnded(NoteId, TaskEnd),
    Stop,
}

struct Inner<S> {
    commands: VecDeque<Command<S>>,
    waker: Option<Waker>,
    closed: bool,
    status: Option<TargetStatus>,
    notes: Arc<Vec<NoteReport>>,
}

/// A handle to one worker; clones are the same.
pub struct TargetControl<S> {
    inner: Arc<Mutex<Inner<S>>>,
}

impl<S> Clone for TargetControl<S> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

impl<S> fmt::Debug for TargetControl<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TargetControl")
    }
}

impl<S> Default for TargetControl<S> {
    fn default() -> Self {
        let inner = Inner {
            commands: VecDeque::new(),
            waker: None,
            closed: false,
            status: None,
            notes: Arc::default(),
        };
        Self {
            inner: Arc::new(Mutex::new(inner)),
        }
    }
}

impl<S> TargetControl<S> {
    fn lock(&self) -> MutexGuard<'_, Inner<S>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves a command; gives it back if the worker takes none any more.
    fn leave(&self, command: Command<S>) -> Result<(), Command<S>> {
        let mut inner = self.lock();
        if inner.closed || inner.commands.len() >= COMMANDS_MAX {
            return Err(command);
        }
        inner.commands.push_back(command);
        if let Some(waker) = &inner.waker {
            waker.wake();
        }
        Ok(())
    }

    /// Hands over a connection whose `Hello` was read. False, and the connection dropped, if the
    /// worker takes none.
    #[must_use]
    pub fn session(&self, socket: S, hello: Box<Hello>, version: u16) -> bool {
        self.leave(Command::Session {
            socket,
            hello,
            version,
        })
        .is_ok()
    }

    /// Hands over a connection whose `Join` was read. False, and the connection dropped, if the worker
    /// takes none.
    #[must_use]
    pub fn join(&self, socket: S, join: Box<Join>) -> bool {
        self.leave(Command::Join { socket, join }).is_ok()
    }

    /// Pauses or resumes applying.
    pub fn pause(
        &self,
        paused: bool,
        reply: impl FnOnce(Result<(), TargetCommandError>) + Send + 'static,
    ) {
        if let Err(Command::Pause(_, reply)) = self.leave(Command::Pause(paused, Box::new(reply))) {
            reply(Err(TargetCommandError::Closing));
        }
    }

    /// Says when and how often writes that a base did not take are tried again. A worker that takes no commands
    /// any more needs none.
    pub fn set_retry(&self, policy: RetryPolicy) {
        drop(self.leave(Command::Retry(policy)));
    }

    /// Promotes the replica. When the answer comes the promotion is durable; the worker finishes.
    pub fn promote(
        &self,
        force: bool,
        inconsistent: bool,
        reply: impl FnOnce(Result<Box<Promotion>, TargetCommandError>) + Send + 'static,
    ) {
        let reply: Reply<Box<Promotion>> = Box::new(reply);
        let command = Command::Promote {
            force,
            inconsistent,
            reply,
        };
        if let Err(Command::Promote { reply, .. }) = self.leave(command) {
            reply(Err(TargetCommandError::Closing));
        }
    }

    /// Ends the worker in order: what was received is durable, nothing is lost.
    pub fn stop(&self) {
        self.insist(Command::Stop);
    }

    /// The process of the one task that runs has ended.
    pub fn task_ended(&self, task: NoteId, end: TaskEnd) {
        self.insist(Command::TaskEnded(task, end));
    }

    /// Leaves a command that is never turned away.
    fn insist(&self, command: Command<S>) {
        let mut inner = self.lock();
        if !inner.closed {
            inner.commands.push_back(command);
            if let Some(waker) = &inner.waker {
                waker.wake();
            }
        }
    }

    /// What became of the last notes, oldest change first.
    #[must_use]
    pub fn notes(&self) -> Arc<Vec<NoteReport>> {
        Arc::clone(&self.lock().notes)
    }

    pub(super) fn show_notes(&self, notes: Arc<Vec<NoteReport>>) {
        self.lock().notes = notes;
    }

    /// The last snapshot; `None` before the first turn.
    #[must_use]
    pub fn status(&self) -> Option<TargetStatus> {
        self.lock().status.clone()
    }

    pub(super) fn attach(&self, waker: Waker) {
        self.lock().waker = Some(waker);
    }

    pub(super) fn take(&self) -> Option<Command<S>> {
        self.lock().commands.pop_front()
    }

    pub(super) fn show(&self, status: TargetStatus) {
        self.lock().status = Some(status);
    }

    /// Takes no more commands; those that wait are answered.
    pub(super) fn close(&self) {
        let waiting = {
            let mut inner = self.lock();
            inner.closed = true;
            inner.waker = None;
            std::mem::take(&mut inner.commands)
        };
        for command in waiting {
            match command {
                Command::Pause(_, reply) => reply(Err(TargetCommandError::Closing)),
                Command::Promote { reply, .. } => reply(Err(TargetCommandError::Closing)),
                Command::Session { .. }
                | Command::Join { .. }
                | Command::Retry(_)
                | Command::TaskEnded(..)
                | Command::Stop => {}
            }
        }
    }
}
