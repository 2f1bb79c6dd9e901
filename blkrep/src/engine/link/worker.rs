//! The link's thread: connection attempts, sends, receives, time.
//!
//! Owns one socket at a time and what is in flight on it. Completions and time enter; operations
//! leave. A connection's memory is used again only after its last operation has completed.
//!
//! ```text
//!  Idle --attempt--> Connecting --socket--> Open --end--> Closing --drained--> Idle
//!                     └--time-out or refusal--> Idle
//! ```

use super::control::{LinkConnection, LinkControl, LinkEvent, LinkSettings, LinkWatch};
use super::outbox::{OUTBOX_BYTES, Outbox, Taken};
use super::pacing::Pacing;
use super::packing::Packing;
use super::session::{Ending, Lines, Next, Session, hello_message};
use super::sides::{Side, side_of};
use super::simulated::NullPeer;
use super::steering::Steered;
use crate::engine::source::{Batch, LinkPort, PORT_TOKEN};
use blkrep_io::{Completion, Io, Op, Region, Token, Worker};
use blkrep_types::{Errno, Nanos};
use blkrep_wire::limits::{TARGET_BODY_MAX, buffer_bytes};
use blkrep_wire::{Decoder, Encoder, FarewellCode, Message};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Memory of one link's driver.
pub const LINK_MEMORY_BYTES: usize = OUTBOX_BYTES + buffer_bytes(TARGET_BODY_MAX);

/// Attempts that the kernel may still be busy with after we gave up waiting for them.
const ATTEMPTS_MAX: u32 = 4;

/// How long the peer may take to close after our last word. Closing first, with bytes of the peer
/// unread, would make the kernel throw that word away.
const LEAVE_TIME: Duration = Duration::from_secs(1);

/// How long a handshake may take, also with a peer that lives: it may have to make its files.
const HANDSHAKE_TIME: Duration = Duration::from_secs(60);

const CONNECT: u64 = 1;
const SEND: u64 = 2;
const RECV: u64 = 3;

/// One connection and what is in flight on it.
#[derive(Debug)]
struct Wire<S> {
    /// None of a link that sends nothing.
    socket: Option<S>,
    sending: bool,
    receiving: bool,
    /// Bytes that the limit granted to the send under way.
    granted: usize,
    opened: Nanos,
    last_heard: Nanos,
    last_said: Nanos,
}

impl<S> Wire<S> {
    fn shut<I: Io<Socket = S>>(&self, io: &mut I) {
        if let Some(socket) = &self.socket {
            io.shutdown(socket);
        }
    }
}

/// What the driver does.
#[derive(Debug)]
enum State<S> {
    /// No connection; the next attempt is due at this time, or waits for a command.
    Idle { due: Option<Nanos> },
    /// An attempt is being made since then.
    Connecting { since: Nanos },
    /// A connection, with its course.
    Open {
        wire: Wire<S>,
        session: Box<Session>,
    },
    /// The last word is said; the peer is to close, until then.
    Leaving {
        wire: Wire<S>,
        until: Nanos,
        next: Next,
    },
    /// The socket is shut; its operations are coming back.
    Closing { wire: Wire<S>, next: Next },
    /// Never again.
    Finished,
}

/// The driver of one link's connection, on a thread and ring of its own.
pub struct LinkWorker<I: Io, P: LinkPort<I>> {
    pub(super) port: P,
    control: LinkControl,
    pub(super) settings: LinkSettings,
    state: State<I::Socket>,
    pub(super) lines: Lines,
    pub(super) pacing: Pacing,
    pub(super) steered: Steered,
    /// Further connections, made when they are wanted first.
    pub(super) sides: Vec<Side<I::Socket>>,
    /// The connection that is asked first whether it has something to send.
    first: usize,
    /// Tells operations of this connection from those of earlier ones.
    epoch: u64,
    attempts: u32,
    stopping: bool,
    /// There is to be no connection for now.
    held: bool,
}

impl<I: Io, P: LinkPort<I>> fmt::Debug for LinkWorker<I, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LinkWorker({:?}, {:?})", self.control, self.state)
    }
}

