//! What all daemons of a run have in common: names, places, and what operators wrote down.
//!
//! Owns the words by which nodes, groups and volumes are known to the product, and the table of which
//! node serves which group. The table stands for the node's own volume table, which is durable at once.

use super::names::Names;
use super::plan::Plan;
use super::tasks::Tasks;
use super::told::Told;
use blkrep_core::queue::QueueChange;
use blkrep_core::source::GroupEvent;
use blkrep_io::sim::{NodeId, SimWorld};
use blkrep_types::{GroupName, LinkName, NodeName, VolumeName};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where targets listen.
pub const PORT: u16 = 7420;

/// Where a daemon keeps its state.
pub const STATE: &str = "/var/lib/blkrep";

/// Where groups have their disk queues.
pub const QUEUES: [&str; 2] = ["/queue", "/queue2"];

/// What disk queues of a run did, on all nodes.
#[derive(Debug, Clone, Default)]
pub struct QueueCounts(Arc<Mutex<BTreeMap<&'static str, u64>>>);

impl QueueCounts {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts what a group tells.
    pub fn note(&self, event: &GroupEvent) {
        let what = match event {
            GroupEvent::Queue {
                change: QueueChange::Spilling,
            } => "spills",
            GroupEvent::Queue {
                change: QueueChange::Drained,
            } => "drains",
            GroupEvent::Queue {
                change: QueueChange::Full,
            } => "full",
            GroupEvent::Served { .. } => "served",
            GroupEvent::QueueFailed { .. } => "failures",
            GroupEvent::QueueUnreadable { .. } => "unreadable",
            _ => return,
        };
        *self.lock().entry(what).or_default() += 1;
    }

    /// How often something happened.
    #[must_use]
    pub fn of(&self, what: &str) -> u64 {
        self.lock().get(what).copied().unwrap_or_default()
    }
}

/// The link that tracks what a former source lacks.
pub const FORMER_SOURCE: &str = "former-source";

/// Where a node has a volume, as a source's backing or a replica's base.
#[must_use]
pub fn backing(group: usize, volume: usize) -> PathBuf {
    PathBuf::from(format!("/dev/g{group}v{volume}"))
}

/// Where a node has the replica of a group.
#[must_use]
pub fn replica_dir(group: usize) -> PathBuf {
    Path::new(STATE).join(format!("replicas/g{group}"))
}

/// The name of a group.
///
/// # Panics
/// Never: it is a legal name.
#[must_use]
pub fn group_name(group: usize) -> GroupName {
    format!("g{group}").parse().expect("a legal name")
}

/// The group of a name; `None` if it is none of ours.
#[must_use]
pub fn group_of(name: &GroupName) -> Option<usize> {
    name.as_str().strip_prefix('g')?.parse().ok()
}

/// The name of a volume.
///
/// # Panics
/// Never: it is a legal name.
#[must_use]
pub fn volume_name(group: usize, volume: usize) -> VolumeName {
    format!("g{group}v{volume}").parse().expect("a legal name")
}

/// The name of a node.
///
/// # Panics
/// Never: it is a legal name.
#[must_use]
pub fn node_name(node: usize) -> NodeName {
    format!("node{node}").parse().expect("a legal name")
}

/// The name of a link to a node.
///
/// # Panics
/// Never: it is a legal name.
#[must_use]
pub fn link_to(node: usize) -> LinkName {
    format!("to{node}").parse().expect("a legal name")
}

/// The name of the link that tracks what a former source lacks.
///
/// # Panics
/// Never: it is a legal name.
#[must_use]
pub fn former_source() -> LinkName {
    FORMER_SOURCE.parse().expect("a legal name")
}

/// A group that a node serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Since it was promoted there.
    pub promoted: bool,
    /// What the former source lacks is not tracked yet.
    pub untracked: bool,
    /// Its volumes that are not served, a bit for each.
    pub detached: u32,
}

impl Entry {
    /// True unless the volume is detached.
    #[must_use]
    pub const fn serves(&self, volume: usize) -> bool {
        self.detached >> volume & 1 == 0
    }
}

/// Who serves what, by node and group.
#[derive(Debug, Clone, Default)]
pub struct Table(Arc<Mutex<BTreeMap<(usize, usize), Entry>>>);

