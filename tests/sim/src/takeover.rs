//! A target takes over, and the old source comes back as its target.
//!
//! Owns the acts of a takeover: the source is gone or cut off, a target is promoted and judged, the
//! application goes on there, every other node of the group follows the new source, and all become
//! equal. Faults may hit the new source and the old one on the way.

use super::front::Front;
use super::judge;
use super::plan::{Takeover, TakeoverReason};
use super::run::{LOOK_AGAIN, Run, Todo};
use blkrep_core::source::Gate;
use blkrep_io::sim::Crash;
use blkrep_types::DataState;
use std::time::Duration;

/// How long a promotion may take once everything was whole.
const PROMOTE_MAX: Duration = Duration::from_secs(120);

/// How long the new source may take to serve: its daemon may die meanwhile.
const SERVE_MAX: Duration = Duration::from_secs(120);

/// Requests before and after a promotion.
const LAST_REQUESTS: u64 = 60;

/// How long an act may take however slow the application is.
const ACT_MAX: Duration = Duration::from_secs(60);

/// How long an old source may take to hear of the new one.
const HEAR_MAX: Duration = Duration::from_secs(60);

impl Run {
    /// Has a target take over, and everything become whole again.
    pub(super) fn take_over(&mut self, takeover: Takeover) -> Result<(), String> {
        let group = takeover.group % self.groups.len();
        let old = self.groups[group].life().node;
        let Some(daemon) = &mut self.nodes[old].daemon else {
            return Err(format!("node {old} is down, and all was quiet"));
        };
        let targets = daemon.with_served(group, |served, _| served.targets());
        let targets = targets.ok_or("all was quiet, and a group is not served")?;
        let serving = self.cluster.serving.get(old, group);
        let new = serving.unwrap_or_else(|| targets[takeover.link % targets.len()]);
        self.cluster
            .told
            .say(&(takeover, "group", group, "from", old, "to", new));
        self.report.takeovers += 1;
        self.report.taken_from_there += u64::from(serving.is_some());
        self.groups[group].life_mut().active = true;
        self.leave(old, takeover.why)?;
        self.work(group, LAST_REQUESTS)?;
        if takeover.why == TakeoverReason::PowerLost {
            self.groups[group].life_mut().over = true;
        }
        self.promote(group, new)?;
        if serving.is_some() {
            // It had received whatever was answered, and is all that there is.
            let age = self.groups[group].life().app.age();
            judge::source(age, &self.cluster.images(new, group))?;
        }
        self.groups[group].begin_life(new);
        self.groups[group].life_mut().active = true;
        if let Some((crash, calls)) = takeover.crash {
            self.crash(new, crash, Some(calls));
        }
        self.await_service(group, new)?;
        self.work(group, LAST_REQUESTS)?;
        self.come_back(old);
        self.await_hearing(group, old, new)?;
        if let Some((crash, calls)) = takeover.crash_old {
            self.crash(old, crash, Some(calls));
        }
        self.follow(group, old, new)?;
        self.work(group, LAST_REQUESTS)?;
        self.groups[group]
            .lives_mut()
            .for_each(|life| life.over |= life.node == old);
        self.settle()?;
        // The node is a target. What its application issued while the daemon was away waits for nobody, and
        // must not meet the queue of a source that the node may become again.
        let fronts = self.groups[group].fronts(old).iter();
        fronts.for_each(Front::forget);
        self.report.rejoins += 1;
        Ok(())
    }

    /// The source is gone, or cut off from everybody.
    fn leave(&mut self, old: usize, why: TakeoverReason) -> Result<(), String> {
        match why {
            TakeoverReason::Cut => {
                self.report.takeovers_behind_cut += 1;
                for other in (0..self.nodes.len()).filter(|other| *other != old) {
                    let (here, there) = (self.cluster.hosts[old], self.cluster.hosts[other]);
                    self.world.cut(here, there);
                    self.world.cut(there, here);
                }
                Ok(())
            }
            TakeoverReason::Killed | TakeoverReason::PowerLost => {
                // Under load, so that something is in flight.
                let group = self.groups.iter().position(|group| group.life().active);
                if let Some(group) = group {
                    self.work(group, LAST_REQUESTS)?;
                }
                self.nodes[old].held_down = true;
                let crash = if why == TakeoverReason::Killed {
                    Crash::Process
                } else {
                    Crash::Power
                };
                self.crash(old, crash, None);
                let now = self.world.now();
                self.step(now)
            }
        }
    }

