//! What runs inside the guest: it sets contestants up, one after another, and measures them.
//!
//! Owns the order of rounds and the record channel. A plan enters, messages leave. Never compares.

mod daemon;
mod disks;
mod fio;
mod memory;
mod mirror;
mod peers;
mod profile;
mod stand;
mod watch;

use crate::message::{Message, Sample};
use crate::plan::{Common, Contestant, POINTS, Plan, Point, Work};
use anyhow::{Context, Result};
use blkrep_tests::inside::init::RECORD_VARIABLE;
use blkrep_tests::inside::shell::run as shell;
use stand::Stand;
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::Write;

/// The record channel.
#[derive(Debug)]
pub(crate) struct Record(File);

impl Record {
    fn open() -> Result<Self> {
        let path = std::env::var_os(RECORD_VARIABLE).context("find the record channel")?;
        let file = OpenOptions::new().append(true).open(&path);
        Ok(Self(file.with_context(|| {
            format!("open {}", path.to_string_lossy())
        })?))
    }

    /// Sends one line.
    pub(crate) fn say(&mut self, message: &Message) -> Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.0.write_all(&line).context("write the record")
    }

    fn progress(&mut self, text: String) -> Result<()> {
        self.say(&Message::Progress { text })
    }
}

/// Does what the plan says.
pub(crate) fn run(plan: &Plan) -> Result<()> {
    let mut record = Record::open()?;
    prepare(&plan.common)?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let cpus = std::thread::available_parallelism()?.get();
    record.say(&Message::Machine {
        kernel: kernel.trim().to_owned(),
        cpus,
    })?;
    match plan.work {
        Work::Points => points(&mut record, &plan.common),
        Work::Mirror {
            limit_mib,
            disk_mib,
        } => {
            let common = Common {
                size_mib: disk_mib,
                ..plan.common.clone()
            };
            mirror::run(&mut record, &common, limit_mib)
        }
        Work::Memory { logs } => memory::run(&mut record, &plan.common, logs),
        Work::Profile => profile::run(&mut record, &plan.common),
    }
}

/// What peers expect of a machine: writable places for their state, and RAM disks whose pages are there already.
fn prepare(common: &Common) -> Result<()> {
    for dir in [
        "/run/lock",
        "/run/drbd",
        "/var/lib/drbd",
        "/var/lock",
        "/var/run",
    ] {
        // Read-only or there already: then the next line or the peer says so.
        let _ = std::fs::create_dir_all(dir);
    }
    shell("mount -t tmpfs tmpfs /var/lib/drbd")?;
    stand::clear(common)
}

/// Every contestant over every point, in turns: noise that lasts hits all of them alike.
fn points(record: &mut Record, common: &Common) -> Result<()> {
    let mut failed = BTreeSet::new();
    for round in 0..common.rounds {
        for contestant in turn(&common.only, round) {
            if failed.contains(&contestant) {
                continue;
            }
            record.progress(format!(
                "round {} of {}: {}",
                round + 1,
                common.rounds,
                contestant.title()
            ))?;
            if let Err(error) = one(record, common, contestant, round) {
                let reason = format!("{error:#}");
                record.say(&Message::Failed { contestant, reason })?;
                failed.insert(contestant);
                stand::sweep();
            }
        }
    }
    Ok(())
}

/// Another one goes first in every round.
fn turn(contestants: &[Contestant], round: u32) -> Vec<Contestant> {
    let mut turn = contestants.to_vec();
    let first = usize::try_from(round).unwrap_or(0) % turn.len().max(1);
    turn.rotate_left(first);
    turn
}

fn one(record: &mut Record, common: &Common, contestant: Contestant, round: u32) -> Result<()> {
    let mut stand = stand::raise(contestant, common)?;
    if round == 0 {
        let text = stand.settings();
        record.say(&Message::Settings { contestant, text })?;
    }
    for point in &POINTS {
        let sample = measure(stand.as_mut(), common, contestant, point, round);
        let sample = sample.with_context(|| point.name)?;
        let left = sample
            .replication
            .as_ref()
            .and_then(|r| r.left_for.as_ref());
        if let (Some(state), Some(pair)) = (left, stand.pair()) {
            record.progress(format!("replication left for: {state}\n{}", pair.said()?))?;
        }
        record.say(&Message::Sample(sample))?;
    }
    stand.lower()
}

fn measure(
    stand: &mut dyn Stand,
    common: &Common,
    contestant: Contestant,
    point: &Point,
    round: u32,
) -> Result<Sample> {
    let device = stand.device().to_owned();
    let load = fio::Load::new(&device, common, point);
    let (end, replication) = match stand.pair() {
        Some(pair) if point.writes => {
            let (end, replication) = watch::replicated(pair, &load)?;
            (end, Some(replication))
        }
        _ => (load.run()?, None),
    };
    Ok(Sample {
        round,
        contestant,
        point: point.name.to_owned(),
        iops: end.iops,
        bytes_per_second: end.bytes_per_second,
        latency_mean_us: end.latency_mean_us,
        latency_p99_us: end.latency_p99_us,
        replication,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_contestant_goes_first_in_every_round() {
        let all = [Contestant::Ram, Contestant::Rublk, Contestant::Volume];
        let firsts: Vec<_> = (0..4).map(|round| turn(&all, round)[0]).collect();
        assert_eq!(
            firsts,
            [
                Contestant::Ram,
                Contestant::Rublk,
                Contestant::Volume,
                Contestant::Ram
            ]
        );
        assert!((0..4).all(|round| turn(&all, round).len() == all.len()));
        assert!(turn(&[], 1).is_empty());
    }
}
