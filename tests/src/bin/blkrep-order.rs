//! The order checker's command line: `write` loads volumes and keeps the record, `check` judges what is left of them.
//!
//! Exit code 0: done, legal. 1: an operation failed, not legal. 2: the command could not do its work.

#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use blkrep_tests::order::{self, History, Judgement, Keep, Load, Random};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

#[derive(Parser)]
#[command(about = "Loads block volumes with self-describing writes, and judges images of them")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Load volumes, with a record of what was submitted and what completed
    Write(WriteArgs),
    /// Judge images by the record of the load
    Check(CheckArgs),
}

#[derive(Args)]
struct WriteArgs {
    /// A device, a file or an NBD address (nbd+unix:///?socket=PATH) to load; repeat for several
    #[arg(long = "volume", required = true)]
    volumes: Vec<PathBuf>,
    /// Where the record goes: a path, or the number of an open descriptor
    #[arg(long)]
    record: String,
    /// Stop after this many seconds
    #[arg(long)]
    seconds: Option<f64>,
    /// Stop when this file exists
    #[arg(long)]
    stop_file: Option<PathBuf>,
    /// Stop after this many operations
    #[arg(long)]
    writes: Option<u64>,
    /// Threads, each with one operation in flight
    #[arg(long, default_value_t = 4)]
    writers: u16,
    /// Largest write in bytes
    #[arg(long, default_value_t = 65536)]
    max_bytes: u32,
    /// Logical block in bytes
    #[arg(long, default_value_t = 512)]
    block: u32,
    /// Use only this many bytes of each volume, so that writes overlap
    #[arg(long)]
    span: Option<u64>,
    /// Flushes in a hundred operations
    #[arg(long, default_value_t = 3)]
    flush: u8,
    /// FUA writes in a hundred operations
    #[arg(long, default_value_t = 5)]
    fua: u8,
    /// Write-zeroes in a hundred operations
    #[arg(long, default_value_t = 0)]
    zeroes: u8,
    /// Discards in a hundred operations
    #[arg(long, default_value_t = 0)]
    discards: u8,
    /// Write every block once before the load
    #[arg(long)]
    prefill: bool,
    /// Microseconds between the operations of a writer
    #[arg(long, default_value_t = 0)]
    pause_us: u64,
    /// Go on after a failed operation
    #[arg(long)]
    keep_going: bool,
    /// Seed of the load; the clock's by default
    #[arg(long)]
    seed: Option<u64>,
    /// Go on with the record of an earlier load of the same volumes, by writers of other numbers
    #[arg(long)]
    append: bool,
    /// The host outlives the crash: do not sync the record to its disk
    #[arg(long)]
    host_survives: bool,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct CheckArgs {
    /// The rule
    #[arg(long, value_enum)]
    judgement: Rule,
    /// The record of the load
    #[arg(long)]
    record: PathBuf,
    /// An image of each volume, in the order of the load
    #[arg(long = "volume", required = true)]
    volumes: Vec<PathBuf>,
    /// What each volume held before the load, if not zeroes
    #[arg(long = "base")]
    bases: Vec<PathBuf>,
    /// What a replica must hold at least
    #[arg(long, value_enum, default_value_t = Held::Nothing)]
    keep: Held,
    /// Print the verdict as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Rule {
    /// A prefix of the write order, over all volumes together
    Replica,
    /// A disk that lost power: flushes and FUA kept, everything else may be lost
    PowerLoss,
}

#[derive(Clone, Copy, ValueEnum)]
enum Held {
    /// Any prefix
    Nothing,
    /// What completed flushes and FUA cover
    Flushed,
    /// Every completed write
    Completed,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Write(args) => write(args),
        Command::Check(args) => check(&args),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("blkrep-order: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn write(args: WriteArgs) -> Result<bool> {
    ensure!(
        args.seconds.is_some() || args.writes.is_some(),
        "say when to stop: --seconds or --writes"
    );
    let since_epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("read the clock")?;
    let entropy = u64::from(since_epoch.subsec_nanos()) ^ since_epoch.as_secs() << 32;
    let entropy = entropy ^ u64::from(std::process::id()) << 16;
    let load = Load {
        volumes: args.volumes,
        writers: args.writers,
        seconds: args.seconds,
        stop_file: args.stop_file,
        operations: args.writes,
        max_bytes: args.max_bytes,
        block_bytes: args.block,
        span_bytes: args.span,
        flush_percent: args.flush,
        fua_percent: args.fua,
        zero_percent: args.zeroes,
        discard_percent: args.discards,
        prefill: args.prefill,
        pause: Duration::from_micros(args.pause_us),
        keep_going: args.keep_going,
        host_survives: args.host_survives,
        seed: args.seed.unwrap_or(entropy),
        // The same seed twice must still be two runs: stale blocks are told by it.
        run: Random::new(entropy).next(),
    };
    let before = args.append.then(|| read_record(&args.record)).transpose()?;
    let sink = open_record(&args.record)?;
    let summary = match &before {
        Some(before) => order::append(&load, before, sink),
        None => order::write(&load, sink),
    };
    let summary = summary.context("load the volumes")?;
    if args.json {
        println!("{}", serde_json::to_string(&summary)?);
    } else {
        println!(
            "{} operations, {} failed, {} bytes, longest {} ms, {:.1} s",
            summary.submitted,
            summary.failed,
            summary.bytes_written,
            summary.latency_ms_max,
            summary.seconds
        );
    }
    if let Some(failure) = &summary.first_failure {
        eprintln!("blkrep-order: first failure: {failure}");
    }
    Ok(summary.failed == 0)
}

fn open_record(record: &str) -> Result<File> {
    // An inherited descriptor is opened anew by its name, which needs no trust in the number.
    let path = match record.parse::<u32>() {
        Ok(number) => PathBuf::from(format!("/proc/self/fd/{number}")),
        Err(_) => PathBuf::from(record),
    };
    let fresh = !Path::new(&path).exists();
    let opened = OpenOptions::new().append(true).create(fresh).open(&path);
    opened.with_context(|| format!("open the record {}", path.display()))
}

/// The record of earlier loads, which must be whole: a line cut off would be joined to the next one.
fn read_record(record: &str) -> Result<History> {
    let bytes = std::fs::read(record).with_context(|| format!("read the record {record}"))?;
    ensure!(
        bytes.ends_with(b"\n"),
        "the record {record} ends in the middle of a line: judge it as it is, or begin a new one"
    );
    History::parse(&bytes).context("understand the record")
}

fn check(args: &CheckArgs) -> Result<bool> {
    let judgement = match args.judgement {
        Rule::Replica => Judgement::Replica,
        Rule::PowerLoss => Judgement::PowerLoss,
    };
    let keep = match args.keep {
        Held::Nothing => Keep::Nothing,
        Held::Flushed => Keep::Flushed,
        Held::Completed => Keep::Completed,
    };
    let verdict = order::check_files(&args.record, &args.volumes, &args.bases, judgement, keep);
    let verdict = verdict.context("judge the images")?;
    if args.json {
        println!("{}", serde_json::to_string(&verdict)?);
    } else {
        print!("{verdict}");
    }
    Ok(verdict.legal)
}
