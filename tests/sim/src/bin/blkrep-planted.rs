//! `blkrep-planted`: every mistake that is planted in the product, and the seeds it takes to notice it.
//!
//! Owns the command line. Arguments enter, a table and an exit code leave: 1 if one was not noticed.

#![forbid(unsafe_code)]

use blkrep_sim::campaign::all_processors;
use blkrep_sim::planted::{SEEDS_MAX, hunt_all};
use blkrep_types::planted::Bug;
use clap::Parser;
use std::process::ExitCode;
use std::time::Instant;

/// Hunts the planted bugs
#[derive(Debug, Parser)]
#[command(name = "blkrep-planted", version)]
struct Cli {
    /// Only these, by name
    #[arg(value_parser = bug)]
    bugs: Vec<Bug>,
    /// The first seed
    #[arg(long, value_name = "S0", default_value_t = 0)]
    from: u64,
    /// Seeds that a bug may survive
    #[arg(long, value_name = "N", default_value_t = SEEDS_MAX)]
    seeds: u64,
    /// Threads; as many as there are processors without it
    #[arg(long, value_name = "J")]
    jobs: Option<usize>,
}

fn bug(name: &str) -> Result<Bug, String> {
    let found = Bug::ALL.iter().find(|bug| format!("{bug:?}") == name);
    found
        .copied()
        .ok_or_else(|| format!("there is no planted bug '{name}'"))
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let bugs = if cli.bugs.is_empty() {
        Bug::ALL.to_vec()
    } else {
        cli.bugs
    };
    // A judge may well be an assertion of the product: its words are in the table.
    std::panic::set_hook(Box::new(|_| {}));
    let begun = Instant::now();
    let seeds = cli.from..cli.from.saturating_add(cli.seeds);
    let jobs = cli.jobs.unwrap_or_else(all_processors).max(1);
    let hunts = hunt_all(&bugs, &seeds, jobs, |hunt| println!("{hunt}"));
    let survived = hunts.iter().filter(|hunt| hunt.caught.is_none()).count();
    let ran: u64 = hunts.iter().map(|hunt| hunt.seeds).sum();
    println!(
        "{} planted bugs noticed, {survived} not, with {ran} seeds in {:.0} s",
        hunts.len() - survived,
        begun.elapsed().as_secs_f64()
    );
    ExitCode::from(u8::from(survived > 0))
}
