//! Further connections of a session.
//!
//! Owns their sockets and what is in flight on them. They carry batches and signs of life, nothing else;
//! which batch goes where is the session's. One that is lost is made again after a while, and what was
//! on it goes over the others.
//!
//! ```text
//!  Idle --attempt--> Connecting --socket--> Joining --joined--> Open
//!   ▲                 └── no ──┐              │                  │
//!   └── drained ── Closing ◄───┴──────────────┴──────────────────┘
//! ```

use super::control::LinkEvent;
use super::outbox::Outbox;
use super::session::{Lines, Session};
use super::worker::LinkWorker;
use crate::engine::source::LinkPort;
use blkrep_io::{Completion, Io, Op, Region, Token};
use blkrep_types::{Errno, Nanos};
use blkrep_wire::limits::{TARGET_BODY_MAX, buffer_bytes};
use blkrep_wire::{Decoder, Encoder, Frame, Message};

/// Buffers of a further connection: one with the kernel, one waiting behind it. What waits for a slow
/// connection holds up all the others.
const SIDE_BUFFERS: usize = 2;

const CONNECT: u64 = 1;
const SEND: u64 = 2;
const RECV: u64 = 3;
const INDEX_SHIFT: u32 = 2;

/// Which connection an operation belongs to; 0 is the first one, whose operations the worker knows.
pub(super) const fn side_of(token: Token) -> usize {
    ((token & 0xff) >> INDEX_SHIFT) as usize
}

/// What goes out on one further connection.
#[derive(Debug)]
pub(super) struct Out {
    pub(super) encoder: Encoder,
    pub(super) outbox: Outbox,
    /// It takes batches.
    pub(super) open: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// None; the next attempt is due then.
    Idle { due: Nanos },
    /// An attempt is being made since then.
    Connecting { since: Nanos },
    /// `Join` was said then.
    Joining { since: Nanos },
    /// Batches flow.
    Open,
    /// The socket is shut; its operations are coming back. The next attempt is due then.
    Closing { due: Nanos },
}

/// One further connection.
#[derive(Debug)]
pub(super) struct Side<S> {
    stage: Stage,
    socket: Option<S>,
    decoder: Decoder,
    /// The kernel is busy with an attempt, wanted or not.
    connecting: bool,
    sending: bool,
    receiving: bool,
    granted: usize,
    last_heard: Nanos,
    last_said: Nanos,
    /// That it is not there was told.
    told: bool,
    /// The lap that was spoken of on it.
    lap: Option<u32>,
}

impl<S: Clone> Side<S> {
    fn new() -> Self {
        let buffer = Region::heap(buffer_bytes(TARGET_BODY_MAX)).whole();
        Self {
            stage: Stage::Idle {
                due: Nanos::default(),
            },
            socket: None,
            decoder: Decoder::new(buffer, TARGET_BODY_MAX),
            connecting: false,
            sending: false,
            receiving: false,
            granted: 0,
            last_heard: Nanos::default(),
            last_said: Nanos::default(),
            told: false,
            lap: None,
        }
    }

    /// Its connection, where there is one.
    pub(super) fn socket(&self) -> Option<S> {
        self.socket.clone()
    }

    const fn is_drained(&self) -> bool {
        !self.sending && !self.receiving
    }

    /// Lets go of the socket; the next attempt is due then.
    fn close<I: Io<Socket = S>>(&mut self, io: &mut I, due: Nanos) {
        self.stage = match self.socket.take() {
            None => match self.stage {
                Stage::Closing { .. } => Stage::Closing { due },
                _ => Stage::Idle { due },
            },
            Some(socket) => {
                io.shutdown(&socket);
                Stage::Closing { due }
            }
        };
    }
}

impl Out {
    fn new() -> Self {
        Self {
            encoder: Encoder::new(),
            outbox: Outbox::with(SIDE_BUFFERS),
            open: false,
        }
    }
}

impl<I: Io, P: LinkPort<I>> LinkWorker<I, P> {
    const fn side_token(index: usize, what: u64) -> Token {
        (index as u64) << INDEX_SHIFT | what
    }

