//! Requests that come from threads other than the worker's: a bounded mailbox of tags.
//!
//! Owns the tags of a queue, their memory and the way of a request from a front end's thread to
//! the worker and back. Enters: a [`Lease`] of a tag, filled and submitted by a front end's thread.
//! Leaves: requests at the worker's turn, and their answers through the [`Asker`] that came with
//! them. Bounded by the number of tags: who finds none free waits. Nothing is allocated once it
//! runs. Never holds its lock across I/O, and never looks at the bytes.

use super::sync::{AtomicBool, Condvar, Mutex, MutexGuard, Ordering};
use crate::front::{FrontQueue, Request, RequestKind};
use blkrep_io::{Completion, Io, PAGE_BYTES, Region, Slice, Waker};
use blkrep_types::{Errno, Extent};
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

/// Who takes the answer of a request.
///
/// It is called on the worker's thread and must not block. The lease comes back with it: the tag
/// is free again when the asker drops it, which may be later and on another thread.
pub(crate) trait Asker: Send + fmt::Debug + Sized + 'static {
    /// Takes the answer.
    fn answer(self, lease: Lease<Self>, result: Result<(), Errno>);
}

/// What the threads share.
pub(crate) struct Mailbox<A: Asker> {
    region: Arc<Region>,
    depth: u16,
    request_bytes: usize,
    state: Mutex<State<A>>,
    /// A tag was returned, or the mailbox was closed.
    returned: Condvar,
    /// There may be something to take, so that an idle turn needs no lock.
    posted: AtomicBool,
}

struct State<A> {
    free: Vec<u16>,
    pending: VecDeque<Request>,
    /// By tag: who asked for what the engine has, or is to get.
    askers: Vec<Option<A>>,
    waker: Option<Waker>,
    waiting: usize,
    /// No tag is leased any more.
    closed: bool,
    /// The queue is gone: nobody takes requests.
    abandoned: bool,
}

impl<A: Asker> Mailbox<A> {
    /// A mailbox of `depth` tags with `request_bytes` of memory each, and its queue.
    ///
    /// # Errors
    /// EINVAL for no tags or no bytes; ENOMEM.
    pub(crate) fn new(
        depth: u16,
        request_bytes: usize,
    ) -> Result<(Arc<Self>, MailboxQueue<A>), Errno> {
        if depth == 0 || request_bytes == 0 {
            return Err(Errno::EINVAL);
        }
        let request_bytes = request_bytes.next_multiple_of(PAGE_BYTES);
        let bytes = request_bytes
            .checked_mul(usize::from(depth))
            .ok_or(Errno::EINVAL)?;
        let mailbox = Arc::new(Self {
            region: Region::anonymous(bytes)?,
            depth,
            request_bytes,
            state: Mutex::new(State {
                // The last is leased first: start with tag 0, and reuse what is warm.
                free: (0..depth).rev().collect(),
                pending: VecDeque::with_capacity(usize::from(depth)),
                askers: (0..depth).map(|_| None).collect(),
                waker: None,
                waiting: 0,
                closed: false,
                abandoned: false,
            }),
            returned: Condvar::new(),
            posted: AtomicBool::new(false),
        });
        let queue = MailboxQueue {
            mailbox: Arc::clone(&mailbox),
        };
        Ok((mailbox, queue))
    }

    /// How many tags there are.
    pub(crate) const fn depth(&self) -> u16 {
        self.depth
    }

    /// Bytes of memory of one tag.
    pub(crate) const fn request_bytes(&self) -> usize {
        self.request_bytes
    }

    fn lock(&self) -> MutexGuard<'_, State<A>> {
        // A panic while it is held is a bug of this file alone; going on would lose requests.
        self.state
            .lock()
            .expect("no panic under the mailbox's lock")
    }

    /// Leases a tag; waits for one. `None` once the mailbox is closed.
    pub(crate) fn lease(self: &Arc<Self>) -> Option<Lease<A>> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(tag) = state.free.pop() {
                return Some(Lease {
                    mailbox: Arc::clone(self),
                    tag: Some(tag),
                });
            }
            state.waiting += 1;
            state = self
                .returned
                .wait(state)
                .expect("no panic under the mailbox's lock");
            state.waiting -= 1;
        }
    }

    /// Leases no more tags. The queue is finished when every leased one has come back.
    pub(crate) fn close(&self) {
        let waker = {
            let mut state = self.lock();
            state.closed = true;
            state.waker.clone()
        };
        self.returned.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn post(self: &Arc<Self>, request: Request, asker: A) {
        let waker = {
            let mut state = self.lock();
            if state.abandoned {
                drop(state);
                let lease = self.held(request.tag);
                asker.answer(lease, Err(Errno::ENODEV));
                return;
            }
            let place = &mut state.askers[usize::from(request.tag)];
            assert!(place.is_none(), "a tag has one request at a time");
            *place = Some(asker);
            state.pending.push_back(request);
            self.posted.store(true, Ordering::Release);
            state.waker.clone()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn held(self: &Arc<Self>, tag: u16) -> Lease<A> {
        Lease {
            mailbox: Arc::clone(self),
            tag: Some(tag),
        }
    }

    fn give_back(&self, tag: u16) {
        let mut state = self.lock();
        assert!(
            state.free.len() < usize::from(self.depth),
            "a tag is given back once"
        );
        state.free.push(tag);
        let waiting = state.waiting > 0;
        // The worker learns that the last one is back, and that it is finished.
        let last = state.closed && state.free.len() == usize::from(self.depth);
        let waker = if last { state.waker.clone() } else { None };
        drop(state);
        if waiting {
            self.returned.notify_one();
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn memory(&self, tag: u16) -> Slice {
        let start = usize::from(tag) * self.request_bytes;
        self.region.slice(start..start + self.request_bytes)
    }
}

impl<A: Asker> fmt::Debug for Mailbox<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Mailbox({} tags of {} bytes)",
            self.depth, self.request_bytes
        )
    }
}

/// A tag that is the holder's: its memory may be read and written until it is submitted.
/// Dropping it makes the tag free again.
pub(crate) struct Lease<A: Asker> {
    mailbox: Arc<Mailbox<A>>,
    tag: Option<u16>,
}

impl<A: Asker> Lease<A> {
    /// The tag's memory.
    pub(crate) fn data(&self) -> Slice {
        self.mailbox.memory(self.tag.expect("a lease has its tag"))
    }

    /// Hands the request to the worker; `asker` gets the answer.
    pub(crate) fn submit(mut self, kind: RequestKind, extent: Option<Extent>, asker: A) {
        let tag = self.tag.take().expect("a lease has its tag");
        let mailbox = Arc::clone(&self.mailbox);
        mailbox.post(Request { tag, kind, extent }, asker);
    }
}

impl<A: Asker> fmt::Debug for Lease<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({:?})", self.tag)
    }
}

