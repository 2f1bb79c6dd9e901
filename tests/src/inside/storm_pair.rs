//! A replicated group under load while everything around it breaks, again and again: `kill -9` of either daemon, cuts of the
//! network, in a random order that its seed repeats.
//!
//! What must hold: no request of an application fails, the stream always goes on by exact name, nothing is mirrored, and in the
//! quiet after each storm both sides hold the same bytes, which are all that was written.

use super::Context;
use super::disk::Memory;
use super::pair::{Pair, Placed, Plan, QUIET_LIMIT, Tally};
use super::shell::{Running, command, spawn, wait_for};
use super::storm::load;
use super::volume::FIO_LIMIT;
use crate::order::{Judgement, Keep, Random, check_files};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// MiB of each disk: what is written lies in the first quarter, so that writes meet each other.
const SIZE_MIB: u64 = 48;
/// A device must answer again within this after its daemon was killed.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// Nothing breaks for so long after the loads began: they have something in flight then.
const BEGIN: Duration = Duration::from_millis(500);
/// A cut lasts between these milliseconds: from one that TCP hides to one that both ends notice.
const CUT_MS: (u64, u64) = (300, 4500);
/// Ample for what both loads write during the longest cut and the reconnection, on a fast machine too.
const LOG_MEMORY: &str = "log-memory = '192MiB'";

/// One thing that breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blow {
    KillSource,
    KillTarget,
    Cut,
}

/// How often each of them, in one storm.
#[derive(Debug, Clone, Copy)]
struct Blows {
    source: u32,
    target: u32,
    cuts: u32,
}

impl Blows {
    /// In a random order.
    fn shuffled(self, random: &mut Random) -> Vec<Blow> {
        let kinds = [
            (Blow::KillSource, self.source),
            (Blow::KillTarget, self.target),
            (Blow::Cut, self.cuts),
        ];
        let mut blows: Vec<Blow> = kinds
            .into_iter()
            .flat_map(|(blow, times)| (0..times).map(move |_| blow))
            .collect();
        for last in (1..blows.len()).rev() {
            let bound = u64::try_from(last).unwrap_or(u64::MAX) + 1;
            let other = usize::try_from(random.below(bound)).unwrap_or(last);
            blows.swap(last, other);
        }
        blows
    }
}

/// The two applications: fio verifies one volume, the order checker's writers load the other.
struct Loads {
    fio: Running,
    order: Running,
    stop: PathBuf,
}

impl Loads {
    fn start(dir: &Path, record: &Path, devices: &[PathBuf]) -> Result<Self> {
        let stop = dir.join("stop-order");
        let _ = fs::remove_file(&stop);
        let append = if record.exists() { "--append" } else { "" };
        let line = format!(
            "blkrep-order write {append} --volume {} --record {} --seconds 3600 --span 8388608 --max-bytes 16384 --zeroes 2 \
             --discards 1 --pause-us 10000 --host-survives --stop-file {}",
            devices[1].display(),
            record.display(),
            stop.display()
        );
        let fio = spawn(command(&load(&devices[0])))?;
        let order = spawn(command(&line))?;
        std::thread::sleep(BEGIN);
        Ok(Self { fio, order, stop })
    }

    /// Ends both, which must have worked all the time and seen no error.
    fn end(mut self) -> Result<()> {
        ensure!(
            self.fio.is_running()?,
            "fio gave up: {}",
            self.fio.finish(FIO_LIMIT)?.stderr
        );
        ensure!(
            self.order.is_running()?,
            "the order writers gave up: {}",
            self.order.stderr()?
        );
        fs::write(&self.stop, "")?;
        self.order.succeed(FIO_LIMIT)?;
        // It has read back what it wrote all along (verify_backlog).
        self.fio.kill()
    }
}

/// What a campaign has shown.
#[derive(Debug, Default)]
struct Shown {
    storms: u32,
    blows: [u32; 3],
    longest_pause: Duration,
    tally: Tally,
}

impl Shown {
    fn words(&self, seed: u64) -> String {
        let [source, target, cuts] = self.blows;
        format!(
            "seed {seed}: {} storms, {source} kills of the source, {target} of the target, {cuts} cuts; longest pause {} ms; {}",
            self.storms,
            self.longest_pause.as_millis(),
            self.tally
        )
    }
}

