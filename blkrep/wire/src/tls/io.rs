//! A ring whose connections are encrypted where they must be.
//!
//! Owns the operations that a channel has on the ring below. Operations of files pass as they are,
//! and so do those of plain connections.

use super::channel::{Acts, Channel};
use super::cipher::Side;
use super::keeper::{Keeper, Outgoing};
use super::line::{Line, lock};
use blkrep_io::{Completion, Io, LineFacts, Op, Steering, Token, Waker};
use blkrep_types::{Congestion, Errno, Nanos};
use std::fmt;
use std::sync::{Arc, Mutex};

/// Marks our own operations; no worker's token has it.
const OURS: Token = 1 << 63;

type Shared<S> = Arc<Mutex<Channel<S>>>;

/// The ring.
pub struct LineIo<I: Io> {
    inner: I,
    keeper: Arc<dyn Keeper<I::Socket>>,
    /// Channels with an operation under way, twice if with two.
    flights: Vec<Option<Shared<I::Socket>>>,
    free: Vec<usize>,
    connecting: Vec<(Token, Outgoing)>,
    /// Completed without the ring.
    ready: Vec<Completion<Line<I::Socket>>>,
    raw: Vec<Completion<I::Socket>>,
}

impl<I: Io> fmt::Debug for LineIo<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LineIo")
    }
}

impl<I: Io> LineIo<I> {
    /// Over `inner`, with connections as `keeper` says.
    pub fn new(inner: I, keeper: Arc<dyn Keeper<I::Socket>>) -> Self {
        Self {
            inner,
            keeper,
            flights: Vec::new(),
            free: Vec::new(),
            connecting: Vec::new(),
            ready: Vec::with_capacity(16),
            raw: Vec::with_capacity(1024),
        }
    }

    /// The ring below.
    pub const fn inner(&mut self) -> &mut I {
        &mut self.inner
    }

    fn keep(&mut self, channel: &Shared<I::Socket>, sends: bool) -> Token {
        let channel = Some(Arc::clone(channel));
        let index = match self.free.pop() {
            Some(index) => {
                self.flights[index] = channel;
                index
            }
            None => {
                self.flights.push(channel);
                self.flights.len() - 1
            }
        };
        let index = Token::try_from(index).expect("64-bit platform");
        OURS | index << 1 | Token::from(sends)
    }

    /// Does what a channel asks for.
    fn drive(&mut self, channel: &Shared<I::Socket>, raw: &I::Socket) {
        let acts = lock(channel).advance(self.keeper.as_ref());
        let Acts {
            receive,
            send,
            read,
            wrote,
        } = acts;
        if let Some(slice) = receive {
            let token = self.keep(channel, false);
            let socket = raw.clone();
            self.inner.submit(token, Op::Recv { socket, slice });
        }
        if let Some(slice) = send {
            let token = self.keep(channel, true);
            let socket = raw.clone();
            self.inner.submit(token, Op::Send { socket, slice });
        }
        for (token, result) in read.into_iter().chain(wrote) {
            self.ready.push(Completion {
                token,
                result,
                socket: None,
            });
        }
    }

    fn completed(&mut self, completion: Completion<I::Socket>) {
        let Completion {
            token,
            result,
            socket,
        } = completion;
        if token & OURS != 0 {
            let index = usize::try_from((token & !OURS) >> 1).expect("64-bit platform");
            let channel = self.flights[index].take().expect("an operation ends once");
            self.free.push(index);
            let mut held = lock(&channel);
            if token & 1 == 0 {
                held.received(result, self.keeper.as_ref());
            } else {
                held.sent(result);
            }
            let raw = held.raw().clone();
            drop(held);
            self.drive(&channel, &raw);
            return;
        }
        let connecting = self.connecting.iter().position(|(each, _)| *each == token);
        let outgoing = connecting.map(|at| self.connecting.swap_remove(at).1);
        let (result, socket) = match socket {
            None => (result, None),
            Some(raw) => match line(raw, outgoing) {
                Ok(line) => (result, Some(line)),
                Err(errno) => (Err(errno), None),
            },
        };
        self.ready.push(Completion {
            token,
            result,
            socket,
        });
    }
}

