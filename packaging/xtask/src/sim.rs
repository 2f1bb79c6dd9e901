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
    let mut command = git(root, "describe --always --dirty --abbrev=12");
    let said = command.output().ok().filter(|said| said.status.success());
    said.map_or_else(
        || "unknown".to_owned(),
        |said| String::from_utf8_lossy(&said.stdout).trim().to_owned(),
    )
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
