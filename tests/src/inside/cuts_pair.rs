//! Power cuts of a replicated pair: the source's, the target's, both at once, and cuts of the link, at any moment.
//!
//! Owns the campaign: which load, what the link is doing, what is cut. After each cut the target is promoted alone, from a copy
//! of its disk, and judged as a replica; then both nodes come back, and in the end their images are equal. A round is the time
//! between two moments of rest, in which both sides were equal.

use super::Context;
use super::cut::copy_sparsely;
use super::cuts_pair_disk::{Layout, PowerDisk, zeroes};
use super::cuts_pair_judge::{Counts, Cut, Written, forget_memory};
use super::disk::{bytes_of, drop_caches};
use super::pair::{Pair, Placed, Plan, QUIET_LIMIT};
use super::power::{Load, Loader};
use super::shell::wait_for;
use crate::order::{Keep, Random};
use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The group of both volumes.
pub(super) const GROUP: &str = "g";
/// The journal is as small as can be: a difference of most of the volumes does not fit. A mirror takes its time.
const CONFIG: &str = "[volume]\nextent-size = '256KiB'\n[group]\nlog-memory = '64MiB'\n[target]\njournal-size = '16MiB'\n\
     [link]\nmirror-in-flight = '1MiB'\nreconnect-interval = '200ms'\nheartbeat-interval = '500ms'\nheartbeat-timeout = '3s'\n\
     [events]\nkept = 20000\n";
/// MiB of each volume.
const VOLUME_MIB: u64 = 12;
/// MiB of the state's filesystem: the target's has its journal.
const SOURCE_STATE_MIB: u64 = 20;
const TARGET_STATE_MIB: u64 = 36;
/// Writes meet each other there, and a difference of it all fits the journal.
const NARROW: u64 = 2 << 20;
/// The record grows by so much while a difference is made: some three hundred operations, enough to touch nearly every extent of
/// the whole volumes, or of the narrow part.
const DIFFERENCE_RECORD_BYTES: usize = 20 << 10;
/// How long the writers may take for that.
const RECORD_LIMIT: Duration = Duration::from_secs(60);

/// What the link does while marks are set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The first mirror, or another full one.
    FullMirror,
    /// The stream alone.
    Stream,
    /// A difference mirror that fits the journal and is held there.
    HeldMirror,
    /// A difference mirror that outgrows it.
    LargeMirror,
}

impl Phase {
    const fn words(self) -> &'static str {
        match self {
            Self::FullMirror => "full mirror",
            Self::Stream => "stream",
            Self::HeldMirror => "held mirror",
            Self::LargeMirror => "large mirror",
        }
    }

    /// There is a consistent replica all along, and what it lacks fits the journal.
    const fn is_strict(self) -> bool {
        matches!(self, Self::Stream | Self::HeldMirror)
    }

    /// A mirror of these volumes is a matter of moments.
    const fn between_marks_ms(self) -> u64 {
        match self {
            Self::Stream => 400,
            Self::FullMirror | Self::HeldMirror | Self::LargeMirror => 100,
        }
    }

    const fn span(self) -> u64 {
        match self {
            Self::FullMirror | Self::LargeMirror => VOLUME_MIB << 20,
            Self::Stream | Self::HeldMirror => NARROW,
        }
    }
}

/// What ends a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Link,
    Source,
    Target,
    Both,
}

/// One round: what the link does, cuts of the target's power meanwhile, and what is cut in the end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Round {
    pub(super) phase: Phase,
    pub(super) marks: u32,
    pub(super) ending: Ending,
}

/// A cut of the target's power that is judged when its log ends.
#[derive(Debug)]
struct Pending {
    mark: String,
    cut: Cut,
    round: usize,
}

