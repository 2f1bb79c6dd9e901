//! Takes connections and reads their first frame.
//!
//! Owns a listener and a bounded number of strangers. A connection that says hello in time is
//! handed to whoever the assembly's [`Router`] names; anything else is told why not, if it speaks
//! our language at all, and closed. What one stranger does never touches another.

use super::journaling::SocketOf;
use blkrep_io::{Completion, Host, Io, Op, Region, Slice, Token, Worker};
use blkrep_types::{Errno, History, Nanos};
use blkrep_wire::limits::{HELLO_BODY_MAX, TARGET_BODY_MAX};
use blkrep_wire::{
    Decoder, Encoder, FRAME_HEADER_BYTES, Frame, Hello, Join, MapEnd, Message, Refuse, RefuseCode,
    VERSION_MAX, VERSION_MIN, Welcome, negotiate,
};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Bounds on strangers, and what is spoken with them.
#[derive(Debug, Clone, Copy)]
pub struct AcceptorLimits {
    /// Connections that have not said hello, at once; more wait in the kernel.
    pub strangers_max: usize,
    /// How long a hello may take, and the farewell to one that is refused.
    pub hello_timeout: Duration,
    /// The oldest and the newest version that is spoken with them.
    pub versions: (u16, u16),
}

impl Default for AcceptorLimits {
    fn default() -> Self {
        Self {
            strangers_max: 32,
            hello_timeout: Duration::from_secs(10),
            versions: (VERSION_MIN, VERSION_MAX),
        }
    }
}

/// A connection that has said hello.
#[derive(Debug)]
pub struct Arrival<S> {
    /// The connection.
    pub socket: S,
    /// What it said.
    pub hello: Box<Hello>,
    /// The version both speak.
    pub version: u16,
}

/// A connection that wants to be one more of a session.
#[derive(Debug)]
pub struct Joining<S> {
    /// The connection.
    pub socket: S,
    /// What it said.
    pub join: Box<Join>,
}

/// What becomes of an arrival.
#[derive(Debug)]
pub enum Route {
    /// Somebody has taken it over.
    Taken,
    /// It is told no.
    Refuse {
        /// The kind of reason.
        code: RefuseCode,
        /// Our history, where that is the reason.
        history: History,
        /// The reason in words, and what to do.
        text: String,
    },
    /// It is told what this node is for the group (a source, for instance), and nothing follows.
    Answer(Box<Welcome>),
}

/// Knows the groups of this node. Called on the acceptor's thread; it may open files (a new
/// replica is made by it), which holds back other strangers only.
pub trait Router<S>: Send {
    /// Takes an arrival, or says no.
    fn route(&mut self, arrival: Arrival<S>) -> Route;

    /// Takes a further connection of a session, or says no.
    fn join(&mut self, joining: Joining<S>) -> Route;
}

/// A refusal as bytes; `None` if there is no memory for it.
pub(super) fn refusal(code: RefuseCode, history: History, text: String) -> Option<Slice> {
    let message = Message::Refuse(Refuse {
        versions: (VERSION_MIN, VERSION_MAX),
        code,
        history,
        text,
    });
    encode(&[message])
}

fn encode(messages: &[Message]) -> Option<Slice> {
    let len = FRAME_HEADER_BYTES + TARGET_BODY_MAX;
    let whole = Region::anonymous(len * messages.len()).ok()?.whole();
    let mut encoder = Encoder::new();
    let mut end = 0;
    for message in messages {
        end += encoder.message(message, &whole.part(end..whole.len()))?;
    }
    Some(whole.part(0..end))
}

#[derive(Debug)]
enum Doing {
    Listening,
    Answering(Slice),
    Leaving,
}

struct Stranger<S> {
    name: u64,
    socket: S,
    decoder: Decoder,
    deadline: Nanos,
    doing: Doing,
    flying: usize,
}

/// The worker.
pub struct Acceptor<H: Host> {
    listener: SocketOf<H>,
    router: Box<dyn Router<SocketOf<H>>>,
    limits: AcceptorLimits,
    heard_rubbish: Arc<dyn Fn(&str) + Send + Sync>,
    strangers: Vec<Stranger<SocketOf<H>>>,
    accepting: bool,
    accept_at: Option<Nanos>,
    names: u64,
    stop: Arc<std::sync::atomic::AtomicBool>,
    stopping: bool,
}

