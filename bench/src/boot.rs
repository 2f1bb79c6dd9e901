//! A guest for one measurement.
//!
//! Owns the build of what goes into it, its boot, and the way its lines come out. A plan enters, messages leave.
//! Never interprets them.

use crate::message::Message;
use crate::plan::Plan;
use anyhow::{Context, Result, bail, ensure};
use blkrep_tests::guest::{Entry, Guest, Job, Kind, Spec, campaign, find_program, log_of};
use clap::Args;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Which guest.
#[derive(Debug, Args)]
pub(crate) struct Boot {
    /// In the User-Mode Linux kernel named by `BLKREP_UML`.
    #[arg(long, conflicts_with = "qemu")]
    uml: bool,
    /// In QEMU with a packaged kernel; the default.
    #[arg(long)]
    qemu: bool,
    /// In QEMU on one processor whose clock counts instructions: repeatable, eight times slower.
    #[arg(long, conflicts_with = "uml")]
    pub(crate) icount: bool,
    /// Measure the programs in this directory, and do not build them.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
}

/// Two RAM disks, the daemons' logs and journals in memory, and disks with a limit.
const MEMORY_MIB: u32 = 4096;
const CPUS: u32 = 2;
/// Wall time against virtual time, at worst.
const VIRTUAL_TIME_FACTOR: u64 = 20;
const POLL: Duration = Duration::from_millis(200);
/// The body of the harness that runs a program of ours.
const BODY: &str = "program";

/// Programs of the machine that the contestants need, beyond those of every guest.
const TOOLS: [&str; 6] = [
    "drbdmeta",
    "nbd-server",
    "nbd-client",
    "mdadm",
    "strace",
    "cmp",
];

/// DRBD 8.4's own tool: the common one starts it by this path.
pub(crate) const DRBD_SETUP: &str = "/lib/drbd/drbdsetup-84";

impl Boot {
    /// Where the guest's kernel comes from. The machine itself is not among them: contestants change its disks.
    pub(crate) fn kind(&self) -> Result<Kind> {
        ensure!(
            !(self.uml && self.icount),
            "virtual time is QEMU's; leave out --uml"
        );
        Ok(if self.uml { Kind::Uml } else { Kind::Qemu })
    }

    /// Boots, measures, and returns every line.
    pub(crate) fn run(&self, plan: &Plan) -> Result<Vec<Message>> {
        let programs = match &self.programs {
            Some(dir) => std::path::absolute(dir)?,
            None => build()?,
        };
        let spec = self.spec(plan, &programs)?;
        let guest = Guest::boot(&spec)?;
        let log = guest.log().to_owned();
        eprintln!(
            "booted a guest ({}); console in {}",
            self.kind()?.name(),
            log.display()
        );
        let record = guest.record();
        let stop = AtomicBool::new(false);
        let (messages, outcome) = std::thread::scope(|scope| {
            let relay = scope.spawn(|| relay(&record, &stop));
            // The record goes with the guest, so it is read to its end while the last result is heard.
            let outcome = guest.wait(|_| {
                stop.store(true, Ordering::Relaxed);
                while !relay.is_finished() {
                    std::thread::sleep(Duration::from_millis(10));
                }
            });
            stop.store(true, Ordering::Relaxed);
            let messages = relay
                .join()
                .unwrap_or_else(|_| bail!("the relay of the guest's lines died"));
            (messages, outcome)
        });
        let outcome = outcome?;
        let messages = messages?;
        let result = outcome.results.first().context("read the result")?;
        if !result.ok {
            bail!(
                "the guest failed: {}\n{}",
                result.detail,
                log_of(&log, BODY).unwrap_or_default()
            );
        }
        Ok(messages)
    }

