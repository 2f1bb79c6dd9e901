//! `cargo xtask sim` and `cargo xtask planted`: the simulator, built fast and with every check, and with every
//! planted bug.
//!
//! Owns the build, and a copy of the sources that somebody's patch is tried on. Arguments enter and are
//! the simulator's; its exit code leaves. Never changes the sources themselves.

use crate::stages::cargo;
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds the simulator and runs it; with `patch`, from a copy with that change.
pub(crate) fn run(patch: Option<&Path>, arguments: &[String]) -> Result<bool> {
    let status = command(patch, arguments)?.status();
    Ok(status.context("run the simulator")?.success())
}

/// What builds and runs it.
pub(crate) fn command(patch: Option<&Path>, arguments: &[String]) -> Result<Command> {
    let root = match patch {
        Some(patch) => patched(patch)?,
        None => root()?,
    };
    let mut command = cargo("run --quiet --profile sim -p blkrep-sim --");
    command.args(arguments).current_dir(&root);
    command.env("BLKREP_COMMIT", commit(&root));
    if patch.is_some() {
        // Of its own: the next run without the patch must not find this one's program.
        command.env(
            "CARGO_TARGET_DIR",
            crate::guests::target_dir("patched-target")?,
        );
    }
    Ok(command)
}

/// Builds it with the planted bugs and hunts them.
pub(crate) fn hunt(arguments: &[String]) -> Result<bool> {
    let status = hunters(arguments).status();
    Ok(status.context("hunt the planted bugs")?.success())
}

/// What builds and runs the hunt.
pub(crate) fn hunters(arguments: &[String]) -> Command {
    let line = "run --quiet --profile sim -p blkrep-sim --features planted --bin blkrep-planted --";
    let mut command = cargo(line);
    command.args(arguments);
    command
}

fn root() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.canonicalize().context("find the workspace")
}

fn commit(root: &Path) -> String {
    let said = answer(git(root, "describe --always --dirty --abbrev=12"));
    said.unwrap_or_else(|| "unknown".to_owned())
}

/// The first of the seeds that belong to what is committed: nobody has run them before it, and whoever runs them
/// again gets the same. `None` outside a repository.
pub(crate) fn first_of_commit() -> Result<Option<u64>> {
    Ok(answer(git(&root()?, "rev-parse HEAD")).and_then(|commit| first_of(&commit)))
}

/// Far above the seeds that are counted from 0, with room behind each for a campaign.
fn first_of(commit: &str) -> Option<u64> {
    let digits = commit.get(..10)?;
    let number = u64::from_str_radix(digits, 16).ok()?;
    Some((number | 1) << 20)
}

fn answer(mut command: Command) -> Option<String> {
    let said = command.output().ok().filter(|said| said.status.success())?;
    Some(String::from_utf8_lossy(&said.stdout).trim().to_owned())
}

fn git(root: &Path, line: &str) -> Command {
    let mut command = Command::new("git");
    command.arg("-C").arg(root).args(line.split(' '));
    command
}

/// A copy of what is committed, with the patch. The last one is replaced.
fn patched(patch: &Path) -> Result<PathBuf> {
    let patch = patch
        .canonicalize()
        .with_context(|| format!("find {}", patch.display()))?;
    let copy = crate::guests::target_dir("patched")?;
    if copy.exists() {
        std::fs::remove_dir_all(&copy).with_context(|| format!("remove {}", copy.display()))?;
    }
    let mut clone = git(&root()?, "clone --quiet --local .");
    ensure!(
        clone.arg(&copy).status()?.success(),
        "git cannot copy the sources"
    );
    let mut apply = git(&copy, "apply --index");
    if !apply.arg(&patch).status()?.success() {
        bail!("{} does not apply to what is committed", patch.display());
    }
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_commit_has_seeds_of_its_own() {
        let one = first_of("07f603e1c0aa0000000000000000000000000000");
        let other = first_of("07f603e1c2aa0000000000000000000000000000");
        assert_eq!(one, Some(0x07_f603_e1c1 << 20));
        assert_ne!(one, other);
        assert!(one > Some(1 << 20), "and not those from 0 on");
        assert_eq!(first_of("unknown"), None);
    }
}
