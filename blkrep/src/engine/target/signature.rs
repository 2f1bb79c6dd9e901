//! Does a device hold something that must not be overwritten?
//!
//! Owns a table of the marks that filesystems, partition tables, volume managers, RAID and
//! encryption leave at fixed places. First and last bytes enter; the name of what is there leaves.

use blkrep_types::ByteLen;

/// How much of each end is looked at: the farthest mark from the start is the second superblock
/// copy of a ZFS label (256 KiB), from the end an md superblock of version 0.90 (128 KiB).
pub const PROBE_BYTES: u64 = 256 << 10;

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signature(&'static str);

impl Signature {
    /// In words: "an ext4 filesystem".
    #[must_use]
    pub const fn what(self) -> &'static str {
        self.0
    }
}

/// A mark: bytes at a place from the start.
struct Mark {
    at: usize,
    bytes: &'static [u8],
    what: &'static str,
}

const fn mark(at: usize, bytes: &'static [u8], what: &'static str) -> Mark {
    Mark { at, bytes, what }
}

/// In order: what is more specific comes first.
const MARKS: &[Mark] = &[
    mark(0x438, &[0x53, 0xef], "an ext2, ext3 or ext4 filesystem"),
    mark(0, b"XFSB", "an XFS filesystem"),
    mark(0x10040, b"_BHRfS_M", "a Btrfs filesystem"),
    mark(4086, b"SWAPSPACE2", "swap space"),
    mark(4086, b"SWAP-SPACE", "swap space"),
    mark(65526, b"SWAPSPACE2", "swap space"),
    mark(0, b"LUKS\xba\xbe", "a LUKS encrypted volume"),
    mark(0x4000, b"SKUL\xba\xbe", "a LUKS encrypted volume"),
    mark(512, b"EFI PART", "a GPT partition table"),
    mark(4096, b"EFI PART", "a GPT partition table"),
    mark(0, b"LABELONE", "an LVM physical volume"),
    mark(512, b"LABELONE", "an LVM physical volume"),
    mark(1024, b"LABELONE", "an LVM physical volume"),
    mark(1536, b"LABELONE", "an LVM physical volume"),
    mark(0, b"\xfc\x4e\x2b\xa9", "a Linux RAID member"),
    mark(4096, b"\xfc\x4e\x2b\xa9", "a Linux RAID member"),
    mark(
        4096 + 24,
        b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf7\x7f\x48\xba\x6d\x81",
        "a bcache or bcachefs device",
    ),
    mark(3, b"NTFS    ", "an NTFS filesystem"),
    mark(3, b"EXFAT   ", "an exFAT filesystem"),
    mark(54, b"FAT1", "a FAT filesystem"),
    mark(82, b"FAT32", "a FAT filesystem"),
    mark(1024, b"\x10\x20\xf5\xf2", "an F2FS filesystem"),
    mark(1024, b"\xe2\xe1\xf5\xe0", "an EROFS filesystem"),
    mark(0x8001, b"CD001", "an ISO 9660 filesystem"),
    mark(0, b"hsqs", "a SquashFS filesystem"),
    mark(0x10034, b"ReIsErFs", "a ReiserFS filesystem"),
    mark(0x10034, b"ReIsEr2Fs", "a ReiserFS filesystem"),
    mark(0x8000, b"JFS1", "a JFS filesystem"),
    mark(0, b"BLKrREPL", "the state of another replica"),
];

/// Looks at the first and the last bytes of a device of `len` bytes: up to [`PROBE_BYTES`] each.
#[must_use]
pub fn probe(first: &[u8], last: &[u8], len: ByteLen) -> Option<Signature> {
    let found = |at: usize, bytes: &[u8]| first.get(at..at + bytes.len()) == Some(bytes);
    let by_mark = MARKS
        .iter()
        .find(|mark| found(mark.at, mark.bytes))
        .map(|mark| mark.what);
    by_mark
        .or_else(|| zfs(first))
        .or_else(|| from_the_end(last, len.get()))
        .or_else(|| master_boot_record(first))
        .map(Signature)
}

/// A ZFS label has its uberblocks, a kibibyte or more apart, in its second half.
fn zfs(first: &[u8]) -> Option<&'static str> {
    const UBERBLOCK: u64 = 0x00ba_b10c;
    let blocks = first.get(128 << 10..)?.chunks_exact(1024);
    let mut magics = blocks.map(|block| {
        let bytes: [u8; 8] = block[..8].try_into().expect("eight bytes");
        u64::from_le_bytes(bytes)
    });
    magics
        .any(|magic| magic == UBERBLOCK || magic.swap_bytes() == UBERBLOCK)
        .then_some("a ZFS pool member")
}

