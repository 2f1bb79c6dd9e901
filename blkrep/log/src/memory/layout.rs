//! Where things lie in a memory log, in 64-bit words.
//!
//! Owns offsets and the packing of an entry; `docs/format/memory-log.md` says the same in words.
//! The memory is read by a successor on the same machine only, so words are in the machine's order.

use blkrep_types::{MirrorKind, RecordKind};

/// `BLKRlog1`, read as a little-endian word.
pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"BLKRlog1");

/// Bytes of the header: one page.
pub(super) const HEADER_BYTES: usize = 4096;
/// Bytes of one entry.
pub(super) const ENTRY_BYTES: usize = 64;
/// Links that can be marked: as many as a group can have.
pub(super) const MARKS: usize = 16;
/// Bytes of one link's mark.
pub(super) const MARK_BYTES: usize = 64;

/// Offsets of header words.
pub(super) mod header {
    pub(in super::super) const MAGIC: usize = 0;
    pub(in super::super) const ENTRIES: usize = 8;
    pub(in super::super) const DATA_BYTES: usize = 16;
    pub(in super::super) const GROUP: usize = 24;
    pub(in super::super) const STATIC_CRC: usize = 40;
    pub(in super::super) const GENERATION: usize = 64;
    pub(in super::super) const INCARNATION: usize = 80;
    pub(in super::super) const BASES: usize = 128;
    pub(in super::super) const BASE_CHOICE: usize = 160;
    pub(in super::super) const HEAD: usize = 192;
    pub(in super::super) const FLUSH_FAILED: usize = 256;
    pub(in super::super) const FLUSH_UNTOLD: usize = 264;
    pub(in super::super) const QUEUE_FILE: usize = 272;
    pub(in super::super) const MARKS: usize = 1024;
}

/// Offsets of words within an entry.
pub(super) mod entry {
    pub(in super::super) const SEQ: usize = 0;
    pub(in super::super) const INCARNATION: usize = 8;
    pub(in super::super) const WHAT: usize = 16;
    pub(in super::super) const OFFSET: usize = 24;
    pub(in super::super) const LEN: usize = 32;
    pub(in super::super) const DATA: usize = 40;
    pub(in super::super) const STATE: usize = 48;
    pub(in super::super) const AWAY: usize = 56;
}

/// Offsets within a link's mark: a control word (flags, and in the lowest bit which copy is good)
/// and two copies.
pub(super) mod mark {
    pub(in super::super) const CONTROL: usize = 0;
    pub(in super::super) const COPIES: usize = 8;
    pub(in super::super) const COPY_BYTES: usize = 24;
    pub(in super::super) const HELD: usize = 0;
    pub(in super::super) const ACKED_INCARNATION: usize = 8;
    pub(in super::super) const ACKED_SEQ: usize = 16;
}

const DATA: u64 = 1;
const ZERO: u64 = 2;
const VOID: u64 = 3;
const COMPARE: u64 = 4;
const MIRROR_BEGIN: u64 = 5;
const MIRROR_END: u64 = 6;
const NOTE: u64 = 7;
const READ: u64 = 8;

/// A kind as two bytes: what it is, then its flags or mirror kind.
pub(super) const fn pack_kind(kind: RecordKind) -> u64 {
    let (code, detail) = match kind {
        RecordKind::Data { mirror } => (DATA, mirror as u64),
        RecordKind::Zero { mirror, free } => (ZERO, mirror as u64 | (free as u64) << 1),
        RecordKind::Void => (VOID, 0),
        RecordKind::Compare => (COMPARE, 0),
        RecordKind::MirrorBegin(MirrorKind::Full) => (MIRROR_BEGIN, 1),
        RecordKind::MirrorBegin(MirrorKind::Difference) => (MIRROR_BEGIN, 2),
        RecordKind::MirrorBegin(MirrorKind::Checksum) => (MIRROR_BEGIN, 3),
        RecordKind::MirrorEnd => (MIRROR_END, 0),
        RecordKind::Note { task } => (NOTE, task as u64),
        RecordKind::Read => (READ, 0),
    };
    code | detail << 8
}

