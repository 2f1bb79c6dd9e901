//! Which ways there are to make a range read as zeroes.
//!
//! Owns the order in which they are tried. The kernel guarantees zeroes for each of them or says
//! EOPNOTSUPP (a block device's hole is only punched where the device promises zeroes; see
//! `blkdev_fallocate`), so nothing has to be read back.

use super::file::{RealFile, ZeroRefused};
use crate::memory::{Region, Slice};
use std::sync::{Arc, OnceLock};

/// Bytes of zeroes written at a time where a file can do nothing better: large enough that the
/// number of operations does not matter, small enough to be forgotten.
pub(super) const ZERO_CHUNK_BYTES: usize = 256 << 10;

/// How a range is zeroed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ZeroWay {
    /// Give the storage back.
    Punch,
    /// Keep the storage, let the filesystem or device zero it.
    Range,
    /// Write zeroes.
    Plain,
}

impl ZeroWay {
    /// The first way to try for `file`.
    pub(super) fn first(file: &RealFile, free: bool) -> Self {
        if free && !file.refuses(ZeroRefused::Punch) {
            Self::Punch
        } else if !file.refuses(ZeroRefused::Range) {
            Self::Range
        } else {
            Self::Plain
        }
    }

    /// The way to try after `file` refused this one; remembers the refusal.
    pub(super) fn next(self, file: &RealFile) -> Option<Self> {
        match self {
            Self::Punch => {
                file.learn(ZeroRefused::Punch);
                Some(Self::first(file, false))
            }
            Self::Range => {
                file.learn(ZeroRefused::Range);
                Some(Self::Plain)
            }
            Self::Plain => None,
        }
    }

    /// The mode of `fallocate`, if it is one.
    pub(super) fn mode(self) -> Option<i32> {
        match self {
            Self::Punch => Some(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE),
            Self::Range => Some(libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE),
            Self::Plain => None,
        }
    }
}

/// A slice of at most [`ZERO_CHUNK_BYTES`] zeroes that nobody ever writes.
pub(super) fn zeroes(len: u64) -> Slice {
    static ZEROES: OnceLock<Arc<Region>> = OnceLock::new();
    let region = ZEROES.get_or_init(|| Region::heap(ZERO_CHUNK_BYTES));
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    region.slice(0..len.min(ZERO_CHUNK_BYTES))
}
