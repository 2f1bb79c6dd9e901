//! Copies of regions, for simulated processes that die.
//!
//! Owns which pages a copy can leave out: those that nobody has touched, as the kernel says, and those
//! of zeroes. A region enters, one of its own memory leaves.

use super::{Kind, PAGE_BYTES, Region};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// An entry of the kernel's page map has its page in memory or in swap.
const THERE: u64 = 0b11 << 62;

impl Region {
    /// A copy of its own. Pages of zeroes are not touched in it, and so cost next to nothing.
    pub(crate) fn duplicate(self: &Arc<Self>) -> Arc<Self> {
        const ZEROES: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
        let copy = Self::heap(self.len);
        let touched = self.touched();
        for (index, start) in (0..self.len).step_by(PAGE_BYTES).enumerate() {
            if touched.as_ref().is_some_and(|touched| !touched[index]) {
                continue;
            }
            let end = self.len.min(start + PAGE_BYTES);
            self.slice(start..end).with(|bytes| {
                if bytes != &ZEROES[..bytes.len()] {
                    copy.slice(start..end).write(0, bytes);
                }
            });
        }
        copy
    }

    /// Which pages somebody has touched; `None` if the kernel does not say. A look at one that nobody has
    /// would cost a fault.
    fn touched(&self) -> Option<Vec<bool>> {
        if !matches!(self.kind, Kind::Mapped) {
            return None;
        }
        let entry_bytes = size_of::<u64>();
        let first = self.start.addr().get() / PAGE_BYTES;
        let mut entries = vec![0; self.len.div_ceil(PAGE_BYTES) * entry_bytes];
        let at = u64::try_from(first * entry_bytes).ok()?;
        let map = File::open("/proc/self/pagemap").ok()?;
        map.read_exact_at(&mut entries, at).ok()?;
        let (entries, _) = entries.as_chunks();
        let there = |entry: &[u8; 8]| u64::from_ne_bytes(*entry) & THERE != 0;
        Some(entries.iter().map(there).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_every_byte_whoever_touched_it() {
        for len in [5 * PAGE_BYTES, 300 * PAGE_BYTES, 300 * PAGE_BYTES + 100] {
            let region = Region::heap(len);
            region
                .slice(PAGE_BYTES - 1..PAGE_BYTES + 1)
                .write(0, &[1, 2]);
            region.slice(len - 1..len).write(0, &[3]);
            let copy = region.duplicate();
            region.slice(0..1).write(0, &[4]);
            let mut expected = vec![0; len];
            expected[PAGE_BYTES - 1..=PAGE_BYTES].copy_from_slice(&[1, 2]);
            expected[len - 1] = 3;
            copy.whole().with(|bytes| assert!(bytes == expected));
        }
    }

    #[test]
    fn the_kernel_knows_who_touched_a_page() {
        let region = Region::heap(300 * PAGE_BYTES);
        region
            .slice(7 * PAGE_BYTES..7 * PAGE_BYTES + 1)
            .write(0, &[1]);
        let touched = region.touched().expect("procfs is there");
        assert!(touched[7]);
        assert!(!touched[200], "or every copy costs a fault for each page");
    }
}
