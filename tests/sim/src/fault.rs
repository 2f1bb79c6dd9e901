//! What goes wrong, carried out.
//!
//! Owns the hands of a plan's faults, and how they end. Faults enter; the world changes.

use super::cluster::{QUEUES, STATE};
use super::plan::{Fault, Place};
use super::run::{Run, Todo};
use blkrep_io::sim::{Backup, Crash, DiskFault, DiskLie, Garble, LieKind};
use blkrep_log::map::{SECTOR_BYTES, SECTOR_WORDS};
use blkrep_log::queue::HEAD_BYTES;
use blkrep_store::journal::JOURNAL_AREA_OFFSET;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One in so many deliveries is changed while a way is bad.
const GARBLED_ONE_IN: u64 = 20;

/// How long a host is off while an old copy is put back.
const RESTORE: Duration = Duration::from_millis(300);

/// Files as they were, told in a word.
#[derive(Clone)]
pub(super) struct OldCopy(Backup);

impl std::fmt::Debug for OldCopy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an old copy")
    }
}

/// What becomes of a fault.
#[derive(Debug, Clone)]
pub(super) enum After {
    /// Bytes pass again from a node to another, or both ways.
    Heal { from: usize, to: usize, both: bool },
    /// They arrive as they were sent, and in time.
    Fair { from: usize, to: usize },
    /// The disks are replaced, if no target serves the group.
    Repaired { node: usize, group: usize },
    /// There is room again.
    Room { node: usize },
    /// The copy is put back.
    Restore {
        node: usize,
        copy: OldCopy,
        /// The files that were copied.
        files: Vec<PathBuf>,
    },
}

