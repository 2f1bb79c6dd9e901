//! A network of byte streams that arrive in order, late, in pieces, or not at all.
//!
//! Owns connections and listeners as the kernels of all nodes see them. Operations and deliveries
//! enter; answers and later deliveries leave through [`Network::out`]. Nothing is lost within a
//! stream (that is TCP's part); a cut delays it until it is healed or somebody gives up.

mod trouble;
mod weather;

pub use weather::Garble;

use super::random::SimRandom;
use super::world::{NodeId, ProcessId, RingId};
use crate::memory::Slice;
use crate::proactor::Token;
use blkrep_types::Errno;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use weather::Weather;

/// Connections that wait for an accept: as the kernel, the next one is refused.
const BACKLOG_MAX: usize = 16;

/// How often a connection is tried, a second apart, before it has timed out: the real ring's limit.
const CONNECT_TRIES: u32 = 10;
const CONNECT_RETRY_NANOS: u64 = 1_000_000_000;

const EPIPE: Errno = Errno::new(32);
const EADDRINUSE: Errno = Errno::new(98);

/// One end of a connection, or a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::sim) enum SocketId {
    /// A connection's end: 0 connected, 1 accepted.
    End(u64, usize),
    /// A listener of a node, by port.
    Listener(NodeId, u16),
}

/// Sockets whose last handle is gone; the world closes them when it gets to run.
pub(in crate::sim) type Closed = Arc<Mutex<Vec<SocketId>>>;

/// A simulated connection or listener; clones share it, the last one closes it.
#[derive(Debug, Clone)]
pub struct SimSocket(Arc<SocketHandle>);

#[derive(Debug)]
struct SocketHandle {
    id: SocketId,
    closed: Closed,
}

impl SimSocket {
    pub(in crate::sim) fn new(id: SocketId, closed: &Closed) -> Self {
        Self(Arc::new(SocketHandle {
            id,
            closed: Arc::clone(closed),
        }))
    }

    pub(in crate::sim) fn id(&self) -> SocketId {
        self.0.id
    }
}

impl Drop for SocketHandle {
    fn drop(&mut self) {
        self.closed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(self.id);
    }
}

/// Who waits for an answer.
#[derive(Debug, Clone, Copy)]
pub(in crate::sim) struct Caller {
    pub(in crate::sim) ring: RingId,
    pub(in crate::sim) token: Token,
    pub(in crate::sim) process: ProcessId,
    pub(in crate::sim) node: NodeId,
}

/// What the network wants to happen later.
#[derive(Debug)]
pub(in crate::sim) enum NetEvent {
    /// The front segment sent by this end arrives.
    Deliver(u64, usize),
    /// A connection is tried once more.
    Try {
        caller: Caller,
        node: NodeId,
        port: u16,
        tries: u32,
    },
}

/// What leaves the network.
#[derive(Debug)]
pub(in crate::sim) enum NetOut {
    /// An operation completed.
    Answer(Caller, Result<u32, Errno>, Option<SocketId>),
    /// An event after so many nanoseconds.
    Later(u64, NetEvent),
}

#[derive(Debug)]
enum Segment {
    Data(Vec<u8>),
    /// The sender has shut down or closed.
    Fin,
    /// The sender is gone without having read everything.
    Reset,
}

#[derive(Debug)]
struct Pending {
    caller: Caller,
    /// Keeps the socket open until the answer, as a ring does.
    _socket: SimSocket,
    slice: Slice,
}

#[derive(Debug)]
struct End {
    node: NodeId,
    /// The process that holds it; none once it is closed or its host lost power.
    owner: Option<ProcessId>,
    receiving: VecDeque<Pending>,
    sending: VecDeque<Pending>,
    inbox: VecDeque<u8>,
    peer_ended: bool,
    reset: bool,
    shut: bool,
    /// On the way to the other end.
    wire: VecDeque<Segment>,
    wire_bytes: usize,
    /// Deliveries held back by a cut or a dead host.
    stalled: u32,
    /// Nothing of what is on the way, or ever will be, arrives.
    mute: bool,
}

impl End {
    fn new(node: NodeId, owner: ProcessId) -> Self {
        Self {
            node,
            owner: Some(owner),
            receiving: VecDeque::new(),
            sending: VecDeque::new(),
            inbox: VecDeque::new(),
            peer_ended: false,
            reset: false,
            shut: false,
            wire: VecDeque::new(),
            wire_bytes: 0,
            stalled: 0,
            mute: false,
        }
    }
}

