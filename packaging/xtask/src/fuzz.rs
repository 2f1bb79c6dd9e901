//! Fuzzing, by hand.
//!
//! Owns how `tests/fuzz` is built and run. Names of targets and a time enter, totals leave. What a run finds that is new
//! stays in the target directory: the corpus of the tree changes by hand only. A run that could not be made has failed.

use crate::guests::target_dir;
use crate::limit::Limited;
use crate::stages::{Totals, cargo};
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The version of cargo-fuzz that the runs were tried with.
const CARGO_FUZZ: &str = "0.13.2";

/// Everything is built for it once more, with one code generation unit: minutes on two slow cores.
const BUILD_LIMIT: Duration = Duration::from_mins(25);

/// What a run may take beyond its time: the corpus, and one input that hangs.
const GRACE: Duration = Duration::from_mins(3);

/// Longest input: some blocks of a disk, some frames.
const INPUT_BYTES_MAX: u32 = 16 << 10;

/// Memory of a whole run, in MiB: buffers of a connection, the fuzzer's corpus, and no more.
const RUN_MIB_MAX: u32 = 2048;

/// The command: one target or all, for a time each.
pub(crate) fn run(target: Option<String>, seconds: u64) -> Result<bool> {
    let built = build()?;
    let targets = match target {
        None => built.targets.clone(),
        Some(name) if built.targets.contains(&name) => vec![name],
        Some(name) => bail!(
            "there is no fuzz target '{name}'; there are {}",
            built.targets.join(", ")
        ),
    };
    let mut totals = Totals::default();
    built.run(&targets, seconds, &mut totals)?;
    println!("{totals}");
    Ok(totals.failed == 0)
}

/// Every target for a time each, as one stage of many.
pub(crate) fn each(seconds: u64, totals: &mut Totals) -> Result<()> {
    let built = build()?;
    built.run(&built.targets, seconds, totals)
}

struct Built {
    /// `tests/fuzz`.
    source: PathBuf,
    programs: PathBuf,
    /// Where found inputs go.
    found: PathBuf,
    targets: Vec<String>,
}

fn build() -> Result<Built> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    let source = root.context("find the workspace")?.join("tests/fuzz");
    let targets = targets(&source)?;
    let directory = target_dir("fuzz")?;
    let tools = tools(&directory)?;
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    // Without a sanitizer the pinned toolchain can build it: docs/adr/0005.
    let mut command = cargo("fuzz build --sanitizer none");
    command.args(["--target", &triple]);
    command.arg("--fuzz-dir").arg(&source);
    command.arg("--target-dir").arg(&directory);
    command.env("PATH", tools);
    let status = Limited::spawn(&mut command, BUILD_LIMIT)?.wait()?;
    ensure!(status.success(), "the fuzz targets do not build");
    Ok(Built {
        source,
        programs: directory.join(triple).join("release"),
        found: directory.join("found"),
        targets,
    })
}

/// The names of all targets: one file each.
fn targets(source: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(source.join("fuzz_targets")).context("list the fuzz targets")? {
        let path = entry?.path();
        if path.extension().is_some_and(|kind| kind == "rs") {
            let name = path.file_stem().context("name a fuzz target")?;
            names.push(name.to_string_lossy().into_owned());
        }
    }
    ensure!(!names.is_empty(), "there is no fuzz target");
    names.sort();
    Ok(names)
}

/// A search path that has cargo-fuzz, which is installed below `directory` if it is not there.
fn tools(directory: &Path) -> Result<std::ffi::OsString> {
    let tools = directory.join("tools");
    if !tools.join("bin/cargo-fuzz").exists() {
        let mut command = cargo("install --locked --quiet cargo-fuzz --version");
        command.arg(CARGO_FUZZ).arg("--root").arg(&tools);
        let status = Limited::spawn(&mut command, BUILD_LIMIT)?.wait()?;
        ensure!(
            status.success(),
            "cargo-fuzz {CARGO_FUZZ} cannot be installed"
        );
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = std::iter::once(tools.join("bin")).chain(std::env::split_paths(&path));
    std::env::join_paths(all).context("make a search path")
}

impl Built {
    fn run(&self, targets: &[String], seconds: u64, totals: &mut Totals) -> Result<()> {
        for target in targets {
            let started = Instant::now();
            let passed = self.run_one(target, seconds)?;
            let word = if passed { "ok" } else { "FAILED" };
            let took = started.elapsed().as_secs();
            println!("fuzz {target} ... {word} ({took} s)");
            totals.add(passed);
        }
        Ok(())
    }

    /// One target: the corpus of the tree, then inputs made of it. A failing input is kept and named.
    fn run_one(&self, target: &str, seconds: u64) -> Result<bool> {
        let seeds = self.source.join("corpus").join(target);
        ensure!(seeds.is_dir(), "fuzz target {target} has no corpus");
        let found = self.found.join(target);
        let (corpus, failing) = (found.join("corpus"), found.join("failing"));
        for directory in [&corpus, &failing] {
            std::fs::create_dir_all(directory).context("make a directory for found inputs")?;
        }
        let log = std::fs::File::create(found.join("log")).context("make a log")?;
        let mut command = Command::new(self.programs.join(target));
        command.arg(format!("-max_len={INPUT_BYTES_MAX}"));
        command.arg(format!("-rss_limit_mb={RUN_MIB_MAX}"));
        command.arg(format!("-artifact_prefix={}/", failing.display()));
        command.arg(format!("-max_total_time={seconds}"));
        command.args([&corpus, &seeds]);
        command.stdout(log.try_clone()?).stderr(log);
        let limit = Duration::from_secs(seconds) + GRACE;
        let passed = Limited::spawn(&mut command, limit)?.wait()?.success();
        let text = std::fs::read(found.join("log")).context("read the log")?;
        let text = String::from_utf8_lossy(&text);
        if passed {
            println!("{}", text.lines().last().unwrap_or_default());
        } else {
            println!("{}", tail(&text));
            println!("failing inputs: {}", failing.display());
        }
        Ok(passed)
    }
}

/// Enough of a log to see the panic and the input.
fn tail(text: &str) -> String {
    const LINES: usize = 60;
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A target that the manifest does not know would never be built, and one without seeds never get far.
    #[test]
    fn every_target_is_built_and_has_seeds() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
        let source = root.unwrap().join("tests/fuzz");
        let manifest = std::fs::read_to_string(source.join("Cargo.toml")).unwrap();
        for target in targets(&source).unwrap() {
            let line = format!("path = \"fuzz_targets/{target}.rs\"");
            assert!(manifest.contains(&line), "{target} is in Cargo.toml");
            let mut seeds = std::fs::read_dir(source.join("corpus").join(&target)).unwrap();
            assert!(seeds.next().is_some(), "{target} has seeds");
        }
    }
}
