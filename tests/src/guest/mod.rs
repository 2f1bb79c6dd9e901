//! Guests: a real kernel with ublk, on machines whose own has none.
//!
//! Owns booting, feeding, timing out and killing guests, and reading their answers. A job enters, one result a body leaves.
//! Never decides what a body does: that is in `inside`.
//!
//! | kind | kernel | for |
//! |---|---|---|
//! | `host` | the machine's own, if it has `/dev/ublk-control` and we are root | the real thing |
//! | `qemu` | Debian's packaged cloud kernel, or the machine's own; KVM where it works, else emulation | any machine |
//! | `uml` | the User-Mode Linux kernel named by `BLKREP_UML` | many boots |
//!
//! A body that runs in a guest that died, or that was never reached, has failed.

pub mod campaign;
mod command;
mod initramfs;
pub mod job;
mod kernel;
pub mod scenario;

pub use initramfs::find_program;
pub use job::{Answer, Entry, Job, TestResult};
pub use kernel::{Kernel, cache_dir};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where a guest's kernel comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The machine itself.
    Host,
    /// QEMU with a packaged kernel.
    Qemu,
    /// User-Mode Linux.
    Uml,
}

impl Kind {
    /// The best that this machine has: itself, or QEMU.
    #[must_use]
    pub fn best() -> Self {
        let root = nix::unistd::geteuid().is_root();
        if root && Path::new("/dev/ublk-control").exists() {
            Self::Host
        } else {
            Self::Qemu
        }
    }

    /// Its word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Qemu => "qemu",
            Self::Uml => "uml",
        }
    }
}

/// A guest to boot.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Where its kernel comes from.
    pub kind: Kind,
    /// Where `blkrep-guest`, `blkrep-order`, `blkrepd` and `blkctl` are.
    pub programs: PathBuf,
    /// Programs of this machine that the bodies use.
    pub tools: Vec<String>,
    /// What to run.
    pub job: Job,
    /// Files that back the guest's extra disks, in order; they outlive it.
    pub disks: Vec<PathBuf>,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Processors.
    pub cpus: u32,
    /// Emulated at one instruction a tick: repeatable, several times slower; QEMU only, on one processor.
    pub virtual_time: bool,
}

/// Emulated boots were measured at 5 to 17 seconds on busy machines; this is far past a stall.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(20);

/// A guest that was booted. Dropping it cuts its power.
#[derive(Debug)]
pub struct Guest {
    kind: Kind,
    child: Child,
    share: PathBuf,
    /// Keeps the directory until the guest is gone.
    _directory: tempfile::TempDir,
    log: PathBuf,
    expected: Vec<Entry>,
    answers_read: usize,
    started: Instant,
}

/// What became of a job.
#[derive(Debug, Default)]
pub struct Outcome {
    /// One for every body that was reached.
    pub results: Vec<TestResult>,
    /// Bodies that were not: a failed one leaves a guest that nobody should trust, so it ends there.
    pub unreached: Vec<Entry>,
    /// Words of the guest about itself, if it came up.
    pub ready: Option<String>,
}

impl Guest {
    /// Starts a guest.
    ///
    /// # Errors
    /// A kernel, a program or a tool is missing, or the emulator does not start.
    pub fn boot(spec: &Spec) -> Result<Self> {
        Self::start(spec, |share| match spec.kind {
            Kind::Host => command::host(spec, share),
            Kind::Qemu => command::qemu(spec, share),
            Kind::Uml => command::uml(spec, share),
        })
    }

    fn start(spec: &Spec, make: impl FnOnce(&Path) -> Result<Command>) -> Result<Self> {
        // Memory, as it is written from inside with a sync for every line.
        let directory = tempfile::Builder::new()
            .prefix("blkrep-guest-")
            .tempdir_in("/dev/shm")?;
        let share = directory.path().to_owned();
        let mut job = spec.job.clone();
        job.program_dirs = vec![spec.programs.display().to_string()];
        fs::write(share.join(job::JOB_FILE), serde_json::to_vec(&job)?)?;
        File::create(share.join(job::RESULT_CHANNEL))?;
        File::create(share.join(job::RECORD_CHANNEL))?;
        let log = log_path(spec.kind)?;
        let mut command = make(&share)?;
        let output = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        // Its own process group: the helpers of an emulator go with it.
        let child = command.process_group(0).spawn();
        let child = child.with_context(|| format!("start {}", command.get_program().display()))?;
        Ok(Self {
            kind: spec.kind,
            child,
            share,
            _directory: directory,
            log,
            expected: spec.job.tests.clone(),
            answers_read: 0,
            started: Instant::now(),
        })
    }

    /// Everything the guest has said on its console.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The file outside the guest that its record channel ends in.
    #[must_use]
    pub fn record(&self) -> PathBuf {
        self.share.join(job::RECORD_CHANNEL)
    }

    /// Cuts the power.
    pub fn kill(&mut self) {
        let group = i32::try_from(self.child.id()).map(Pid::from_raw);
        // The group is ours and its leader not yet waited for, so the number cannot be another's.
        if let (Ok(None), Ok(group)) = (self.child.try_wait(), group) {
            let _ = killpg(group, Signal::SIGKILL);
        }
        let _ = self.child.wait();
    }

