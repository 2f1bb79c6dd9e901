//! What is going on, in memory.
//!
//! Owns the table and, for each group, its engine, devices and threads. Changed by commands only.

use super::links::LinkDriver;
use super::replicas::Replica;
use super::table::Table;
use super::threads::WorkerThread;
use crate::engine::source::SourceShared;
use blkrep_io::real::RealHost;
use blkrep_types::{GroupName, LinkName, VolumeIndex, VolumeName};
use blkrep_ublk::Device;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The engine of a source group.
pub(super) type Engine = Arc<SourceShared<RealHost>>;

/// A device at work.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) index: VolumeIndex,
    pub(super) device: Box<dyn Device>,
    pub(super) threads: Vec<WorkerThread>,
}

/// A group of this node's volumes.
#[derive(Debug, Default)]
pub(super) struct Group {
    /// Open while a volume of it is served.
    pub(super) engine: Option<Engine>,
    pub(super) served: BTreeMap<VolumeName, Served>,
    pub(super) links: BTreeMap<LinkName, LinkDriver>,
    /// Why volumes that should be served are not, in words.
    pub(super) troubles: BTreeMap<VolumeName, String>,
    /// A write or read of a backing failed since the group was opened.
    pub(super) failing: bool,
}

/// Everything.
#[derive(Debug)]
pub(super) struct State {
    pub(super) table: Table,
    pub(super) groups: BTreeMap<GroupName, Group>,
    /// Groups that this node receives.
    pub(super) replicas: BTreeMap<GroupName, Replica>,
}

impl State {
    pub(super) const fn new(table: Table) -> Self {
        Self {
            table,
            groups: BTreeMap::new(),
            replicas: BTreeMap::new(),
        }
    }

    /// True if this node is target of a group.
    pub(super) fn replica_is_here(&self, group: &GroupName) -> bool {
        self.replicas.contains_key(group)
    }

    /// The engine of a group, if it is open.
    pub(super) fn engine(&self, group: &GroupName) -> Option<Engine> {
        self.groups.get(group)?.engine.clone()
    }
}
