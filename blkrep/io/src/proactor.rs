//! The data-plane seam: operations in, completions out.
//!
//! Owns the traits [`Io`] and [`Worker`] and the loop that joins them. An operation owns its
//! memory and its file from submission to completion. Nothing here blocks but [`Io::wait`].

use crate::memory::Slice;
use blkrep_types::{Congestion, CongestionName, Errno, Nanos, NodeName};
use std::any::Any;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

/// What a worker calls an operation; comes back with its completion.
pub type Token = u64;

/// One operation.
#[derive(Debug, Clone)]
pub enum Op<F, S> {
    /// Fills `slice` from the file. Completes whole or with an error; past the end is EIO.
    Read {
        /// The file.
        file: F,
        /// First byte.
        offset: u64,
        /// Where the bytes go.
        slice: Slice,
    },
    /// Writes `slice` to the file. Completes whole or with an error.
    Write {
        /// The file.
        file: F,
        /// First byte.
        offset: u64,
        /// The bytes.
        slice: Slice,
        /// Durable when it completes (FUA).
        durable: bool,
    },
    /// Makes every write that completed before the submission durable.
    Sync {
        /// The file.
        file: F,
    },
    /// Makes a range read as zeroes; durable after a `Sync`, as a write is.
    Zero {
        /// The file.
        file: F,
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// The storage below may be given back (a discard).
        free: bool,
    },
    /// Connects to `peer`; the completion carries the socket.
    Connect {
        /// Where to.
        peer: SocketAddr,
    },
    /// Takes one connection of a listener; the completion carries the socket.
    Accept {
        /// The listener.
        listener: S,
    },
    /// Sends a prefix of `slice`; the result says how many bytes.
    Send {
        /// The connection.
        socket: S,
        /// The bytes.
        slice: Slice,
    },
    /// Receives at least one byte into `slice`; 0 means the peer closed.
    Recv {
        /// The connection.
        socket: S,
        /// Where the bytes go.
        slice: Slice,
    },
}

/// What became of an operation.
#[derive(Debug)]
pub struct Completion<S> {
    /// The operation's name.
    pub token: Token,
    /// Bytes moved (reads, writes, sends, receives), else 0.
    pub result: Result<u32, Errno>,
    /// The new connection of `Connect` and `Accept`.
    pub socket: Option<S>,
}

/// What is known of a connection's other end, where connections are encrypted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LineFacts {
    /// Who is proven to be there; `None` on a plain connection.
    pub node: Option<NodeName>,
    /// Why the connection could not be used: in words and, after `; `, what to do.
    pub trouble: Option<String>,
}

/// What became of a wish for a congestion control.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Steering {
    /// What is in force; `None` where connections have none.
    pub in_force: Option<CongestionName>,
    /// Why it is not the one that was named; then it is the system's.
    pub refused: Option<Errno>,
}

/// Wakes a worker from another thread.
pub trait Wake: Any + Send + Sync {
    /// Makes the worker's current or next wait return. Cheap, idempotent, never blocks.
    fn wake(&self);
}

/// A handle that wakes one worker.
#[derive(Clone)]
pub struct Waker(Arc<dyn Wake>);

impl Waker {
    /// The handle over `wake`.
    #[must_use]
    pub fn new(wake: Arc<dyn Wake>) -> Self {
        Self(wake)
    }

    /// Wakes the worker.
    pub fn wake(&self) {
        self.0.wake();
    }

    /// True if both wake the same worker.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// True if there is no other handle to the worker.
    pub(crate) fn is_last(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    /// What is behind the handle, for a ring that knows its own kind.
    pub(crate) fn inner(&self) -> &dyn Any {
        &*self.0
    }
}

impl fmt::Debug for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Waker")
    }
}

/// What one data-plane thread can do. Made on the thread that uses it.
pub trait Io {
    /// An open file or block device; clones share it, the last one closes it.
    type File: Clone + fmt::Debug + Send + 'static;
    /// A connection or listener; clones share it, the last one closes it.
    type Socket: Clone + fmt::Debug + Send + 'static;

    /// Monotonic time. It may stand still from one `wait` to the next, and for up to 4 ms; but a
    /// `wait` that its deadline ended is followed by a time that is not before the deadline.
    fn now(&self) -> Nanos;

    /// Monotonic time as it is now, to measure with.
    fn exact_now(&self) -> Nanos;

    /// A random number, fit for identities.
    fn random(&mut self) -> u64;

    /// Starts an operation. Never blocks for the operation itself, never fails: errors complete.
    fn submit(&mut self, token: Token, op: Op<Self::File, Self::Socket>);

    /// Ends both directions of a connection; its pending operations complete with an error or 0.
    fn shutdown(&mut self, socket: &Self::Socket);

    /// What is known of a connection's other end.
    fn line(&self, _socket: &Self::Socket) -> LineFacts {
        LineFacts::default()
    }

    /// Chooses how a connection shares the line; cheap, at any time.
    fn steer(&self, _socket: &Self::Socket, _wanted: Congestion) -> Steering {
        Steering::default()
    }

    /// A handle that makes `wait` return.
    fn waker(&self) -> Waker;

    /// Wakes another worker by the next `wait` of this one at the latest: a thread that goes to
    /// its own ring anyway needs no system call more for it.
    fn notify(&mut self, waker: &Waker) {
        waker.wake();
    }

    /// Waits until something completed, a waker was used or `deadline` passed; appends what
    /// completed to `out`.
    ///
    /// # Errors
    /// The ring itself is broken: the worker cannot go on.
    fn wait(
        &mut self,
        deadline: Option<Nanos>,
        out: &mut Vec<Completion<Self::Socket>>,
    ) -> Result<(), Errno>;
}

/// A data-plane thread's work, driven by completions.
pub trait Worker<I: Io> {
    /// Starts its first operations.
    fn start(&mut self, io: &mut I);

    /// Takes one completion.
    fn on_completion(&mut self, io: &mut I, completion: Completion<I::Socket>);

    /// Called after each batch of completions, when woken, and when the deadline passed.
    fn on_turn(&mut self, io: &mut I);

    /// When it wants its next turn at the latest.
    fn deadline(&self) -> Option<Nanos>;

    /// True when it has nothing in flight and will never have again.
    fn finished(&self) -> bool;
}

/// Runs a worker until it is finished.
///
/// # Errors
/// The ring is broken.
pub fn run<I: Io, W: Worker<I> + ?Sized>(io: &mut I, worker: &mut W) -> Result<(), Errno> {
    let mut completions = Vec::with_capacity(1024);
    worker.start(io);
    while !worker.finished() {
        io.wait(worker.deadline(), &mut completions)?;
        for completion in completions.drain(..) {
            worker.on_completion(io, completion);
        }
        worker.on_turn(io);
    }
    Ok(())
}
