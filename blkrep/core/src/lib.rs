//! The state machines of blkrep, sans-I/O: source group, target group, maps, identity.
//!
//! Events and time enter, actions leave. Owns what may happen in which order and why. Never reads
//! a clock, opens a file or spawns a thread, so that a simulator and the daemon run the same code.
#![forbid(unsafe_code)]

pub mod ahead;
pub mod compression;
pub mod dirty;
pub mod identity;
pub mod intent;
pub mod meter;
pub mod pace;
pub mod persist;
pub mod queue;
#[cfg(test)]
mod queue_tests;
pub mod range;
pub mod schedule;
pub mod source;
pub mod target;