    /// What is due on the further connections of a session that flows.
    pub(super) fn step_sides(&mut self, io: &mut I, session: &mut Session, now: Nanos) {
        if !session.is_streaming() {
            return;
        }
        let wanted = usize::from(session.connections()).saturating_sub(1);
        while self.sides.len() < wanted {
            self.sides.push(Side::new());
            self.lines.sides.push(Out::new());
        }
        let lost = std::mem::take(&mut session.lost_there);
        for at in 0..wanted {
            if lost >> (at + 1) & 1 == 1 && self.lines.sides[at].open {
                let text = "the target has it no more".to_owned();
                self.lose_side(io, session, at, text);
            }
            self.step_side(io, session, at, now);
        }
        self.tell_lap(session);
        let open = self.lines.sides.iter().filter(|out| out.open).count();
        self.lines.snapshot.connections = 1 + open;
    }

    /// Says on every further connection which lap it is, once: a target that waits for a batch of an earlier lap
    /// cannot know otherwise that it does not come any more.
    fn tell_lap(&mut self, session: &Session) {
        let place = session.place();
        for (side, out) in self.sides.iter_mut().zip(&mut self.lines.sides) {
            let news = out.open && side.lap != Some(place.lap);
            if news && out.outbox.message(&mut out.encoder, &Message::Place(place)) {
                side.lap = Some(place.lap);
            }
        }
    }

    fn step_side(&mut self, io: &mut I, session: &mut Session, at: usize, now: Nanos) {
        let side = &mut self.sides[at];
        match side.stage {
            Stage::Closing { due } if side.is_drained() => {
                self.lines.sides[at].outbox.reset();
                side.stage = Stage::Idle { due };
            }
            Stage::Idle { due } if now >= due && !side.connecting => {
                side.connecting = true;
                side.stage = Stage::Connecting { since: now };
                let peer = self.settings.peer;
                io.submit(Self::side_token(at + 1, CONNECT), Op::Connect { peer });
            }
            Stage::Connecting { since } | Stage::Joining { since } => {
                if now >= since.after(self.settings.timeout) {
                    self.lose_side(io, session, at, "the target did not answer".to_owned());
                }
            }
            Stage::Open => {
                if now >= side.last_heard.after(self.settings.timeout) {
                    let silence = now.since(side.last_heard).as_millis();
                    let text = format!("the target was silent on it for {silence} ms");
                    self.lose_side(io, session, at, text);
                    return;
                }
                let out = &mut self.lines.sides[at];
                let quiet = now >= side.last_said.after(self.settings.heartbeat);
                if quiet && out.outbox.is_empty() {
                    let ping = Message::Ping(io.exact_now().get());
                    let queued = out.outbox.message(&mut out.encoder, &ping);
                    assert!(queued, "an empty outbox takes a heartbeat");
                }
            }
            Stage::Idle { .. } | Stage::Closing { .. } => {}
        }
    }

    /// A further connection is of no more use. What was on it is sent again.
    fn lose_side(&mut self, io: &mut I, session: &mut Session, at: usize, text: String) {
        let due = io.now().after(self.settings.reconnect_interval);
        let side = &mut self.sides[at];
        let trouble = side.socket.as_ref().and_then(|raw| io.line(raw).trouble);
        side.close(io, due);
        let was_open = std::mem::take(&mut self.lines.sides[at].open);
        if was_open {
            self.lines.snapshot.connections_lost += 1;
            session.go_back(io, &mut self.port);
        }
        if !std::mem::replace(&mut side.told, true) {
            self.lines.watch.event(&LinkEvent::ConnectionLost {
                index: at + 1,
                reason: trouble.unwrap_or(text),
            });
        }
    }

    /// The session ended: nothing goes over its further connections any more.
    pub(super) fn close_sides(&mut self, io: &mut I) {
        for (side, out) in self.sides.iter_mut().zip(&mut self.lines.sides) {
            side.close(io, Nanos::default());
            side.told = false;
            out.open = false;
        }
        self.lines.snapshot.connections = 0;
    }

    /// True once nothing of them is in flight; their memory is free then.
    pub(super) fn sides_drained(&mut self) -> bool {
        if !self.sides.iter().all(Side::is_drained) {
            return false;
        }
        for (side, out) in self.sides.iter_mut().zip(&mut self.lines.sides) {
            out.outbox.reset();
            side.stage = Stage::Idle {
                due: Nanos::default(),
            };
        }
        true
    }

