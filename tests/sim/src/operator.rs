//! What goes wrong and what operators do, carried out.
//!
//! Owns the hands of a plan. Faults and commands enter; the world and the daemons change.

use super::plan::{Command, Fault};
use super::program::Program;
use super::run::{Run, Todo};
use super::served::Served;
use blkrep_core::source::Transmit;
use blkrep_io::sim::{Crash, DiskFault};
use blkrep_types::LinkName;
use std::path::PathBuf;

/// Something that an operator takes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Undo {
    /// A target applies again.
    Unpause { group: usize, target: usize },
    /// A link is connected again.
    Connect { group: usize, target: usize },
    /// A mirror goes on.
    ResumeMirror { group: usize, target: usize },
    /// Transmission goes on.
    Transmit { group: usize, target: usize },
    /// A link that was ended is forgotten and made anew.
    Relink { group: usize, target: usize },
}

impl Run {
    /// Something goes wrong.
    pub(super) fn strike(&mut self, fault: &Fault) {
        self.cluster.told.say(fault);
        self.report.note_fault(fault);
        match *fault {
            Fault::Crash {
                node,
                crash,
                calls,
                down,
            } => {
                self.nodes[node].down = down;
                self.crash(node, crash, calls);
            }
            Fault::Cut {
                from,
                to,
                both,
                span,
            } => {
                let (here, there) = (self.cluster.hosts[from], self.cluster.hosts[to]);
                self.world.cut(here, there);
                if both {
                    self.world.cut(there, here);
                }
                self.later(span, Todo::Heal { from, to, both });
            }
            Fault::Reset { one, other } => {
                let hosts = &self.cluster.hosts;
                self.world.reset_connections(hosts[one], hosts[other]);
            }
            Fault::Disk {
                node,
                kind,
                errno,
                times,
            } => {
                let path = self.any_file(node);
                let fault = DiskFault {
                    kind,
                    errno,
                    bytes: None,
                    times,
                };
                self.world.inject(self.cluster.hosts[node], &path, fault);
            }
            Fault::Stall { node, span } => {
                let path = self.any_file(node);
                self.world.stall(self.cluster.hosts[node], &path, span);
            }
        }
    }

    /// A node's daemon or host dies, at once or inside one of its next calls.
    pub(super) fn crash(&mut self, node: usize, crash: Crash, calls: Option<u32>) {
        let Some(daemon) = &self.nodes[node].daemon else {
            return;
        };
        match (calls, crash) {
            (Some(calls), crash) => self.world.crash_after(daemon.process(), calls, crash),
            (None, Crash::Process) => self.world.crash_process(daemon.process()),
            (None, Crash::Power) => self.world.power_loss(self.cluster.hosts[node]),
        }
    }

    /// Any file or device of a node: data, journal, maps, superblock.
    fn any_file(&mut self, node: usize) -> PathBuf {
        let paths = self.world.paths(self.cluster.hosts[node]);
        paths[self.random.index(paths.len())].clone()
    }

    pub(super) fn heal(&self, from: usize, to: usize, both: bool) {
        let (here, there) = (self.cluster.hosts[from], self.cluster.hosts[to]);
        self.world.heal(here, there);
        if both {
            self.world.heal(there, here);
        }
    }

    /// Ends every fault, and what operators had for a while.
    pub(super) fn mend(&mut self) {
        let nodes = 0..self.nodes.len();
        for from in nodes.clone() {
            for to in nodes.clone().filter(|to| *to != from) {
                self.heal(from, to, false);
            }
            self.world.clear_faults(self.cluster.hosts[from]);
        }
        // One that is still to come would hit a daemon in which nothing goes wrong any more.
        self.world.crash_no_more();
        self.todo.retain(|(_, todo)| matches!(todo, Todo::Start(_)));
    }

    /// What operators who look at the status do.
    pub(super) fn calm(&mut self) {
        for index in 0..self.groups.len() {
            for target in self.followers(index) {
                self.relink_missing(index, target);
            }
            for node in &mut self.nodes {
                let Some(daemon) = &mut node.daemon else {
                    continue;
                };
                daemon.with_served(index, |served, _| served.calm());
                daemon.with_received(index, |received| received.pause(false));
            }
        }
    }

    /// The node that serves a group for the application that counts, and one of those it leads to.
    fn pair(&mut self, group: usize, link: usize) -> Option<(usize, usize)> {
        let home = self.groups[group].life().node;
        let daemon = self.nodes[home].daemon.as_mut()?;
        let targets = daemon.with_served(group, |served, _| served.targets())?;
        let target = targets.get(link % targets.len().max(1))?;
        Some((home, *target))
    }