pub(super) struct Campaign<'a> {
    context: &'a Context,
    // Before the disks: they stand on them.
    pub(super) pair: Pair,
    source: PowerDisk,
    pub(super) target: PowerDisk,
    rounds: Vec<Written>,
    pending: Vec<Pending>,
    /// Files that are needed until every cut is judged.
    scratch: Vec<PathBuf>,
    pub(super) counts: Counts,
    /// What a promoted replica must hold of what was complete at its cut.
    keep: Keep,
    random: Random,
    number: u32,
    returns: u32,
}

fn layout(name: &'static str, state_mib: u64) -> Layout {
    Layout {
        name,
        parts: [
            ("state", state_mib),
            ("one", VOLUME_MIB),
            ("two", VOLUME_MIB),
        ],
        mount: Path::new("/mnt").join(name),
    }
}

/// Rounds of the part for every change: every phase and every ending.
const PART: [Round; 4] = [
    Round {
        phase: Phase::FullMirror,
        marks: 2,
        ending: Ending::Link,
    },
    Round {
        phase: Phase::HeldMirror,
        marks: 1,
        ending: Ending::Source,
    },
    Round {
        phase: Phase::LargeMirror,
        marks: 1,
        ending: Ending::Target,
    },
    Round {
        phase: Phase::Stream,
        marks: 1,
        ending: Ending::Both,
    },
];
/// Rounds of the whole campaign; with their marks and endings they come to more than two hundred cuts.
const WHOLE_ROUNDS: u32 = 30;
/// Marks in each of them.
const WHOLE_MARKS: u32 = 5;
/// The guest has room for the images of so many rounds: then the target's power is cut in any case, and they are judged.
const ROUNDS_IN_LOG: u32 = 2;

/// One of these.
fn any<T: Copy>(random: &mut Random, from: &[T]) -> T {
    let index = random.below(from.len() as u64);
    from[usize::try_from(index).unwrap_or_default()]
}

fn rounds(context: &Context, random: &mut Random) -> Vec<Round> {
    let mut rounds = PART.to_vec();
    let mut since_target = 0;
    for left in (0..context.times(0, WHOLE_ROUNDS)).rev() {
        let phase = any(
            random,
            &[
                Phase::HeldMirror,
                Phase::Stream,
                Phase::LargeMirror,
                Phase::FullMirror,
            ],
        );
        let mut ending = any(
            random,
            &[Ending::Source, Ending::Target, Ending::Both, Ending::Link],
        );
        since_target += 1;
        if left == 0 || since_target == ROUNDS_IN_LOG {
            ending = any(random, &[Ending::Target, Ending::Both]);
        }
        if matches!(ending, Ending::Target | Ending::Both) {
            since_target = 0;
        }
        let marks = WHOLE_MARKS;
        rounds.push(Round {
            phase,
            marks,
            ending,
        });
    }
    rounds
}

pub(super) fn promotions_are_prefixes(context: &Context) -> Result<String> {
    let mut random = Random::new(if context.full { 2 } else { 1 });
    let rounds = rounds(context, &mut random);
    let mut campaign = Campaign::new(context, random, Keep::Nothing)?;
    campaign.play_all(rounds)?;
    campaign.end()
}

