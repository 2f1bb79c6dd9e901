//! Groups that this node receives.
//!
//! Owns each replica's thread with its control. Sources bring replicas into being (`router`);
//! commands pause, promote and forget them.

use super::state::Trouble;
use super::tasks::Tasks;
use super::threads::WorkerThread;
use super::{Inner, NetHost, NetSocket, clock, errors};
use crate::engine::target::{
    Opened, ReplicaFiles, Retrying, TargetCommandError, TargetControl, TargetError, TargetEvent,
    TargetSettings, TargetStatus, TargetWatch, TargetWorker, TaskDone, TaskOrder,
};
use crate::events::Events;
use blkrep_api::{
    ApiError, CommandReply, ErrorCode, EventId, GroupStatus, NewEvent, Problem, ProblemLevel,
    RetryReason, RetryingStatus, Role, TargetAction, TargetRequest, TargetState,
    TargetStatus as ApiTargetStatus, VolumeState, VolumeStatus,
};
use blkrep_core::target::{RetryPolicy, WriteTrouble};
use blkrep_io::Host as _;
use blkrep_types::{ByteLen, DataState, Generation, GroupName, NodeName, NoteId, format_span};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// Operations of a replica's ring: base writes of a batch, the journal, the connection.
const RING_ENTRIES: u32 = 512;
/// How long an answer of a replica's worker may take: what it has received must be durable first.
const ANSWER_WAIT: Duration = Duration::from_secs(90);
/// A replica's status is not older.
const STATUS_AGE_MAX: Duration = Duration::from_millis(200);
/// How often a claim that is held elsewhere is tried.
const CLAIM_RETRY: Duration = Duration::from_millis(50);

/// A replica at work.
#[derive(Debug)]
pub(super) struct Replica {
    pub(super) control: TargetControl<NetSocket>,
    /// Who is proven to be the source that connected last; `None` without encryption.
    pub(super) proven: Option<NodeName>,
    thread: WorkerThread,
}

impl Replica {
    /// Ends it in order: what was received is durable.
    pub(super) fn end(self) {
        self.control.stop();
        self.thread.join();
    }

    /// Waits for the end that a promotion brings.
    pub(super) fn join(self) {
        self.thread.join();
    }

    pub(super) fn alive(&self) -> bool {
        self.thread.alive()
    }
}

/// Puts a replica's events into the event log, and has its tasks run.
struct Watch {
    events: Events,
    tasks: Arc<Tasks>,
}

impl TargetWatch for Watch {
    fn event(&self, group: &GroupName, event: &TargetEvent) {
        let (id, text) = in_words(event);
        self.events.publish(NewEvent::new(id, text).group(group));
    }

    fn admits(&self, group: &GroupName, order: &TaskOrder) -> Result<(), String> {
        self.tasks.admits(group, order)
    }

    fn run(&self, group: &GroupName, order: TaskOrder, done: TaskDone) {
        self.tasks.run(group, order, done);
    }

    fn cancel(&self, group: &GroupName, task: NoteId) {
        self.tasks.cancel(group, task);
    }

    fn now(&self) -> u64 {
        clock::since_1970()
    }
}

