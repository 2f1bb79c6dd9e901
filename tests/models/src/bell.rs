//! A thread's ring without a kernel: its sleep, its wakers, its completions.
//!
//! Owns the product's word for sleeping and, for the eventfd, a count behind a lock. Waits as the
//! product's ring does (`blkrep/io/src/real/ring.rs`), so that workers can be driven over it.

use super::sleep::Sleep;
use super::sync::{Condvar, Mutex};
use blkrep_io::{Completion, Io, Op, Token, Wake, Waker};
use blkrep_types::{Errno, Nanos};
use std::sync::Arc;

/// What wakes a thread.
pub(super) struct Bell {
    sleep: Sleep,
    kernel: Mutex<Kernel>,
    answered: Condvar,
}

/// What the kernel has for the thread.
#[derive(Default)]
struct Kernel {
    rung: bool,
    completions: usize,
}

impl Bell {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            sleep: Sleep::new(),
            kernel: Mutex::default(),
            answered: Condvar::new(),
        })
    }

    /// An operation of the thread has completed.
    pub(super) fn complete(&self) {
        self.kernel.lock().expect("no panic here").completions += 1;
        self.answered.notify_one();
    }

    /// Waits for a wake or for completions, and says how many of these there were.
    pub(super) fn wait(&self) -> usize {
        let mut kernel = self.kernel.lock().expect("no panic here");
        kernel.rung = false;
        let mut completions = std::mem::take(&mut kernel.completions);
        drop(kernel);
        if completions == 0 && self.sleep.may_sleep() {
            let mut kernel = self.kernel.lock().expect("no panic here");
            while !kernel.rung && kernel.completions == 0 {
                kernel = self.answered.wait(kernel).expect("no panic here");
            }
            completions = std::mem::take(&mut kernel.completions);
        }
        self.sleep.awake();
        completions
    }
}

impl Wake for Bell {
    fn wake(&self) {
        if self.sleep.notice() {
            self.kernel.lock().expect("no panic here").rung = true;
            self.answered.notify_one();
        }
    }
}

/// A ring of that kind, for code that wants one. It submits nothing.
pub(super) struct Ring(pub(super) Arc<Bell>);

impl Io for Ring {
    type File = ();
    type Socket = ();

    fn now(&self) -> Nanos {
        Nanos::default()
    }

    fn exact_now(&self) -> Nanos {
        Nanos::default()
    }

    fn random(&mut self) -> u64 {
        0
    }

    fn submit(&mut self, token: Token, op: Op<(), ()>) {
        unreachable!("no operation is made here, and {token:#x} is {op:?}");
    }

    fn shutdown(&mut self, (): &()) {}

    fn waker(&self) -> Waker {
        Waker::new(Arc::<Bell>::clone(&self.0))
    }

    fn wait(&mut self, _: Option<Nanos>, _: &mut Vec<Completion<()>>) -> Result<(), Errno> {
        self.0.wait();
        Ok(())
    }
}
