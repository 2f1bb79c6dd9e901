//! Links that have nothing to send.
//!
//! Owns one word with a bit for each. A link says that it will wait, then looks once more; whoever
//! publishes does so first and then looks who waits. One of the two sees the other. Without a link
//! that waits, publishing costs a fence and no mutex. Never wakes anybody itself.

use super::sync::{AtomicU64, Ordering, fence};

/// Links, by bit, that wait for something to send.
#[derive(Debug, Default)]
pub(super) struct IdleLinks(AtomicU64);

impl IdleLinks {
    /// A link found nothing to send and will wait. It must look once more after this.
    pub(super) fn wait(&self, link: usize) {
        self.0.fetch_or(1 << link, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// True if links wait, which the caller must wake: something was published before this.
    pub(super) fn take(&self) -> bool {
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed) != 0 && self.0.swap(0, Ordering::SeqCst) != 0
    }
}
