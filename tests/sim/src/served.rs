//! A group that a daemon serves: its engine, queues and links, assembled as the real daemon does.
//!
//! Owns one group's engine in one process. A cluster, fronts and a program enter; workers of the
//! program and answers to commands leave.

use super::cluster::{
    Cluster, STATE, backing, former_source, group_name, link_to, node_name, volume_name,
};
use super::front::Front;
use super::names::NamedPort;
use super::program::{Program, Task};
use super::promises::InStep;
use super::start::StartError;
use blkrep::engine::link::{LinkConnection, LinkControl, LinkSettings, LinkWorker};
use blkrep::engine::source::{
    GroupSpec, InitialMap, LinkSpec, OpenError, QueueWorker, SourceOptions, SourceShared,
    VolumeSpec,
};
use blkrep_core::intent::IntentOptions;
use blkrep_core::source::{Connection, Gate, MirrorPhase, OnBackingError, Position, Transmit};
use blkrep_io::sim::SimHost;
use blkrep_types::{ByteLen, Extent, ExtentSize, History, LinkName, MirrorKind, Mode, VolumeIndex};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// What the former source of a promoted group lacks.
pub type Lacking = Vec<(VolumeIndex, Extent)>;

/// A group that is served.
pub struct Served {
    cluster: Cluster,
    node: usize,
    group: usize,
    shared: Arc<SourceShared<SimHost>>,
    links: BTreeMap<LinkName, LinkControl>,
    /// Links whose mirror an operator has stopped.
    mirror_stopped: BTreeSet<LinkName>,
    /// Requests wait for the operator when a backing fails.
    freezes: bool,
    fronts: Vec<Front>,
}

impl std::fmt::Debug for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let links: Vec<_> = self.links.values().map(LinkControl::snapshot).collect();
        write!(
            f,
            "node {} serves group {}: {:#?}\n{links:#?}",
            self.node,
            self.group,
            self.shared.status()
        )
    }
}

/// What an error of opening means for the scheduler.
fn sorted(error: &OpenError) -> StartError {
    match error {
        OpenError::Busy { .. } | OpenError::Host(_) => StartError::Busy(error.to_string()),
        _ => StartError::Failed(error.to_string()),
    }
}

fn index_of(volume: usize) -> VolumeIndex {
    VolumeIndex::new(u16::try_from(volume).expect("a group has few volumes"))
}

fn spec(cluster: &Cluster, group: usize, history: Option<History>) -> GroupSpec {
    let plan = &cluster.plan.groups[group];
    let volume = |volume: usize| VolumeSpec {
        name: volume_name(group, volume),
        backing: backing(group, volume),
        offset: 0,
        len: None,
        block_size: None,
        extent_size: ExtentSize::try_from(plan.extent_bytes).expect("a legal grain"),
        read_only: false,
    };
    GroupSpec {
        name: group_name(group),
        volumes: (0..plan.volumes.len()).map(volume).collect(),
        history,
        options: SourceOptions {
            log_bytes: ByteLen::new(plan.log_bytes),
            reissues: cluster.plan.reissues,
            intent: IntentOptions {
                idle: Duration::from_secs(5),
                regions_calm: 8,
            },
            ..SourceOptions::default()
        },
    }
}

impl Served {
    /// Opens the group; nothing is served before [`Served::begin`].
    ///
    /// # Errors
    /// The state is claimed, a disk failed, or what is there cannot be opened.
    pub fn open(
        cluster: &Cluster,
        host: &SimHost,
        (node, group): (usize, usize),
        history: Option<History>,
        fronts: &[Front],
    ) -> Result<Self, StartError> {
        let spec = spec(cluster, group, history);
        let (shared, report) =
            SourceShared::open(host, Path::new(STATE), &spec).map_err(|error| sorted(&error))?;
        let served = Self {
            cluster: cluster.clone(),
            node,
            group,
            shared,
            links: BTreeMap::new(),
            mirror_stopped: BTreeSet::new(),
            freezes: false,
            fronts: fronts.to_vec(),
        };
        served.cluster.told.of(served.whose()).say(&report);
        Ok(served)
    }

    fn whose(&self) -> String {
        format!("node{} g{}", self.node, self.group)
    }

