//! Line coverage of the crates that hold the data, by their tests and the simulator.
//!
//! Owns how it is measured and what is asked for. Enters: seeds of the campaign. Leaves: a table and
//! the lines that nothing runs. Lines of unit tests do not count, neither as covered nor as code.

use crate::guests::target_dir;
use crate::limit::Limited;
use crate::stages::cargo;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// The version of cargo-llvm-cov that it was tried with.
const CARGO_LLVM_COV: &str = "0.9.1";

/// Everything is built once more, instrumented, and runs slower.
const LIMIT: Duration = Duration::from_mins(60);

/// Whose lines are counted, below `blkrep/`.
const COUNTED: [&str; 4] = ["core", "log", "store", "wire"];

/// Whose tests are run.
const TESTED: [&str; 9] = [
    "blkrep-types",
    "blkrep-io",
    "blkrep-core",
    "blkrep-log",
    "blkrep-wire",
    "blkrep-store",
    "blkrep-api",
    "blkrep-ublk",
    "blkrep",
];

/// What each crate must reach: what is left has a reason in docs/internals/testing.md.
const PERCENT_MIN: f64 = 90.0;

/// The command.
pub(crate) fn run(seeds: u64) -> Result<bool> {
    let directory = target_dir("coverage")?;
    let path = tools(&directory)?;
    let cargo = |line: &str| -> Result<()> {
        let mut command = cargo(line);
        command
            .env("PATH", &path)
            .env("CARGO_TARGET_DIR", &directory);
        let status = Limited::spawn(&mut command, LIMIT)?.wait()?;
        ensure!(status.success(), "cargo {line} failed");
        Ok(())
    };
    cargo("llvm-cov clean --workspace")?;
    let packages = TESTED.join(" -p ");
    cargo(&format!("llvm-cov test --no-report -p {packages}"))?;
    cargo(&format!(
        "llvm-cov run --profile test --no-report -p blkrep-sim --bin blkrep-sim -- --from 0 --seeds {seeds}"
    ))?;
    let report = directory.join("lcov.info");
    cargo(&format!(
        "llvm-cov report --lcov --output-path {}",
        report.display()
    ))?;
    let report = std::fs::read_to_string(&report).context("read the report")?;
    let (text, enough) = judge(&report, |file| {
        std::fs::read_to_string(file).with_context(|| format!("read {file}"))
    })?;
    print!("{text}");
    Ok(enough)
}

/// A search path that has cargo-llvm-cov, which is installed below `directory` if it is not there.
fn tools(directory: &Path) -> Result<std::ffi::OsString> {
    let tools = directory.join("tools");
    if !tools.join("bin/cargo-llvm-cov").exists() {
        let mut command = cargo("install --locked --quiet cargo-llvm-cov --version");
        command.arg(CARGO_LLVM_COV).arg("--root").arg(&tools);
        let status = Limited::spawn(&mut command, LIMIT)?.wait()?;
        ensure!(
            status.success(),
            "cargo-llvm-cov {CARGO_LLVM_COV} cannot be installed"
        );
    }
    let status = Command::new("rustup")
        .args(["component", "add", "llvm-tools"])
        .status()
        .context("run rustup")?;
    ensure!(status.success(), "the component llvm-tools cannot be had");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = std::iter::once(tools.join("bin")).chain(std::env::split_paths(&path));
    std::env::join_paths(all).context("make a search path")
}

/// How often lines of a file ran.
type Lines = BTreeMap<usize, u64>;

/// Reads a report in lcov's format.
fn parse(report: &str) -> Result<BTreeMap<&str, Lines>> {
    let mut files: BTreeMap<&str, Lines> = BTreeMap::new();
    let mut file = "";
    for line in report.lines() {
        if let Some(name) = line.strip_prefix("SF:") {
            file = name;
        } else if let Some(fact) = line.strip_prefix("DA:") {
            let mut words = fact.split(',');
            let (number, count) = (words.next(), words.next());
            let number = number.and_then(|word| word.parse().ok());
            let count: Option<u64> = count.and_then(|word| word.parse().ok());
            let (number, count) = number.zip(count).context("read a line of the report")?;
            let known = files.entry(file).or_default().entry(number).or_default();
            *known = count.max(*known);
        }
    }
    Ok(files)
}

