//! Guests from the command line: building what goes into them, running bodies, and scenarios of several boots.
//!
//! Owns the build for guests. Names enter, totals leave. What a guest is stands in `blkrep_tests::guest`.

use crate::stages::{Totals, cargo};
use anyhow::{Context, Result, ensure};
use blkrep_tests::guest::campaign::Campaign;
use blkrep_tests::guest::{Kind, scenario};
use blkrep_tests::inside::BODIES;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Builds the programs that run in guests: optimised, as emulation is slow, with assertions and overflow checks left in.
pub(crate) fn build() -> Result<PathBuf> {
    let line =
        "build --profile guest --bins -p blkrep -p blkctl -p blkrep-tests --message-format=short";
    let status = cargo(line).status().context("run cargo build")?;
    ensure!(status.success(), "the programs for the guests do not build");
    target_dir("guest")
}

/// Where cargo puts the programs of a profile.
pub(crate) fn target_dir(profile: &str) -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(default_target, |dir| Ok(PathBuf::from(dir)))?;
    std::path::absolute(target.join(profile)).context("find the build")
}

fn default_target() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    Ok(root.context("find the workspace")?.join("target"))
}

pub(crate) fn list() {
    for body in BODIES {
        let kind = if body.harness { " (harness)" } else { "" };
        let kind = if body.on_request {
            " (by name only)"
        } else {
            kind
        };
        println!("{}{kind}", body.name);
    }
    SCENARIOS
        .iter()
        .for_each(|(name, _)| println!("{name} (scenario)"));
}

/// Runs bodies in one kind of guest. A guest that cannot be started is a failure.
pub(crate) fn run(kind: Kind, programs: &Path, names: &[String], full: bool, totals: &mut Totals) {
    let started = Instant::now();
    let is_scenario = |name: &&String| SCENARIOS.iter().any(|(scenario, _)| scenario == name);
    let bodies: Vec<String> = names
        .iter()
        .filter(|name| !is_scenario(name))
        .cloned()
        .collect();
    if bodies.is_empty() && !names.is_empty() {
        return;
    }
    let campaign = Campaign {
        kind,
        programs: programs.to_owned(),
        names: bodies,
        full,
    };
    match campaign.run() {
        Ok(results) => results.iter().for_each(|result| totals.add(result.ok)),
        Err(error) => {
            println!("{}: could not run: {error:#}", kind.name());
            totals.add(false);
        }
    }
    println!("{}: {:.0} s", kind.name(), started.elapsed().as_secs_f64());
}

type Scenario = fn(Kind, &Path) -> Result<String>;

const SCENARIOS: [(&str, Scenario); 2] = [
    (
        "record_outlives_the_guest",
        scenario::record_outlives_the_guest,
    ),
    (
        "volumes_return_after_reboot",
        scenario::volumes_return_after_reboot,
    ),
];

/// Scenarios that take a boot of their own, by name; all without one.
pub(crate) fn scenarios(kind: Kind, programs: &Path, names: &[String], totals: &mut Totals) {
    if kind == Kind::Host {
        println!("host: scenarios with a reboot run in qemu, as this machine stays up");
    }
    let kind = if kind == Kind::Host { Kind::Qemu } else { kind };
    for (name, scenario) in SCENARIOS
        .iter()
        .filter(|(name, _)| names.is_empty() || names.iter().any(|n| n == name))
    {
        let started = Instant::now();
        let done = scenario(kind, programs);
        let word = if done.is_ok() { "ok" } else { "FAILED" };
        let seconds = started.elapsed().as_secs_f64();
        let words = done
            .as_ref()
            .map_or_else(|error| format!("{error:#}"), Clone::clone);
        println!(
            "{}: SCENARIO {name} {word} {seconds:.1} {words}",
            kind.name()
        );
        totals.add(done.is_ok());
    }
}