    /// Makes the links that the plan names, where there is none.
    ///
    /// # Errors
    /// The state could not be written.
    pub fn link_as_planned(&self) -> Result<(), StartError> {
        let plan = &self.cluster.plan.groups[self.group];
        for target in &plan.targets {
            if self.link(*target).is_none() {
                let spec = self.spec_of_link(*target, plan.first_mirror, false);
                self.shared
                    .add_link(&spec)
                    .map_err(|error| sorted(&error))?;
            }
        }
        Ok(())
    }

    /// Tracks what the former source lacks.
    ///
    /// # Errors
    /// The state could not be written.
    pub fn track_former(&self, lacking: Lacking) -> Result<(), StartError> {
        if self.has_link(&former_source()) {
            return Ok(());
        }
        let spec = LinkSpec {
            name: former_source(),
            peer: String::new(),
            paths: vec![String::new(); self.fronts.len()],
            mode: Mode::Async,
            first_mirror: Some(MirrorKind::Checksum),
            overwrite: false,
            wanted: false,
            initial: InitialMap::Extents(lacking),
        };
        self.shared.add_link(&spec).map_err(|error| sorted(&error))
    }

    fn spec_of_link(&self, target: usize, mirror: MirrorKind, overwrite: bool) -> LinkSpec {
        LinkSpec {
            name: link_to(target),
            peer: self.cluster.address(target).to_string(),
            paths: self.paths(),
            mode: self.cluster.plan.groups[self.group].mode_to(target),
            first_mirror: Some(mirror),
            overwrite,
            wanted: true,
            initial: InitialMap::Everything,
        }
    }

    fn paths(&self) -> Vec<String> {
        let backings = self.cluster.backings(self.group);
        let text = |path: &std::path::PathBuf| path.to_string_lossy().into_owned();
        backings.iter().map(text).collect()
    }

    fn has_link(&self, name: &LinkName) -> bool {
        self.shared.links().iter().any(|link| link.name == *name)
    }

    /// The link that leads to a node.
    #[must_use]
    pub fn link(&self, target: usize) -> Option<LinkName> {
        let address = self.cluster.address(target).to_string();
        let links = self.shared.links();
        let link = links.iter().find(|link| link.peer == address)?;
        Some(link.name.clone())
    }

    /// True if a link leads to a node and has a driver.
    #[must_use]
    pub fn drives(&self, target: usize) -> bool {
        self.link(target)
            .is_some_and(|link| self.links.contains_key(&link))
    }

    /// Starts its links, and its queues but for those of detached volumes.
    ///
    /// # Errors
    /// The process has died.
    pub fn begin(&mut self, detached: u32, program: &mut Program) -> Result<(), StartError> {
        for (volume, front) in self.fronts.iter().enumerate() {
            if detached >> volume & 1 == 1 {
                front.fail_outstanding();
            }
        }
        self.begin_volumes(!detached, program)?;
        self.start_links(program)
    }

    /// Starts the queues of these volumes, a bit for each.
    ///
    /// # Errors
    /// The process has died.
    pub fn begin_volumes(&self, volumes: u32, program: &mut Program) -> Result<(), StartError> {
        let beginning = |(volume, _): &(usize, &Front)| volumes >> volume & 1 == 1;
        for (volume, front) in self.fronts.iter().enumerate().filter(beginning) {
            let index = index_of(volume);
            self.shared.begin_volume(index);
            let queue = QueueWorker::new(&self.shared, index, Box::new(front.serve()));
            program
                .spawn(Task::Serve(self.group, volume), Box::new(queue))
                .map_err(|error| StartError::Busy(error.to_string()))?;
        }
        Ok(())
    }

    /// Ends the devices of these volumes, a bit for each.
    pub fn end_volumes(&self, volumes: u32) {
        let ending = |(volume, _): &(usize, &Front)| volumes >> volume & 1 == 1;
        for (volume, front) in self.fronts.iter().enumerate().filter(ending) {
            self.shared.end_volume(index_of(volume));
            front.stop();
        }
    }

