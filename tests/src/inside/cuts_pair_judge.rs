//! What a cut left, judged: a lone target is promoted, and its images are held against what was written.
//!
//! Owns starting a daemon on an image of the target's disk, with nobody else to talk to, and the counts of all cuts. Images and
//! what is known of the writing enter; verdicts and counts leave. Never cuts anything.

use super::cuts_pair_disk::{Layout, Shadow};
use super::node::{Node, Setup};
use super::shell::{Finished, command, spawn};
use crate::order::{Findings, History, Judgement, Keep, Verdict, check_images, judge, scan};
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A command of a lone target; promoting applies its whole journal first.
const ALONE_LIMIT: Duration = Duration::from_secs(100);
/// How long a lone target may say that it is not ready to answer.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// What is known of the writing between two moments of rest.
#[derive(Debug)]
pub(super) struct Written {
    /// The writers' record.
    pub(super) record: PathBuf,
    /// What the volumes held before.
    pub(super) bases: [PathBuf; 2],
}

impl Written {
    /// Is this a prefix of what was written, over both volumes, and does it hold what is to be kept of the operations that were
    /// complete when the record had so many bytes? `absent` counts what it lacks of those.
    pub(super) fn replica(
        &self,
        images: &[PathBuf],
        recorded: usize,
        keep: Keep,
    ) -> Result<Verdict> {
        let record = fs::read(&self.record)?;
        let history = History::parse(&record)?;
        let mut findings = Findings::default();
        let mut seen = Vec::new();
        for ((volume, image), base) in (0..).zip(images).zip(&self.bases) {
            let (mut image, mut base) = (File::open(image)?, File::open(base)?);
            seen.push(scan(
                &history,
                volume,
                &mut image,
                Some(&mut base),
                &mut findings,
            )?);
        }
        // An order that came later is an order still: all of the record judges.
        let rule = Judgement::Replica;
        let verdict = judge(&history, &seen, rule, Keep::Nothing, findings);
        let known = History::parse_until(&record, recorded)?;
        let absent = judge(&known, &seen, rule, Keep::Nothing, Findings::default()).absent;
        let kept = judge(&known, &seen, rule, keep, Findings::default());
        if verdict.legal && !kept.legal {
            return Ok(kept);
        }
        Ok(Verdict { absent, ..verdict })
    }

    /// May a disk hold this whose power went when the record had so many bytes?
    pub(super) fn power_loss(&self, images: &[PathBuf], recorded: usize) -> Result<Verdict> {
        let history = History::parse_until(&fs::read(&self.record)?, recorded)?;
        let rule = (Judgement::PowerLoss, Keep::Nothing);
        let verdict = check_images(&history, images, &self.bases, rule.0, rule.1);
        verdict.context("judge the images")
    }
}

/// What a lone target answered.
#[derive(Debug)]
enum Answer {
    Promoted,
    Refused { code: String, why: String },
}

/// One cut of the target, ready to be judged.
#[derive(Debug)]
pub(super) struct Cut {
    /// What was cut, and in the middle of what.
    pub(super) kind: String,
    /// The image of the target's disk.
    pub(super) image: PathBuf,
    /// Bytes of the record at the cut: the operations complete in them were.
    pub(super) recorded: usize,
    /// What it must hold of those.
    pub(super) keep: Keep,
    /// A refusal is no answer here: there was a consistent replica, and what it lacked fits the journal.
    pub(super) strict: bool,
    /// What the volumes held when the source came back: the target may have become equal to it.
    pub(super) returned: Option<[PathBuf; 2]>,
}

/// Removes the memory that daemons with this state directory left, as a power cut does.
pub(super) fn forget_memory(state: &Path) -> Result<usize> {
    let about = fs::metadata(state).context("examine the state directory")?;
    let prefix = format!("blkrep-{:x}-{:x}-", about.dev(), about.ino());
    let mut removed = 0;
    for entry in fs::read_dir("/dev/shm")? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            fs::remove_file(entry.path())?;
            removed += 1;
        }
    }
    Ok(removed)
}

fn ask(dir: &Path, line: &str) -> Result<Finished> {
    let socket = dir.join("control.sock");
    let line = format!("blkctl --socket {} --json {line}", socket.display());
    spawn(command(&line))?.finish(ALONE_LIMIT)
}

