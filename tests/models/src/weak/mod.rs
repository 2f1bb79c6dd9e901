//! The same over atomics that keep no order: a model that still passes shows nothing about orders.

mod sync {
    pub(super) use crate::loose::{AtomicBool, AtomicI32, AtomicU8, AtomicU32, AtomicU64, fence};
    pub(super) use loom::sync::atomic::Ordering;
    pub(super) use loom::sync::{Condvar, Mutex, MutexGuard};
}

#[allow(dead_code, reason = "the product uses more of it")]
#[path = "../../../../ublk/src/driver/shared.rs"]
mod flags;
#[allow(dead_code, reason = "the product uses more of it")]
#[path = "../../../../blkrep/src/engine/source/idle.rs"]
mod idle;
#[allow(dead_code, reason = "the product uses more of it")]
#[path = "../../../../blkrep/src/engine/source/mail.rs"]
mod mail;
#[allow(dead_code, reason = "the product uses more of it")]
#[path = "../../../../ublk/src/mailbox.rs"]
mod mailbox;
#[allow(dead_code, reason = "the product uses more of it")]
#[path = "../../../../ublk/src/nbd/parts.rs"]
mod parts;
#[allow(dead_code, reason = "the product uses more of it")]
#[path = "../../../../blkrep/io/src/real/sleep.rs"]
mod sleep;
#[allow(dead_code, reason = "the product uses more of it")]
#[path = "../../../../blkrep/log/src/memory/state.rs"]
mod state;

#[path = "../bell.rs"]
mod bell;
#[path = "../models/mod.rs"]
pub mod models;
