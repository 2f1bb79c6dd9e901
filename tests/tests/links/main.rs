//! Links of real daemons: what is set, what is sent, what is said of it.
//!
//! Needs no kernel driver: front end NBD, files as disks, loopback.

#![allow(clippy::unwrap_used, missing_docs, dead_code)]

mod compression;
mod connections;
#[path = "../bad_input/lab.rs"]
mod lab;
mod line;
mod queue;
mod simulated;
mod tasks;
#[path = "../bad_input/volume.rs"]
mod volume;
