//! The source side of a group: what joins state machine, log, maps and disks.
//!
//! Owns opening and recovery ([`SourceShared::open`]), the workers of queues ([`QueueWorker`]) and
//! a link's side of the group ([`GroupLinkPort`]), commands, and the orderly end. Everything runs
//! over [`blkrep_io::Io`] and [`blkrep_io::Host`].

mod adapter;
mod closed;
mod command;
mod disk_queue;
mod fencing;
mod forget;
mod group;
mod idle;
mod jobs;
mod link_port;
mod mail;
mod metadata;
mod notes;
mod open;
mod port;
mod queue;
mod read_back;
mod recover;
mod secure;
mod served;
mod stop;
#[cfg(test)]
mod tests;
mod volumes;

// What threads share: a model of it is given another one (tests/models).
use std::sync::atomic as sync;

pub use closed::{distrust_group, fence_closed, history_of_closed};
pub use command::{InitialMap, LinkSpec};
pub use disk_queue::QueueSpec;
pub use forget::forget_group;
pub use group::{GroupStatus, SourceShared};
pub use link_port::GroupLinkPort;
pub use notes::NoteStatus;
pub use open::{GroupSpec, OpenError, OpenReport, SourceOptions, VolumeSpec};
pub use port::{Batch, LinkPort, PORT_TOKEN};
pub use queue::QueueWorker;
