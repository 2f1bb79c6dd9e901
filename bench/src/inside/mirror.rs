//! Full mirrors on disks with a limit.
//!
//! Owns the disks and their content. A limit enters, times leave beside what the disks themselves do in the same round.

use super::daemon::Pair;
use super::disks::{Limited, equal, scramble};
use super::fio::Load;
use super::stand::Stand;
use super::{Record, peers, turn};
use crate::message::{Message, MirrorSample};
use crate::plan::{Common, Contestant};
use anyhow::{Context, Result, ensure};
use blkrep_tests::inside::disk::bytes_of;
use blkrep_types::Mode;
use std::time::{Duration, Instant};

/// A mirror at a hundredth of the limit has failed.
const LIMIT: Duration = Duration::from_secs(300);
/// Between looks at a mirror: seldom enough not to be part of the load.
const LOOK: Duration = Duration::from_millis(50);

/// Waits for the end of a mirror that began at `started`; its seconds.
pub(super) fn ended(started: Instant, mut is_over: impl FnMut() -> Result<bool>) -> Result<f64> {
    while !is_over()? {
        ensure!(started.elapsed() < LIMIT, "waited {LIMIT:?} for the mirror");
        std::thread::sleep(LOOK);
    }
    Ok(started.elapsed().as_secs_f64())
}

pub(super) fn run(record: &mut Record, common: &Common, limit_mib: u32) -> Result<()> {
    for round in 0..common.rounds {
        for contestant in turn(&common.only, round) {
            record.progress(format!(
                "round {} of {}: full mirror, {}",
                round + 1,
                common.rounds,
                contestant.title()
            ))?;
            let done = one(record, common, contestant, round, limit_mib);
            match done {
                Ok(sample) => record.say(&Message::Mirror(sample))?,
                // Its disks may be busy for good: nothing measured after it could be trusted.
                Err(error) => {
                    let reason = format!("{error:#}");
                    return record.say(&Message::Failed { contestant, reason });
                }
            }
        }
    }
    Ok(())
}

fn one(
    record: &mut Record,
    common: &Common,
    contestant: Contestant,
    round: u32,
    limit_mib: u32,
) -> Result<MirrorSample> {
    let near = Limited::new("near", common.size_mib, limit_mib)?;
    let far = Limited::new("far", common.size_mib, limit_mib)?;
    scramble(near.path(), u64::from(round) + 1).context("fill the source's disk")?;
    scramble(far.path(), u64::from(round) + 1001).context("fill the target's disk")?;
    let sequential = |pattern: &str| {
        let options = format!(
            "--rw={pattern} --bs=1m --iodepth=8 --size={}m",
            common.size_mib
        );
        Load::raw(far.path(), &options, LIMIT).run()
    };
    let disk_write = sequential("write")?.bytes_per_second;
    let disk_read = sequential("read")?.bytes_per_second;
    let (bytes, seconds) = match contestant {
        Contestant::Async => {
            let mut pair = Pair::apart(common, Mode::Async, near.path(), far.path())?;
            say_settings(record, round, contestant, &pair)?;
            pair.connect_held()?;
            let started = Instant::now();
            pair.mirror()?;
            let seconds = ended(started, || pair.is_equal());
            let seconds = seconds.with_context(|| pair.describe())?;
            Box::new(pair).lower()?;
            (bytes_of(near.path())?, seconds)
        }
        _ => {
            let drbd = peers::Drbd::raise(contestant, near.path(), far.path())?;
            say_settings(record, round, contestant, &drbd)?;
            let seconds = drbd.mirror()?;
            let bytes = bytes_of(drbd.device())?;
            Box::new(drbd).lower()?;
            equal(near.path(), far.path(), bytes)?;
            (bytes, seconds)
        }
    };
    Ok(MirrorSample {
        round,
        contestant,
        bytes,
        seconds,
        disk_read,
        disk_write,
    })
}

fn say_settings(
    record: &mut Record,
    round: u32,
    contestant: Contestant,
    stand: &impl Stand,
) -> Result<()> {
    if round > 0 {
        return Ok(());
    }
    let text = stand.settings();
    record.say(&Message::Settings { contestant, text })
}
