//! What a target keeps: its journal, its superblock and its part of the dirty map.
//!
//! Owns four formats and the bookkeeping that belongs to them, without I/O: the journal (records
//! received and not yet safely in the base), the superblock (what the replica is worth, and of
//! which history) and the map of extents known to differ. Records and facts enter and bytes with
//! the position they belong to leave, or the other way round. Never talks to the network, never
//! opens a file, never decides what a state means.
#![forbid(unsafe_code)]

mod error;
pub mod journal;
mod layout;
pub mod map;
pub mod notes;
#[cfg(test)]
mod pages;
pub mod superblock;

pub use error::FormatError;
