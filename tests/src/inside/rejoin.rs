//! A source that was lost, whose target was promoted, and that comes back.
//!
//! Owns the scene that its bodies play in: a pair with something written, the loss, the promotion, the return, what both sides
//! say, and doing exactly that. What must hold in all of them: nothing is overwritten by itself, in either direction.

use super::Context;
use super::disk::{Behaviour, Mapped, Memory, read_direct, write_direct};
use super::node::Node;
use super::pair::{Pair, Placed, Plan, QUIET_LIMIT, SOURCE_ADDRESS, is_quiet};
use super::shell::wait_for;
use crate::order::Random;
use anyhow::{Context as _, Result, ensure};
use blkrep_api::{DataState, GroupStatus, LinkStatus, Role, VolumeState};
use nix::errno::Errno;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// MiB of each disk.
const SIZE_MIB: u64 = 16;
/// More than a scene writes.
const LOG_MEMORY: &str = "log-memory = '16MiB'";
/// Bytes of a disk.
pub(super) const SIZE_BYTES: usize = 16 << 20;
/// Pieces that `scribble` writes, and the bytes of each.
const PIECES: u32 = 12;
const PIECE_BYTES: usize = 24 << 10;
/// A lost peer is noticed, or a newer generation heard of, within this.
pub(super) const NOTICE_LIMIT: Duration = Duration::from_secs(60);
/// Both sides are left alone for so long, to see that they do nothing by themselves; links are tried every 200 ms.
pub(super) const ALONE: Duration = Duration::from_secs(2);
/// Stands in what a node says where only the operator knows the address.
const OWN_ADDRESS: &str = "THIS-NODE";

/// The bytes of both sides' disks.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Images {
    /// The first source's.
    pub(super) backings: Vec<Vec<u8>>,
    /// The first target's.
    pub(super) replicas: Vec<Vec<u8>>,
}

/// A pair on disks of its own.
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) pair: Pair,
    random: Random,
    // Disks go after the daemons, and what is mapped over them before them.
    mapped: Vec<Mapped>,
    _disks: [Memory; 4],
}

/// Writes random pieces at random places of each device.
pub(super) fn scribble(devices: &[PathBuf], random: &mut Random) -> Result<()> {
    for device in devices {
        for _ in 0..PIECES {
            let bytes: Vec<u8> = (0..PIECE_BYTES / 8)
                .flat_map(|_| random.next().to_le_bytes())
                .collect();
            let places = (SIZE_BYTES - PIECE_BYTES) / 4096;
            let offset = random.below(places as u64) * 4096;
            write_direct(device, offset, &bytes)
                .with_context(|| format!("write to {}", device.display()))?;
        }
    }
    Ok(())
}

/// The device answers every request with EIO.
pub(super) fn fails(device: &Path) -> Result<()> {
    let read = read_direct(device, 0, 4096).map(drop);
    let write = write_direct(device, 0, &[0xff; 4096]);
    for (what, result) in [("read", read), ("write", write)] {
        let Err(error) = result else {
            anyhow::bail!("a {what} of {} did not fail", device.display());
        };
        let errno = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::raw_os_error);
        ensure!(
            errno == Some(Errno::EIO as i32),
            "a {what} of {} failed with {error:#}",
            device.display()
        );
    }
    Ok(())
}

fn image(path: &Path) -> Result<Vec<u8>> {
    read_direct(path, 0, SIZE_BYTES).with_context(|| format!("read {}", path.display()))
}

/// Every problem of a group, in one line each.
pub(super) fn words(group: &GroupStatus) -> String {
    let problems = group.problems.iter();
    let line = |problem: &blkrep_api::Problem| {
        format!(
            "{:?}: {}; {}; {}",
            problem.level, problem.what, problem.meaning, problem.action
        )
    };
    problems.map(line).collect::<Vec<_>>().join("\n")
}

/// The command that a group's problems tell to run, beginning with these words.
pub(super) fn told(group: &GroupStatus, begins: &str) -> Result<String> {
    let mut actions = group.problems.iter().map(|problem| &problem.action);
    let found = actions.find_map(|action| action.find(begins).map(|at| &action[at..]));
    let found =
        found.with_context(|| format!("nobody is told `{begins}…`, but:\n{}", words(group)))?;
    let command = found.split([';', '\n']).next().unwrap_or(found);
    let command = command.split(", ").next().unwrap_or(command);
    Ok(command.trim().to_owned())
}