impl Run {
    /// Something goes wrong.
    pub(super) fn strike(&mut self, fault: &Fault) {
        self.cluster.told.say(fault);
        self.report.note_fault(fault);
        if let Some(node) = fault.fails_disks_of() {
            let promises = self.promises.iter_mut();
            promises.for_each(|promises| promises.disks_broke(node));
        }
        let host = |node: usize| self.cluster.hosts[node];
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
                self.world.cut(host(from), host(to));
                if both {
                    self.world.cut(host(to), host(from));
                }
                self.later(span, Todo::After(After::Heal { from, to, both }));
            }
            Fault::Reset { one, other } => self.world.reset_connections(host(one), host(other)),
            Fault::Sever {
                one,
                other,
                which,
                silent,
            } => {
                let world = &self.world;
                world.sever_connection(host(one), host(other), which, silent);
            }
            Fault::Garble {
                from,
                to,
                bytes,
                span,
            } => {
                let garble = bytes.map_or(Garble::OneIn(GARBLED_ONE_IN), Garble::Bytes);
                self.world.garble(host(from), host(to), garble);
                self.later(span, Todo::After(After::Fair { from, to }));
            }
            Fault::Delay {
                from,
                to,
                most,
                span,
            } => {
                let more = (Duration::from_millis(1), most);
                self.world.delay(host(from), host(to), more);
                self.later(span, Todo::After(After::Fair { from, to }));
            }
            Fault::Double { from, to, times } => {
                self.world.double_connections(host(from), host(to), times);
            }
            Fault::Lost {
                node,
                group,
                times,
                span,
            } => {
                let group = group % self.groups.len();
                self.lose_backings(node, group, times);
                self.later(span, Todo::After(After::Repaired { node, group }));
            }
            Fault::Leap { node, span } => self.world.leap_clock(host(node), span),
            Fault::Full { node, span } => {
                self.world.set_full(host(node), true);
                self.later(span, Todo::After(After::Room { node }));
            }
            Fault::Disk { .. }
            | Fault::Stall { .. }
            | Fault::Unreadable { .. }
            | Fault::Rot { .. }
            | Fault::Lie { .. } => self.break_disk(fault),
            Fault::OldBackup { node, span } => {
                let files = self.world.paths(host(node));
                let copy = OldCopy(self.world.backup(host(node), &files));
                self.later(span, Todo::After(After::Restore { node, copy, files }));
            }
        }
    }

    fn break_disk(&mut self, fault: &Fault) {
        match *fault {
            Fault::Disk {
                node,
                kind,
                errno,
                times,
                place,
            } => {
                self.at_a_file(
                    node,
                    |path| is_in(path, place),
                    |run, path, at| {
                        let host = run.cluster.hosts[node];
                        let bytes = (place == Place::Records).then(|| run.copy_at(node, path, at));
                        let fault = DiskFault {
                            kind,
                            errno,
                            bytes,
                            times,
                        };
                        run.world.inject(host, path, fault);
                    },
                );
            }
            Fault::Stall { node, place, span } => self.at_a_file(
                node,
                |path| is_in(path, place),
                |run, path, _| {
                    run.world.stall(run.cluster.hosts[node], path, span);
                },
            ),
            Fault::Unreadable { node } => self.at_a_file(
                node,
                |_| true,
                |run, path, at| {
                    let sector = at / 512 * 512;
                    let bytes = sector..sector + 512;
                    run.world.spoil(run.cluster.hosts[node], path, bytes);
                },
            ),
            Fault::Rot {
                node,
                place: Place::Any,
            } => self.at_a_file(node, is_state, |run, path, at| {
                run.world.flip(run.cluster.hosts[node], path, at, 1);
            }),
            Fault::Rot { node, place } => {
                self.at_a_file(
                    node,
                    |path| is_in(path, place),
                    |run, path, _| run.rot_what_is_said(node, path, place),
                );
            }
            Fault::Lie { node, kind } => {
                let fits = match kind {
                    LieKind::FlippedRead => is_state,
                    LieKind::StaleRead | LieKind::LostWrite => is_journal,
                };
                let lie = DiskLie {
                    kind,
                    bytes: None,
                    times: 1,
                };
                self.at_a_file(node, fits, |run, path, _| {
                    run.world.deceive(run.cluster.hosts[node], path, lie);
                });
            }
            _ => {}
        }
    }

    /// Does something to a byte of any file or device of a node that fits: data, journal, maps,
    /// superblock.
    fn at_a_file(
        &mut self,
        node: usize,
        fits: impl Fn(&Path) -> bool,
        work: impl FnOnce(&mut Self, &Path, u64),
    ) {
        let host = self.cluster.hosts[node];
        let mut paths: Vec<PathBuf> = self.world.paths(host);
        paths.retain(|path| fits(path));
        if paths.is_empty() {
            return;
        }
        let path = paths.swap_remove(self.random.index(paths.len()));
        let len = self.world.image(host, &path).len();
        if len > 0 {
            let at = u64::try_from(self.random.index(len)).expect("64-bit platform");
            work(self, &path, at);
        }
    }

    /// The copy of a record that a byte is in.
    fn copy_at(&self, node: usize, path: &Path, at: u64) -> Range<u64> {
        let len = self.world.image(self.cluster.hosts[node], path).len();
        let half = u64::try_from(len / 2).expect("64-bit platform");
        if at < half { 0..half } else { half..2 * half }
    }

    /// Flips a bit that is set, of what a map or journal says.
    fn rot_what_is_said(&mut self, node: usize, path: &Path, place: Place) {
        let host = self.cluster.hosts[node];
        let image = self.world.image(host, path);
        let heads = match place {
            Place::Journals => usize::try_from(JOURNAL_AREA_OFFSET).expect("small"),
            Place::Queues => usize::try_from(HEAD_BYTES).expect("small"),
            Place::Any | Place::Backings | Place::Maps | Place::Records => SECTOR_BYTES,
        };
        let own = SECTOR_BYTES - 8 * SECTOR_WORDS;
        let said = |at: &usize| match place {
            Place::Maps => at % SECTOR_BYTES >= own,
            Place::Any | Place::Backings | Place::Journals | Place::Records | Place::Queues => true,
        };
        let bytes = (heads..image.len()).filter(said);
        let set: Vec<usize> = bytes.filter(|at| image[*at] != 0).collect();
        if set.is_empty() {
            return;
        }
        let at = set[self.random.index(set.len())];
        let bits: Vec<u8> = (0..8).map(|bit| image[at] & 1 << bit).collect();
        let bits: Vec<u8> = bits.into_iter().filter(|bit| *bit != 0).collect();
        let bit = bits[self.random.index(bits.len())];
        let at = u64::try_from(at).expect("64-bit platform");
        self.world.flip(host, path, at, bit);
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

    pub(super) fn heal(&self, from: usize, to: usize, both: bool) {
        let (here, there) = (self.cluster.hosts[from], self.cluster.hosts[to]);
        self.world.heal(here, there);
        if both {
            self.world.heal(there, here);
        }
    }

    /// A fault ends, or goes on.
    pub(super) fn after(&mut self, after: After) -> Result<(), String> {
        let hosts = &self.cluster.hosts;
        match after {
            After::Heal { from, to, both } => self.heal(from, to, both),
            After::Fair { from, to } => {
                self.world.garble(hosts[from], hosts[to], Garble::Never);
                let none = (Duration::ZERO, Duration::ZERO);
                self.world.delay(hosts[from], hosts[to], none);
            }
            After::Repaired { node, group } => self.repair(node, group),
            After::Room { node } => self.world.set_full(hosts[node], false),
            After::Restore { node, copy, files } => {
                // A source that is put back is another story, and so is one that is just starting, or
                // has a replica that the copy knows nothing of.
                let serves = (0..self.groups.len())
                    .any(|group| self.cluster.table.get(node, group).is_some());
                let same = self.world.paths(hosts[node]) == files;
                if serves || !same || self.nodes[node].daemon.is_none() {
                    return Ok(());
                }
                self.report.old_backups += 1;
                self.nodes[node].down = RESTORE;
                self.world.power_loss(hosts[node]);
                self.world.restore(hosts[node], &copy.0);
            }
        }
        Ok(())
    }

    /// Ends every fault, and what operators had for a while.
    pub(super) fn mend(&mut self) -> Result<(), String> {
        let nodes = 0..self.nodes.len();
        for from in nodes.clone() {
            for to in nodes.clone().filter(|to| *to != from) {
                self.heal(from, to, false);
                self.after(After::Fair { from, to })?;
            }
            self.after(After::Room { node: from })?;
            self.world.clear_faults(self.cluster.hosts[from]);
        }
        // One that is still to come would hit a daemon in which nothing goes wrong any more.
        self.world.crash_no_more();
        self.todo.retain(|(_, todo)| matches!(todo, Todo::Start(_)));
        Ok(())
    }
}

fn is_in(path: &Path, place: Place) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match place {
        Place::Any => true,
        Place::Backings => !is_state(path) && !is_queue(path),
        Place::Queues => is_queue(path),
        Place::Maps => is_state(path) && (name.contains(".intent") || name.contains(".link-")),
        Place::Journals => is_journal(path),
        Place::Records => name.ends_with(".group") || name == "superblock",
    }
}

fn is_state(path: &Path) -> bool {
    path.starts_with(STATE)
}

fn is_queue(path: &Path) -> bool {
    QUEUES.iter().any(|directory| path.starts_with(directory))
}

fn is_journal(path: &Path) -> bool {
    path.ends_with("journal")
}
