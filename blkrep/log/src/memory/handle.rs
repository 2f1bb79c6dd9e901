//! Filling slots without the log's mutex.
//!
//! Owns what a thread may do to the one entry that it was told to fill. Never appends or frees.

use super::layout::{ENTRY_BYTES, HEADER_BYTES, entry};
use super::state::{self, PUBLISHED, Words};
use super::{MemoryLogShape, usize_of};
use blkrep_io::{Region, Slice};
use blkrep_types::Seq;
use std::sync::Arc;
use std::sync::atomic::Ordering::{self, Relaxed};

impl Words for Region {
    fn load(&self, at: usize, order: Ordering) -> u64 {
        self.load(at, order)
    }

    fn store(&self, at: usize, word: u64, order: Ordering) {
        self.store(at, word, order);
    }
}

/// Fills and publishes slots without the log's mutex: an unpublished entry belongs to the thread
/// that was told to fill it.
#[derive(Debug, Clone)]
pub struct LogHandle {
    pub(super) region: Arc<Region>,
    pub(super) shape: MemoryLogShape,
}

impl LogHandle {
    /// The bytes at a slot's position.
    ///
    /// # Panics
    /// If they are not within the log.
    #[must_use]
    pub fn data(&self, position: usize, len: usize) -> Slice {
        let start = self.shape.data_start() + position;
        assert!(
            position + len <= usize_of(self.shape.data_bytes),
            "a slot is within the log"
        );
        self.region.slice(start..start + len)
    }

    /// The bytes of an entry are complete. Its local write is not done, so nobody else changes
    /// its state meanwhile.
    pub fn publish(&self, seq: Seq) {
        let index = usize_of(seq.get() % self.shape.entries);
        let at = HEADER_BYTES + index * ENTRY_BYTES;
        debug_assert_eq!(self.region.load(at + entry::SEQ, Relaxed), seq.get());
        state::add(&*self.region, at + entry::STATE, PUBLISHED);
    }
}
