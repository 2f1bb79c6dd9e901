//! Tables in Markdown.
//!
//! Owns their layout. A report enters, text leaves.

use super::{MEMORY_ALLOWANCE, MIB, MIRROR_GOAL, Middle, Report, counted, middle, precise, rate};
use crate::message::Message;
use crate::plan::{Contestant, POINTS, Point, Work};
use std::fmt::Write as _;

/// One row.
fn row(cells: impl IntoIterator<Item = String>) -> String {
    let cells: Vec<String> = cells.into_iter().collect();
    format!("| {} |\n", cells.join(" | "))
}

/// The first rows of a table.
fn head(cells: &[&str]) -> String {
    let rule = cells.iter().map(|_| "---".to_owned());
    row(cells.iter().map(|cell| (*cell).to_owned())) + &row(rule)
}

/// A figure with three digits that mean something.
fn short(figure: f64) -> String {
    if figure >= 100_000.0 {
        format!("{:.0}k", figure / 1000.0)
    } else if figure >= 10_000.0 {
        format!("{:.1}k", figure / 1000.0)
    } else if figure >= 1000.0 {
        format!("{:.2}k", figure / 1000.0)
    } else {
        format!("{figure:.0}")
    }
}

fn spread(figure: Middle, show: impl Fn(f64) -> String) -> String {
    let (median, least, most) = (show(figure.median), show(figure.least), show(figure.most));
    if least == most {
        return median;
    }
    format!("{median} ({least}–{most})")
}

fn unit(point: &Point) -> f64 {
    if point.in_bytes { MIB } else { 1.0 }
}

fn title(point: &Point) -> String {
    let unit = if point.in_bytes { "MiB/s" } else { "IOPS" };
    format!("{}, {unit}", point.name)
}

impl Report {
    pub(super) fn head(&self) -> String {
        let common = &self.plan.common;
        let machine = self.messages.iter().find_map(|message| match message {
            Message::Machine { kernel, cpus } => Some(format!("kernel {kernel}, {cpus} CPUs")),
            _ => None,
        });
        let time = if common.virtual_time {
            ", virtual time"
        } else {
            ""
        };
        let how = match self.plan.work {
            Work::Points => format!(
                "{} rounds in turns, {} s a point; medians, (least–most)",
                common.rounds, common.seconds
            ),
            Work::Mirror { .. } => {
                format!("{} rounds in turns; medians, (least–most)", common.rounds)
            }
            Work::Memory { .. } | Work::Profile => "one run".to_owned(),
        };
        let machine = machine.unwrap_or_else(|| "no word from the guest".to_owned());
        format!("{} guest{time}, {machine}; one boot, {how}\n\n", self.kind)
    }

    pub(super) fn foot(&self) -> String {
        let mut text = "\nSettings:\n\n".to_owned();
        let mut failures = String::new();
        for message in &self.messages {
            match message {
                Message::Settings {
                    contestant,
                    text: how,
                } => {
                    let _ = writeln!(text, "- {}: {how}", contestant.title());
                }
                Message::Failed { contestant, reason } => {
                    let _ = writeln!(failures, "- {} FAILED: {reason}", contestant.title());
                }
                _ => {}
            }
        }
        if !failures.is_empty() {
            let _ = write!(text, "\nNot measured:\n\n{failures}");
        }
        text
    }

    pub(super) fn points_tables(&self) -> String {
        let titles: Vec<String> = POINTS.iter().map(title).collect();
        let columns: Vec<&str> = [""]
            .into_iter()
            .chain(titles.iter().map(String::as_str))
            .collect();
        let mut text = head(&columns);
        for contestant in &self.plan.common.only {
            let cell = |point: &Point| {
                let samples = self.of(*contestant, point);
                let figures = samples.iter().map(|s| rate(s, point) / unit(point));
                middle(figures.collect()).map_or_else(|| "–".to_owned(), |m| spread(m, short))
            };
            let cells = POINTS.iter().map(cell);
            text += &row([contestant.title().to_owned()].into_iter().chain(cells));
        }
        text += &self.latency_table();
        for contestant in &self.plan.common.only {
            if contestant.mode().is_some() {
                text += &self.replication_table(*contestant);
            }
        }
        text + &self.goals_table()
    }

