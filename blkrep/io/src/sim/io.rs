//! A simulated ring: the twin of the real one.
//!
//! Owns nothing but its name in the world and a scratch list. Operations enter the world's clock
//! and come back as completions. A ring of a dead process does nothing and hears nothing.

use super::host::crash_or;
use super::net::{Caller, SimSocket};
use super::state::State;
use super::storage::{DiskOp, DiskWork, SimFile};
use super::world::{NodeId, ProcessId, RingId, SimWorld};
use crate::proactor::{Completion, Io, Op, Steering, Token, Wake, Waker, Worker};
use crate::sim::event::Event;
use blkrep_types::{Congestion, CongestionName, Errno, Nanos};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, Weak};

/// Resource deadlock avoided: a wait that nothing in the world would end.
const EDEADLK: Errno = Errno::new(35);

/// Congestion controls of a simulated kernel, and what it gives who asks for none.
const IN_KERNEL: [&str; 3] = ["bbr", "cubic", "reno"];
const SYSTEM: &str = "cubic";

/// One thread's operations in a simulated world.
#[derive(Debug)]
pub struct SimIo {
    world: SimWorld,
    ring: RingId,
    node: NodeId,
    process: ProcessId,
    scratch: Vec<Completion<SimSocket>>,
}

impl SimIo {
    pub(super) fn new(world: SimWorld, ring: RingId, node: NodeId, process: ProcessId) -> Self {
        Self {
            world,
            ring,
            node,
            process,
            scratch: Vec::new(),
        }
    }

    /// The ring's name, as [`SimWorld::next`] says it.
    #[must_use]
    pub fn id(&self) -> RingId {
        self.ring
    }

    /// The process it belongs to.
    #[must_use]
    pub fn process(&self) -> ProcessId {
        self.process
    }

    /// True until its process was ended or crashed.
    #[must_use]
    pub fn alive(&self) -> bool {
        self.world.alive(self.process)
    }

    /// Starts a worker on this ring. The scheduler gives it its turns.
    pub fn begin<W: Worker<Self> + ?Sized>(&mut self, worker: &mut W) {
        worker.start(self);
        self.expect(worker.deadline());
    }

    /// Gives a worker one turn: some or all of what is ready, then `on_turn`.
    pub fn turn<W: Worker<Self> + ?Sized>(&mut self, worker: &mut W) {
        let mut ready = std::mem::take(&mut self.scratch);
        self.take(&mut ready);
        for completion in ready.drain(..) {
            // A process that died in the middle of its turn sees no more of it.
            if self.world.alive(self.process) {
                worker.on_completion(self, completion);
            }
        }
        self.scratch = ready;
        if self.world.alive(self.process) {
            worker.on_turn(self);
        }
        self.expect(worker.deadline());
    }

    /// Says when the worker wants its next turn.
    fn expect(&self, deadline: Option<Nanos>) {
        let mut state = self.world.lock();
        let clock = *state.clock(self.node);
        if let Some(ring) = state.rings.get_mut(self.ring) {
            ring.expect(deadline.map(Nanos::get), &clock);
        }
    }

    /// Takes what is ready: mostly all, sometimes only the first. True if there was anything,
    /// a wake included.
    fn take(&self, out: &mut Vec<Completion<SimSocket>>) -> bool {
        let mut state = self.world.lock();
        let only_one = !state.options.steady && state.random.one_in(8);
        let Some(ring) = state.rings.get_mut(self.ring) else {
            return false;
        };
        let woken = std::mem::take(&mut ring.woken);
        let count = if only_one {
            ring.ready.len().min(1)
        } else {
            ring.ready.len()
        };
        out.extend(ring.ready.drain(..count));
        woken || count > 0
    }

    fn caller(&self, token: Token) -> Caller {
        Caller {
            ring: self.ring,
            token,
            process: self.process,
            node: self.node,
        }
    }
}

impl Io for SimIo {
    type File = SimFile;
    type Socket = SimSocket;

    fn now(&self) -> Nanos {
        self.world.clock(self.node)
    }

