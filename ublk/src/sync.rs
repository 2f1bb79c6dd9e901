//! What threads share things with.
//!
//! Owns nothing: it only names the standard library's. A file that takes its primitives from here can
//! be driven by a model over others (`tests/models`).

pub(crate) use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