impl<I: Io, P: LinkPort<I>> LinkWorker<I, P> {
    /// A driver that connects as soon as it runs and its group wants it to.
    #[must_use]
    pub fn new(port: P, control: LinkControl, watch: Arc<dyn LinkWatch>) -> Self {
        let buffer = Region::heap(buffer_bytes(TARGET_BODY_MAX)).whole();
        Self {
            port,
            pacing: Pacing::new(control.settings().pace),
            settings: control.settings(),
            control,
            state: State::Idle {
                due: Some(Nanos::default()),
            },
            lines: Lines {
                encoder: Encoder::new(),
                decoder: Decoder::new(buffer, TARGET_BODY_MAX),
                outbox: Outbox::new(),
                sides: Vec::new(),
                version: 0,
                packing: Packing::default(),
                null: None,
                snapshot: super::LinkSnapshot::default(),
                watch,
                batch: Batch {
                    records: Vec::new(),
                    more: false,
                },
                entries: Vec::new(),
            },
            steered: Steered::default(),
            sides: Vec::new(),
            first: 0,
            epoch: 0,
            attempts: 0,
            stopping: false,
            held: false,
        }
    }

    const fn token(&self, what: u64) -> Token {
        self.epoch << 8 | what
    }

    fn attempt(&mut self, io: &mut I) {
        self.epoch += 1;
        if self.settings.simulated {
            self.open(io, None);
            return;
        }
        self.attempts += 1;
        let token = self.token(CONNECT);
        io.submit(
            token,
            Op::Connect {
                peer: self.settings.peer,
            },
        );
        self.state = State::Connecting { since: io.now() };
        self.lines.snapshot.connection = LinkConnection::Connecting;
    }

    fn on_connected(&mut self, io: &mut I, completion: Completion<I::Socket>, current: bool) {
        self.attempts -= 1;
        let waited_for = current && matches!(self.state, State::Connecting { .. });
        match (completion.result, completion.socket) {
            (Ok(_), Some(socket)) if waited_for => self.open(io, Some(socket)),
            (_, Some(socket)) => io.shutdown(&socket),
            (Err(errno), None) if waited_for => self.attempt_failed(io, errno),
            (Ok(_), None) if waited_for => self.attempt_failed(io, Errno::EIO),
            (_, None) => {}
        }
    }

    fn attempt_failed(&mut self, io: &I, errno: Errno) {
        let peer = self.settings.peer;
        let action = "check that blkrepd runs there and listens on that address";
        self.lines.snapshot.last_error =
            Some(format!("cannot connect to {peer}: {errno}; {action}"));
        self.idle(io, &Next::Retry);
    }

    fn open(&mut self, io: &mut I, socket: Option<I::Socket>) {
        let now = io.now();
        if let Some(socket) = &socket {
            self.steer(io, socket);
        }
        self.lines.encoder.reset();
        self.lines.decoder.reset();
        self.lines.snapshot.proven = None;
        let facts = self.port.hello();
        let hello = hello_message(&facts, &self.settings);
        let meter = self.lines.null.take().map(|null| null.meter);
        if socket.is_none() {
            let held = self.port.status(now).durable;
            let null = NullPeer::new(&facts, held, now, &self.settings, meter);
            self.lines.null = Some(null);
        }
        let session = Box::new(Session::greet(
            facts,
            hello,
            self.settings.connections,
            &mut self.lines,
        ));
        let wire = Wire {
            socket,
            opened: now,
            sending: false,
            receiving: false,
            granted: 0,
            last_heard: now,
            last_said: now,
        };
        self.state = State::Open { wire, session };
        self.receive(io);
    }