impl<H: Host> fmt::Debug for Acceptor<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Acceptor({} strangers)", self.strangers.len())
    }
}

/// The accept itself; strangers' operations carry their name, which begins at 1.
const ACCEPT: Token = 0;

/// A failed accept (too many open files) is tried again after this.
const ACCEPT_RETRY: Duration = Duration::from_millis(200);

impl<H: Host> Acceptor<H> {
    /// Serves `listener`. `heard_rubbish` hears of connections that were not understood; `stop`
    /// ends the worker at its next turn.
    #[must_use]
    pub fn new(
        listener: SocketOf<H>,
        router: Box<dyn Router<SocketOf<H>>>,
        limits: AcceptorLimits,
        heard_rubbish: Arc<dyn Fn(&str) + Send + Sync>,
        stop: Arc<std::sync::atomic::AtomicBool>,
    ) -> Self {
        Self {
            listener,
            router,
            limits,
            heard_rubbish,
            strangers: Vec::new(),
            accepting: false,
            accept_at: None,
            names: 0,
            stop,
            stopping: false,
        }
    }

    fn accepted(
        &mut self,
        io: &mut H::Io,
        result: Result<u32, Errno>,
        socket: Option<SocketOf<H>>,
    ) {
        self.accepting = false;
        let (Ok(_), Some(socket)) = (result, socket) else {
            self.accept_at = Some(io.now().after(ACCEPT_RETRY));
            return;
        };
        let Ok(region) = Region::anonymous(FRAME_HEADER_BYTES + HELLO_BODY_MAX) else {
            io.shutdown(&socket);
            return;
        };
        self.names += 1;
        let mut stranger = Stranger {
            name: self.names,
            socket,
            decoder: Decoder::new(region.whole(), HELLO_BODY_MAX),
            deadline: io.now().after(self.limits.hello_timeout),
            doing: Doing::Listening,
            flying: 0,
        };
        listen(io, &mut stranger);
        self.strangers.push(stranger);
    }

    fn stranger_done(&mut self, io: &mut H::Io, name: Token, result: Result<u32, Errno>) {
        let Some(at) = self.strangers.iter().position(|each| each.name == name) else {
            return;
        };
        let mut stranger = self.strangers.swap_remove(at);
        stranger.flying -= 1;
        let count = match result {
            Ok(count) if count > 0 => usize::try_from(count).expect("64-bit platform"),
            Ok(_) | Err(_) => {
                stranger.doing = Doing::Leaving;
                0
            }
        };
        match std::mem::replace(&mut stranger.doing, Doing::Leaving) {
            Doing::Leaving => {}
            Doing::Answering(slice) => {
                if count < slice.len() {
                    answer(io, &mut stranger, slice.part(count..slice.len()));
                }
            }
            Doing::Listening => {
                stranger.decoder.received(count);
                stranger = match self.heard(io, stranger) {
                    Some(stranger) => stranger,
                    None => return,
                };
            }
        }
        if matches!(stranger.doing, Doing::Leaving) {
            io.shutdown(&stranger.socket);
        }
        if stranger.flying > 0 {
            self.strangers.push(stranger);
        }
    }

    /// Bytes have come; `None` if the stranger is one no longer.
    fn heard(
        &mut self,
        io: &mut H::Io,
        mut stranger: Stranger<SocketOf<H>>,
    ) -> Option<Stranger<SocketOf<H>>> {
        let hello = match stranger.decoder.next() {
            Ok(None) => {
                listen(io, &mut stranger);
                return Some(stranger);
            }
            Ok(Some(Frame::Message(Message::Hello(hello)))) if stranger.decoder.is_empty() => hello,
            Ok(Some(Frame::Message(Message::Join(join)))) => {
                let socket = stranger.socket.clone();
                let route = self.router.join(Joining { socket, join });
                return follow(io, stranger, route);
            }
            Ok(Some(frame)) => {
                let text = format!("the connection began with a frame '{}'", frame.kind());
                (self.heard_rubbish)(&text);
                return Some(stranger);
            }
            Err(error) => {
                // A stranger that does not speak our language is not answered in it.
                (self.heard_rubbish)(&error.to_string());
                return Some(stranger);
            }
        };
        let ours = self.limits.versions;
        let Some(version) = negotiate(ours, hello.versions) else {
            let text = format!(
                "this target speaks versions {} to {}, the source {} to {}; upgrade the older of the two",
                ours.0, ours.1, hello.versions.0, hello.versions.1
            );
            refuse(io, &mut stranger, RefuseCode::Version, History::new(), text);
            return Some(stranger);
        };
        let arrival = Arrival {
            socket: stranger.socket.clone(),
            hello,
            version,
        };
        let route = self.router.route(arrival);
        follow(io, stranger, route)
    }
}

