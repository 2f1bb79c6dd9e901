//! A source host and a target host in a simulated world, and the scheduler that gives turns.

use super::super::*;
use super::source::{Book, Images, ScriptedSource, VOLUMES};
use blkrep_core::target::RetryPolicy;
use blkrep_io::sim::{Next, NodeId, SimHost, SimIo, SimOptions, SimSocket, SimWorld};
use blkrep_io::{Host, Worker};
use blkrep_store::superblock::ReplicaVolume;
use blkrep_types::{ByteLen, DataState, GroupName, History, Nanos, NodeName, NoteId};
use blkrep_wire::{Hello, RefuseCode};
use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub(super) const REPLICAS: &str = "/replicas";
pub(super) const STATE: &str = "/state/db";
const PORT: u16 = 7420;

/// What happened, and the tasks that run.
#[derive(Default)]
pub(super) struct Events {
    all: Mutex<Vec<TargetEvent>>,
    /// Why tasks are refused; empty: they are run.
    pub(super) refuses: Mutex<String>,
    pub(super) running: Mutex<Vec<(TaskOrder, TaskDone)>>,
    pub(super) cancelled: Mutex<Vec<NoteId>>,
}

impl Events {
    pub(super) fn all(&self) -> Vec<TargetEvent> {
        self.all.lock().unwrap().clone()
    }

    pub(super) fn any(&self, wanted: impl Fn(&TargetEvent) -> bool) -> bool {
        self.all.lock().unwrap().iter().any(wanted)
    }
}

impl TargetWatch for Events {
    fn event(&self, _: &GroupName, event: &TargetEvent) {
        self.all.lock().unwrap().push(event.clone());
    }

    fn admits(&self, _: &GroupName, _: &TaskOrder) -> Result<(), String> {
        let why = self.refuses.lock().unwrap().clone();
        if why.is_empty() { Ok(()) } else { Err(why) }
    }

    fn run(&self, _: &GroupName, order: TaskOrder, done: TaskDone) {
        self.running.lock().unwrap().push((order, done));
    }

    fn cancel(&self, _: &GroupName, task: NoteId) {
        self.cancelled.lock().unwrap().push(task);
    }

    fn now(&self) -> u64 {
        77
    }
}

/// What the assembly does: routes by group, makes replicas.
struct TestRouter {
    host: SimHost,
    policy: TargetPolicy,
    settings: TargetSettings,
    events: Arc<Events>,
    control: Arc<Mutex<Option<TargetControl<SimSocket>>>>,
    made: Arc<Mutex<Option<TargetWorker<SimHost>>>>,
}

impl TestRouter {
    fn make(&self, hello: &Hello) -> Result<TargetControl<SimSocket>, TargetError> {
        let request = ReplicaRequest {
            group: hello.group.clone(),
            source: hello.node.clone(),
            link: hello.link.clone(),
            overwrite: hello.overwrite,
            volumes: hello
                .volumes
                .iter()
                .map(|volume| ReplicaVolume {
                    index: volume.index,
                    name: volume.name.clone(),
                    len: volume.len,
                    block_size: volume.block_size,
                    extent_size: volume.extent_size,
                    path: PathBuf::from(&volume.path),
                })
                .collect(),
        };
        let opened = ReplicaFiles::create(
            &self.host,
            Path::new(STATE),
            &self.policy,
            &self.settings,
            &request,
        )?;
        let watch = Arc::clone(&self.events) as Arc<dyn TargetWatch>;
        let worker = TargetWorker::new(opened, self.settings.clone(), watch)?;
        let control = worker.control();
        *self.made.lock().unwrap() = Some(worker);
        Ok(control)
    }
}

impl Router<SimSocket> for TestRouter {
    fn route(&mut self, arrival: Arrival<SimSocket>) -> Route {
        let Arrival {
            socket,
            hello,
            version,
        } = arrival;
        let refuse = |code, text: String| Route::Refuse {
            code,
            history: History::new(),
            text,
        };
        if hello.group.as_str() != "db" {
            return refuse(
                RefuseCode::Group,
                format!("no group '{}' here", hello.group),
            );
        }
        let mut control = self.control.lock().unwrap();
        if control.is_none() {
            match self.make(&hello) {
                Ok(made) => *control = Some(made),
                Err(error) => return refuse(error.code(), error.to_string()),
            }
        }
        if control.as_ref().unwrap().session(socket, hello, version) {
            Route::Taken
        } else {
            refuse(RefuseCode::Unavailable, "the replica is closing".to_owned())
        }
    }