    /// Waits for the next attempt.
    fn idle(&mut self, io: &I, next: &Next) {
        let snapshot = &mut self.lines.snapshot;
        let pause = self.settings.reconnect_interval;
        let pause = match next {
            Next::Retry => Some(pause),
            Next::Later => Some(pause.max(self.settings.progress_timeout)),
            Next::Refused(_) => None,
        };
        let pause = pause.filter(|_| self.settings.reconnect);
        let due = pause.map(|pause| io.now().after(pause));
        snapshot.connection = match next {
            Next::Retry | Next::Later => LinkConnection::Down,
            Next::Refused(_) => LinkConnection::Refused,
        };
        self.state = State::Idle { due };
    }

    /// Ends the connection: tells group and watch, says the last word, or shuts it at once.
    fn end(&mut self, io: &mut I, ending: Ending) {
        let state = std::mem::replace(&mut self.state, State::Finished);
        let State::Open { wire, session } = state else {
            self.state = state;
            return;
        };
        if session.is_streaming() {
            let reason = ending.text.clone();
            self.lines.watch.event(&LinkEvent::Down { reason });
        }
        self.close_sides(io);
        self.port.down(io, ending.reason);
        self.lines.snapshot.connected_since = None;
        self.lines.snapshot.last_error = Some(ending.text.clone());
        if let Next::Refused(code) = ending.next {
            self.lines.refuse(code, ending.text.clone());
        }
        let next = ending.next;
        self.state = match ending.farewell {
            Some(code) if wire.socket.is_some() && self.lines.farewell(code, &ending.text) => {
                let until = io.now().after(LEAVE_TIME);
                State::Leaving { wire, until, next }
            }
            Some(_) | None => {
                wire.shut(io);
                State::Closing { wire, next }
            }
        };
    }

    fn shut(&mut self, io: &mut I) {
        let state = std::mem::replace(&mut self.state, State::Finished);
        self.state = match state {
            State::Leaving { wire, next, .. } => {
                wire.shut(io);
                State::Closing { wire, next }
            }
            other => other,
        };
    }

    /// The first connection, where there is one.
    pub(super) fn first_socket(&mut self) -> Option<I::Socket> {
        self.wire()?.socket.clone()
    }

    fn wire(&mut self) -> Option<&mut Wire<I::Socket>> {
        match &mut self.state {
            State::Open { wire, .. }
            | State::Leaving { wire, .. }
            | State::Closing { wire, .. } => Some(wire),
            State::Idle { .. } | State::Connecting { .. } | State::Finished => None,
        }
    }

    fn receive(&mut self, io: &mut I) {
        let token = self.token(RECV);
        let (State::Open { wire, .. } | State::Leaving { wire, .. }) = &mut self.state else {
            return;
        };
        if let Some(socket) = wire.socket.clone().filter(|_| !wire.receiving) {
            wire.receiving = true;
            let slice = self.lines.decoder.space();
            io.submit(token, Op::Recv { socket, slice });
        }
    }

    /// Sends what waits, on every connection, beginning with another one each time: a limit that they share
    /// may not reach to the last of them.
    fn send(&mut self, io: &mut I) {
        let ways = 1 + self.sides.len();
        self.first = (self.first + 1) % ways;
        for way in (self.first..ways).chain(0..self.first) {
            let held = match way.checked_sub(1) {
                None => {
                    self.send_main(io);
                    self.pacing.held_until().is_some()
                }
                Some(at) => !self.side_send(io, at),
            };
            if held {
                self.held_back(io.now());
                return;
            }
        }
    }

    /// What waits to be sent waits for a limit of ours.
    fn held_back(&mut self, now: Nanos) {
        if let State::Open { session, .. } = &mut self.state {
            session.progress.held_back(now);
        }
    }

    fn send_main(&mut self, io: &mut I) {
        let (token, now) = (self.token(SEND), io.now());
        let allowed = self.allowed(now);
        if allowed == 0 {
            return;
        }
        let (State::Open { wire, .. } | State::Leaving { wire, .. }) = &mut self.state else {
            return;
        };
        let Some(socket) = wire.socket.clone() else {
            wire.last_said = now;
            self.lines.outbox.discard();
            return;
        };
        if let Some(slice) = self.lines.outbox.next_send(now, allowed) {
            wire.sending = true;
            wire.granted = allowed;
            wire.last_said = now;
            io.submit(token, Op::Send { socket, slice });
        }
    }