    /// Starts the links that have no driver and somewhere to go.
    fn start_links(&mut self, program: &mut Program) -> Result<(), StartError> {
        for link in self.shared.links() {
            if link.peer.is_empty() || self.links.contains_key(&link.name) {
                continue;
            }
            let peer: SocketAddr = link.peer.parse().expect("as it was written");
            let control = LinkControl::new(LinkSettings {
                node: node_name(self.node),
                peer,
                heartbeat: Duration::from_secs(1),
                timeout: Duration::from_secs(5),
                progress_timeout: Duration::from_secs(120),
                reconnect: true,
                reconnect_interval: Duration::from_millis(500),
            });
            let port = self.shared.link_port(&link.name);
            let port = port.map_err(|error| sorted(&error))?;
            let name = link.name.clone();
            let port = NamedPort::new(port, name, self.cluster.names[self.group].clone());
            let told = self
                .cluster
                .told
                .of(format!("{} {}", self.whose(), link.name));
            let driver = Box::new(LinkWorker::new(port, control.clone(), Arc::new(told)));
            program
                .spawn(Task::Link(self.group, link.name.clone()), driver)
                .map_err(|error| StartError::Busy(error.to_string()))?;
            self.links.insert(link.name, control);
        }
        Ok(())
    }

    /// Ends its workers in order.
    pub fn stop(&self) {
        self.fronts.iter().for_each(Front::stop);
        self.links.values().for_each(LinkControl::stop);
    }

    /// Ends the group after its workers have ended; false if a disk did not let it be clean.
    #[must_use]
    pub fn close(&self, detached: bool) -> bool {
        self.shared.stop(detached).is_ok()
    }

    /// Its fronts.
    #[must_use]
    pub fn fronts(&self) -> &[Front] {
        &self.fronts
    }

    /// Links that lead somewhere, by the node they lead to.
    #[must_use]
    pub fn targets(&self) -> Vec<usize> {
        let nodes = 0..self.cluster.plan.nodes;
        nodes.filter(|node| self.link(*node).is_some()).collect()
    }

    /// Asks for a mirror.
    pub fn mirror(&self, link: &LinkName, kind: MirrorKind) {
        // Only a missing link is an error, and it was there a moment ago.
        let _ = self.shared.start_mirror(link, kind);
    }

    /// Stops what mirror there is. What it has begun at the target stays open until the next one.
    pub fn stop_mirror(&mut self, link: &LinkName) {
        // As above.
        let _ = self.shared.stop_mirror(link);
        self.mirror_stopped.insert(link.clone());
    }

    /// Pauses what mirror there is, or lets it go on.
    pub fn pause_mirror(&self, link: &LinkName, paused: bool) {
        // As above.
        let _ = if paused {
            self.shared.pause_mirror(link)
        } else {
            self.shared.resume_mirror(link)
        };
    }

    /// True while a mirror runs.
    #[must_use]
    pub fn mirror_runs(&self, link: &LinkName) -> bool {
        let status = self.shared.status();
        let mut links = status.links.iter();
        links.any(|(name, _, link_status)| {
            name == link && link_status.mirror.phase == MirrorPhase::Running
        })
    }

    /// Says whether requests wait for the operator when a backing fails. What waited is tried again when
    /// they no longer do.
    pub fn set_policy(&mut self, policy: OnBackingError) {
        self.shared.set_policy(policy);
        self.freezes = policy == OnBackingError::Freeze;
    }

    /// Says when writes complete.
    pub fn set_mode(&self, link: &LinkName, mode: Mode) {
        // A disk that fails leaves the link as it was.
        let _ = self.shared.set_mode(link, mode);
    }

    /// What the link to a node promises now; `None` if that is nothing. Where a mirror is open the target
    /// keeps to the state before it.
    #[must_use]
    pub(super) fn in_step(&self, target: usize) -> Option<InStep> {
        let name = self.link(target)?;
        let links = self.shared.links();
        let mode = links.iter().find(|link| link.name == name)?.mode;
        if mode == Mode::Async || self.mirror_stopped.contains(&name) {
            return None;
        }
        let status = self.shared.status();
        let (.., link) = status.links.iter().find(|(other, ..)| *other == name)?;
        let flows = link.connection == Connection::Up && link.transmit == Transmit::Started;
        let whole = link.position == Position::Following
            && link.mirror.phase == MirrorPhase::Idle
            && link.dirty_bytes == ByteLen::ZERO;
        (flows && whole).then(|| InStep {
            mode,
            connection: self.cluster.names[self.group].connections(&name),
            overflows: link.overflows,
        })
    }

    /// Holds transmission, or lets it go on.
    pub fn transmit(&self, link: &LinkName, transmit: Transmit) {
        // A disk that fails leaves the link as it was.
        let _ = self.shared.set_transmit(link, transmit);
    }

