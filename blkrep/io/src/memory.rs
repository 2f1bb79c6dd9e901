//! Memory that the kernel and several threads can see.
//!
//! Owns mappings ([`Region`]) and handles to parts of them ([`Slice`]). A slice is moved into an
//! operation and owned by it until its completion, so memory in flight is never unmapped. Who may
//! write a part at a time is a rule of its owner (a request's tag, a log slot, a pool buffer), not
//! of the type: bytes are therefore only ever copied in and out, and references to them live no
//! longer than one call.

mod duplicate;

use blkrep_types::Errno;
use std::alloc::Layout;
use std::fmt;
use std::fs::File;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The page size blkrep aligns to, in bytes.
pub const PAGE_BYTES: usize = 4096;

/// From here on the kernel's zeroes are cheaper than ours: it gives a page when it is touched.
const HEAP_BYTES_MAX: usize = 128 << 10;

enum Kind {
    Mapped,
    Heap(Layout),
}

/// One piece of page-aligned memory, freed when its last slice is gone.
pub struct Region {
    start: NonNull<u8>,
    len: usize,
    kind: Kind,
}

// SAFETY: a region is plain memory; it is reached only through the copying methods of `Slice`,
// whose users keep to the ownership rule of the module header.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Zeroed private memory of at least `len` bytes, mapped by itself.
    ///
    /// # Errors
    /// ENOMEM or EINVAL, as the kernel says.
    pub fn anonymous(len: usize) -> Result<Arc<Self>, Errno> {
        let len = len.next_multiple_of(PAGE_BYTES);
        let (start, kind) = (Self::map(len)?, Kind::Mapped);
        Ok(Arc::new(Self { start, len, kind }))
    }

    fn map(len: usize) -> Result<NonNull<u8>, Errno> {
        use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
        let len = NonZeroUsize::new(len).ok_or(Errno::EINVAL)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let start = unsafe { mmap_anonymous(None, len, access, flags) };
        start
            .map(NonNull::cast)
            .map_err(|errno| Errno::new(errno as i32))
    }

    /// The first `len` bytes of `file`, shared with every other mapping of it. Every page is there
    /// when this returns, so that no later touch waits for one (Linux 5.14; before, pages come as
    /// they are touched).
    ///
    /// # Errors
    /// As the kernel says; ENOMEM or EFAULT if there is no memory for all of it.
    pub fn shared(file: &File, len: usize) -> Result<Arc<Self>, Errno> {
        use nix::sys::mman::{MapFlags, ProtFlags, mmap};
        let size = NonZeroUsize::new(len).ok_or(Errno::EINVAL)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing; the file
        // is at least `len` bytes long by the caller's sizing of it.
        let start = unsafe { mmap(None, size, access, MapFlags::MAP_SHARED, file.as_fd(), 0) }
            .map_err(|errno| Errno::new(errno as i32))?;
        let region = Arc::new(Self {
            start: start.cast(),
            len,
            kind: Kind::Mapped,
        });
        match region.populate() {
            Ok(()) | Err(Errno::EINVAL) => Ok(region),
            Err(errno) => Err(errno),
        }
    }

    /// Brings every page in. `MAP_POPULATE` would do nothing where memory is locked on fault.
    fn populate(&self) -> Result<(), Errno> {
        use nix::sys::mman::{MmapAdvise, madvise};
        // SAFETY: the range is our own mapping, and the advice changes no byte of it.
        unsafe { madvise(self.start.cast(), self.len, MmapAdvise::MADV_POPULATE_WRITE) }
            .map_err(|errno| Errno::new(errno as i32))
    }

    /// Zeroed page-aligned memory of the allocator, or of the kernel where zeroing all of it would
    /// cost more than a mapping: cheap to make, for simulations and small pools.
    ///
    /// # Panics
    /// If `len` is 0 or memory is exhausted.
    #[must_use]
    pub fn heap(len: usize) -> Arc<Self> {
        assert!(len > 0, "a region has at least one byte");
        let layout =
            Layout::from_size_align(len, PAGE_BYTES).expect("length fits the address space");
        let (start, kind) = if len >= HEAP_BYTES_MAX {
            (Self::map(len).ok(), Kind::Mapped)
        } else {
            // SAFETY: the layout has a non-zero size.
            let start = unsafe { std::alloc::alloc_zeroed(layout) };
            (NonNull::new(start), Kind::Heap(layout))
        };
        let Some(start) = start else {
            std::alloc::handle_alloc_error(layout)
        };
        Arc::new(Self { start, len, kind })
    }

    /// Length in bytes.
    #[must_use]
    #[allow(clippy::len_without_is_empty)]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// The whole region as a slice.
    #[must_use]
    pub fn whole(self: &Arc<Self>) -> Slice {
        Slice {
            region: Arc::clone(self),
            offset: 0,
            len: self.len,
        }
    }

    /// A part of the region.
    ///
    /// # Panics
    /// If the range is not within the region.
    #[must_use]
    pub fn slice(self: &Arc<Self>, range: Range<usize>) -> Slice {
        self.whole().part(range)
    }

    fn at(&self, offset: usize, len: usize) -> NonNull<u8> {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "bytes {offset}+{len} are not within a region of {} bytes",
            self.len
        );
        // SAFETY: just asserted to be within the region.
        unsafe { self.start.add(offset) }
    }

    fn atomic(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8), "an atomic word is 8-byte aligned");
        let at = self.at(offset, 8);
        // SAFETY: in bounds and aligned (the region is page-aligned); the word lives as long as
        // `self` and is reached by atomics alone, by the layout of its owner.
        unsafe { AtomicU64::from_ptr(at.cast().as_ptr()) }
    }

    /// Reads the 64-bit word at `offset`, which other processes may write.
    ///
    /// # Panics
    /// If the word is not aligned or not within the region.
    #[must_use]
    pub fn load(&self, offset: usize, order: Ordering) -> u64 {
        self.atomic(offset).load(order)
    }

    /// Writes the 64-bit word at `offset`, which other processes may read.
    ///
    /// # Panics
    /// If the word is not aligned or not within the region.
    pub fn store(&self, offset: usize, value: u64, order: Ordering) {
        self.atomic(offset).store(value, order);
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region({} bytes)", self.len)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        match self.kind {
            Kind::Mapped => {
                // SAFETY: the mapping is ours and no slice of it is left.
                let unmapped = unsafe { nix::sys::mman::munmap(self.start.cast(), self.len) };
                debug_assert!(unmapped.is_ok(), "unmapping our own mapping succeeds");
            }
            // SAFETY: allocated with this layout and no slice of it is left.
            Kind::Heap(layout) => unsafe { std::alloc::dealloc(self.start.as_ptr(), layout) },
        }
    }
}

