//! Models of what the product's threads share without a lock.
//!
//! Owns the models and the runs through them. The product's own files are compiled here once more,
//! over loom's primitives instead of the standard library's: every interleaving of a few threads is
//! run, with every value that a load may return. Enters: nothing. Leaves: a panic for a lost
//! wake-up, a value that was seen too early, memory that two threads used at once. Never ships.

#![forbid(unsafe_code)]
#![allow(
    clippy::duplicate_mod,
    reason = "the same files over two kinds of atomics"
)]

mod explore;
mod loose;
pub mod right;
pub mod weak;

/// The product's words for requests, where its files look for them.
mod front {
    pub(crate) use blkrep_ublk::{FrontQueue, Request, RequestKind};
}
