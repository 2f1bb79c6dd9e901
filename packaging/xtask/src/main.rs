//! `cargo xtask`: the project's own commands.
//!
//! Owns the stages of the test command and the demonstration. A command line enters, an exit code leaves. Never ships.

#![forbid(unsafe_code)]

mod coverage;
mod fuzz;
mod guests;
mod install;
mod limit;
mod sim;
mod stages;

use anyhow::{Context, Result};
use blkrep_tests::guest::Kind;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::process::{Command, ExitCode};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Commands for working on blkrep")]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Check formatting and lints, run every test of the workspace, then the guest tests
    Test {
        /// Run long campaigns whole, instead of the part that every change gets
        #[arg(long)]
        full: bool,
    },
    /// Show the product at work on this machine: two nodes, a mirror, cuts, a crash, a takeover
    Demo(DemoArgs),
    /// Run guest tests by name; all of them without one
    Guest(GuestArgs),
    /// Run one fuzz target, or each
    Fuzz {
        /// The target: a file of tests/fuzz/fuzz_targets; all without one
        target: Option<String>,
        /// Seconds that each runs
        #[arg(long, value_name = "N", default_value_t = 60)]
        seconds: u64,
    },
    /// Run the simulator: its own options follow; see cargo xtask sim -- --help
    Sim {
        /// From a copy of what is committed, with this change to it
        #[arg(long, value_name = "FILE")]
        patch: Option<PathBuf>,
        /// What is passed on to it
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Measure which lines of core, log, store and wire the tests and the simulator run
    Coverage {
        /// Seeds of the simulator's campaign
        #[arg(long, value_name = "N", default_value_t = 300)]
        seeds: u64,
    },
    /// Show that the simulator notices every planted bug: see cargo xtask planted --help
    #[command(disable_help_flag = true)]
    Planted {
        /// What is passed on to the hunt
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Install what the other commands need
    Deps,
}

#[derive(Args)]
struct DemoArgs {
    /// In a guest with ublk, which takes some minutes under emulation
    #[arg(long)]
    guest: bool,
    /// Print a summary of every figure as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct GuestArgs {
    /// Names of test bodies
    names: Vec<String>,
    /// In QEMU
    #[arg(long)]
    qemu: bool,
    /// In the User-Mode Linux kernel named by BLKREP_UML
    #[arg(long)]
    uml: bool,
    /// On this machine itself, which needs ublk and root
    #[arg(long)]
    host: bool,
    /// Campaigns whole
    #[arg(long)]
    full: bool,
    /// Use the programs in this directory instead of building them
    #[arg(long)]
    programs: Option<PathBuf>,
    /// Only print the names
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Task::Test { full } => stages::test(full),
        Task::Demo(args) => demo(&args),
        Task::Guest(args) => guest(args),
        Task::Fuzz { target, seconds } => {
            install::fuzzing().and_then(|()| fuzz::run(target, seconds))
        }
        Task::Sim { patch, arguments } => sim::run(patch.as_deref(), &arguments),
        Task::Coverage { seeds } => coverage::run(seeds),
        Task::Planted { arguments } => sim::hunt(&arguments),
        Task::Deps => install::all().map(|()| true),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Nothing but the product is needed, unless a guest is wanted.
fn demo(args: &DemoArgs) -> Result<bool> {
    let programs = if args.guest {
        install::all()?;
        guests::build()?
    } else {
        stages::build_product()?
    };
    let mut command = Command::new(programs.join("blkctl"));
    command.arg("demo");
    command.args(args.guest.then_some("--guest"));
    command.args(args.json.then_some("--json"));
    let status = command.status().context("run blkctl")?;
    Ok(status.success())
}

fn guest(args: GuestArgs) -> Result<bool> {
    if args.list {
        guests::list();
        return Ok(true);
    }
    install::all()?;
    let named = [
        (args.host, Kind::Host),
        (args.qemu, Kind::Qemu),
        (args.uml, Kind::Uml),
    ];
    let mut kinds: Vec<_> = named
        .iter()
        .filter(|(asked, _)| *asked)
        .map(|(_, kind)| *kind)
        .collect();
    if kinds.is_empty() {
        kinds.push(Kind::best());
    }
    let programs = args.programs.map_or_else(guests::build, Ok)?;
    let mut totals = stages::Totals::default();
    for kind in kinds {
        guests::run(kind, &programs, &args.names, args.full, &mut totals);
        guests::scenarios(kind, &programs, &args.names, &mut totals);
    }
    println!("{totals}");
    Ok(totals.failed == 0)
}