/// Does what the router says; `None` if the stranger is one no longer.
fn follow<I: Io>(
    io: &mut I,
    mut stranger: Stranger<I::Socket>,
    route: Route,
) -> Option<Stranger<I::Socket>> {
    match route {
        Route::Taken => return None,
        Route::Refuse {
            code,
            history,
            text,
        } => {
            refuse(io, &mut stranger, code, history, text);
        }
        Route::Answer(welcome) => {
            let end = MapEnd {
                part_count: 0,
                unknown: true,
            };
            if let Some(slice) = encode(&[Message::Welcome(welcome), Message::MapEnd(end)]) {
                answer(io, &mut stranger, slice);
            }
        }
    }
    Some(stranger)
}

fn listen<I: Io>(io: &mut I, stranger: &mut Stranger<I::Socket>) {
    stranger.doing = Doing::Listening;
    stranger.flying += 1;
    let slice = stranger.decoder.space();
    io.submit(
        stranger.name,
        Op::Recv {
            socket: stranger.socket.clone(),
            slice,
        },
    );
}

fn answer<I: Io>(io: &mut I, stranger: &mut Stranger<I::Socket>, slice: Slice) {
    stranger.doing = Doing::Answering(slice.clone());
    stranger.flying += 1;
    io.submit(
        stranger.name,
        Op::Send {
            socket: stranger.socket.clone(),
            slice,
        },
    );
}

fn refuse<I: Io>(
    io: &mut I,
    stranger: &mut Stranger<I::Socket>,
    code: RefuseCode,
    history: History,
    text: String,
) {
    if let Some(slice) = refusal(code, history, text) {
        answer(io, stranger, slice);
    }
}

impl<H: Host> Worker<H::Io> for Acceptor<H> {
    fn start(&mut self, io: &mut H::Io) {
        self.on_turn(io);
    }

    fn on_completion(&mut self, io: &mut H::Io, completion: Completion<SocketOf<H>>) {
        if completion.token == ACCEPT {
            self.accepted(io, completion.result, completion.socket);
        } else {
            self.stranger_done(io, completion.token, completion.result);
        }
    }

    fn on_turn(&mut self, io: &mut H::Io) {
        let now = io.now();
        if self.stop.load(std::sync::atomic::Ordering::Acquire) && !self.stopping {
            self.stopping = true;
            io.shutdown(&self.listener);
        }
        for stranger in &mut self.strangers {
            if self.stopping || now >= stranger.deadline {
                stranger.doing = Doing::Leaving;
                io.shutdown(&stranger.socket);
            }
        }
        let rested = self.accept_at.is_none_or(|at| now >= at);
        let room = self.strangers.len() < self.limits.strangers_max;
        if !self.accepting && !self.stopping && rested && room {
            self.accept_at = None;
            self.accepting = true;
            io.submit(
                ACCEPT,
                Op::Accept {
                    listener: self.listener.clone(),
                },
            );
        }
    }

    fn deadline(&self) -> Option<Nanos> {
        // A stranger that is leaving has been shut down: its operations complete by themselves.
        let listening = self
            .strangers
            .iter()
            .filter(|stranger| !matches!(stranger.doing, Doing::Leaving))
            .map(|stranger| stranger.deadline);
        listening.chain(self.accept_at).min()
    }

    fn finished(&self) -> bool {
        self.stopping && !self.accepting && self.strangers.is_empty()
    }
}