impl Scene {
    /// A mirrored pair with something written to both volumes, all quiet. `name` tells scenes of one body apart.
    pub(super) fn new(context: &Context, name: &str) -> Result<Self> {
        println!("scene {name}");
        let disk = |end: &str| Memory::new(&format!("{name}-{end}"), SIZE_MIB, 512);
        let disks = [disk("b1")?, disk("b2")?, disk("r1")?, disk("r2")?];
        // The source's disks can be made slow later.
        let map = |disk: &Memory, end: &str| {
            Mapped::new(&format!("{name}-m{end}"), disk.path(), Behaviour::Plain)
        };
        let mapped = vec![map(&disks[0], "1")?, map(&disks[1], "2")?];
        let volumes = vec![
            Placed::new("one", &mapped[0].path(), disks[2].path()),
            Placed::new("two", &mapped[1].path(), disks[3].path()),
        ];
        let mut plan = Plan::new(context, volumes);
        // The logs of a body's scenes are all in memory at its end.
        plan.config = plan.config.replace("log-memory = '64MiB'", LOG_MEMORY);
        plan.dir = context.dir.join(name);
        plan.source_state = plan.dir.join("source-state");
        plan.target_state = plan.dir.join("target-state");
        let mut pair = Pair::start(plan)?;
        let seed = name
            .bytes()
            .fold(7, |seed, byte| seed << 5 ^ u64::from(byte));
        let mut random = Random::new(seed);
        scribble(pair.devices(), &mut random)?;
        pair.connect()?;
        let mut scene = Self {
            pair,
            random,
            mapped,
            _disks: disks,
        };
        scene.write_at_source()?;
        scene.pair.until_quiet(QUIET_LIMIT)?;
        scene.pair.images_equal()?;
        Ok(scene)
    }

    /// From now on each write to the source's disks takes so long.
    pub(super) fn slow_backings(&self, delay: Duration) -> Result<()> {
        let mut mapped = self.mapped.iter();
        mapped.try_for_each(|mapped| mapped.behave(Behaviour::DelayWrites(delay)))
    }

    /// The first source's application writes.
    pub(super) fn write_at_source(&mut self) -> Result<()> {
        scribble(self.pair.devices(), &mut self.random)
    }

    /// The promoted target's application writes.
    pub(super) fn write_at_target(&mut self) -> Result<()> {
        let devices = self.promoted_devices()?;
        scribble(&devices, &mut self.random)
    }

    /// The devices of the promoted target.
    pub(super) fn promoted_devices(&mut self) -> Result<Vec<PathBuf>> {
        let group = self.pair.target_group()?;
        ensure!(group.role == Role::Promoted, "the target is {}", group.role);
        let served = group.volumes.iter();
        Ok(served.map(|volume| PathBuf::from(&volume.device)).collect())
    }

    /// What is on all disks.
    pub(super) fn images(&self) -> Result<Images> {
        let volumes = &self.pair.plan.volumes;
        let (backings, replicas) = volumes
            .iter()
            .map(|volume| Ok((image(&volume.backing)?, image(&volume.replica)?)))
            .collect::<Result<_>>()?;
        Ok(Images { backings, replicas })
    }

    /// The source's host is lost: the daemon, and the devices with the kernel that held them.
    pub(super) fn lose_source(&mut self) -> Result<()> {
        self.pair.source.kill()?;
        let names: Vec<_> = self
            .pair
            .plan
            .volumes
            .iter()
            .map(|v| v.name.clone())
            .collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        self.pair.source.forced_detach(&names)
    }

    /// The target is promoted as soon as it misses its source, and nobody has to force it.
    pub(super) fn promote(&mut self) -> Result<()> {
        wait_for("the target to miss its source", NOTICE_LIMIT, || {
            let target = self.pair.target_group()?.target;
            Ok(target.is_some_and(|target| !target.connected))
        })?;
        let line = format!("promote {} --frontend ublk", self.pair.plan.group);
        self.pair.target.ctl(&line)?;
        self.promoted_devices().map(drop)
    }

