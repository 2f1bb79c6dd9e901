//! The product's files over loom's primitives: every model keeps its promise.

mod sync {
    pub(super) use loom::sync::atomic::{
        AtomicBool, AtomicI32, AtomicU8, AtomicU32, AtomicU64, Ordering, fence,
    };
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
