//! The last acts: the source is lost, the target takes over, its image is judged, all is removed.
//!
//! Owns what is done in each. A scene enters and is changed; figures leave.

use super::acts::{millis, wrote};
use super::daemon::Daemon;
use super::figures::{Checked, CleanedUp, GoneOn, Takeover};
use super::load::{Pace, Record};
use super::scene::Scene;
use crate::left_behind;
use anyhow::{Context as _, ensure};
use blkrep_api::{
    ApiError, CommandReply, DemoteRequest, DetachRequest, DisconnectReply, DisconnectRequest,
    ErrorCode, ForgetRequest, FrontendKind, PromoteRequest, Role, route,
};
use blkrep_order::{Judgement, Keep, SECTOR_BYTES, Verdict};
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Work before the source is lost, and after the target took over.
const WORK: Duration = Duration::from_secs(1);
/// A dead source is noticed by its closed connection, or after the heartbeat time-out of 5 s.
const NOTICE_LIMIT: Duration = Duration::from_secs(30);
const SERVED_LIMIT: Duration = Duration::from_secs(60);
/// A device counts as open for a moment after its last user has gone.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);

/// The source is lost for good in the middle of the work, and the target is promoted.
pub(crate) fn takeover(scene: &mut Scene<'_>, device: &str) -> anyhow::Result<(String, Takeover)> {
    let generation = scene.source_group()?.generation;
    let load = scene.load(device, Pace::Steady, WORK * 10)?;
    scene.interrupt.sleep(WORK)?;
    ensure!(!load.is_finished(), "the load ended before the kill");
    let killed = Instant::now();
    scene.source.kill()?;
    if scene.frontend == FrontendKind::Ublk {
        // A device that waits for a successor which never comes; on a lost host it is lost as well.
        remove_left_behind(scene)?;
    }
    promote(scene)?;
    let device = scene.served_by(&scene.target, SERVED_LIMIT)?;
    let away_ms = millis(killed);
    let written = load.end()?;
    let group = scene.target_group()?;
    scene.show.tell(&format!(
        "{away_ms} ms after its end the target serves {device}"
    ));
    let frontend = group.volumes.first().and_then(|volume| volume.frontend);
    let figures = Takeover {
        away_ms,
        frontend: frontend.unwrap_or(FrontendKind::Auto),
        device: device.clone(),
        promoted: group.role == Role::Promoted,
        new_generation: group.generation != generation,
        written,
    };
    Ok((device, figures))
}

/// The application goes on with the promoted volume.
pub(crate) fn go_on(scene: &Scene<'_>, device: &str) -> anyhow::Result<GoneOn> {
    let mut record = Record::new(scene.dir.path().join("record-after"), !0);
    let load = record.load(device, Pace::Steady, WORK)?;
    scene
        .interrupt
        .wait("writing to the promoted volume", WORK * 60, || {
            Ok(load.is_finished())
        })?;
    let written = load.end()?;
    scene.show.tell(&wrote(&written));
    Ok(GoneOn { written })
}

/// Promotes the target, as soon as it has noticed that the source is gone.
fn promote(scene: &Scene<'_>) -> anyhow::Result<()> {
    let request = PromoteRequest {
        group: scene.group.clone(),
        force: false,
        inconsistent: false,
        frontend: Some(scene.frontend),
    };
    scene
        .interrupt
        .wait("noticing that the source is gone", NOTICE_LIMIT, || {
            let promoted: anyhow::Result<CommandReply> =
                scene.target.post(route::PROMOTE, &request);
            match promoted {
                Ok(_) => Ok(true),
                Err(error) if code(&error) == Some(ErrorCode::SourceAlive) => Ok(false),
                Err(error) => Err(error),
            }
        })
}

fn code(error: &anyhow::Error) -> Option<ErrorCode> {
    error.downcast_ref::<ApiError>().map(|error| error.code)
}

fn remove_left_behind(scene: &Scene<'_>) -> anyhow::Result<()> {
    let done = Command::new(left_behind::program())
        .arg("--remove-left-behind")
        .arg(scene.volume.as_str())
        .output()
        .context("remove the device of a lost daemon")?;
    let why = String::from_utf8_lossy(&done.stderr);
    ensure!(
        done.status.success(),
        "remove the device of a lost daemon: {}",
        why.trim()
    );
    Ok(())
}

/// Judges the promoted image by the record of everything the application did, and makes sure that
/// the judge is awake.
pub(crate) fn check(scene: &Scene<'_>) -> anyhow::Result<Checked> {
    let judge = |image: &Path| {
        let (record, image) = (scene.record.path(), [image.to_owned()]);
        let verdict =
            blkrep_order::check_files(record, &image, &[], Judgement::Replica, Keep::Nothing);
        verdict.context("judge the image")
    };
    let verdict = judge(&scene.replica())?;
    let forged = forgery(scene)?;
    let forgery_found = !judge(&forged)?.legal;
    fs::remove_file(&forged).context("remove the forged image")?;
    let Verdict {
        legal,
        operations,
        completed,
        held,
        absent,
        findings,
        ..
    } = verdict;
    let word = if legal { "is" } else { "is NOT" };
    scene.show.tell(&format!(
        "its image {word} what the first {held} of {operations} operations leave; {absent} completed \
         ones were lost with the source, as replication was asynchronous"
    ));
    let findings = findings
        .iter()
        .map(|finding| format!("{}: {}", finding.kind, finding.detail));
    Ok(Checked {
        legal,
        operations: operations as u64,
        completed: completed as u64,
        held: held as u64,
        lost: absent as u64,
        forgery_found,
        findings: findings.collect(),
    })
}

