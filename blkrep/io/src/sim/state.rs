//! The world's state: clock, hosts, processes, rings, and how one event leads to the next.
//!
//! Owns everything that is simulated and the order in which it happens. Entered by the world's
//! handle from outside and by rings and hosts from within, one at a time.

use super::clock::Clock;
use super::disk::Disk;
use super::event::{Event, Events};
use super::net::{Caller, NetOut, NetShape, Network, SimSocket};
use super::random::SimRandom;
use super::rings::Rings;
use super::storage::{DiskOp, SimFile, Storage};
use super::world::{Crash, Moment, NodeId, ProcessId, RingId, SimOptions};
use crate::host::Access;
use crate::memory::Region;
use crate::proactor::Completion;
use blkrep_types::Errno;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Turns that may happen at one instant before the world says that nobody waits any more.
const TURNS_AT_ONE_INSTANT_MAX: u32 = 100_000;

/// From an event of the network to its completion at a ring.
const ANSWER_NANOS: (u64, u64) = (1_000, 20_000);

#[derive(Debug)]
struct Process {
    node: NodeId,
    alive: bool,
    countdown: Option<(u32, Crash)>,
    /// It has stopped in a call, and nobody has said yet what becomes of its operations in flight.
    halted: bool,
}

#[derive(Debug, Default)]
struct Node {
    down: bool,
    clock: Clock,
    /// Calls of all its processes.
    calls: u64,
    /// The call in which the process that makes it stops.
    halt: Option<(u64, Moment)>,
    shared: BTreeMap<String, Arc<Region>>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) options: SimOptions,
    pub(super) random: SimRandom,
    pub(super) now: u64,
    pub(super) events: Events,
    pub(super) storage: Storage,
    pub(super) network: Network,
    pub(super) rings: Rings,
    nodes: Vec<Node>,
    processes: Vec<Process>,
    turns_now: u32,
}

impl State {
    pub(super) fn new(seed: u64, options: SimOptions) -> Self {
        let mut random = SimRandom::new(seed);
        let shape = NetShape {
            delay_nanos: options.net_nanos,
            window_bytes: options.window_bytes,
        };
        let network = Network::new(shape, random.fork());
        let sync_lies = options.sync_lies;
        Self {
            options,
            random,
            // A clock's zero means nothing: begin somewhere else.
            now: 1_000_000_000,
            events: Events::default(),
            storage: Storage::new(sync_lies),
            network,
            rings: Rings::default(),
            nodes: Vec::new(),
            processes: Vec::new(),
            turns_now: 0,
        }
    }

    pub(super) fn add_node(&mut self) -> NodeId {
        self.nodes.push(Node::default());
        NodeId(self.nodes.len() - 1)
    }

    /// A new process on a host, which is switched on if it was off.
    pub(super) fn start(&mut self, node: NodeId) -> ProcessId {
        if std::mem::take(&mut self.nodes[node.0].down) {
            self.network.host_back(node);
            self.flush_network();
        }
        self.processes.push(Process {
            node,
            alive: true,
            countdown: None,
            halted: false,
        });
        ProcessId(self.processes.len() - 1)
    }

    pub(super) fn crash_after(&mut self, process: ProcessId, calls: u32, crash: Crash) {
        self.processes[process.0].countdown = Some((calls, crash));
    }

    pub(super) fn crash_no_more(&mut self) {
        for process in &mut self.processes {
            process.countdown = None;
        }
        for node in &mut self.nodes {
            node.halt = None;
        }
    }

    pub(super) fn halt_at(&mut self, node: NodeId, call: u64, moment: Moment) {
        self.nodes[node.0].halt = Some((call, moment));
    }

    pub(super) fn calls(&self, node: NodeId) -> u64 {
        self.nodes[node.0].calls
    }

    pub(super) fn halted(&self, process: ProcessId) -> bool {
        self.processes[process.0].halted
    }

    /// Counts a call of a living process, and says where in it the process stops.
    pub(super) fn begin_call(&mut self, process: ProcessId) -> Option<Moment> {
        let node = &mut self.nodes[self.processes[process.0].node.0];
        let number = node.calls;
        node.calls += 1;
        let (_, moment) = node.halt.take_if(|(call, _)| *call == number)?;
        Some(moment)
    }

