//! Power loss: state and backing on a disk whose unflushed writes go, judged at many cuts.

use super::Context;
use super::cut::{Log, Logged};
use super::disk::{Behaviour, Lent, Mapped, bytes_of};
use super::node::Node;
use super::shell::{Running, command, run, spawn, wait_for};
use crate::order::{History, Judgement, Keep, Random, check_images};
use anyhow::{Context as _, Result, ensure};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One instant to cut at.
#[derive(Debug, Clone)]
pub(super) struct Mark {
    name: String,
    /// Bytes of the record that were written before the mark was set.
    record_bytes: usize,
}

/// Writers of the order checker, running.
#[derive(Debug)]
pub(super) struct Loader {
    writers: Running,
    record: PathBuf,
}

/// What the writers do: slow enough for the log of a disk, and on so little of it that they meet each other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    /// Bytes of each volume that are written to.
    pub(super) span: u64,
    /// Largest write.
    pub(super) max_bytes: u32,
    /// Flushes, FUA writes and write-zeroes in a hundred operations.
    pub(super) percent: [u8; 3],
    /// Microseconds between two operations of a writer.
    pub(super) pause_us: u32,
}

/// How long the writers may take to end once they were told to: each has one operation in flight.
const FINISH_LIMIT: Duration = Duration::from_secs(60);

/// Time between two marks, in which some operations happen.
const BETWEEN_MARKS: Duration = Duration::from_millis(150);
/// Bytes of the record between two marks: some sixty operations, a few flushes among them.
const RECORD_BETWEEN_MARKS: usize = 4096;
/// How long that may take.
const MARK_LIMIT: Duration = Duration::from_secs(30);
/// The writers stop by themselves after this: a body that forgot them still ends.
const LOAD_SECONDS: u32 = 600;

fn record_bytes(record: &Path) -> Result<usize> {
    Ok(usize::try_from(fs::metadata(record)?.len())?)
}

impl Loader {
    /// Starts the load over `volumes`.
    pub(super) fn start(context: &Context, volumes: &[PathBuf]) -> Result<Self> {
        let load = Load {
            span: 4 << 20,
            max_bytes: 16384,
            percent: [2, 1, 0],
            pause_us: 3000,
        };
        Self::start_with(context.dir.join("record"), &load, volumes)
    }

    /// Starts this load over `volumes`, recorded in a new `record`.
    pub(super) fn start_with(record: PathBuf, load: &Load, volumes: &[PathBuf]) -> Result<Self> {
        let _ = fs::remove_file(&record);
        let _ = fs::remove_file(record.with_extension("stop"));
        let [flush, fua, zeroes] = load.percent;
        let mut line = format!(
            "blkrep-order write --record {} --stop-file {} --seconds {LOAD_SECONDS} --writers 4 --span {} --max-bytes {} \
             --flush {flush} --fua {fua} --zeroes {zeroes} --pause-us {}",
            record.display(),
            record.with_extension("stop").display(),
            load.span,
            load.max_bytes,
            load.pause_us
        );
        for volume in volumes {
            line += &format!(" --volume {}", volume.display());
        }
        let mut loader = Self {
            writers: spawn(command(&line))?,
            record,
        };
        // Its first line says of which volumes it is: without it nothing can be judged.
        wait_for("the load to begin", MARK_LIMIT, || {
            loader.is_well()?;
            Ok(loader.recorded()? > 0)
        })?;
        Ok(loader)
    }

    /// Sets so many marks into the log of `disk` while the load runs.
    pub(super) fn mark_for(&self, disk: &Logged, count: u32) -> Result<Vec<Mark>> {
        let mut marks = Vec::new();
        for number in 0..count {
            std::thread::sleep(BETWEEN_MARKS);
            let before = marks.last().map_or(0, |mark: &Mark| mark.record_bytes);
            // On a busy machine a mark waits until something has happened since the one before.
            wait_for("the load to get on", MARK_LIMIT, || {
                Ok(record_bytes(&self.record)? >= before + RECORD_BETWEEN_MARKS)
            })?;
            let record_bytes = record_bytes(&self.record)?;
            let name = format!("cut{number}");
            disk.mark(&name)?;
            marks.push(Mark { name, record_bytes });
        }
        Ok(marks)
    }

