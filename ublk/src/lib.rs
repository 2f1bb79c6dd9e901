//! Front ends: how an application reaches a volume.
//!
//! Owns the trait every front end implements and its implementations. Enters: requests of
//! applications. Leaves: their answers. Never knows about replication.

pub mod auto;
pub mod driver;
mod front;
pub mod fuse_loop;
mod mailbox;
pub mod nbd;
mod sync;

pub use front::{
    Device, DeviceSpec, FRONT_TOKEN, FrontEnd, FrontError, FrontKind, FrontQueue, Made, Owner,
    Request, RequestKind, Stop, Users,
};
