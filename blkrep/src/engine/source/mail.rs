//! A worker's mailbox: the flag that there is something for it.
//!
//! Owns the flag and the worker's waker. What is for the worker stands elsewhere, behind the
//! group's mutex; the flag is raised after the mutex was released and lowered before it is taken.
//! Never knows what was sent.

use super::sync::{AtomicBool, Ordering};
use blkrep_io::{Io, Waker};
use std::sync::OnceLock;

/// How a worker is told that there is something for it.
#[derive(Debug, Default)]
pub(super) struct Mail {
    waiting: AtomicBool,
    waker: OnceLock<Waker>,
    /// The worker has ended.
    gone: AtomicBool,
}

impl Mail {
    pub(super) fn register(&self, waker: Waker) {
        // A worker starts once; a second waker would be the same one.
        let _ = self.waker.set(waker);
    }

    /// Takes the flag: what was sent before is seen by the next turn.
    pub(super) fn take(&self) -> bool {
        self.waiting.swap(false, Ordering::AcqRel)
    }

    pub(super) fn retire(&self) {
        self.gone.store(true, Ordering::Release);
    }

    pub(super) fn is_retired(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// True from the worker's start to its end.
    pub(super) fn is_alive(&self) -> bool {
        !self.is_retired() && self.waker.get().is_some()
    }

    /// Wakes the worker, unless somebody has since its last look.
    pub(super) fn send(&self) {
        if !self.waiting.swap(true, Ordering::AcqRel)
            && let Some(waker) = self.waker.get()
        {
            waker.wake();
        }
    }

    /// The same from a worker, whose next wait tells it.
    pub(super) fn notify(&self, io: &mut impl Io) {
        if !self.waiting.swap(true, Ordering::AcqRel)
            && let Some(waker) = self.waker.get()
        {
            io.notify(waker);
        }
    }
}
