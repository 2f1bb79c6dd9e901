//! A link's part in a limit of bandwidth.
//!
//! Owns the seat at a limit that links of several groups may share, and until when the link is to wait. What
//! is to be sent and time enter, how much of it may go leaves. Never sends anything.

use blkrep_core::pace::{Grant, Pacer, Seat};
use blkrep_types::{Nanos, Rate};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A limit of bandwidth that links share, whatever thread they are on.
#[derive(Debug, Clone, Default)]
pub struct Pace(Arc<Mutex<Pacer>>);

impl Pace {
    /// Bytes a second from now on, over all links that share it.
    pub fn set_rate(&self, rate: Rate) {
        self.lock().set_rate(rate);
    }

    /// Bytes a second over all links that share it.
    #[must_use]
    pub fn rate(&self) -> Rate {
        self.lock().rate()
    }

    /// True if somebody else keeps to it, or may soon.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    fn lock(&self) -> MutexGuard<'_, Pacer> {
        // Numbers only: none is half changed if a holder panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The same limit.
impl PartialEq for Pace {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Pace {}

/// A link's part.
#[derive(Debug)]
pub(super) struct Pacing {
    pace: Pace,
    seat: Seat,
    /// Of sends that have not ended.
    granted: usize,
    held_until: Option<Nanos>,
}

impl Pacing {
    pub(super) fn new(pace: Pace) -> Self {
        let seat = pace.lock().sit();
        Self {
            pace,
            seat,
            granted: 0,
            held_until: None,
        }
    }

    /// Keeps to this limit from now on.
    pub(super) fn keep_to(&mut self, pace: &Pace) {
        if self.pace != *pace {
            *self = Self::new(pace.clone());
        }
    }

    /// How many of `want` bytes may go now; `None` if none may.
    pub(super) fn ask(&mut self, now: Nanos, want: usize) -> Option<usize> {
        match self.pace.lock().ask(self.seat, now, want) {
            Grant::Bytes(bytes) => {
                self.granted = self.granted.saturating_add(bytes);
                self.held_until = None;
                Some(bytes)
            }
            Grant::NotBefore(then) => {
                self.held_until = Some(then);
                None
            }
        }
    }

    /// A send that was granted so many bytes ended after as many.
    pub(super) fn sent(&mut self, granted: usize, bytes: usize) {
        // What another limit granted is not given back to this one.
        let granted = granted.min(self.granted);
        self.granted -= granted;
        let unsent = granted.saturating_sub(bytes);
        if unsent > 0 {
            self.pace.lock().give_back(self.seat, unsent);
        }
    }

    /// Until when something waits for the limit.
    pub(super) const fn held_until(&self) -> Option<Nanos> {
        self.held_until
    }

    /// Nothing waits any more.
    pub(super) const fn forget(&mut self) {
        self.held_until = None;
    }
}

impl Drop for Pacing {
    fn drop(&mut self) {
        self.pace.lock().leave(self.seat);
    }
}
