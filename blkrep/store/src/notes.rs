//! What a target keeps of the notes it has reached, on disk.
//!
//! Owns the codec of one page of the file `notes` (`docs/format/notes.md`). A page is one state of one
//! note; it checks itself, and is written to the place after the last one, so that the state before it
//! stays until it is durable. Never does I/O, never decides what a state means.

use crate::error::FormatError;
use crate::layout::NotePage;
use blkrep_types::limits::COUNT_MAX;
use blkrep_types::{NOTE_REPORT_BYTES_MAX, NoteReport};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

const MAGIC: [u8; 8] = *b"BLKrNOTE";
const VERSION: u16 = 1;
const WHAT: &str = "page of notes";

/// Bytes of a page.
pub const NOTE_PAGE_BYTES: usize = size_of::<NotePage>();

/// Pages of the file: the states that are remembered. A bookmark takes one, a task two.
pub const NOTE_PAGES: u64 = 256;

const _: () = assert!(NOTE_REPORT_BYTES_MAX <= NOTE_REPORT_ROOM, "any report fits");

/// Bytes for the report.
pub(crate) const NOTE_REPORT_ROOM: usize = 4048;

/// Where the page with this number is.
#[must_use]
pub const fn page_offset(counter: u64) -> u64 {
    counter % NOTE_PAGES * NOTE_PAGE_BYTES as u64
}

/// The bytes of a page.
///
/// # Panics
/// Never: every report fits.
#[must_use]
pub fn encode_page(replica: [u8; 16], counter: u64, report: &NoteReport) -> Vec<u8> {
    let bytes = report.encode();
    let mut page = NotePage::new_zeroed();
    page.magic = MAGIC;
    page.version = U16::new(VERSION);
    page.report_bytes = U16::new(u16::try_from(bytes.len()).expect("a report is short"));
    page.replica = replica;
    page.counter = U64::new(counter);
    page.report[..bytes.len()].copy_from_slice(&bytes);
    page.crc = U32::new(crc(&page));
    page.as_bytes().to_vec()
}

/// Reads a page: its number and what it says.
///
/// # Errors
/// It is not a good page of that replica.
pub fn decode_page(replica: [u8; 16], bytes: &[u8]) -> Result<(u64, NoteReport), FormatError> {
    let wrong = |field| FormatError::Field { what: WHAT, field };
    let Ok(page) = NotePage::read_from_bytes(bytes) else {
        return Err(FormatError::Short { what: WHAT });
    };
    if bytes.iter().all(|byte| *byte == 0) {
        return Err(FormatError::Blank { what: WHAT });
    }
    if page.magic != MAGIC {
        return Err(FormatError::Magic { what: WHAT });
    }
    if crc(&page) != page.crc.get() {
        return Err(FormatError::Checksum { what: WHAT });
    }
    let found = page.version.get();
    if found > VERSION {
        return Err(FormatError::Newer {
            what: WHAT,
            found: found.into(),
            supported: VERSION.into(),
        });
    }
    if found == 0 {
        return Err(wrong("version"));
    }
    if page.replica != replica {
        return Err(wrong("replica"));
    }
    let counter = page.counter.get();
    if counter == 0 || counter > COUNT_MAX {
        return Err(wrong("counter"));
    }
    let len = usize::from(page.report_bytes.get());
    let report = page
        .report
        .get(..len)
        .ok_or_else(|| wrong("report_bytes"))?;
    let rest = page.report[len..].iter().all(|byte| *byte == 0);
    let report = NoteReport::decode(report).ok().filter(|_| rest);
    Ok((counter, report.ok_or_else(|| wrong("report"))?))
}

/// Over everything but the checksum itself, which counts as zero.
fn crc(page: &NotePage) -> u32 {
    let mut copy = *page;
    copy.crc = U32::ZERO;
    crc32fast::hash(copy.as_bytes())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use blkrep_types::{BookmarkName, Note, NoteId, NoteKind, NoteState, WriteName};

    fn report() -> NoteReport {
        let note = Note {
            id: NoteId::from_bytes([9; 16]),
            submitted: 7,
            kind: NoteKind::Bookmark(BookmarkName::new("monday").unwrap()),
        };
        NoteReport::of(&note, WriteName::NONE, NoteState::Set)
    }

    #[test]
    fn a_page_is_read_as_it_was_written() {
        let page = encode_page([1; 16], 42, &report());
        assert_eq!(page.len(), NOTE_PAGE_BYTES);
        assert_eq!(&page[..8], b"BLKrNOTE");
        assert_eq!(decode_page([1; 16], &page), Ok((42, report())));
    }

    #[test]
    fn what_is_no_page_of_this_replica_is_refused() {
        let page = encode_page([1; 16], 42, &report());
        assert!(decode_page([2; 16], &page).is_err());
        assert!(decode_page([1; 16], &[0; NOTE_PAGE_BYTES]).is_err());
        assert!(decode_page([1; 16], &page[1..]).is_err());
        for at in 0..page.len() {
            let mut flipped = page.clone();
            flipped[at] ^= 4;
            assert!(decode_page([1; 16], &flipped).is_err(), "byte {at}");
        }
        assert!(decode_page([1; 16], &encode_page([1; 16], 0, &report())).is_err());
    }

    #[test]
    fn a_torn_page_is_none() {
        let (new, old) = (
            encode_page([1; 16], 300, &report()),
            [0x5a; NOTE_PAGE_BYTES],
        );
        for sectors in 1..8 {
            let mut torn = old.to_vec();
            let cut = NOTE_PAGE_BYTES - sectors * 512;
            torn[cut..].copy_from_slice(&new[cut..]);
            assert!(decode_page([1; 16], &torn).is_err());
        }
    }
}