    fn exact_now(&self) -> Nanos {
        self.world.clock(self.node)
    }

    fn random(&mut self) -> u64 {
        self.world.lock().random.bits()
    }

    fn submit(&mut self, token: Token, op: Op<SimFile, SimSocket>) {
        let caller = self.caller(token);
        let mut state = self.world.lock();
        // An error here means that the process is dead: nobody will look for the completion.
        let _ = crash_or(&mut state, self.process, |state| {
            state.submit(caller, op);
            Ok(())
        });
    }

    fn shutdown(&mut self, socket: &SimSocket) {
        let mut state = self.world.lock();
        if state.alive(self.process) {
            state.network.shutdown(socket.id());
            state.flush_network();
        }
    }

    fn steer(&self, _: &SimSocket, wanted: Congestion) -> Steering {
        let (name, refused) = match wanted {
            Congestion::Auto => (CongestionName::new("bbr"), None),
            Congestion::System => (CongestionName::new(SYSTEM), None),
            Congestion::Named(name) if IN_KERNEL.contains(&name.as_str()) => (Some(name), None),
            Congestion::Named(_) => (CongestionName::new(SYSTEM), Some(Errno::ENOENT)),
        };
        Steering {
            in_force: name,
            refused,
        }
    }

    fn waker(&self) -> Waker {
        let state = self.world.weak();
        Waker::new(Arc::new(SimWake {
            state,
            ring: self.ring,
        }))
    }

    /// For a worker that has the world to itself: runs the clock until this ring has something.
    fn wait(
        &mut self,
        deadline: Option<Nanos>,
        out: &mut Vec<Completion<SimSocket>>,
    ) -> Result<(), Errno> {
        loop {
            if !self.world.alive(self.process) {
                return Err(Errno::EIO);
            }
            let due = deadline.is_some_and(|deadline| deadline <= self.now());
            if self.take(out) || due {
                return Ok(());
            }
            let mut state = self.world.lock();
            state.network.close_dropped();
            state.flush_network();
            let clock = state.clock(self.node);
            let until = deadline.map(|deadline| clock.world(deadline.get()));
            if !state.advance(until.unwrap_or(u64::MAX - 1)) && until.is_none() {
                return Err(EDEADLK);
            }
        }
    }
}

impl Drop for SimIo {
    fn drop(&mut self) {
        self.world.lock().rings.remove(self.ring);
    }
}

/// Wakes a simulated ring.
struct SimWake {
    state: Weak<Mutex<State>>,
    ring: RingId,
}

impl Wake for SimWake {
    fn wake(&self) {
        let Some(state) = self.state.upgrade() else {
            return;
        };
        let mut state = state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(ring) = state.rings.get_mut(self.ring) {
            ring.woken = true;
        }
    }
}

impl State {
    fn submit(&mut self, caller: Caller, op: Op<SimFile, SimSocket>) {
        match op {
            Op::Connect { peer } => match self.node_of(caller.node, peer) {
                Some(node) => self.network.connect(caller, node, peer.port()),
                None => self.refuse(caller, Errno::ECONNREFUSED),
            },
            Op::Accept { listener } => self.network.accept(caller, listener),
            Op::Send { socket, slice } => self.network.send(caller, socket, slice),
            Op::Recv { socket, slice } => self.network.recv(caller, socket, slice),
            disk => match self.storage.begin(caller, disk) {
                Ok(op) => self.start_disk(op),
                Err(errno) => self.refuse(caller, errno),
            },
        }
        self.flush_network();
    }

    fn start_disk(&mut self, op: DiskOp) {
        let range = match op.work {
            DiskWork::Sync { .. } => self.options.sync_nanos,
            DiskWork::Read { .. } | DiskWork::Write { .. } => self.options.disk_nanos,
        };
        let at = self.now + self.latency(range);
        self.events.add(at, Event::Disk(op));
    }

    fn node_of(&self, from: NodeId, peer: SocketAddr) -> Option<NodeId> {
        if peer.ip().is_loopback() {
            return Some(from);
        }
        self.nodes().find(|node| node.address() == peer.ip())
    }
}
