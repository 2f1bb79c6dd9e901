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

/// Extents of all volumes of a group together: 512 MiB of bits for a map in memory. 256 TiB with the default
/// extents, 16 TiB with the smallest, 4 PiB with the largest.
pub const GROUP_EXTENTS_MAX: u64 = 1 << 32;

/// Highest number of a write, a run, a batch or a copy that is believed where it was read: one a nanosecond
/// takes a century to get there. What counts on from it never overflows.
pub const COUNT_MAX: u64 = 1 << 62;

/// Smallest unit that a disk writes whole: what a power cut can tear off.
pub const SECTOR_BYTES: u64 = 512;