    fn spec(&self, plan: &Plan, programs: &Path) -> Result<Spec> {
        let word = serde_json::to_string(plan)?;
        let own = std::env::current_exe().context("find this program")?;
        let own = own.to_str().context("read a path as text")?.to_owned();
        ensure!(
            ![&word, &own].iter().any(|word| word.contains(' ')),
            "paths and settings must be without blanks: {word} {own}"
        );
        let factor = if self.icount { VIRTUAL_TIME_FACTOR } else { 1 };
        let entry = Entry {
            name: BODY.to_owned(),
            timeout_s: plan.limit_seconds() * factor,
        };
        let mut spec = campaign::spec(self.kind()?, programs, false, vec![entry]);
        spec.job = Job {
            arguments: vec![own.clone(), "inside".to_owned(), word],
            ..spec.job
        };
        spec.tools.extend(TOOLS.map(str::to_owned));
        // Names with a path are packed at that path.
        spec.tools.push(DRBD_SETUP.to_owned());
        spec.tools.push(own);
        let rublk = plan.common.rublk.iter();
        spec.tools
            .extend(rublk.map(|path| path.display().to_string()));
        let missing: Vec<&String> = spec
            .tools
            .iter()
            .filter(|tool| find_program(tool).is_none())
            .collect();
        ensure!(
            missing.is_empty(),
            "programs are missing: {missing:?}; they are in the Debian packages fio drbd-utils nbd-server nbd-client \
             mdadm strace dmsetup iproute2 libnbd-bin qemu-utils diffutils"
        );
        spec.memory_mib = MEMORY_MIB;
        spec.cpus = if self.icount { 1 } else { CPUS };
        spec.virtual_time = self.icount;
        Ok(spec)
    }
}

/// The reference server, or what to do without.
pub(crate) fn find_rublk(named: Option<&Path>) -> Result<PathBuf> {
    let found = match named {
        Some(path) => Some(std::path::absolute(path)?).filter(|path| path.is_file()),
        None => find_program("rublk"),
    };
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo/bin/rublk"));
    let found = found.or_else(|| home().filter(|path| named.is_none() && path.is_file()));
    found.context(
        "find rublk: run `apt-get install libclang1-14 libclang-common-14-dev && cargo install rublk \
         --no-default-features`, name it with --rublk PATH, or leave it out with --only",
    )
}

/// Builds what ships, as it ships, beside this program.
fn build() -> Result<PathBuf> {
    let own = std::env::current_exe().context("find this program")?;
    let dir = own.parent().context("find the build")?;
    ensure!(
        dir.file_name().is_some_and(|name| name == "release"),
        "figures of a debug build mean nothing: run `cargo run --release -p blkrep-bench -- …`"
    );
    let target = dir.parent().context("find the build")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args([
        "build",
        "--release",
        "--bins",
        "--message-format=short",
        "-p",
        "blkrep",
        "-p",
        "blkctl",
        "-p",
        "blkrep-tests",
    ]);
    command.arg("--target-dir").arg(target);
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    let status = command.status().context("run cargo build")?;
    ensure!(status.success(), "the programs for the guest do not build");
    Ok(dir.to_owned())
}

/// Reads the guest's lines as they come; says on standard error what happens.
fn relay(record: &Path, stop: &AtomicBool) -> Result<Vec<Message>> {
    let mut messages = Vec::new();
    let mut read = 0;
    loop {
        let last = stop.load(Ordering::Relaxed);
        let mut file = File::open(record).context("open the guest's record")?;
        file.seek(SeekFrom::Start(read))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let whole = bytes
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1);
        read += u64::try_from(whole)?;
        for line in String::from_utf8_lossy(&bytes[..whole]).lines() {
            let message = serde_json::from_str(line)
                .with_context(|| format!("read a line of the guest: {line}"))?;
            say(&message);
            messages.push(message);
        }
        if last {
            return Ok(messages);
        }
        std::thread::sleep(POLL);
    }
}

fn say(message: &Message) {
    match message {
        Message::Progress { text } => eprintln!("{text}"),
        Message::Failed { contestant, reason } => {
            eprintln!("{} FAILED: {reason}", contestant.title());
        }
        Message::Sample(sample) => eprintln!(
            "  {:<16} {:<14} {:>9.0} IOPS {:>8.1} MiB/s {:>9.1} us",
            sample.contestant.title(),
            sample.point,
            sample.iops,
            sample.bytes_per_second / crate::report::MIB,
            sample.latency_mean_us
        ),
        _ => {}
    }
}
