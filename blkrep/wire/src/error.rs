//! Why bytes from a peer are not a frame.

use crate::frame::FrameKind;

/// Bytes that are no legal frame. After one the connection is of no more use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The first bytes are not those of a frame.
    #[error("the peer does not speak blkrep: a frame began with {found:#010x}")]
    Magic {
        /// The four bytes, little-endian.
        found: u32,
    },
    /// The header's checksum is wrong.
    #[error("a frame header is corrupt: its checksum does not match")]
    HeaderChecksum,
    /// The frame is of a version that was not agreed on.
    #[error("a frame has version {found}, expected {expected}")]
    Version {
        /// The version in the header.
        found: u16,
        /// The version of this connection.
        expected: u16,
    },
    /// A kind that the version does not have.
    #[error("a frame is of unknown kind {found}")]
    Kind {
        /// The number in the header.
        found: u16,
    },
    /// The frame is not the next one: one is missing or was repeated.
    #[error("frame {found} came where frame {expected} should have")]
    Number {
        /// The number in the header.
        found: u64,
        /// The number that is next.
        expected: u64,
    },
    /// A length outside the limits of its kind.
    #[error("a frame '{kind}' of {len} bytes is out of bounds")]
    Length {
        /// The frame's kind.
        kind: FrameKind,
        /// The length in the header.
        len: u64,
    },
    /// The body's checksum is wrong.
    #[error("the body of a frame '{kind}' is corrupt: its checksum does not match")]
    BodyChecksum {
        /// The frame's kind.
        kind: FrameKind,
    },
    /// The checksum of a record's bytes is wrong.
    #[error("the bytes of write {seq} are corrupt: their checksum does not match")]
    DataChecksum {
        /// The record's place.
        seq: u64,
    },
    /// What the codec made does not become what its head says.
    #[error("a frame 'packed' does not inflate to as many bytes as it says")]
    Inflate,
    /// A field has a value that it cannot have, or a reserved one is not zero.
    #[error("field '{field}' of a frame '{kind}' has no legal value")]
    Field {
        /// The frame's kind.
        kind: FrameKind,
        /// The field, as the format page names it.
        field: &'static str,
    },
}
