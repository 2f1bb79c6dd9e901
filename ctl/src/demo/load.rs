//! The application of the demonstration: writers whose record lets the replica be judged later.
//!
//! Owns the record of the run and the loads that append to it. Devices enter; what was written,
//! with what it touched, leaves. Never asks a daemon anything.

use super::figures::Written;
use anyhow::Context as _;
use blkrep_order::{History, Load, Operation, Summary};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

/// Grain of the dirty maps: the setting's default.
pub(crate) const EXTENT_BYTES: u64 = 64 << 10;
/// Threads of the application.
pub(crate) const WRITERS: u16 = 8;
/// Longest wait for a load that was told to stop; each writer ends with the operation in hand.
const END_LIMIT: Duration = Duration::from_secs(60);

/// How hard a load works.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pace {
    /// Every block once, in order.
    Fill,
    /// What a link keeps up with: small writes with pauses.
    Steady,
    /// As fast as the device takes it, this many operations within the first bytes of the volume.
    Storm { operations: u64, span_bytes: u64 },
}

/// The record that all loads of the run share.
#[derive(Debug)]
pub(crate) struct Record {
    path: PathBuf,
    run: u64,
    loads: u64,
}

impl Record {
    /// A new record; `run` tells its blocks from those of others.
    pub(crate) fn new(path: PathBuf, run: u64) -> Self {
        Self {
            path,
            run,
            loads: 0,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn history(&self) -> anyhow::Result<History> {
        let bytes = fs::read(&self.path).context("read the record")?;
        History::parse(&bytes).context("understand the record")
    }

    /// Begins a load of at most `time`, of the volume at `device`.
    pub(crate) fn load(
        &mut self,
        device: &str,
        pace: Pace,
        time: Duration,
    ) -> anyhow::Result<Running> {
        let before = if self.loads == 0 {
            None
        } else {
            Some(self.history()?)
        };
        self.loads += 1;
        let stop = self.path.with_extension(format!("stop-{}", self.loads));
        let load = self.shape(device, pace, time, stop.clone());
        let sink = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.path)
            .context("open the record")?;
        let operations_before = before
            .as_ref()
            .map_or(0, |history| history.operations.len());
        let thread = std::thread::Builder::new()
            .name("load".to_owned())
            .spawn(move || match before {
                None => blkrep_order::write(&load, sink),
                Some(before) => blkrep_order::append(&load, &before, sink),
            })
            .context("start the load")?;
        Ok(Running {
            thread: Some(thread),
            stop,
            operations_before,
        })
    }

    fn shape(&self, device: &str, pace: Pace, time: Duration, stop: PathBuf) -> Load {
        let steady = matches!(pace, Pace::Steady);
        let (operations, span_bytes) = match pace {
            Pace::Fill => (Some(0), None),
            Pace::Steady => (None, None),
            Pace::Storm {
                operations,
                span_bytes,
            } => (Some(operations), Some(span_bytes)),
        };
        Load {
            volumes: vec![PathBuf::from(device)],
            writers: WRITERS,
            seconds: Some(time.as_secs_f64()),
            stop_file: Some(stop),
            operations,
            max_bytes: if steady { 16 << 10 } else { 64 << 10 },
            block_bytes: 4096,
            span_bytes,
            flush_percent: 2,
            fua_percent: 2,
            zero_percent: 0,
            discard_percent: 0,
            prefill: matches!(pace, Pace::Fill),
            pause: Duration::from_millis(if steady { 10 } else { 0 }),
            keep_going: false,
            // Daemons are killed here, never the machine.
            host_survives: true,
            seed: self.run ^ self.loads,
            run: self.run,
        }
    }
}

/// A load at work.
#[derive(Debug)]
pub(crate) struct Running {
    thread: Option<JoinHandle<io::Result<Summary>>>,
    stop: PathBuf,
    /// Operations on record when it began.
    pub(crate) operations_before: usize,
}

impl Running {
    pub(crate) fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Tells it to stop, without waiting.
    pub(crate) fn tell_to_stop(&self) {
        // Without the file it ends by its time.
        drop(File::create(&self.stop));
    }

