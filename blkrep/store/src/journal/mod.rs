//! The target's journal: records that were acknowledged and are not yet safely in the base.
//!
//! Owns the format of `docs/format/journal.md`: two copies of a head, then a circular area of
//! batches. A batch is what one durable write makes durable; it names itself (journal, number,
//! position), so that what an earlier lap left behind is never taken for it. Enters: records with
//! their bytes, then bytes read back. Leaves: bytes with their position, then batches, or where
//! the journal ends and whether it is torn or corrupt there. Never does I/O.

mod batch;
mod head;
mod plan;
mod scan;
mod space;
#[cfg(test)]
mod tests;

pub use batch::{Batch, BatchInfo, BatchRecord};
pub use head::{JournalId, JournalState};
pub use plan::{BatchPlan, Placed};
pub use scan::{Damage, ReadAt, Scan, ScanEnd};
pub use space::Space;

/// The grain of everything in the journal: no write of it touches a block it does not own, on any
/// disk.
pub const JOURNAL_BLOCK_BYTES: u64 = 4096;

/// Where the first batch may begin: after the two copies of the head.
pub const JOURNAL_AREA_OFFSET: u64 = 2 * JOURNAL_BLOCK_BYTES;

/// Records of one batch: those of one frame of the wire, so that its table stays below 44 KiB.
pub const BATCH_RECORDS_MAX: usize = 1024;

/// The least a batch buffer may have: one record of the largest request and the longest table.
pub const BATCH_BYTES_MIN: u64 = 1_114_112;

/// The default size of a batch buffer: 4 MiB of data, so that a full frame is one durable write.
pub const BATCH_BYTES_DEFAULT: u64 = (4 << 20) + 65_536;

/// How far a scan looks for a later batch behind one that is not good. Two whole laps of the
/// largest batch, so that one unreadable batch never hides its successor.
pub const SCAN_AHEAD_BYTES: u64 = 2 * BATCH_BYTES_DEFAULT;