    /// Ends the connection; tracking goes on.
    pub fn disconnect(&self, link: &LinkName) {
        // As above.
        let _ = self.shared.set_wanted(link, false);
    }

    /// Connects again.
    pub fn connect(&self, link: &LinkName) {
        // As above; the scheduler asks again while it waits for quiet.
        let _ = self.shared.set_wanted(link, true);
        if let Some(control) = self.links.get(link) {
            control.connect();
        }
    }

    /// Ends a link's driver, so that the link can be forgotten.
    pub fn end_link(&mut self, link: &LinkName) {
        self.disconnect(link);
        if let Some(control) = self.links.remove(link) {
            control.stop();
        }
    }

    /// Forgets a link whose driver has ended; false if it has not yet, or a disk failed.
    pub fn forget_link(&mut self, link: &LinkName, program: &Program) -> bool {
        program.has_done(&Task::Link(self.group, link.clone()))
            && !self.links.contains_key(link)
            && self.shared.forget_link(link).is_ok()
    }

    /// Lets a node follow from now on, whatever it holds: the operator has said so. A node without a
    /// link takes over that of the former source.
    ///
    /// # Errors
    /// The state could not be written.
    pub fn overwrite(
        &mut self,
        target: usize,
        former: bool,
        program: &mut Program,
    ) -> Result<(), StartError> {
        let kind = MirrorKind::Checksum;
        let refused = |error: OpenError| sorted(&error);
        match self.link(target) {
            Some(link) => self.shared.allow_overwrite(&link, kind).map_err(refused)?,
            None if former && self.has_link(&former_source()) => {
                let (link, peer) = (former_source(), self.cluster.address(target).to_string());
                let paths = Some(self.paths());
                let shared = &self.shared;
                shared.retarget_link(&link, peer, paths).map_err(refused)?;
                shared.allow_overwrite(&link, kind).map_err(refused)?;
                let mode = self.cluster.plan.groups[self.group].mode_to(target);
                shared.set_mode(&link, mode).map_err(refused)?;
                shared.set_wanted(&link, true).map_err(refused)?;
            }
            None => {
                let spec = self.spec_of_link(target, kind, true);
                self.shared.add_link(&spec).map_err(refused)?;
            }
        }
        if let Some(link) = self.link(target) {
            self.connect(&link);
        }
        self.start_links(program)
    }

    /// Nothing is wrong any more: what an operator who looks at the status would do.
    pub fn calm(&mut self) {
        if self.freezes {
            self.set_policy(OnBackingError::Pass);
        }
        let status = self.shared.status();
        if status.gate == Gate::Frozen {
            self.shared.thaw();
        }
        for (name, wanted, link) in &status.links {
            let Some(control) = self.links.get(name) else {
                continue;
            };
            if !wanted || control.snapshot().connection == LinkConnection::Refused {
                self.connect(name);
            }
            if link.transmit != Transmit::Started {
                self.transmit(name, Transmit::Started);
            }
            if link.mirror.phase == MirrorPhase::Paused {
                self.pause_mirror(name, false);
            }
            let idle = link.mirror.phase == MirrorPhase::Idle;
            let open = link.dirty_bytes != ByteLen::ZERO || self.mirror_stopped.contains(name);
            if idle && link.connection == Connection::Up && open {
                self.mirror(name, MirrorKind::Difference);
                self.mirror_stopped.remove(name);
            }
        }
    }

    /// The engine, for judges.
    #[must_use]
    pub fn engine(&self) -> &Arc<SourceShared<SimHost>> {
        &self.shared
    }

    /// Nothing is under way and nothing has to be sent, on any link that leads somewhere.
    ///
    /// # Errors
    /// What is not quiet.
    pub fn quiet(&self) -> Result<(), String> {
        let status = self.shared.status();
        if status.gate != Gate::Open {
            return Err(format!("the gate is {:?}", status.gate));
        }
        for (name, _, link) in &status.links {
            if !self.links.contains_key(name) {
                continue;
            }
            let up = link.connection == Connection::Up && link.position == Position::Following;
            let idle = link.mirror.phase == MirrorPhase::Idle && link.dirty_bytes == ByteLen::ZERO;
            if !up || !idle || link.queued_ops != 0 {
                return Err(format!("link {name} has work to do"));
            }
        }
        Ok(())
    }
}
