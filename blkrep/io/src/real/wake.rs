//! Waking a ring from another thread.
//!
//! Owns an eventfd and a word that says whether the ring's thread sleeps. A wake costs a system
//! call only when it does; the sleeper looks at the word after it said that it will sleep, so no
//! wake is lost between the two.

use super::errno_of;
use crate::proactor::Wake;
use blkrep_types::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU8, Ordering};

const AWAKE: u8 = 0;
const ASLEEP: u8 = 1;
const NOTIFIED: u8 = 2;

/// The shared part of a ring's wakers.
#[derive(Debug)]
pub(super) struct EventWake {
    event: EventFd,
    state: AtomicU8,
}

impl EventWake {
    pub(super) fn new() -> Result<Self, Errno> {
        // Blocking on purpose: the ring's read of it then waits instead of failing with EAGAIN.
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).map_err(errno_of)?;
        Ok(Self {
            event,
            state: AtomicU8::new(AWAKE),
        })
    }

    pub(super) fn raw(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    /// Says that the thread is about to sleep; false if it was woken already and must not.
    pub(super) fn may_sleep(&self) -> bool {
        self.state
            .compare_exchange(AWAKE, ASLEEP, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }

    /// Says that the thread is awake; true if somebody woke it.
    pub(super) fn awake(&self) -> bool {
        self.state.swap(AWAKE, Ordering::SeqCst) == NOTIFIED
    }
}

impl Wake for EventWake {
    fn wake(&self) {
        if self.state.swap(NOTIFIED, Ordering::SeqCst) == ASLEEP {
            // The counter cannot overflow: one write a sleep. An error would mean that our own
            // descriptor is not an eventfd.
            let written = self.event.write(1);
            debug_assert!(written.is_ok(), "writing an eventfd succeeds");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_before_the_sleep_prevents_it() {
        let wake = EventWake::new().unwrap();
        wake.wake();
        assert!(!wake.may_sleep());
        assert!(wake.awake());
        assert!(wake.may_sleep());
        wake.wake();
        assert!(wake.awake());
        assert!(!wake.awake());
    }
}
