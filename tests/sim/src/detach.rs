//! Volumes that a node serves no longer, and serves again.
//!
//! Owns the node's order: the table says first what is not served, then devices end, and the group is
//! closed with its last one; nobody has watched its backings when it is opened again. A crash at any
//! moment leaves one or the other.

use super::cluster::{Entry, STATE, group_name};
use super::daemon::Daemon;
use super::front::Front;
use super::program::Task;
use super::start::StartError;
use blkrep::engine::source::distrust_group;
use std::path::Path;

impl Daemon {
    /// Takes devices of a group away: `volumes` has a bit for each. What waits for anything but the disk
    /// gets an error. A group with no device left is closed when its workers have ended.
    pub fn detach(&self, group: usize, volumes: u32) {
        let (desk, hosted) = (&self.desk, self.desk.hosted());
        let (Some(entry), Some(served)) = (desk.entry(group), hosted.served.get(&group)) else {
            return;
        };
        let detached = entry.detached | volumes;
        let entry = Entry { detached, ..entry };
        desk.cluster.table.put(desk.node, group, entry);
        served.end_volumes(volumes);
        if desk.detached_whole(group) {
            served.stop();
        }
    }

    /// Goes on with what was detached and has not ended.
    pub(super) fn finish_detaches(&self) {
        let desk = &self.desk;
        let mut hosted = desk.hosted();
        let groups: Vec<usize> = hosted.served.keys().copied().collect();
        for group in groups {
            let Some(entry) = desk.entry(group).filter(|entry| entry.detached != 0) else {
                continue;
            };
            let fronts = self.fronts[group].iter().enumerate();
            let gone = |volume| {
                !entry.serves(volume) && self.program.has_done(&Task::Serve(group, volume))
            };
            let gone = fronts.filter(|(volume, _)| gone(*volume));
            gone.for_each(|(_, front)| front.fail_outstanding());
            if desk.detached_whole(group)
                && self.program.has_left(group)
                && let Some(served) = hosted.served.remove(&group)
            {
                // A disk that does not let it be clean costs nothing: all will be compared.
                let _ = served.close(true);
            }
        }
    }

    /// True if the node has the group, and let go of its backings.
    #[must_use]
    pub fn has_closed(&self, group: usize) -> bool {
        self.desk.detached_whole(group) && !self.desk.hosted().served.contains_key(&group)
    }

    /// Serves what was detached again. False if that has to be tried again.
    ///
    /// # Errors
    /// What could not be done and should have been.
    pub fn attach(&mut self, group: usize) -> Result<bool, String> {
        if self.is_stopping() {
            return Ok(false);
        }
        let desk = self.desk.clone();
        let Some(entry) = desk.entry(group).filter(|entry| entry.detached != 0) else {
            return Ok(true);
        };
        let attached = Entry {
            detached: 0,
            ..entry
        };
        if self.has_closed(group) {
            // Nobody watched the backings meanwhile, however the detach ended.
            let (host, state) = (&desk.host, Path::new(STATE));
            if distrust_group(host, state, &group_name(group)).is_err() {
                return Ok(false);
            }
            desk.cluster.table.put(desk.node, group, attached);
            return match self.serve(group) {
                Ok(()) => Ok(true),
                Err(StartError::Failed(why)) if self.alive() => {
                    Err(format!("attach group {group}: {why}"))
                }
                Err(_) => {
                    desk.cluster.table.put(desk.node, group, entry);
                    Ok(false)
                }
            };
        }
        let volumes = 0..self.fronts[group].len();
        let mut gone = volumes.filter(|volume| !entry.serves(*volume));
        if desk.detached_whole(group)
            || gone.any(|volume| !self.program.has_done(&Task::Serve(group, volume)))
        {
            return Ok(false);
        }
        desk.cluster.table.put(desk.node, group, attached);
        let mut hosted = desk.hosted();
        let served = hosted.served.get_mut(&group);
        // An error means that the process has died: the scheduler sees that by itself.
        let begun = served.map(|served| served.begin_volumes(entry.detached, &mut self.program));
        Ok(begun.is_some_and(|begun| begun.is_ok()))
    }

    /// Devices of a group that was closed when the daemon before this one died.
    pub(super) fn leave_closed(&self, group: usize) {
        let fronts = self.fronts.get(group).into_iter().flatten();
        fronts.for_each(Front::fail_outstanding);
    }
}
