//! What the lines of a guest add up to.
//!
//! Owns medians, ratios within a round, and goals. Messages enter, tables and one JSON object leave. Never measures.

mod tables;

use crate::message::{CostSample, MemorySample, Message, MirrorSample, Sample};
use crate::plan::{Contestant, POINTS, Plan, Point, Work};
use serde_json::{Value, json};

/// Bytes of a MiB.
pub(crate) const MIB: f64 = 1_048_576.0;
/// What the daemon may need beyond what settings grant.
const MEMORY_ALLOWANCE: u64 = 64 << 20;
/// Part of the disks' limit that a full mirror is to reach.
const MIRROR_GOAL: f64 = 0.9;

/// A measurement, whole.
#[derive(Debug)]
pub(crate) struct Report {
    kind: &'static str,
    plan: Plan,
    messages: Vec<Message>,
}

/// One contestant's rate as a part of another's, and what it is to be.
#[derive(Debug, Clone, Copy)]
struct Goal {
    who: Contestant,
    of: Contestant,
    point: &'static str,
    least: f64,
    /// Only in this kind of guest.
    guest: Option<&'static str>,
}

const fn goal(who: Contestant, of: Contestant, point: &'static str, least: f64) -> Goal {
    Goal {
        who,
        of,
        point,
        least,
        guest: None,
    }
}

impl Goal {
    const fn only_in(self, guest: &'static str) -> Self {
        Self {
            guest: Some(guest),
            ..self
        }
    }
}

const GOALS: [Goal; 11] = [
    goal(Contestant::Volume, Contestant::Rublk, "write 4k d1", 0.8),
    goal(Contestant::Volume, Contestant::Rublk, "write 4k d32", 0.9),
    goal(Contestant::Volume, Contestant::Rublk, "read 4k d1", 0.8),
    goal(Contestant::Volume, Contestant::Rublk, "read 4k d32", 0.9),
    goal(Contestant::Async, Contestant::DrbdA, "write 4k d32", 1.5),
    goal(Contestant::Sync, Contestant::DrbdC, "write 4k d32", 1.0).only_in("uml"),
    goal(Contestant::Memory, Contestant::DrbdB, "write 4k d32", 1.0).only_in("uml"),
    goal(Contestant::Sync, Contestant::DrbdC, "write 4k d1", 0.6).only_in("uml"),
    goal(Contestant::Memory, Contestant::DrbdB, "write 4k d1", 0.6).only_in("uml"),
    goal(Contestant::Sync, Contestant::DrbdC, "write 4k d1", 1.0).only_in("qemu"),
    goal(Contestant::Memory, Contestant::DrbdB, "write 4k d1", 1.0).only_in("qemu"),
];

/// The middle of some figures, with the least and the most.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Middle {
    median: f64,
    least: f64,
    most: f64,
}

fn middle(mut figures: Vec<f64>) -> Option<Middle> {
    figures.sort_by(f64::total_cmp);
    let (least, most) = (*figures.first()?, *figures.last()?);
    let half = figures.len() / 2;
    let median = if figures.len() % 2 == 1 {
        figures[half]
    } else {
        f64::midpoint(figures[half - 1], figures[half])
    };
    Some(Middle {
        median,
        least,
        most,
    })
}

/// A sample's figure: requests, or bytes where requests are large.
fn rate(sample: &Sample, point: &Point) -> f64 {
    if point.in_bytes {
        sample.bytes_per_second
    } else {
        sample.iops
    }
}

/// A sample's figure for goals: through a link only if that kept up. An asynchronous application can always look fast: of
/// its writes only what became durable on the target counts. In the other modes an answer says what DRBD's says.
fn counted(sample: &Sample, point: &Point) -> Option<f64> {
    let Some(replication) = &sample.replication else {
        return Some(rate(sample, point));
    };
    if !replication.never_left {
        return None;
    }
    if sample.contestant != Contestant::Async {
        return Some(rate(sample, point));
    }
    let bytes = precise(replication.durable_bytes) / replication.seconds;
    if point.in_bytes {
        return Some(bytes);
    }
    Some(bytes * sample.iops / sample.bytes_per_second)
}

/// Byte counts of a benchmark are far below what a fraction holds exactly.
#[allow(clippy::cast_precision_loss)]
fn precise(bytes: u64) -> f64 {
    bytes as f64
}

impl Report {
    /// Of a guest's lines.
    pub(crate) fn new(kind: &'static str, plan: &Plan, messages: Vec<Message>) -> Self {
        Self {
            kind,
            plan: plan.clone(),
            messages,
        }
    }