    /// How many bytes may be sent now. The last words of a connection wait for no limit.
    fn allowed(&mut self, now: Nanos) -> usize {
        self.pacing.forget();
        if !matches!(self.state, State::Open { .. }) {
            return usize::MAX;
        }
        let Some(waiting) = self.lines.outbox.waiting(now) else {
            return 0;
        };
        self.pacing.ask(now, waiting).unwrap_or(0)
    }

    /// The line took a buffer of one connection; all of them together take as many times that.
    pub(super) fn line_took(&mut self, now: Nanos, mut taken: Taken) {
        taken.bytes = taken
            .bytes
            .saturating_mul(self.lines.snapshot.connections.max(1));
        self.lines.packing.line_took(now, &taken);
    }

    /// Does something with the session, if there is one.
    pub(super) fn with_session(
        &mut self,
        io: &mut I,
        body: impl FnOnce(&mut Self, &mut I, &mut Session),
    ) {
        let state = std::mem::replace(&mut self.state, State::Finished);
        self.state = match state {
            State::Open { wire, mut session } => {
                body(self, io, &mut session);
                State::Open { wire, session }
            }
            other => other,
        };
    }

    fn on_sent(&mut self, io: &mut I, result: Result<u32, Errno>) {
        let now = io.now();
        let wire = self.wire().expect("a send belongs to a connection");
        wire.sending = false;
        let granted = std::mem::take(&mut wire.granted);
        let waited = now.since(wire.last_said);
        if let State::Open { session, .. } = &mut self.state {
            session.progress.line_took(now, waited);
        }
        let lost = match result {
            Ok(0) => Some("the target closed the connection".to_owned()),
            Ok(count) => {
                let count = usize::try_from(count).expect("64-bit platform");
                self.pacing.sent(granted, count);
                if let Some(taken) = self.lines.outbox.sent(now, count) {
                    self.line_took(now, taken);
                }
                self.lines.snapshot.wire_bytes_sent += count as u64;
                None
            }
            Err(errno) => Some(format!("sending failed: {errno}")),
        };
        if let Some(text) = lost {
            self.broken(io, text);
        }
    }

    fn on_received(&mut self, io: &mut I, result: Result<u32, Errno>) {
        let now = io.now();
        let unproven = self.lines.snapshot.proven.is_none();
        let wire = self.wire().expect("a receive belongs to a connection");
        wire.receiving = false;
        match result {
            Ok(0) => self.broken(io, "the target closed the connection".to_owned()),
            Err(errno) => self.broken(io, format!("receiving failed: {errno}")),
            Ok(count) => {
                wire.last_heard = now;
                if let Some(socket) = wire.socket.as_ref().filter(|_| unproven) {
                    self.lines.snapshot.proven = io.line(socket).node;
                }
                let count = usize::try_from(count).expect("64-bit platform");
                self.lines.decoder.received(count);
                self.lines.snapshot.wire_bytes_received += count as u64;
                self.lines.snapshot.last_heard = Some(now);
                self.take_frames(io);
                self.receive(io);
            }
        }
    }

    /// The connection is of no more use, whatever was still to be said.
    fn broken(&mut self, io: &mut I, text: String) {
        let socket = self.wire().and_then(|wire| wire.socket.as_ref());
        let trouble = socket.and_then(|socket| io.line(socket).trouble);
        let text = match trouble {
            Some(trouble) => format!("the node at {}: {trouble}", self.settings.peer),
            None => text,
        };
        self.end(io, Ending::lost(text));
        self.shut(io);
    }

    fn take_frames(&mut self, io: &mut I) {
        loop {
            let State::Open { session, .. } = &mut self.state else {
                // Nothing is heard any more; what still comes only makes room.
                self.lines.decoder.reset();
                return;
            };
            let ended = match self.lines.decoder.next() {
                Ok(None) => return,
                Ok(Some(frame)) => session.on_frame(io, &mut self.port, &mut self.lines, frame),
                Err(error) => Err(Ending::protocol(error.to_string())),
            };
            if let Err(ending) = ended {
                self.end(io, ending);
            }
        }
    }