fn in_words(event: &TargetEvent) -> (EventId, String) {
    match event {
        TargetEvent::Created { .. } => (EventId::TargetCreated, "a replica was made".to_owned()),
        TargetEvent::Connected { source } => {
            (EventId::LinkUp, format!("node {source} is connected"))
        }
        TargetEvent::Disconnected { source, reason } => {
            (EventId::LinkDown, format!("node {source}: {reason}"))
        }
        TargetEvent::ConnectionLost {
            source,
            index,
            reason,
        } => (
            EventId::ConnectionLost,
            format!("connection {index} with node {source}: {reason}"),
        ),
        TargetEvent::Refused { source, reason } => {
            (EventId::LinkRefused, format!("node {source}: {reason}"))
        }
        TargetEvent::State {
            from,
            to: DataState::Ok,
        } => (EventId::TargetOk, format!("was {from}")),
        TargetEvent::State { from, to } => (EventId::TargetNotOk, format!("was {from}, is {to}")),
        TargetEvent::Retrying {
            why,
            path,
            errno,
            policy,
        } => retrying_event(*why, &format!("{path}: {errno}"), *policy),
        TargetEvent::RetryEnded {
            path,
            failures,
            lasted,
        } => {
            let lasted = format_span(*lasted);
            let text = format!("{path}: after {failures} failures in {lasted}");
            (EventId::TargetWritable, text)
        }
        TargetEvent::WriteFailed { path, errno } => {
            (EventId::TargetWriteError, format!("{path}: {errno}"))
        }
        TargetEvent::FlushFailed { path, errno } => (
            EventId::TargetWriteError,
            format!("flush {path}: {errno}; applied again"),
        ),
        TargetEvent::JournalFailed { errno } => (
            EventId::StateFull,
            format!("journal: {errno}; the source is held back"),
        ),
        TargetEvent::JournalCorrupt { what } => (EventId::JournalCorrupt, what.clone()),
        TargetEvent::JournalFull => (EventId::JournalFull, "the source is held back".to_owned()),
        TargetEvent::Replayed { through } => {
            (EventId::JournalReplayed, format!("applied up to {through}"))
        }
        TargetEvent::HoldGivenUp => (
            EventId::TargetNotOk,
            "a mirror outgrew the journal and is applied as it comes".to_owned(),
        ),
        TargetEvent::StateFailed { reason } => (EventId::StateFull, reason.clone()),
        TargetEvent::StateRepaired { what } => (EventId::StateRepaired, what.clone()),
        TargetEvent::Adopted { history } => (
            EventId::TargetCreated,
            format!("belongs to generation {} now", history.current()),
        ),
        TargetEvent::Paused => (EventId::TargetPaused, "by command".to_owned()),
        TargetEvent::Resumed => (EventId::TargetResumed, "by command".to_owned()),
        TargetEvent::Promoted { history } => (
            EventId::Promoted,
            format!("generation {} begins", history.current()),
        ),
        TargetEvent::Note { report } => super::notes::event_of(report),
        TargetEvent::NoteUnreadable { name } => (
            EventId::NoteUnreadable,
            format!("write {name}: its bytes are of no version that is known here"),
        ),
    }
}

fn retrying_event(why: WriteTrouble, what: &str, policy: RetryPolicy) -> (EventId, String) {
    let id = match why {
        WriteTrouble::Full => EventId::TargetFull,
        WriteTrouble::Busy => EventId::TargetBusy,
        WriteTrouble::Denied => EventId::TargetDenied,
        WriteTrouble::Unknown => EventId::TargetFailing,
    };
    let often = match policy.limit {
        None => "for as long as it takes".to_owned(),
        Some(1) => "once".to_owned(),
        Some(limit) => format!("{limit} times"),
    };
    let delay = format_span(policy.delay);
    (id, format!("{what}; tried again every {delay}, {often}"))
}

/// An error of a replica's files, in the words of the control API.
pub(super) fn of_target(group: &GroupName, error: &TargetError) -> ApiError {
    let subject = format!("group {group}");
    let (code, otherwise) = match error {
        TargetError::Host(error) => return errors::of_host(subject, error),
        TargetError::Busy { .. } => (
            ErrorCode::BackingInUse,
            "stop what has it open: fuser -v shows it",
        ),
        TargetError::Newer { .. } => (
            ErrorCode::StateNewer,
            "install the newer blkrepd again; nothing was changed",
        ),
        TargetError::Promoted(_) => (ErrorCode::WrongRole, "see blkctl status"),
        TargetError::ReadOnly { .. } => (ErrorCode::BackingReadOnly, "make it writable"),
        TargetError::TooSmall { .. } => (ErrorCode::TargetTooSmall, "enlarge it"),
        TargetError::Blocks { .. } => (ErrorCode::BackingUnsuitable, "use another one"),
        TargetError::Missing { .. } => (ErrorCode::BackingMissing, "check its name"),
        TargetError::PathDenied { .. } | TargetError::NoDirectory => (
            ErrorCode::TargetPathDenied,
            "allow it with --allow-replica-dir",
        ),
        TargetError::SamePath { .. } => (
            ErrorCode::TargetPathTaken,
            "use a path that no other volume has",
        ),
        TargetError::Occupied { .. } => (
            ErrorCode::TargetHoldsData,
            "if it may be overwritten: --overwrite",
        ),
        TargetError::NoVolume(_) => (ErrorCode::NoSuchVolume, "blkctl status names those it has"),
        _ => (
            ErrorCode::StateCorrupt,
            "see blkctl events --severity error",
        ),
    };
    let text = error.to_string();
    let (happened, action) = text.split_once("; ").unwrap_or((&text, otherwise));
    ApiError::new(code, subject, happened, action)
}

