//! What operators do to detach volumes and attach them again, and what others do meanwhile.
//!
//! Owns the hands of `Command::Detach`: the application lets go of the volumes or is not asked, the node
//! detaches them, somebody may write to the backings, the node attaches them. Commands enter; daemons,
//! applications and backings change.

use super::cluster::backing;
use super::operator::Undo;
use super::plan::Command;
use super::run::{LOOK_AGAIN, Run, Todo};
use blkrep_io::{Access, Host as _};
use std::time::Duration;

/// How soon it is tried again to detach what was in use.
const BUSY_WAIT: Duration = Duration::from_millis(5);

/// Sectors that somebody else writes to, at most.
const WRITTEN_MAX: u64 = 8;

/// A detach under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Detach {
    /// Of this group.
    group: usize,
    /// Where it is served.
    node: usize,
    /// Which, a bit for each.
    volumes: u32,
    /// Requests get errors.
    force: bool,
    /// Somebody writes to the backings.
    written: bool,
    /// How long it is away.
    span: Duration,
}

impl Run {
    /// The application is to let go of the volumes.
    pub(super) fn begin_detach(&mut self, command: Command) {
        let Command::Detach {
            group,
            volume,
            force,
            written,
            span,
        } = command
        else {
            return;
        };
        let group = group % self.groups.len();
        let count = self.plan().groups[group].volumes.len();
        let one = volume.map(|volume| 1 << (volume % count));
        let volumes = one.unwrap_or_else(|| self.cluster.all_volumes(group));
        let life = self.groups[group].life_mut();
        life.app.stay_away(life.app.away() | volumes);
        let node = life.node;
        self.detach(Detach {
            group,
            node,
            volumes,
            force,
            written,
            span,
        });
    }

    /// Detaches what nobody uses; what is in use later.
    pub(super) fn detach(&mut self, detach: Detach) {
        let idle = self.groups[detach.group]
            .life()
            .app
            .has_left(detach.volumes);
        if !idle && !detach.force {
            return self.later(BUSY_WAIT, Todo::Undo(Undo::Detach(detach)));
        }
        if let Some(daemon) = &self.nodes[detach.node].daemon {
            daemon.detach(detach.group, detach.volumes);
        }
        self.later(detach.span, Todo::Undo(Undo::Attach(detach)));
    }

    /// Attaches what was detached, and tries again if that cannot be done yet.
    pub(super) fn attach(&mut self, detach: Detach) -> Result<(), String> {
        let Detach { group, node, .. } = detach;
        let closed = |run: &Self| {
            let daemon = run.nodes[node].daemon.as_ref();
            daemon.is_some_and(|daemon| daemon.alive() && daemon.has_closed(group))
        };
        let mut again = detach;
        if detach.written && closed(self) && self.write_aside(node, group)? {
            again.written = false;
        }
        if !self.attach_at(node, group)? {
            self.later(LOOK_AGAIN, Todo::Undo(Undo::Attach(again)));
        }
        Ok(())
    }

    /// Attaches whatever of a group is detached where its application is.
    pub(super) fn attach_all(&mut self, group: usize) -> Result<(), String> {
        let node = self.groups[group].life().node;
        self.attach_at(node, group).map(|_| ())
    }

    /// False if it has to be tried again.
    fn attach_at(&mut self, node: usize, group: usize) -> Result<bool, String> {
        let Some(daemon) = &mut self.nodes[node].daemon else {
            return Ok(false);
        };
        let attached = daemon.attach(group)?;
        if attached {
            self.groups[group].life_mut().app.stay_away(0);
        }
        Ok(attached)
    }

    /// Somebody writes to the backings that nobody has; false if somebody has.
    fn write_aside(&mut self, node: usize, group: usize) -> Result<bool, String> {
        let home = self.cluster.hosts[node];
        // It is never killed: the death of a process keeps its host's shared memory as it then was.
        let somebody = self.world.start(home);
        let claim = Access {
            read_only: false,
            direct: true,
            claim: true,
            create: None,
        };
        let volumes = self.plan().groups[group].volumes.clone();
        let mut paths = (0..volumes.len()).map(|volume| backing(group, volume));
        let free = paths.all(|path| somebody.open(&path, claim).is_ok());
        if !free {
            return Ok(false);
        }
        let (random, world) = (&mut self.random, &self.world);
        self.groups[group].others_write(node, || {
            for _ in 0..random.between(1, WRITTEN_MAX) {
                let volume = random.index(volumes.len());
                let sector = random.below(volumes[volume] / 512);
                let byte = u8::try_from(random.between(1, 255)).expect("a byte");
                let path = backing(group, volume);
                world.corrupt(home, &path, sector * 512, &[byte; 512]);
            }
        })?;
        self.report.backings_written += 1;
        Ok(true)
    }
}