    /// An operation of a further connection has ended.
    pub(super) fn side_done(&mut self, io: &mut I, completion: Completion<I::Socket>) {
        let at = side_of(completion.token) - 1;
        match completion.token & ((1 << INDEX_SHIFT) - 1) {
            CONNECT => self.side_connected(io, at, completion),
            SEND => self.side_sent(io, at, completion.result),
            RECV => self.side_received(io, at, completion.result),
            other => unreachable!("no operation {other} of a further connection"),
        }
    }

    fn side_connected(&mut self, io: &mut I, at: usize, completion: Completion<I::Socket>) {
        let now = io.now();
        let side = &mut self.sides[at];
        side.connecting = false;
        let awaited = matches!(side.stage, Stage::Connecting { .. });
        let socket = match (completion.result, completion.socket) {
            (Ok(_), Some(socket)) if awaited => socket,
            (result, socket) => {
                if let Some(socket) = socket {
                    io.shutdown(&socket);
                } else if awaited {
                    let errno = result.err().unwrap_or(Errno::EIO);
                    let text = format!("cannot connect to {}: {errno}", self.settings.peer);
                    self.with_session(io, |worker, io, session| {
                        worker.lose_side(io, session, at, text);
                    });
                }
                return;
            }
        };
        self.steer(io, &socket);
        let side = &mut self.sides[at];
        side.socket = Some(socket);
        side.stage = Stage::Joining { since: now };
        side.last_heard = now;
        side.decoder.reset();
        self.with_session(io, |worker, _, session| {
            let index = u8::try_from(at + 1).expect("a few");
            let join = session.join(&worker.settings.node, index);
            let version = join.version;
            let out = &mut worker.lines.sides[at];
            out.encoder.reset();
            let queued = out
                .outbox
                .message(&mut out.encoder, &Message::Join(Box::new(join)));
            assert!(queued, "the outbox of a new connection is empty");
            out.encoder.agree(version);
        });
        self.side_receive(io, at);
    }

    fn side_receive(&mut self, io: &mut I, at: usize) {
        let side = &mut self.sides[at];
        if side.receiving || !matches!(side.stage, Stage::Joining { .. } | Stage::Open) {
            return;
        }
        if let Some(socket) = side.socket.clone() {
            side.receiving = true;
            let slice = side.decoder.space();
            io.submit(Self::side_token(at + 1, RECV), Op::Recv { socket, slice });
        }
    }

    /// Sends what waits on a further connection; false if a limit holds it back.
    pub(super) fn side_send(&mut self, io: &mut I, at: usize) -> bool {
        let now = io.now();
        let side = &mut self.sides[at];
        if !matches!(side.stage, Stage::Joining { .. } | Stage::Open) {
            return true;
        }
        let (Some(socket), Some(waiting)) = (
            side.socket.clone(),
            self.lines.sides[at].outbox.waiting(now),
        ) else {
            return true;
        };
        let Some(allowed) = self.pacing.ask(now, waiting) else {
            return false;
        };
        if let Some(slice) = self.lines.sides[at].outbox.next_send(now, allowed) {
            side.sending = true;
            side.granted = allowed;
            side.last_said = now;
            io.submit(Self::side_token(at + 1, SEND), Op::Send { socket, slice });
        }
        true
    }

    fn side_sent(&mut self, io: &mut I, at: usize, result: Result<u32, Errno>) {
        let now = io.now();
        let side = &mut self.sides[at];
        side.sending = false;
        let waited = now.since(side.last_said);
        let granted = std::mem::take(&mut side.granted);
        let count = usize::try_from(result.unwrap_or(0)).expect("64-bit platform");
        self.pacing.sent(granted, count);
        self.lines.snapshot.wire_bytes_sent += count as u64;
        if count > 0 {
            let taken = self.lines.sides[at].outbox.sent(now, count);
            if let Some(taken) = taken {
                self.line_took(now, taken);
            }
            self.with_session(io, |_, _, session| {
                session.progress.line_took(now, waited);
            });
            return;
        }
        let text = match result {
            Ok(_) => "the target closed it".to_owned(),
            Err(errno) => format!("sending failed: {errno}"),
        };
        self.side_broken(io, at, text);
    }

