//! The changes that a daemon makes in its state directory, one by one, and its death at one of them.
//!
//! Owns a thread that watches and kills. A process and a number enter; whether it came to that leaves. Never looks into
//! a file.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// How long the watching thread looks before it sees whether it is to end.
const LOOK_MS: u16 = 20;

/// Kills a process with the change of the given number, counted from now.
pub(crate) struct Killer {
    over: Arc<AtomicBool>,
    thread: JoinHandle<bool>,
}

impl Killer {
    /// Changes are names that come, go or move in `directories`, and files in them that get other bytes.
    pub(crate) fn at_change(number: usize, pid: u32, directories: &[PathBuf]) -> Self {
        let changes = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MODIFY;
        for directory in directories {
            std::fs::create_dir_all(directory).unwrap();
            changes.add_watch(directory, flags).unwrap();
        }
        let over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            let mut seen = 0;
            loop {
                let mut ready = [PollFd::new(changes.as_fd(), PollFlags::POLLIN)];
                poll(&mut ready, PollTimeout::from(LOOK_MS)).unwrap();
                let last = told.load(Ordering::Acquire);
                seen += changes.read_events().map_or(0, |events| events.len());
                if seen >= number {
                    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
                    return true;
                }
                if last {
                    return false;
                }
            }
        });
        Self { over, thread }
    }

    /// True if it came to that.
    pub(crate) fn has_killed(&self) -> bool {
        self.thread.is_finished()
    }

    /// Nothing more is expected: true if it was killed.
    pub(crate) fn end(self) -> bool {
        self.over.store(true, Ordering::Release);
        self.thread.join().unwrap()
    }
}