#[derive(Debug)]
struct Listener {
    process: ProcessId,
    accepting: VecDeque<(Caller, SimSocket)>,
    backlog: VecDeque<u64>,
}

/// How the network behaves.
#[derive(Debug, Clone, Copy)]
pub(in crate::sim) struct NetShape {
    pub(in crate::sim) delay_nanos: (u64, u64),
    pub(in crate::sim) window_bytes: usize,
}

/// All connections and listeners.
#[derive(Debug)]
pub(in crate::sim) struct Network {
    shape: NetShape,
    random: SimRandom,
    listeners: BTreeMap<(NodeId, u16), Listener>,
    connections: BTreeMap<u64, [End; 2]>,
    cuts: BTreeSet<(NodeId, NodeId)>,
    pub(in crate::sim) weather: Weather,
    down: BTreeSet<NodeId>,
    next_connection: u64,
    next_port: u16,
    pub(in crate::sim) closed: Closed,
    pub(in crate::sim) out: Vec<NetOut>,
}

impl Network {
    pub(in crate::sim) fn new(shape: NetShape, random: SimRandom) -> Self {
        Self {
            shape,
            random,
            listeners: BTreeMap::new(),
            connections: BTreeMap::new(),
            cuts: BTreeSet::new(),
            weather: Weather::default(),
            down: BTreeSet::new(),
            next_connection: 1,
            next_port: 40_000,
            closed: Closed::default(),
            out: Vec::new(),
        }
    }

    pub(in crate::sim) fn listen(
        &mut self,
        node: NodeId,
        process: ProcessId,
        port: u16,
    ) -> Result<(SimSocket, u16), Errno> {
        let port = if port == 0 {
            self.free_port(node)
        } else {
            port
        };
        if self.listeners.contains_key(&(node, port)) {
            return Err(EADDRINUSE);
        }
        let listener = Listener {
            process,
            accepting: VecDeque::new(),
            backlog: VecDeque::new(),
        };
        self.listeners.insert((node, port), listener);
        Ok((
            SimSocket::new(SocketId::Listener(node, port), &self.closed),
            port,
        ))
    }

    fn free_port(&mut self, node: NodeId) -> u16 {
        while self.listeners.contains_key(&(node, self.next_port)) {
            self.next_port = self.next_port.checked_add(1).unwrap_or(40_000);
        }
        self.next_port
    }

    pub(in crate::sim) fn connect(&mut self, caller: Caller, node: NodeId, port: u16) {
        let there = self.delay_on((caller.node, node));
        let delay = there + self.delay_on((node, caller.node));
        let tries = CONNECT_TRIES;
        self.later(
            delay,
            NetEvent::Try {
                caller,
                node,
                port,
                tries,
            },
        );
    }

    fn try_connect(&mut self, caller: Caller, node: NodeId, port: u16, tries: u32) {
        if !self.passes(caller.node, node) || !self.passes(node, caller.node) {
            if tries <= 1 {
                return self.answer(caller, Err(Errno::ETIMEDOUT), None);
            }
            let again = NetEvent::Try {
                caller,
                node,
                port,
                tries: tries - 1,
            };
            return self.later(CONNECT_RETRY_NANOS, again);
        }
        let twin = self.weather.doubles((caller.node, node));
        let before = twin && self.random.one_in(2);
        if before {
            self.arrive_twice(caller.node, node, port);
        }
        match self.arrive(Some(caller.process), caller.node, node, port) {
            Some(id) => self.answer(caller, Ok(0), Some(SocketId::End(id, 0))),
            None => self.answer(caller, Err(Errno::ECONNREFUSED), None),
        }
        if twin && !before {
            self.arrive_twice(caller.node, node, port);
        }
        self.match_accepts(node, port);
    }

    /// A connection reaches a listener that has room for it.
    fn arrive(
        &mut self,
        owner: Option<ProcessId>,
        from: NodeId,
        node: NodeId,
        port: u16,
    ) -> Option<u64> {
        let listener = self.listeners.get_mut(&(node, port))?;
        if listener.backlog.len() >= BACKLOG_MAX {
            return None;
        }
        let id = self.next_connection;
        self.next_connection += 1;
        listener.backlog.push_back(id);
        let mine = End {
            owner,
            ..End::new(from, ProcessId::default())
        };
        let ends = [mine, End::new(node, listener.process)];
        self.connections.insert(id, ends);
        Some(id)
    }

