//! Bad input against real daemons: each gets a clear error that names what happened, to what, and what to do; nothing
//! is changed, nothing is lost, and every daemon lives.
//!
//! Needs no kernel driver: front end NBD, files as disks, loopback. One test needs root, and those of small disks mount
//! namespaces: where these are not to be had they fail and say so.

#![allow(clippy::unwrap_used, missing_docs)]

mod backings;
mod changes;
mod commands;
mod damage;
mod decay;
mod frozen;
mod full;
mod lab;
mod lost;
mod meddler;
mod peer;
mod peers;
mod records;
mod rejoin;
mod replacing;
mod schedule;
mod serving;
mod slowed;
mod strangers;
mod targets;
mod trust;
mod volume;
