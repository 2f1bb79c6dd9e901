//! An open file or block device.
//!
//! Owns the descriptor, closed with the last clone, and what was learned about how the file can be
//! zeroed. Never moves bytes.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// An open file or block device; clones share the descriptor, the last one closes it.
#[derive(Debug, Clone)]
pub struct RealFile(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    file: File,
    path: PathBuf,
    direct: bool,
    /// Ways of zeroing that this file has refused, as bits of [`ZeroRefused`].
    refused: AtomicU8,
}

/// A way of zeroing that a file does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum ZeroRefused {
    /// Punching a hole.
    Punch = 1,
    /// Zeroing a range.
    Range = 2,
}

impl RealFile {
    pub(super) fn new(file: File, path: &Path, direct: bool) -> Self {
        Self(Arc::new(Inner {
            file,
            path: path.to_owned(),
            direct,
            refused: AtomicU8::new(0),
        }))
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Whether it was opened past the page cache.
    #[must_use]
    pub fn direct(&self) -> bool {
        self.0.direct
    }

    pub(super) fn std(&self) -> &File {
        &self.0.file
    }

    pub(super) fn raw(&self) -> RawFd {
        self.0.file.as_raw_fd()
    }

    pub(super) fn refuses(&self, way: ZeroRefused) -> bool {
        self.0.refused.load(Ordering::Relaxed) & way as u8 != 0
    }

    pub(super) fn learn(&self, way: ZeroRefused) {
        self.0.refused.fetch_or(way as u8, Ordering::Relaxed);
    }
}

impl AsRawFd for RealFile {
    fn as_raw_fd(&self) -> RawFd {
        self.raw()
    }
}
