//! What `blkctl demo --guest` becomes: the demonstration on real ublk, in a guest of this machine.
//!
//! Exit code 0: every promise kept. 1: one was broken. 2: it could not be played.

#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use blkrep_tests::guest::{Kind, scenario};
use clap::{Parser, Subcommand};
use serde_json::Value;
use std::process::ExitCode;

#[derive(Parser)]
#[command(about = "Plays blkrep in a guest with a real kernel")]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Two nodes in one guest, on ublk: a mirror, cuts, a crash, a takeover
    Demo {
        /// Size of the volume
        #[arg(long)]
        size: Option<String>,
        /// Print a summary of every figure as JSON
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    let Task::Demo { size, json } = Cli::parse().command;
    match demo(size, json) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("blkrep-lab: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn demo(size: Option<String>, json: bool) -> Result<bool> {
    let program = std::env::current_exe().context("find the own program")?;
    let programs = program.parent().context("find the programs")?;
    let arguments = size.map_or_else(Vec::new, |size| vec!["--size".to_owned(), size]);
    let say: fn(&str) = if json {
        |words| eprintln!("{words}")
    } else {
        |words| println!("{words}")
    };
    let result = scenario::demo(Kind::best(), programs, arguments, say)?;
    anyhow::ensure!(result.ok, "{}", result.detail);
    let figures: Value = serde_json::from_str(&result.detail).context("understand the figures")?;
    if json {
        println!("{figures:#}");
    }
    Ok(figures["ok"] == true)
}
