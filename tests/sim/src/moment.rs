//! What is done while a mirror runs, however soon that is over.
//!
//! Owns which moments of a plan are still to come. Steps of the run enter; faults, commands and probes
//! leave when it is time.

use super::plan::{Deed, Moment};
use super::run::Run;

/// A moment that is waited for.
#[derive(Debug, Clone)]
pub(super) struct Awaited {
    moment: Moment,
    /// Steps of the run until it is time, since the mirror was seen.
    left: Option<u64>,
}

/// Those of a plan.
pub(super) fn awaited(moments: &[Moment]) -> Vec<Awaited> {
    let one = |moment: &Moment| Awaited {
        moment: moment.clone(),
        left: None,
    };
    moments.iter().map(one).collect()
}

impl Run {
    /// Does what it is time for.
    ///
    /// # Errors
    /// What a probe complains of.
    pub(super) fn watch_mirrors(&mut self) -> Result<(), String> {
        if self.awaited.is_empty() {
            return Ok(());
        }
        let requests = self.requests();
        let mut waits = std::mem::take(&mut self.awaited);
        let mut ripe = Vec::new();
        waits.retain_mut(|awaited| {
            let Moment {
                after, group, link, ..
            } = awaited.moment;
            if awaited.left.is_none() && requests >= after && self.mirrors(group, link) {
                awaited.left = Some(awaited.moment.steps);
            }
            match &mut awaited.left {
                None => true,
                Some(0) => {
                    ripe.push(awaited.moment.deed.clone());
                    false
                }
                Some(left) => {
                    *left -= 1;
                    true
                }
            }
        });
        self.awaited = waits;
        for deed in ripe {
            match deed {
                Deed::Strike(fault) => self.strike(&fault),
                Deed::Operate(command) => self.operate(command),
                Deed::Look(probe) => self.probe(probe)?,
            }
        }
        Ok(())
    }

    /// True while a mirror of a link runs.
    fn mirrors(&mut self, group: usize, link: usize) -> bool {
        let targets = &self.plan().groups[group].targets;
        let target = targets[link % targets.len()];
        let mut runs = false;
        self.with_link(group, target, |served, link| {
            runs = served.mirror_runs(link);
        });
        runs
    }
}
