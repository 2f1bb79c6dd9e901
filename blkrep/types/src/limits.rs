//! Limits that hold everywhere, each with its reason.

/// Longest name of a node, group, volume or link: fits a file name with room for suffixes.
pub const NAME_BYTES_MAX: usize = 64;

/// Volumes in one group: their requests share one order, so one lock and one log.
pub const GROUP_VOLUMES_MAX: usize = 64;

/// Largest request a front end hands over; the kernel splits what is larger. Bounds the slot of a
/// log entry, a frame and a journal record.
pub const REQUEST_BYTES_MAX: u64 = 1 << 20;

/// Generations kept with their parent and branch: how far back a returning node is recognised.
pub const GENERATION_HISTORY_MAX: usize = 64;

/// Smallest unit that a disk writes whole: what a power cut can tear off.
pub const SECTOR_BYTES: u64 = 512;
