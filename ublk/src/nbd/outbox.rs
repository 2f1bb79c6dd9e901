//! The answers of one connection, on their way to the client.
//!
//! Owns the queue of replies, the count of what a client has outstanding, and the thread's loop
//! that sends. Enters: answers from the worker's thread and refusals from the reader's. Leaves:
//! bytes. A client that does not read its answers holds only its own share of the tags, and loses
//! its connection after [`SEND_LIMIT`]. Never blocks who answers.

use super::parts::Parts;
use super::protocol;
use super::socket::Stream;
use crate::front::RequestKind;
use crate::mailbox::{Asker, Lease, Pieces};
use blkrep_types::Errno;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::Shutdown;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// How long a client may leave us unable to send a single byte.
pub(super) const SEND_LIMIT: Duration = Duration::from_secs(30);

/// Answers up to this size are gathered in one system call and free their tag before it.
const GATHER_BYTES: usize = 32 << 10;

/// When what was gathered is sent although there is more.
const GATHERED_BYTES_MAX: usize = 256 << 10;

/// Replies of one connection, and how many it may still get.
#[derive(Debug)]
pub(super) struct Outbox {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    replies: VecDeque<Reply>,
    /// Requests, or parts of one, that were admitted and whose answer is not sent.
    held: usize,
    /// The reader may admit more.
    reading: bool,
    /// Nothing can be sent any more.
    broken: bool,
}

#[derive(Debug)]
struct Reply {
    cookie: u64,
    body: Body,
}

#[derive(Debug)]
enum Body {
    Done(Result<(), Errno>),
    /// Data of a simple reply; only its first part has a head.
    Data {
        head: bool,
        len: u32,
        lease: Lease<Ask>,
    },
    Chunk {
        done: bool,
        offset: u64,
        len: u32,
        lease: Lease<Ask>,
    },
    ErrorChunk {
        done: bool,
        at: Option<u64>,
        errno: Errno,
    },
}

