//! The state of an entry: one word, which one thread changes without the log's mutex.
//!
//! Owns the word's bits and who may set them when. The thread that was told to fill an entry
//! publishes it without the mutex, before its local write begins; every other change is made under
//! the mutex, and none before that. So no two threads change the word at once, and a plain load and
//! store do. Whoever reads that an entry is published sees its bytes. Never looks at them.

use std::sync::atomic::Ordering::{self, Acquire, Relaxed, Release};

/// The bytes are complete.
pub(super) const PUBLISHED: u64 = 1;
/// No local write is outstanding.
pub(super) const LOCAL_DONE: u64 = 2;
/// The bytes are on disk, and the slot is not the entry's any more.
pub(super) const AWAY: u64 = 4;
/// The entry has a slot although what it became has no bytes.
pub(super) const KEEPS_SLOT: u64 = 8;

/// True if an entry that has bytes, or not, can be in this state.
pub(super) const fn is_legal(state: u64, has_data: bool) -> bool {
    let finished = state & (PUBLISHED | LOCAL_DONE) == PUBLISHED | LOCAL_DONE;
    let known = state <= PUBLISHED | LOCAL_DONE | AWAY | KEEPS_SLOT;
    let away = state & AWAY == 0 || (finished && has_data);
    known && away && (state & KEEPS_SLOT == 0 || !has_data)
}

/// Words that threads and processes share, by their offset in bytes.
pub(super) trait Words {
    fn load(&self, at: usize, order: Ordering) -> u64;
    fn store(&self, at: usize, word: u64, order: Ordering);
}

/// The state word at `at`.
pub(super) fn read(words: &impl Words, at: usize) -> u64 {
    words.load(at, Acquire)
}

/// Sets one of the bits; see above who may.
pub(super) fn add(words: &impl Words, at: usize, bit: u64) {
    words.store(at, words.load(at, Relaxed) | bit, Release);
}