impl<'a> Campaign<'a> {
    pub(super) fn new(context: &'a Context, mut random: Random, keep: Keep) -> Result<Self> {
        let source = PowerDisk::new(&context.dir, layout("src", SOURCE_STATE_MIB))?;
        let target = PowerDisk::new(&context.dir, layout("tgt", TARGET_STATE_MIB))?;
        // Not blank: zeroes travel as a word.
        for volume in source.layout.volumes() {
            fill(&volume, &mut random)?;
        }
        let placed = ["one", "two"].into_iter().enumerate().map(|(index, name)| {
            let index = index + 1;
            Placed::new(name, &source.layout.part(index), &target.layout.part(index))
        });
        let plan = Plan {
            group: GROUP.to_owned(),
            source_state: source.layout.mount.join("state"),
            target_state: target.layout.mount.join("state"),
            config: CONFIG.to_owned(),
            ..Plan::new(context, placed.collect())
        };
        Ok(Self {
            context,
            pair: Pair::start(plan)?,
            source,
            target,
            rounds: Vec::new(),
            pending: Vec::new(),
            scratch: Vec::new(),
            counts: Counts::default(),
            keep,
            random,
            number: 0,
            returns: 0,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.context.dir.join(name)
    }

    /// Copies of the backings, which nobody writes to.
    fn copies(&mut self, name: &str) -> Result<[PathBuf; 2]> {
        drop_caches()?;
        let [one, two] = self.source.layout.volumes();
        let paths = [
            self.path(&format!("{name}-one")),
            self.path(&format!("{name}-two")),
        ];
        for (volume, path) in [one, two].iter().zip(&paths) {
            let bytes = bytes_of(volume)?;
            copy_sparsely(&File::open(volume)?, &zeroes(path, bytes)?, bytes)?;
        }
        self.scratch.extend(paths.clone());
        Ok(paths)
    }

    /// Some milliseconds, fewer than these.
    fn pause(&mut self, ms_max: u64) {
        std::thread::sleep(Duration::from_millis(self.random.below(ms_max)));
    }

    /// Plays these rounds, each from rest to rest.
    pub(super) fn play_all(&mut self, rounds: Vec<Round>) -> Result<()> {
        for (number, round) in rounds.into_iter().enumerate() {
            println!("round {number}: {round:?}");
            let played = self.play(number, round);
            played.with_context(|| format!("round {number}, {round:?}, after {}", self.counts))?;
            println!("round {number}: {}", self.counts);
        }
        Ok(())
    }

    fn play(&mut self, number: usize, round: Round) -> Result<()> {
        let record = self.path(&format!("record{number}"));
        let bases = self.copies(&format!("base{number}"))?;
        self.scratch.push(record.clone());
        self.rounds.push(Written {
            record: record.clone(),
            bases,
        });
        let load = Load {
            span: round.phase.span(),
            max_bytes: 8192,
            percent: [3, 2, 2],
            pause_us: 4000,
        };
        let mut loader = Loader::start_with(record, &load, self.pair.devices())?;
        self.enter(round.phase, &mut loader)?;
        for _ in 0..round.marks {
            self.pause(round.phase.between_marks_ms());
            self.cut_target("target", round.phase, None)?;
        }
        self.pause(800);
        loader.is_well()?;
        match round.ending {
            Ending::Link => self.cut_link(round.phase, loader)?,
            Ending::Source => self.cut_source(round.phase, loader)?,
            Ending::Target => self.lose_target(round.phase, loader)?,
            Ending::Both => self.lose_both(round.phase, loader)?,
        }
        self.forget_rounds()
    }

    /// Brings the link into its phase, under load.
    fn enter(&mut self, phase: Phase, loader: &mut Loader) -> Result<()> {
        let source = &mut self.pair.source;
        match phase {
            Phase::FullMirror if self.rounds.len() == 1 => {
                let line = format!("{} --mirror full", self.pair.connect_words());
                self.pair.source.ctl(&line)?;
            }
            Phase::FullMirror => drop(source.ctl(&format!("mirror start {GROUP} --kind full"))?),
            Phase::Stream => {}
            Phase::HeldMirror | Phase::LargeMirror => {
                source.ctl(&format!("transmit stop {GROUP}"))?;
                let until = loader.recorded()? + DIFFERENCE_RECORD_BYTES;
                wait_for("a difference", RECORD_LIMIT, || {
                    loader.is_well()?;
                    Ok(loader.recorded()? >= until)
                })?;
                self.cut_target("target while transmission is stopped", Phase::Stream, None)?;
                let source = &mut self.pair.source;
                source.ctl(&format!("transmit start {GROUP}"))?;
                source.ctl(&format!("mirror start {GROUP} --kind difference"))?;
            }
        }
        Ok(())
    }

    fn next_cut(
        &mut self,
        what: &str,
        phase: Phase,
        returned: Option<[PathBuf; 2]>,
    ) -> Result<(String, Cut)> {
        self.number += 1;
        let written = self.rounds.last().context("a round is played")?;
        let cut = Cut {
            kind: format!("{what}, {}", phase.words()),
            image: self.path(&format!("image{}", self.number)),
            recorded: usize::try_from(std::fs::metadata(&written.record)?.len())?,
            strict: phase.is_strict(),
            // A source that came back may have lost what no flush covered, and its target follows it.
            keep: match &returned {
                Some(_) => Keep::Nothing,
                None => self.keep,
            },
            returned,
        };
        Ok((format!("cut{}", self.number), cut))
    }

    /// A cut of the target's power at this instant, judged when its log ends.
    fn cut_target(
        &mut self,
        what: &str,
        phase: Phase,
        returned: Option<[PathBuf; 2]>,
    ) -> Result<String> {
        let (mark, cut) = self.next_cut(what, phase, returned)?;
        self.target.mark(&mark)?;
        let round = self.rounds.len() - 1;
        self.pending.push(Pending {
            mark: mark.clone(),
            cut,
            round,
        });
        Ok(mark)
    }

    /// A copy of the target as it stands, while its power stays.
    fn copy_target(&mut self, what: &str, phase: Phase) -> Result<Cut> {
        let (_, cut) = self.next_cut(what, phase, None)?;
        self.pair.target.signal(Signal::SIGSTOP)?;
        self.target.copy_to(&cut.image)?;
        self.pair.target.signal(Signal::SIGCONT)?;
        Ok(cut)
    }

    fn judge(&mut self, cut: &Cut, round: usize) -> Result<()> {
        let layout = &self.target.layout;
        self.counts
            .judge(&self.context.dir, layout, cut, &self.rounds[round])
    }

    fn judge_pending(&mut self) -> Result<()> {
        for pending in std::mem::take(&mut self.pending) {
            self.judge(&pending.cut, pending.round)?;
        }
        Ok(())
    }

    /// Both nodes are there and nothing is written: they become equal.
    fn come_to_rest(&mut self) -> Result<()> {
        self.pair.until_quiet(QUIET_LIMIT)?;
        self.pair.images_equal()?;
        self.returns += 1;
        Ok(())
    }

    fn cut_link(&mut self, phase: Phase, loader: Loader) -> Result<()> {
        self.pair.cut()?;
        self.pause(600);
        let cut = self.copy_target("link", phase)?;
        self.pause(600);
        self.pair.heal()?;
        loader.finish()?;
        self.come_to_rest()?;
        self.judge(&cut, self.rounds.len() - 1)
    }

    /// Stops the target at one instant of its life, and takes its power.
    fn lose_target(&mut self, phase: Phase, loader: Loader) -> Result<()> {
        self.pair.target.signal(Signal::SIGSTOP)?;
        let mark = self.cut_target("target at the end", phase, None)?;
        self.pair.target.kill()?;
        self.pause(600);
        loader.finish()?;
        self.target_loses_power(&mark)?;
        self.pair.target.restart()?;
        self.come_to_rest()?;
        self.judge_pending()
    }

    fn target_loses_power(&mut self, mark: &str) -> Result<()> {
        forget_memory(&self.pair.plan.target_state)?;
        let images: Vec<_> = self
            .pending
            .iter()
            .map(|pending| (pending.mark.clone(), pending.cut.image.clone()))
            .collect();
        self.target.lose_power(mark, &images, &mut self.random)
    }

    /// Stops the source at one instant of its life. What of the record is certain by then.
    fn stop_source(&mut self, loader: &Loader, mark: &str) -> Result<usize> {
        self.pair.source.signal(Signal::SIGSTOP)?;
        let recorded = loader.recorded()?;
        self.source.mark(mark)?;
        Ok(recorded)
    }

    /// Takes the power of a source that stands still. What its volumes hold then.
    fn source_loses_power(
        &mut self,
        loader: Loader,
        mark: &str,
        recorded: usize,
    ) -> Result<[PathBuf; 2]> {
        drop(loader);
        take_power(&mut self.pair, &mut self.source, mark, &mut self.random)?;
        let written = self.rounds.last().context("a round is played")?;
        let volumes = self.source.layout.volumes();
        self.counts
            .judge_source("without power", written, &volumes, recorded)?;
        self.copies(&format!("returned{}", self.rounds.len()))
    }

    fn source_is_back(&mut self, recorded: usize) -> Result<()> {
        self.come_to_rest()?;
        let written = self.rounds.last().context("a round is played")?;
        let volumes = self.source.layout.volumes();
        self.counts
            .judge_source("back at rest", written, &volumes, recorded)
    }

    fn cut_source(&mut self, phase: Phase, loader: Loader) -> Result<()> {
        let recorded = self.stop_source(&loader, "source")?;
        self.pause(300);
        let cut = self.copy_target("source", phase)?;
        let returned = self.source_loses_power(loader, "source", recorded)?;
        self.pair.restart_source()?;
        for _ in 0..self.context.times(1, 2) {
            self.pause(300);
            self.cut_target(
                "target after the source's return",
                phase,
                Some(returned.clone()),
            )?;
        }
        self.source_is_back(recorded)?;
        self.judge(&cut, self.rounds.len() - 1)
    }

    fn lose_both(&mut self, phase: Phase, loader: Loader) -> Result<()> {
        let recorded = self.stop_source(&loader, "source")?;
        self.pair.target.signal(Signal::SIGSTOP)?;
        let mark = self.cut_target("both", phase, None)?;
        self.pair.target.kill()?;
        self.source_loses_power(loader, "source", recorded)?;
        self.target_loses_power(&mark)?;
        if self.random.chance(50) {
            self.pair.target.restart()?;
            self.pair.restart_source()?;
        } else {
            self.pair.restart_source()?;
            self.pair.target.restart()?;
        }
        self.source_is_back(recorded)?;
        self.judge_pending()
    }

    /// Removes the files of rounds whose every cut is judged.
    fn forget_rounds(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            for path in self.scratch.drain(..) {
                std::fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// Stops both and says what all cuts came to.
    pub(super) fn end(mut self) -> Result<String> {
        ensure!(self.pending.is_empty(), "cuts that nobody judged");
        self.pair.stop()?;
        self.counts.verdict()?;
        let (absent, counts) = (self.counts.absent(), &self.counts);
        // Where nothing is ever lost nothing was tested, unless nothing may be.
        ensure!(
            absent > 0 || self.keep == Keep::Completed,
            "no completed write was ever absent: {counts}"
        );
        let flushes = self.source.flushes() + self.target.flushes();
        ensure!(flushes > 0, "no flush ever reached a disk");
        Ok(format!(
            "{}; {} times both were equal again",
            self.counts, self.returns
        ))
    }
}

/// Takes the power of a source that stands still: its processes, its devices, its memory, and of its disk what was not flushed
/// at the mark. Writers hang in the kernel until the devices are gone.
pub(super) fn take_power(
    pair: &mut Pair,
    disk: &mut PowerDisk,
    mark: &str,
    random: &mut Random,
) -> Result<()> {
    pair.source.kill()?;
    // What it had not flushed is not to be had by its mark: its devices go only after that.
    disk.flush()?;
    pair.source.forced_detach(&["one", "two"])?;
    let removed = forget_memory(&pair.plan.source_state)?;
    ensure!(
        removed > 0,
        "the source had no memory that outlives it: nothing to lose"
    );
    disk.lose_power(mark, &[], random)
}

/// Fills a device with noise.
pub(super) fn fill(volume: &Path, random: &mut Random) -> Result<()> {
    let mut bytes = vec![0; usize::try_from(bytes_of(volume)?)?];
    for word in bytes.chunks_exact_mut(8) {
        word.copy_from_slice(&random.next().to_le_bytes());
    }
    super::disk::write_direct(volume, 0, &bytes)
}