/// A connection that was made as `outgoing` says, or accepted.
fn line<S: Clone + 'static>(raw: S, outgoing: Option<Outgoing>) -> Result<Line<S>, Errno> {
    let channel = match outgoing {
        None => Channel::accepted(raw.clone())?,
        Some(Outgoing::Plain) => return Ok(Line::plain(raw)),
        Some(Outgoing::Encrypted(config)) => {
            Channel::connected(raw.clone(), Side::connecting(config))
        }
        Some(Outgoing::Refused(why)) => Channel::refused(raw.clone(), why),
    };
    Ok(Line::with(raw, channel))
}

impl<I: Io> Io for LineIo<I> {
    type File = I::File;
    type Socket = Line<I::Socket>;

    fn now(&self) -> Nanos {
        self.inner.now()
    }

    fn exact_now(&self) -> Nanos {
        self.inner.exact_now()
    }

    fn random(&mut self) -> u64 {
        self.inner.random()
    }

    fn submit(&mut self, token: Token, op: Op<I::File, Line<I::Socket>>) {
        assert!(
            token & OURS == 0,
            "the highest bit of a token is not a worker's"
        );
        let op = match op {
            Op::Read {
                file,
                offset,
                slice,
            } => Op::Read {
                file,
                offset,
                slice,
            },
            Op::Write {
                file,
                offset,
                slice,
                durable,
            } => Op::Write {
                file,
                offset,
                slice,
                durable,
            },
            Op::Sync { file } => Op::Sync { file },
            Op::Zero {
                file,
                offset,
                len,
                free,
            } => Op::Zero {
                file,
                offset,
                len,
                free,
            },
            Op::Connect { peer } => {
                let outgoing = self.keeper.outgoing(peer);
                self.connecting.push((token, outgoing));
                Op::Connect { peer }
            }
            Op::Accept { listener } => Op::Accept {
                listener: listener.raw().clone(),
            },
            Op::Send { socket, slice } => match secured(&socket) {
                None => Op::Send {
                    socket: socket.raw().clone(),
                    slice,
                },
                Some(channel) => {
                    lock(&channel).write(token, slice);
                    return self.drive(&channel, socket.raw());
                }
            },
            Op::Recv { socket, slice } => match secured(&socket) {
                None => Op::Recv {
                    socket: socket.raw().clone(),
                    slice,
                },
                Some(channel) => {
                    lock(&channel).read(token, slice);
                    return self.drive(&channel, socket.raw());
                }
            },
        };
        self.inner.submit(token, op);
    }

    fn shutdown(&mut self, socket: &Line<I::Socket>) {
        let given = |channel: &Shared<I::Socket>| lock(channel).is_given();
        if !socket.channel().is_some_and(given) {
            self.inner.shutdown(socket.raw());
        }
    }

    fn line(&self, socket: &Line<I::Socket>) -> LineFacts {
        socket.facts()
    }

    fn steer(&self, socket: &Line<I::Socket>, wanted: Congestion) -> Steering {
        self.inner.steer(socket.raw(), wanted)
    }

    fn waker(&self) -> Waker {
        self.inner.waker()
    }

    fn notify(&mut self, waker: &Waker) {
        self.inner.notify(waker);
    }

    fn wait(
        &mut self,
        deadline: Option<Nanos>,
        out: &mut Vec<Completion<Line<I::Socket>>>,
    ) -> Result<(), Errno> {
        let deadline = if self.ready.is_empty() {
            deadline
        } else {
            Some(Nanos::default())
        };
        let mut raw = std::mem::take(&mut self.raw);
        self.inner.wait(deadline, &mut raw)?;
        for completion in raw.drain(..) {
            self.completed(completion);
        }
        self.raw = raw;
        out.append(&mut self.ready);
        Ok(())
    }
}

/// The channel of a connection whose operations are not its socket's own.
fn secured<S: 'static>(socket: &Line<S>) -> Option<Shared<S>> {
    let channel = socket.channel()?;
    (!lock(channel).is_plain()).then(|| Arc::clone(channel))
}
