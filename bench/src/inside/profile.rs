//! What a request costs a server.
//!
//! Owns two runs of a point: one at full speed, with the kernel's counters of every thread, and a slower one under strace
//! for the system calls. A contestant enters, costs for each request leave.

use super::Record;
use super::fio::{End, Load};
use super::stand::{self, Stand};
use crate::message::{CostSample, Message, ThreadCost};
use crate::plan::{Common, Contestant, Point, point};
use anyhow::{Context, Result};
use blkrep_tests::inside::shell::{command, spawn, wait_for};
use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

const POINTS: [&str; 2] = ["write 4k d1", "write 4k d32"];
/// A thread below this many microseconds of processor time in the whole run is not shown.
const BUSY_US: f64 = 2000.0;

/// What a thread has used up.
#[derive(Debug, Clone, Default, PartialEq)]
struct Usage {
    name: String,
    cpu_us: f64,
    waits: u64,
    preemptions: u64,
}

/// Every thread of these processes, by its id.
fn usage(servers: &[u32]) -> Result<BTreeMap<u32, Usage>> {
    let mut all = BTreeMap::new();
    for server in servers {
        for entry in fs::read_dir(format!("/proc/{server}/task")).context("list threads")? {
            let task = entry?;
            let id = task.file_name().to_string_lossy().parse()?;
            let read = |name: &str| fs::read_to_string(task.path().join(name));
            // One that ended meanwhile did nothing for the requests.
            let (Ok(stat), Ok(status)) = (read("stat"), read("status")) else {
                continue;
            };
            all.insert(id, parse(&stat, &status, tick_us()?)?);
        }
    }
    Ok(all)
}

fn tick_us() -> Result<f64> {
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?;
    let ticks = ticks.context("read the clock's ticks")?;
    Ok(1e6 / f64::from(i32::try_from(ticks)?))
}

fn parse(stat: &str, status: &str, tick_us: f64) -> Result<Usage> {
    // proc(5): the name is in parentheses and may hold blanks; user and system time are fields 14 and 15.
    let (head, tail) = stat.rsplit_once(") ").context("read a thread's times")?;
    let name = head.split_once('(').map_or("", |(_, name)| name).to_owned();
    let field = |number: usize| -> Result<f64> {
        let word = tail.split_whitespace().nth(number - 3);
        Ok(word.context("read a thread's times")?.parse()?)
    };
    let count = |key: &str| -> Result<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        Ok(line.context("read a thread's switches")?.trim().parse()?)
    };
    Ok(Usage {
        name,
        cpu_us: (field(14)? + field(15)?) * tick_us,
        waits: count("voluntary_ctxt_switches:")?,
        preemptions: count("nonvoluntary_ctxt_switches:")?,
    })
}

pub(super) fn run(record: &mut Record, common: &Common) -> Result<()> {
    for contestant in common.only.clone() {
        record.progress(format!("profile: {}", contestant.title()))?;
        if let Err(error) = one(record, common, contestant) {
            let reason = format!("{error:#}");
            record.say(&Message::Failed { contestant, reason })?;
            stand::sweep();
        }
    }
    Ok(())
}

fn one(record: &mut Record, common: &Common, contestant: Contestant) -> Result<()> {
    let stand = stand::raise(contestant, common)?;
    let text = stand.settings();
    record.say(&Message::Settings { contestant, text })?;
    for name in POINTS {
        let point = point(name).context("find the point")?;
        let cost = cost(stand.as_ref(), common, contestant, point).with_context(|| name)?;
        record.say(&Message::Cost(cost))?;
    }
    stand.lower()
}

fn cost(
    stand: &dyn Stand,
    common: &Common,
    contestant: Contestant,
    point: &Point,
) -> Result<CostSample> {
    let servers = stand.servers()?;
    // Without a ramp, so that what is counted is all that was done.
    let load = |seconds: u32| {
        let options = format!(
            "--rw={} --bs={} --iodepth={} --norandommap --randrepeat=0 --time_based --runtime={seconds} --size={}m",
            point.pattern, point.block, point.depth, common.size_mib
        );
        let limit = Duration::from_secs(u64::from(seconds) + 120);
        Load::raw(stand.device(), &options, limit).run()
    };
    let before = usage(&servers)?;
    let end = load(common.seconds)?;
    let after = usage(&servers)?;
    Ok(CostSample {
        contestant,
        point: point.name.to_owned(),
        iops: end.iops,
        threads: threads(&before, &after, end.requests),
        calls: calls(&servers, || load(common.seconds))?,
    })
}

/// Requests as a divisor: far below what a fraction can hold exactly.
fn divisor(requests: u64) -> f64 {
    u32::try_from(requests).map_or(f64::MAX, f64::from).max(1.0)
}

