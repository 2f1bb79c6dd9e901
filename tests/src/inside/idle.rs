//! What a source compares after it lost power: nothing if it was idle, and only the regions under way if it was not.
//!
//! Owns two losses of the source's power, one after a minute of rest and one under load. What the daemon says it found open, and
//! what its mirrors looked at, is held against the regions of the intent map.

use super::Context;
use super::cuts_pair::{fill, take_power};
use super::cuts_pair_disk::{Layout, PowerDisk};
use super::disk::Memory;
use super::pair::{Pair, Placed, Plan, QUIET_LIMIT};
use super::power::{Load, Loader};
use super::shell::wait_for;
use crate::order::Random;
use anyhow::{Context as _, Result, ensure};
use blkrep_api::{EventId, EventPage};
use nix::sys::signal::Signal;
use std::path::Path;
use std::time::Duration;

/// MiB of each volume: six regions of the intent map.
const VOLUME_MIB: u64 = 24;
/// A region of the intent map (docs/format/source-maps.md).
const REGION_BYTES: u64 = 4 << 20;
/// The writers stay in the first two regions of each volume.
const SPAN: u64 = 6 << 20;
const OPEN_MAX: u64 = 2 * (SPAN.div_ceil(REGION_BYTES));
/// An idle volume's intent map is empty within 30 s (`volume.intent-idle-time`).
const IDLE: Duration = Duration::from_secs(60);
/// The record of a load that has written to all regions it ever writes to.
const RECORD_BYTES: usize = 12 << 10;
/// The record of a load that has only just begun: what it wrote is in regions that were opened a moment ago.
const FIRST_RECORD_BYTES: usize = 1 << 10;
const RECORD_LIMIT: Duration = Duration::from_secs(60);

/// What a start after a loss of power found and did.
#[derive(Debug)]
struct Return {
    /// Regions that were open.
    regions: u64,
    /// Bytes that were compared or sent, and those that were sent.
    looked_at: u64,
    sent: u64,
}

/// Takes the source's power, starts it again, and waits until both sides are equal.
fn lose_power(pair: &mut Pair, disk: &mut PowerDisk, loader: Option<Loader>) -> Result<Return> {
    let mark = if loader.is_some() { "load" } else { "idle" };
    pair.source.signal(Signal::SIGSTOP)?;
    disk.mark(mark)?;
    drop(loader);
    take_power(pair, disk, mark, &mut Random::new(4))?;
    pair.restart_source()?;
    let link = pair.until_quiet(QUIET_LIMIT)?;
    pair.images_equal()?;
    // An event of the engine is told a moment after it happened.
    std::thread::sleep(Duration::from_secs(1));
    let said = pair.source.ctl("events --json --limit 100000")?;
    let events = serde_json::from_str::<EventPage>(&said)?.events;
    let recovered = events
        .iter()
        .rfind(|event| event.name == EventId::DaemonRecovered)
        .context("the source does not say that it recovered")?;
    let text = &recovered.text;
    ensure!(text.contains("its log is lost"), "no loss of power: {text}");
    let words: Vec<&str> = text.split(' ').collect();
    let place = words.iter().position(|word| *word == "regions");
    let regions = place.and_then(|place| words.get(place.checked_sub(1)?)?.parse().ok());
    Ok(Return {
        regions: regions.with_context(|| format!("no count of regions: {text}"))?,
        looked_at: link.mirror.bytes_sent.get() + link.mirror.bytes_skipped.get(),
        sent: link.mirror.bytes_sent.get(),
    })
}

/// Starts the writers, and waits until they have done so much.
fn write_until(context: &Context, pair: &Pair, name: &str, bytes: usize) -> Result<Loader> {
    let load = Load {
        span: SPAN,
        max_bytes: 16384,
        percent: [3, 2, 2],
        pause_us: 3000,
    };
    let mut loader = Loader::start_with(context.dir.join(name), &load, pair.devices())?;
    wait_for("some writing", RECORD_LIMIT, || {
        loader.is_well()?;
        Ok(loader.recorded()? >= bytes)
    })?;
    Ok(loader)
}

pub(super) fn compares_nothing_after_power_loss(context: &Context) -> Result<String> {
    let layout = Layout {
        name: "src",
        parts: [("state", 20), ("one", VOLUME_MIB), ("two", VOLUME_MIB)],
        mount: Path::new("/mnt/src").to_owned(),
    };
    let mut disk = PowerDisk::new(&context.dir, layout)?;
    let replicas = [
        Memory::new("replica1", VOLUME_MIB, 512)?,
        Memory::new("replica2", VOLUME_MIB, 512)?,
    ];
    let placed = ["one", "two"].into_iter().zip(disk.layout.volumes());
    let placed = placed.zip(&replicas).map(|((name, backing), replica)| {
        fill(&backing, &mut Random::new(5))?;
        Ok(Placed::new(name, &backing, replica.path()))
    });
    let plan = Plan {
        source_state: disk.layout.mount.join("state"),
        ..Plan::new(context, placed.collect::<Result<_>>()?)
    };
    let mut pair = Pair::start(plan)?;
    pair.connect()?;
    write_until(context, &pair, "record-idle", RECORD_BYTES)?.finish()?;
    pair.until_quiet(QUIET_LIMIT)?;
    std::thread::sleep(IDLE);
    let idle = lose_power(&mut pair, &mut disk, None)?;
    // A mirror of nothing begins and ends: the new log knows none of the target's names.
    let nothing = (idle.regions, idle.looked_at);
    ensure!(nothing == (0, 0), "an idle source compares: {idle:?}");
    let loader = write_until(context, &pair, "record-load", FIRST_RECORD_BYTES)?;
    let load = lose_power(&mut pair, &mut disk, Some(loader))?;
    ensure!(
        (1..=OPEN_MAX).contains(&load.regions),
        "{SPAN} bytes of each volume were written to, {OPEN_MAX} regions: {load:?}"
    );
    ensure!(
        load.looked_at > 0 && load.looked_at <= load.regions * REGION_BYTES,
        "more than the open regions was compared: {load:?}"
    );
    pair.stop()?;
    let all = 2 * (VOLUME_MIB << 20) / REGION_BYTES;
    Ok(format!(
        "of {all} regions: after {} s of rest {} open, {} bytes compared; under load {} open, {} bytes compared, {} of them sent; equal both times",
        IDLE.as_secs(),
        idle.regions,
        idle.looked_at,
        load.regions,
        load.looked_at,
        load.sent
    ))
}