    /// The application works for some requests, if anybody serves it. Before and after it keeps going.
    fn work(&mut self, group: usize, requests: u64) -> Result<(), String> {
        self.groups[group]
            .lives_mut()
            .for_each(|life| life.trickles = true);
        self.groups[group].life_mut().trickles = false;
        let worked = self.work_on(group, requests);
        self.groups[group].life_mut().trickles = true;
        worked
    }

    fn work_on(&mut self, group: usize, requests: u64) -> Result<(), String> {
        let done = |run: &Self| run.groups[group].life().app.requests;
        let until = done(self) + requests;
        let end = self.world.now().after(ACT_MAX);
        while done(self) < until && self.world.now() < end {
            if self.nodes[self.groups[group].life().node].held_down {
                return Ok(());
            }
            let soon = self.world.now().after(LOOK_AGAIN).min(end);
            self.step(soon)?;
        }
        Ok(())
    }

    /// Promotes and judges what comes of it.
    fn promote(&mut self, group: usize, new: usize) -> Result<(), String> {
        let daemon = self.nodes[new].daemon.as_mut();
        let daemon = daemon.ok_or("the node to be promoted is down")?;
        daemon
            .promote(group)
            .map_err(|error| format!("promote group {group} on node {new}: {error:?}"))?;
        let end = self.world.now().after(PROMOTE_MAX);
        let answer = loop {
            let soon = self.world.now().after(LOOK_AGAIN);
            self.step(soon)?;
            let daemon = self.nodes[new].daemon.as_mut();
            if let Some(answer) = daemon.and_then(|daemon| daemon.promoted(group)) {
                break answer;
            }
            if self.world.now() > end {
                return Err(format!("a promotion is not answered\n{}", self.status()));
            }
        };
        match answer {
            Ok(promotion) if promotion.data_state == DataState::Ok => {
                let images = self.cluster.images(new, group);
                judge::replica(&self.groups[group].ages(), &images)?;
                self.judge_promises(group, (new, true), &images)
            }
            Ok(promotion) => Err(format!("promoted although {}", promotion.data_state)),
            // Everything was whole before: the replica can be anything but not promotable.
            Err(error) => Err(format!("a promotion was refused: {error}")),
        }
    }

    fn gate(&self, group: usize, node: usize) -> Option<Gate> {
        self.nodes[node].daemon.as_ref()?.gate(group)
    }

    fn await_service(&mut self, group: usize, new: usize) -> Result<(), String> {
        let end = self.world.now().after(SERVE_MAX);
        while self.gate(group, new).is_none() {
            if self.world.now() > end {
                return Err(format!(
                    "group {group} is not served by node {new} after its promotion\n{}",
                    self.status()
                ));
            }
            let soon = self.world.now().after(LOOK_AGAIN);
            self.step(soon)?;
        }
        Ok(())
    }

    /// The old source's host is there again, and can be reached.
    fn come_back(&mut self, old: usize) {
        for other in (0..self.nodes.len()).filter(|other| *other != old) {
            self.heal(old, other, true);
        }
        if self.nodes[old].held_down {
            self.nodes[old].held_down = false;
            self.later(Duration::ZERO, Todo::Start(old));
        }
    }

    /// The old source connects to its former target, or is connected to: from then on it is fenced.
    fn await_hearing(&mut self, group: usize, old: usize, new: usize) -> Result<(), String> {
        let end = self.world.now().after(HEAR_MAX);
        while self.gate(group, old) != Some(Gate::Fenced) {
            if self.world.now() > end {
                return Err(format!(
                    "node {old} has not heard that node {new} serves group {group}: {:?}",
                    self.gate(group, old)
                ));
            }
            let soon = self.world.now().after(LOOK_AGAIN);
            self.step(soon)?;
            // A link whose disconnection failed may come back disconnected.
            if let Some(daemon) = &mut self.nodes[old].daemon {
                daemon.with_served(group, |served, _| served.calm());
            }
        }
        Ok(())
    }

    /// The operator has every other node follow the new source. Tried until a daemon that dies
    /// meanwhile is there again.
    fn follow(&mut self, group: usize, old: usize, new: usize) -> Result<(), String> {
        for other in self.followers(group) {
            let end = self.world.now().after(SERVE_MAX);
            loop {
                let daemon = self.nodes[new].daemon.as_mut();
                let followed = daemon.and_then(|daemon| {
                    daemon.with_served(group, |served, program| {
                        served.overwrite(other, other == old, program)
                    })
                });
                if let Some(Ok(())) = followed {
                    break;
                }
                if self.world.now() > end {
                    return Err(format!("node {other} cannot be linked: {followed:?}"));
                }
                let soon = self.world.now().after(LOOK_AGAIN);
                self.step(soon)?;
            }
        }
        Ok(())
    }
}
