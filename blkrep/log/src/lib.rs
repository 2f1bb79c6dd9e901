//! The source's write log and what keeps it over restarts.
//!
//! Owns the memory log. Entries enter in order and leave in order; names of places tell a
//! successor where to go on. Never talks to the network, never decides what is dirty.
#![forbid(unsafe_code)]

mod memory;

pub use memory::{
    Append, Appended, Held, Mark, MemoryLog, MemoryLogName, MemoryLogShape, Place, Unusable,
};