    fn join(&mut self, joining: Joining<SimSocket>) -> Route {
        let control = self.control.lock().unwrap();
        let taken = control
            .as_ref()
            .is_some_and(|control| control.join(joining.socket, joining.join));
        match taken {
            true => Route::Taken,
            false => Route::Refuse {
                code: RefuseCode::Unavailable,
                history: History::new(),
                text: "no such replica".to_owned(),
            },
        }
    }
}

/// The daemon on the target host.
pub(super) struct Daemon {
    pub(super) host: SimHost,
    acceptor: (SimIo, Acceptor<SimHost>),
    pub(super) worker: Option<(SimIo, TargetWorker<SimHost>)>,
    made: Arc<Mutex<Option<TargetWorker<SimHost>>>>,
    control: Arc<Mutex<Option<TargetControl<SimSocket>>>>,
    stop: Arc<AtomicBool>,
}

pub(super) struct Rig {
    pub(super) world: SimWorld,
    pub(super) target: NodeId,
    pub(super) source_node: NodeId,
    pub(super) book: Rc<RefCell<Book>>,
    pub(super) sources: Vec<(SimIo, ScriptedSource)>,
    pub(super) daemon: Option<Daemon>,
    pub(super) events: Arc<Events>,
    pub(super) policy: TargetPolicy,
    pub(super) settings: TargetSettings,
    pub(super) rubbish: Arc<Mutex<Vec<String>>>,
}

pub(super) fn settings() -> TargetSettings {
    TargetSettings {
        journal_bytes: ByteLen::new(0),
        batch_bytes: ByteLen::new(0),
        checkpoint_interval: Duration::from_millis(200),
        retry: RetryPolicy {
            limit: Some(0),
            delay: Duration::from_millis(300),
        },
        ..TargetSettings::new(NodeName::new("beta").unwrap())
    }
}

impl Rig {
    pub(super) fn new(seed: u64) -> Self {
        Self::with(seed, settings())
    }

    pub(super) fn with(seed: u64, settings: TargetSettings) -> Self {
        let options = SimOptions {
            slow_one_in: 0,
            ..SimOptions::default()
        };
        let world = SimWorld::new(seed, options);
        let (source_node, target) = (world.add_node(), world.add_node());
        let peer = SocketAddr::new(target.address(), PORT);
        let book = Rc::new(RefCell::new(Book::new(peer)));
        let policy = TargetPolicy {
            directories: vec![REPLICAS.into()],
            paths: vec!["/dev/target".into()],
        };
        let mut rig = Self {
            world,
            target,
            source_node,
            book: Rc::clone(&book),
            sources: Vec::new(),
            daemon: None,
            events: Arc::default(),
            policy,
            settings,
            rubbish: Arc::default(),
        };
        rig.start_target();
        rig.add_source(book);
        rig
    }

    pub(super) fn add_source(&mut self, book: Rc<RefCell<Book>>) {
        let host = self.world.start(self.source_node);
        let mut io = host.ring(64).unwrap();
        let mut source = ScriptedSource::new(book);
        io.begin(&mut source);
        self.sources.push((io, source));
    }

    /// Starts the target's daemon; what it finds of a replica is opened first.
    pub(super) fn start_target(&mut self) {
        assert!(self.try_start_target().unwrap(), "the daemon starts");
    }

