//! A source that hears of a newer generation: it writes no more, now and after a restart.
//!
//! Owns the order: the device returns errors first, whatever its state directory does; then it is
//! remembered, durably, before anybody is answered. What could not be remembered is tried again.
//! Never decides who is newer.

use super::OpenError;
use super::group::SourceShared;
use blkrep_io::Host;
use blkrep_types::Generation;
use std::sync::PoisonError;

impl<H: Host> SourceShared<H> {
    /// A newer generation exists elsewhere: from now on every request gets EIO, also after a
    /// restart.
    ///
    /// # Errors
    /// The superblock could not be written; the device returns EIO all the same, and
    /// [`Self::remember_fence`] tries again.
    pub fn fence(&self, newer: Generation) -> Result<(), OpenError> {
        self.command(|state| state.group.fence(newer));
        self.remember_newer(newer)
    }

    /// The group is fenced: makes it durable.
    pub(super) fn remember_newer(&self, newer: Generation) -> Result<(), OpenError> {
        let done = self.record(|record| record.newer = newer);
        let mut due = self
            .fence_due
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *due = done.is_err().then_some(newer);
        done
    }

    /// Tries again what [`Self::fence`] could not make durable; true if there was something and now
    /// it is.
    ///
    /// # Errors
    /// The superblock still cannot be written.
    pub fn remember_fence(&self) -> Result<bool, OpenError> {
        let due = *self
            .fence_due
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match due {
            Some(newer) => self.remember_newer(newer).map(|()| true),
            None => Ok(false),
        }
    }
}