    /// Waits until the source has heard of the newer generation; its devices then fail, and both sides are left alone a while.
    pub(super) fn source_is_fenced(&mut self) -> Result<()> {
        let mut last = None;
        let waited = wait_for(
            "the source to hear of the newer generation",
            NOTICE_LIMIT,
            || {
                let group = self.pair.source_group()?;
                let fenced =
                    |volume: &blkrep_api::VolumeStatus| volume.state == VolumeState::Fenced;
                let done = group.volumes.iter().all(fenced);
                last = Some(group);
                Ok(done)
            },
        );
        waited.with_context(|| format!("{last:?}"))?;
        std::thread::sleep(ALONE);
        let group = self.pair.source_group()?;
        ensure!(
            group.role == Role::Source,
            "it became {} by itself",
            group.role
        );
        for volume in &group.volumes {
            fails(Path::new(&volume.device))?;
        }
        Ok(())
    }

    /// The command that the old source says is to be run at the newer side, with its address put in.
    pub(super) fn what_the_source_says(&mut self) -> Result<String> {
        let group = self.pair.source_group()?;
        println!("the old source says:\n{}", words(&group));
        let command = told(&group, "blkctl connect ")?;
        ensure!(
            command.contains("--mirror checksum --yes"),
            "the old source says: {command}"
        );
        Ok(command.replace(OWN_ADDRESS, SOURCE_ADDRESS))
    }

    /// The newer side names the same way out.
    pub(super) fn the_target_says_so_too(&mut self) -> Result<()> {
        let group = self.pair.target_group()?;
        println!("the newer side says:\n{}", words(&group));
        let begins = format!("blkctl connect {}", self.pair.plan.group);
        let command = told(&group, &begins)?;
        ensure!(
            command.contains("--mirror checksum --yes"),
            "the newer side says: {command}; it has logged:\n{}",
            self.pair.target.log()?
        );
        Ok(())
    }

    /// Runs a whole command line, as somebody said it, at the newer side.
    pub(super) fn obey_at_target(&mut self, command: &str) -> Result<()> {
        let line = command.strip_prefix("blkctl ").context("no command")?;
        println!("obeyed: {line}");
        self.pair.target.ctl_within(QUIET_LIMIT, line).map(drop)
    }

    /// The old source follows the newer side in the end, with exactly the newer side's data.
    pub(super) fn old_source_follows(&mut self, newer: &[Vec<u8>]) -> Result<LinkStatus> {
        let group = self.pair.plan.group.clone();
        let link = follows(&mut self.pair.target, &mut self.pair.source, &group)?;
        let now = self.images()?;
        ensure!(now.replicas == newer, "the newer side's data has changed");
        ensure!(now.backings == newer, "the old source has other data");
        Ok(link)
    }

    /// The order of a stop; devices of the promoted side go with its group.
    pub(super) fn end(mut self) -> Result<()> {
        self.pair.source.is_well()?;
        self.pair.target.is_well()?;
        for node in [&mut self.pair.target, &mut self.pair.source] {
            let groups = node.status()?.groups;
            let volumes = groups.iter().filter(|group| group.role != Role::Target);
            for volume in volumes.flat_map(|group| &group.volumes) {
                node.detach(volume.name.as_str())?;
            }
            node.stop()?;
        }
        Ok(())
    }
}

/// Waits until `target` holds all that `source` has, durably and in its place.
pub(super) fn follows(source: &mut Node, target: &mut Node, group: &str) -> Result<LinkStatus> {
    let mut last = None;
    let waited = wait_for("the old source to follow", QUIET_LIMIT, || {
        std::thread::sleep(Duration::from_millis(100));
        let link = source.group(group)?.links.into_iter().next();
        let link = link.context("the newer side has no link")?;
        let receiving = target.group(group)?;
        let applied = receiving.role == Role::Target
            && receiving.target.as_ref().is_some_and(|target| {
                target.data_state == DataState::Ok && target.journal_bytes.get() == 0
            });
        let quiet = is_quiet(&link) && applied;
        last = Some((link, receiving));
        Ok(quiet)
    });
    waited.with_context(|| format!("{last:?}"))?;
    Ok(last.context("nobody looked")?.0)
}

/// What the way back cost.
pub(super) fn shown(link: &LinkStatus) -> String {
    format!(
        "{} of {} travelled back",
        link.mirror.bytes_sent,
        2 * SIZE_BYTES
    )
}