    /// False while the claims of a predecessor are still held, or its files cannot be flushed: it
    /// is tried again.
    pub(super) fn try_start_target(&mut self) -> Result<bool, TargetError> {
        self.daemon = None;
        // What the former daemon had open is closed before the port is taken again.
        self.run(Duration::ZERO);
        let host = self.world.start(self.target);
        let made = Arc::new(Mutex::new(None));
        let control = Arc::new(Mutex::new(None));
        match ReplicaFiles::open(&host, Path::new(STATE)) {
            Ok(Some(opened)) => {
                let watch = Arc::clone(&self.events) as Arc<dyn TargetWatch>;
                let worker = TargetWorker::new(opened, self.settings.clone(), watch)?;
                *control.lock().unwrap() = Some(worker.control());
                *made.lock().unwrap() = Some(worker);
            }
            Ok(None) => {}
            Err(TargetError::Busy { .. } | TargetError::Host(_)) => return Ok(false),
            Err(error) => return Err(error),
        }
        let anywhere = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), PORT);
        let (listener, _) = host.listen(anywhere).unwrap();
        let router = TestRouter {
            host: host.clone(),
            policy: self.policy.clone(),
            settings: self.settings.clone(),
            events: Arc::clone(&self.events),
            control: Arc::clone(&control),
            made: Arc::clone(&made),
        };
        let rubbish = Arc::clone(&self.rubbish);
        let heard = Arc::new(move |text: &str| rubbish.lock().unwrap().push(text.to_owned()));
        let stop = Arc::new(AtomicBool::new(false));
        let limits = AcceptorLimits {
            hello_timeout: Duration::from_secs(2),
            strangers_max: 4,
            ..AcceptorLimits::default()
        };
        let mut acceptor =
            Acceptor::<SimHost>::new(listener, Box::new(router), limits, heard, Arc::clone(&stop));
        let mut io = host.ring(64).unwrap();
        io.begin(&mut acceptor);
        let mut daemon = Daemon {
            host,
            acceptor: (io, acceptor),
            worker: None,
            made,
            control,
            stop,
        };
        daemon.adopt();
        self.daemon = Some(daemon);
        Ok(true)
    }

    /// Starts it again as a service manager would: until the claims are free.
    pub(super) fn restart_target(&mut self) {
        for _ in 0..100 {
            if self.try_start_target().unwrap() {
                return;
            }
            self.run(Duration::from_millis(100));
        }
        panic!("the claims of the former daemon are never freed");
    }

    pub(super) fn control(&self) -> TargetControl<SimSocket> {
        let daemon = self.daemon.as_ref().expect("the daemon runs");
        daemon
            .control
            .lock()
            .unwrap()
            .clone()
            .expect("there is a replica")
    }

    /// A fresh status: it is shown ten times a second.
    pub(super) fn status(&mut self) -> TargetStatus {
        self.run(Duration::from_millis(250));
        self.control().status().expect("the worker has had a turn")
    }

    /// Lets the world go on for `span`.
    pub(super) fn run(&mut self, span: Duration) {
        let until = self.world.now().after(span);
        self.run_until(until, &mut |_| false);
    }

    /// Lets it go on until `done`, at most a virtual minute; false if it never was.
    pub(super) fn wait(&mut self, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        let until = self.world.now().after(Duration::from_secs(60));
        self.run_until(until, &mut done)
    }

    fn run_until(&mut self, until: Nanos, done: &mut dyn FnMut(&mut Self) -> bool) -> bool {
        loop {
            if done(self) {
                return true;
            }
            match self.world.next(until) {
                Next::Until => return done(self),
                Next::Ring(ring) => self.turn(ring),
            }
        }
    }

    pub(super) fn turn(&mut self, ring: blkrep_io::sim::RingId) {
        if let Some((io, source)) = self.sources.iter_mut().find(|(io, _)| io.id() == ring) {
            io.turn(source);
            return;
        }
        let daemon = self.daemon.as_mut().expect("a ring belongs to somebody");
        if daemon.acceptor.0.id() == ring {
            let (io, acceptor) = &mut daemon.acceptor;
            io.turn(acceptor);
        } else if let Some((io, worker)) = &mut daemon.worker {
            assert_eq!(io.id(), ring, "a ring belongs to somebody");
            io.turn(worker);
            if worker.finished() {
                daemon.worker = None;
                *daemon.control.lock().unwrap() = None;
            }
        }
        daemon.adopt();
    }

    /// The source wakes up to look at its book again.
    pub(super) fn poke(&mut self) {
        for (io, _) in &self.sources {
            self.world.wake_after(io.id(), Duration::from_micros(1));
        }
    }

    /// True when the target has applied everything the source has named.
    pub(super) fn caught_up(&self) -> bool {
        let book = self.book.borrow();
        let head = book.head();
        let applied = self
            .daemon
            .as_ref()
            .and_then(|daemon| daemon.worker.as_ref())
            .is_some_and(|(_, worker)| {
                worker.applier.applied() == head
                    && !worker.facts.unsaved()
                    && worker.facts.state() == DataState::Ok
            });
        applied && book.ack.is_some_and(|ack| ack.durable == head)
    }

    /// Waits until the replica equals the source, and says whether it does.
    pub(super) fn settle(&mut self) {
        self.poke();
        let done = self.wait(|rig| {
            if rig.book.borrow().dirty.is_empty() && !rig.book.borrow().mirroring {
                return rig.caught_up();
            }
            // A mirror waits until the connection has told what else differs.
            if rig.daemon.as_ref().is_some_and(|d| d.streams()) {
                rig.book.borrow_mut().finish_mirror();
                rig.poke();
            }
            false
        });
        let told: Vec<_> = self
            .sources
            .iter()
            .map(|(_, source)| source.tell())
            .collect();
        let worker = self
            .daemon
            .as_ref()
            .and_then(|daemon| daemon.worker.as_ref());
        let worker = worker.map(|(_, worker)| worker.tell());
        let book = self.book.borrow();
        assert!(
            done,
            "never caught up: source {told:?}, head {}, dirty {}; target {worker:?}; {:?} {:?}",
            book.head(),
            book.dirty.len(),
            book.farewell,
            self.events.all(),
        );
    }

    pub(super) fn bases(&self) -> Images {
        (0..VOLUMES)
            .map(|index| self.world.image(self.target, &base(index)))
            .collect()
    }

    /// The bases hold what the source holds.
    pub(super) fn check_equal(&self) {
        if let Some(differs) = self.differs(&self.book.borrow().images) {
            panic!("{differs}");
        }
    }

    /// Where the bases differ from `images` first.
    pub(super) fn differs(&self, images: &Images) -> Option<String> {
        let bases = self.bases();
        bases
            .iter()
            .zip(images)
            .enumerate()
            .find_map(|(volume, (base, image))| {
                let at = base.iter().zip(image).position(|(a, b)| a != b)?;
                Some(format!(
                    "volume {volume}, sector {}: has {:#x}, should have {:#x}",
                    at / 512,
                    base[at],
                    image[at]
                ))
            })
    }

    pub(super) fn promote(
        &mut self,
        force: bool,
        inconsistent: bool,
    ) -> Result<Box<Promotion>, TargetCommandError> {
        let answer = Arc::new(Mutex::new(None));
        let slot = Arc::clone(&answer);
        self.control().promote(force, inconsistent, move |result| {
            *slot.lock().unwrap() = Some(result);
        });
        assert!(
            self.wait(|_| answer.lock().unwrap().is_some()),
            "a promotion is answered"
        );
        answer.lock().unwrap().take().unwrap()
    }

    pub(super) fn pause(&mut self, paused: bool) {
        let answer = Arc::new(Mutex::new(None));
        let slot = Arc::clone(&answer);
        self.control()
            .pause(paused, move |result| *slot.lock().unwrap() = Some(result));
        assert!(self.wait(|_| answer.lock().unwrap().is_some()));
        match answer.lock().unwrap().take().unwrap() {
            // Written down later: applying follows the command at once all the same.
            Ok(()) | Err(TargetCommandError::Failed(_)) => {}
            Err(other) => panic!("{other}"),
        }
    }

    /// The process of the daemon.
    pub(super) fn process(&self) -> blkrep_io::sim::ProcessId {
        self.daemon.as_ref().expect("it runs").host.process()
    }

    pub(super) fn power_loss(&mut self) {
        self.world.power_loss(self.target);
        self.daemon = None;
    }

    pub(super) fn kill(&mut self) {
        let daemon = self.daemon.take().expect("it runs");
        self.world.crash_process(daemon.host.process());
    }

    /// Ends the daemon in order.
    pub(super) fn stop(&mut self) {
        let daemon = self.daemon.as_ref().unwrap();
        daemon.stop.store(true, Ordering::Release);
        let ring = daemon.acceptor.0.id();
        self.control().stop();
        self.world.wake_after(ring, Duration::from_micros(1));
        assert!(self.wait(|rig| {
            let daemon = rig.daemon.as_ref().unwrap();
            daemon.worker.is_none() && daemon.acceptor.1.finished()
        }));
        self.daemon = None;
    }
}

impl Daemon {
    /// Starts the worker of a replica that was just made.
    fn adopt(&mut self) {
        if let Some(mut worker) = self.made.lock().unwrap().take() {
            // A process that has died makes no rings.
            if let Ok(mut io) = self.host.ring(256) {
                io.begin(&mut worker);
                self.worker = Some((io, worker));
            }
        }
    }

    pub(super) fn streams(&self) -> bool {
        self.worker
            .as_ref()
            .is_some_and(|(_, worker)| worker.streaming_since().is_some())
    }
}

pub(super) fn base(index: u16) -> PathBuf {
    PathBuf::from(format!("{REPLICAS}/db.v{index}.img"))
}
