//! The head of a disk queue's file.
//!
//! Owns what says whose file it is and how it is cut (`docs/format/disk-queue.md`). The rest of the
//! file is bytes of operations; where, and with which sum, the log in memory says. Never reads a file.

use crate::error::FormatError;
use crate::layout::QueueHead;
use blkrep_types::ByteLen;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

const MAGIC: [u8; 8] = *b"BLKRqueu";
const VERSION: u32 = 1;
const WHAT: &str = "disk queue";

/// Bytes of the head; operations follow.
pub const HEAD_BYTES: u64 = 4096;

/// Smallest segment: the largest operation fits.
pub const SEGMENT_BYTES_MIN: u64 = 1 << 20;
/// Largest segment: more would only come back to the filesystem later.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// What a queue's file says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Its number, by which the log knows it.
    pub file: u64,
    /// The log it belongs to.
    pub log: [u8; 16],
    /// Bytes of a segment.
    pub segment_bytes: ByteLen,
}

impl Head {
    /// The first bytes of the file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut head = QueueHead {
            magic: MAGIC,
            version: U32::new(VERSION),
            crc: U32::ZERO,
            file: U64::new(self.file),
            log: self.log,
            segment_bytes: U64::new(self.segment_bytes.get()),
            reserved: [0; 464],
        };
        head.crc = U32::new(crc32fast::hash(head.as_bytes()));
        let mut bytes = head.as_bytes().to_vec();
        bytes.resize(usize::try_from(HEAD_BYTES).expect("64-bit platform"), 0);
        bytes
    }

    /// Reads them.
    ///
    /// # Errors
    /// They are no head of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let (mut head, _) =
            QueueHead::read_from_prefix(bytes).map_err(|_| FormatError::Short { what: WHAT })?;
        if head.magic != MAGIC {
            return Err(FormatError::Magic { what: WHAT });
        }
        let crc = std::mem::replace(&mut head.crc, U32::ZERO);
        if crc.get() != crc32fast::hash(head.as_bytes()) {
            return Err(FormatError::Checksum { what: WHAT });
        }
        if head.version.get() > VERSION {
            return Err(FormatError::Newer {
                what: WHAT,
                found: head.version.get(),
                supported: VERSION,
            });
        }
        let segment = head.segment_bytes.get();
        let legal = (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&segment);
        if !legal || !segment.is_multiple_of(HEAD_BYTES) {
            return Err(FormatError::Field {
                what: WHAT,
                field: "segment_bytes",
            });
        }
        Ok(Self {
            file: head.file.get(),
            log: head.log,
            segment_bytes: ByteLen::new(segment),
        })
    }
}

/// The sum of an operation's bytes, as the log keeps it.
#[must_use]
pub fn sum(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const HEAD: Head = Head {
        file: 0x1234_5678,
        log: [7; 16],
        segment_bytes: ByteLen::new(16 << 20),
    };

    #[test]
    fn a_head_is_read_as_it_is_written_and_any_changed_byte_is_noticed() {
        let bytes = HEAD.encode();
        assert_eq!(Head::decode(&bytes).unwrap(), HEAD);
        for at in 0..512 {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(Head::decode(&bad).is_err(), "byte {at}");
        }
        assert!(Head::decode(&bytes[..511]).is_err());
        let small = Head {
            segment_bytes: ByteLen::new(4096),
            ..HEAD
        };
        assert!(Head::decode(&small.encode()).is_err(), "no such segment");
    }

    #[test]
    fn a_head_of_version_1_stays_what_it_is() {
        assert_eq!(sum(&HEAD.encode()), GOLDEN);
    }

    const GOLDEN: u32 = 958_617_557;
}