/// A command needs a replica that could not be opened.
pub(super) fn not_opened(group: &GroupName, trouble: &Trouble) -> ApiError {
    ApiError::new(
        trouble.code,
        format!("group {group}"),
        format!("its replica could not be opened: {}", trouble.what),
        trouble.action.clone(),
    )
}

impl Inner {
    pub(super) fn replica_dir(&self, group: &GroupName) -> PathBuf {
        self.replicas_dir.join(group.as_str())
    }

    pub(super) fn target_settings(&self, group: &GroupName) -> TargetSettings {
        let settings = self.settings.group(group);
        TargetSettings {
            journal_bytes: settings.journal_size,
            retry: settings.target_retry,
            ..TargetSettings::new(self.name.clone())
        }
    }

    /// Opens every replica of the state directory. Claims that are held elsewhere are waited for up
    /// to `end`; what cannot be opened is tried again later.
    pub(super) fn restore_replicas(&self, end: Instant) {
        let names = self.host.list(&self.replicas_dir).unwrap_or_else(|error| {
            tracing::error!(%error, "list replicas");
            Vec::new()
        });
        for group in names.iter().filter_map(|name| GroupName::new(name).ok()) {
            self.open_replica(&group, end);
        }
    }

    /// Opens a replica; if that fails, status and events say why.
    pub(super) fn open_replica(&self, group: &GroupName, end: Instant) {
        let error = match self.restore_replica(group, end) {
            Ok(()) => {
                self.state().unopened.remove(group);
                return;
            }
            Err(error) => error,
        };
        let trouble = Trouble::from(&error);
        let text = trouble.to_string();
        let before = self.state().unopened.insert(group.clone(), trouble.clone());
        if before.as_ref() == Some(&trouble) {
            return;
        }
        let id = match trouble.code {
            ErrorCode::StateCorrupt => EventId::StateCorrupt,
            ErrorCode::StateNewer => EventId::StateNewer,
            _ => EventId::TargetNotOk,
        };
        self.tell(NewEvent::new(id, format!("the replica cannot be opened: {text}")).group(group));
    }

    fn restore_replica(&self, group: &GroupName, end: Instant) -> Result<(), ApiError> {
        loop {
            match ReplicaFiles::open(&self.net, &self.replica_dir(group)) {
                Ok(None) => return Ok(()),
                Ok(Some(opened)) => return self.start_replica(group, opened),
                // Its group is in the table and is opened as a source.
                Err(TargetError::Promoted(_)) => return Ok(()),
                Err(TargetError::Busy { .. }) if Instant::now() < end => {
                    thread::sleep(CLAIM_RETRY);
                }
                Err(error) => return Err(of_target(group, &error)),
            }
        }
    }

    /// Runs the worker of an open replica.
    pub(super) fn start_replica(
        &self,
        group: &GroupName,
        opened: Opened<NetHost>,
    ) -> Result<(), ApiError> {
        let settings = self.target_settings(group);
        let watch = Arc::new(Watch {
            events: self.events.clone(),
            tasks: Arc::clone(&self.tasks),
        });
        let (told, control) = mpsc::sync_channel(1);
        let thread =
            WorkerThread::start(&self.net, &format!("t-{group}"), RING_ENTRIES, move |_| {
                let worker = TargetWorker::new(opened, settings, watch)
                    .map_err(|error| error.to_string())?;
                // The receiver waits for exactly this.
                let _ = told.send(worker.control());
                Ok(worker)
            })
            .map_err(|error| {
                let action = "see blkctl doctor for limits of memory and io_uring";
                let subject = format!("group {group}");
                ApiError::new(ErrorCode::NoRights, subject, error.to_string(), action)
            })?;
        let control = control.recv().map_err(|_| {
            ApiError::internal(format!("the replica of group {group} gave no control"))
        })?;
        self.state().replicas.insert(
            group.clone(),
            Replica {
                control,
                proven: None,
                thread,
            },
        );
        Ok(())
    }

    fn replica_control(&self, group: &GroupName) -> Result<TargetControl<NetSocket>, ApiError> {
        let state = self.state();
        if let Some(replica) = state.replicas.get(group) {
            return Ok(replica.control.clone());
        }
        if let Some(trouble) = state.unopened.get(group) {
            return Err(not_opened(group, trouble));
        }
        let is_source = state
            .table
            .entries()
            .volumes
            .values()
            .any(|entry| entry.group == *group);
        if is_source {
            return Err(ApiError::new(
                ErrorCode::WrongRole,
                format!("group {group}"),
                "this node is its source, not its target",
                "give the command on its target",
            ));
        }
        Err(errors::no_group(group))
    }