    fn with_served(&mut self, group: usize, work: impl FnOnce(&mut Served, &mut Program)) {
        let home = self.groups[group].life().node;
        if let Some(daemon) = &mut self.nodes[home].daemon {
            daemon.with_served(group, work);
        }
    }

    fn with_link(&mut self, group: usize, target: usize, work: impl FnOnce(&Served, &LinkName)) {
        self.with_served(group, |served, _| {
            if let Some(link) = served.link(target) {
                work(served, &link);
            }
        });
    }

    /// The nodes that a group's source leads to.
    pub(super) fn followers(&self, group: usize) -> Vec<usize> {
        let plan = &self.plan().groups[group];
        let home = self.groups[group].life().node;
        let nodes = plan.targets.iter().copied().chain([plan.home]);
        nodes.filter(|node| *node != home).collect()
    }

    fn relink_missing(&mut self, group: usize, target: usize) {
        let mut missing = false;
        self.with_served(group, |served, _| missing = !served.drives(target));
        if missing {
            self.relink(group, target);
        }
    }

    /// Makes a link anew whose driver was ended, or that was lost with a crash in between.
    fn relink(&mut self, group: usize, target: usize) {
        self.with_served(group, |served, program| {
            if let Some(link) = served.link(target)
                && !served.forget_link(&link, program)
            {
                return;
            }
            // A disk that fails leaves none: it is tried again while quiet is waited for.
            let _ = served.overwrite(target, false, program);
        });
    }

    /// An operator does something.
    pub(super) fn operate(&mut self, command: Command) {
        self.cluster.told.say(&command);
        self.report.note_command(&command);
        let groups = self.groups.len();
        let (group, link) = match command {
            Command::Restart { node } => {
                if let Some(daemon) = &self.nodes[node].daemon {
                    daemon.stop();
                }
                return;
            }
            Command::PauseTarget { group, link, .. }
            | Command::Mirror { group, link, .. }
            | Command::StopMirror { group, link }
            | Command::PauseMirror { group, link, .. }
            | Command::HoldTransmission { group, link, .. }
            | Command::Reconnect { group, link, .. }
            | Command::Relink { group, link, .. } => (group % groups, link),
        };
        let Some((_, target)) = self.pair(group, link) else {
            return;
        };
        let undo = match command {
            Command::PauseTarget { span, .. } => {
                if let Some(daemon) = &self.nodes[target].daemon {
                    daemon.with_received(group, |received| received.pause(true));
                }
                Some((span, Undo::Unpause { group, target }))
            }
            Command::Mirror { kind, .. } => {
                self.with_link(group, target, |served, link| served.mirror(link, kind));
                None
            }
            Command::StopMirror { .. } => {
                self.with_link(group, target, |served, link| served.stop_mirror(link));
                None
            }
            Command::PauseMirror { span, .. } => {
                self.with_link(group, target, |served, link| {
                    served.pause_mirror(link, true)
                });
                Some((span, Undo::ResumeMirror { group, target }))
            }
            Command::HoldTransmission { stop, span, .. } => {
                let held = if stop {
                    Transmit::Stopped
                } else {
                    Transmit::Paused
                };
                self.with_link(group, target, |served, link| served.transmit(link, held));
                Some((span, Undo::Transmit { group, target }))
            }
            Command::Reconnect { span, .. } => {
                self.with_link(group, target, |served, link| served.disconnect(link));
                Some((span, Undo::Connect { group, target }))
            }
            Command::Relink { span, .. } => {
                self.with_served(group, |served, _| {
                    if let Some(link) = served.link(target) {
                        served.end_link(&link);
                    }
                });
                Some((span, Undo::Relink { group, target }))
            }
            Command::Restart { .. } => None,
        };
        if let Some((span, undo)) = undo {
            self.later(span, Todo::Undo(undo));
        }
    }

    /// Takes back what an operator did.
    pub(super) fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Unpause { group, target } => {
                if let Some(daemon) = &self.nodes[target].daemon {
                    daemon.with_received(group, |received| received.pause(false));
                }
            }
            Undo::Connect { group, target } => {
                self.with_link(group, target, |served, link| served.connect(link));
            }
            Undo::ResumeMirror { group, target } => {
                self.with_link(group, target, |served, link| {
                    served.pause_mirror(link, false)
                });
            }
            Undo::Transmit { group, target } => {
                self.with_link(group, target, |served, link| {
                    served.transmit(link, Transmit::Started);
                });
            }
            Undo::Relink { group, target } => self.relink(group, target),
        }
    }
}
