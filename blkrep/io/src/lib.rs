//! The hands of blkrep: memory, disks, sockets, clock and randomness behind traits.
//!
//! Owns the two seams that everything above is written against: [`Io`], what one data-plane thread
//! can ask for and wait for, and [`Host`], what is done rarely and blocking. Each has a real
//! implementation and a simulated twin, held to the same conformance tests. Never knows what a
//! volume is.

mod host;
mod memory;
mod proactor;
pub mod real;
pub mod sim;

pub use host::{Access, FileKind, Geometry, Host, HostError};
pub use memory::{PAGE_BYTES, Region, Slice};
pub use proactor::{Completion, Io, LineFacts, Op, Steering, Token, Wake, Waker, Worker, run};