/// A handle to a part of a region. Cloning it is a reference count, never a copy of bytes.
#[derive(Clone)]
pub struct Slice {
    region: Arc<Region>,
    offset: usize,
    len: usize,
}

impl Slice {
    /// Length in bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// True for a slice of no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the slice begins in its region, in bytes.
    #[must_use]
    pub const fn offset(&self) -> usize {
        self.offset
    }

    /// The region it is a part of.
    #[must_use]
    pub const fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// A part of this slice.
    ///
    /// # Panics
    /// If the range is not within the slice.
    #[must_use]
    pub fn part(&self, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "part {range:?} is not within a slice of {} bytes",
            self.len
        );
        Self {
            region: Arc::clone(&self.region),
            offset: self.offset + range.start,
            len: range.end - range.start,
        }
    }

    /// The address, for the kernel. Valid while this slice or a clone of it lives.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.region.at(self.offset, self.len).as_ptr()
    }

    /// Copies `bytes` to `at`.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn write(&self, at: usize, bytes: &[u8]) {
        let to = self.part(at..at + bytes.len()).as_ptr();
        // SAFETY: the target is in bounds; `bytes` is a live reference to other memory or to bytes
        // that the caller, by the module's rule, does not share with this slice.
        unsafe { std::ptr::copy(bytes.as_ptr(), to, bytes.len()) }
    }

    /// Copies the bytes at `at` out.
    ///
    /// # Panics
    /// If there are not that many.
    pub fn read(&self, at: usize, bytes: &mut [u8]) {
        let from = self.part(at..at + bytes.len()).as_ptr();
        // SAFETY: the source is in bounds; `bytes` is exclusively the caller's.
        unsafe { std::ptr::copy(from, bytes.as_mut_ptr(), bytes.len()) }
    }

    /// Copies all of `from` to the start of this slice.
    ///
    /// # Panics
    /// If it does not fit.
    pub fn copy_from(&self, from: &Self) {
        let to = self.part(0..from.len).as_ptr();
        // SAFETY: both are in bounds, and `copy` allows an overlap.
        unsafe { std::ptr::copy(from.as_ptr(), to, from.len) }
    }

    /// Fills the slice with zeroes.
    pub fn clear(&self) {
        // SAFETY: in bounds; by the module's rule the caller is the one writer.
        unsafe { std::ptr::write_bytes(self.as_ptr(), 0, self.len) }
    }

    /// Calls `look` with the bytes, for a checksum or a parse. The caller is, by the module's
    /// rule, the owner: nobody writes them meanwhile.
    pub fn with<R>(&self, look: impl FnOnce(&[u8]) -> R) -> R {
        // SAFETY: in bounds, initialised (regions start zeroed), and not written meanwhile.
        look(unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len) })
    }

    /// Calls `change` with the bytes. The caller is, by the module's rule, the owner: nobody reads
    /// or writes them meanwhile.
    pub fn with_mut<R>(&self, change: impl FnOnce(&mut [u8]) -> R) -> R {
        // SAFETY: in bounds, initialised, and not touched by anybody else meanwhile.
        change(unsafe { std::slice::from_raw_parts_mut(self.as_ptr(), self.len) })
    }
}

