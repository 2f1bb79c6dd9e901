//! A source whose records are gone: what it serves belongs to a generation that the target has never heard of.

use super::Context;
use super::pair::{QUIET_LIMIT, SOURCE_ADDRESS, attach_all};
use super::rejoin::{ALONE, Scene, shown};
use super::shell::run;
use anyhow::{Context as _, Result, ensure};

/// The state directory is lost and the disks are not: the operator attaches them anew, in a group of the same name.
fn without_records(scene: &mut Scene) -> Result<()> {
    let plan = scene.pair.plan.clone();
    run(&format!("rm -rf {}", plan.source_state.display()))?;
    scene.pair.source.restart()?;
    let devices = attach_all(&mut scene.pair.source, &plan)?;
    ensure!(
        devices == scene.pair.devices(),
        "other devices: {devices:?}"
    );
    Ok(())
}

/// Nothing was promoted. Whoever is connected first must not overwrite the replica unasked; told so, the source does.
fn of_a_replica(context: &Context) -> Result<String> {
    let mut scene = Scene::new(context, "lost")?;
    scene.lose_source()?;
    without_records(&mut scene)?;
    scene.write_at_source()?;
    let before = scene.images()?;
    let connect = scene.pair.connect_words();
    let refused = scene.pair.source.refusal(&connect)?.to_string();
    std::thread::sleep(ALONE);
    ensure!(scene.images()? == before, "something was overwritten");
    ensure!(
        refused.contains("--mirror checksum --yes"),
        "the refusal does not say what to do: {refused}"
    );
    let line = format!("{connect} --mirror checksum --yes");
    scene.pair.source.ctl_within(QUIET_LIMIT, &line)?;
    let link = scene.pair.until_quiet(QUIET_LIMIT)?;
    let after = scene.images()?;
    ensure!(after.backings == before.backings, "the source was changed");
    ensure!(after.replicas == before.backings, "they differ still");
    scene.end()?;
    Ok(shown(&link))
}

/// The target was promoted, and what comes back is a stranger.
fn of_a_promoted(context: &Context) -> Result<String> {
    let mut scene = Scene::new(context, "stranger")?;
    let group = scene.pair.plan.group.clone();
    scene.lose_source()?;
    scene.promote()?;
    scene.write_at_target()?;
    without_records(&mut scene)?;
    scene.write_at_source()?;
    let before = scene.images()?;
    // Neither gives way to the other while it serves, whoever asks and whatever is allowed.
    let connect = scene.pair.connect_words();
    let back = format!("connect {group} --to {SOURCE_ADDRESS}");
    let allowed = "--mirror checksum --yes";
    let mut said = vec![
        scene.pair.source.refusal(&connect)?,
        scene.pair.source.refusal(&format!("{connect} {allowed}"))?,
    ];
    scene.the_target_says_so_too()?;
    said.push(scene.pair.target.refusal(&format!("{back} {allowed}"))?);
    std::thread::sleep(ALONE);
    ensure!(scene.images()? == before, "something was overwritten");
    for refusal in &said {
        let action = refusal["action"].to_string();
        let way_out = ["blkctl detach", "blkctl forget", "--map", allowed];
        ensure!(
            way_out.iter().all(|words| action.contains(words)),
            "the refusal does not say what to do: {refusal}"
        );
    }
    // Exactly that, the promoted side being right.
    let volumes = scene.pair.plan.volumes.clone();
    let mut command = back;
    for volume in &volumes {
        scene.pair.source.detach(&volume.name)?;
        command += &format!(" --map {}={}", volume.name, volume.backing.display());
    }
    scene.pair.source.ctl(&format!("forget {group} --yes"))?;
    scene.pair.target.ctl(&format!("{command} {allowed}"))?;
    let link = scene.old_source_follows(&before.replicas)?;
    scene.end()?;
    Ok(shown(&link))
}

/// Both.
pub(super) fn unknown_generation(context: &Context) -> Result<String> {
    Ok(format!(
        "replica: {}; promoted: {}",
        of_a_replica(context).context("nobody promoted")?,
        of_a_promoted(context).context("the target promoted")?,
    ))
}