    fn latency_table(&self) -> String {
        let titles = POINTS.iter().map(|point| point.name);
        let columns: Vec<&str> = ["mean / p99 latency, µs"]
            .into_iter()
            .chain(titles)
            .collect();
        let mut text = "\n".to_owned() + &head(&columns);
        for contestant in &self.plan.common.only {
            let cell = |point: &Point| {
                let samples = self.of(*contestant, point);
                let mean = middle(samples.iter().map(|s| s.latency_mean_us).collect());
                let p99 = middle(samples.iter().map(|s| s.latency_p99_us).collect());
                match (mean, p99) {
                    (Some(mean), Some(p99)) => format!("{:.0} / {:.0}", mean.median, p99.median),
                    _ => "–".to_owned(),
                }
            };
            let cells = POINTS.iter().map(cell);
            text += &row([contestant.title().to_owned()].into_iter().chain(cells));
        }
        text
    }

    fn replication_table(&self, contestant: Contestant) -> String {
        let mut text = "\n".to_owned()
            + &head(&[
                contestant.title(),
                "application",
                "counted",
                "last ack after the end, s",
                "most in the log, MiB",
                "left `replicating`",
            ]);
        for point in POINTS.iter().filter(|point| point.writes) {
            let samples = self.of(contestant, point);
            let all = |figure: &dyn Fn(&crate::message::Sample) -> Option<f64>| {
                middle(samples.iter().filter_map(|sample| figure(sample)).collect())
            };
            let application = all(&|s| Some(rate(s, point) / unit(point)));
            let durable = all(&|s| counted(s, point).map(|rate| rate / unit(point)));
            let drain = all(&|s| s.replication.as_ref().map(|r| r.drain_seconds));
            let queue = all(&|s| {
                s.replication
                    .as_ref()
                    .map(|r| precise(r.queue_bytes_max) / MIB)
            });
            let left: Vec<String> = samples
                .iter()
                .filter_map(|s| Some((s.round, s.replication.as_ref()?.left_for.as_ref()?)))
                .map(|(round, state)| format!("round {}: {state}", round + 1))
                .collect();
            let cell = |figure: Option<Middle>, show: fn(f64) -> String| {
                figure.map_or_else(|| "–".to_owned(), |figure| spread(figure, show))
            };
            text += &row([
                title(point),
                cell(application, short),
                cell(durable, short),
                cell(drain, |seconds| format!("{seconds:.2}")),
                cell(queue, |mib| format!("{mib:.1}")),
                if left.is_empty() {
                    "never".to_owned()
                } else {
                    left.join(", ")
                },
            ]);
        }
        text
    }

    fn goals_table(&self) -> String {
        let goals = self.goals();
        if goals.is_empty() {
            return String::new();
        }
        let mut text = "\n".to_owned() + &head(&["ratio", "point", "reached", "goal", ""]);
        for (goal, ratio) in goals {
            let verdict = match ratio {
                Some(ratio) if ratio.median >= goal.least => "met",
                Some(_) => "MISSED",
                None => "NO FIGURE",
            };
            text += &row([
                format!("{} / {}", goal.who.title(), goal.of.title()),
                goal.point.to_owned(),
                ratio.map_or_else(|| "–".to_owned(), |m| spread(m, |r| format!("{r:.2}"))),
                format!("{:.2}", goal.least),
                verdict.to_owned(),
            ]);
        }
        text
    }