impl fmt::Debug for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slice({}+{})", self.offset, self.len)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn bytes_written_are_read_back_through_every_kind_of_region() {
        let file = tempfile();
        for region in [
            Region::anonymous(5000).unwrap(),
            Region::heap(5000),
            Region::heap(HEAP_BYTES_MAX + 5000),
            Region::shared(&file, 5000).unwrap(),
        ] {
            let slice = region.slice(4000..5000);
            slice.write(10, b"hello");
            let mut back = [0; 5];
            slice.read(10, &mut back);
            assert_eq!(&back, b"hello");
            slice.clear();
            assert!(slice.with(|bytes| bytes.iter().all(|byte| *byte == 0)));
        }
    }

    #[test]
    fn a_duplicate_has_every_byte_and_a_life_of_its_own() {
        let region = Region::heap(HEAP_BYTES_MAX + 100);
        let whole = region.whole();
        for at in [0, 4095, 4096, 12_345, whole.len() - 1] {
            whole.write(at, &[7]);
        }
        let copy = region.duplicate().whole();
        assert_eq!(copy.len(), whole.len());
        assert!(copy.with(|bytes| whole.with(|other| bytes == other)));
        whole.write(0, &[8]);
        assert_eq!(copy.with(|bytes| bytes[0]), 7);
    }

    #[test]
    fn a_shared_mapping_is_seen_by_the_next_one() {
        let file = tempfile();
        Region::shared(&file, 8192)
            .unwrap()
            .store(4096, 7, Ordering::Release);
        assert_eq!(
            Region::shared(&file, 8192)
                .unwrap()
                .load(4096, Ordering::Acquire),
            7
        );
    }

    #[test]
    fn a_shared_mapping_has_all_its_pages_before_they_are_touched() {
        let file = tempfile();
        file.set_len(1 << 20).unwrap();
        let region = Region::shared(&file, 1 << 20).unwrap();
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let start = format!("{:x}-", region.start.addr());
        let ours = maps.lines().skip_while(|line| !line.starts_with(&start));
        let resident = ours.skip(1).find_map(|line| line.strip_prefix("Rss:"));
        assert_eq!(resident.unwrap().trim(), "1024 kB");
    }

    #[test]
    fn memory_that_is_not_there_is_an_error_and_no_signal() {
        assert_eq!(
            Region::shared(&tempfile(), 1 << 20).unwrap_err(),
            Errno::new(libc::EFAULT)
        );
    }

    #[test]
    #[should_panic(expected = "not within")]
    fn a_part_past_the_end_is_refused() {
        let _ = Region::heap(10).whole().part(5..11);
    }

    fn tempfile() -> File {
        let fd =
            nix::sys::memfd::memfd_create(c"region", nix::sys::memfd::MFdFlags::empty()).unwrap();
        let file = File::from(fd);
        file.set_len(8192).unwrap();
        file
    }
}
