//! What if everything but the target's disks were gone now?
//!
//! Owns a second world: the target's disks are copied there as they are, the power is cut or the
//! daemon killed, and a daemon of its own recovers and promotes the replica without a source. What
//! comes out must be a prefix, or a refusal of a replica that had said that it is none.

use super::judge;
use super::plan::Side;
use super::run::{Run, target_path};
use super::start::StartError;
use super::target::{Promoted, Target};
use super::told::Told;
use blkrep::engine::target::TargetCommandError;
use blkrep_core::target::PromoteRefusal;
use blkrep_io::sim::{Crash, Next, NodeId, SimOptions, SimWorld};
use std::time::Duration;

/// How long a replica may take to recover and be promoted where nothing fails.
const PROBE_MAX: Duration = Duration::from_secs(60);

impl Run {
    /// Promotes a copy of the target as it is now, and judges it.
    pub(super) fn probe(&mut self, crash: Crash) -> Result<(), String> {
        let seed = self.random.bits();
        let world = SimWorld::new(seed, SimOptions::default());
        let node = world.add_node();
        world.copy_files(node, &self.world, self.node(Side::Target));
        world.clear_faults(node);
        if crash == Crash::Power {
            world.power_loss(node);
        }
        let answer = self.promote_alone(&world, node);
        match answer.map_err(|why| format!("a copy of the target, after {crash:?}: {why}"))? {
            None => Ok(()),
            Some(Ok(_)) => {
                self.report.promotions += 1;
                let volumes = 0..self.plan.volumes.len();
                let images: Vec<_> = volumes
                    .map(|volume| world.image(node, &target_path(volume)))
                    .collect();
                judge::replica(&self.ages(), &images)
                    .map_err(|why| format!("a copy of the target, after {crash:?}: {why}"))
            }
            Some(Err(TargetCommandError::Promote(
                PromoteRefusal::NotOk(_) | PromoteRefusal::Nothing,
            ))) => {
                self.report.refusals += 1;
                Ok(())
            }
            Some(Err(error)) => Err(format!("a copy of the target is not promoted: {error}")),
        }
    }

    /// `None`: there is no replica yet.
    fn promote_alone(&self, world: &SimWorld, node: NodeId) -> Result<Option<Promoted>, String> {
        let told = Told::new(world, false);
        let mut target = match Target::open(world.start(node), &self.plan, told) {
            Ok(target) => target,
            Err(StartError::Busy(why) | StartError::Failed(why)) => return Err(why),
        };
        if !target.has_replica() {
            return Ok(None);
        }
        target.promote(false);
        let end = world.now().after(PROBE_MAX);
        loop {
            if let Some(answer) = target.promoted() {
                return Ok(Some(answer));
            }
            match world.next(end) {
                Next::Ring(ring) => assert!(target.turn(ring), "one daemon has all rings"),
                Next::Until => return Err(format!("no answer in time: {target:#?}")),
            }
        }
    }
}
