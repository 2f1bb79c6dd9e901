//! Benchmarks of blkrep in a guest kernel, beside its peers.
//!
//! Owns the command line. Options enter, tables and JSON leave. Never ships.

#![forbid(unsafe_code)]

mod boot;
mod compress;
mod encrypt;
mod inside;
mod line;
mod message;
mod plan;
mod report;

use anyhow::{Context, Result, bail};
use boot::Boot;
use clap::{Args, Parser, Subcommand};
use plan::{Common, Contestant, Plan, Work};
use report::Report;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(
    name = "blkrep-bench",
    about = "Measures blkrep beside its peers in one guest boot"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// 4k random writes and reads at depth 1 and 32, and 128k sequential writes, over every contestant.
    Guest(Options),
    /// The rate of a full mirror beside DRBD's, on disks with a limit.
    Mirror {
        #[command(flatten)]
        options: Options,
        /// Limit of each disk in MiB/s.
        #[arg(long, default_value_t = 200)]
        limit: u32,
        /// MiB of each disk: long enough that making the link does not count for much.
        #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(16..=1024))]
        disk: u64,
    },
    /// Memory of the daemon while its link is down and many times its log is written.
    Memory {
        #[command(flatten)]
        options: Options,
        /// Bytes to write, in sizes of the log.
        #[arg(long, default_value_t = 20)]
        logs: u32,
    },
    /// Where the time goes: system calls, waits and processor time of the servers for each request.
    Profile(Options),
    /// What compression brings over lines of several rates, and what each level costs. On this machine, over loopback.
    Compress {
        /// How often everything is repeated, in turns.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
        rounds: u32,
    },
    /// What encryption costs over lines of several rates. On this machine, over loopback.
    Encrypt {
        /// How often everything is repeated, in turns.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
        rounds: u32,
    },
    /// What runs inside the guest.
    #[command(hide = true)]
    Inside { plan: String },
}

/// How a guest is booted and what takes part.
#[derive(Debug, Args)]
struct Options {
    #[command(flatten)]
    boot: Boot,
    /// How often everything is repeated; medians want at least three.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds of a point, after a ramp of one.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// MiB of the disks that are used.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(16..=248))]
    size: u64,
    /// Who takes part; all if not given.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Contestant>,
    /// The reference server; `rublk` from the path if not given.
    #[arg(long)]
    rublk: Option<PathBuf>,
    /// A setting of both daemons, `section.name=value`; repeatable.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// JSON on standard output; the tables go to standard error.
    #[arg(long)]
    json: bool,
}

impl Options {
    fn measure(&self, work: Work, able: &[Contestant]) -> Result<ExitCode> {
        let mut only = self.only.clone();
        if let Some(unable) = only.iter().find(|contestant| !able.contains(contestant)) {
            bail!("{} has no part in this measurement", unable.title());
        }
        if only.is_empty() {
            only = able.to_vec();
        }
        let wants_rublk = only.contains(&Contestant::Rublk);
        let common = Common {
            rounds: self.rounds,
            seconds: self.seconds,
            size_mib: self.size,
            rublk: if wants_rublk {
                Some(boot::find_rublk(self.rublk.as_deref())?)
            } else {
                None
            },
            only,
            settings: self.settings.clone(),
            virtual_time: self.boot.icount,
        };
        let plan = Plan { work, common };
        let messages = self.boot.run(&plan)?;
        let report = Report::new(self.boot.kind()?.name(), &plan, messages);
        if self.json {
            println!("{}", serde_json::to_string_pretty(&report.json())?);
            eprintln!("{}", report.markdown());
        } else {
            println!("{}", report.markdown());
        }
        // 1 as elsewhere in this project: a condition was found.
        Ok(if report.is_complete() {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(1)
        })
    }
}

const ALL: [Contestant; 10] = [
    Contestant::Ram,
    Contestant::Rublk,
    Contestant::Volume,
    Contestant::Async,
    Contestant::Memory,
    Contestant::Sync,
    Contestant::DrbdA,
    Contestant::DrbdB,
    Contestant::DrbdC,
    Contestant::MdNbd,
];
const MIRRORS: [Contestant; 2] = [Contestant::Async, Contestant::DrbdC];
const SERVERS: [Contestant; 3] = [Contestant::Rublk, Contestant::Volume, Contestant::Async];

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Guest(options) => options.measure(Work::Points, &ALL),
        Command::Mirror {
            options,
            limit,
            disk,
        } => {
            let work = Work::Mirror {
                limit_mib: limit,
                disk_mib: disk,
            };
            options.measure(work, &MIRRORS)
        }
        Command::Memory { options, logs } => {
            options.measure(Work::Memory { logs }, &[Contestant::Async])
        }
        Command::Profile(options) => options.measure(Work::Profile, &SERVERS),
        Command::Compress { rounds } => compress::measure(rounds).map(|()| ExitCode::SUCCESS),
        Command::Encrypt { rounds } => encrypt::measure(rounds).map(|()| ExitCode::SUCCESS),
        Command::Inside { plan } => inside(&plan),
    };
    done.unwrap_or_else(|error| {
        eprintln!("blkrep-bench: {error:#}");
        ExitCode::from(2)
    })
}

fn inside(plan: &str) -> Result<ExitCode> {
    let plan = serde_json::from_str(plan).context("read the plan")?;
    inside::run(&plan)?;
    Ok(ExitCode::SUCCESS)
}
