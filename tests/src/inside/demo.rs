//! The demonstration of one volume: attach, write, kill, go on, detach, plain data.

use super::Context;
use super::disk::{Memory, drop_caches};
use super::shell::{command, run, spawn};
use super::volume::{FIO_LIMIT, SIZE_MIB, equal, fio_verify, node};
use crate::guest::scenario::DEMO_PREFIX;
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};

fn say(words: &str) {
    println!("{DEMO_PREFIX}{words}");
}

pub(super) fn demo(context: &Context) -> Result<String> {
    let backing = Memory::new("backing", SIZE_MIB, 512)?;
    say(&format!(
        "1. a disk of {SIZE_MIB} MiB: {}",
        backing.path().display()
    ));
    let mut node = node(context)?;
    let device = node.attach("data", backing.path(), "--frontend ublk")?;
    say(&format!(
        "2. attached: an application now uses {}",
        device.display()
    ));
    say("3. writing random blocks of 512 bytes to 64 KiB, 32 at a time, each with its checksum");
    let mut load = spawn(command(&fio_verify(&device, 40, "512-64k")))?;
    std::thread::sleep(Duration::from_millis(1500));
    ensure!(
        load.is_running()?,
        "the load ended before the kill: {}",
        load.stderr()?
    );
    let killed = Instant::now();
    node.kill()?;
    say("4. kill -9 of the daemon in the middle; the application waits, and sees no error");
    node.restart()?;
    say(&format!(
        "5. a new daemon serves the device again, {} ms later",
        killed.elapsed().as_millis()
    ));
    load.succeed(FIO_LIMIT)?;
    say("6. every block was written and read back with the right checksum");
    equal(&device, backing.path())?;
    node.detach("data")?;
    node.stop()?;
    drop_caches()?;
    ensure!(!device.exists(), "{} is still there", device.display());
    run(&format!(
        "dd if={} of=/dev/null bs=1M",
        backing.path().display()
    ))?;
    say("7. detached: the disk is the plain data, byte for byte what the device showed");
    Ok("the demonstration is over: nothing was lost".to_owned())
}
