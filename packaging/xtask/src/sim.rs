//! `cargo xtask sim`: the simulator, built fast and with every check.
//!
//! Owns the build. Arguments enter and are the simulator's; its exit code leaves.

use crate::stages::cargo;
use anyhow::{Context, Result};

/// Builds the simulator and runs it.
pub(crate) fn run(arguments: &[String]) -> Result<bool> {
    let mut command = cargo("run --quiet --profile sim -p blkrep-sim --");
    command.args(arguments);
    let status = command.status().context("run the simulator")?;
    Ok(status.success())
}
