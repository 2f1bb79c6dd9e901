//! A program of somebody else's in a guest: the job's words are its command line.
//!
//! Owns nothing; the program talks on the console and through the record channel. Never interprets what it says.

use super::Context;
use anyhow::{Context as _, Result, ensure};
use std::process::{Command, Stdio};

pub(super) fn program(context: &Context) -> Result<String> {
    let (name, words) = context
        .arguments
        .split_first()
        .context("the job names no program")?;
    let status = Command::new(name).args(words).stdin(Stdio::null()).status();
    let status = status.with_context(|| format!("start {name}"))?;
    ensure!(status.success(), "{name}: {status}");
    Ok(format!("{name} ended well"))
}
