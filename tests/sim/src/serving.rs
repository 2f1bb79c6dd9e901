//! Groups whose backing failed and whose target serves them.
//!
//! Owns what the node does about them, what an operator does where no target can, and with what an
//! application goes on that lost its host meanwhile: what the target has. Never judges an image that nobody reads
//! any more.

use super::cluster::backing;
use super::plan::{Takeover, TakeoverReason};
use super::run::Run;
use super::served::Served;
use blkrep_core::source::Gate;
use blkrep_io::sim::{DiskFault, FaultKind};
use blkrep_types::Errno;

impl Served {
    /// True if a target is to serve the group when its backing fails.
    pub(super) fn hands_over(&self) -> bool {
        self.cluster.plan.groups[self.group].hands_over
    }

    /// Says on whose record it is that a target serves the group.
    pub(super) fn tell_who_serves(&self) {
        let name = self.shared.served_by();
        let mut nodes = 0..self.cluster.plan.nodes;
        let target = nodes.find(|node| name.is_some() && self.link(*node) == name);
        self.cluster.serving.set(self.node, self.group, target);
    }

    /// Hands a group that waits for its backing to the first target that can serve it, as the node does.
    pub(super) fn hand_over(&self) {
        if !self.hands_over() || self.shared.gate() != Gate::Frozen {
            return;
        }
        for target in self.targets() {
            let Some(link) = self
                .link(target)
                .filter(|link| self.links.contains_key(link))
            else {
                continue;
            };
            // Its daemon may die with that on record.
            let serving = &self.cluster.serving;
            serving.set(self.node, self.group, Some(target));
            let told = self.cluster.told.of(self.whose());
            match self.shared.serve_from(&link) {
                Ok(()) => return told.say(&("served by", link)),
                Err(why) => told.say(&("not served by", link, why)),
            }
            if !self.cluster.world.alive(self.process) {
                return;
            }
            serving.set(self.node, self.group, None);
        }
    }
}

impl Run {
    /// Every backing that a node has of a group answers with errors.
    pub(super) fn lose_backings(&mut self, node: usize, group: usize, times: u32) {
        for volume in 0..self.plan().groups[group].volumes.len() {
            for kind in [FaultKind::Read, FaultKind::Write, FaultKind::Sync] {
                let fault = DiskFault {
                    kind,
                    errno: Errno::EIO,
                    bytes: None,
                    times,
                };
                let host = self.cluster.hosts[node];
                self.world.inject(host, &backing(group, volume), fault);
            }
        }
    }

    /// An operator replaces disks that nobody can do without.
    pub(super) fn repair(&mut self, node: usize, group: usize) {
        if self.cluster.serving.get(node, group).is_some() {
            return;
        }
        self.world.clear_faults(self.cluster.hosts[node]);
        if let Some(daemon) = &mut self.nodes[node].daemon {
            daemon.with_served(group, |served, _| served.engine().thaw());
        }
    }

    /// What the nodes do by themselves from time to time.
    pub(super) fn hand_over(&mut self) {
        for group in 0..self.groups.len() {
            self.with_served(group, |served, _| served.hand_over());
        }
    }

    /// Applications whose host lost power go on with what their target has, once that is known.
    pub(super) fn begin_there(&mut self) -> Result<(), String> {
        for group in 0..self.groups.len() {
            let life = self.groups[group].life();
            let node = life.node;
            let daemon = self.nodes[node].daemon.as_ref();
            let opened = daemon.is_some_and(|daemon| daemon.gate(group).is_some());
            if !life.waits_for_there() || !opened {
                continue;
            }
            let mut known = true;
            if let Some(target) = self.cluster.serving.get(node, group) {
                let daemon = self.nodes[target].daemon.as_ref();
                let daemon = daemon.filter(|daemon| self.world.alive(daemon.process()));
                let quiet = daemon
                    .and_then(|daemon| daemon.with_received(group, |received| received.quiet()));
                known = quiet.is_some_and(|quiet| quiet.is_ok());
            }
            if known {
                self.report.begun_there += 1;
                self.groups[group]
                    .go_on_there(node)
                    .map_err(|why| format!("group {group} on node {node}: {why}"))?;
            }
        }
        Ok(())
    }

    /// Where a target still serves a group it takes it over: there is no other way back.
    pub(super) fn take_over_the_lost(&mut self) -> Result<(), String> {
        let reasons = [
            TakeoverReason::Killed,
            TakeoverReason::PowerLost,
            TakeoverReason::Cut,
        ];
        for group in 0..self.groups.len() {
            let home = self.groups[group].life().node;
            if self.cluster.serving.get(home, group).is_some() {
                let why = reasons[self.random.index(reasons.len())];
                self.take_over(Takeover {
                    group,
                    link: 0,
                    why,
                    crash: None,
                    crash_old: None,
                })?;
            }
        }
        Ok(())
    }
}