    /// A connection that its maker knows nothing of: it says nothing, or has ended.
    fn arrive_twice(&mut self, from: NodeId, node: NodeId, port: u16) {
        if let Some(id) = self.arrive(None, from, node, port)
            && self.random.one_in(2)
        {
            self.transmit(id, 0, Segment::Fin);
        }
    }

    pub(in crate::sim) fn accept(&mut self, caller: Caller, socket: SimSocket) {
        let SocketId::Listener(node, port) = socket.id() else {
            return self.answer(caller, Err(Errno::EINVAL), None);
        };
        match self.listeners.get_mut(&(node, port)) {
            Some(listener) => listener.accepting.push_back((caller, socket)),
            None => return self.answer(caller, Err(Errno::EINVAL), None),
        }
        self.match_accepts(node, port);
    }

    fn match_accepts(&mut self, node: NodeId, port: u16) {
        while let Some(listener) = self.listeners.get_mut(&(node, port)) {
            if listener.accepting.is_empty() {
                return;
            }
            let Some(id) = listener.backlog.pop_front() else {
                return;
            };
            let (caller, _) = listener.accepting.pop_front().expect("just seen");
            self.answer(caller, Ok(0), Some(SocketId::End(id, 1)));
        }
    }

    pub(in crate::sim) fn send(&mut self, caller: Caller, socket: SimSocket, slice: Slice) {
        let SocketId::End(id, end) = socket.id() else {
            return self.answer(caller, Err(Errno::EINVAL), None);
        };
        let ends = self
            .connections
            .get_mut(&id)
            .expect("an open socket has its connection");
        ends[end].sending.push_back(Pending {
            caller,
            _socket: socket,
            slice,
        });
        self.pump_sends(id, end);
    }

    pub(in crate::sim) fn recv(&mut self, caller: Caller, socket: SimSocket, slice: Slice) {
        let SocketId::End(id, end) = socket.id() else {
            return self.answer(caller, Err(Errno::EINVAL), None);
        };
        let ends = self
            .connections
            .get_mut(&id)
            .expect("an open socket has its connection");
        ends[end].receiving.push_back(Pending {
            caller,
            _socket: socket,
            slice,
        });
        self.pump_receives(id, end);
    }

    /// Takes bytes of waiting sends as far as the window goes.
    fn pump_sends(&mut self, id: u64, end: usize) {
        loop {
            let Some(ends) = self.connections.get_mut(&id) else {
                return;
            };
            let unread = ends[1 - end].inbox.len();
            let me = &mut ends[end];
            let Some(first) = me.sending.front() else {
                return;
            };
            let caller = first.caller;
            if me.shut || me.reset {
                let errno = if me.reset { Errno::ECONNRESET } else { EPIPE };
                me.sending.pop_front();
                self.answer(caller, Err(errno), None);
                continue;
            }
            let room = self
                .shape
                .window_bytes
                .saturating_sub(me.wire_bytes + unread);
            let wanted = first.slice.len();
            if room == 0 && wanted > 0 {
                return;
            }
            let taken = piece(&mut self.random, wanted.min(room));
            let bytes = first.slice.with(|bytes| bytes[..taken].to_vec());
            me.sending.pop_front();
            let sent = u32::try_from(taken).expect("a window is small");
            self.answer(caller, Ok(sent), None);
            if taken > 0 {
                self.transmit(id, end, Segment::Data(bytes));
            }
        }
    }

    fn transmit(&mut self, id: u64, end: usize, segment: Segment) {
        let Some(ends) = self.connections.get(&id) else {
            return;
        };
        let delay = self.delay_on((ends[end].node, ends[1 - end].node));
        let ends = self.connections.get_mut(&id).expect("just seen");
        if let Segment::Data(bytes) = &segment {
            ends[end].wire_bytes += bytes.len();
        }
        ends[end].wire.push_back(segment);
        self.later(delay, NetEvent::Deliver(id, end));
    }