    /// Bytes of the record so far: what is in them has happened.
    pub(super) fn recorded(&self) -> Result<usize> {
        if self.record.exists() {
            record_bytes(&self.record)
        } else {
            // The writers have only just been started.
            Ok(0)
        }
    }

    /// Fails if the writers have ended: an operation of theirs failed.
    pub(super) fn is_well(&mut self) -> Result<()> {
        ensure!(
            self.writers.is_running()?,
            "the load ended early: {}",
            self.writers.stderr()?
        );
        Ok(())
    }

    /// Ends the writers in order, each after its operation; none may have failed.
    pub(super) fn finish(mut self) -> Result<()> {
        self.is_well()?;
        fs::write(self.record.with_extension("stop"), "")?;
        wait_for("the writers to end", FINISH_LIMIT, || {
            Ok(!self.writers.is_running()?)
        })?;
        self.writers.succeed(FINISH_LIMIT).map(drop)
    }

    /// Kills the writers; what they had in flight may or may not happen.
    pub(super) fn stop(mut self) -> Result<()> {
        self.is_well()?;
        self.writers.kill()
    }
}

/// The disk at `mark`, as a file.
pub(super) fn image(context: &Context, log: &Log<'_>, mark: &Mark) -> Result<PathBuf> {
    let path = context.dir.join("image");
    let options = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path);
    let seed = mark
        .name
        .bytes()
        .fold(mark.record_bytes as u64, |seed, byte| {
            seed << 8 ^ u64::from(byte)
        });
    log.replay(
        &mark.name,
        &options.context("create the image")?,
        &mut Random::new(seed),
    )?;
    Ok(path)
}

/// The sum over all cuts.
#[derive(Debug, Default)]
pub(super) struct Cuts {
    judged: u32,
    /// Not legal.
    pub(super) illegal: u32,
    /// Completed operations that were lawfully lost.
    pub(super) absent: usize,
    operations: usize,
    first: Option<String>,
}

impl Cuts {
    /// Judges the images by what was known at the mark.
    pub(super) fn judge(
        &mut self,
        context: &Context,
        mark: &Mark,
        images: &[PathBuf],
    ) -> Result<()> {
        let record = fs::read(context.dir.join("record"))?;
        let history = History::parse_until(&record, mark.record_bytes)?;
        let verdict = check_images(&history, images, &[], Judgement::PowerLoss, Keep::Nothing)?;
        self.judged += 1;
        self.absent += verdict.absent;
        self.operations = history.operations.len();
        if !verdict.legal {
            self.illegal += 1;
            self.first
                .get_or_insert_with(|| format!("{}: {verdict}", mark.name));
        }
        Ok(())
    }

    /// In words.
    pub(super) fn words(&self) -> String {
        let Self {
            judged,
            illegal,
            absent,
            operations,
            first,
        } = self;
        let first = first.as_deref().unwrap_or_default();
        format!(
            "{judged} judgements of up to {operations} operations, {illegal} illegal, {absent} lost lawfully; {first}"
        )
    }
}

/// MiB of each part of the disk: the state directory's filesystem, and the two volumes.
const PARTS_MIB: [(&str, u64); 3] = [("state", 24), ("one", 20), ("two", 20)];

/// The parts of a disk, their sizes in MiB, mapped as devices of their own.
pub(super) fn parts(below: &Path, prefix: &str, sizes: &[(&str, u64)]) -> Result<Vec<Mapped>> {
    let mut first = 0;
    let map = |(name, mib): &(&str, u64)| {
        let sectors = mib << 11;
        let mapped = Mapped::slice(
            &format!("{prefix}{name}"),
            below,
            first,
            sectors,
            Behaviour::Plain,
        );
        first += sectors;
        mapped
    };
    sizes.iter().map(map).collect()
}

