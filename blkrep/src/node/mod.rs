//! The node: the daemon's data plane as its administrators see it.
//!
//! Owns what is served and received on this host: groups with their engines, devices, links and
//! threads, and the table that brings them back. Commands of the control plane enter; engines,
//! devices and events leave. Never touches a volume's bytes and never decides an order.

mod attach;
mod backing;
mod bandwidth;
mod claim;
mod clock;
mod connect;
mod detach;
mod errors;
mod frontends;
mod link_options;
mod link_status;
mod links;
mod notes;
mod promote;
mod rejoin;
mod replace;
mod replicas;
mod restore;
mod router;
mod schedule;
mod serve;
mod serving;
mod state;
mod status;
mod superseded;
mod table;
mod tasks;
mod threads;
mod transmission;
mod unfinished;
mod watch;

use crate::control::node::{Node, NodeContext};
use crate::events::Events;
use crate::files::identity_of;
use crate::settings::Settings;
use crate::trust::Trust;
use crate::udev::UdevHints;
use anyhow::Context as _;
use blkrep_api::{
    ApiError, AttachReply, AttachRequest, BookmarkRequest, CommandReply, ConnectReply,
    ConnectRequest, DemoteRequest, DetachRequest, DisconnectReply, DisconnectRequest, EventId,
    Finding, ForgetRequest, GroupStatus, LinkRequest, MirrorRequest, NewEvent, NoteList, NoteQuery,
    NoteReply, PromoteRequest, ReplaceRequest, StatusQuery, TargetRequest, TaskRequest,
    TransmitRequest,
};
use blkrep_io::real::{RealHost, RealSocket, process};
use blkrep_types::{GroupName, NodeName};
use blkrep_ublk::Owner;
use blkrep_wire::tls::{Keeper, Line, LineHost};
use state::State;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};
use superseded::Teller;
use table::Table;

/// The host as threads of links and replicas see it: connections are encrypted where they must be.
type NetHost = LineHost<RealHost>;
/// A connection with another node.
type NetSocket = Line<RealSocket>;

/// How long a start waits altogether for claims that are held elsewhere: what a killed predecessor
/// had in flight lands in less on a disk that works. What takes longer is tried again beside what
/// is served, so that a service manager sees the daemon start in time.
const START_PATIENCE: Duration = Duration::from_secs(5);

/// How long a stop waits for devices that are just being deleted. What takes longer is finished by the
/// next start.
const ENDINGS_WAIT: Duration = Duration::from_secs(10);

/// A node over the real host.
#[derive(Debug)]
pub struct LiveNode {
    inner: Arc<Inner>,
    watcher: Mutex<Option<watch::Watcher>>,
    listening: Mutex<Option<router::Listening>>,
}

/// What commands, threads and the watcher share.
#[derive(Debug)]
struct Inner {
    name: NodeName,
    host: RealHost,
    net: NetHost,
    trust: Arc<Trust>,
    /// Marks our devices.
    owner: Owner,
    settings: Arc<Settings>,
    tasks: Arc<tasks::Tasks>,
    events: Events,
    teller: Arc<Teller>,
    hints: UdevHints,
    /// State of groups.
    groups_dir: PathBuf,
    /// State of replicas, a directory each.
    replicas_dir: PathBuf,
    /// Directories that other nodes may place replicas in.
    replica_dirs: Vec<PathBuf>,
    /// Sockets and mount points of this run.
    run_dir: PathBuf,
    /// Names this boot of the host.
    boot: String,
    /// One command that changes something at a time; held as long as it takes.
    commands: Mutex<()>,
    /// Limits of bandwidth. Held for moments only.
    paces: Mutex<bandwidth::Paces>,
    /// Schedules of transmission. Held for moments only.
    timetables: Mutex<schedule::Timetables>,
    /// Held for moments only.
    state: Mutex<State>,
    stopping: AtomicBool,
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn timetables(&self) -> MutexGuard<'_, schedule::Timetables> {
        // Each entry is replaced whole.
        self.timetables
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn paces(&self) -> MutexGuard<'_, bandwidth::Paces> {
        self.paces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn command(&self) -> MutexGuard<'_, ()> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The turn, unless another command has it.
    fn try_command(&self) -> Option<MutexGuard<'_, ()>> {
        match self.commands.try_lock() {
            Ok(turn) => Some(turn),
            Err(TryLockError::Poisoned(turn)) => Some(turn.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// The turn for a command on a group of which no device is ending.
    fn turn_of(&self, group: &GroupName) -> Result<MutexGuard<'_, ()>, ApiError> {
        let turn = self.command();
        self.state().refuse_ending(group)?;
        Ok(turn)
    }

    fn tell(&self, event: NewEvent) {
        self.events.publish(event);
    }
}

impl LiveNode {
    /// Opens the node: takes over what a predecessor served, and begins to listen.
    ///
    /// # Errors
    /// The state directory cannot be used. A volume that cannot be served is no error: its status
    /// says why, and it is tried again.
    pub fn open(context: NodeContext) -> anyhow::Result<Arc<Self>> {
        prepare_process();
        let groups_dir = context.state_dir.join("groups");
        let replicas_dir = context.state_dir.join("replicas");
        let run_dir = context.state_dir.join("run");
        for directory in [&groups_dir, &replicas_dir, &run_dir] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .with_context(|| format!("make {}", directory.display()))?;
        }
        let (table, bad) = Table::load(&context.state_dir)?;
        let identity = identity_of(&context.state_dir).context("examine the state directory")?;
        let host = RealHost::new(&identity);
        let trust = Arc::clone(&context.trust);
        let inner = Arc::new(Inner {
            name: context.name,
            net: LineHost::new(host.clone(), trust as Arc<dyn Keeper<RealSocket>>),
            trust: context.trust,
            host,
            owner: Owner::of(&identity),
            tasks: Arc::new(tasks::Tasks::new(Arc::clone(&context.settings))),
            settings: context.settings,
            teller: Arc::new(Teller::new(context.events.clone())),
            events: context.events,
            hints: UdevHints::new(),
            groups_dir,
            replicas_dir,
            replica_dirs: context.replica_dirs,
            run_dir,
            boot: fs::read_to_string("/proc/sys/kernel/random/boot_id")
                .unwrap_or_default()
                .trim()
                .to_owned(),
            commands: Mutex::default(),
            paces: Mutex::default(),
            timetables: Mutex::default(),
            state: Mutex::new(State::new(table)),
            stopping: AtomicBool::new(false),
        });
        if let Some(bad) = bad {
            inner.tell(NewEvent::new(
                EventId::StateCorrupt,
                format!(
                    "volume table: {bad}; the other copy is used and the next change repairs it"
                ),
            ));
        }
        let end = Instant::now() + START_PATIENCE;
        inner.restore_replicas(end);
        inner.restore(end);
        let listening = router::Listening::start(&inner, context.listener)
            .context("start to take connections of other nodes")?;
        let watcher = watch::Watcher::start(&inner).context("start the watcher")?;
        Ok(Arc::new(Self {
            inner,
            watcher: Mutex::new(Some(watcher)),
            listening: Mutex::new(Some(listening)),
        }))
    }
}

