//! A cut that the log does not hold: what a difference mirror may send, and that the replica stays good meanwhile.

use super::Context;
use super::pair::{Pair, Plan, QUIET_LIMIT};
use super::replicated::Disks;
use super::shell::{Running, command, spawn, wait_for};
use super::volume::FIO_LIMIT;
use crate::order::{History, Judgement, Keep, SECTOR_BYTES, check_files};
use anyhow::{Context as _, Result, ensure};
use blkrep_api::{EventPage, MirrorKind, ReplicationState};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Holds less than a second of the load.
const LOG_MEMORY: &str = "log-memory = '4MiB'";
/// Grain of the dirty maps: the setting's default.
const EXTENT_BYTES: u64 = 64 << 10;
/// Bytes of each volume that are written to, so that there is more to leave alone than to send.
const SPAN_BYTES: u64 = 16 << 20;
/// How long it goes on after the log has run over.
const BEYOND: Duration = Duration::from_secs(2);
const BEHIND_LIMIT: Duration = Duration::from_secs(120);
/// The writers run so long before the cut.
const BEFORE: Duration = Duration::from_secs(1);

/// Writers over both volumes.
fn writers(pair: &Pair, record: &Path, stop: &Path) -> Result<Running> {
    let mut line = format!(
        "blkrep-order write --record {} --seconds 600 --writers 4 --span {SPAN_BYTES} --max-bytes 65536 --pause-us 2000 \
         --host-survives --stop-file {}",
        record.display(),
        stop.display()
    );
    for device in pair.devices() {
        line += &format!(" --volume {}", device.display());
    }
    spawn(command(&line))
}

/// Lines of the record at an instant before which everything complete is durable on the target.
fn durable_lines(pair: &mut Pair, record: &Path) -> Result<u64> {
    let lines = fs::read(record)?
        .iter()
        .filter(|byte| **byte == b'\n')
        .count();
    let noted = Instant::now();
    wait_for("the target to have what was noted", QUIET_LIMIT, || {
        let passed = noted.elapsed().as_millis();
        let lag = pair.link()?.lag_ms.context("the lag is not known")?;
        Ok(u128::from(lag) + 50 < passed)
    })?;
    Ok(lines as u64)
}

/// Bytes of all extents with an operation that was not complete at that line.
fn extents_since(record: &Path, line: u64) -> Result<u64> {
    let history = History::parse(&fs::read(record)?)?;
    let per_extent = EXTENT_BYTES / SECTOR_BYTES as u64;
    let late = history.operations.iter().filter(|operation| {
        operation.count > 0 && operation.completed.is_none_or(|done| done > line)
    });
    let extents: BTreeSet<(u16, u64)> = late
        .flat_map(|operation| {
            let sectors = operation.sectors();
            (sectors.start / per_extent..=(sectors.end - 1) / per_extent)
                .map(|extent| (operation.volume, extent))
        })
        .collect();
    Ok(extents.len() as u64 * EXTENT_BYTES)
}

fn target_left_ok(pair: &mut Pair, after: u64) -> Result<usize> {
    let line = format!("events --json --after {after} --limit 1000 --id target-not-ok");
    let page: EventPage = serde_json::from_str(&pair.target.ctl(&line)?)?;
    Ok(page.events.len())
}

fn newest_event(pair: &mut Pair) -> Result<u64> {
    let page: EventPage = serde_json::from_str(&pair.target.ctl("events --json --limit 1")?)?;
    Ok(page.next)
}

pub(super) fn long_cut(context: &Context) -> Result<String> {
    let disks = Disks::new()?;
    let mut plan = Plan::new(context, disks.placed());
    plan.config = plan.config.replace("log-memory = '64MiB'", LOG_MEMORY);
    ensure!(plan.config.contains(LOG_MEMORY), "the log is not small");
    let mut pair = Pair::start(plan)?;
    pair.connect()?;
    let newest = newest_event(&mut pair)?;
    let (record, stop) = (context.dir.join("record"), context.dir.join("stop"));
    let load = writers(&pair, &record, &stop)?;
    std::thread::sleep(BEFORE);
    let line = durable_lines(&mut pair, &record)?;
    pair.cut()?;
    let cut = Instant::now();
    wait_for("the log to run over", BEHIND_LIMIT, || {
        Ok(pair.link()?.replication == ReplicationState::Behind)
    })?;
    std::thread::sleep(BEYOND);
    fs::write(&stop, "")?;
    load.succeed(FIO_LIMIT)?;
    let lasted = cut.elapsed();
    pair.heal()?;
    let link = pair.until_quiet(QUIET_LIMIT)?;
    let tally = pair.tally()?;
    let most = extents_since(&record, line)?;
    let sent = link.mirror.bytes_sent.get();
    let words = format!(
        "cut of {} ms: {most} bytes of extents written since and in flight, {sent} sent by the difference mirror; {tally}",
        lasted.as_millis()
    );
    println!("{words}");
    ensure!(
        tally.mirrors == 1 && link.mirror.kind == Some(MirrorKind::Difference),
        "another mirror than one of differences: {:?}; {words}",
        link.mirror.kind
    );
    ensure!(tally.behind > 0 && sent > 0, "the log held it: {words}");
    ensure!(
        tally.mirror_bytes <= most,
        "more was looked at than was written: {words}"
    );
    ensure!(
        target_left_ok(&mut pair, newest)? == 0,
        "the difference fits the journal, and the replica was not good for a time; {words}"
    );
    pair.images_equal()?;
    let volumes = pair.plan.volumes.iter();
    let replicas: Vec<PathBuf> = volumes.map(|volume| volume.replica.clone()).collect();
    let verdict = check_files(&record, &replicas, &[], Judgement::Replica, Keep::Completed)?;
    ensure!(verdict.legal, "{verdict}");
    pair.stop()?;
    Ok(words)
}
