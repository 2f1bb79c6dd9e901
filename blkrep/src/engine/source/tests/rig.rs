//! A host with a group, its queues and one link, under virtual time; daemons come and go.

use super::super::{
    GroupSpec, GroupStatus, InitialMap, LinkSpec, OpenReport, QueueSpec, QueueWorker,
    SourceOptions, SourceShared, VolumeSpec,
};
use super::front::{Front, Queue};
use super::replica::{Driver, Replica, Shared};
use blkrep_core::source::{Connection, GroupEvent, LinkStatus, MirrorPhase, Position};
use blkrep_io::sim::{Next, NodeId, SimHost, SimIo, SimOptions, SimRandom, SimWorld};
use blkrep_io::{Host, Worker};
use blkrep_types::{
    BlockSize, ByteLen, ByteOffset, Extent, ExtentSize, GroupName, LinkName, LossPolicy,
    MirrorKind, Mode, VolumeIndex, VolumeName,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub(super) const VOLUMES: usize = 2;
pub(super) const LEN: u64 = 16 << 20;

pub(super) fn extent(offset: u64, len: u64) -> Extent {
    Extent::new(ByteOffset::new(offset), ByteLen::new(len)).unwrap()
}

pub(super) fn link() -> LinkName {
    LinkName::new("dr").unwrap()
}

pub(super) struct Daemon {
    pub(super) host: SimHost,
    pub(super) shared: Arc<SourceShared<SimHost>>,
    queues: Vec<(SimIo, QueueWorker<SimHost, Queue>)>,
    driver: Option<(SimIo, Driver)>,
    pub(super) report: OpenReport,
}

pub(super) struct Rig {
    pub(super) world: SimWorld,
    pub(super) node: NodeId,
    pub(super) fronts: Vec<Front>,
    pub(super) replica: Shared,
    pub(super) daemon: Option<Daemon>,
    pub(super) options: SourceOptions,
    pub(super) queue: Option<QueueSpec>,
    pub(super) random: SimRandom,
    pub(super) events: Vec<GroupEvent>,
}

pub(super) fn backing(volume: usize) -> PathBuf {
    PathBuf::from(format!("/dev/vd{volume}"))
}

impl Rig {
    pub(super) fn new(seed: u64) -> Self {
        let world = SimWorld::new(seed, SimOptions::default());
        let node = world.add_node();
        for volume in 0..VOLUMES {
            let len = ByteLen::new(LEN);
            world.add_device(node, &backing(volume), len, BlockSize::B512, true);
        }
        let lens = [usize::try_from(LEN).unwrap(); VOLUMES];
        Self {
            node,
            fronts: (0..VOLUMES).map(|_| Front::new()).collect(),
            replica: Replica::new(&lens),
            daemon: None,
            options: SourceOptions {
                log_bytes: ByteLen::new(4 << 20),
                requests_max: 64,
                reissues: true,
                ..SourceOptions::default()
            },
            queue: None,
            random: world.fork_random(),
            world,
            events: Vec::new(),
        }
    }

    pub(super) fn spec(&self) -> GroupSpec {
        GroupSpec {
            name: GroupName::new("db").unwrap(),
            volumes: (0..VOLUMES)
                .map(|volume| VolumeSpec {
                    name: VolumeName::new(&format!("v{volume}")).unwrap(),
                    backing: backing(volume),
                    offset: 0,
                    len: None,
                    block_size: None,
                    extent_size: ExtentSize::DIRTY_DEFAULT,
                    read_only: false,
                })
                .collect(),
            history: None,
            options: self.options,
            queue: self.queue.clone(),
        }
    }

    /// Starts a daemon, waiting for the writes of a dead one to land.
    pub(super) fn start(&mut self) {
        let host = self.world.start(self.node);
        let spec = self.spec();
        let (shared, report) = loop {
            match SourceShared::open(&host, Path::new("/state"), &spec) {
                Ok(opened) => break opened,
                Err(error) if error.is_busy() => {
                    let until = self.world.now().after(Duration::from_millis(100));
                    while self.world.next(until) != Next::Until {}
                }
                Err(error) => panic!("{error}"),
            }
        };
        let mut queues: Vec<_> = self
            .fronts
            .iter()
            .enumerate()
            .map(|(index, front)| {
                let volume = VolumeIndex::new(u16::try_from(index).unwrap());
                let worker = QueueWorker::new(&shared, volume, Box::new(front.serve()));
                (host.ring(128).unwrap(), worker)
            })
            .collect();
        for (io, worker) in &mut queues {
            io.begin(worker);
        }
        self.daemon = Some(Daemon {
            host,
            shared,
            queues,
            driver: None,
            report,
        });
        if !self.shared().links().is_empty() {
            self.drive();
        }
    }

    pub(super) fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().unwrap()
    }

    pub(super) fn shared(&self) -> &Arc<SourceShared<SimHost>> {
        &self.daemon().shared
    }

    /// Makes the link and drives it.
    pub(super) fn connect(&mut self, first: MirrorKind, mode: Mode) {
        let spec = LinkSpec {
            name: link(),
            peer: "10.0.0.2:7420".to_owned(),
            paths: vec![String::new(); VOLUMES],
            mode,
            loss: LossPolicy::default(),
            first_mirror: Some(first),
            overwrite: false,
            wanted: true,
            initial: InitialMap::Everything,
        };
        self.shared().add_link(&spec).unwrap();
        self.drive();
    }

    fn drive(&mut self) {
        let random = self.random.fork();
        let replica = Arc::clone(&self.replica);
        let daemon = self.daemon.as_mut().unwrap();
        let port = daemon.shared.link_port(&link()).unwrap();
        let mut driver = Driver::new(port, replica, random);
        let mut io = daemon.host.ring(128).unwrap();
        io.begin(&mut driver);
        daemon.driver = Some((io, driver));
    }

    /// Lets this much time pass.
    pub(super) fn run(&mut self, millis: u64) {
        let end = self.world.now().after(Duration::from_millis(millis));
        while let Next::Ring(ring) = self.world.next(end) {
            let Some(daemon) = self.daemon.as_mut() else {
                continue;
            };
            for (io, worker) in &mut daemon.queues {
                if io.id() == ring {
                    io.turn(worker);
                }
            }
            daemon.queues.retain(|(_, worker)| !worker.finished());
            if let Some((io, driver)) = daemon.driver.as_mut().filter(|(io, _)| io.id() == ring) {
                io.turn(driver);
            }
        }
        if let Some(daemon) = self.daemon.as_ref() {
            self.events.extend(daemon.shared.take_events());
        }
    }

    /// Runs until `done`, at most for some minutes.
    pub(super) fn run_until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        for _ in 0..6000 {
            if done(self) {
                return;
            }
            self.run(50);
        }
        panic!(
            "not reached: {what}; {:?}; {:?}",
            self.daemon.as_ref().map(|daemon| daemon.shared.status()),
            self.replica.lock().unwrap().name
        );
    }

    pub(super) fn kill(&mut self) {
        let daemon = self.daemon.take().unwrap();
        self.world.crash_process(daemon.host.process());
    }

    pub(super) fn power_loss(&mut self) {
        self.world.power_loss(self.node);
        self.daemon = None;
        self.fronts.iter().for_each(Front::forget);
    }

    /// Ends the daemon in order, with a disk that does not let it.
    pub(super) fn end(&mut self) {
        self.end_with(false).unwrap_err();
    }

    /// Ends the daemon in order.
    pub(super) fn stop(&mut self, detached: bool) {
        self.end_with(detached).unwrap();
    }

    fn end_with(&mut self, detached: bool) -> Result<(), crate::engine::source::OpenError> {
        self.fronts.iter().for_each(Front::stop);
        self.run(2000);
        let daemon = self.daemon.take().unwrap();
        let status = daemon.shared.status();
        assert!(daemon.queues.is_empty(), "not finished: {status:?}");
        drop(daemon.driver);
        drop(daemon.queues);
        let stopped = daemon.shared.stop(detached);
        self.world.crash_process(daemon.host.process());
        stopped
    }

    pub(super) fn status(&self) -> GroupStatus {
        self.shared().status()
    }

    pub(super) fn link_status(&self) -> LinkStatus {
        self.status().links[0].2.clone()
    }

    /// Nothing is under way and the link has everything.
    pub(super) fn quiet(&self) -> bool {
        let status = self.link_status();
        let answered = self.fronts.iter().all(|front| front.outstanding() == 0);
        answered
            && status.connection == Connection::Up
            && status.position == Position::Following
            && status.queued_ops == 0
            && status.dirty_bytes == ByteLen::ZERO
            && status.mirror.phase == MirrorPhase::Idle
    }

    pub(super) fn settle(&mut self) {
        // Time for the driver to see whether the target can be reached.
        self.run(300);
        self.run_until("everything is quiet", |rig| rig.quiet());
        if std::env::var_os("BLKREP_TELL").is_some() {
            eprintln!("{:#?}\n{:?}", self.events, self.status());
            eprintln!("{:?}", self.daemon().report);
        }
        self.check_equal();
    }

    pub(super) fn check_equal(&self) {
        let replica = self.replica.lock().unwrap();
        for volume in 0..VOLUMES {
            let source = self.world.image(self.node, &backing(volume));
            let target = &replica.images[volume];
            let differs = (0..source.len()).find(|at| source[*at] != target[*at]);
            assert_eq!(differs, None, "volume {volume} differs at this byte");
        }
    }

    /// Some requests, mostly small writes, over all volumes.
    pub(super) fn load(&mut self, count: usize) {
        for _ in 0..count {
            let volume = self.random.index(VOLUMES);
            let sectors = self.random.between(1, 32);
            let last = LEN / 512 - sectors;
            // Half of the requests meet in the first sectors.
            let range = if self.random.one_in(2) { 64 } else { last };
            let at = extent(self.random.below(range) * 512, sectors * 512);
            let byte = u8::try_from(self.random.between(1, 255)).unwrap();
            use blkrep_ublk::RequestKind as Kind;
            let (kind, at) = match self.random.below(12) {
                0 => (Kind::Flush, None),
                1 => (Kind::Discard, Some(at)),
                2 => (
                    Kind::WriteZeroes {
                        fua: true,
                        may_free: false,
                    },
                    Some(at),
                ),
                3 => (Kind::Write { fua: true }, Some(at)),
                4 => (Kind::Read, Some(at)),
                _ => (Kind::Write { fua: false }, Some(at)),
            };
            self.fronts[volume].issue(kind, at, byte);
            if self.random.one_in(3) {
                let pause = self.random.below(5);
                self.run(pause);
            }
        }
    }

    /// Writes whole extents one after the other and waits for the answers.
    pub(super) fn write_extents(&mut self, first: u64, count: u64, byte: u8) {
        for index in first..first + count {
            let at = extent(index * 65536, 65536);
            let kind = blkrep_ublk::RequestKind::Write { fua: false };
            while self.fronts[0].issue(kind, Some(at), byte).is_none() {
                self.run(10);
            }
        }
        self.run_until("the writes are done", |rig| {
            rig.fronts[0].outstanding() == 0
        });
    }
}
