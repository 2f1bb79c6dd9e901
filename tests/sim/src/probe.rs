//! What if everything but a target's disks were gone now?
//!
//! Owns a second world: the target's disks are copied there as they are, the power is cut or the
//! daemon killed, and a daemon of its own recovers and promotes the replica without a source. What
//! comes out must be a prefix, or a refusal of a replica that had said that it is none.

use super::cluster::Cluster;
use super::daemon::Daemon;
use super::judge;
use super::plan::Probe;
use super::received::Promoted;
use super::run::{LOOK_AGAIN, Run};
use super::start::StartError;
use super::told::Told;
use blkrep::engine::target::TargetCommandError;
use blkrep_core::target::PromoteRefusal;
use blkrep_io::sim::{Crash, Next, SimOptions, SimWorld};
use std::time::Duration;

/// How long a replica may take to recover and be promoted where nothing fails.
const PROBE_MAX: Duration = Duration::from_secs(60);

impl Run {
    /// Promotes a copy of a target as it is now, and judges it.
    pub(super) fn probe(&mut self, probe: Probe) -> Result<(), String> {
        let group = probe.group % self.groups.len();
        let targets = &self.plan().groups[group].targets;
        let target = targets[probe.link % targets.len()];
        self.probe_at(group, target, probe.crash).map_err(|why| {
            let crash = probe.crash;
            format!("a copy of group {group} on node {target}, after {crash:?}: {why}")
        })
    }

    fn probe_at(&mut self, group: usize, target: usize, crash: Crash) -> Result<(), String> {
        let seed = self.random.bits();
        let world = SimWorld::new(seed, SimOptions::default());
        // Every node is there, so that addresses mean the same; only one is switched on.
        let cluster = Cluster {
            hosts: (0..self.nodes.len()).map(|_| world.add_node()).collect(),
            table: self.cluster.table.copy(),
            serving: self.cluster.serving.copy(),
            told: Told::new(&world, false),
            tasks: self.cluster.tasks.copy(),
            world: world.clone(),
            ..self.cluster.clone()
        };
        let host = cluster.hosts[target];
        world.copy_files(host, &self.world, self.cluster.hosts[target]);
        world.clear_faults(host);
        if crash == Crash::Power {
            world.power_loss(host);
        }
        match promote_alone(&cluster, target, group)? {
            None => Ok(()),
            Some(Ok(_)) => {
                self.report.probes_promoted += 1;
                let images = cluster.images(target, group);
                judge::replica(&self.groups[group].ages(), &images)?;
                self.judge_promises(group, (target, false), &images)
            }
            Some(Err(error)) if self.promises_all(group, target) => {
                Err(format!("it is in step in sync mode and refuses: {error}"))
            }
            Some(Err(TargetCommandError::Promote(
                PromoteRefusal::NotOk(_) | PromoteRefusal::Nothing,
            ))) => {
                self.report.probes_refused += 1;
                Ok(())
            }
            Some(Err(error)) => Err(format!("not promoted: {error}")),
        }
    }
}

/// `None`: there is no replica yet.
pub(super) fn promote_alone(
    cluster: &Cluster,
    node: usize,
    group: usize,
) -> Result<Option<Promoted>, String> {
    let host = cluster.world.start(cluster.hosts[node]);
    let only = std::iter::once(group);
    let words = |error| match error {
        StartError::Busy(why) | StartError::Failed(why) => why,
    };
    let mut daemon = Daemon::open(cluster, host, node, only, Vec::new()).map_err(words)?;
    if daemon.with_received(group, |_| ()).is_none() {
        return Ok(None);
    }
    // Nothing is served here: the image is what is looked at.
    daemon.promote_only(group);
    let end = cluster.world.now().after(PROBE_MAX);
    let mut again = end;
    loop {
        let answer = daemon.with_received(group, |received| received.promoted());
        match answer.flatten() {
            // A journal with damage is read for longer.
            Some(Err(TargetCommandError::Failed(why))) if why.contains("try again") => {
                again = cluster.world.now().after(LOOK_AGAIN);
            }
            Some(answer) => return Ok(Some(answer)),
            None => {}
        }
        match cluster.world.next(again) {
            Next::Ring(ring) => {
                let mine = daemon.turn_only(ring);
                assert!(mine, "one daemon has all rings");
            }
            Next::Until if again < end => {
                again = end;
                daemon.promote_only(group);
            }
            Next::Until => return Err(format!("no answer in time: {daemon:#?}")),
        }
    }
}
