//! What is going on, in memory.
//!
//! Owns the table and, for each group, its engine, devices and threads. Changed by commands only.

use super::links::LinkDriver;
use super::replicas::Replica;
use super::table::Table;
use super::threads::WorkerThread;
use crate::engine::source::SourceShared;
use blkrep_api::{ApiError, ErrorCode};
use blkrep_io::real::RealHost;
use blkrep_types::{GroupName, LinkName, VolumeIndex, VolumeName};
use blkrep_ublk::Device;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

/// The engine of a source group.
pub(super) type Engine = Arc<SourceShared<RealHost>>;

/// A device at work.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) index: VolumeIndex,
    pub(super) device: Box<dyn Device>,
    pub(super) threads: Vec<WorkerThread>,
}

/// Why something of the state directory is not at work, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) code: ErrorCode,
    /// What is wrong with what.
    pub(super) what: String,
    pub(super) action: String,
}

impl Trouble {
    /// True if it is a claim that the kernel may not have taken from a killed predecessor yet.
    pub(super) const fn may_pass_soon(&self) -> bool {
        matches!(self.code, ErrorCode::BackingInUse)
    }
}

impl From<&ApiError> for Trouble {
    fn from(error: &ApiError) -> Self {
        Self {
            code: error.code,
            what: error.to_string(),
            action: error.action.clone(),
        }
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}; {}", self.what, self.action)
    }
}

/// A group of this node's volumes.
#[derive(Debug, Default)]
pub(super) struct Group {
    /// Open while a volume of it is served.
    pub(super) engine: Option<Engine>,
    pub(super) served: BTreeMap<VolumeName, Served>,
    pub(super) links: BTreeMap<LinkName, LinkDriver>,
    /// Why volumes that should be served are not.
    pub(super) troubles: BTreeMap<VolumeName, Trouble>,
    /// A write or read of a backing failed since the group was opened.
    pub(super) failing: bool,
    /// Why no target could serve the group when that was last tried.
    pub(super) not_served: Option<String>,
}

/// Everything.
#[derive(Debug)]
pub(super) struct State {
    pub(super) table: Table,
    pub(super) groups: BTreeMap<GroupName, Group>,
    /// Groups that this node receives.
    pub(super) replicas: BTreeMap<GroupName, Replica>,
    /// Groups that this node should receive and cannot.
    pub(super) unopened: BTreeMap<GroupName, Trouble>,
    /// Groups of which a device is ending: other commands leave them alone.
    pub(super) ending: BTreeSet<GroupName>,
    /// Why old sources could not become targets when it was last tried.
    pub(super) not_rejoined: BTreeMap<GroupName, String>,
    /// Old sources that stay closed until then, for it is tried again to make them targets.
    pub(super) left_closed: BTreeMap<GroupName, Instant>,
}

impl State {
    pub(super) const fn new(table: Table) -> Self {
        Self {
            table,
            groups: BTreeMap::new(),
            replicas: BTreeMap::new(),
            unopened: BTreeMap::new(),
            ending: BTreeSet::new(),
            not_rejoined: BTreeMap::new(),
            left_closed: BTreeMap::new(),
        }
    }

    /// True if this node is target of a group, whether or not its replica could be opened.
    pub(super) fn replica_is_here(&self, group: &GroupName) -> bool {
        self.replicas.contains_key(group) || self.unopened.contains_key(group)
    }

    /// True if a group stays closed for now.
    pub(super) fn stays_closed(&mut self, group: &GroupName) -> bool {
        let now = Instant::now();
        self.left_closed.retain(|_, until| now < *until);
        self.left_closed.contains_key(group)
    }

    /// Refuses a group of which a device is ending.
    pub(super) fn refuse_ending(&self, group: &GroupName) -> Result<(), ApiError> {
        if !self.ending.contains(group) {
            return Ok(());
        }
        Err(ApiError::new(
            ErrorCode::GroupBusy,
            format!("group {group}"),
            "a detach of one of its volumes is under way",
            "try again when it is done; blkctl status shows it",
        ))
    }

    /// The engine of a group, if it is open.
    pub(super) fn engine(&self, group: &GroupName) -> Option<Engine> {
        self.groups.get(group)?.engine.clone()
    }
}
