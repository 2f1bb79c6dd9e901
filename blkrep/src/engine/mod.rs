//! The engines: workers that join state machines, formats and I/O.
//!
//! Owns what runs on data-plane threads. Everything goes through the seams of `blkrep-io`, so the
//! simulator runs the very same workers. Never reads a clock, opens a file or spawns a thread.

mod copies;
pub mod link;
pub mod source;
pub mod target;