/// Promotes the group there; asks again while the replica is being opened.
fn promote(dir: &Path, group: &str) -> Result<Answer> {
    let began = Instant::now();
    loop {
        let done = ask(dir, &format!("promote {group} --frontend nbd"))?;
        if done.status.success() {
            return Ok(Answer::Promoted);
        }
        let body: Value = serde_json::from_str(&done.stdout)
            .with_context(|| format!("promote: {}{}", done.stdout, done.stderr))?;
        let text = |key: &str| body["error"][key].as_str().unwrap_or_default().to_owned();
        let (code, why) = (text("code"), text("happened"));
        let recovering = code == "group-busy" || body.to_string().contains("being recovered");
        if !recovering {
            ensure!(
                !text("action").is_empty(),
                "a refusal without advice: {body}"
            );
            return Ok(Answer::Refused { code, why });
        }
        ensure!(
            began.elapsed() < READY_LIMIT,
            "the replica does not get ready: {body}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What one kind of cut came to.
#[derive(Debug, Default)]
struct Count {
    legal: u32,
    refused: BTreeMap<String, u32>,
    absent: usize,
}

/// The counts of all cuts.
#[derive(Debug, Default)]
pub(super) struct Counts {
    kinds: BTreeMap<String, Count>,
    /// Cuts of the source's power whose backings kept what was flushed, and completed writes that went lawfully.
    kept: u32,
    lost: usize,
    wrong: Vec<String>,
}

impl Counts {
    /// Promotes the target alone on the image, and judges what it has then.
    pub(super) fn judge(
        &mut self,
        dir: &Path,
        layout: &Layout,
        cut: &Cut,
        written: &Written,
    ) -> Result<()> {
        let alone = dir.join("alone");
        // A namespace belongs to a thread: what this one mounts nobody else sees.
        let judged = std::thread::scope(|scope| {
            let judging = scope.spawn(|| judge_alone(&alone, layout, cut, written));
            judging
                .join()
                .unwrap_or_else(|_| bail!("the thread of the lone target died"))
        });
        let (answer, verdict) = judged.with_context(|| format!("a cut of {}", cut.kind))?;
        let count = self.kinds.entry(cut.kind.clone()).or_default();
        match (answer, verdict) {
            (Answer::Promoted, Some(verdict)) if verdict.legal => {
                count.legal += 1;
                count.absent += verdict.absent;
            }
            (Answer::Promoted, Some(verdict)) => {
                self.wrong.push(format!("{}: {verdict}", cut.kind));
            }
            (Answer::Promoted, None) => bail!("promoted, and nothing was judged"),
            (Answer::Refused { code, why }, _) => {
                let known = ["replica-not-ok", "no-such-group"].contains(&code.as_str());
                if cut.strict || !known {
                    self.wrong
                        .push(format!("{}: refused with {code}: {why}", cut.kind));
                }
                *count.refused.entry(code).or_default() += 1;
            }
        }
        fs::remove_file(&cut.image)?;
        Ok(())
    }

    /// Judges backings after a loss of power.
    pub(super) fn judge_source(
        &mut self,
        when: &str,
        written: &Written,
        images: &[PathBuf],
        recorded: usize,
    ) -> Result<()> {
        let verdict = written.power_loss(images, recorded)?;
        if verdict.legal {
            self.kept += 1;
            self.lost += verdict.absent;
        } else {
            self.wrong.push(format!("the source {when}: {verdict}"));
        }
        Ok(())
    }

    /// Promotions and refusals so far.
    pub(super) fn cuts(&self) -> u32 {
        let of = |count: &Count| count.legal + count.refused.values().sum::<u32>();
        self.kinds.values().map(of).sum()
    }

    /// How many were wrong.
    pub(super) const fn wrong(&self) -> usize {
        self.wrong.len()
    }

    /// Completed operations that promoted replicas lacked.
    pub(super) fn absent(&self) -> usize {
        self.kinds.values().map(|count| count.absent).sum()
    }

    /// Fails if anything was wrong.
    pub(super) fn verdict(&self) -> Result<()> {
        ensure!(
            self.wrong.is_empty(),
            "{} wrong; {}; {self}",
            self.wrong.len(),
            self.wrong[..self.wrong.len().min(3)].join("; ")
        );
        Ok(())
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = format!("{} promotions", self.cuts());
        for (kind, count) in &self.kinds {
            write!(words, "; {kind}: {} legal", count.legal)?;
            for (code, times) in &count.refused {
                write!(words, ", {times} refused with {code}")?;
            }
            write!(words, ", {} operations absent", count.absent)?;
        }
        let (kept, lost) = (self.kept, self.lost);
        write!(
            words,
            "; {kept} judgements of the source's disk kept what was flushed, {lost} unflushed writes lost lawfully"
        )?;
        f.write_str(&words)
    }
}

fn judge_alone(
    dir: &Path,
    layout: &Layout,
    cut: &Cut,
    written: &Written,
) -> Result<(Answer, Option<Verdict>)> {
    let shadow = Shadow::new(layout, &cut.image)?;
    let state = layout.mount.join("state");
    let setup = Setup {
        name: "target".to_owned(),
        ..Setup::default()
    };
    let mut node = Node::start_as(dir, &state, setup)?;
    let answer = promote(dir, super::cuts_pair::GROUP);
    node.kill()?;
    forget_memory(&state)?;
    let answer = answer?;
    if let Answer::Refused { .. } = answer {
        return Ok((answer, None));
    }
    let images = shadow.volumes();
    let verdict = written.replica(&images, cut.recorded, cut.keep)?;
    if !verdict.legal
        && let Some(returned) = &cut.returned
        && same(returned, &images)?
    {
        let legal = Verdict {
            legal: true,
            absent: 0,
            ..verdict
        };
        return Ok((answer, Some(legal)));
    }
    Ok((answer, Some(verdict)))
}

fn same(one: &[PathBuf; 2], two: &[PathBuf; 2]) -> Result<bool> {
    for (one, two) in one.iter().zip(two) {
        if fs::read(one)? != fs::read(two)? {
            return Ok(false);
        }
    }
    Ok(true)
}