/// What the process asks of the kernel so that it cannot deadlock with writeback to its own
/// devices. Without the rights for it the node works, and `doctor` tells what is missing.
fn prepare_process() {
    if let Err(error) = process::set_io_flusher() {
        tracing::warn!(%error, "mark the process as a flusher of I/O");
    }
    if let Err(error) = process::lock_memory() {
        tracing::warn!(%error, "lock memory");
    }
}

impl Node for LiveNode {
    fn status(&self, query: &StatusQuery) -> Result<Vec<GroupStatus>, ApiError> {
        self.inner.status(query)
    }

    fn attach(&self, request: &AttachRequest) -> Result<AttachReply, ApiError> {
        let _turn = self.inner.command();
        self.inner.attach(request)
    }

    fn detach(&self, request: &DetachRequest) -> Result<CommandReply, ApiError> {
        // It takes its turn itself: it also waits for the disk, which must not hold others up.
        self.inner.detach(request)
    }

    fn connect(&self, request: &ConnectRequest) -> Result<ConnectReply, ApiError> {
        // It takes its turn itself: it also waits for another node, which must not hold others up.
        self.inner.connect(request)
    }

    fn disconnect(&self, request: &DisconnectRequest) -> Result<DisconnectReply, ApiError> {
        let _turn = self.inner.turn_of(&request.group)?;
        self.inner.disconnect(request)
    }

    fn forget(&self, request: &ForgetRequest) -> Result<CommandReply, ApiError> {
        let _turn = self.inner.command();
        self.inner.forget(&request.group)
    }

    fn change_link(&self, request: &LinkRequest) -> Result<CommandReply, ApiError> {
        let _turn = self.inner.turn_of(&request.group)?;
        self.inner.change_link(request)
    }

    fn mirror(&self, request: &MirrorRequest) -> Result<CommandReply, ApiError> {
        let _turn = self.inner.turn_of(&request.group)?;
        self.inner.mirror(request)
    }

    fn transmit(&self, request: &TransmitRequest) -> Result<CommandReply, ApiError> {
        let _turn = self.inner.turn_of(&request.group)?;
        self.inner.transmit(request)
    }

    fn target(&self, request: &TargetRequest) -> Result<CommandReply, ApiError> {
        let _turn = self.inner.turn_of(&request.group)?;
        self.inner.pause_target(request)
    }

    fn replace(&self, request: &ReplaceRequest) -> Result<CommandReply, ApiError> {
        let _turn = self.inner.turn_of(&request.group)?;
        self.inner.replace(request)
    }

    fn promote(&self, request: &PromoteRequest) -> Result<CommandReply, ApiError> {
        let _turn = self.inner.turn_of(&request.group)?;
        self.inner.promote(request)
    }

    fn demote(&self, request: &DemoteRequest) -> Result<CommandReply, ApiError> {
        let _turn = self.inner.turn_of(&request.group)?;
        self.inner.demote(request)
    }

    fn submit_task(&self, request: &TaskRequest) -> Result<NoteReply, ApiError> {
        let _turn = self.inner.turn_of(&request.group)?;
        self.inner.submit_task(request)
    }

    fn set_bookmark(&self, request: &BookmarkRequest) -> Result<NoteReply, ApiError> {
        let _turn = self.inner.turn_of(&request.group)?;
        self.inner.set_bookmark(request)
    }

    fn notes(&self, query: &NoteQuery) -> Result<NoteList, ApiError> {
        self.inner.notes(query)
    }

    fn settings_changed(&self, group: Option<&GroupName>) {
        self.inner.settings_changed(group);
    }

    fn findings(&self) -> Vec<Finding> {
        Vec::new()
    }

    fn healthy(&self) -> bool {
        self.inner.healthy()
    }

    fn stop(&self) {
        self.inner.stopping.store(true, Ordering::Release);
        let watcher = self
            .watcher
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(watcher) = watcher {
            watcher.stop();
        }
        let listening = self
            .listening
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(listening) = listening {
            listening.stop();
        }
        // A device that is ending takes no longer than a disk that works.
        self.inner.await_endings(ENDINGS_WAIT);
        let _turn = self.inner.command();
        self.inner.stop_replicas();
        self.inner.stop_all();
    }
}