    /// Waits for its end. One that does not end is left behind: its device does not answer.
    pub(crate) fn end(mut self) -> anyhow::Result<Written> {
        let thread = self.thread.take().context("end a load once")?;
        let mut waited = Duration::ZERO;
        let step = Duration::from_millis(10);
        while !thread.is_finished() {
            anyhow::ensure!(waited < END_LIMIT, "an operation of the application hangs");
            std::thread::sleep(step);
            waited += step;
        }
        let ended = thread.join();
        let summary = ended.map_err(|_| anyhow::anyhow!("the load panicked"))?;
        let summary = summary.context("write to the volume")?;
        Ok(Written {
            operations: summary.submitted,
            failed: summary.failed,
            bytes: summary.bytes_written,
            latency_ms_max: summary.latency_ms_max,
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.tell_to_stop();
        }
    }
}

/// Bytes of all extents that these operations cover.
pub(crate) fn extent_bytes<'a>(operations: impl Iterator<Item = &'a Operation>) -> u64 {
    let per_extent = EXTENT_BYTES / blkrep_order::SECTOR_BYTES as u64;
    let covering = operations.filter(|operation| operation.count > 0);
    let extents: BTreeSet<u64> = covering
        .flat_map(|operation| {
            let sectors = operation.sectors();
            sectors.start / per_extent..=(sectors.end - 1) / per_extent
        })
        .collect();
    extents.len() as u64 * EXTENT_BYTES
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use blkrep_order::{Judgement, Keep, Kind};

    fn operation(first: u64, count: u32) -> Operation {
        let (writer, counter, kind, volume) = (0, 1, Kind::Write, 0);
        Operation {
            writer,
            counter,
            kind,
            volume,
            first,
            count,
            submitted: 1,
            completed: None,
        }
    }

    #[test]
    fn touched_extents_are_counted_once_and_whole() {
        let bytes = |list: &[Operation]| extent_bytes(list.iter());
        assert_eq!(bytes(&[]), 0);
        assert_eq!(bytes(&[operation(0, 0)]), 0);
        assert_eq!(bytes(&[operation(127, 1), operation(0, 1)]), EXTENT_BYTES);
        assert_eq!(
            bytes(&[operation(127, 2), operation(128, 1)]),
            2 * EXTENT_BYTES
        );
    }

    #[test]
    fn loads_of_one_run_share_a_record_that_judges_their_volume() {
        let dir = super::super::scene::directory().unwrap();
        let image = dir.path().join("image");
        File::create(&image).unwrap().set_len(4 << 20).unwrap();
        let device = image.to_str().unwrap();
        let mut record = Record::new(dir.path().join("record"), 77);
        let time = Duration::from_secs(30);
        let filled = record
            .load(device, Pace::Fill, time)
            .unwrap()
            .end()
            .unwrap();
        assert_eq!(filled.bytes, 4 << 20);
        let storm = Pace::Storm {
            operations: 50,
            span_bytes: 1 << 20,
        };
        let load = record.load(device, storm, time).unwrap();
        let before = load.operations_before;
        assert_eq!(load.end().unwrap().operations, 50);
        let steady = record.load(device, Pace::Steady, time).unwrap();
        steady.tell_to_stop();
        assert_eq!(steady.end().unwrap().failed, 0);
        let history = record.history().unwrap();
        let touched = extent_bytes(history.operations[before..before + 50].iter());
        assert!(touched > 0 && touched <= 1 << 20);
        let verdict = blkrep_order::check_files(
            record.path(),
            &[image],
            &[],
            Judgement::Replica,
            Keep::Completed,
        );
        assert!(verdict.unwrap().legal);
    }
}