    pub(super) fn mirror_table(&self, limit_mib: u32, disk_mib: u64) -> String {
        let mut text = format!(
            "Full mirror of incompressible data; disks of {disk_mib} MiB limited to {limit_mib} MiB/s.\n\n"
        );
        text += &head(&[
            "",
            "mirror, MiB/s",
            "of the limit",
            "of what the disk reached",
            "disk alone: write, read, MiB/s",
            "goal",
        ]);
        for contestant in &self.plan.common.only {
            let samples: Vec<_> = self
                .mirrors()
                .filter(|s| s.contestant == *contestant)
                .collect();
            let all = |figure: &dyn Fn(&crate::message::MirrorSample) -> f64| {
                middle(samples.iter().map(|sample| figure(sample)).collect())
            };
            let rate = |s: &crate::message::MirrorSample| precise(s.bytes) / s.seconds / MIB;
            let limit = f64::from(limit_mib);
            let (Some(mirror), Some(of_limit), Some(of_disk), Some(write), Some(read)) = (
                all(&rate),
                all(&|s| rate(s) / limit),
                all(&|s| rate(s) * MIB / s.disk_read.min(s.disk_write)),
                all(&|s| s.disk_write / MIB),
                all(&|s| s.disk_read / MIB),
            ) else {
                continue;
            };
            let verdict = match (*contestant, of_limit.median >= MIRROR_GOAL) {
                (Contestant::Async, true) => format!("{MIRROR_GOAL:.2} met"),
                (Contestant::Async, false) => format!("{MIRROR_GOAL:.2} MISSED"),
                _ => "–".to_owned(),
            };
            text += &row([
                contestant.title().to_owned(),
                spread(mirror, short),
                spread(of_limit, |r| format!("{r:.2}")),
                spread(of_disk, |r| format!("{r:.2}")),
                format!("{:.0}, {:.0}", write.median, read.median),
                verdict,
            ]);
        }
        text
    }

    pub(super) fn memory_table(&self) -> String {
        let Some(memory) = self.memory() else {
            return String::new();
        };
        let mib = |bytes: u64| format!("{:.1}", precise(bytes) / MIB);
        let granted: u64 = memory.configured.iter().map(|(_, bytes)| bytes).sum();
        let limit = granted + MEMORY_ALLOWANCE;
        let mut text = format!(
            "{} MiB written while the link was down: {:.1} times the log of {} MiB.\n\n",
            mib(memory.written_bytes),
            precise(memory.written_bytes) / precise(memory.log_bytes),
            mib(memory.log_bytes)
        );
        text += &head(&["VmHWM of the source", "MiB"]);
        text += &row(["before".to_owned(), mib(memory.idle_bytes)]);
        text += &row(["after the writes".to_owned(), mib(memory.down_bytes)]);
        text += &row([
            "after the target caught up".to_owned(),
            mib(memory.peak_bytes),
        ]);
        for (setting, bytes) in &memory.configured {
            text += &row([format!("granted by `{setting}`"), mib(*bytes)]);
        }
        let verdict = if memory.peak_bytes <= limit {
            "met"
        } else {
            "MISSED"
        };
        text + &row([
            format!("limit: granted + {} MiB, {verdict}", MEMORY_ALLOWANCE >> 20),
            mib(limit),
        ])
    }

    pub(super) fn profile_tables(&self) -> String {
        let mut text = "For each request; threads at full speed, system calls in a slower run under strace.\n\n".to_owned();
        text += &head(&[
            "",
            "point",
            "IOPS",
            "threads: µs, waits, preemptions",
            "system calls",
        ]);
        for cost in self.costs() {
            let threads: Vec<String> = cost
                .threads
                .iter()
                .map(|t| {
                    format!(
                        "{} {:.1}, {:.2}, {:.2}",
                        t.name, t.cpu_us, t.waits, t.preemptions
                    )
                })
                .collect();
            // Rarer ones are the daemon's own life.
            let calls: Vec<String> = cost
                .calls
                .iter()
                .filter(|(_, per)| *per >= 0.005)
                .map(|(name, per)| format!("{name} {per:.2}"))
                .collect();
            text += &row([
                cost.contestant.title().to_owned(),
                cost.point.clone(),
                short(cost.iops),
                threads.join("; "),
                calls.join(", "),
            ]);
        }
        text
    }
}
