//! The stages of `cargo xtask test`, and the sum over them.
//!
//! Owns the order of the stages and the counting. Output of cargo enters, totals leave. A stage that fails does not keep the
//! later ones from running: one run shows everything that is wrong.

use crate::limit::Limited;
use crate::{fuzz, guests, install, sim};
use anyhow::{Context, Result, ensure};
use blkrep_tests::guest::Kind;
use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Longer than any stage of cargo takes on two slow cores with nothing built; a guest has limits of its own.
const STAGE_LIMIT: Duration = Duration::from_mins(25);

/// Seeds of the simulator that every commit gets, of its own, and those of a whole campaign.
const SEEDS: u64 = 3000;
const SEEDS_FULL: u64 = 100_000;

/// Seeds that no planted bug may survive, for every change and in a whole campaign.
const HUNTED: u64 = 10_000;
const HUNTED_FULL: u64 = 20_000;

/// Seconds that each fuzz target gets beyond its corpus, for every change and in a whole campaign.
const FUZZED: u64 = 5;
const FUZZED_FULL: u64 = 600;

/// What passed and what did not.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Totals {
    /// Tests and checks that passed.
    pub(crate) passed: u64,
    /// Those that failed, could not run, or were not reached.
    pub(crate) failed: u64,
}

impl Totals {
    pub(crate) fn add(&mut self, ok: bool) {
        *if ok {
            &mut self.passed
        } else {
            &mut self.failed
        } += 1;
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

/// All stages, and the totals on a line of their own at the end.
pub(crate) fn test(full: bool) -> Result<bool> {
    let mut totals = Totals::default();
    stage("install", || {
        install::all()?;
        install::fuzzing().map(|()| totals.add(true))
    })?;
    for (name, line) in [
        ("format", "fmt --all --check"),
        (
            "lints",
            "clippy --workspace --all-targets --quiet -- -D warnings",
        ),
    ] {
        stage(name, || {
            let status = Limited::spawn(&mut cargo(line), STAGE_LIMIT)?.wait()?;
            totals.add(status.success());
            Ok(())
        })?;
    }
    stage("workspace tests", || workspace_tests(full, &mut totals))?;
    let limit = STAGE_LIMIT * if full { 4 } else { 1 };
    stage("simulator", || {
        let seeds = if full { SEEDS_FULL } else { SEEDS };
        let mut arguments = vec!["--seeds".to_owned(), seeds.to_string()];
        if let Some(first) = sim::first_of_commit()? {
            arguments.extend(["--from".to_owned(), first.to_string()]);
        }
        let mut command = sim::command(None, &arguments)?;
        let status = Limited::spawn(&mut command, limit)?.wait()?;
        totals.add(status.success());
        Ok(())
    })?;
    stage("planted bugs", || {
        let seeds = if full { HUNTED_FULL } else { HUNTED };
        let mut command = sim::hunters(&["--seeds".to_owned(), seeds.to_string()]);
        let status = Limited::spawn(&mut command, limit)?.wait()?;
        totals.add(status.success());
        Ok(())
    })?;
    stage("fuzzing", || {
        fuzz::each(if full { FUZZED_FULL } else { FUZZED }, &mut totals)
    })?;
    stage("guest tests", || guest_tests(full, &mut totals))?;
    println!("{totals}");
    Ok(totals.failed == 0)
}

fn stage(name: &str, run: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("== {name}");
    let started = Instant::now();
    let done = run().with_context(|| format!("stage {name}"));
    println!("== {name}: {:.0} s", started.elapsed().as_secs_f64());
    done
}

pub(crate) fn cargo(line: &str) -> Command {
    // The cargo that runs us, so that the toolchain is the pinned one.
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(line.split(' '));
    command
}

/// Builds what a user runs, as a user gets it.
pub(crate) fn build_product() -> Result<PathBuf> {
    let line = "build --release --bins -p blkrep -p blkctl --message-format=short";
    let status = cargo(line).status().context("run cargo build")?;
    ensure!(status.success(), "the product does not build");
    guests::target_dir("release")
}

fn workspace_tests(full: bool, totals: &mut Totals) -> Result<()> {
    let mut command = cargo("test --workspace --no-fail-fast");
    if full {
        command.env("BLKREP_FULL", "1");
    }
    let limit = STAGE_LIMIT * if full { 4 } else { 1 };
    let mut run = Limited::spawn(command.stdout(Stdio::piped()), limit)?;
    let output = run.child.stdout.take().context("read cargo test")?;
    let mut counted = Totals::default();
    for line in BufReader::new(output).lines() {
        let line = line?;
        println!("{line}");
        if let Some(result) = parse_result(&line) {
            counted.passed += result.passed;
            counted.failed += result.failed;
        }
    }
    let status = run.wait()?;
    if !status.success() && counted.failed == 0 {
        // It did not compile, or a test process died without a result.
        counted.failed = 1;
    }
    totals.passed += counted.passed;
    totals.failed += counted.failed;
    Ok(())
}

/// Reads `test result: ok. 3 passed; 0 failed; …`. An ignored test is one that did not run, and counts as failed.
fn parse_result(line: &str) -> Option<Totals> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let count = |what: &str| {
        let mut parts = counts.split("; ").filter_map(|part| part.split_once(' '));
        parts.find(|(_, word)| *word == what)?.0.parse::<u64>().ok()
    };
    Some(Totals {
        passed: count("passed")?,
        failed: count("failed")? + count("ignored")?,
    })
}

fn guest_tests(full: bool, totals: &mut Totals) -> Result<()> {
    let programs = match guests::build() {
        Ok(programs) => programs,
        Err(error) => {
            println!("guest tests could not run: {error:#}");
            totals.add(false);
            return Ok(());
        }
    };
    let mut kinds = vec![Kind::best()];
    if std::env::var_os("BLKREP_UML").is_some() {
        kinds.push(Kind::Uml);
    }
    for kind in kinds {
        guests::run(kind, &programs, &[], full, totals);
        guests::scenarios(kind, &programs, &[], totals);
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn results_of_cargo_are_counted_and_ignored_tests_are_failures() {
        let line = "test result: ok. 18 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out; finished in 0.58s";
        let totals = parse_result(line).unwrap();
        assert_eq!((totals.passed, totals.failed), (18, 0));
        let line = "test result: FAILED. 1 passed; 2 failed; 3 ignored; 0 measured; 0 filtered out; finished in 1s";
        let totals = parse_result(line).unwrap();
        assert_eq!((totals.passed, totals.failed), (1, 5));
        assert!(parse_result("test a::b ... ok").is_none());
    }
}
