//! The target's daemon: an acceptor and one replica, assembled as the real daemon does.
//!
//! Owns one process's engine. A plan and a host enter; workers for the scheduler leave.

use super::plan::{Plan, Side};
use super::program::Program;
use super::run::target_path;
use super::source::{PORT, STATE, node_name};
use super::start::StartError;
use super::told::Told;
use blkrep::engine::target::{
    Acceptor, AcceptorLimits, Arrival, Promotion, ReplicaFiles, ReplicaRequest, Route, Router,
    TargetCommandError, TargetControl, TargetError, TargetEvent, TargetPolicy, TargetSettings,
    TargetStatus, TargetWatch, TargetWorker,
};
use blkrep_io::Host;
use blkrep_io::sim::{ProcessId, RingId, SimHost, SimSocket};
use blkrep_store::superblock::ReplicaVolume;
use blkrep_types::{ByteLen, DataState, GroupName, History, WriteName};
use blkrep_wire::{Hello, PeerRole, RefuseCode, Welcome};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a promotion was answered.
pub type Promoted = Result<Box<Promotion>, TargetCommandError>;

/// The replica of this node, if there is one, and its worker until the scheduler takes it.
#[derive(Debug, Default)]
struct Replica {
    control: Option<TargetControl<SimSocket>>,
    fresh: Option<TargetWorker<SimHost>>,
    /// The generations since it was promoted: no source is taken any more.
    promoted: Option<History>,
    promoting: bool,
}

#[derive(Debug, Clone, Default)]
struct Shared(Arc<Mutex<Replica>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Replica> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, worker: TargetWorker<SimHost>) {
        let mut replica = self.lock();
        replica.control = Some(worker.control());
        replica.fresh = Some(worker);
    }
}

/// A running target.
pub struct Target {
    program: Program,
    shared: Shared,
    stop: Arc<AtomicBool>,
    answer: Arc<Mutex<Option<Promoted>>>,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#?}", self.status())
    }
}

struct OneRouter {
    host: SimHost,
    shared: Shared,
    settings: TargetSettings,
    policy: TargetPolicy,
    told: Told,
}

fn directory() -> PathBuf {
    Path::new(STATE).join("replicas/group")
}

fn settings(plan: &Plan) -> TargetSettings {
    TargetSettings {
        journal_bytes: ByteLen::new(plan.journal_bytes),
        batch_bytes: ByteLen::new(2 << 20),
        checkpoint_interval: Duration::from_millis(300),
        ..TargetSettings::new(node_name(Side::Target))
    }
}

impl TargetWatch for Told {
    fn event(&self, _: &GroupName, event: &TargetEvent) {
        self.say(event);
    }
}

impl OneRouter {
    fn make(&self, hello: &Hello) -> Result<TargetWorker<SimHost>, TargetError> {
        let volume = |volume: &blkrep_wire::HelloVolume| ReplicaVolume {
            index: volume.index,
            name: volume.name.clone(),
            len: volume.len,
            block_size: volume.block_size,
            extent_size: volume.extent_size,
            path: PathBuf::from(&volume.path),
        };
        let request = ReplicaRequest {
            group: hello.group.clone(),
            source: hello.node.clone(),
            link: hello.link.clone(),
            volumes: hello.volumes.iter().map(volume).collect(),
            overwrite: hello.overwrite,
        };
        let opened = ReplicaFiles::create(
            &self.host,
            &directory(),
            &self.policy,
            &self.settings,
            &request,
        )?;
        TargetWorker::new(opened, self.settings.clone(), Arc::new(self.told.clone()))
    }
}

fn no(text: String) -> Route {
    Route::Refuse {
        code: RefuseCode::Unavailable,
        history: History::new(),
        text,
    }
}

/// What a node that serves the group itself says to a source.
fn welcome(arrival: &Arrival<SimSocket>, history: History) -> Welcome {
    Welcome {
        version: arrival.version,
        node: node_name(Side::Target),
        role: PeerRole::Source,
        data_state: DataState::Ok,
        history,
        durable: WriteName::NONE,
        journal_used: ByteLen::ZERO,
        journal_capacity: ByteLen::ZERO,
        volumes: Vec::new(),
    }
}

impl Router<SimSocket> for OneRouter {
    fn route(&mut self, arrival: Arrival<SimSocket>) -> Route {
        let known = {
            let replica = self.shared.lock();
            if let Some(history) = &replica.promoted {
                return Route::Answer(Box::new(welcome(&arrival, history.clone())));
            }
            if replica.promoting {
                return no("the replica is being promoted".to_owned());
            }
            replica.control.clone()
        };
        let control = match known {
            Some(control) => control,
            None => match self.make(&arrival.hello) {
                Ok(worker) => {
                    let control = worker.control();
                    self.shared.put(worker);
                    control
                }
                Err(error) => return no(error.to_string()),
            },
        };
        let Arrival {
            socket,
            hello,
            version,
        } = arrival;
        if control.session(socket, hello, version) {
            Route::Taken
        } else {
            no("busy".to_owned())
        }
    }
}