impl<A: Asker> Drop for Lease<A> {
    fn drop(&mut self) {
        if let Some(tag) = self.tag.take() {
            self.mailbox.give_back(tag);
        }
    }
}

/// The worker's end of a mailbox.
#[derive(Debug)]
pub(crate) struct MailboxQueue<A: Asker> {
    mailbox: Arc<Mailbox<A>>,
}

impl<I: Io, A: Asker> FrontQueue<I> for MailboxQueue<A> {
    fn depth(&self) -> u16 {
        self.mailbox.depth
    }

    fn start(&mut self, io: &mut I) -> Result<(), Errno> {
        let waker = io.waker();
        self.mailbox.lock().waker = Some(waker.clone());
        // What was posted before there was a waker.
        waker.wake();
        Ok(())
    }

    fn data(&self, tag: u16) -> Slice {
        self.mailbox.memory(tag)
    }

    fn on_completion(
        &mut self,
        _io: &mut I,
        completion: Completion<I::Socket>,
        _requests: &mut Vec<Request>,
    ) {
        unreachable!(
            "a mailbox submits no operation, and got the completion {:#x}",
            completion.token
        );
    }

    fn on_turn(&mut self, _io: &mut I, requests: &mut Vec<Request>) {
        if self.mailbox.posted.load(Ordering::Acquire) {
            let mut state = self.mailbox.lock();
            self.mailbox.posted.store(false, Ordering::Release);
            requests.extend(state.pending.drain(..));
        }
    }

    fn complete(&mut self, _io: &mut I, tag: u16, result: Result<(), Errno>) {
        let asker = self.mailbox.lock().askers[usize::from(tag)]
            .take()
            .expect("a tag is completed once");
        asker.answer(self.mailbox.held(tag), result);
    }

    fn finished(&self) -> bool {
        let state = self.mailbox.lock();
        state.closed && state.free.len() == usize::from(self.mailbox.depth)
    }

    fn ending(&self) -> bool {
        self.mailbox.lock().closed
    }

    fn abandon(&mut self, _io: &mut I) {
        self.refuse_all();
    }
}

impl<A: Asker> MailboxQueue<A> {
    /// Who still waits for an answer gets an error; nobody can ask any more.
    fn refuse_all(&self) {
        let askers: Vec<(u16, A)> = {
            let mut state = self.mailbox.lock();
            state.closed = true;
            state.abandoned = true;
            state.pending.clear();
            (0..self.mailbox.depth)
                .filter_map(|tag| Some((tag, state.askers[usize::from(tag)].take()?)))
                .collect()
        };
        self.mailbox.returned.notify_all();
        for (tag, asker) in askers {
            asker.answer(self.mailbox.held(tag), Err(Errno::ENODEV));
        }
    }
}

impl<A: Asker> Drop for MailboxQueue<A> {
    /// The worker has gone.
    fn drop(&mut self) {
        self.refuse_all();
    }
}

/// A part of a range that is longer than one request may be.
///
/// Yields pieces of at most `piece` bytes, cut where a multiple of `piece` lies, in order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pieces {
    next: u64,
    end: u64,
    piece: u64,
}

impl Pieces {
    pub(crate) fn new(extent: Extent, piece: u64) -> Self {
        assert!(piece > 0, "a piece has at least one byte");
        Self {
            next: extent.offset().get(),
            end: extent.end().get(),
            piece,
        }
    }
}

impl Iterator for Pieces {
    type Item = Extent;

    fn next(&mut self) -> Option<Extent> {
        use blkrep_types::{ByteLen, ByteOffset};
        if self.next >= self.end {
            return None;
        }
        let end = ((self.next / self.piece + 1) * self.piece).min(self.end);
        let piece = Extent::new(ByteOffset::new(self.next), ByteLen::new(end - self.next))
            .expect("a part of a legal range that is not empty");
        self.next = end;
        Some(piece)
    }
}

#[cfg(test)]
#[path = "mailbox_tests.rs"]
mod tests;