impl Outbox {
    /// An empty one for a client that can have `depth` requests outstanding.
    pub(super) fn new(depth: u16) -> Self {
        Self {
            state: Mutex::new(State {
                replies: VecDeque::with_capacity(usize::from(depth) + 1),
                held: 0,
                reading: true,
                broken: false,
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under an outbox's lock")
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed
            .wait(state)
            .expect("no panic under an outbox's lock")
    }

    /// Counts one more request, once fewer than `limit` are outstanding; false if the connection
    /// is broken.
    pub(super) fn admit(&self, limit: impl Fn() -> usize) -> bool {
        let mut state = self.lock();
        while !state.broken && state.held >= limit() {
            state = self.wait(state);
        }
        if state.broken {
            return false;
        }
        state.held += 1;
        true
    }

    /// Waits until everything admitted is answered and sent; false if the connection is broken.
    pub(super) fn settle(&self) -> bool {
        let mut state = self.lock();
        while !state.broken && state.held > 0 {
            state = self.wait(state);
        }
        !state.broken
    }

    /// Uncounts a request that gets no answer of its own.
    pub(super) fn release(&self) {
        self.lock().held -= 1;
        self.changed.notify_all();
    }

    /// Answers an admitted request that is refused.
    pub(super) fn refuse(&self, cookie: u64, in_chunks: bool, errno: Errno) {
        let body = if in_chunks {
            Body::ErrorChunk {
                done: true,
                at: None,
                errno,
            }
        } else {
            Body::Done(Err(errno))
        };
        self.push(cookie, body);
    }

    /// The reader admits nothing more: the sender ends after the last answer.
    pub(super) fn stop_reading(&self) {
        self.lock().reading = false;
        self.changed.notify_all();
    }

    /// Nothing more is sent; what is still to come is dropped.
    pub(super) fn break_off(&self) {
        self.lock().broken = true;
        self.changed.notify_all();
    }

    fn push(&self, cookie: u64, body: Body) {
        self.push_to(self.lock(), cookie, body);
    }

    fn push_to(&self, mut state: MutexGuard<'_, State>, cookie: u64, body: Body) {
        state.replies.push_back(Reply { cookie, body });
        drop(state);
        self.changed.notify_all();
    }

    /// Takes all replies there are and says whether they may be sent; waits for one. `None` when
    /// there will be none.
    fn take(&self, into: &mut VecDeque<Reply>) -> Option<bool> {
        let mut state = self.lock();
        loop {
            if !state.replies.is_empty() {
                std::mem::swap(&mut state.replies, into);
                return Some(!state.broken);
            }
            if !state.reading && state.held == 0 {
                return None;
            }
            state = self.wait(state);
        }
    }

    fn sent(&self, count: usize) {
        let mut state = self.lock();
        state.held = state
            .held
            .checked_sub(count)
            .expect("only what was admitted is answered");
        drop(state);
        self.changed.notify_all();
    }

    /// Sends until the reader has stopped and everything is answered.
    pub(super) fn run(&self, stream: &Stream) {
        let mut replies = VecDeque::with_capacity(64);
        let mut gathered = Vec::with_capacity(GATHERED_BYTES_MAX + GATHER_BYTES);
        while let Some(sound) = self.take(&mut replies) {
            let count = replies.len();
            let outcome = if sound {
                send(stream, &mut replies, &mut gathered)
            } else {
                Err(io::ErrorKind::ConnectionAborted.into())
            };
            replies.clear();
            if let Err(error) = outcome {
                tracing::debug!(%error, "an NBD connection is given up");
                self.break_off();
                // Also wakes a reader that waits for bytes of this client.
                stream.shutdown(Shutdown::Both);
            }
            self.sent(count);
        }
        stream.shutdown(Shutdown::Both);
    }
}

fn send(
    mut stream: &Stream,
    replies: &mut VecDeque<Reply>,
    gathered: &mut Vec<u8>,
) -> io::Result<()> {
    gathered.clear();
    for Reply { cookie, body } in replies.drain(..) {
        match body {
            Body::Done(result) => protocol::put_simple(gathered, cookie, result),
            Body::Data { head, len, lease } => {
                if head {
                    protocol::put_simple(gathered, cookie, Ok(()));
                }
                put_data(stream, gathered, lease, len)?;
            }
            Body::Chunk {
                done,
                offset,
                len,
                lease,
            } => {
                protocol::put_data_chunk(gathered, cookie, done, offset, len);
                put_data(stream, gathered, lease, len)?;
            }
            Body::ErrorChunk { done, at, errno } => {
                protocol::put_error_chunk(gathered, cookie, done, errno, at);
            }
        }
        if gathered.len() >= GATHERED_BYTES_MAX {
            stream.write_all(gathered)?;
            gathered.clear();
        }
    }
    stream.write_all(gathered)
}

fn put_data(
    mut stream: &Stream,
    gathered: &mut Vec<u8>,
    lease: Lease<Ask>,
    len: u32,
) -> io::Result<()> {
    let len = usize::try_from(len).expect("64-bit platform");
    let data = lease.data().part(0..len);
    if len <= GATHER_BYTES {
        data.with(|bytes| gathered.extend_from_slice(bytes));
        return Ok(());
    }
    stream.write_all(gathered)?;
    gathered.clear();
    data.with(|bytes| stream.write_all(bytes))
}

/// What to do with the engine's answer.
#[derive(Debug)]
pub(super) enum What {
    /// Pass the outcome on.
    Outcome,
    /// Pass on the outcome of all parts, with the last.
    WritePart(Arc<Parts>),
    /// Send the data without chunks; `head` on the first part.
    Data {
        head: bool,
        len: u32,
        parts: Option<Arc<Parts>>,
    },
    /// Send the data as a chunk.
    Chunk {
        offset: u64,
        len: u32,
        parts: Option<Arc<Parts>>,
    },
    /// Go on with the rest of a range that is longer than one request, then pass the outcome on.
    Walk { kind: RequestKind, rest: Pieces },
}

/// Who takes the answer of a request of a client.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) outbox: Arc<Outbox>,
    pub(super) cookie: u64,
    pub(super) what: What,
}

impl Asker for Ask {
    fn answer(self, lease: Lease<Self>, result: Result<(), Errno>) {
        let Self {
            outbox,
            cookie,
            what,
        } = self;
        match what {
            What::Outcome => {
                drop(lease);
                outbox.push(cookie, Body::Done(result));
            }
            What::WritePart(parts) => {
                drop(lease);
                match parts.done(result) {
                    Some(all) => outbox.push(cookie, Body::Done(all)),
                    None => outbox.release(),
                }
            }
            What::Data { head, len, parts } => {
                if let Some(parts) = parts {
                    parts.done(result);
                }
                if result.is_err() && !head {
                    // The head promised data that there is not: only closing tells the client.
                    outbox.break_off();
                }
                let body = match result {
                    Ok(()) => Body::Data { head, len, lease },
                    Err(_) => Body::Done(result),
                };
                outbox.push(cookie, body);
            }
            What::Chunk { offset, len, parts } => {
                answer_chunk(&outbox, cookie, (offset, len), parts, (lease, result));
            }
            What::Walk { kind, mut rest } => match (result, rest.next()) {
                (Ok(()), Some(piece)) => {
                    let what = What::Walk { kind, rest };
                    let ask = Self {
                        outbox,
                        cookie,
                        what,
                    };
                    lease.submit(kind, Some(piece), ask);
                }
                (result, _) => {
                    drop(lease);
                    outbox.push(cookie, Body::Done(result));
                }
            },
        }
    }
}

fn answer_chunk(
    outbox: &Outbox,
    cookie: u64,
    (offset, len): (u64, u32),
    parts: Option<Arc<Parts>>,
    (lease, result): (Lease<Ask>, Result<(), Errno>),
) {
    // Counted under the lock, so that the chunk that says "done" is the last in the queue.
    let state = outbox.lock();
    let done = parts.is_none_or(|parts| parts.done(Ok(())).is_some());
    let body = match result {
        Ok(()) => Body::Chunk {
            done,
            offset,
            len,
            lease,
        },
        Err(errno) => {
            drop(lease);
            Body::ErrorChunk {
                done,
                at: Some(offset),
                errno,
            }
        }
    };
    outbox.push_to(state, cookie, body);
}
