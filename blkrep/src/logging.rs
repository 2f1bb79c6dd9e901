//! Where the daemon's log goes: the journal under systemd, else standard error.
//!
//! Owns the subscriber of `tracing`; it is set once.

use anyhow::Context as _;
use std::io::IsTerminal as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, fmt};

/// Starts logging what `filter` lets through.
///
/// # Errors
/// The filter cannot be understood.
pub fn start(filter: &str) -> anyhow::Result<()> {
    let levels = EnvFilter::try_new(filter)
        .with_context(|| format!("log filter '{filter}': use a level, or target=level,…"))?;
    let journal = under_journal()
        .then(tracing_journald::layer)
        .and_then(Result::ok);
    let layer = match journal {
        Some(journal) => journal.boxed(),
        None => fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .boxed(),
    };
    tracing_subscriber::registry()
        .with(layer.with_filter(levels))
        .try_init()
        .context("start logging")
}

/// True if standard error is the journal's stream: systemd then names it in the environment.
fn under_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let Ok(found) = nix::sys::stat::fstat(std::io::stderr()) else {
        return false;
    };
    stream == format!("{}:{}", found.st_dev, found.st_ino)
}
