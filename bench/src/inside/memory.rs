//! Memory of a source whose link is down while many times its log is written.
//!
//! Owns the run. A number of logs enters, peaks leave beside what settings grant. Never judges.

use super::Record;
use super::daemon::{Daemon, Pair};
use super::disks::{FAR, NEAR};
use super::fio::Load;
use super::stand::Stand;
use crate::message::{MemorySample, Message};
use crate::plan::{Common, Contestant};
use anyhow::{Context, Result, ensure};
use blkrep_tests::inside::shell::wait_for;
use blkrep_types::Mode;
use std::time::Duration;

const LOAD_LIMIT: Duration = Duration::from_secs(1800);
const CATCH_UP_LIMIT: Duration = Duration::from_secs(300);
const WRITE_KIB: u64 = 64;

/// `VmHWM`: most memory a process ever had in core, shared memory included.
fn peak(daemon: &Daemon) -> Result<u64> {
    let path = format!("/proc/{}/status", daemon.id());
    peak_in(&std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?)
}

fn peak_in(status: &str) -> Result<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    let kib: u64 = kib.context("find VmHWM")?.parse()?;
    Ok(kib << 10)
}

/// What settings grant the source: its log, a buffer for each request, and what is under way on its link.
fn configured(source: &Daemon) -> Result<Vec<(String, u64)>> {
    let log = source.setting("group.log-memory")?;
    let requests = source.setting("volume.queues")? * source.setting("volume.queue-depth")?;
    let buffers = requests * source.setting("volume.request-size")?;
    Ok(vec![
        ("group.log-memory".to_owned(), log),
        (
            "volume.queues × queue-depth × request-size".to_owned(),
            buffers,
        ),
        (
            "link.in-flight".to_owned(),
            source.setting("link.in-flight")?,
        ),
        (
            "link.mirror-in-flight".to_owned(),
            source.setting("link.mirror-in-flight")?,
        ),
    ])
}

pub(super) fn run(record: &mut Record, common: &Common, logs: u32) -> Result<()> {
    let contestant = Contestant::Async;
    match measure(record, common, logs) {
        Ok(sample) => record.say(&Message::Memory(sample)),
        Err(error) => record.say(&Message::Failed {
            contestant,
            reason: format!("{error:#}"),
        }),
    }
}

fn measure(record: &mut Record, common: &Common, logs: u32) -> Result<MemorySample> {
    super::stand::clear(common)?;
    let mut pair = Pair::raise(common, Mode::Async, NEAR.as_ref(), FAR.as_ref())?;
    record.say(&Message::Settings {
        contestant: Contestant::Async,
        text: pair.settings(),
    })?;
    let log_bytes = pair.source.setting("group.log-memory")?;
    let idle_bytes = peak(&pair.source)?;
    pair.target.kill()?;
    let written_bytes = log_bytes * u64::from(logs);
    record.progress(format!(
        "the target is gone; writing {} MiB",
        written_bytes >> 20
    ))?;
    let rest = format!(
        "--rw=randwrite --bs={WRITE_KIB}k --iodepth=32 --norandommap --randrepeat=0 --size={}m --io_size={written_bytes}",
        common.size_mib
    );
    let end = Load::raw(pair.device(), &rest, LOAD_LIMIT).run()?;
    let counted = end.requests * (WRITE_KIB << 10);
    ensure!(
        counted >= written_bytes,
        "only {counted} of {written_bytes} bytes were written"
    );
    let down_bytes = peak(&pair.source)?;
    record.progress("the target comes back".to_owned())?;
    pair.target.restart()?;
    wait_for("the difference to be mirrored", CATCH_UP_LIMIT, || {
        pair.is_equal()
    })
    .with_context(|| pair.describe())?;
    let peak_bytes = peak(&pair.source)?;
    let configured = configured(&pair.source)?;
    Box::new(pair).lower()?;
    Ok(MemorySample {
        log_bytes,
        written_bytes,
        idle_bytes,
        down_bytes,
        peak_bytes,
        configured,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn peak_is_read_in_bytes() {
        let status = "Name:\tblkrepd\nVmPeak:\t  999 kB\nVmHWM:\t    2048 kB\nVmRSS:\t 1024 kB\n";
        assert_eq!(peak_in(status).unwrap(), 2 << 20);
        assert!(peak_in("Name:\tx\n").is_err());
    }
}
