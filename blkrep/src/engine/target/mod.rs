//! The target side of a group: what receives, journals, acknowledges and applies.
//!
//! Owns [`TargetWorker`], one per replica; [`ReplicaFiles`], its files and the rules under which
//! they are made; [`Acceptor`], which takes connections and reads their first frame; and
//! [`TargetControl`], what the control plane can ask of a worker and see of it. Everything goes
//! through `blkrep_io::{Io, Host}`: no threads, no clock, no sockets of its own.

mod acceptor;
mod applying;
mod base;
mod contents;
mod control;
mod files;
mod joined;
mod joining;
mod journaling;
mod keeping;
mod notes;
mod policy;
mod promoting;
mod receiving;
mod record;
mod replacing;
mod retrying;
mod session;
mod signature;
#[cfg(test)]
mod tests;
mod worker;

pub use acceptor::{Acceptor, AcceptorLimits, Arrival, Joining, Route, Router};
pub use base::BaseShape;
pub use control::{
    Promotion, PromotionVolume, TargetCommandError, TargetControl, TargetEvent, TargetStatus,
    TargetWatch, TaskDone,
};
pub use files::{Opened, ReplicaFiles, ReplicaRequest};
pub use notes::{TaskEnd, TaskOrder};
pub use policy::{TargetError, TargetPolicy, TargetSettings};
pub use record::{PromotedRecord, promoted_record, recorded_role};
pub use replacing::Replacement;
pub use retrying::Retrying;
pub use signature::{PROBE_BYTES, Signature, probe};
pub use worker::TargetWorker;