    /// Everybody who was to take part did, to the end.
    pub(crate) fn is_complete(&self) -> bool {
        let failed = |message: &Message| matches!(message, Message::Failed { .. });
        !self.messages.iter().any(failed)
    }

    fn samples(&self) -> impl Iterator<Item = &Sample> {
        self.messages.iter().filter_map(|message| match message {
            Message::Sample(sample) => Some(sample),
            _ => None,
        })
    }

    fn mirrors(&self) -> impl Iterator<Item = &MirrorSample> {
        self.messages.iter().filter_map(|message| match message {
            Message::Mirror(sample) => Some(sample),
            _ => None,
        })
    }

    fn costs(&self) -> impl Iterator<Item = &CostSample> {
        self.messages.iter().filter_map(|message| match message {
            Message::Cost(sample) => Some(sample),
            _ => None,
        })
    }

    fn memory(&self) -> Option<&MemorySample> {
        self.messages.iter().find_map(|message| match message {
            Message::Memory(sample) => Some(sample),
            _ => None,
        })
    }

    fn of(&self, contestant: Contestant, point: &Point) -> Vec<&Sample> {
        let wanted = |s: &&Sample| s.contestant == contestant && s.point == point.name;
        self.samples().filter(wanted).collect()
    }

    /// One contestant against another, round by round: what disturbs a round disturbs both.
    /// A round in which replication did not keep up has no figure; then there is no ratio either.
    fn ratio(&self, who: Contestant, of: Contestant, point: &Point) -> Option<Middle> {
        let mut ratios = Vec::new();
        for sample in self.of(who, point) {
            let others = self.of(of, point);
            let other = others.iter().find(|other| other.round == sample.round)?;
            ratios.push(counted(sample, point)? / counted(other, point)?);
        }
        middle(ratios)
    }

    /// Goals whose both sides took part.
    fn goals(&self) -> Vec<(Goal, Option<Middle>)> {
        let takes_part = |contestant| self.plan.common.only.contains(&contestant);
        let mut goals = Vec::new();
        for goal in GOALS {
            if goal.guest.is_some_and(|guest| guest != self.kind) {
                continue;
            }
            let point = POINTS.iter().find(|point| point.name == goal.point);
            let (Some(point), true) = (point, takes_part(goal.who) && takes_part(goal.of)) else {
                continue;
            };
            goals.push((goal, self.ratio(goal.who, goal.of, point)));
        }
        goals
    }

    /// Everything, for programs.
    pub(crate) fn json(&self) -> Value {
        let medians: Vec<Value> = self.medians();
        let goals: Vec<Value> = self
            .goals()
            .iter()
            .map(|(goal, ratio)| {
                json!({"contestant": goal.who, "of": goal.of, "point": goal.point, "goal": goal.least,
                    "ratio": ratio.map(|ratio| ratio.median), "least": ratio.map(|ratio| ratio.least),
                    "most": ratio.map(|ratio| ratio.most),
                    "reached": ratio.is_some_and(|ratio| ratio.median >= goal.least)})
            })
            .collect();
        json!({"schema": 1, "guest": self.kind, "virtual_time": self.plan.common.virtual_time,
            "plan": self.plan, "medians": medians, "goals": goals, "messages": self.messages})
    }

    fn medians(&self) -> Vec<Value> {
        let mut medians = Vec::new();
        for contestant in &self.plan.common.only {
            for point in &POINTS {
                let samples = self.of(*contestant, point);
                let of = |figure: fn(&Sample) -> f64| {
                    middle(samples.iter().map(|sample| figure(sample)).collect())
                };
                let Some(iops) = of(|sample| sample.iops) else {
                    continue;
                };
                medians.push(
                    json!({"contestant": contestant, "point": point.name, "iops": iops.median,
                    "iops_least": iops.least, "iops_most": iops.most,
                    "bytes_per_second": of(|s| s.bytes_per_second).map(|m| m.median),
                    "latency_mean_us": of(|s| s.latency_mean_us).map(|m| m.median),
                    "latency_p99_us": of(|s| s.latency_p99_us).map(|m| m.median)}),
                );
            }
        }
        medians
    }

    /// Tables, for people.
    pub(crate) fn markdown(&self) -> String {
        let mut text = self.head();
        text += &match self.plan.work {
            Work::Points => self.points_tables(),
            Work::Mirror {
                limit_mib,
                disk_mib,
            } => self.mirror_table(limit_mib, disk_mib),
            Work::Memory { .. } => self.memory_table(),
            Work::Profile => self.profile_tables(),
        };
        text + &self.foot()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