    /// Stops a process where it is: it does nothing more, and what it has in flight goes on until
    /// somebody decides.
    pub(super) fn halt(&mut self, process: ProcessId) {
        let state = &mut self.processes[process.0];
        (state.alive, state.halted) = (false, true);
        self.rings.remove_process(process);
        self.keep_shared(process);
    }

    /// Opens a file for a process.
    pub(super) fn open(
        &mut self,
        owner: (NodeId, ProcessId),
        path: &Path,
        access: Access,
    ) -> Result<SimFile, Errno> {
        let processes = &self.processes;
        self.storage
            .open(owner, path, access, |process| processes[process.0].alive)
    }

    pub(super) fn disk<R>(
        &mut self,
        node: NodeId,
        path: &Path,
        act: impl FnOnce(&mut Disk) -> R,
    ) -> R {
        let id = self.storage.find(node, path);
        let id = id.unwrap_or_else(|| panic!("{} exists on {node:?}", path.display()));
        act(&mut self.storage.stores[id].disk)
    }

    pub(super) fn alive(&self, process: ProcessId) -> bool {
        self.processes[process.0].alive
    }

    pub(super) fn powered(&self, node: NodeId) -> bool {
        !self.nodes[node.0].down
    }

    pub(super) fn clock(&self, node: NodeId) -> &Clock {
        &self.nodes[node.0].clock
    }

    pub(super) fn change_clock(&mut self, node: NodeId, change: impl FnOnce(&mut Clock, u64)) {
        let clock = &mut self.nodes[node.0].clock;
        change(clock, self.now);
        let processes = &self.processes;
        self.rings
            .set_clock(clock, |process| processes[process.0].node == node);
    }

    pub(super) fn shared(&mut self, node: NodeId) -> &mut BTreeMap<String, Arc<Region>> {
        &mut self.nodes[node.0].shared
    }

    /// Counts a call of a process, and says how it is to crash in it.
    pub(super) fn count(&mut self, process: ProcessId) -> Option<Crash> {
        let (left, crash) = self.processes[process.0].countdown.as_mut()?;
        if *left > 0 {
            *left -= 1;
            return None;
        }
        Some(*crash)
    }

