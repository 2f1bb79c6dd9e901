//! The journal's head: where its live part begins, in two copies.
//!
//! The copy with the higher counter is right; they are written in turn, so that a torn write
//! leaves the other one.

use super::{JOURNAL_AREA_OFFSET, JOURNAL_BLOCK_BYTES};
use crate::error::FormatError;
use crate::layout::{JournalHead, head_crc};
use blkrep_types::WriteName;
use blkrep_types::limits::COUNT_MAX;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

pub(super) const VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"BLKrJRNL";
const WHAT: &str = "head of the journal";

/// Tells one journal from every other: random, new whenever a journal is made.
pub type JournalId = [u8; 16];

/// What the head says: the state of the journal at its last checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalState {
    /// Which journal.
    pub id: JournalId,
    /// Counts the writes of the head.
    pub counter: u64,
    /// Bytes of the circular area.
    pub capacity: u64,
    /// Where the oldest batch that is still needed begins.
    pub position: u64,
    /// That batch's number.
    pub number: u64,
    /// The last record before it; the last one of all where the journal is empty.
    pub before: WriteName,
    /// A batch with this number was durable when the head was written, and so were all before it.
    pub durable: u64,
    /// The last record of that batch.
    pub last: WriteName,
}

impl JournalState {
    /// A new, empty journal.
    #[must_use]
    pub const fn new(id: JournalId, capacity: u64, before: WriteName) -> Self {
        Self {
            id,
            counter: 0,
            capacity,
            position: 0,
            number: 1,
            before,
            durable: 0,
            last: WriteName::NONE,
        }
    }

    /// Bytes of the file that holds a journal of `capacity`.
    #[must_use]
    pub const fn file_bytes(capacity: u64) -> u64 {
        JOURNAL_AREA_OFFSET + capacity
    }

    /// Where the copy with this counter goes.
    #[must_use]
    pub const fn copy_offset(counter: u64) -> u64 {
        (counter % 2) * JOURNAL_BLOCK_BYTES
    }

    /// Writes a copy into `block`, [`JOURNAL_BLOCK_BYTES`] long.
    ///
    /// # Panics
    /// If the block has another length.
    pub fn encode(&self, block: &mut [u8]) {
        assert_eq!(
            block.len() as u64,
            JOURNAL_BLOCK_BYTES,
            "a copy is one block"
        );
        let mut head = JournalHead::new_zeroed();
        head.magic = MAGIC;
        head.version = U32::new(VERSION);
        head.bytes = U32::new(u32::try_from(size_of::<JournalHead>()).expect("256"));
        head.journal = self.id;
        head.counter = U64::new(self.counter);
        head.capacity = U64::new(self.capacity);
        head.position = U64::new(self.position);
        head.number = U64::new(self.number);
        head.before = self.before.into();
        head.durable = U64::new(self.durable);
        head.last = self.last.into();
        head.crc = U32::new(head_crc(head.as_bytes()));
        block.fill(0);
        block[..size_of::<JournalHead>()].copy_from_slice(head.as_bytes());
    }

    /// Reads one copy.
    ///
    /// # Errors
    /// It is blank, corrupt, of a newer version, or has a field that cannot be.
    pub fn decode(block: &[u8]) -> Result<Self, FormatError> {
        let Ok((head, _)) = JournalHead::read_from_prefix(block) else {
            return Err(FormatError::Short { what: WHAT });
        };
        if head.as_bytes().iter().all(|byte| *byte == 0) {
            return Err(FormatError::Blank { what: WHAT });
        }
        if head.magic != MAGIC {
            return Err(FormatError::Magic { what: WHAT });
        }
        if head_crc(head.as_bytes()) != head.crc.get() {
            return Err(FormatError::Checksum { what: WHAT });
        }
        if head.version.get() > VERSION {
            let found = head.version.get();
            return Err(FormatError::Newer {
                what: WHAT,
                found,
                supported: VERSION,
            });
        }
        check(&head)?;
        Ok(Self {
            id: head.journal,
            counter: head.counter.get(),
            capacity: head.capacity.get(),
            position: head.position.get(),
            number: head.number.get(),
            before: head.before.into(),
            durable: head.durable.get(),
            last: head.last.into(),
        })
    }

    /// Chooses between the two copies: the newer good one, and what is wrong with the other.
    /// A blank one is nothing wrong.
    ///
    /// # Errors
    /// Neither is good, or one is of a newer version.
    pub fn choose(first: &[u8], second: &[u8]) -> Result<(Self, Option<FormatError>), FormatError> {
        match (Self::decode(first), Self::decode(second)) {
            (Err(error), _) | (_, Err(error)) if error.is_newer() => Err(error),
            (Ok(a), Ok(b)) => Ok((if a.counter > b.counter { a } else { b }, None)),
            (Ok(good), Err(FormatError::Blank { .. }))
            | (Err(FormatError::Blank { .. }), Ok(good)) => Ok((good, None)),
            (Ok(good), Err(error)) | (Err(error), Ok(good)) => Ok((good, Some(error))),
            (Err(FormatError::Blank { .. }), Err(error)) | (Err(error), Err(_)) => Err(error),
        }
    }
}

fn check(head: &JournalHead) -> Result<(), FormatError> {
    let wrong = |field| Err(FormatError::Field { what: WHAT, field });
    if head.version.get() == 0 {
        return wrong("version");
    }
    if head.bytes.get() as usize != size_of::<JournalHead>() {
        return wrong("bytes");
    }
    let capacity = head.capacity.get();
    if capacity == 0 || !capacity.is_multiple_of(JOURNAL_BLOCK_BYTES) || capacity > 1 << 60 {
        return wrong("capacity");
    }
    let position = head.position.get();
    if !position.is_multiple_of(JOURNAL_BLOCK_BYTES) || position > 1 << 62 {
        return wrong("position");
    }
    if head.number.get() == 0 || head.number.get() > COUNT_MAX {
        return wrong("number");
    }
    if head.counter.get() > COUNT_MAX {
        return wrong("counter");
    }
    if head.durable.get() > COUNT_MAX {
        return wrong("durable");
    }
    if head.reserved.iter().any(|byte| *byte != 0) {
        return wrong("reserved");
    }
    Ok(())
}