fn threads(
    before: &BTreeMap<u32, Usage>,
    after: &BTreeMap<u32, Usage>,
    requests: u64,
) -> Vec<ThreadCost> {
    let per = divisor(requests);
    let count = |number: u64| u32::try_from(number).map_or(f64::MAX, f64::from) / per;
    let mut threads = Vec::new();
    for (id, now) in after {
        let then = before.get(id).cloned().unwrap_or_default();
        let cpu_us = now.cpu_us - then.cpu_us;
        if cpu_us >= BUSY_US {
            threads.push(ThreadCost {
                name: now.name.clone(),
                cpu_us: cpu_us / per,
                waits: count(now.waits.saturating_sub(then.waits)),
                preemptions: count(now.preemptions.saturating_sub(then.preemptions)),
            });
        }
    }
    threads.sort_by(|a, b| b.cpu_us.total_cmp(&a.cpu_us));
    threads
}

/// Counts system calls while a load runs.
fn calls(servers: &[u32], load: impl FnOnce() -> Result<End>) -> Result<Vec<(String, f64)>> {
    const TABLE: &str = "/run/bench-strace";
    let processes: String = servers.iter().map(|id| format!(" -p {id}")).collect();
    let mut tracer = spawn(command(&format!("strace -f -c -o {TABLE}{processes}")))?;
    wait_for("strace to attach", Duration::from_secs(20), || {
        anyhow::ensure!(tracer.is_running()?, "strace: {}", tracer.stderr()?);
        Ok(tracer.stderr()?.matches("attached").count() >= servers.len())
    })?;
    let end = load()?;
    let id = nix::unistd::Pid::from_raw(i32::try_from(tracer.id())?);
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGINT)?;
    // It ends by the signal, its table written.
    tracer.finish(Duration::from_secs(60))?;
    let table = fs::read_to_string(TABLE).context("read strace's table")?;
    Ok(counted(&table, end.requests))
}

fn counted(table: &str, requests: u64) -> Vec<(String, f64)> {
    let per = divisor(requests);
    // "% time  seconds  usecs/call  calls  [errors]  syscall"
    let row = |line: &str| -> Option<(String, f64)> {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.first()?.parse::<f64>().ok()?;
        let calls: f64 = words.get(3)?.parse().ok()?;
        let name = words.last().filter(|name| **name != "total")?;
        Some(((*name).to_owned(), calls / per))
    };
    let mut calls: Vec<_> = table.lines().filter_map(row).collect();
    calls.sort_by(|a, b| b.1.total_cmp(&a.1));
    calls
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn thread_with_a_blank_in_its_name_is_read() {
        let stat = "12 (q 0 (x)) S 1 1 1 0 -1 4194368 100 0 0 0 25 75 0 0 20 0 9 0 100 1 2 3";
        let status = "Name:\tq\nvoluntary_ctxt_switches:\t40\nnonvoluntary_ctxt_switches:\t2\n";
        let usage = parse(stat, status, 10_000.0).unwrap();
        let expected = Usage {
            name: "q 0 (x)".to_owned(),
            cpu_us: 1_000_000.0,
            waits: 40,
            preemptions: 2,
        };
        assert_eq!(usage, expected);
    }

    #[test]
    fn costs_are_for_each_request_and_idle_threads_are_left_out() {
        let used = |cpu_us, waits| Usage {
            name: "t".to_owned(),
            cpu_us,
            waits,
            preemptions: 0,
        };
        let before = BTreeMap::from([(1, used(1e6, 10)), (2, used(5e5, 1))]);
        let after = BTreeMap::from([(1, used(3e6, 1010)), (2, used(5e5, 1))]);
        let threads = threads(&before, &after, 1000);
        assert_eq!(threads.len(), 1);
        assert!((threads[0].cpu_us - 2000.0).abs() < 1e-9);
        assert!((threads[0].waits - 1.0).abs() < 1e-9);
    }

    #[test]
    fn table_of_strace_is_read() {
        let table = "% time     seconds  usecs/call     calls    errors syscall\n\
            ------ ----------- ----------- --------- --------- ----------------\n \
             90.00    0.900000           9      1500           io_uring_enter\n \
             10.00    0.100000          10       500        10 futex\n\
            ------ ----------- ----------- --------- --------- ----------------\n\
            100.00    1.000000           9      2000        10 total\n";
        let calls = counted(table, 1000);
        assert_eq!(
            calls,
            [
                ("io_uring_enter".to_owned(), 1.5),
                ("futex".to_owned(), 0.5)
            ]
        );
    }
}
