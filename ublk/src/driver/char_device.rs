//! The data side of a device: `/dev/ublkcN`.
//!
//! Owns the open file, which the driver gives to one process at a time, and the mappings of the
//! queues' descriptors. Descriptors leave as copies. The device counts as served until the last
//! handle, mapping and command of the file is gone.

use super::abi::{DEPTH_MAX, Descriptor};
use blkrep_types::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use std::fmt;
use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An open `/dev/ublkcN`.
#[derive(Debug)]
pub(super) struct CharDevice {
    file: File,
}

impl CharDevice {
    /// Opens the data side of device `id`; waits up to `wait` for the file to appear.
    ///
    /// # Errors
    /// EBUSY if another process serves the device; ENOENT if there is no such device.
    pub(super) fn open(id: u32, wait: Duration) -> Result<Arc<Self>, Errno> {
        let end = Instant::now() + wait;
        loop {
            let path = format!("/dev/ublkc{id}");
            match File::options().read(true).write(true).open(path) {
                Ok(file) => return Ok(Arc::new(Self { file })),
                Err(error) => {
                    let missing = error.kind() == std::io::ErrorKind::NotFound;
                    if !missing || Instant::now() > end {
                        return Err(Errno::from(&error));
                    }
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The descriptor of the file.
    pub(super) fn raw(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// The descriptors of a queue's `depth` requests.
    ///
    /// # Errors
    /// EINVAL if the device has no such queue or another depth.
    pub(super) fn descriptors(&self, queue: u16, depth: u16) -> Result<Descriptors, Errno> {
        let page = page_bytes();
        let len = mapping_bytes(depth, page);
        let offset = usize::from(queue) * mapping_bytes(DEPTH_MAX, page);
        let size = NonZeroUsize::new(len).ok_or(Errno::EINVAL)?;
        let offset = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let start = unsafe { mmap(None, size, ProtFlags::PROT_READ, flags, &self.file, offset) }
            .map_err(|errno| Errno::new(errno as i32))?;
        Ok(Descriptors {
            start: start.cast(),
            len,
            depth,
        })
    }
}

/// Bytes of the mapping of a queue of this depth.
fn mapping_bytes(depth: u16, page: usize) -> usize {
    (usize::from(depth) * size_of::<Descriptor>()).next_multiple_of(page)
}

/// The kernel's page size: mappings of the driver are sized in it.
fn page_bytes() -> usize {
    // SAFETY: takes and returns plain numbers.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).expect("the page size is always known")
}

/// A queue's descriptors, written by the driver.
pub(super) struct Descriptors {
    start: NonNull<Descriptor>,
    len: usize,
    depth: u16,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is only read.
unsafe impl Send for Descriptors {}

impl Descriptors {
    /// Copies out the descriptor of `tag`. The driver wrote it before it completed the tag's
    /// command and leaves it alone until the next one.
    pub(super) fn read(&self, tag: u16) -> Descriptor {
        assert!(tag < self.depth, "tag {tag} is not below {}", self.depth);
        // SAFETY: within the mapping, which lives as long as `self`; the page-aligned array is
        // aligned for its elements. Volatile, because another party writes it.
        unsafe { self.start.add(usize::from(tag)).read_volatile() }
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        // SAFETY: our own mapping, no reference into it is left.
        let unmapped = unsafe { munmap(self.start.cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "unmapping our own mapping succeeds");
    }
}

impl fmt::Debug for Descriptors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Descriptors({})", self.depth)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queues_mapping_is_whole_pages() {
        assert_eq!(mapping_bytes(1, 4096), 4096);
        assert_eq!(mapping_bytes(128, 4096), 4096);
        assert_eq!(mapping_bytes(171, 4096), 8192);
        assert_eq!(mapping_bytes(DEPTH_MAX, 4096), 98_304);
        assert_eq!(mapping_bytes(DEPTH_MAX, 65_536), 131_072);
    }

    #[test]
    fn a_device_that_is_not_there_is_missing_not_busy() {
        let missing = CharDevice::open(u32::MAX - 1, Duration::from_millis(20));
        assert_eq!(missing.err().map(Errno::get), Some(libc::ENOENT));
    }
}
