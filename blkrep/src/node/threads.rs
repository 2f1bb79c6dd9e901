//! Data-plane threads: one ring and one worker each.
//!
//! Owns starting and joining them. A worker is built on its own thread, because a ring belongs to
//! the thread that made it; what building found out comes back before anything else goes on.
//! Enters: a builder. Leaves: a handle. Never decides what a worker does.

use blkrep_io::{Host, HostError, Waker, Worker, run};
use blkrep_types::Errno;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How often a thread that is to end is looked at.
const JOIN_POLL: Duration = Duration::from_millis(1);

/// Why a thread did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum ThreadError {
    /// The kernel gives no more threads.
    #[error("start thread {name}: {source}")]
    Spawn {
        /// Its name.
        name: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The kernel gives no ring.
    #[error("thread {name}: {source}")]
    Ring {
        /// Its name.
        name: String,
        /// The kernel's reason.
        source: HostError,
    },
    /// The worker could not be built.
    #[error("thread {name}: {reason}")]
    Build {
        /// Its name.
        name: String,
        /// Why.
        reason: String,
    },
}

/// A running worker's thread.
#[derive(Debug)]
pub(super) struct WorkerThread {
    name: String,
    handle: Option<JoinHandle<Result<(), Errno>>>,
    waker: Waker,
    alive: Arc<AtomicBool>,
}

/// Clears its flag when the thread ends. A worker that panics takes the process with it: its queue
/// would be served by nobody, while a successor of the process takes everything over.
struct AliveGuard(Arc<AtomicBool>);

impl Drop for AliveGuard {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
        if thread::panicking() {
            std::process::abort();
        }
    }
}

impl WorkerThread {
    /// Starts a thread named `name` with a ring of `entries`, and on it the worker that `build`
    /// makes. Returns when the worker was built, not when it has done anything.
    ///
    /// # Errors
    /// No thread, no ring, or `build` failed.
    pub(super) fn start<H: Host, W, B>(
        host: &H,
        name: &str,
        entries: u32,
        build: B,
    ) -> Result<Self, ThreadError>
    where
        W: Worker<H::Io>,
        B: FnOnce(&mut H::Io) -> Result<W, String> + Send + 'static,
    {
        let (told, built) = mpsc::sync_channel(1);
        let alive = Arc::new(AtomicBool::new(true));
        let guard = AliveGuard(Arc::clone(&alive));
        let host = host.clone();
        let own_name = name.to_owned();
        let body = move || {
            let _guard = guard;
            let failed = |error| (told.send(Err(error)), Ok(())).1;
            // Declared before the ring, so dropped after it: the kernel lets go of a queue's memory
            // with the ring.
            let mut worker = None;
            let mut io = match host.ring(entries) {
                Ok(io) => io,
                Err(source) => {
                    return failed(ThreadError::Ring {
                        name: own_name,
                        source,
                    });
                }
            };
            let worker = match build(&mut io) {
                Ok(built) => worker.insert(built),
                Err(reason) => {
                    return failed(ThreadError::Build {
                        name: own_name,
                        reason,
                    });
                }
            };
            // Nobody listens only if the starter is gone; then this worker is told to stop.
            let _ = told.send(Ok(blkrep_io::Io::waker(&io)));
            let ended = run(&mut io, worker);
            if let Err(errno) = ended {
                tracing::error!(thread = own_name, %errno, "ring broke");
            }
            ended
        };
        // The kernel keeps 15 bytes of a thread's name.
        let handle = thread::Builder::new()
            .name(name.chars().take(15).collect())
            .spawn(body)
            .map_err(|source| ThreadError::Spawn {
                name: name.to_owned(),
                source,
            })?;
        let waker = match built.recv() {
            Ok(result) => result?,
            Err(_) => {
                let reason = "it ended while it started; see the log".to_owned();
                return Err(ThreadError::Build {
                    name: name.to_owned(),
                    reason,
                });
            }
        };
        Ok(Self {
            name: name.to_owned(),
            handle: Some(handle),
            waker,
            alive,
        })
    }

    /// Wakes the worker.
    pub(super) fn wake(&self) {
        self.waker.wake();
    }

    /// True while it runs.
    #[must_use]
    pub(super) fn alive(&self) -> bool {
        self.alive.load(Ordering::Acquire)
    }

    /// Waits until the worker is finished; somebody has told it to.
    pub(super) fn join(mut self) {
        if let Some(handle) = self.handle.take()
            && handle.join().is_err()
        {
            tracing::error!(thread = self.name, "thread panicked");
        }
    }

    /// As [`Self::join`], but no longer than until `end`.
    ///
    /// # Errors
    /// It is not finished: here it is again.
    pub(super) fn join_until(self, end: Instant) -> Result<(), Self> {
        while self.alive() {
            if Instant::now() > end {
                return Err(self);
            }
            thread::sleep(JOIN_POLL);
        }
        self.join();
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use blkrep_io::real::{RealHost, UringIo};
    use blkrep_io::{Completion, Io};
    use blkrep_types::Nanos;

    struct Once(Arc<AtomicBool>);

    impl Worker<UringIo> for Once {
        fn start(&mut self, _: &mut UringIo) {}
        fn on_completion(&mut self, _: &mut UringIo, _: Completion<<UringIo as Io>::Socket>) {}
        fn on_turn(&mut self, _: &mut UringIo) {}
        fn deadline(&self) -> Option<Nanos> {
            None
        }
        fn finished(&self) -> bool {
            self.0.load(Ordering::Acquire)
        }
    }

    #[test]
    fn a_worker_runs_until_it_is_finished() {
        let stop = Arc::new(AtomicBool::new(false));
        let host = RealHost::new("blkrep-test-threads");
        let inner = Arc::clone(&stop);
        let thread = WorkerThread::start(&host, "once", 8, move |_| Ok(Once(inner))).unwrap();
        assert!(thread.alive());
        stop.store(true, Ordering::Release);
        thread.wake();
        thread.join();
    }

    #[test]
    fn a_worker_that_does_not_finish_is_waited_for_no_longer_than_asked() {
        let stop = Arc::new(AtomicBool::new(false));
        let host = RealHost::new("blkrep-test-threads");
        let inner = Arc::clone(&stop);
        let thread = WorkerThread::start(&host, "stays", 8, move |_| Ok(Once(inner))).unwrap();
        let thread = thread.join_until(Instant::now()).unwrap_err();
        stop.store(true, Ordering::Release);
        thread.wake();
        thread.join();
    }

    #[test]
    fn what_building_found_wrong_is_told_to_the_starter() {
        let host = RealHost::new("blkrep-test-threads");
        let error =
            WorkerThread::start::<_, Once, _>(&host, "wrong", 8, |_| Err("no disk".to_owned()))
                .unwrap_err();
        assert_eq!(error.to_string(), "thread wrong: no disk");
    }
}