    /// Whole lines the guest has answered since the last call.
    ///
    /// # Errors
    /// The channel's file cannot be read.
    pub fn answers(&mut self) -> Result<Vec<Answer>> {
        let bytes =
            fs::read(self.share.join(job::RESULT_CHANNEL)).context("read the guest's answers")?;
        let fresh = bytes.get(self.answers_read..).unwrap_or_default();
        let whole = fresh
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1);
        self.answers_read += whole;
        let text = String::from_utf8_lossy(&fresh[..whole]);
        Ok(text.lines().filter_map(Answer::parse).collect())
    }

    /// Waits until the guest is up.
    ///
    /// # Errors
    /// It died or stood still for `limit`.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        loop {
            let ended = self.child.try_wait()?;
            if let Some(Answer::Ready(words)) = self.answers()?.into_iter().next() {
                return Ok(words);
            }
            if let Some(status) = ended {
                bail!(
                    "{} guest ended before it was up ({status}); see {}",
                    self.kind.name(),
                    self.log.display()
                );
            }
            if Instant::now() > deadline {
                bail!(
                    "{} guest not up after {limit:?}; see {}",
                    self.kind.name(),
                    self.log.display()
                );
            }
            std::thread::sleep(POLL);
        }
    }

    /// Waits for the whole job; `each` hears every result as it comes.
    ///
    /// # Errors
    /// The answers cannot be read. A guest that dies is not an error but a failed body.
    pub fn wait(mut self, mut each: impl FnMut(&TestResult)) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let mut deadline = Instant::now() + BOOT_LIMIT;
        let mut current: Option<(String, Instant)> = None;
        let end = 'guest: loop {
            let ended = self.child.try_wait()?;
            for answer in self.answers()? {
                match answer {
                    Answer::Ready(words) => outcome.ready = Some(words),
                    Answer::Begin(name) => {
                        let limit = self.expected.iter().find(|entry| entry.name == name);
                        let limit = limit.map_or(0, |entry| entry.timeout_s);
                        // The guest's own time-out comes first, if it still runs at all.
                        deadline = Instant::now() + Duration::from_secs(limit + limit / 5 + 30);
                        current = Some((name, Instant::now()));
                    }
                    Answer::Test(result) => {
                        each(&result);
                        outcome.results.push(result);
                        current = None;
                        deadline = Instant::now() + BOOT_LIMIT;
                    }
                    Answer::Done => break 'guest "done".to_owned(),
                }
            }
            if let Some(status) = ended {
                break describe_end(status);
            }
            if Instant::now() > deadline {
                break "the guest stands still".to_owned();
            }
            std::thread::sleep(POLL);
        };
        if end == "done" {
            self.await_power_off();
        }
        self.kill();
        self.account(&mut outcome, current, &end, &mut each);
        Ok(outcome)
    }

    /// The body that ran, or else the next, has failed by the guest's death.
    fn account(
        &self,
        outcome: &mut Outcome,
        current: Option<(String, Instant)>,
        end: &str,
        each: &mut impl FnMut(&TestResult),
    ) {
        let reached = |entry: &&Entry| {
            outcome
                .results
                .iter()
                .any(|result| result.name == entry.name)
        };
        let missing: Vec<Entry> = self
            .expected
            .iter()
            .filter(|e| !reached(e))
            .cloned()
            .collect();
        let mut missing = missing.into_iter();
        let any_failed = outcome.results.iter().any(|result| !result.ok);
        let next = if end == "done" && any_failed {
            None
        } else {
            missing.next()
        };
        if let Some(entry) = next {
            let seconds = current
                .map_or(self.started, |(_, since)| since)
                .elapsed()
                .as_secs_f64();
            let detail = format!("{end}; console in {}", self.log.display());
            let result = TestResult {
                name: entry.name,
                ok: false,
                seconds,
                detail,
            };
            each(&result);
            outcome.results.push(result);
        }
        outcome.unreached = missing.collect();
    }

    fn await_power_off(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.kill();
    }
}

fn describe_end(status: std::process::ExitStatus) -> String {
    match status.signal() {
        Some(signal) => format!("the guest was killed by signal {signal}"),
        None => format!("the guest ended ({status})"),
    }
}

fn log_path(kind: Kind) -> Result<PathBuf> {
    static BOOTS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let boot = BOOTS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let dir = cache_dir()?.join("log");
    fs::create_dir_all(&dir)?;
    Ok(dir.join(format!("{}-{}-{boot}.log", kind.name(), std::process::id())))
}

/// The part of a console log that one body wrote.
///
/// # Errors
/// The log cannot be read.
pub fn log_of(log: &Path, name: &str) -> Result<String> {
    let text = String::from_utf8_lossy(&fs::read(log)?).into_owned();
    let begin = format!("GUEST-BEGIN {name}");
    let from = text
        .lines()
        .position(|line| line.trim_end() == begin)
        .unwrap_or(0);
    let end = format!("GUEST-TEST {name} ");
    let body = text
        .lines()
        .skip(from)
        .take_while(|line| !line.starts_with(&end));
    Ok(body.map(|line| format!("  | {line}\n")).collect())
}
