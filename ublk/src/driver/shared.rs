//! What a device and its queues tell one another across threads.
//!
//! Owns a few flags and counts, and the wakers of the queues' threads. Never on the way of a
//! request: a queue only reads one flag a turn.

use super::sync::{AtomicBool, AtomicI32, Condvar, Mutex, MutexGuard, Ordering};
use blkrep_io::Waker;
use blkrep_types::Errno;
use std::time::{Duration, Instant};

/// The meeting point of a device and its queues.
#[derive(Debug)]
pub(super) struct Shared {
    leaving: AtomicBool,
    refusing: AtomicBool,
    released: AtomicBool,
    failure: AtomicI32,
    queues: Mutex<Queues>,
    changed: Condvar,
}

#[derive(Debug)]
struct Queues {
    wakers: Vec<Waker>,
    /// Queues that may still have a request with the engine.
    busy: u16,
}

impl Shared {
    /// For a device of `queues` queues.
    pub(super) fn new(queues: u16) -> Self {
        Self {
            leaving: AtomicBool::new(false),
            refusing: AtomicBool::new(false),
            released: AtomicBool::new(false),
            failure: AtomicI32::new(0),
            queues: Mutex::new(Queues {
                wakers: Vec::new(),
                busy: queues,
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues
            .lock()
            .expect("no thread panics while it counts queues")
    }

    fn wake_all(&self) {
        for waker in &self.lock().wakers {
            waker.wake();
        }
    }

    /// A queue's thread can be woken from now on.
    pub(super) fn started(&self, waker: Waker) {
        self.lock().wakers.push(waker);
    }

    /// Tells the queues to hand on no more requests and to answer those that the engine has.
    pub(super) fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
        self.wake_all();
    }

    /// True if the queues are to hand on no more requests.
    pub(super) fn leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    /// Tells the queues to answer what comes with an error, and otherwise only what the engine has.
    pub(super) fn refuse(&self) {
        self.refusing.store(true, Ordering::Release);
        self.wake_all();
    }

    /// True if the queues are to answer what comes with an error.
    pub(super) fn refusing(&self) -> bool {
        self.refusing.load(Ordering::Acquire)
    }

    /// Tells the queues that the kernel will send no more.
    pub(super) fn release(&self) {
        self.released.store(true, Ordering::Release);
        self.wake_all();
    }

    /// True if the kernel will send no more.
    pub(super) fn released(&self) -> bool {
        self.released.load(Ordering::Acquire)
    }

    /// A queue has no request with the engine and will have none. Called once a queue.
    pub(super) fn drained(&self) {
        let mut queues = self.lock();
        assert!(queues.busy > 0, "a queue is drained once");
        queues.busy -= 1;
        self.changed.notify_all();
    }

    /// A queue cannot serve; the first reason is kept.
    pub(super) fn fail(&self, errno: Errno) {
        let first =
            self.failure
                .compare_exchange(0, errno.get(), Ordering::AcqRel, Ordering::Acquire);
        if first.is_ok() {
            tracing::warn!(%errno, "a queue of a ublk device cannot serve it");
        }
    }

    /// Why a queue cannot serve, if one cannot.
    pub(super) fn failure(&self) -> Option<Errno> {
        match self.failure.load(Ordering::Acquire) {
            0 => None,
            number => Some(Errno::new(number)),
        }
    }

    /// Waits until no queue has a request with the engine; false at the limit.
    pub(super) fn wait_drained(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        let mut queues = self.lock();
        while queues.busy > 0 {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            queues = self
                .changed
                .wait_timeout(queues, left)
                .expect("no thread panics while it counts queues")
                .0;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn waiting_ends_with_the_last_queue_or_at_the_limit() {
        let shared = Arc::new(Shared::new(2));
        assert!(!shared.wait_drained(Duration::from_millis(5)));
        shared.drained();
        let other = Arc::clone(&shared);
        let thread = std::thread::spawn(move || other.drained());
        assert!(shared.wait_drained(Duration::from_secs(10)));
        assert!(thread.join().is_ok());
    }

    #[test]
    fn the_first_failure_is_the_one_that_is_told() {
        let shared = Shared::new(1);
        assert_eq!(shared.failure(), None);
        shared.fail(Errno::EINVAL);
        shared.fail(Errno::EBUSY);
        assert_eq!(shared.failure(), Some(Errno::EINVAL));
    }
}
