//! Bounds on what a peer can make us hold, each with its reason.

use crate::layout::{DATA_HEAD_BYTES, FRAME_HEADER_BYTES, RECORD_HEADER_BYTES};

/// Data bytes of one frame: four of the largest requests, so that small records travel in batches
/// that one write of the journal takes.
pub const FRAME_DATA_BYTES_MAX: usize = 4 << 20;

/// Records of one frame: enough for a full frame of 4 KiB writes.
pub const FRAME_RECORDS_MAX: usize = 1024;

/// Body of a frame from source to target.
pub const SOURCE_BODY_MAX: usize =
    DATA_HEAD_BYTES + FRAME_RECORDS_MAX * RECORD_HEADER_BYTES + FRAME_DATA_BYTES_MAX;

/// Body of a data frame that a packed one stands for: the largest record, or as much of small ones.
/// A target keeps a buffer of this size for each source, and no packed frame becomes more.
pub const PACKED_PLAIN_MAX: usize =
    DATA_HEAD_BYTES + FRAME_RECORDS_MAX * RECORD_HEADER_BYTES + (1 << 20);
const _: () = assert!(
    PACKED_PLAIN_MAX as u64 > blkrep_types::limits::REQUEST_BYTES_MAX,
    "any record can be packed"
);

/// Body of a frame from source to target on a connection that joined: a batch is no larger than what
/// can be packed. A target keeps buffers for each of them.
pub const JOINED_BODY_MAX: usize = PACKED_PLAIN_MAX;

/// Connections of one session: enough for a line that loses one packet in a hundred; each costs the
/// target its buffers.
pub const CONNECTIONS_MAX: usize = 16;

/// Body of a frame from target to source: map parts and digests are cut to fit.
pub const TARGET_BODY_MAX: usize = 128 << 10;

/// Body of the first frame of a connection, from a peer that nothing is known of: 64 volumes with
/// the longest paths.
pub const HELLO_BODY_MAX: usize = 512 << 10;

/// Bytes of a path at the target, as the kernel's `PATH_MAX` has it.
pub const PATH_BYTES_MAX: usize = 4096;

/// Bytes of a reason in words: a few sentences.
pub const TEXT_BYTES_MAX: usize = 1024;

/// Bytes of bits in one map part: 32 GiB of a volume with extents of 64 KiB.
pub const MAP_PART_BYTES_MAX: usize = 64 << 10;

/// Bytes of a volume in one frame: a read's answer is cut so, to fit the buffers that a source has for
/// what a target says.
pub const CONTENT_BYTES_MAX: usize = 64 << 10;

/// Digests in one frame.
pub const DIGESTS_MAX: usize = 1024;

/// A buffer for a [`crate::Decoder`] of frames with bodies up to `body_max`: two whole frames, so
/// that a partial one seldom has to be moved to the front.
#[must_use]
pub const fn buffer_bytes(body_max: usize) -> usize {
    2 * (FRAME_HEADER_BYTES + body_max)
}
