//! Waking a ring from another thread.
//!
//! Owns an eventfd beside the word that says whether the ring's thread sleeps ([`super::sleep`]). A
//! wake costs something only when it does: a system call, or a message that the waking thread's
//! ring takes along.

use super::errno_of;
use super::sleep::Sleep;
use crate::proactor::Wake;
use blkrep_types::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::{AsRawFd, RawFd};

/// The shared part of a ring's wakers.
#[derive(Debug)]
pub(super) struct EventWake {
    event: EventFd,
    /// The sleeper's ring. Not kept open by this: see [`super::notice`].
    ring: RawFd,
    sleep: Sleep,
}

impl EventWake {
    /// The waker of the thread that sleeps in `ring`.
    pub(super) fn new(ring: RawFd) -> Result<Self, Errno> {
        // Blocking on purpose: the ring's read of it then waits instead of failing with EAGAIN.
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).map_err(errno_of)?;
        Ok(Self {
            event,
            ring,
            sleep: Sleep::new(),
        })
    }

    pub(super) fn raw(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    pub(super) const fn ring(&self) -> RawFd {
        self.ring
    }

    /// Says that the thread is about to sleep; false if it was woken already and must not.
    pub(super) fn may_sleep(&self) -> bool {
        self.sleep.may_sleep()
    }

    /// Leaves a notice; true if the thread sleeps and must be woken, by a message or by
    /// [`EventWake::write`].
    pub(super) fn notice(&self) -> bool {
        self.sleep.notice()
    }

    /// Wakes the thread by its eventfd, whatever the word says.
    pub(super) fn write(&self) {
        // The counter cannot overflow: at most two writes a sleep. An error would mean that our
        // own descriptor is not an eventfd.
        let written = self.event.write(1);
        debug_assert!(written.is_ok(), "writing an eventfd succeeds");
    }

    /// Says that the thread is awake; true if somebody woke it.
    pub(super) fn awake(&self) -> bool {
        self.sleep.awake()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
impl EventWake {
    pub(super) fn is_awake(&self) -> bool {
        self.sleep.is_awake()
    }

    /// Times it was written and nobody has read it. Blocks if there are none.
    pub(super) fn written(&self) -> u64 {
        self.event.read().unwrap()
    }
}

impl Wake for EventWake {
    fn wake(&self) {
        if self.notice() {
            self.write();
        }
    }
}