pub(super) fn replicated_volumes_survive(context: &Context) -> Result<String> {
    let seed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    println!("seed {seed}");
    let mut random = Random::new(seed);
    let disk = |name| Memory::new(name, SIZE_MIB, 512);
    let disks = [
        disk("backing1")?,
        disk("backing2")?,
        disk("replica1")?,
        disk("replica2")?,
    ];
    let volumes = vec![
        Placed::new("one", disks[0].path(), disks[2].path()),
        Placed::new("two", disks[1].path(), disks[3].path()),
    ];
    let mut plan = Plan::new(context, volumes);
    plan.config = plan.config.replace("log-memory = '64MiB'", LOG_MEMORY);
    let mut pair = Pair::start(plan)?;
    pair.connect()?;
    let mut shown = Shown::default();
    let record = context.dir.join("record");
    let (storms, blows) = if context.full {
        (
            10,
            Blows {
                source: 5,
                target: 5,
                cuts: 2,
            },
        )
    } else {
        (
            1,
            Blows {
                source: 3,
                target: 3,
                cuts: 2,
            },
        )
    };
    for _ in 0..storms {
        let order = blows.shuffled(&mut random);
        println!("seed {seed}: {order:?}");
        storm(context, &mut pair, &order, &mut random, &mut shown)
            .and_then(|()| judge(&mut pair, &record, &mut shown))
            .with_context(|| shown.words(seed))?;
    }
    pair.stop()?;
    Ok(shown.words(seed))
}

/// One storm, from the start of the loads to their end.
fn storm(
    context: &Context,
    pair: &mut Pair,
    blows: &[Blow],
    random: &mut Random,
    shown: &mut Shown,
) -> Result<()> {
    let loads = Loads::start(&context.dir, &context.dir.join("record"), pair.devices())?;
    let mut healed_at = None;
    for (number, blow) in blows.iter().enumerate() {
        std::thread::sleep(Duration::from_millis(random.below(800)));
        strike(pair, *blow, random, shown, &mut healed_at)
            .with_context(|| format!("blow {number}, {blow:?}"))?;
        // The network stays away for a while, whatever else breaks in the meantime.
        if healed_at.is_some_and(|at| Instant::now() >= at) {
            pair.heal()?;
            healed_at = None;
        }
    }
    if let Some(at) = healed_at {
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        pair.heal()?;
    }
    std::thread::sleep(BEGIN);
    shown.storms += 1;
    loads.end()
}

fn strike(
    pair: &mut Pair,
    blow: Blow,
    random: &mut Random,
    shown: &mut Shown,
    healed_at: &mut Option<Instant>,
) -> Result<()> {
    match blow {
        Blow::KillSource => {
            shown.blows[0] += 1;
            let began = Instant::now();
            pair.kill_source()?;
            std::thread::sleep(Duration::from_millis(random.below(300)));
            pair.restart_source()?;
            answers(&pair.devices()[1])?;
            shown.longest_pause = shown.longest_pause.max(began.elapsed());
        }
        Blow::KillTarget => {
            shown.blows[1] += 1;
            pair.target.kill()?;
            std::thread::sleep(Duration::from_millis(random.below(1000)));
            pair.target.restart()?;
        }
        Blow::Cut => {
            shown.blows[2] += 1;
            pair.cut()?;
            let lasts = CUT_MS.0 + random.below(CUT_MS.1 - CUT_MS.0);
            let at = Instant::now() + Duration::from_millis(lasts);
            // Every second cut reaches into what breaks next.
            if random.chance(50) {
                *healed_at = Some(at);
            } else {
                std::thread::sleep(at.saturating_duration_since(Instant::now()));
                pair.heal()?;
                *healed_at = None;
            }
        }
    }
    Ok(())
}

/// Waits until a direct read of the device comes back.
fn answers(device: &Path) -> Result<()> {
    wait_for("the device to serve", ANSWER_LIMIT, || {
        let read = command(&format!(
            "dd if={} of=/dev/null bs=4096 count=1 iflag=direct",
            device.display()
        ));
        Ok(spawn(read)?.finish(ANSWER_LIMIT)?.status.success())
    })
}

/// In the quiet after a storm.
fn judge(pair: &mut Pair, record: &Path, shown: &mut Shown) -> Result<()> {
    pair.until_quiet(QUIET_LIMIT)?;
    pair.source.is_well()?;
    pair.target.is_well()?;
    shown.tally = pair.tally()?;
    let tally = &shown.tally;
    ensure!(
        tally.mirrors == 0 && tally.mirror_bytes == 0,
        "something was mirrored: {tally}"
    );
    ensure!(
        tally.behind == 0 && tally.not_resumable == 0,
        "the stream did not go on where it was: {tally}"
    );
    ensure!(
        tally.resumed >= shown.blows[0],
        "a source that came back did not resume: {tally}"
    );
    pair.images_equal()?;
    for image in [&pair.plan.volumes[1].backing, &pair.plan.volumes[1].replica] {
        let images = [image.clone()];
        let verdict = check_files(record, &images, &[], Judgement::Replica, Keep::Completed)?;
        ensure!(verdict.legal, "{}: {verdict}", image.display());
    }
    Ok(())
}
