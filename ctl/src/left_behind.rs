//! Forced detach when the daemon is gone for good.
//!
//! Owns finding the daemon's program and running it once for this: only it can talk to the ublk
//! driver. Never touches a device or the daemon's files itself.

use crate::Outcome;
use crate::output::Output;
use anyhow::{Context as _, bail};
use blkrep_types::VolumeName;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The daemon's program: beside this one, else wherever the shell would find it.
pub(crate) fn program() -> PathBuf {
    let beside = std::env::current_exe().ok();
    let beside = beside
        .as_deref()
        .and_then(Path::parent)
        .map(|dir| dir.join("blkrepd"));
    beside
        .filter(|path| path.is_file())
        .unwrap_or_else(|| PathBuf::from("blkrepd"))
}

/// Removes the device that a dead daemon left of `volume`.
pub(crate) fn remove(volume: &VolumeName, output: &Output) -> anyhow::Result<Outcome> {
    let program = program();
    let done = Command::new(&program)
        .arg("--remove-left-behind")
        .arg(volume.as_str())
        .output()
        .with_context(|| format!("run {}: is it installed?", program.display()))?;
    if !done.status.success() {
        let why = String::from_utf8_lossy(&done.stderr);
        bail!("{}", why.trim().trim_start_matches("blkrepd: "));
    }
    let notes: Vec<String> = String::from_utf8_lossy(&done.stdout)
        .lines()
        .map(str::to_owned)
        .collect();
    if output.json {
        output.json(&blkrep_api::CommandReply { notes })?;
    } else {
        notes.iter().for_each(|note| output.talk(note));
    }
    Ok(Outcome::Done)
}
