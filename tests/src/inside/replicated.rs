//! A replicated pair on ublk where each part breaks once: the network, the target's daemon, the source's.

use super::Context;
use super::disk::Memory;
use super::pair::{Pair, Placed, Plan, QUIET_LIMIT};
use super::shell::{command, spawn};
use super::volume::{FIO_LIMIT, SIZE_MIB, fio_verify};
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};

/// The disks of two volumes on both sides.
#[derive(Debug)]
pub(super) struct Disks([Memory; 4]);

impl Disks {
    /// All of them, zeroes at first.
    pub(super) fn new() -> Result<Self> {
        let disk = |name| Memory::new(name, SIZE_MIB, 512);
        Ok(Self([
            disk("backing1")?,
            disk("backing2")?,
            disk("replica1")?,
            disk("replica2")?,
        ]))
    }

    /// Volumes `one` and `two`.
    pub(super) fn placed(&self) -> Vec<Placed> {
        let [backing1, backing2, replica1, replica2] = &self.0;
        vec![
            Placed::new("one", backing1.path(), replica1.path()),
            Placed::new("two", backing2.path(), replica2.path()),
        ]
    }
}

/// How long the network is away: longer than a peer may be silent, so that both ends give the connection up.
const CUT: Duration = Duration::from_secs(5);

pub(super) fn follows_its_source(context: &Context) -> Result<String> {
    let disks = Disks::new()?;
    let mut pair = Pair::start(Plan::new(context, disks.placed()))?;
    let [one, two] = [0, 1].map(|volume| pair.devices()[volume].clone());
    // Something to mirror.
    spawn(command(&fio_verify(&one, 8, "4k-64k")))?.succeed(FIO_LIMIT)?;
    let began = Instant::now();
    pair.connect()?;
    let mirrored = began.elapsed();
    pair.images_equal()?;
    let load = spawn(command(&fio_verify(&two, 16, "512-64k")))?;
    pair.cut()?;
    std::thread::sleep(CUT);
    pair.heal()?;
    load.succeed(FIO_LIMIT)?;
    pair.until_connected()?;
    let load = spawn(command(&fio_verify(&one, 8, "4k-64k")))?;
    pair.target.kill()?;
    pair.target.restart()?;
    pair.until_connected()?;
    pair.kill_source()?;
    pair.restart_source()?;
    load.succeed(FIO_LIMIT)?;
    pair.until_quiet(QUIET_LIMIT)?;
    pair.images_equal()?;
    let tally = pair.tally()?;
    ensure!(
        tally.mirrors == 0 && tally.mirror_bytes == 0 && tally.behind == 0,
        "the log held everything, and yet: {tally}"
    );
    ensure!(
        tally.downs == 2 && tally.resumed == 3,
        "somebody did not notice what broke: {tally}"
    );
    pair.stop()?;
    Ok(format!(
        "full mirror in {} ms, then {tally}",
        mirrored.as_millis()
    ))
}