/// A copy of the promoted image with one sector as if it had never been written.
fn forgery(scene: &Scene<'_>) -> anyhow::Result<PathBuf> {
    let forged = scene.dir.path().join("forged");
    fs::copy(scene.replica(), &forged).context("copy the image")?;
    let file = File::options().write(true).open(&forged);
    let middle = scene.size_bytes / 2;
    let written = file.and_then(|file| file.write_all_at(&[0; SECTOR_BYTES], middle));
    written.context("forge the image")?;
    Ok(forged)
}

/// Takes everything back, as an operator would; what cannot be taken back is named.
pub(crate) fn clean_up(mut scene: Scene<'_>, keep: bool) -> CleanedUp {
    let mut left = Vec::new();
    let mut note = |what: &str, result: anyhow::Result<()>| {
        if let Err(error) = result {
            left.push(format!("{what}: {error:#}"));
        }
    };
    if scene.target.runs() {
        note("the target's volume", end_target(&scene));
    }
    if !scene.source.runs() {
        // A successor takes back what a killed daemon leaves: mounts, loop devices, shared memory.
        // It need not be waited for any longer than a daemon's start takes.
        let fresh = super::interrupt::Interrupt::default();
        note("the source", scene.source.launch(&fresh));
    }
    if scene.source.runs() {
        note("the source's volume", end_source(&scene));
    }
    let stopped = [scene.source.stop(), scene.target.stop()];
    let dir = scene.dir.path().to_owned();
    let Scene {
        dir: own,
        network,
        source,
        target,
        ..
    } = scene;
    drop((network, source, target));
    let mounted = mounts_below(&dir);
    for mount in &mounted {
        left.push(format!("{} is still mounted", mount.display()));
    }
    // Removing a directory through a mount would remove what is mounted.
    let kept = if keep || !mounted.is_empty() {
        Some(own.keep().display().to_string())
    } else {
        if let Err(error) = own.close() {
            left.push(format!("{}: {error}", dir.display()));
        }
        None
    };
    CleanedUp {
        stopped_in_order: stopped.iter().all(|orderly| *orderly),
        kept,
        left,
    }
}

fn end_target(scene: &Scene<'_>) -> anyhow::Result<()> {
    let groups = scene.target.status()?.groups;
    let promoted = groups
        .iter()
        .any(|group| group.name == scene.group && group.role == Role::Promoted);
    if !promoted {
        // A replica keeps nothing outside its daemon's directory.
        return Ok(());
    }
    let demote = DemoteRequest {
        group: scene.group.clone(),
    };
    retry_while_open(|| scene.target.post(route::DEMOTE, &demote))?;
    forget(scene, &scene.target)
}

/// The write log is shared memory: it goes only if its daemon is told to forget it.
fn forget(scene: &Scene<'_>, daemon: &Daemon) -> anyhow::Result<()> {
    let group = scene.group.clone();
    let forgotten: anyhow::Result<CommandReply> =
        daemon.post(route::FORGET, &ForgetRequest { group });
    match forgotten {
        Ok(_) => Ok(()),
        // A group that has nothing left is forgotten with its last volume.
        Err(error) if code(&error) == Some(ErrorCode::NoSuchGroup) => Ok(()),
        Err(error) => Err(error),
    }
}

fn end_source(scene: &Scene<'_>) -> anyhow::Result<()> {
    let groups = scene.source.status()?.groups;
    let Some(group) = groups.iter().find(|group| group.name == scene.group) else {
        return Ok(());
    };
    let volume = scene.volume.clone();
    let detach = DetachRequest {
        volume,
        force: true,
    };
    let disconnect = DisconnectRequest {
        group: scene.group.clone(),
        link: None,
        forget: true,
    };
    if !group.links.is_empty() {
        let _: DisconnectReply = scene.source.post(route::DISCONNECT, &disconnect)?;
    }
    let _: CommandReply = scene.source.post(route::DETACH, &detach)?;
    forget(scene, &scene.source)
}

fn retry_while_open(
    mut command: impl FnMut() -> anyhow::Result<CommandReply>,
) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        match command() {
            Ok(_) => return Ok(()),
            Err(error)
                if code(&error) == Some(ErrorCode::DeviceOpen) && began.elapsed() < CLOSE_LIMIT =>
            {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(error) => return Err(error),
        }
    }
}

/// Mount points below a directory; the kernel writes a space as `\040`, and ours have none.
fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    points
        .map(PathBuf::from)
        .filter(|point| point.starts_with(dir))
        .collect()
}