    fn take_orders(&mut self, io: &mut I) {
        let orders = self.control.take_orders(&mut self.settings);
        self.pacing.keep_to(&self.settings.pace);
        self.lines.packing.set(&self.settings);
        self.steer_all(io);
        if let Some(null) = &mut self.lines.null {
            null.meter.set_rate(io.now(), self.settings.simulated_rate);
        }
        let free = self.held && !orders.held;
        self.held = orders.held;
        if free && let State::Idle { due } = &mut self.state {
            *due = Some(io.now());
        }
        if orders.connect && !self.stopping {
            self.lines.snapshot.refusal = None;
            self.lines.snapshot.denied = None;
            if let State::Idle { due } = &mut self.state {
                *due = Some(io.now());
            }
        }
        if orders.stop && !self.stopping {
            self.stopping = true;
            self.end(
                io,
                Ending::asked("the link was stopped here", FarewellCode::Stopping),
            );
        }
    }

    /// The group wants a connection, and nothing holds it.
    fn wanted(&self) -> bool {
        !self.held && self.port.wanted()
    }

    /// What time and the group's wishes ask for; true if that changed the state.
    fn step(&mut self, io: &mut I) -> bool {
        let now = io.now();
        match &self.state {
            State::Idle { .. } | State::Connecting { .. } if self.stopping => {
                self.state = State::Finished;
                self.lines.snapshot.connection = LinkConnection::Stopped;
                true
            }
            State::Idle { due } => {
                let held = self.attempts >= ATTEMPTS_MAX || self.lines.snapshot.refusal.is_some();
                let go = due.is_some_and(|due| due <= now) && !held && self.wanted();
                if go {
                    self.attempt(io);
                }
                go
            }
            State::Connecting { since } => {
                let late = now >= since.after(self.settings.connect_timeout);
                if late {
                    self.attempt_failed(io, Errno::ETIMEDOUT);
                }
                late
            }
            State::Open { .. } => self.step_open(io, now),
            State::Leaving { until, .. } => {
                let over = now >= *until;
                if over {
                    self.shut(io);
                }
                over
            }
            State::Closing { .. } => self.drained(io),
            State::Finished => false,
        }
    }

    fn step_open(&mut self, io: &mut I, now: Nanos) -> bool {
        if !self.wanted() {
            let why = match self.held {
                true => "the schedule holds the link",
                false => "the group ended the link",
            };
            self.end(io, Ending::asked(why, FarewellCode::Disconnected));
            return true;
        }
        let State::Open { wire, session } = &mut self.state else {
            return false;
        };
        if wire.socket.is_none() {
            wire.last_heard = now;
        }
        if now >= wire.last_heard.after(self.settings.timeout) {
            let silence = now.since(wire.last_heard).as_millis();
            let mut ending = Ending::lost(format!("the target was silent for {silence} ms"));
            ending.farewell = Some(FarewellCode::Timeout);
            self.end(io, ending);
            return true;
        }
        let limit = self.settings.progress_timeout;
        let stuck = session.progress.stuck_since();
        if stuck.is_some_and(|since| now >= since.after(limit)) {
            self.end(io, Ending::stuck(limit));
            return true;
        }
        if !session.is_streaming() && now >= wire.opened.after(HANDSHAKE_TIME) {
            let span = HANDSHAKE_TIME.as_secs();
            let mut ending = Ending::lost(format!(
                "the target did not finish the handshake in {span} s"
            ));
            ending.farewell = Some(FarewellCode::Timeout);
            self.end(io, ending);
            return true;
        }
        if let Err(ending) = session.try_begin(io, &mut self.port, &mut self.lines) {
            self.end(io, ending);
            return true;
        }
        self.with_session(io, |worker, io, session| {
            worker.step_sides(io, session, now)
        });
        let State::Open { wire, session } = &mut self.state else {
            return false;
        };
        session.pump(io, &mut self.port, &mut self.lines);
        match session.hear_null(io, &mut self.port, &mut self.lines) {
            Err(ending) => {
                self.end(io, ending);
                return true;
            }
            // What it took makes room for more.
            Ok(true) => io.waker().wake(),
            Ok(false) => {}
        }
        let quiet = now >= wire.last_said.after(self.settings.heartbeat);
        if quiet && session.is_answered() && self.lines.outbox.is_empty() {
            let ping = Message::Ping(io.exact_now().get());
            let queued = self.lines.outbox.message(&mut self.lines.encoder, &ping);
            assert!(queued, "an empty outbox takes a heartbeat");
        }
        false
    }

