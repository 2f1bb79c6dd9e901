//! The demonstration on real ublk.

use super::Context;
use crate::guest::scenario::DEMO_PREFIX;
use anyhow::{Context as _, Result, ensure};
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

/// Plays it, passing on its words; its figures are the result.
pub(super) fn demo(context: &Context) -> Result<String> {
    let mut playing = Command::new("blkctl")
        .args(["demo", "--frontend", "ublk", "--json"])
        .args(&context.arguments)
        .env("TMPDIR", &context.dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("run blkctl")?;
    let words = playing.stderr.take().context("take the words")?;
    let figures = playing.stdout.take().context("take the figures")?;
    // The figures are a page or two and come at the end: the pipe holds them meanwhile.
    for line in BufReader::new(words).lines() {
        println!("{DEMO_PREFIX}{}", line.context("read the words")?);
    }
    let figures = std::io::read_to_string(figures).context("read the figures")?;
    let status = playing.wait().context("wait for blkctl")?;
    let figures: serde_json::Value = serde_json::from_str(&figures).with_context(|| {
        format!("understand the figures of a demonstration that ended with {status}")
    })?;
    // Broken promises are in the figures: whoever asked reads them there.
    ensure!(
        status.code().is_some_and(|code| code < 2),
        "blkctl demo ended with {status}"
    );
    Ok(figures.to_string())
}