impl Table {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(usize, usize), Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a node has a group as.
    #[must_use]
    pub fn get(&self, node: usize, group: usize) -> Option<Entry> {
        self.lock().get(&(node, group)).copied()
    }

    /// A node serves a group.
    pub fn put(&self, node: usize, group: usize, entry: Entry) {
        self.lock().insert((node, group), entry);
    }

    /// A node serves a group no more.
    pub fn remove(&self, node: usize, group: usize) {
        self.lock().remove(&(node, group));
    }

    /// A table of its own with what this one has.
    #[must_use]
    pub fn copy(&self) -> Self {
        Self(Arc::new(Mutex::new(self.lock().clone())))
    }
}

/// Which target serves a group whose backing failed, by node and group: as the node's own record says, or
/// may say.
#[derive(Debug, Clone, Default)]
pub struct Serving(Arc<Mutex<BTreeMap<(usize, usize), usize>>>);

impl Serving {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(usize, usize), usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The target, if there is one.
    #[must_use]
    pub fn get(&self, node: usize, group: usize) -> Option<usize> {
        self.lock().get(&(node, group)).copied()
    }

    /// It is this one, or none.
    pub fn set(&self, node: usize, group: usize, target: Option<usize>) {
        match target {
            Some(target) => drop(self.lock().insert((node, group), target)),
            None => drop(self.lock().remove(&(node, group))),
        }
    }

    /// A table of its own with what this one has.
    #[must_use]
    pub fn copy(&self) -> Self {
        Self(Arc::new(Mutex::new(self.lock().clone())))
    }
}

/// The cluster of a run.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Where all of it happens.
    pub world: SimWorld,
    /// What was drawn.
    pub plan: Arc<Plan>,
    /// The hosts, by node.
    pub hosts: Vec<NodeId>,
    /// Who serves what.
    pub table: Table,
    /// Who is served by whom.
    pub serving: Serving,
    /// The names of writes, by group.
    pub names: Vec<Names>,
    /// What is told.
    pub told: Told,
    /// What disk queues did.
    pub queues: QueueCounts,
    /// Bookmarks and tasks.
    pub tasks: Tasks,
}

impl Cluster {
    /// Where a node listens.
    #[must_use]
    pub fn address(&self, node: usize) -> SocketAddr {
        SocketAddr::new(self.hosts[node].address(), PORT)
    }

    /// A group's volumes on a node, as a reader sees them.
    #[must_use]
    pub fn images(&self, node: usize, group: usize) -> Vec<Vec<u8>> {
        let backings = self.backings(group);
        let image = |path: &PathBuf| self.world.image(self.hosts[node], path);
        backings.iter().map(image).collect()
    }

    /// A group's volumes as applications on a node see them: of a group that is served by a target, there.
    #[must_use]
    pub fn images_of(&self, node: usize, group: usize) -> Vec<Vec<u8>> {
        self.images(self.serving.get(node, group).unwrap_or(node), group)
    }

    /// What a power cut now would surely leave of a group's volumes on a node.
    #[must_use]
    pub fn durable_images(&self, node: usize, group: usize) -> Vec<Vec<u8>> {
        let backings = self.backings(group);
        let image = |path: &PathBuf| self.world.durable_image(self.hosts[node], path);
        backings.iter().map(image).collect()
    }

    /// Where a group's volumes on two nodes differ: for each volume the ranges of its pages.
    #[must_use]
    pub fn differing(&self, group: usize, one: usize, other: usize) -> Vec<Vec<Range<usize>>> {
        let (one, other) = (self.hosts[one], self.hosts[other]);
        let backings = self.backings(group);
        let differing = |path: &PathBuf| self.world.differing((one, path), (other, path));
        backings.iter().map(differing).collect()
    }

    /// All volumes of a group, a bit for each.
    #[must_use]
    pub fn all_volumes(&self, group: usize) -> u32 {
        (1 << self.plan.groups[group].volumes.len()) - 1
    }

    /// Where a group's volumes are, on every node.
    #[must_use]
    pub fn backings(&self, group: usize) -> Vec<PathBuf> {
        let volumes = 0..self.plan.groups[group].volumes.len();
        volumes.map(|volume| backing(group, volume)).collect()
    }
}