    /// Goes on once the last operation of a shut connection has come back.
    fn drained(&mut self, io: &I) -> bool {
        let state = std::mem::replace(&mut self.state, State::Finished);
        match state {
            State::Closing { wire, next }
                if !wire.sending && !wire.receiving && self.sides_drained() =>
            {
                self.lines.outbox.reset();
                self.idle(io, &next);
                true
            }
            other => {
                self.state = other;
                false
            }
        }
    }
}

impl<I: Io, P: LinkPort<I>> Worker<I> for LinkWorker<I, P> {
    fn start(&mut self, io: &mut I) {
        self.control.started(io.waker());
        self.port.start(io);
        self.on_turn(io);
    }

    fn on_completion(&mut self, io: &mut I, completion: Completion<I::Socket>) {
        if completion.token & PORT_TOKEN != 0 {
            self.port.on_completion(io, completion);
            return;
        }
        if side_of(completion.token) > 0 {
            return self.side_done(io, completion);
        }
        let current = completion.token >> 8 == self.epoch;
        match completion.token & 0xff {
            CONNECT => self.on_connected(io, completion, current),
            SEND if current => self.on_sent(io, completion.result),
            RECV if current => self.on_received(io, completion.result),
            other => unreachable!("operation {other} of an earlier connection is still in flight"),
        }
    }

    fn on_turn(&mut self, io: &mut I) {
        self.take_orders(io);
        self.port.on_turn(io);
        // No state leads back to itself without time or a completion in between.
        while self.step(io) {}
        self.send(io);
        let null = self.lines.null.as_ref();
        self.lines.snapshot.meter = null.map(|null| null.meter.clone());
        self.lines.snapshot.packing = self.lines.packing.state(io.now());
        self.control.show(&self.lines.snapshot);
    }

    fn deadline(&self) -> Option<Nanos> {
        let own = match &self.state {
            State::Idle { due } => {
                let held = self.attempts >= ATTEMPTS_MAX
                    || self.lines.snapshot.refusal.is_some()
                    || !self.wanted();
                due.filter(|_| !held)
            }
            State::Connecting { since } => Some(since.after(self.settings.connect_timeout)),
            State::Open { wire, session } => {
                let heartbeat = wire.last_said.after(self.settings.heartbeat);
                let silence = wire.last_heard.after(self.settings.timeout);
                let stuck = session.progress.stuck_since();
                let stuck = stuck.map(|since| since.after(self.settings.progress_timeout));
                let silence = stuck.map_or(silence, |stuck| silence.min(stuck));
                let held = self.pacing.held_until();
                let silence = held.map_or(silence, |held| silence.min(held));
                let sides = self.sides_due(session);
                let silence = sides.map_or(silence, |due| silence.min(due));
                // With something on its way the next heartbeat waits for its completion.
                let beats = session.is_answered() && self.lines.outbox.is_empty();
                Some(if beats {
                    heartbeat.min(silence)
                } else {
                    silence
                })
            }
            State::Leaving { until, .. } => Some(*until),
            State::Closing { .. } | State::Finished => None,
        };
        match (own, self.port.deadline()) {
            (Some(own), Some(port)) => Some(own.min(port)),
            (own, port) => own.or(port),
        }
    }

    fn finished(&self) -> bool {
        // An attempt the kernel is still busy with holds no memory of ours; the ring ends it.
        matches!(self.state, State::Finished) && !self.port.busy()
    }
}
