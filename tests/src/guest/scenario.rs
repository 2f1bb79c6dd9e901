//! Scenarios of more than one boot, and the demonstration.
//!
//! Owns the order of the boots and the disks that outlive them. A kind and programs enter, words about the end leave.

use super::campaign::{entry, spec};
use super::job::TestResult;
use super::{Guest, Kind};
use crate::inside::{BODIES, Body};
use crate::order::{Judgement, Keep, check_files};
use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

const DISK_BYTES: u64 = 64 << 20;

fn body(name: &str) -> Result<&'static Body> {
    BODIES
        .iter()
        .find(|body| body.name == name)
        .with_context(|| format!("find the body {name}"))
}

/// Two volumes with filesystems; the power goes; after the next boot they are mounted by UUID, through our devices.
///
/// # Errors
/// A boot failed, or they did not come back.
pub fn volumes_return_after_reboot(kind: Kind, programs: &Path) -> Result<String> {
    let dir = tempfile::tempdir()?;
    let disks: Vec<PathBuf> = ["state", "one", "two"]
        .iter()
        .map(|name| dir.path().join(name))
        .collect();
    for disk in &disks {
        File::create(disk)?.set_len(DISK_BYTES)?;
    }
    let before = boot_one(kind, programs, &disks, "volumes_before_reboot")?;
    let after = boot_one(kind, programs, &disks, "volumes_after_reboot")?;
    Ok(format!("{}; {}", before.detail, after.detail))
}

/// Writers on a disk of the guest, their record outside; the power goes in the middle; the disk's file is judged here.
///
/// # Errors
/// The guest did not come up, or what is left is not legal.
pub fn record_outlives_the_guest(kind: Kind, programs: &Path) -> Result<String> {
    let dir = tempfile::tempdir()?;
    let disk = dir.path().join("disk");
    File::create(&disk)?.set_len(DISK_BYTES)?;
    let mut spec = spec(
        kind,
        programs,
        false,
        vec![entry(body("load_until_power_cut")?, false)],
    );
    // The body takes the first of the three that a guest may have.
    spec.disks = ["one", "two"]
        .iter()
        .map(|name| dir.path().join(name))
        .collect();
    for path in &spec.disks {
        File::create(path)?.set_len(DISK_BYTES)?;
    }
    spec.disks.insert(0, disk.clone());
    let mut guest = Guest::boot(&spec)?;
    guest.wait_ready(Duration::from_secs(120))?;
    let started = std::time::Instant::now();
    let enough = 64 << 10;
    while std::fs::metadata(guest.record())?.len() < enough {
        ensure!(
            started.elapsed() < Duration::from_secs(90),
            "no record from the guest; see {}",
            guest.log().display()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    let seconds = started.elapsed().as_secs_f64();
    guest.kill();
    let record = dir.path().join("record");
    std::fs::copy(guest.record(), &record)?;
    let verdict = check_files(&record, &[disk], &[], Judgement::PowerLoss, Keep::Nothing)?;
    ensure!(verdict.legal, "{verdict}");
    ensure!(
        verdict.held > 0,
        "nothing had been flushed, so nothing was tested: {verdict}"
    );
    Ok(format!(
        "{} operations on record in {seconds:.1} s, {} of them durable",
        verdict.operations, verdict.held
    ))
}

/// The first body of such a pair leaves its daemon running: ending the guest right after its answer is the power cut.
fn boot_one(kind: Kind, programs: &Path, disks: &[PathBuf], name: &str) -> Result<TestResult> {
    let mut spec = spec(kind, programs, false, vec![entry(body(name)?, false)]);
    spec.disks = disks.to_vec();
    let guest = Guest::boot(&spec)?;
    let log = guest.log().to_owned();
    let outcome = guest.wait(|_| ())?;
    let result = outcome
        .results
        .into_iter()
        .next()
        .context("read the result")?;
    if !result.ok {
        let said = super::log_of(&log, name).unwrap_or_default();
        bail!("{name}: {}\n{said}", result.detail);
    }
    Ok(result)
}

/// Runs the demonstration, passing on its words as they come. Its figures, as JSON.
///
/// # Errors
/// The guest cannot be booted, or dies, or the demonstration could not be played.
pub fn demo(
    kind: Kind,
    programs: &Path,
    arguments: Vec<String>,
    say: fn(&str),
) -> Result<TestResult> {
    say(&format!(
        "booting a guest with ublk ({}); under emulation this takes about ten seconds",
        kind.name()
    ));
    let mut entry = entry(body("demo")?, false);
    entry.timeout_s = DEMO_LIMIT_S;
    let mut spec = spec(kind, programs, false, vec![entry]);
    spec.job.arguments = arguments;
    let guest = Guest::boot(&spec)?;
    let log = guest.log().to_owned();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let outcome = std::thread::scope(|scope| {
        let relay = scope.spawn(|| relay(&log, &stop, say));
        let outcome = guest.wait(|_| ());
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let relayed = relay
            .join()
            .unwrap_or_else(|_| bail!("the relay of the demonstration's words died"));
        relayed.and(outcome)
    })?;
    let result = outcome.results.into_iter().next();
    result.with_context(|| format!("the guest gave no result; console in {}", log.display()))
}

/// A minute of demonstration, emulated by a busy machine.
const DEMO_LIMIT_S: u64 = 900;

/// Marks the demonstration's own words on the console.
pub const DEMO_PREFIX: &str = "DEMO ";

fn relay(log: &Path, stop: &std::sync::atomic::AtomicBool, say: fn(&str)) -> Result<()> {
    let mut shown = 0;
    loop {
        let last = stop.load(std::sync::atomic::Ordering::Relaxed);
        let mut file = File::open(log)?;
        file.seek(SeekFrom::Start(shown))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let whole = bytes
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1);
        shown += whole as u64;
        let text = String::from_utf8_lossy(&bytes[..whole]);
        text.lines()
            .filter_map(|line| line.strip_prefix(DEMO_PREFIX))
            .for_each(|line| say(line.trim_end()));
        if last {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