    /// Asks a replica's worker and waits for its answer.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        group: &GroupName,
        limit: Duration,
        question: impl FnOnce(
            &TargetControl<NetSocket>,
            Box<dyn FnOnce(Result<T, TargetCommandError>) + Send>,
        ),
    ) -> Result<T, ApiError> {
        let control = self.replica_control(group)?;
        let (tell, answer) = mpsc::sync_channel(1);
        // Nobody listens only if this command has given up.
        question(&control, Box::new(move |result| drop(tell.send(result))));
        match answer.recv_timeout(limit) {
            Ok(result) => result.map_err(|error| super::promote::of_command(group, &error)),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(ApiError::new(
                ErrorCode::GroupBusy,
                format!("group {group}"),
                "its replica ended before it answered",
                "see blkctl events, and try again",
            )),
            Err(mpsc::RecvTimeoutError::Timeout) => Err(ApiError::new(
                ErrorCode::StillRunning,
                format!("group {group}"),
                "its replica has not answered in time",
                "see blkctl status; its disks may be slow or failing",
            )),
        }
    }

    pub(super) fn pause_target(&self, request: &TargetRequest) -> Result<CommandReply, ApiError> {
        let paused = request.action == TargetAction::Pause;
        self.ask(&request.group, ANSWER_WAIT, |control, reply| {
            control.pause(paused, reply)
        })?;
        Ok(CommandReply::note(if paused {
            "applying is paused; the journal goes on receiving up to its size"
        } else {
            "applying goes on"
        }))
    }

    /// Adds what this node receives to a status.
    pub(super) fn add_replicas(&self, groups: &mut Vec<GroupStatus>) {
        let (replicas, unopened): (Vec<_>, Vec<GroupStatus>) = {
            let state = self.state();
            let replicas = state.replicas.iter();
            let replicas = replicas.map(|(name, replica)| {
                let proven = replica.proven.clone();
                let control = &replica.control;
                (name.clone(), proven, control.status(), control.notes())
            });
            let unopened = state.unopened.iter();
            let unopened = unopened.map(|(name, why)| unopened_status(name.clone(), why));
            (replicas.collect(), unopened.collect())
        };
        for status in unopened {
            groups.retain(|group| group.name != status.name);
            groups.push(status);
        }
        for (name, proven, status, notes) in replicas {
            if let Some(status) = status {
                groups.retain(|group| group.name != name);
                let mut status = replica_status(name, proven, &status);
                super::notes::add_to(&mut status, &notes);
                groups.push(status);
            }
        }
    }

    /// Drops what this node remembers of a group that it receives; `None` if it receives none of that
    /// name.
    pub(super) fn forget_replica(
        &self,
        group: &GroupName,
    ) -> Result<Option<CommandReply>, ApiError> {
        if !self.state().replica_is_here(group) {
            return Ok(None);
        }
        // A status is a moment old: one of before the source connected must not count.
        thread::sleep(STATUS_AGE_MAX);
        let (status, opened) = {
            let state = self.state();
            let replica = state.replicas.get(group);
            let status = replica.and_then(|replica| replica.control.status());
            (status, replica.is_some())
        };
        let source = status.as_ref().map(|status| status.source.clone());
        if let Some(source) = source
            .as_ref()
            .filter(|_| status.is_some_and(|status| status.connected_since.is_some()))
        {
            return Err(ApiError::new(
                ErrorCode::GroupBusy,
                format!("group {group}"),
                format!("its source, node {source}, is connected"),
                format!("end the link there first: blkctl disconnect {group}"),
            ));
        }
        if opened {
            let replica = self.state().replicas.remove(group);
            if let Some(replica) = replica {
                replica.end();
            }
        }
        self.remove_replica_files(group)?;
        self.state().unopened.remove(group);
        self.settings.forget_group(group);
        let text = "by command; its data was left";
        self.tell(NewEvent::new(EventId::TargetForgotten, text).group(group));
        let again = source.map_or_else(String::new, |source| {
            format!("; if node {source} still has its link, it makes it anew when it connects")
        });
        Ok(Some(CommandReply::note(format!(
            "group {group} is forgotten; its data was not touched{again}"
        ))))
    }

    /// Removes the record, journal, map and notes of a replica that nobody has open. The record goes first:
    /// without it the others mean nothing.
    pub(super) fn remove_replica_files(&self, group: &GroupName) -> Result<(), ApiError> {
        let directory = self.replica_dir(group);
        if !directory.exists() {
            return Ok(());
        }
        for name in ["superblock", "journal", "map", "notes"] {
            self.host
                .remove(&directory.join(name))
                .map_err(|error| errors::of_host(format!("group {group}"), &error))?;
        }
        if let Err(error) = std::fs::remove_dir(&directory) {
            tracing::warn!(%group, %error, "remove the directory of a forgotten replica");
        }
        Ok(())
    }

    /// Puts in force what applies to a replica at once.
    pub(super) fn refresh_replicas(&self, group: Option<&GroupName>) {
        let controls: Vec<_> = {
            let state = self.state();
            let replicas = state.replicas.iter();
            let meant = replicas.filter(|(name, _)| group.is_none_or(|group| group == *name));
            meant
                .map(|(name, replica)| (name.clone(), replica.control.clone()))
                .collect()
        };
        for (name, control) in controls {
            control.set_retry(self.settings.group(&name).target_retry);
        }
    }

    /// Ends all replicas in order.
    pub(super) fn stop_replicas(&self) {
        let replicas = std::mem::take(&mut self.state().replicas);
        for (_, replica) in replicas {
            replica.end();
        }
        self.tasks.end();
    }
}

