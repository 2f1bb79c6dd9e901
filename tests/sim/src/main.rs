//! `blkrep-sim`: campaigns over many seeds, and one seed told step by step.
//!
//! Owns the command line. Arguments enter, totals or a story and an exit code leave.

#![forbid(unsafe_code)]

use blkrep_sim::exhaustive::counts::Counts;
use blkrep_sim::exhaustive::crashes::Part;
use blkrep_sim::minimize::{Less, minimize};
use blkrep_sim::plan::Plan;
use blkrep_sim::{campaign, exhaustive};
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
    /// Leave out what the failure of the seed does not need, and tell what is left
    #[arg(long, requires = "seed")]
    minimize: bool,
    /// Leave a part of the seed's plan out: fault0, command1, probe0, takeover1
    #[arg(long, value_name = "PART", requires = "seed")]
    without: Vec<String>,
    /// End the seed's load after so many requests
    #[arg(long, value_name = "N", requires = "seed")]
    requests: Option<u64>,
    /// Instead of seeds go through every history of up to so many operations in small worlds, with
    /// every crash point and every loss
    #[arg(
        long,
        value_name = "LONGEST",
        num_args = 0..=1,
        default_missing_value = "3",
        conflicts_with_all = ["seed", "seeds", "from"]
    )]
    exhaustive: Option<usize>,
    /// Of these only one of so many parts of the longest histories of the whole engine: 2/10 is the
    /// second of ten
    #[arg(long, value_name = "I/N", requires = "exhaustive")]
    part: Option<Part>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let kept = match (cli.seed, cli.exhaustive) {
        (Some(seed), _) => one(seed, &cli),
        (None, Some(longest)) => exhaustive(&cli, longest),
        (None, None) => many(&cli),
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
        "{} of {} seeds from {first} on kept every promise, in {seconds:.0} s on {jobs} threads",
        totals.kept, cli.seeds,
    );
    print!("{}{}", totals.histogram(), totals.complaints());
    totals.failed.is_empty()
}

fn exhaustive(cli: &Cli, longest: usize) -> bool {
    let jobs = cli.jobs.unwrap_or_else(campaign::all_processors).max(1);
    let say = |what: &str, counts: &Counts| println!("{what}: {counts}");
    let said = match cli.part {
        Some(part) => exhaustive::explore_engine(jobs, longest, part, &say),
        None => exhaustive::explore(jobs, longest, &say),
    };
    match said {
        Ok(()) => {
            println!("all legal");
            true
        }
        Err(why) => {
            println!("{why}");
            false
        }
    }
}

fn one(seed: u64, cli: &Cli) -> bool {
    let plan = Plan::of(seed);
    let mut less = Less {
        without: cli.without.clone(),
        requests: cli.requests,
    };
    if cli.minimize {
        match minimize(&plan, &less) {
            Some((smaller, _)) => less = smaller,
            None => {
                println!("seed {seed} keeps every promise: there is nothing to leave out");
                return true;
            }
        }
    }
    let result = less.of(&plan).and_then(|plan| {
        println!("{plan:#?}");
        campaign::carry_out(plan, true)
    });
    if cli.minimize {
        println!("smallest: cargo xtask sim --seed {seed}{}", less.options());
    }
    match result {
        Ok(report) => println!("seed {seed} kept every promise: {report:?}"),
        Err(why) => {
            println!("seed {seed}: {why}");
            return false;
        }
    }
    true
}