/// The line at which a file's unit tests begin.
fn tests_begin(source: &str) -> usize {
    let lines: Vec<_> = source.lines().collect();
    let begins = |at: usize| {
        let mut rest = lines[at + 1..].iter();
        let next = rest.find(|line| !line.starts_with("#["));
        lines[at] == "#[cfg(test)]" && next.is_some_and(|line| *line == "mod tests {")
    };
    (0..lines.len())
        .find(|at| begins(*at))
        .map_or(usize::MAX, |at| at + 1)
}

/// The crate a file counts for.
fn crate_of(file: &str) -> Option<&'static str> {
    let counts = |name: &&str| file.contains(&format!("/blkrep/{name}/src/"));
    let tests = file.ends_with("tests.rs") || file.contains("/tests/");
    COUNTED.into_iter().find(counts).filter(|_| !tests)
}

/// The table with what nothing runs, and whether every crate has enough.
fn judge(report: &str, source: impl Fn(&str) -> Result<String>) -> Result<(String, bool)> {
    let mut counts = COUNTED.map(|name| (name, 0_u32, 0_u32));
    let mut missing = String::new();
    for (file, lines) in parse(report)? {
        let Some(name) = crate_of(file) else { continue };
        let end = tests_begin(&source(file)?);
        let lines = lines.range(..end);
        let never: Vec<_> = lines.clone().filter(|(_, count)| **count == 0).collect();
        let never: Vec<_> = never.into_iter().map(|(number, _)| *number).collect();
        for count in counts.iter_mut().filter(|count| count.0 == name) {
            count.1 += u32::try_from(lines.clone().count())?;
            count.2 += u32::try_from(never.len())?;
        }
        let (_, short) = file.split_once("/blkrep/").context("name a file")?;
        if !never.is_empty() {
            writeln!(missing, "{short}: {}", ranges(&never))?;
        }
    }
    let mut text = format!("lines that nothing runs:\n{missing}\n");
    writeln!(
        text,
        "{:8} {:>7} {:>7} {:>8}",
        "crate", "lines", "never", "covered"
    )?;
    let mut enough = true;
    for (name, lines, never) in counts {
        ensure!(lines > 0, "the report has no line of {name}");
        let percent = 100.0 * f64::from(lines - never) / f64::from(lines);
        writeln!(text, "{name:8} {lines:7} {never:7} {percent:7.1}%")?;
        enough &= percent >= PERCENT_MIN;
    }
    Ok((text, enough))
}

/// `3-5 9` for 3, 4, 5, 9.
fn ranges(numbers: &[usize]) -> String {
    let runs = numbers.chunk_by(|one, next| one + 1 == *next);
    let words = runs.map(|run| match run {
        [first, .., last] => format!("{first}-{last}"),
        only => only.iter().map(ToString::to_string).collect(),
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SOURCE: &str = "fn a() {\n}\n#[cfg(test)]\n#[allow(x)]\nmod tests {\n}\n";

    fn report(counts: [u64; 4]) -> String {
        let of = |(name, count): (&str, u64)| {
            format!("SF:/x/blkrep/{name}/src/a.rs\nDA:1,1\nDA:2,{count}\nDA:4,0\nend_of_record\n")
        };
        let files: Vec<_> = COUNTED.into_iter().zip(counts).map(of).collect();
        files.concat() + "SF:/x/blkrep/core/src/b/tests.rs\nDA:1,0\nend_of_record\n"
    }

    #[test]
    fn a_crate_with_too_many_lines_that_nothing_runs_fails_the_whole() {
        let judged = |counts| judge(&report(counts), |_| Ok(SOURCE.to_owned())).unwrap();
        let (text, enough) = judged([1, 1, 1, 1]);
        assert!(enough, "{text}");
        assert!(
            !text.contains("a.rs"),
            "lines of tests do not count: {text}"
        );
        let (text, enough) = judged([1, 1, 0, 1]);
        assert!(!enough, "{text}");
        assert!(text.contains("store/src/a.rs: 2\n"), "{text}");
        assert!(text.contains("50.0%"), "{text}");
    }

    #[test]
    fn a_report_without_a_crate_is_no_report() {
        assert!(
            judge(
                "SF:/x/blkrep/core/src/a.rs\nDA:1,1\n",
                |_| Ok(String::new())
            )
            .is_err()
        );
    }

    #[test]
    fn lines_in_a_row_are_told_as_one() {
        assert_eq!(ranges(&[3, 4, 5, 9, 11, 12]), "3-5 9 11-12");
    }
}