/// A replica of which nothing is known but why.
fn unopened_status(name: GroupName, why: &Trouble) -> GroupStatus {
    let problem = Problem::new(
        ProblemLevel::Error,
        format!("the replica cannot be opened: {}", why.what),
        "nothing is received and it cannot be promoted; nothing was changed",
        format!("{}; it is tried again by itself", why.action),
    );
    GroupStatus {
        name,
        role: Role::Target,
        generation: Generation::NONE,
        volumes: Vec::new(),
        links: Vec::new(),
        throttle: None,
        served_by: None,
        target: Some(ApiTargetStatus {
            source: None,
            proven: None,
            connected: false,
            connections: 0,
            out_of_order_bytes: ByteLen::ZERO,
            last_heard: None,
            data_state: DataState::Unknown,
            status: TargetState::NotLoaded,
            journal_bytes: ByteLen::ZERO,
            journal_limit_bytes: ByteLen::ZERO,
            retrying: None,
            dirty_bytes: ByteLen::ZERO,
            task: None,
            bookmarks: 0,
        }),
        problems: vec![problem],
    }
}

fn replica_status(name: GroupName, proven: Option<NodeName>, status: &TargetStatus) -> GroupStatus {
    let volumes = status.volumes.iter().map(|volume| VolumeStatus {
        name: volume.name.clone(),
        device: String::new(),
        frontend: None,
        backing: volume.path.display().to_string(),
        size_bytes: volume.len,
        state: VolumeState::Replica,
        read_only: false,
        transient: false,
    });
    GroupStatus {
        name,
        role: Role::Target,
        generation: status.history.current(),
        volumes: volumes.collect(),
        links: Vec::new(),
        throttle: None,
        served_by: None,
        target: Some(ApiTargetStatus {
            source: Some(status.source.clone()),
            proven: proven.filter(|_| status.connected_since.is_some()),
            connected: status.connected_since.is_some(),
            connections: u16::try_from(status.connections).unwrap_or(u16::MAX),
            out_of_order_bytes: status.out_of_order,
            last_heard: status.last_heard.map(clock::timestamp),
            data_state: status.data_state,
            status: super::link_status::applying(status.applying),
            journal_bytes: status.journal_used,
            journal_limit_bytes: status.journal_capacity,
            retrying: status.retrying.as_ref().map(retrying_status),
            dirty_bytes: status.dirty,
            task: None,
            bookmarks: 0,
        }),
        problems: Vec::new(),
    }
}

fn retrying_status(retrying: &Retrying) -> RetryingStatus {
    let trouble = &retrying.trouble;
    RetryingStatus {
        why: match trouble.why {
            WriteTrouble::Full => RetryReason::Full,
            WriteTrouble::Busy => RetryReason::Busy,
            WriteTrouble::Denied => RetryReason::Denied,
            WriteTrouble::Unknown => RetryReason::Unknown,
        },
        path: retrying.path.display().to_string(),
        error: trouble.errno.to_string(),
        since: clock::timestamp(trouble.since),
        failures: trouble.failures,
    }
}
