//! Room in the circular area.
//!
//! Owns head and tail as positions that only grow: the place in the file is the position modulo
//! the capacity. A batch never wraps: where it would, the rest of the lap is skipped. Room is free
//! again only when the checkpoint behind it is durable.

use super::{JOURNAL_AREA_OFFSET, JOURNAL_BLOCK_BYTES};

/// Head and tail of the circular area.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    capacity: u64,
    head: u64,
    tail: u64,
}

impl Space {
    /// The area of `capacity` bytes whose live part is from `tail` to `head`.
    ///
    /// # Panics
    /// If the positions are not blocks, or further apart than the capacity.
    #[must_use]
    pub fn new(capacity: u64, tail: u64, head: u64) -> Self {
        assert!(
            capacity > 0 && capacity.is_multiple_of(JOURNAL_BLOCK_BYTES),
            "whole blocks"
        );
        let space = Self {
            capacity,
            head,
            tail,
        };
        space.check();
        space
    }

    fn check(&self) {
        assert!(
            self.head.is_multiple_of(JOURNAL_BLOCK_BYTES)
                && self.tail.is_multiple_of(JOURNAL_BLOCK_BYTES),
            "positions are blocks"
        );
        assert!(
            self.tail <= self.head && self.head - self.tail <= self.capacity,
            "live part {}..{} fits the capacity {}",
            self.tail,
            self.head,
            self.capacity
        );
    }

    /// Where a batch of `bytes` would begin; `None` while there is no room for it.
    #[must_use]
    pub fn place(&self, bytes: u64) -> Option<u64> {
        let position = self.begin(bytes);
        (position + bytes - self.tail <= self.capacity).then_some(position)
    }

    fn begin(&self, bytes: u64) -> u64 {
        let in_lap = self.head % self.capacity;
        if in_lap + bytes > self.capacity {
            self.head + (self.capacity - in_lap)
        } else {
            self.head
        }
    }

    /// Takes the room that [`Space::place`] named.
    ///
    /// # Panics
    /// If it is not that place.
    pub fn take(&mut self, position: u64, bytes: u64) {
        assert_eq!(
            self.place(bytes),
            Some(position),
            "room is taken where it was planned"
        );
        self.head = position + bytes;
        self.check();
    }

    /// Gives up everything before `tail`; called when the checkpoint is durable.
    ///
    /// # Panics
    /// If it goes back or past the head.
    pub fn free(&mut self, tail: u64) {
        assert!(tail >= self.tail, "a checkpoint never goes back");
        self.tail = tail;
        self.check();
    }

    /// Where the next batch would begin if it fits the lap.
    #[must_use]
    pub const fn head(&self) -> u64 {
        self.head
    }

    /// Bytes in use, skipped ones included.
    #[must_use]
    pub const fn used(&self) -> u64 {
        self.head - self.tail
    }

    /// All bytes.
    #[must_use]
    pub const fn capacity(&self) -> u64 {
        self.capacity
    }

    /// The place in the file of `position`.
    #[must_use]
    pub const fn file_offset(&self, position: u64) -> u64 {
        JOURNAL_AREA_OFFSET + position % self.capacity
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BLOCK: u64 = JOURNAL_BLOCK_BYTES;

    #[test]
    fn a_batch_that_would_wrap_begins_the_next_lap() {
        let mut space = Space::new(10 * BLOCK, 0, 0);
        space.take(0, 8 * BLOCK);
        assert_eq!(
            space.place(4 * BLOCK),
            None,
            "the first one is still needed"
        );
        space.free(8 * BLOCK);
        assert_eq!(space.place(4 * BLOCK), Some(10 * BLOCK));
        space.take(10 * BLOCK, 4 * BLOCK);
        assert_eq!(space.file_offset(10 * BLOCK), JOURNAL_AREA_OFFSET);
        assert_eq!(space.used(), 6 * BLOCK, "what was skipped counts");
    }

    proptest! {
        #[test]
        fn live_batches_never_share_a_byte(
            steps in prop::collection::vec((1_u64..8, any::<bool>()), 1..200),
        ) {
            let mut space = Space::new(16 * BLOCK, 0, 0);
            let mut live: std::collections::VecDeque<(u64, u64)> = Default::default();
            for (blocks, free) in steps {
                if free && let Some((position, bytes)) = live.pop_front() {
                    space.free(position + bytes);
                }
                let bytes = blocks * BLOCK;
                let Some(position) = space.place(bytes) else { continue };
                space.take(position, bytes);
                let begin = space.file_offset(position);
                prop_assert!(begin + bytes <= JOURNAL_AREA_OFFSET + 16 * BLOCK);
                for (other, len) in &live {
                    let other = space.file_offset(*other);
                    prop_assert!(begin + bytes <= other || other + len <= begin);
                }
                live.push_back((position, bytes));
            }
        }

        #[test]
        fn an_empty_area_takes_any_batch_of_half_its_size(laps in 0_u64..100, blocks in 1_u64..=8) {
            let at = laps * BLOCK;
            prop_assert!(Space::new(16 * BLOCK, at, at).place(blocks * BLOCK).is_some());
        }
    }
}