    fn side_received(&mut self, io: &mut I, at: usize, result: Result<u32, Errno>) {
        let now = io.now();
        let side = &mut self.sides[at];
        side.receiving = false;
        match result {
            Ok(0) => self.side_broken(io, at, "the target closed it".to_owned()),
            Err(errno) => self.side_broken(io, at, format!("receiving failed: {errno}")),
            Ok(count) => {
                side.last_heard = now;
                side.decoder
                    .received(usize::try_from(count).expect("64-bit platform"));
                self.lines.snapshot.wire_bytes_received += u64::from(count);
                self.take_side_frames(io, at);
                self.side_receive(io, at);
            }
        }
    }

    fn side_broken(&mut self, io: &mut I, at: usize, text: String) {
        if matches!(self.sides[at].stage, Stage::Joining { .. } | Stage::Open) {
            self.with_session(io, |worker, io, session| {
                worker.lose_side(io, session, at, text);
            });
        }
    }

    fn take_side_frames(&mut self, io: &mut I, at: usize) {
        loop {
            let side = &mut self.sides[at];
            if !matches!(side.stage, Stage::Joining { .. } | Stage::Open) {
                return;
            }
            let wrong = match side.decoder.next() {
                Ok(None) => return,
                Ok(Some(Frame::Message(message))) => self.side_heard(io, at, message).err(),
                Ok(Some(frame)) => Some(format!("the target sent a frame '{}'", frame.kind())),
                Err(error) => Some(error.to_string()),
            };
            if let Some(text) = wrong {
                self.side_broken(io, at, text);
            }
        }
    }

    fn side_heard(&mut self, io: &I, at: usize, message: Message) -> Result<(), String> {
        let (side, out) = (&mut self.sides[at], &mut self.lines.sides[at]);
        match (side.stage, message) {
            (Stage::Joining { .. }, Message::Joined(index)) if usize::from(index) == at + 1 => {
                let node = side.socket.as_ref().and_then(|raw| io.line(raw).node);
                if node != self.lines.snapshot.proven {
                    return Err("another node answers there".to_owned());
                }
                side.decoder.agree(self.lines.version);
                side.stage = Stage::Open;
                side.lap = None;
                out.open = true;
                if std::mem::take(&mut side.told) {
                    let index = at + 1;
                    self.lines
                        .watch
                        .event(&LinkEvent::ConnectionRestored { index });
                }
                Ok(())
            }
            (_, Message::Refuse(refuse)) => Err(format!("the target refused it: {}", refuse.text)),
            (_, Message::Error(farewell) | Message::Goodbye(farewell)) => {
                Err(format!("the target ended it: {}", farewell.text))
            }
            (Stage::Open, Message::Ping(stamp)) => {
                // Without room the peer sees that we live by the bytes that fill it.
                let _ = out.outbox.message(&mut out.encoder, &Message::Pong(stamp));
                Ok(())
            }
            (Stage::Open, Message::Pong(_)) => Ok(()),
            (_, message) => Err(format!("the target sent a frame '{}'", message.kind())),
        }
    }

    /// When a further connection wants the next turn at the latest.
    pub(super) fn sides_due(&self, session: &Session) -> Option<Nanos> {
        if !session.is_streaming() {
            return None;
        }
        let wanted = usize::from(session.connections()).saturating_sub(1);
        let sides = self.sides.iter().zip(&self.lines.sides).take(wanted);
        let due = sides.map(|(side, out)| {
            match side.stage {
                Stage::Idle { due } => (!side.connecting).then_some(due),
                Stage::Connecting { since } | Stage::Joining { since } => {
                    Some(since.after(self.settings.timeout))
                }
                Stage::Open => {
                    let silence = side.last_heard.after(self.settings.timeout);
                    let heartbeat = side.last_said.after(self.settings.heartbeat);
                    // With something on its way the next heartbeat waits for its completion.
                    Some(match out.outbox.is_empty() {
                        true => silence.min(heartbeat),
                        false => silence,
                    })
                }
                Stage::Closing { .. } => None,
            }
        });
        due.flatten().min()
    }
}

impl Lines {
    /// The connection that the next batch goes to, 0 for the first one: the one with least to send.
    /// `None` if none has room.
    pub(super) fn way(&self) -> Option<usize> {
        let main = self.outbox.has_room().then(|| (self.outbox.queued(), 0));
        let sides = self.sides.iter().enumerate();
        let sides = sides.filter(|(_, out)| out.open && out.outbox.has_room());
        let sides = sides.map(|(at, out)| (out.outbox.queued(), at + 1));
        sides.chain(main).min().map(|(_, way)| way)
    }
}
