//! The source's write log and what keeps it over restarts.
//!
//! Owns the memory log, the format of map files and of the group's superblock. Entries enter in
//! order and leave in order; names of places tell a successor where to go on. Never talks to the
//! network, never decides what is dirty.
#![forbid(unsafe_code)]

mod error;
mod layout;
pub mod map;
mod memory;
#[cfg(test)]
mod pages;
pub mod queue;
pub mod superblock;

pub use error::FormatError;
pub use memory::{
    Append, Appended, Away, FlushTroubles, Held, LogHandle, Mark, MemoryLog, MemoryLogName,
    MemoryLogShape, Place, Unusable,
};
