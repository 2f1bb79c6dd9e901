//! The simulator: a cluster with its applications, faults and operators, under one virtual clock.
//!
//! Owns the scheduler that gives the product's own workers their turns, the application, and the
//! judges. A seed enters, a verdict leaves. Never replaces any part of the engine: what runs here
//! are the same state machines, formats and workers that the daemon runs.

#![forbid(unsafe_code)]

pub mod age;
pub mod app;
pub mod campaign;
pub mod cluster;
pub mod daemon;
mod desk;
mod detach;
mod detaching;
mod draw;
pub mod exhaustive;
mod fault;
pub mod front;
pub mod group;
pub mod judge;
pub mod minimize;
mod moment;
pub mod names;
mod operator;
mod oracles;
pub mod plan;
#[cfg(feature = "planted")]
pub mod planted;
mod probe;
pub mod program;
mod promises;
pub mod received;
pub mod report;
pub mod run;
pub mod served;
mod served_links;
mod serving;
pub mod start;
mod takeover;
pub mod tasks;
pub mod theme;
pub mod told;
pub mod unflushed;

#[cfg(test)]
mod flawed;
