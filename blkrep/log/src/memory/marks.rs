//! What a successor is told besides the entries: links, and flushes that failed.
//!
//! Owns the marks of the header. A mark has two copies and a word that chooses one, so that it is
//! read as it was before a change or after it. Never touches an entry.

use super::layout::{MARK_BYTES, MARKS, header, mark};
use super::{MemoryLog, Place, usize_of};
use blkrep_types::{Incarnation, Seq};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// What a successor is told of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mark {
    /// Up to eight facts of the owner of the log.
    pub flags: u8,
    /// Nothing up to here is held for it.
    pub held: Seq,
    /// The last name it has durably.
    pub acked: Place,
}

/// Volumes, by bit, of which a flush went wrong since the host started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FlushTroubles {
    /// A flush failed.
    pub failed: u64,
    /// One failed, and nobody was told of it yet.
    pub untold: u64,
}

impl MemoryLog {
    /// Remembers a link for a successor.
    ///
    /// # Panics
    /// If there cannot be that many links.
    pub fn set_mark(&mut self, link: u8, new: &Mark) {
        assert!(
            usize::from(link) < MARKS,
            "a log knows at most {MARKS} links"
        );
        let at = header::MARKS + usize::from(link) * MARK_BYTES;
        let choice = 1 - self.region.load(at + mark::CONTROL, Relaxed) % 2;
        let copy = at + mark::COPIES + usize_of(choice) * mark::COPY_BYTES;
        self.region
            .store(copy + mark::HELD, new.held.get(), Relaxed);
        self.region
            .store(copy + mark::ACKED_INCARNATION, new.acked.0.get(), Relaxed);
        self.region
            .store(copy + mark::ACKED_SEQ, new.acked.1.get(), Relaxed);
        self.region.store(
            at + mark::CONTROL,
            u64::from(new.flags) << 8 | choice,
            Release,
        );
    }

    /// Remembers flushes that failed for a successor.
    pub fn set_flush_troubles(&mut self, troubles: FlushTroubles) {
        self.region
            .store(header::FLUSH_UNTOLD, troubles.untold, Relaxed);
        self.region
            .store(header::FLUSH_FAILED, troubles.failed, Release);
    }

    /// What is remembered of flushes that failed.
    #[must_use]
    pub fn flush_troubles(&self) -> FlushTroubles {
        FlushTroubles {
            failed: self.region.load(header::FLUSH_FAILED, Acquire),
            untold: self.region.load(header::FLUSH_UNTOLD, Relaxed),
        }
    }

    /// What is remembered of a link.
    ///
    /// # Panics
    /// If there cannot be that many links.
    #[must_use]
    pub fn mark(&self, link: u8) -> Mark {
        assert!(
            usize::from(link) < MARKS,
            "a log knows at most {MARKS} links"
        );
        let at = header::MARKS + usize::from(link) * MARK_BYTES;
        let control = self.region.load(at + mark::CONTROL, Acquire);
        let copy = at + mark::COPIES + usize_of(control % 2) * mark::COPY_BYTES;
        let load = |word: usize| self.region.load(copy + word, Relaxed);
        Mark {
            flags: u8::try_from(control >> 8 & 0xff).expect("masked to one byte"),
            held: Seq::new(load(mark::HELD)),
            acked: (
                Incarnation::new(load(mark::ACKED_INCARNATION)),
                Seq::new(load(mark::ACKED_SEQ)),
            ),
        }
    }
}
