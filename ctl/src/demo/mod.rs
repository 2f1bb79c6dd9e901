//! `blkctl demo`: a source, a target, cuts, a crash and a takeover on this machine, in a minute.
//!
//! Owns the order of the acts and the summary. Options enter; words, and with `--json` every
//! figure, leave. Uses daemons of its own in a directory of its own, through the control API like
//! any client, and leaves nothing behind.

mod acts;
mod daemon;
mod ending;
mod figures;
mod interrupt;
mod load;
mod proxy;
mod scene;
mod show;

use crate::Outcome;
use crate::args::Demo;
use crate::output::Output;
use anyhow::{Context as _, bail};
use blkrep_api::{FrontendKind, SCHEMA};
use figures::Promised;
use interrupt::Interrupt;
use scene::Scene;
use serde::Serialize;
use serde_json::Value;
use show::Show;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Instant;

/// Smallest volume: the storm works on an eighth of it, and must overflow the log with extents to
/// spare.
const SIZE_MIN: u64 = 64 << 20;

/// The summary.
#[derive(Debug, Serialize)]
struct Summary {
    schema: u32,
    /// Every step was played and every promise kept.
    ok: bool,
    frontend: FrontendKind,
    size_bytes: u64,
    seconds: f64,
    steps: Vec<Step>,
    /// Why it ended early.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// One step with what it measured.
#[derive(Debug, Serialize)]
struct Step {
    name: &'static str,
    ok: bool,
    seconds: f64,
    figures: Value,
    /// Promises that were broken.
    broken: Vec<String>,
}

/// Steps as they are played.
struct Playing<'a> {
    show: &'a Show<'a>,
    steps: Vec<Step>,
    name: &'static str,
    began: Instant,
}

impl Playing<'_> {
    fn begin(&mut self, name: &'static str, title: &str) {
        self.show.step(self.steps.len() + 1, title);
        self.name = name;
        self.began = Instant::now();
    }

    fn end(&mut self, figures: &impl Promised) -> anyhow::Result<()> {
        let noted = serde_json::to_value(figures).context("note the figures")?;
        self.note(noted, figures.broken());
        Ok(())
    }

    /// The step that was begun could not be played to its end.
    fn fail(&mut self, error: &anyhow::Error) {
        self.note(Value::Null, vec![format!("{error:#}")]);
    }

    fn note(&mut self, figures: Value, broken: Vec<String>) {
        broken.iter().for_each(|what| self.show.broken(what));
        self.steps.push(Step {
            name: self.name,
            ok: broken.is_empty(),
            seconds: self.began.elapsed().as_secs_f64(),
            figures,
            broken,
        });
    }
}

/// Plays the demonstration.
pub(crate) fn run(demo: &Demo, output: &Output) -> anyhow::Result<Outcome> {
    if demo.guest {
        return Err(in_guest(demo, output.json));
    }
    let size = demo.size.get();
    if size < SIZE_MIN || !size.is_multiple_of(1 << 20) {
        bail!(
            "a volume of {} is not for this: use whole MiB, from 64MiB",
            demo.size
        );
    }
    let show = Show::new(output);
    let interrupt = Interrupt::take()?;
    let began = Instant::now();
    let mut playing = Playing {
        show: &show,
        steps: Vec::new(),
        name: "begin",
        began,
    };
    let mut scene = Scene::set(size, demo.frontend, interrupt.clone(), &show)?;
    show.tell(&format!(
        "everything is below {}",
        scene.dir.path().display()
    ));
    let played = play(&mut scene, &mut playing);
    let frontend = scene.frontend;
    if let Err(error) = &played {
        playing.fail(error);
    }
    if played.is_err() && interrupt.check().is_ok() {
        show.tell(&format!("source: {}", scene.source.last_words()));
        show.tell(&format!("target: {}", scene.target.last_words()));
    }
    playing.begin("clean-up", "everything is taken back");
    let cleaned = ending::clean_up(scene, demo.keep);
    if let Some(kept) = &cleaned.kept {
        show.tell(&format!("kept: {kept}"));
    }
    playing.end(&cleaned)?;
    let steps = playing.steps;
    let summary = Summary {
        schema: SCHEMA,
        ok: played.is_ok() && steps.iter().all(|step| step.ok),
        frontend,
        size_bytes: size,
        seconds: began.elapsed().as_secs_f64(),
        steps,
        error: played.err().map(|error| format!("{error:#}")),
    };
    conclude(&summary, &show, output)
}

fn conclude(summary: &Summary, show: &Show<'_>, output: &Output) -> anyhow::Result<Outcome> {
    let kept = summary.steps.iter().filter(|step| step.ok).count();
    let text = format!(
        "{kept} of {} steps as promised, in {:.0} s",
        summary.steps.len(),
        summary.seconds
    );
    show.end(summary.ok, &text);
    if output.json {
        output.json(summary)?;
    }
    Ok(if summary.ok {
        Outcome::Done
    } else {
        Outcome::Condition
    })
}

fn play(scene: &mut Scene<'_>, playing: &mut Playing<'_>) -> anyhow::Result<()> {
    playing.begin("attach", "a file becomes a block device");
    let (device, attached) = acts::attach(scene)?;
    playing.end(&attached)?;
    playing.begin(
        "full-mirror",
        "full mirror to the other node, while the application writes",
    );
    let mirrored = acts::full_mirror(scene, &device)?;
    playing.end(&mirrored)?;
    playing.begin("workload", "replication, write for write in order");
    let worked = acts::workload(scene, &device)?;
    playing.end(&worked)?;
    playing.begin(
        "short-cut",
        "the network is cut for 3 seconds; the log absorbs it",
    );
    let cut = acts::short_cut(scene, &device)?;
    playing.end(&cut)?;
    playing.begin("long-cut", "a cut with more writes than the log holds");
    let cut = acts::long_cut(scene, &device)?;
    playing.end(&cut)?;
    playing.begin(
        "crash",
        "kill -9 of the source's daemon in the middle, and go on",
    );
    let (device, crashed) = acts::crash(scene, &device)?;
    playing.end(&crashed)?;
    playing.begin(
        "takeover",
        "the source is lost for good; the target takes over",
    );
    let (device, taken) = ending::takeover(scene, &device)?;
    playing.end(&taken)?;
    playing.begin(
        "check",
        "independent check: is the promoted image a prefix of what was written?",
    );
    let checked = ending::check(scene)?;
    playing.end(&checked)?;
    playing.begin("go-on", "the application goes on there");
    let gone_on = ending::go_on(scene, &device)?;
    playing.end(&gone_on)
}

/// Becomes the program that plays it on real ublk in a guest; returns only if that failed.
fn in_guest(demo: &Demo, json: bool) -> anyhow::Error {
    let beside = std::env::current_exe().ok();
    let program = beside.and_then(|program| Some(program.parent()?.join("blkrep-lab")));
    let Some(program) = program.filter(|program| program.is_file()) else {
        return anyhow::anyhow!(
            "blkrep-lab is not beside blkctl: guests are part of the source tree, not of an \
             installation. In a clone: cargo xtask demo --guest"
        );
    };
    let mut command = Command::new(&program);
    command.arg("demo").arg("--size").arg(demo.size.to_string());
    if json {
        command.arg("--json");
    }
    anyhow::Error::from(command.exec()).context(format!("run {}", program.display()))
}
