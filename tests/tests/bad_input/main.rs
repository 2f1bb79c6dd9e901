//! Bad input against real daemons: each gets a clear error that names what happened, to what, and what to do; nothing
//! is changed, nothing is lost, and every daemon lives.
//!
//! Needs neither root nor a kernel driver: front end NBD, files as disks, loopback.

#![allow(clippy::unwrap_used, missing_docs)]

mod backings;
mod commands;
mod damage;
mod decay;
mod full;
mod lab;
mod peer;
mod peers;
mod records;
mod replacing;
mod strangers;
mod targets;
mod volume;
