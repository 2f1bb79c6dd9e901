//! One load with fio.
//!
//! Owns its command line and the reading of its answer. A device and a point enter, figures leave.

use crate::plan::{Common, Point};
use anyhow::{Context, Result, ensure};
use blkrep_tests::inside::shell::{Running, command, spawn};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What fio counted after its ramp.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct End {
    /// Completed requests a second.
    pub(super) iops: f64,
    /// Completed bytes a second.
    pub(super) bytes_per_second: f64,
    /// Mean completion latency.
    pub(super) latency_mean_us: f64,
    /// 99th percentile of it.
    pub(super) latency_p99_us: f64,
    /// Requests that were completed.
    pub(super) requests: u64,
}

/// A load that can be started.
#[derive(Debug, Clone)]
pub(super) struct Load {
    /// What it writes or reads.
    pub(super) device: PathBuf,
    line: String,
    limit: Duration,
}

/// The ramp, in seconds: caches, threads and windows settle, uncounted.
const RAMP_SECONDS: u32 = 1;

impl Load {
    /// The load of a point.
    pub(super) fn new(device: &Path, common: &Common, point: &Point) -> Self {
        let (pattern, block, depth) = (point.pattern, point.block, point.depth);
        let end = format!(
            "--time_based --runtime={} --ramp_time={RAMP_SECONDS} --size={}m --randrepeat=0",
            common.seconds, common.size_mib
        );
        let seconds = u64::from(common.seconds + RAMP_SECONDS);
        Self::raw(
            device,
            &format!("--rw={pattern} --bs={block} --iodepth={depth} --norandommap {end}"),
            Duration::from_secs(seconds + 120),
        )
    }

    /// A load with these options beside the common ones.
    pub(super) fn raw(device: &Path, options: &str, limit: Duration) -> Self {
        let line = format!(
            "fio --name=point --filename={} --ioengine=libaio --direct=1 --output-format=json {options}",
            device.display()
        );
        Self {
            device: device.to_owned(),
            line,
            limit,
        }
    }

    /// Starts it.
    pub(super) fn start(&self) -> Result<Running> {
        spawn(command(&self.line))
    }

    /// Awaits its end.
    pub(super) fn end(&self, running: Running) -> Result<End> {
        parse(&running.succeed(self.limit)?)
    }

    /// Runs it to its end.
    pub(super) fn run(&self) -> Result<End> {
        self.end(self.start()?)
    }
}

#[derive(Debug, Deserialize)]
struct Output {
    jobs: Vec<Job>,
}

#[derive(Debug, Deserialize)]
struct Job {
    error: i32,
    read: Direction,
    write: Direction,
}

#[derive(Debug, Deserialize)]
struct Direction {
    total_ios: u64,
    iops: f64,
    bw_bytes: f64,
    clat_ns: Latency,
}

#[derive(Debug, Deserialize)]
struct Latency {
    mean: f64,
    percentile: Option<std::collections::BTreeMap<String, f64>>,
}

fn parse(text: &str) -> Result<End> {
    // fio may say a word before its object.
    let object = text.find('{').context("find fio's answer")?;
    let output: Output = serde_json::from_str(&text[object..]).context("read fio's answer")?;
    let job = output.jobs.first().context("fio ran no job")?;
    ensure!(job.error == 0, "fio: error {}", job.error);
    let (read, write) = (&job.read, &job.write);
    let direction = if write.total_ios > read.total_ios {
        write
    } else {
        read
    };
    ensure!(direction.total_ios > 0, "fio completed nothing");
    let percentile = direction.clat_ns.percentile.as_ref();
    let p99 = percentile.and_then(|all| all.get("99.000000")).copied();
    Ok(End {
        iops: direction.iops,
        bytes_per_second: direction.bw_bytes,
        latency_mean_us: direction.clat_ns.mean / 1e3,
        latency_p99_us: p99.context("fio gave no percentile")? / 1e3,
        requests: direction.total_ios,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn answer(error: i32, written: u64) -> String {
        format!(
            r#"note: something
{{"fio version": "fio-3.33", "jobs": [{{"error": {error},
  "read": {{"total_ios": 0, "iops": 0.0, "bw_bytes": 0, "clat_ns": {{"mean": 0.0}}}},
  "write": {{"total_ios": {written}, "iops": 12.5, "bw_bytes": 51200,
     "clat_ns": {{"mean": 80000.0, "percentile": {{"99.000000": 120000, "99.900000": 1}}}}}}}}]}}"#
        )
    }

    #[test]
    fn answer_of_fio_is_read() {
        let end = parse(&answer(0, 50)).unwrap();
        let expected = End {
            iops: 12.5,
            bytes_per_second: 51200.0,
            latency_mean_us: 80.0,
            latency_p99_us: 120.0,
            requests: 50,
        };
        assert_eq!(end, expected);
    }

    #[test]
    fn failed_or_idle_load_is_no_figure() {
        assert!(parse(&answer(5, 50)).is_err());
        assert!(parse(&answer(0, 0)).is_err());
        assert!(parse("fio: no such device").is_err());
    }
}
