//! The driver of a link against a target that follows a script, in a simulated world.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod handshake;
mod packing;
mod peer;
mod port;
mod simulated;
mod stream;

use super::{
    LinkConnection, LinkControl, LinkEvent, LinkSettings, LinkSnapshot, LinkWatch, LinkWorker, Pace,
};
use blkrep_core::compression::{Compression, Packing};
use blkrep_io::sim::{Next, NodeId, SimHost, SimIo, SimOptions, SimWorld};
use blkrep_io::{Host, Worker};
use blkrep_types::{ByteLen, Congestion, NodeName};
use peer::{Peer, Replica, Script};
use port::ListPort;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Keeps every event.
#[derive(Default)]
struct Events(Mutex<Vec<LinkEvent>>);

impl LinkWatch for Events {
    fn event(&self, event: &LinkEvent) {
        self.0.lock().unwrap().push(event.clone());
    }
}

/// Two hosts, the driver on one, a scripted target on the other.
struct Rig {
    world: SimWorld,
    source: NodeId,
    target: NodeId,
    source_io: SimIo,
    worker: LinkWorker<SimIo, ListPort>,
    peer_io: SimIo,
    peer: Peer,
    control: LinkControl,
    group: ListPort,
    replica: Arc<Mutex<Replica>>,
    events: Arc<Events>,
    _hosts: [SimHost; 2],
}

impl Rig {
    fn new(seed: u64, scripts: impl IntoIterator<Item = Script>) -> Self {
        let world = SimWorld::new(seed, SimOptions::default());
        let (source, target) = (world.add_node(), world.add_node());
        let (source_host, target_host) = (world.start(source), world.start(target));
        let address = SocketAddr::new(target.address(), 7420);
        let (listener, _) = target_host.listen(address).unwrap();
        let control = LinkControl::new(LinkSettings {
            node: NodeName::new("north").unwrap(),
            peer: address,
            heartbeat: Duration::from_secs(1),
            timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(5),
            progress_timeout: Duration::from_secs(60),
            reconnect: true,
            reconnect_interval: Duration::from_secs(2),
            pace: Pace::default(),
            compression: Compression::Off,
            compression_level: 1,
            congestion: Congestion::Auto,
            connections: 1,
            simulated: false,
            simulated_rate: ByteLen::new(1 << 20),
        });
        let group = ListPort::default();
        group.with(|group| group.wanted = true);
        let events = Arc::new(Events::default());
        let replica = Arc::new(Mutex::new(Replica {
            scripts: scripts.into_iter().collect(),
            ..Replica::default()
        }));
        let mut rig = Self {
            source_io: source_host.ring(64).unwrap(),
            worker: LinkWorker::new(group.clone(), control.clone(), events.clone()),
            peer_io: target_host.ring(64).unwrap(),
            peer: Peer::new(listener, replica.clone()),
            world,
            source,
            target,
            control,
            group,
            replica,
            events,
            _hosts: [source_host, target_host],
        };
        rig.peer_io.begin(&mut rig.peer);
        rig.source_io.begin(&mut rig.worker);
        rig
    }

    /// Lets this much time pass.
    fn run(&mut self, millis: u64) {
        let end = self.world.now().after(Duration::from_millis(millis));
        while let Next::Ring(ring) = self.world.next(end) {
            if ring == self.source_io.id() && !self.worker.finished() {
                self.source_io.turn(&mut self.worker);
            } else if ring == self.peer_io.id() {
                self.peer_io.turn(&mut self.peer);
            }
        }
    }

    fn append(&self, lens: impl IntoIterator<Item = u64>) {
        lens.into_iter().for_each(|len| self.group.append(len));
        self.group.publish();
    }

    fn cut(&self) {
        self.world.cut(self.source, self.target);
        self.world.cut(self.target, self.source);
    }

    fn heal(&self) {
        self.world.heal(self.source, self.target);
        self.world.heal(self.target, self.source);
    }

    fn snapshot(&self) -> LinkSnapshot {
        self.control.snapshot()
    }

    fn last_error(&self) -> String {
        self.snapshot().last_error.expect("an error was shown")
    }

    fn replica<R>(&self, look: impl FnOnce(&mut Replica) -> R) -> R {
        look(&mut self.replica.lock().unwrap())
    }

    fn events(&self) -> Vec<LinkEvent> {
        self.events.0.lock().unwrap().clone()
    }

    /// Everything in the log is at the target, and acknowledged.
    fn assert_all_there(&self) {
        let len = self.group.with(|group| group.log.len()) as u64;
        let received = self.replica(|replica| replica.received);
        assert_eq!(received, len, "{:?}", self.snapshot());
        self.group
            .with(|group| assert_eq!((group.durable, group.released), (len, len)));
        assert_eq!(self.snapshot().connection, LinkConnection::Up);
    }
}