    /// Gives bytes that have arrived to waiting receives.
    fn pump_receives(&mut self, id: u64, end: usize) {
        loop {
            let Some(ends) = self.connections.get_mut(&id) else {
                return;
            };
            let me = &mut ends[end];
            let Some(first) = me.receiving.front() else {
                return;
            };
            let caller = first.caller;
            let result = if me.shut {
                Ok(0)
            } else if !me.inbox.is_empty() {
                let len = piece(&mut self.random, first.slice.len().min(me.inbox.len()));
                take(&mut me.inbox, len, &first.slice);
                Ok(u32::try_from(len).expect("a window is small"))
            } else if me.reset {
                Err(Errno::ECONNRESET)
            } else if me.peer_ended {
                Ok(0)
            } else {
                return;
            };
            me.receiving.pop_front();
            self.answer(caller, result, None);
            self.pump_sends(id, 1 - end);
        }
    }

    pub(in crate::sim) fn happen(&mut self, event: NetEvent) {
        match event {
            NetEvent::Try {
                caller,
                node,
                port,
                tries,
            } => {
                self.try_connect(caller, node, port, tries);
            }
            NetEvent::Deliver(id, end) => self.deliver(id, end),
        }
    }

    fn deliver(&mut self, id: u64, end: usize) {
        let Some(ends) = self.connections.get(&id) else {
            return;
        };
        let (from, to) = (ends[end].node, ends[1 - end].node);
        let passes = self.passes(from, to) && !ends[end].mute;
        let ends = self.connections.get_mut(&id).expect("just seen");
        if !passes {
            ends[end].stalled += 1;
            return;
        }
        let Some(segment) = ends[end].wire.pop_front() else {
            return;
        };
        let (mine, other) = two(ends, end);
        match segment {
            Segment::Data(mut bytes) => {
                mine.wire_bytes -= bytes.len();
                self.weather
                    .garble((from, to), &mut bytes, &mut self.random);
                if other.owner.is_none() {
                    // The host knows nothing of such a connection: it says so.
                    mine.reset = true;
                } else if !other.shut {
                    other.inbox.extend(bytes);
                }
            }
            Segment::Fin => other.peer_ended = true,
            Segment::Reset => other.reset = true,
        }
        for end in [0, 1] {
            self.pump_receives(id, end);
            self.pump_sends(id, end);
        }
        self.bury(id);
    }

    /// Forgets a connection that nobody holds.
    fn bury(&mut self, id: u64) {
        let gone = self
            .connections
            .get(&id)
            .is_some_and(|ends| ends.iter().all(|end| end.owner.is_none()));
        if gone {
            self.connections.remove(&id);
        }
    }

    fn ends(&self, which: impl Fn(&End) -> bool) -> Vec<(u64, usize)> {
        let all = self.connections.iter();
        all.flat_map(|(id, ends)| [(*id, 0, &ends[0]), (*id, 1, &ends[1])])
            .filter(|(_, _, end)| which(end))
            .map(|(id, index, _)| (id, index))
            .collect()
    }

    fn passes(&self, from: NodeId, to: NodeId) -> bool {
        !self.cuts.contains(&(from, to)) && !self.down.contains(&to) && !self.down.contains(&from)
    }

    /// A delay from one node to another.
    fn delay_on(&mut self, way: (NodeId, NodeId)) -> u64 {
        self.delay() + self.weather.late(way, &mut self.random)
    }

    fn delay(&mut self) -> u64 {
        let (low, high) = self.shape.delay_nanos;
        self.random.between(low, high)
    }

    fn later(&mut self, delay: u64, event: NetEvent) {
        self.out.push(NetOut::Later(delay, event));
    }

    fn answer(&mut self, caller: Caller, result: Result<u32, Errno>, socket: Option<SocketId>) {
        self.out.push(NetOut::Answer(caller, result, socket));
    }
}

/// A length that a kernel may move at once: mostly all, sometimes a part, at least one byte.
fn piece(random: &mut SimRandom, len: usize) -> usize {
    if len > 1 && random.one_in(4) {
        1 + random.index(len)
    } else {
        len
    }
}

/// Moves the first bytes of an inbox to the start of a slice.
fn take(inbox: &mut VecDeque<u8>, len: usize, slice: &Slice) {
    let (front, back) = inbox.as_slices();
    let split = len.min(front.len());
    slice.write(0, &front[..split]);
    slice.write(split, &back[..len - split]);
    inbox.drain(..len);
}

fn two(ends: &mut [End; 2], end: usize) -> (&mut End, &mut End) {
    let [first, second] = ends;
    if end == 0 {
        (first, second)
    } else {
        (second, first)
    }
}
