//! One request of a client in parts: longer than a tag's memory.
//!
//! Owns the count of parts that are not done, and an error. Parts end on any thread; the last one
//! has the outcome of all. Never sends an answer.

use super::sync::{AtomicI32, AtomicU32, Ordering};
use blkrep_types::Errno;
use std::sync::Arc;

/// Parts of one request that is longer than a tag.
#[derive(Debug)]
pub(super) struct Parts {
    left: AtomicU32,
    /// The first error's number, or 0.
    error: AtomicI32,
}

impl Parts {
    pub(super) fn new(count: u32) -> Arc<Self> {
        Arc::new(Self {
            left: AtomicU32::new(count),
            error: AtomicI32::new(0),
        })
    }

    /// True once a part has failed.
    pub(super) fn failed(&self) -> bool {
        self.error.load(Ordering::Relaxed) != 0
    }

    /// Counts one part as done; `Some` with the outcome of all if it was the last.
    pub(super) fn done(&self, result: Result<(), Errno>) -> Option<Result<(), Errno>> {
        if let Err(errno) = result {
            // Which of several errors is told does not matter.
            self.error.store(errno.get(), Ordering::Relaxed);
        }
        let last = self.left.fetch_sub(1, Ordering::AcqRel) == 1;
        last.then(|| match self.error.load(Ordering::Relaxed) {
            0 => Ok(()),
            number => Err(Errno::new(number)),
        })
    }
}
