//! The links of a group that is served.
//!
//! Owns how links are made, driven, commanded and forgotten, as the real daemon does it. Words of a plan
//! enter; the engine's links change.

use super::cluster::{former_source, link_to, node_name};
use super::names::NamedPort;
use super::program::{Program, Task};
use super::promises::InStep;
use super::served::{Lacking, Served, sorted};
use super::start::StartError;
use blkrep::engine::link::{LinkControl, LinkSettings, LinkWorker, Pace};
use blkrep::engine::source::{InitialMap, LinkSpec, OpenError};
use blkrep_core::source::{Connection, MirrorPhase, Position, Protection, Transmit};
use blkrep_types::{ByteLen, Congestion, LinkName, LossPolicy, MirrorKind, Mode};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

impl Served {
    /// Makes the links that the plan names, where there is none.
    ///
    /// # Errors
    /// The state could not be written.
    pub fn link_as_planned(&self) -> Result<(), StartError> {
        let plan = &self.cluster.plan.groups[self.group];
        if self.shared.served_by().is_some() {
            // There is nothing that one could be made with.
            return Ok(());
        }
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
            loss: LossPolicy::default(),
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
            loss: self.cluster.plan.groups[self.group].loss_to(target),
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

    /// Starts the links that have no driver and somewhere to go.
    pub(super) fn start_links(&mut self, program: &mut Program) -> Result<(), StartError> {
        for link in self.shared.links() {
            if link.peer.is_empty() || self.links.contains_key(&link.name) {
                continue;
            }
            let peer: SocketAddr = link.peer.parse().expect("as it was written");
            let control = LinkControl::new(LinkSettings {
                connections: self.cluster.plan.groups[self.group].connections,
                node: node_name(self.node),
                peer,
                heartbeat: Duration::from_secs(1),
                timeout: Duration::from_secs(5),
                connect_timeout: Duration::from_secs(5),
                progress_timeout: Duration::from_secs(120),
                reconnect: true,
                reconnect_interval: Duration::from_millis(500),
                pace: Pace::default(),
                compression: self.cluster.plan.groups[self.group].compression,
                compression_level: 1,
                congestion: Congestion::Auto,
                simulated: false,
                simulated_rate: ByteLen::new(1 << 20),
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

    /// Holds transmission, or lets it go on.
    pub fn transmit(&self, link: &LinkName, transmit: Transmit) {
        // A disk that fails leaves the link as it was.
        let _ = self.shared.set_transmit(link, transmit);
    }

    /// Does what a schedule does: no connection, or one again.
    pub fn schedule(&self, link: &LinkName, held: bool) {
        if let Some(control) = self.links.get(link) {
            control.hold(held);
        }
    }

    /// Uses other times for a link: a short patience, or a long one.
    pub fn set_patience(&self, link: &LinkName, short: bool) {
        let Some(control) = self.links.get(link) else {
            return;
        };
        let (unit, long) = if short {
            (Duration::from_millis(100), 10)
        } else {
            (Duration::from_secs(3), 240)
        };
        control.set(LinkSettings {
            heartbeat: unit,
            timeout: unit * 5,
            progress_timeout: Duration::from_secs(long),
            reconnect_interval: unit,
            ..control.settings()
        });
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

    /// Says when writes complete.
    pub fn set_mode(&self, link: &LinkName, mode: Mode) {
        // A disk that fails leaves the link as it was.
        let _ = self.shared.set_mode(link, mode);
    }

    /// Says what happens to writes when a link is lost.
    pub fn set_loss(&self, link: &LinkName, policy: LossPolicy) {
        // As above.
        let _ = self.shared.set_loss_policy(link, policy);
    }

    /// What the link to a node promises now; `None` if that is nothing.
    #[must_use]
    pub(super) fn in_step(&self, target: usize) -> Option<InStep> {
        let name = self.link(target)?;
        let links = self.shared.links();
        let mode = links.iter().find(|link| link.name == name)?.mode;
        if mode == Mode::Async {
            return None;
        }
        let status = self.shared.status();
        let (.., link) = status.links.iter().find(|(other, ..)| *other == name)?;
        let flows = link.connection == Connection::Up && link.transmit == Transmit::Started;
        let whole = link.position == Position::Following
            && link.mirror.phase == MirrorPhase::Idle
            && link.dirty_bytes == ByteLen::ZERO;
        link.protection.holds().then_some(InStep {
            mode,
            degradations: link.degradations,
            whole: flows && whole && link.protection == Protection::Kept,
        })
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
        if self.shared.served_by().as_ref() == Some(link) {
            // A node refuses that.
            return;
        }
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
                let loss = self.cluster.plan.groups[self.group].loss_to(target);
                shared.set_loss_policy(&link, loss).map_err(refused)?;
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
}
