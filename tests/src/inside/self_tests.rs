//! Tests of the harness itself: that the guest has what bodies stand on, and that its bad disks are really bad.

use super::Context;
use super::cut::Logged;
use super::disk::{self, Behaviour, Mapped, Memory};
use super::power::{Cuts, Loader};
use super::shell::{command, run, spawn};
use super::storm;
use super::volume::{FIO_LIMIT, ext4_cycle, fio_verify};
use anyhow::{Result, ensure};
use std::os::unix::fs::FileTypeExt;
use std::time::{Duration, Instant};

pub(super) fn ublk_control_is_there(_context: &Context) -> Result<String> {
    let control = std::fs::metadata("/dev/ublk-control")?;
    ensure!(
        control.file_type().is_char_device(),
        "/dev/ublk-control is no character device"
    );
    let release = nix::sys::utsname::uname()?
        .release()
        .to_string_lossy()
        .into_owned();
    Ok(format!("kernel {release}"))
}

pub(super) fn flakey_disk_drops_writes(_context: &Context) -> Result<String> {
    let memory = Memory::new("below", 16, 512)?;
    let below = memory.path();
    let flakey = Mapped::new("flakey", below, Behaviour::Plain)?;
    let (old, new) = (vec![1; 4096], vec![2; 4096]);
    disk::write_direct(&flakey.path(), 8192, &old)?;
    flakey.behave(Behaviour::DropWrites)?;
    disk::write_direct(&flakey.path(), 8192, &new)?;
    ensure!(
        disk::read_direct(below, 8192, 4096)? == old,
        "the write was not dropped"
    );
    flakey.behave(Behaviour::FailWrites)?;
    let failed = disk::write_direct(&flakey.path(), 8192, &new);
    ensure!(failed.is_err(), "the write did not fail");
    flakey.behave(Behaviour::Plain)?;
    disk::write_direct(&flakey.path(), 8192, &new)?;
    ensure!(
        disk::read_direct(below, 8192, 4096)? == new,
        "the write did not arrive"
    );
    Ok("dropped, failed, passed".to_owned())
}

pub(super) fn delayed_disk_delays_writes(_context: &Context) -> Result<String> {
    let memory = Memory::new("below", 16, 512)?;
    let delay = Duration::from_millis(500);
    let delayed = Mapped::new("delayed", memory.path(), Behaviour::DelayWrites(delay))?;
    let started = Instant::now();
    disk::write_direct(&delayed.path(), 0, &[3; 4096])?;
    let took = started.elapsed();
    ensure!(took >= delay, "took only {took:?}");
    ensure!(
        disk::read_direct(memory.path(), 0, 4096)? == [3; 4096],
        "the write did not arrive"
    );
    Ok(format!("{} ms", took.as_millis()))
}

pub(super) fn honest_disk_is_legal_at_every_cut(context: &Context) -> Result<String> {
    let cuts = load_and_cut(context, false)?;
    ensure!(cuts.illegal == 0, "{}", cuts.words());
    ensure!(
        cuts.absent > 0,
        "nothing was ever lost, so nothing was tested: {}",
        cuts.words()
    );
    Ok(cuts.words())
}

pub(super) fn lying_disk_is_caught(context: &Context) -> Result<String> {
    let cuts = load_and_cut(context, true)?;
    ensure!(
        cuts.illegal > 0,
        "a disk that is never flushed went unnoticed: {}",
        cuts.words()
    );
    Ok(cuts.words())
}

/// Loads a disk directly, with no product between, and judges images of it at every mark.
fn load_and_cut(context: &Context, lie: bool) -> Result<Cuts> {
    let mut logged = Logged::new("cutdisk", 64, 256)?;
    if lie {
        logged.lie_about_cache()?;
    }
    let loader = Loader::start(context, &[logged.path()?.to_owned()])?;
    let marks = loader.mark_for(&logged, context.times(6, 20))?;
    loader.stop()?;
    let log = logged.stop()?;
    let mut cuts = Cuts::default();
    for mark in &marks {
        let image = super::power::image(context, &log, mark)?;
        cuts.judge(context, mark, &[image])?;
    }
    Ok(cuts)
}

/// The loads that the product is put under, on a disk without it: if this fails, the harness is wrong and nothing else.
pub(super) fn loads_work_on_a_plain_disk(context: &Context) -> Result<String> {
    let memory = Memory::new("plain", 64, 512)?;
    run(&fio_verify(memory.path(), 8, "512-128k"))?;
    let mut storm = spawn(command(&storm::load(memory.path())))?;
    std::thread::sleep(Duration::from_secs(2));
    ensure!(
        storm.is_running()?,
        "the load of the storms ended: {}",
        storm.stderr()?
    );
    storm.kill()?;
    ext4_cycle(context, memory.path())?;
    let at = format!("-f -o 512 -l 1024 {}", memory.path().display());
    for kind in ["", "--zeroout"] {
        disk::write_direct(memory.path(), 0, &[5; 4096])?;
        run(&format!("blkdiscard {kind} {at}"))?;
        let found = disk::read_direct(memory.path(), 0, 4096)?;
        ensure!(
            found[..512] == [5; 512] && found[1536..] == [5; 2560],
            "blkdiscard {kind} went too far"
        );
        ensure!(
            found[512..1536] == [0; 1024],
            "blkdiscard {kind} cleared nothing"
        );
    }
    let large = Memory::new("large", 64, 4096)?;
    run(&fio_verify(large.path(), 4, "4k-128k"))?;
    let refused = spawn(command(&fio_verify(large.path(), 1, "512-512")))?.finish(FIO_LIMIT)?;
    ensure!(
        !refused.status.success(),
        "a disk of 4096 byte blocks took a write of 512"
    );
    Ok("fio, ext4, discard, zeroes".to_owned())
}

/// Loads the first outliving disk until the host cuts the power; the record goes where the cut does not reach.
pub(super) fn load_until_power_cut(context: &Context) -> Result<String> {
    let [disk, ..] = super::device::disks()?;
    let line = format!(
        "blkrep-order write --volume {} --record {} --seconds 100 --span 4194304 --zeroes 3 --json",
        disk.display(),
        context.record.display()
    );
    let done = spawn(command(&line))?.succeed(Duration::from_secs(120))?;
    anyhow::bail!("nobody cut the power: {done}")
}
