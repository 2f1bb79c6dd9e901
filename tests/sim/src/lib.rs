//! The simulator: two nodes, a group, an application, faults and commands, under one virtual clock.
//!
//! Owns the scheduler that gives the product's own workers their turns, the application, and the
//! judges. A seed enters, a verdict leaves. Never replaces any part of the engine: what runs here
//! are the same state machines, formats and workers that the daemon runs.

#![forbid(unsafe_code)]

pub mod app;
pub mod campaign;
mod ending;
pub mod front;
pub mod judge;
pub mod names;
pub mod plan;
mod probe;
pub mod program;
pub mod run;
pub mod source;
pub mod start;
pub mod target;
pub mod told;

#[cfg(test)]
mod flawed;