pub(super) fn keeps_what_was_flushed(context: &Context) -> Result<String> {
    let cuts = campaign(context, context.times(10, 100), false)?;
    ensure!(cuts.illegal == 0, "{}", cuts.words());
    ensure!(
        cuts.absent > 0,
        "nothing was ever lost, so nothing was tested: {}",
        cuts.words()
    );
    Ok(cuts.words())
}

pub(super) fn missing_flushes_are_caught(context: &Context) -> Result<String> {
    let cuts = campaign(context, context.times(6, 20), true)?;
    ensure!(
        cuts.illegal > 0,
        "a daemon whose flushes reach nothing went unnoticed: {}",
        cuts.words()
    );
    Ok(cuts.words())
}

/// Loads two volumes, cuts the power of state and backings at one instant, and looks at what is left: first at the backings
/// themselves, then through a daemon started on the state directory as it was.
fn campaign(context: &Context, count: u32, lie: bool) -> Result<Cuts> {
    let state = Path::new("/mnt/state");
    fs::create_dir_all(state)?;
    let mut logged = Logged::new("cutdisk", 64, 512)?;
    let mapped = parts(logged.path()?, "live-", &PARTS_MIB)?;
    run(&format!("mkfs.ext4 -q -F {}", mapped[0].path().display()))?;
    if lie {
        logged.lie_about_cache()?;
    }
    run(&format!(
        "mount {} {}",
        mapped[0].path().display(),
        state.display()
    ))?;
    let mut node = Node::start(&context.dir.join("node"), state)?;
    let one = node.attach("one", &mapped[1].path(), "--group g --frontend ublk")?;
    let two = node.attach("two", &mapped[2].path(), "--group g --frontend ublk")?;
    let loader = Loader::start(context, &[one, two])?;
    let marks = loader.mark_for(&logged, count)?;
    node.kill()?;
    // Without its daemon the load hangs in the kernel until the devices go.
    drop(loader);
    node.forced_detach(&["one", "two"])?;
    run(&format!("umount {}", state.display()))?;
    drop(mapped);
    let log = logged.stop()?;
    ensure!(
        !log.is_empty() && (lie || log.flushes() > 0),
        "the log shows no flush at all"
    );
    let mut cuts = Cuts::default();
    for mark in &marks {
        let image = image(context, &log, mark)?;
        let lent = Lent::new(&image, false)?;
        // Under the names the state directory knows; the live ones are gone.
        let parts = parts(lent.path(), "live-", &PARTS_MIB)?;
        let backings = [parts[1].path(), parts[2].path()];
        cuts.judge(context, mark, &backings)?;
        if !lie {
            run(&format!(
                "mount {} {}",
                parts[0].path().display(),
                state.display()
            ))?;
            comes_back(context, state, &backings)
                .with_context(|| format!("after {}", mark.name))?;
            cuts.judge(context, mark, &backings)?;
            run(&format!("umount {}", state.display()))?;
        }
    }
    Ok(cuts)
}

/// A daemon started on what the cut left serves both volumes again, unless the attach itself was not yet durable.
fn comes_back(context: &Context, state: &Path, backings: &[PathBuf]) -> Result<()> {
    let mut node = Node::start(&context.dir.join("back"), state)?;
    for (name, backing) in ["one", "two"].into_iter().zip(backings) {
        let device = node
            .device_of(name)?
            .with_context(|| format!("volume {name} is forgotten"))?;
        ensure!(
            bytes_of(&device)? == bytes_of(backing)?,
            "{} has another size",
            device.display()
        );
        node.detach(name)?;
    }
    node.stop()
}
