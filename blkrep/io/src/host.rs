//! The rare, blocking seam: opening, sizing, claiming, small metadata, shared memory.
//!
//! Owns the trait [`Host`]. Used at start, at role changes and for metadata that changes rarely;
//! never on the way of a request. A simulated host crashes inside these calls as it does between
//! completions, and then every later call fails.

use crate::memory::Region;
use crate::proactor::Io;
use blkrep_types::{BlockSize, ByteLen, Errno};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// No write will be made.
    pub read_only: bool,
    /// Past the page cache. Memory, offsets and lengths are then aligned to the block size.
    pub direct: bool,
    /// Hold the exclusive claim: O_EXCL on a block device, an exclusive flock on a file. The
    /// kernel keeps the claim of a killed process until its last write has landed.
    pub claim: bool,
    /// Make the file, of this many bytes, if it does not exist; the bytes are really allocated.
    pub create: Option<ByteLen>,
}

/// What a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A block device with its number.
    Block {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

/// The shape of an open file or device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// What it is.
    pub kind: FileKind,
    /// Its size in bytes.
    pub len: ByteLen,
    /// Its logical block size; 512 for a regular file.
    pub block_size: BlockSize,
    /// The grain it writes without read-modify-write, in bytes.
    pub physical_block_bytes: u32,
    /// A completed write may still be lost on a power cut.
    pub write_cache: bool,
    /// The device itself is marked read-only.
    pub read_only: bool,
}

/// A blocking call that failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}: {errno}", path.display())]
pub struct HostError {
    /// What was tried, as a present-tense verb.
    pub operation: &'static str,
    /// To what.
    pub path: PathBuf,
    /// Why it failed.
    pub errno: Errno,
}

/// What a process can ask of its host besides a ring.
pub trait Host: Clone + fmt::Debug + Send + Sync + 'static {
    /// The host's rings.
    type Io: Io;

    /// A ring for the calling thread, with room for `entries` operations in flight.
    ///
    /// # Errors
    /// The kernel refuses.
    fn ring(&self, entries: u32) -> Result<Self::Io, HostError>;

    /// A listener for connections, and the address it got (port 0 asks for any).
    ///
    /// # Errors
    /// EADDRINUSE, or what the kernel says.
    fn listen(
        &self,
        address: SocketAddr,
    ) -> Result<(<Self::Io as Io>::Socket, SocketAddr), HostError>;

    /// Opens a file or device.
    ///
    /// # Errors
    /// EBUSY if the claim is held elsewhere; else what the kernel says.
    fn open(&self, path: &Path, access: Access) -> Result<<Self::Io as Io>::File, HostError>;

    /// The shape of an open file.
    ///
    /// # Errors
    /// What the kernel says.
    fn geometry(&self, file: &<Self::Io as Io>::File) -> Result<Geometry, HostError>;

    /// Reads exactly `bytes`.
    ///
    /// # Errors
    /// EIO past the end or when the disk fails.
    fn read_at(
        &self,
        file: &<Self::Io as Io>::File,
        offset: u64,
        bytes: &mut [u8],
    ) -> Result<(), HostError>;

    /// Writes exactly `bytes`; durable after [`Host::sync`].
    ///
    /// # Errors
    /// What the disk says.
    fn write_at(
        &self,
        file: &<Self::Io as Io>::File,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), HostError>;

    /// Makes every completed write of the file durable, and the file's existence too.
    ///
    /// # Errors
    /// What the disk says; then nothing written since the last success may be trusted.
    fn sync(&self, file: &<Self::Io as Io>::File) -> Result<(), HostError>;

    /// Bytes that its filesystem has left for files.
    ///
    /// # Errors
    /// What the kernel says.
    fn free_space(&self, file: &<Self::Io as Io>::File) -> Result<ByteLen, HostError>;

    /// Removes a file; durable when it returns. A missing file is no error.
    ///
    /// # Errors
    /// What the kernel says.
    fn remove(&self, path: &Path) -> Result<(), HostError>;

    /// Names in a directory that is made if it is missing, sorted.
    ///
    /// # Errors
    /// What the kernel says.
    fn list(&self, directory: &Path) -> Result<Vec<String>, HostError>;

    /// Memory that outlives this process but not this boot, by name: the region and whether it
    /// was there before with the same length. One of another length is made anew.
    ///
    /// # Errors
    /// No memory, or what the kernel says.
    fn shared_memory(&self, name: &str, len: ByteLen) -> Result<(Arc<Region>, bool), HostError>;

    /// Forgets shared memory by name. Missing is no error.
    ///
    /// # Errors
    /// What the kernel says.
    fn forget_shared_memory(&self, name: &str) -> Result<(), HostError>;

    /// Random bytes, fit for identities.
    fn random(&self, bytes: &mut [u8]);
}