impl Target {
    /// Opens what replica there is and listens.
    ///
    /// # Errors
    /// The state is claimed, a disk failed, or what is there cannot be opened.
    pub fn open(host: SimHost, plan: &Plan, told: Told) -> Result<Self, StartError> {
        let shared = Shared::default();
        let settings = settings(plan);
        let opened = ReplicaFiles::open(&host, &directory()).map_err(|error| sorted(&error))?;
        if let Some(opened) = opened {
            let worker = TargetWorker::new(opened, settings.clone(), Arc::new(told.clone()));
            shared.put(worker.map_err(|error| sorted(&error))?);
        }
        let busy = |error: blkrep_io::HostError| StartError::Busy(error.to_string());
        let any = SocketAddr::from(([0, 0, 0, 0], PORT));
        let (listener, _) = host.listen(any).map_err(busy)?;
        let paths = (0..plan.volumes.len()).map(target_path).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let rubbish = told.clone();
        let router = OneRouter {
            host: host.clone(),
            shared: shared.clone(),
            settings,
            policy: TargetPolicy {
                directories: Vec::new(),
                paths,
            },
            told,
        };
        let acceptor = Acceptor::<SimHost>::new(
            listener,
            Box::new(router),
            AcceptorLimits::default(),
            Arc::new(move |what| rubbish.say(&what)),
            Arc::clone(&stop),
        );
        let mut program = Program::new(host);
        program.spawn(Box::new(acceptor)).map_err(busy)?;
        let mut target = Self {
            program,
            shared,
            stop,
            answer: Arc::default(),
        };
        target.spawn_fresh();
        Ok(target)
    }

    fn spawn_fresh(&mut self) {
        let fresh = self.shared.lock().fresh.take();
        if let Some(worker) = fresh {
            // An error means that the process has died: the scheduler sees that by itself.
            let _ = self.program.spawn(Box::new(worker));
        }
    }

    /// Its process.
    #[must_use]
    pub fn process(&self) -> ProcessId {
        self.program.process()
    }

    /// Gives one of its workers a turn.
    pub fn turn(&mut self, ring: RingId) -> bool {
        let mine = self.program.turn(ring);
        self.spawn_fresh();
        mine
    }

    /// True when every worker has ended.
    #[must_use]
    pub fn finished(&self) -> bool {
        self.program.finished()
    }

    fn control(&self) -> Option<TargetControl<SimSocket>> {
        self.shared.lock().control.clone()
    }

    /// True if there is a replica.
    #[must_use]
    pub fn has_replica(&self) -> bool {
        self.control().is_some()
    }

    /// Ends its workers in order.
    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.program.wake_all();
        if let Some(control) = self.control() {
            control.stop();
        }
    }

    /// Pauses or resumes applying.
    pub fn pause(&self, paused: bool) {
        if let Some(control) = self.control() {
            control.pause(paused, |_| {});
        }
    }

    /// Promotes the replica; no source is taken from now on.
    pub fn promote(&self, force: bool) {
        let answer = Arc::clone(&self.answer);
        let control = {
            let mut replica = self.shared.lock();
            replica.promoting = true;
            replica.control.clone()
        };
        let put = move |promoted| {
            *answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(promoted);
        };
        match control {
            Some(control) => control.promote(force, false, put),
            None => put(Err(TargetCommandError::Closing)),
        }
    }

    /// The answer to a promotion, once. From then on sources hear that this node serves.
    #[must_use]
    pub fn promoted(&self) -> Option<Promoted> {
        let answer = self
            .answer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()?;
        let mut replica = self.shared.lock();
        replica.promoting = false;
        if let Ok(promotion) = &answer {
            replica.promoted = Some(promotion.history.clone());
        }
        Some(answer)
    }

    /// The last snapshot of the replica.
    #[must_use]
    pub fn status(&self) -> Option<TargetStatus> {
        self.control()?.status()
    }

    /// Everything received is applied and good.
    ///
    /// # Errors
    /// What is not quiet.
    pub fn quiet(&self) -> Result<(), String> {
        let Some(status) = self.status() else {
            return Err("there is no replica".to_owned());
        };
        if status.data_state != DataState::Ok {
            return Err(format!("the replica is {}", status.data_state));
        }
        if status.applied != status.received {
            return Err("not everything is applied".to_owned());
        }
        Ok(())
    }
}

/// What an error of opening means for the scheduler.
fn sorted(error: &TargetError) -> StartError {
    match error {
        TargetError::Busy { .. } | TargetError::Host(_) => StartError::Busy(error.to_string()),
        _ => StartError::Failed(error.to_string()),
    }
}
