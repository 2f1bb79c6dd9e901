//! What must be so at any moment, asked whenever the run looks around.
//!
//! Owns the order of the questions. The run enters, the first complaint leaves. Images, reads and names
//! are judged where they come up: see `judge.rs`, `app.rs` and `names.rs`.

mod bounds;
mod coverage;
mod one_writer;
mod truth;

use super::run::Run;
use super::served::Served;
use blkrep::engine::target::TargetStatus;
use blkrep_types::LinkName;

/// A group on its source, and one of its targets that has it.
struct Pair<'a> {
    group: usize,
    home: usize,
    target: usize,
    served: &'a Served,
    link: LinkName,
    replica: TargetStatus,
}

impl Run {
    /// Asks every question.
    ///
    /// # Errors
    /// What is not as it must be.
    pub(super) fn look(&mut self) -> Result<(), String> {
        for group in 0..self.groups.len() {
            self.one_writer(group)?;
            let home = self.groups[group].life().node;
            let targets = (0..self.nodes.len()).filter(|node| *node != home);
            for target in targets.collect::<Vec<_>>() {
                let looked = self.look_at_pair(group, home, target);
                // A status is some milliseconds old: what is wrong is still so at the next look.
                match looked {
                    Ok(()) => {
                        self.suspects.remove(&(group, target));
                    }
                    Err(why) if !self.suspects.insert((group, target)) => {
                        return Err(format!("group {group}, nodes {home} and {target}: {why}"));
                    }
                    Err(_) => {}
                }
            }
        }
        Ok(())
    }

    fn look_at_pair(&mut self, group: usize, home: usize, target: usize) -> Result<(), String> {
        // One that has just died has disks that are behind what it knew.
        let dead = |node: usize| {
            let daemon = self.nodes[node].daemon.as_ref();
            daemon.is_none_or(|daemon| !self.world.alive(daemon.process()))
        };
        if dead(home) || dead(target) {
            return Ok(());
        }
        let Some(daemon) = &self.nodes[target].daemon else {
            return Ok(());
        };
        let Some(Some(replica)) = daemon.with_received(group, |received| received.status()) else {
            return Ok(());
        };
        let outstanding = self.groups[group].life().app.outstanding();
        let cluster = self.cluster.clone();
        let Some(daemon) = &mut self.nodes[home].daemon else {
            return Ok(());
        };
        let looked = daemon.with_served(group, |served, _| {
            let Some(link) = served.link(target) else {
                return Ok(false);
            };
            let pair = Pair {
                group,
                home,
                target,
                served,
                link,
                replica,
            };
            bounds::judge(&pair, &cluster)?;
            if cluster.serving.get(home, group).is_some() {
                // What is here is stale, and known to be.
                return Ok(false);
            }
            truth::judge(&pair, &cluster, outstanding)?;
            coverage::judge(&pair, &cluster)
        });
        self.report.looks += u64::from(looked.unwrap_or(Ok(false))?);
        Ok(())
    }
}