/// The kind of two bytes; `None` if they are none.
pub(super) const fn unpack_kind(packed: u64) -> Option<RecordKind> {
    Some(match (packed & 0xff, packed >> 8) {
        (DATA, flags @ 0..=1) => RecordKind::Data { mirror: flags == 1 },
        (ZERO, flags @ 0..=3) => RecordKind::Zero {
            mirror: flags & 1 == 1,
            free: flags & 2 == 2,
        },
        (VOID, 0) => RecordKind::Void,
        (COMPARE, 0) => RecordKind::Compare,
        (MIRROR_BEGIN, 1) => RecordKind::MirrorBegin(MirrorKind::Full),
        (MIRROR_BEGIN, 2) => RecordKind::MirrorBegin(MirrorKind::Difference),
        (MIRROR_BEGIN, 3) => RecordKind::MirrorBegin(MirrorKind::Checksum),
        (MIRROR_END, 0) => RecordKind::MirrorEnd,
        (NOTE, detail @ 0..=1) => RecordKind::Note { task: detail == 1 },
        (READ, 0) => RecordKind::Read,
        _ => return None,
    })
}

#[cfg(test)]
mod page {
    //! Compares `docs/format/memory-log.md` with the offsets.

    use super::{ENTRY_BYTES, HEADER_BYTES, MARK_BYTES, MARKS, entry, header, mark};

    const PAGE: &str = include_str!("../../../../docs/format/memory-log.md");

    /// Offset and length of a field in the table under a heading.
    fn row(title: &str, field: &str) -> (usize, usize) {
        let heading = format!("## {title}\n");
        let section = &PAGE[PAGE.find(&heading).expect("the section") + heading.len()..];
        let section = section.split("\n## ").next().expect("the section itself");
        let name = format!("`{field}`");
        let line = section
            .lines()
            .find(|line| line.split('|').nth(3).map(str::trim) == Some(&name));
        let cells: Vec<_> = line
            .expect("the field's row")
            .split('|')
            .map(str::trim)
            .collect();
        let number = |cell: &str| cell.parse().expect("a number");
        (number(cells[1]), number(cells[2]))
    }

    #[test]
    fn the_page_says_what_the_code_does() {
        for (field, offset) in [
            ("magic", header::MAGIC),
            ("entries", header::ENTRIES),
            ("data_bytes", header::DATA_BYTES),
            ("static_crc", header::STATIC_CRC),
            ("incarnation", header::INCARNATION),
            ("base_choice", header::BASE_CHOICE),
            ("head", header::HEAD),
            ("flush_failed", header::FLUSH_FAILED),
            ("flush_untold", header::FLUSH_UNTOLD),
            ("queue_file", header::QUEUE_FILE),
        ] {
            assert_eq!(row("Header", field), (offset, 8), "{field}");
        }
        assert_eq!(row("Header", "group"), (header::GROUP, 16));
        assert_eq!(row("Header", "generation"), (header::GENERATION, 16));
        assert_eq!(row("Header", "bases"), (header::BASES, 32));
        assert_eq!(row("Header", "marks"), (header::MARKS, MARKS * MARK_BYTES));
        for (field, offset) in [
            ("seq", entry::SEQ),
            ("incarnation", entry::INCARNATION),
            ("what", entry::WHAT),
            ("offset", entry::OFFSET),
            ("len", entry::LEN),
            ("data", entry::DATA),
            ("state", entry::STATE),
            ("away", entry::AWAY),
        ] {
            assert_eq!(row("Entry", field), (offset, 8), "{field}");
        }
        assert_eq!(row("Mark", "control"), (mark::CONTROL, 8));
        assert_eq!(row("Mark", "copies"), (mark::COPIES, 2 * mark::COPY_BYTES));
        assert_eq!((HEADER_BYTES, ENTRY_BYTES), (4096, 64));
    }
}
