//! Entries whose bytes are on disk instead of in memory.
//!
//! Owns slots lent to operations that write them out, and where the bytes of an entry went. An entry
//! that is freed meanwhile takes its slot with it only when the operation gives it back: the kernel
//! may still read it. Never does the writing.

use super::holes::Piece;
use super::layout::{entry, header};
use super::state::{self, AWAY};
use super::{MemoryLog, Seq};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// Where the bytes of an entry lie on disk, and their sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Away {
    /// The first sector of 512 bytes in the queue's file.
    pub sector: u32,
    /// CRC32 of the bytes.
    pub crc: u32,
}

impl Away {
    pub(super) fn pack(self) -> u64 {
        u64::from(self.sector) << 32 | u64::from(self.crc)
    }

    pub(super) const fn unpack(word: u64) -> Self {
        let bytes = word.to_be_bytes();
        Self {
            sector: u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            crc: u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        }
    }
}

/// A slot that an operation reads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lent {
    pub(super) seq: Seq,
    pub(super) piece: Piece,
}

impl MemoryLog {
    /// Lends the slot of an entry to an operation that writes it out.
    ///
    /// # Panics
    /// If the entry is unfinished, has no bytes in memory, or is lent already.
    pub fn lend(&mut self, seq: Seq) {
        let held = self.entry(seq);
        assert!(
            held.published && held.local_done && held.away.is_none(),
            "only what is complete and here is written out"
        );
        assert!(!self.is_lent(seq), "a slot is lent once");
        let piece = self.piece(seq).expect("an entry with bytes has a slot");
        self.lent.push(Lent { seq, piece });
    }

    /// The operation is over. With `away` the bytes of the entry, if it is still held, are there
    /// from now on, and its slot is free.
    ///
    /// # Panics
    /// If it was not lent.
    pub fn take_back(&mut self, seq: Seq, away: Option<Away>) {
        let lent = self.lent.iter().position(|lent| lent.seq == seq);
        let lent = self.lent.swap_remove(lent.expect("it was lent"));
        if !self.holds(seq) {
            return self.holes.give(lent.piece);
        }
        let Some(away) = away else {
            return;
        };
        let at = self.entry_at(seq);
        // A successor that sees the bit sees where the bytes are.
        self.region.store(at + entry::AWAY, away.pack(), Relaxed);
        state::add(&*self.region, at + entry::STATE, AWAY);
        self.holes.give(lent.piece);
    }

    pub(super) fn is_lent(&self, seq: Seq) -> bool {
        self.lent.iter().any(|lent| lent.seq == seq)
    }

    /// Which file holds what is away; 0 for none.
    #[must_use]
    pub fn queue_file(&self) -> u64 {
        self.region.load(header::QUEUE_FILE, Acquire)
    }

    /// Remembers for a successor which file holds what is away.
    pub fn set_queue_file(&mut self, file: u64) {
        self.region.store(header::QUEUE_FILE, file, Release);
    }

    /// No further entry fits, whatever its size.
    #[must_use]
    pub fn is_out_of_entries(&self) -> bool {
        self.head.1.get() - self.base.1.get() == self.shape.entries
    }
}
