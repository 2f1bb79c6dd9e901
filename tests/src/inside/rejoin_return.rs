//! The old source comes back: to a newer side that wrote nothing, to one that wrote as it did itself, and to one that dies on the
//! way back.

use super::Context;
use super::rejoin::{NOTICE_LIMIT, Scene, follows, shown, words};
use super::shell::wait_for;
use anyhow::{Result, ensure};
use blkrep_api::DataState;
use std::time::Duration;

/// What a write to the old source's disks takes while it is overwritten: all of them together some seconds.
const SLOW: Duration = Duration::from_millis(500);

pub(super) fn nothing_written(context: &Context) -> Result<String> {
    let mut scene = Scene::new(context, "quiet")?;
    let group = scene.pair.plan.group.clone();
    // A source that is well is no reason to promote.
    let line = format!("promote {group} --frontend ublk");
    scene.pair.target.refuses(&line, &["source-alive"])?;
    scene.lose_source()?;
    scene.promote()?;
    let before = scene.images()?;
    scene.pair.source.restart()?;
    scene.source_is_fenced()?;
    ensure!(scene.images()? == before, "something was overwritten");
    let command = scene.what_the_source_says()?;
    scene.the_target_says_so_too()?;
    scene.obey_at_target(&command)?;
    let link = scene.old_source_follows(&before.replicas)?;
    ensure!(
        link.mirror.bytes_sent.get() == 0,
        "nothing differed, and yet: {link:?}"
    );
    // It is a target like any other now.
    scene.write_at_target()?;
    let newer = follows(&mut scene.pair.target, &mut scene.pair.source, &group)
        .and_then(|_| scene.images())?;
    ensure!(newer.replicas != before.replicas, "nothing was written");
    ensure!(newer.replicas == newer.backings, "it does not follow");
    scene.end()?;
    Ok(shown(&link))
}

pub(super) fn both_wrote(context: &Context) -> Result<String> {
    let mut scene = Scene::new(context, "both")?;
    scene.pair.cut()?;
    scene.promote()?;
    scene.write_at_source()?;
    scene.write_at_target()?;
    let before = scene.images()?;
    ensure!(before.backings != before.replicas, "nothing differs");
    scene.pair.heal()?;
    scene.source_is_fenced()?;
    ensure!(scene.images()? == before, "something was overwritten");
    // It stays so over a restart, and before its first word with anybody.
    scene.pair.cut()?;
    scene.pair.source.kill()?;
    scene.pair.source.restart()?;
    scene.source_is_fenced()?;
    scene.pair.heal()?;
    ensure!(scene.images()? == before, "something was overwritten");
    let command = scene.what_the_source_says()?;
    scene.the_target_says_so_too()?;
    scene.obey_at_target(&command)?;
    let link = scene.old_source_follows(&before.replicas)?;
    ensure!(link.mirror.bytes_sent.get() > 0, "{link:?}");
    scene.end()?;
    Ok(shown(&link))
}

/// The promoted side dies in the middle of the way back.
pub(super) fn newer_side_fails(context: &Context) -> Result<String> {
    let mut scene = Scene::new(context, "dies")?;
    let group = scene.pair.plan.group.clone();
    scene.lose_source()?;
    scene.promote()?;
    for _ in 0..8 {
        scene.write_at_target()?;
    }
    let before = scene.images()?;
    scene.pair.source.restart()?;
    scene.source_is_fenced()?;
    let command = scene.what_the_source_says()?;
    // So that there is a middle.
    scene.slow_backings(SLOW)?;
    scene.obey_at_target(&command)?;
    wait_for("the old source to be overwritten", NOTICE_LIMIT, || {
        let target = scene.pair.source_group()?.target;
        Ok(target.is_some_and(|target| target.data_state != DataState::Ok))
    })?;
    scene.pair.target.kill()?;
    wait_for(
        "the old source to miss the newer side",
        NOTICE_LIMIT,
        || {
            let target = scene.pair.source_group()?.target;
            Ok(target.is_some_and(|target| !target.connected))
        },
    )?;
    let line = format!("promote {group} --frontend ublk");
    scene.pair.source.refuses(&line, &["replica-not-ok"])?;
    println!("half way:\n{}", words(&scene.pair.source_group()?));
    scene.pair.target.restart()?;
    let link = scene.old_source_follows(&before.replicas)?;
    scene.end()?;
    Ok(shown(&link))
}