    /// How a process is to crash if its next call is the one.
    pub(super) fn due(&self, process: ProcessId) -> Option<Crash> {
        let (left, crash) = self.processes[process.0].countdown?;
        (left == 0).then_some(crash)
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.nodes.len()).map(NodeId)
    }

    pub(super) fn crash(&mut self, process: ProcessId, crash: Crash) {
        match crash {
            Crash::Process => self.crash_process(process),
            Crash::Power => self.power_loss(self.processes[process.0].node),
        }
    }

    pub(super) fn crash_process(&mut self, process: ProcessId) {
        for (at, op) in self.end_process(process) {
            if self.random.one_in(4) {
                Storage::cancel(&op);
                continue;
            }
            let late = if self.random.one_in(2) {
                self.options.ghost_nanos_max
            } else {
                0
            };
            let late = self.random.between(0, late);
            self.events.add(at + late, Event::Disk(op));
        }
        self.flush_network();
    }

    /// As [`State::crash_process`], where somebody says of each operation in flight, in order of
    /// time, by how much later it finishes, if it does.
    pub(super) fn crash_process_with(
        &mut self,
        process: ProcessId,
        mut fate: impl FnMut(usize) -> Option<u64>,
    ) {
        for (index, (at, op)) in self.end_process(process).into_iter().enumerate() {
            match fate(index) {
                Some(late) => self.events.add(at + late, Event::Disk(op)),
                None => Storage::cancel(&op),
            }
        }
        self.flush_network();
    }

    /// Ends a process that lives or was stopped; its operations in flight.
    fn end_process(&mut self, process: ProcessId) -> Vec<(u64, DiskOp)> {
        let state = &mut self.processes[process.0];
        let halted = std::mem::take(&mut state.halted);
        if !std::mem::take(&mut state.alive) && !halted {
            return Vec::new();
        }
        self.rings.remove_process(process);
        self.network.process_gone(process);
        if !halted {
            self.keep_shared(process);
        }
        self.events.take_disk(|op| op.caller.process == process)
    }

    /// Memory that outlives the process is as it was at this instant, whatever the rest of the
    /// worker's turn still does to its own mapping.
    fn keep_shared(&mut self, process: ProcessId) {
        let node = self.processes[process.0].node;
        for region in self.nodes[node.0].shared.values_mut() {
            *region = region.duplicate();
        }
    }

    /// A host without power: nothing of it runs.
    pub(super) fn go_dark(&mut self, node: NodeId) {
        for index in 0..self.processes.len() {
            let process = &mut self.processes[index];
            if process.node != node {
                continue;
            }
            process.halted = false;
            if std::mem::take(&mut process.alive) {
                self.rings.remove_process(ProcessId(index));
            }
        }
        let host = &mut self.nodes[node.0];
        host.shared.clear();
        host.down = true;
        self.network.host_gone(node);
        self.flush_network();
    }

    /// A ring whose worker has something to see, by chance among several.
    pub(super) fn runnable(&mut self) -> Option<RingId> {
        let now = self.now;
        let count = self.rings.ready(now);
        if count == 0 {
            return None;
        }
        self.turns_now += 1;
        assert!(
            self.turns_now < TURNS_AT_ONE_INSTANT_MAX,
            "workers take turns at {} without end",
            self.now
        );
        let chosen = if count == 1 || self.options.steady {
            0
        } else {
            self.random.index(count)
        };
        self.rings.nth_ready(now, chosen)
    }

    /// Goes to the next instant at which something happens; false if that is after `until`.
    pub(super) fn advance(&mut self, until: u64) -> bool {
        let deadline = self.rings.deadline();
        let event = self.events.next_at();
        let next = [deadline, event].into_iter().flatten().min();
        let Some(next) = next.filter(|next| *next <= until) else {
            self.go_to(until);
            return false;
        };
        self.go_to(next);
        if event.is_some_and(|at| at <= next) {
            let event = self.events.pop().expect("just seen");
            self.happen(event);
        }
        true
    }

    fn go_to(&mut self, at: u64) {
        if at > self.now {
            self.now = at;
            self.turns_now = 0;
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Disk(op) => self.finish(op),
            Event::Net(event) => {
                self.network.happen(event);
                self.flush_network();
            }
            Event::Answer(caller, completion) => {
                if let Some(ring) = self.rings.get_mut(caller.ring) {
                    ring.ready.push_back(completion);
                }
            }
            Event::Wake(ring) => {
                if let Some(ring) = self.rings.get_mut(ring) {
                    ring.woken = true;
                }
            }
        }
    }

    fn finish(&mut self, op: DiskOp) {
        let stalled = self.storage.stores[op.file.disk()].stalled_until;
        if stalled > self.now {
            let later = stalled + self.random.below(100_000);
            return self.events.add(later, Event::Disk(op));
        }
        let heard = self.rings.get_mut(op.caller.ring).is_some();
        let result = self.storage.finish(&op, heard, &mut self.random);
        let Some(ring) = self.rings.get_mut(op.caller.ring) else {
            return;
        };
        assert!(
            !self.options.check_memory || Storage::unchanged(&op),
            "the memory of a write to {} changed while it was in flight",
            op.file.path().display()
        );
        ring.ready.push_back(Completion {
            token: op.caller.token,
            result,
            socket: None,
        });
    }

    /// Puts what the network wants on the clock.
    pub(super) fn flush_network(&mut self) {
        for out in std::mem::take(&mut self.network.out) {
            match out {
                NetOut::Later(delay, event) => {
                    self.events.add(self.now + delay, Event::Net(event));
                }
                NetOut::Answer(caller, result, socket) => {
                    let socket = socket.map(|id| SimSocket::new(id, &self.network.closed));
                    let token = caller.token;
                    let soon = self.now + self.answer_nanos();
                    let completion = Completion {
                        token,
                        result,
                        socket,
                    };
                    self.events.add(soon, Event::Answer(caller, completion));
                }
            }
        }
    }

    /// How long an answer of the network takes to its ring.
    fn answer_nanos(&mut self) -> u64 {
        if self.options.steady {
            return ANSWER_NANOS.0;
        }
        self.random.between(ANSWER_NANOS.0, ANSWER_NANOS.1)
    }

    /// How long an operation takes.
    pub(super) fn latency(&mut self, (low, high): (u64, u64)) -> u64 {
        let slow = self.random.one_in(self.options.slow_one_in);
        let nanos = self.random.between(low, high);
        if slow { nanos * 100 } else { nanos }
    }

    /// Finishes the network's immediate answer for a caller without a connection.
    pub(super) fn refuse(&mut self, caller: Caller, errno: Errno) {
        self.network
            .out
            .push(NetOut::Answer(caller, Err(errno), None));
        self.flush_network();
    }
}
