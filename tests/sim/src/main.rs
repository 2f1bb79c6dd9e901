//! `blkrep-sim`: campaigns over many seeds, and one seed told step by step.
//!
//! Owns the command line. Arguments enter, totals or a story and an exit code leave.

#![forbid(unsafe_code)]

use blkrep_sim::campaign;
use clap::Parser;
use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Runs the simulator
#[derive(Debug, Parser)]
#[command(name = "blkrep-sim", version)]
struct Cli {
    /// How many seeds
    #[arg(long, value_name = "N", default_value_t = 3000)]
    seeds: u64,
    /// The first of them; one that nobody has run without it
    #[arg(long, value_name = "S0")]
    from: Option<u64>,
    /// Threads; as many as there are processors without it
    #[arg(long, value_name = "J")]
    jobs: Option<usize>,
    /// Replay one seed and tell every step
    #[arg(long, value_name = "S", conflicts_with_all = ["seeds", "from", "jobs"])]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let kept = match cli.seed {
        Some(seed) => replay(seed),
        None => many(&cli),
    };
    if kept {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    }
}

/// One that nobody has run: seeds below are for those that were.
fn fresh() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs()) << 20
}

fn many(cli: &Cli) -> bool {
    let first = cli.from.unwrap_or_else(fresh);
    let jobs = cli.jobs.unwrap_or_else(campaign::all_processors).max(1);
    let begun = Instant::now();
    let totals = campaign::seeds(first..first.saturating_add(cli.seeds), jobs);
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{} of {} seeds from {first} on kept every promise, in {seconds:.0} s on {jobs} threads: {:?}",
        totals.kept, cli.seeds, totals.sum
    );
    print!("{}", totals.complaints());
    totals.failed.is_empty()
}

fn replay(seed: u64) -> bool {
    match campaign::seed(seed, true) {
        Ok(report) => {
            println!("seed {seed} kept every promise: {report:?}");
            true
        }
        Err(why) => {
            println!("seed {seed}: {why}");
            false
        }
    }
}
