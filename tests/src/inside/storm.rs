//! `kill -9` of the daemon again and again, under load.

use super::Context;
use super::disk::{Behaviour, Mapped, Memory};
use super::node::Node;
use super::shell::{command, spawn, wait_for};
use super::volume::{FIO_LIMIT, SIZE_MIB, equal, fio_verify, node};
use crate::order::{Judgement, Keep, Random, check_files};
use anyhow::{Context as _, Result, ensure};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What a storm has shown.
#[derive(Debug)]
struct Storm {
    kills: u32,
    longest_pause: Duration,
}

/// Kills and restarts, at random instants, `times` times.
fn kill_and_restart(node: &mut Node, times: u32, device: &Path) -> Result<Storm> {
    let mut random = Random::new(u64::from(times));
    let mut longest_pause = Duration::ZERO;
    for kill in 0..times {
        std::thread::sleep(Duration::from_millis(100 + random.below(700)));
        let started = Instant::now();
        node.kill()?;
        ensure!(
            device.exists(),
            "kill {kill} took {} away",
            device.display()
        );
        node.restart()
            .with_context(|| format!("restart after kill {kill}"))?;
        // Served again: a direct read comes back.
        wait_for("the device to serve", Duration::from_secs(40), || {
            let read = command(&format!(
                "dd if={} of=/dev/null bs=4096 count=1 iflag=direct",
                device.display()
            ));
            Ok(spawn(read)?
                .finish(Duration::from_secs(40))?
                .status
                .success())
        })?;
        longest_pause = longest_pause.max(started.elapsed());
    }
    Ok(Storm {
        kills: times,
        longest_pause,
    })
}

pub(super) fn killed_daemon_loses_nothing(context: &Context) -> Result<String> {
    let backings = [
        Memory::new("backing1", SIZE_MIB, 512)?,
        Memory::new("backing2", SIZE_MIB, 512)?,
    ];
    let storm = under_load(
        context,
        context.times(6, 50),
        backings.each_ref().map(|b| b.path().to_owned()),
        (16, "4k-4k"),
    )?;
    Ok(format!(
        "{} kills, longest pause {} ms",
        storm.kills,
        storm.longest_pause.as_millis()
    ))
}

pub(super) fn ghost_writes(context: &Context) -> Result<String> {
    let below = [
        Memory::new("below1", SIZE_MIB, 512)?,
        Memory::new("below2", SIZE_MIB, 512)?,
    ];
    let delay = Behaviour::DelayWrites(Duration::from_secs(2));
    let backings = [
        Mapped::new("ghost1", below[0].path(), delay)?,
        Mapped::new("ghost2", below[1].path(), delay)?,
    ];
    let storm = under_load(
        context,
        context.times(3, 10),
        backings.each_ref().map(Mapped::path),
        (1, "16k-64k"),
    )?;
    Ok(format!(
        "{} kills, longest pause {} ms",
        storm.kills,
        storm.longest_pause.as_millis()
    ))
}

/// fio verifies one volume, the order checker the other; nobody may see an error, and everything completed is there.
/// `pass` is the size in MiB and the blocks of the last pass: few, where a write takes seconds.
fn under_load(
    context: &Context,
    kills: u32,
    backings: [PathBuf; 2],
    pass: (u32, &str),
) -> Result<Storm> {
    let mut node = node(context)?;
    let one = node.attach("one", &backings[0], "--frontend ublk")?;
    let two = node.attach("two", &backings[1], "--frontend ublk")?;
    let record = context.dir.join("record");
    // Both loads outlast the storm, and are ended by us instead of a clock.
    let mut fio = spawn(command(&load(&one)))?;
    let line = format!(
        "blkrep-order write --volume {} --record {} --seconds 3600 --span 4194304 --max-bytes 16384 --zeroes 2 \
         --pause-us 4000 --stop-file /run/work/stop-order",
        two.display(),
        record.display()
    );
    let mut order = spawn(command(&line))?;
    let storm = kill_and_restart(&mut node, kills, &two)?;
    ensure!(
        fio.is_running()?,
        "fio gave up: {}",
        fio.finish(FIO_LIMIT)?.stderr
    );
    ensure!(
        order.is_running()?,
        "the order writer gave up: {}",
        order.stderr()?
    );
    std::fs::write("/run/work/stop-order", "")?;
    order.succeed(FIO_LIMIT)?;
    fio.kill()?;
    // It has read back what it wrote all along (verify_backlog); a pass without kills ends it.
    let verify = fio_verify(&one, pass.0, pass.1);
    spawn(command(&verify))?.succeed(FIO_LIMIT)?;
    node.is_well()?;
    equal(&one, &backings[0])?;
    equal(&two, &backings[1])?;
    node.detach("one")?;
    node.detach("two")?;
    node.stop()?;
    let verdict = check_files(
        &record,
        &[backings[1].clone()],
        &[],
        Judgement::Replica,
        Keep::Completed,
    )?;
    ensure!(verdict.legal, "{verdict}");
    Ok(storm)
}

/// Writes and reads back, block by block, while the storm lasts. As one process of threads, so that killing it ends all of it: a
/// job that outlived its parent once wrote over the next test's filesystem.
pub(super) fn load(device: &Path) -> String {
    format!(
        "fio --thread --name=storm --filename={} --ioengine=libaio --direct=1 --iodepth=32 --rw=randwrite --bs=4k --size=16m \
         --verify=crc32c --verify_fatal=1 --verify_backlog=64 --randrepeat=0 \
         --time_based --runtime=3600 --rate_iops=400",
        device.display()
    )
}
