//! A target whose disk and records are older than they were: somebody put a backup back.

use super::Context;
use super::disk::{read_direct, write_direct};
use super::pair::QUIET_LIMIT;
use super::rejoin::{Images, SIZE_BYTES, Scene, shown, told, words};
use super::shell::run;
use anyhow::{Context as _, Result, ensure};
use blkrep_api::{EventId, EventPage, Role};
use std::path::PathBuf;

/// A copy of everything the target's host has: records, journal, images.
#[derive(Debug)]
struct Backup {
    state: PathBuf,
    images: Vec<Vec<u8>>,
}

impl Backup {
    /// Taken while the target is stopped in order.
    fn take(scene: &mut Scene) -> Result<Self> {
        scene.pair.target.stop()?;
        let plan = &scene.pair.plan;
        let state = plan.dir.join("backup");
        run(&format!(
            "cp -a {} {}",
            plan.target_state.display(),
            state.display()
        ))?;
        let volumes = plan.volumes.iter();
        let images = volumes
            .map(|volume| read_direct(&volume.replica, 0, SIZE_BYTES))
            .collect::<Result<_>>()?;
        scene.pair.target.restart()?;
        Ok(Self { state, images })
    }

    /// Put back while no daemon runs.
    fn put_back(&self, scene: &Scene) -> Result<()> {
        let plan = &scene.pair.plan;
        let state = plan.target_state.display();
        run(&format!("rm -rf {state}"))?;
        run(&format!("cp -a {} {state}", self.state.display()))?;
        for (volume, image) in plan.volumes.iter().zip(&self.images) {
            let pieces = image.chunks(1 << 20).zip((0_u64..).step_by(1 << 20));
            for (piece, offset) in pieces {
                write_direct(&volume.replica, offset, piece)?;
            }
        }
        Ok(())
    }
}

/// A mirrored pair with a backup of its target, and more written since.
fn with_backup(context: &Context, name: &str) -> Result<(Scene, Backup)> {
    let mut scene = Scene::new(context, name)?;
    let backup = Backup::take(&mut scene)?;
    scene.pair.until_quiet(QUIET_LIMIT)?;
    scene.write_at_source()?;
    scene.pair.until_quiet(QUIET_LIMIT)?;
    scene.pair.images_equal()?;
    Ok((scene, backup))
}

fn events(scene: &mut Scene, id: EventId) -> Result<u64> {
    let line = format!("events --json --limit 100000 --id {id}");
    let page: EventPage = serde_json::from_str(&scene.pair.source.ctl(&line)?)?;
    Ok(page.events.len() as u64)
}

fn same_backings(before: &Images, after: &Images) -> Result<()> {
    ensure!(
        before.backings == after.backings,
        "the source was overwritten by a backup"
    );
    Ok(())
}

/// Nobody was promoted: the source is right, and the target is compared with it.
pub(super) fn of_a_replica(context: &Context) -> Result<String> {
    let (mut scene, backup) = with_backup(context, "older")?;
    let told_before = events(&mut scene, EventId::TargetRestored)?;
    scene.pair.target.kill()?;
    backup.put_back(&scene)?;
    let before = scene.images()?;
    ensure!(before.backings != before.replicas, "nothing differs");
    scene.pair.target.restart()?;
    let link = scene.pair.until_quiet(QUIET_LIMIT)?;
    let after = scene.images()?;
    same_backings(&before, &after)?;
    ensure!(after.backings == after.replicas, "they differ still");
    println!("{}", scene.pair.tally()?);
    let told_since = events(&mut scene, EventId::TargetRestored)? - told_before;
    ensure!(
        told_since == 1,
        "told {told_since} times that the target was restored"
    );
    scene.end()?;
    Ok(shown(&link))
}

/// The backup is promoted, as the only copy at hand; then the source returns with newer data of an older generation.
pub(super) fn then_promoted(context: &Context) -> Result<String> {
    let (mut scene, backup) = with_backup(context, "late")?;
    scene.pair.target.kill()?;
    scene.lose_source()?;
    backup.put_back(&scene)?;
    scene.pair.target.restart()?;
    scene.promote()?;
    scene.write_at_target()?;
    let before = scene.images()?;
    scene.pair.source.restart()?;
    scene.source_is_fenced()?;
    ensure!(scene.images()? == before, "something was overwritten");
    let command = scene.what_the_source_says()?;
    scene.the_target_says_so_too()?;
    scene.obey_at_target(&command)?;
    let link = scene.old_source_follows(&before.replicas)?;
    ensure!(link.mirror.bytes_sent.get() > 0, "{link:?}");
    scene.end()?;
    Ok(shown(&link))
}

/// The target was promoted and forgets it, by a backup from before. The source has heard of the promotion and stays fenced.
pub(super) fn forgets_its_promotion(context: &Context) -> Result<String> {
    let (mut scene, backup) = with_backup(context, "forgets")?;
    let group = scene.pair.plan.group.clone();
    scene.lose_source()?;
    scene.promote()?;
    scene.write_at_target()?;
    scene.pair.source.restart()?;
    scene.source_is_fenced()?;
    // Both hosts go down, and the target's loses its devices with its state.
    scene.pair.source.stop()?;
    scene.pair.target.kill()?;
    scene.pair.target.remove_left_behind(&["one", "two"])?;
    backup.put_back(&scene)?;
    let before = scene.images()?;
    scene.pair.target.restart()?;
    let target = scene.pair.target_group()?;
    ensure!(target.role == Role::Target, "it is {}", target.role);
    scene.pair.source.restart()?;
    scene.source_is_fenced()?;
    ensure!(scene.images()? == before, "something was overwritten");
    let target = scene.pair.target_group()?;
    println!("the restored target says:\n{}", words(&target));
    let promote = told(&target, &format!("blkctl promote {group}"))?;
    scene.obey_at_target(&format!("{promote} --frontend ublk"))?;
    let command = scene.what_the_source_says()?;
    scene.obey_at_target(&command)?;
    let link = scene.old_source_follows(&before.replicas)?;
    ensure!(link.mirror.bytes_sent.get() > 0, "{link:?}");
    scene.end()?;
    Ok(shown(&link))
}

/// All of them, one after another.
pub(super) fn restored_target(context: &Context) -> Result<String> {
    Ok(format!(
        "replica: {}; promoted: {}; forgotten: {}",
        of_a_replica(context).context("restored, nobody promoted")?,
        then_promoted(context).context("restored, then promoted")?,
        forgets_its_promotion(context).context("promoted, then restored")?,
    ))
}
