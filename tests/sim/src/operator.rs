//! What operators do, carried out.
//!
//! Owns the hands of a plan's commands. Commands enter; the daemons change.

use super::detaching::Detach;
use super::plan::{Command, Hold};
use super::program::Program;
use super::run::{Run, Todo};
use super::served::Served;
use blkrep_core::source::{OnBackingError, Transmit};
use blkrep_types::{LinkName, LossPolicy, Note, NoteId, NoteKind, TaskCommand};
use std::time::Duration;

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
    /// A link that was ended is forgotten: its group may have none now.
    Forget { group: usize, target: usize },
    /// A link that was ended is forgotten, if it was not yet, and made anew.
    Relink { group: usize, target: usize },
    /// Volumes are detached as soon as nobody uses them.
    Detach(Detach),
    /// They are attached again.
    Attach(Detach),
    /// Requests wait no longer when a backing fails.
    Thaw { group: usize },
}

impl Run {
    /// What operators who look at the status do.
    pub(super) fn calm(&mut self) -> Result<(), String> {
        for index in 0..self.groups.len() {
            self.attach_all(index)?;
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
        Ok(())
    }

    /// The node that serves a group for the application that counts, and one of those it leads to.
    fn pair(&mut self, group: usize, link: usize) -> Option<(usize, usize)> {
        let home = self.groups[group].life().node;
        let daemon = self.nodes[home].daemon.as_mut()?;
        let targets = daemon.with_served(group, |served, _| served.targets())?;
        let target = targets.get(link % targets.len().max(1))?;
        Some((home, *target))
    }

    pub(super) fn with_served(
        &mut self,
        group: usize,
        work: impl FnOnce(&mut Served, &mut Program),
    ) {
        let home = self.groups[group].life().node;
        if let Some(daemon) = &mut self.nodes[home].daemon {
            daemon.with_served(group, work);
        }
    }

    pub(super) fn with_link(
        &mut self,
        group: usize,
        target: usize,
        work: impl FnOnce(&Served, &LinkName),
    ) {
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

    /// What an operator does about writes that wait for a link: it was ended and not made again, or its
    /// policy is `block` and its mirror cannot end, because a sector of the source cannot be read before
    /// it is written.
    pub(super) fn let_writes_go_on(&mut self) {
        self.cluster.told.say(&"an operator lets writes go on");
        self.report.let_go += 1;
        let policy = LossPolicy::default();
        for index in 0..self.groups.len() {
            for target in self.followers(index) {
                self.relink_missing(index, target);
                self.with_link(index, target, |served, link| served.set_loss(link, policy));
                // A target that was down when its pause was to end is paused still, and answers no reads.
                if let Some(daemon) = &self.nodes[target].daemon {
                    daemon.with_received(index, |received| received.pause(false));
                }
            }
            // A hold that nobody took back keeps waiting whoever has nothing but that target.
            self.with_served(index, |served, _| {
                if served.hands_over() {
                    served.calm();
                }
            });
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
            Command::Restart { node } | Command::Reboot { node } => {
                self.nodes[node].reboots = matches!(command, Command::Reboot { .. });
                if let Some(daemon) = &self.nodes[node].daemon {
                    daemon.stop();
                }
                return;
            }
            Command::Detach { .. } => return self.begin_detach(command),
            Command::Freeze { group, span } => {
                let group = group % groups;
                self.with_served(group, |served, _| {
                    served.set_policy(OnBackingError::Freeze);
                });
                return self.later(span, Todo::Undo(Undo::Thaw { group }));
            }
            Command::SetQueue { group, queue } => {
                return self.with_served(group % groups, |served, _| served.set_queue(queue));
            }
            Command::Note { group, task, lasts } => {
                return self.submit_note(group % groups, task, lasts);
            }
            Command::PauseTarget { group, link, .. }
            | Command::Mirror { group, link, .. }
            | Command::StopMirror { group, link }
            | Command::PauseMirror { group, link, .. }
            | Command::HoldTransmission { group, link, .. }
            | Command::Reconnect { group, link, .. }
            | Command::Relink { group, link, .. }
            | Command::SetPatience { group, link, .. }
            | Command::SetMode { group, link, .. }
            | Command::SetRetry { group, link, .. }
            | Command::SetLoss { group, link, .. } => (group % groups, link),
        };
        let Some((_, target)) = self.pair(group, link) else {
            return;
        };
        if let Some((span, undo)) = self.operate_pair(command, group, target) {
            self.later(span, Todo::Undo(undo));
        }
    }

    /// What is done to a group and one of its targets; what takes it back, and when.
    fn operate_pair(
        &mut self,
        command: Command,
        group: usize,
        target: usize,
    ) -> Option<(Duration, Undo)> {
        match command {
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
                self.with_served(group, |served, _| {
                    if let Some(link) = served.link(target) {
                        served.stop_mirror(&link);
                    }
                });
                None
            }
            Command::PauseMirror { span, .. } => {
                self.with_link(group, target, |served, link| {
                    served.pause_mirror(link, true)
                });
                Some((span, Undo::ResumeMirror { group, target }))
            }
            Command::HoldTransmission { how, span, .. } => {
                self.with_link(group, target, |served, link| match how {
                    Hold::Stop => served.transmit(link, Transmit::Stopped),
                    Hold::Pause => served.transmit(link, Transmit::Paused),
                    Hold::Schedule => served.schedule(link, true),
                });
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
                self.later(span / 8, Todo::Undo(Undo::Forget { group, target }));
                Some((span, Undo::Relink { group, target }))
            }
            Command::SetPatience { short, .. } => {
                self.with_link(group, target, |served, link| {
                    served.set_patience(link, short);
                    served.slow_writers(!short);
                });
                None
            }
            Command::SetMode { mode, .. } => {
                self.with_link(group, target, |served, link| served.set_mode(link, mode));
                None
            }
            Command::SetLoss { policy, .. } => {
                self.with_link(group, target, |served, link| served.set_loss(link, policy));
                None
            }
            Command::SetRetry { retry, .. } => {
                if let Some(daemon) = &self.nodes[target].daemon {
                    daemon.with_received(group, |received| received.set_retry(retry));
                }
                None
            }
            Command::Restart { .. }
            | Command::Reboot { .. }
            | Command::Detach { .. }
            | Command::Freeze { .. }
            | Command::Note { .. }
            | Command::SetQueue { .. } => None,
        }
    }

    /// Puts a bookmark or a task into the order, if the group's source takes it now.
    fn submit_note(&mut self, group: usize, task: Option<bool>, lasts: Duration) {
        let (mut id, half) = ([0; 16], self.random.bits().to_le_bytes());
        id[..8].copy_from_slice(&half);
        id[8..].copy_from_slice(&self.random.bits().to_le_bytes());
        let kind = match task {
            None => NoteKind::Bookmark("here".parse().expect("a legal name")),
            Some(allowed) => {
                let program = if allowed { "look" } else { "other" };
                let words = vec![program.to_owned()];
                NoteKind::Task(TaskCommand::new(words, String::new()).expect("a legal command"))
            }
        };
        let note = Note {
            id: NoteId::from_bytes(id),
            submitted: self.world.now().get(),
            kind,
        };
        let mut taken = None;
        self.with_served(group, |served, _| {
            taken = served.engine().submit_note(&note).ok()
        });
        if let Some(seq) = taken {
            let age = self.groups[group].life().app.age();
            self.cluster.tasks.submitted(&note, seq, age, lasts);
        }
    }

    /// Takes back what an operator did.
    pub(super) fn undo(&mut self, undo: Undo) -> Result<(), String> {
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
                    served.schedule(link, false);
                });
            }
            Undo::Forget { group, target } => self.with_served(group, |served, program| {
                if let Some(link) = served.link(target) {
                    served.forget_link(&link, program);
                }
            }),
            Undo::Relink { group, target } => self.relink(group, target),
            Undo::Detach(detach) => self.detach(detach),
            Undo::Attach(detach) => return self.attach(detach),
            Undo::Thaw { group } => {
                self.with_served(group, |served, _| served.set_policy(OnBackingError::Pass));
            }
        }
        Ok(())
    }
}
