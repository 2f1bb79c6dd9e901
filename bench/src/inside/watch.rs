//! One load through a link, watched from its first write to the last durable acknowledgement.
//!
//! Owns the looks at the source's status. A load enters, its end and that of its replication leave. Never judges.

use super::daemon::Pair;
use super::fio::{End, Load};
use crate::message::Replication;
use anyhow::{Context, Result, ensure};
use blkrep_api::{ProtectionState, ReplicationState};
use std::path::Path;
use std::time::{Duration, Instant};

/// Between looks while the load runs: seldom enough not to be part of the load.
const LOOK: Duration = Duration::from_millis(200);
/// Between looks for the first write and for the last acknowledgement.
const GLANCE: Duration = Duration::from_millis(5);
/// The log holds seconds of work at most; emulated, more.
const DRAIN_LIMIT: Duration = Duration::from_secs(300);
const SECTOR: u64 = 512;

/// Bytes written through a device since it exists, as its kernel counts them.
fn written(device: &Path) -> Result<u64> {
    let name = device.file_name().context("name the device")?;
    let path = Path::new("/sys/block").join(name).join("stat");
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    written_in(&text)
}

fn written_in(stat: &str) -> Result<u64> {
    // Documentation/block/stat.rst: the seventh field is sectors written.
    let sectors = stat.split_whitespace().nth(6);
    let sectors: u64 = sectors.context("read the device's counters")?.parse()?;
    Ok(sectors * SECTOR)
}

#[derive(Debug, Default)]
struct Looks {
    count: u32,
    left_for: Option<String>,
    queue_bytes_max: u64,
}

impl Looks {
    fn look(&mut self, pair: &Pair) -> Result<bool> {
        let link = pair.link()?;
        self.count += 1;
        let queue = &link.queue;
        let bytes = queue.memory_bytes.get() + queue.disk_bytes.get();
        self.queue_bytes_max = self.queue_bytes_max.max(bytes);
        if link.replication != ReplicationState::Replicating && self.left_for.is_none() {
            self.left_for = Some(link.replication.to_string());
        }
        if link.dirty_bytes.get() > 0 && self.left_for.is_none() {
            self.left_for = Some("dirty extents".to_owned());
        }
        if link.protection == ProtectionState::Degraded && self.left_for.is_none() {
            self.left_for = Some("degraded".to_owned());
        }
        Ok(queue.ops == 0)
    }
}

/// Runs a load of writes through a link.
pub(super) fn replicated(pair: &Pair, load: &Load) -> Result<(End, Replication)> {
    let mirrored = pair.link()?.mirror.bytes_sent;
    let before = written(&load.device)?;
    let mut running = load.start()?;
    while written(&load.device)? == before && running.is_running()? {
        std::thread::sleep(GLANCE);
    }
    let first = Instant::now();
    let mut looks = Looks::default();
    let mut next = first + LOOK;
    while running.is_running()? {
        if Instant::now() >= next {
            looks.look(pair)?;
            next += LOOK;
        }
        std::thread::sleep(GLANCE * 4);
    }
    let load_end = Instant::now();
    let end = load.end(running)?;
    while !looks.look(pair)? {
        ensure!(
            load_end.elapsed() < DRAIN_LIMIT,
            "the log is not empty {DRAIN_LIMIT:?} after the load"
        );
        std::thread::sleep(GLANCE);
    }
    let drained = Instant::now();
    if pair.link()?.mirror.bytes_sent != mirrored && looks.left_for.is_none() {
        looks.left_for = Some("a mirror".to_owned());
    }
    let replication = Replication {
        never_left: looks.left_for.is_none(),
        left_for: looks.left_for,
        looks: looks.count,
        durable_bytes: written(&load.device)? - before,
        seconds: (drained - first).as_secs_f64(),
        drain_seconds: (drained - load_end).as_secs_f64(),
        queue_bytes_max: looks.queue_bytes_max,
    };
    Ok((end, replication))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn written_sectors_are_the_seventh_counter() {
        let stat = "    11       22       33       44       55       66       77       88  99 100 101 0 0 0 0\n";
        assert_eq!(written_in(stat).unwrap(), 77 * 512);
        assert!(written_in("1 2 3").is_err());
    }
}