fn from_the_end(last: &[u8], len: u64) -> Option<&'static str> {
    let start = len.checked_sub(last.len() as u64)?;
    let found = |at: u64, bytes: &[u8]| {
        let at = at
            .checked_sub(start)
            .and_then(|at| usize::try_from(at).ok());
        at.and_then(|at| last.get(at..at.checked_add(bytes.len())?)) == Some(bytes)
    };
    let md_old = (len & !0xffff).wrapping_sub(0x1_0000);
    let md_one = (len & !0xfff).wrapping_sub(0x2000);
    let drbd = (len & !0xfff).wrapping_sub(0x1000);
    if found(md_old, b"\xfc\x4e\x2b\xa9") || found(md_one, b"\xfc\x4e\x2b\xa9") {
        return Some("a Linux RAID member");
    }
    if (0x6b..=0x6e).any(|kind| found(drbd.wrapping_add(60), &[0x83, 0x74, 0x02, kind])) {
        return Some("DRBD metadata");
    }
    let gpt = [512, 4096]
        .iter()
        .any(|block| found(len.wrapping_sub(*block), b"EFI PART"));
    gpt.then_some("a GPT partition table")
}

/// The mark of a boot sector alone says little: one of its four entries must be a partition.
fn master_boot_record(first: &[u8]) -> Option<&'static str> {
    if first.get(510..512)? != [0x55, 0xaa] {
        return None;
    }
    let entries = first.get(446..510)?.chunks_exact(16);
    let plausible = |entry: &[u8]| {
        let sectors = u32::from_le_bytes(entry[12..16].try_into().expect("four bytes"));
        matches!(entry[0], 0 | 0x80) && entry[4] != 0 && sectors != 0
    };
    entries
        .clone()
        .any(plausible)
        .then_some("an MBR partition table")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const LEN: usize = 1 << 20;

    fn probe_image(image: &[u8]) -> Option<&'static str> {
        let probe_bytes = usize::try_from(PROBE_BYTES).unwrap();
        let len = ByteLen::new(image.len() as u64);
        let first = &image[..probe_bytes.min(image.len())];
        let last = &image[image.len().saturating_sub(probe_bytes)..];
        probe(first, last, len).map(Signature::what)
    }

    fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut image = vec![0; LEN];
        image[at..at + bytes.len()].copy_from_slice(bytes);
        image
    }

    #[test]
    fn every_mark_is_found_at_its_place_and_nowhere_else() {
        assert_eq!(probe_image(&vec![0; LEN]), None);
        for mark in MARKS {
            assert_eq!(probe_image(&with(mark.at, mark.bytes)), Some(mark.what));
            let beside = probe_image(&with(mark.at + 7, mark.bytes));
            assert_eq!(beside, None, "{} seven bytes off", mark.what);
        }
    }

    #[test]
    fn marks_at_the_end_are_found() {
        let raid = b"\xfc\x4e\x2b\xa9";
        assert_eq!(
            probe_image(&with(LEN - 0x1_0000, raid)),
            Some("a Linux RAID member")
        );
        assert_eq!(
            probe_image(&with(LEN - 0x2000, raid)),
            Some("a Linux RAID member")
        );
        let drbd = [0x83, 0x74, 0x02, 0x6d];
        assert_eq!(
            probe_image(&with(LEN - 0x1000 + 60, &drbd)),
            Some("DRBD metadata")
        );
        assert_eq!(
            probe_image(&with(LEN - 512, b"EFI PART")),
            Some("a GPT partition table")
        );
    }

    #[test]
    fn a_pool_member_and_a_partition_table_are_found_and_random_bytes_are_not() {
        let uberblock = 0x00ba_b10c_u64.to_le_bytes();
        assert_eq!(
            probe_image(&with((128 << 10) + 4096, &uberblock)),
            Some("a ZFS pool member")
        );
        let mut table = with(510, &[0x55, 0xaa]);
        assert_eq!(probe_image(&table), None, "no entry is a partition");
        table[446 + 4] = 0x83;
        table[446 + 12] = 8;
        assert_eq!(probe_image(&table), Some("an MBR partition table"));
        let noise: Vec<u8> = (0..LEN)
            .map(|at| u8::try_from(((at * 2_654_435_761) >> 13) % 251).unwrap())
            .collect();
        assert_eq!(probe_image(&noise), None);
    }

    #[test]
    fn a_short_device_is_looked_at_without_harm() {
        for len in [0, 1, 511, 512, 513, 4096, 70_000] {
            assert_eq!(probe_image(&vec![0; len]), None);
        }
    }
}
