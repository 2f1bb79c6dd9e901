//! What was answered under the promise of a link in `memory` or `sync` mode, and must be on its target.
//!
//! Owns, for each target of a group, whether its link says that nothing completes without it, and which
//! requests were answered while it said so. A link that is degraded promises nothing: the product goes on
//! as in `async`. The record and a link's status enter, complaints leave.

use super::age::Age;
use super::judge;
use super::plan::{Command, Plan};
use super::run::Run;
use blkrep_order::{Event, Kind};
use blkrep_types::Mode;
use std::collections::{BTreeMap, BTreeSet};

/// What a link promises, and what tells that it did not in between.
#[derive(Debug, Clone, Copy)]
pub(super) struct InStep {
    /// When writes complete.
    pub(super) mode: Mode,
    /// Times that it was degraded.
    pub(super) degradations: u64,
    /// It flows, and its target lacks nothing but what the log holds.
    pub(super) whole: bool,
}

impl InStep {
    /// True if it promised the same all the time since.
    fn goes_on(before: Option<Self>, now: Option<Self>) -> bool {
        let key = |step: Self| (step.mode, step.degradations);
        before.map(key) == now.map(key)
    }
}

/// One target's.
#[derive(Debug, Default)]
struct Link {
    now: Option<InStep>,
    /// Lines of the record that were looked at.
    read: usize,
    /// Answered and durable there.
    durable: BTreeSet<u64>,
    /// Answered and received there.
    received: BTreeSet<u64>,
}

/// A group's.
#[derive(Debug, Default)]
pub(super) struct Promises {
    /// There are no links but in `async` mode.
    none: bool,
    /// The age that all of it is of.
    run: u64,
    links: BTreeMap<usize, Link>,
    /// Targets whose disks broke promises of their own.
    spoilt: BTreeSet<usize>,
}

/// A request of the record.
#[derive(Debug, Clone, Copy)]
struct Submitted {
    line: usize,
    kind: Kind,
    volume: u16,
}

fn submitted(age: &Age) -> BTreeMap<u64, Submitted> {
    let lines = age.events.iter().enumerate();
    let requests = lines.filter_map(|(line, event)| match *event {
        Event::Submit {
            counter,
            kind,
            volume,
            ..
        } => Some((counter, Submitted { line, kind, volume })),
        _ => None,
    });
    requests.collect()
}

impl Link {
    /// Takes what was answered since the last look.
    fn look(&mut self, now: Option<InStep>, age: &Age) {
        let lines = age.events.len();
        let news = std::mem::replace(&mut self.read, lines)..lines;
        let before = std::mem::replace(&mut self.now, now);
        let promised = match now.map(|now| now.mode) {
            None | Some(Mode::Async) => return,
            Some(Mode::Memory) => &mut self.received,
            Some(Mode::Sync) => &mut self.durable,
        };
        // A link that promises from now on says that its target has what completed before, too; in
        // `memory` mode only while both ends have lived since.
        let all = before.is_none() && now.is_some_and(|now| now.mode == Mode::Sync || now.whole);
        let news = match (all, InStep::goes_on(before, now)) {
            (true, _) => 0..lines,
            (false, true) => news,
            (false, false) => return,
        };
        let done = |event: &Event| match *event {
            Event::Complete {
                counter, errno: 0, ..
            } => Some(counter),
            _ => None,
        };
        promised.extend(age.events[news].iter().filter_map(done));
    }
}

impl Promises {
    /// Those of a group, from the beginning.
    pub(super) fn of(plan: &Plan, group: usize) -> Self {
        let mut commands = plan.commands.iter();
        let changes = commands.any(|(_, command)| matches!(command, Command::SetMode { .. }));
        let mut modes = plan.groups[group].modes.iter();
        Self {
            none: !changes && modes.all(|mode| *mode == Mode::Async),
            ..Self::default()
        }
    }

    /// True if nothing was issued or answered since the last look.
    fn has_seen(&self, age: &Age) -> bool {
        let mut links = self.links.values();
        self.none || self.run == age.run && links.any(|link| link.read == age.events.len())
    }

    /// Takes what was answered since the last look.
    pub(super) fn look(&mut self, target: usize, now: Option<InStep>, age: &Age) {
        if self.run != age.run {
            self.run = age.run;
            self.links.clear();
        }
        let now = now.filter(|_| !self.spoilt.contains(&target));
        self.links.entry(target).or_default().look(now, age);
    }

    /// True if the link was in step at the last look, in the mode that outlives every crash of its target.
    fn is_durable(&self, target: usize) -> bool {
        let now = self.links.get(&target).and_then(|link| link.now);
        now.is_some_and(|now| now.mode == Mode::Sync && now.whole)
    }

    /// A target's daemon is gone, and what it had only received with it.
    pub(super) fn daemon_died(&mut self, target: usize) {
        if let Some(link) = self.links.get_mut(&target) {
            link.received.clear();
        }
    }

    /// A target's disks do worse than lose power: nothing is asked of it until all are equal again.
    pub(super) fn disks_broke(&mut self, target: usize) {
        self.links.remove(&target);
        self.spoilt.insert(target);
    }

    /// All are equal, and nothing is wrong any more.
    pub(super) fn all_is_well(&mut self) {
        self.spoilt.clear();
    }

    /// The counters that a target must have, beside what it has only received if `alive`.
    fn owed(&self, target: usize, alive: bool, age: &Age) -> BTreeSet<u64> {
        let Some(link) = self.links.get(&target).filter(|_| self.run == age.run) else {
            return BTreeSet::new();
        };
        let mut owed = link.durable.clone();
        if alive {
            owed.extend(&link.received);
        }
        let requests = submitted(age);
        let flushes = owed.iter().filter_map(|counter| requests.get(counter));
        let flushes: Vec<Submitted> = flushes
            .filter(|request| request.kind == Kind::Flush)
            .copied()
            .collect();
        for flush in flushes {
            // It covers what was done on its volume before it was issued, promised or not.
            for event in &age.events[..flush.line] {
                if let Event::Complete {
                    counter, errno: 0, ..
                } = event
                    && requests[counter].volume == flush.volume
                {
                    owed.insert(*counter);
                }
            }
        }
        owed
    }

    /// Judges a replica that was promoted, after a crash of its daemon or host unless `alive`.
    ///
    /// # Errors
    /// What was answered under a promise and is not there.
    pub(super) fn judge(
        &self,
        (target, alive): (usize, bool),
        age: &Age,
        images: &[Vec<u8>],
    ) -> Result<u64, String> {
        let owed = self.owed(target, alive, age);
        if owed.is_empty() {
            return Ok(0);
        }
        let verdict = judge::owing(age, images, &owed);
        if verdict.legal {
            Ok(u64::try_from(owed.len()).expect("64-bit platform"))
        } else {
            Err(format!(
                "what was answered in memory or sync mode is not there\n{verdict}"
            ))
        }
    }
}

impl Run {
    /// Notes what the groups were promised by what has just been answered.
    pub(super) fn note_promises(&mut self) {
        for group in 0..self.groups.len() {
            let age = self.groups[group].life().app.age();
            if !self.promises[group].has_seen(age) {
                self.look_at_promises(group);
            }
        }
    }

    fn look_at_promises(&mut self, group: usize) {
        let plan = &self.cluster.plan.groups[group];
        let nodes = plan.targets.iter().copied().chain([plan.home]);
        let life = self.groups[group].life();
        for target in nodes.filter(|node| *node != life.node) {
            let in_step = self.nodes[life.node]
                .daemon
                .as_mut()
                .and_then(|daemon| daemon.with_served(group, |served, _| served.in_step(target)));
            self.promises[group].look(target, in_step.flatten(), life.app.age());
        }
    }

    /// Judges a replica by what its group was promised.
    pub(super) fn judge_promises(
        &mut self,
        group: usize,
        target: (usize, bool),
        images: &[Vec<u8>],
    ) -> Result<(), String> {
        let age = self.groups[group].life().app.age();
        self.report.promised += self.promises[group].judge(target, age, images)?;
        Ok(())
    }

    /// True if a replica may not refuse to be promoted now, whatever has happened to its host.
    pub(super) fn promises_all(&mut self, group: usize, target: usize) -> bool {
        self.look_at_promises(group);
        self.promises[group].is_durable(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYNC: Option<InStep> = Some(InStep {
        mode: Mode::Sync,
        degradations: 1,
        whole: true,
    });

    const NONE: [u64; 0] = [];

    fn submit(counter: u64, kind: Kind, volume: u16) -> Event {
        let (writer, first) = (0, counter);
        let count = u32::from(kind != Kind::Flush);
        Event::Submit {
            writer,
            counter,
            kind,
            volume,
            first,
            count,
        }
    }

    fn complete(counter: u64) -> Event {
        let (writer, errno) = (0, 0);
        Event::Complete {
            writer,
            counter,
            errno,
        }
    }

    /// What is owed by target 1 after these looks at a record, each with so many lines of it.
    fn owed(events: &[Event], looks: &[(usize, Option<InStep>)], alive: bool) -> Vec<u64> {
        let age = |lines: usize| Age {
            run: 7,
            events: events[..lines].to_vec(),
            ..Age::default()
        };
        let mut promises = Promises::default();
        for (lines, now) in looks {
            promises.look(1, *now, &age(*lines));
        }
        let owed = promises.owed(1, alive, &age(events.len()));
        owed.into_iter().collect()
    }

    #[test]
    fn what_was_answered_under_the_promise_is_owed_and_nothing_else() {
        let write = |counter| submit(counter, Kind::Write, 0);
        let events = [write(1), write(2), complete(1), complete(2), write(3)];
        assert_eq!(
            owed(&events, &[(0, SYNC), (2, SYNC), (4, SYNC)], false),
            [1, 2]
        );
        // Not before both were answered: it has them all the same.
        assert_eq!(owed(&events, &[(0, None), (4, SYNC)], false), [1, 2]);
        // Degraded when they were answered.
        assert_eq!(
            owed(&events, &[(0, SYNC), (2, SYNC), (4, None)], false),
            NONE
        );
        // The link is lost, and nothing completes without it.
        let lost = SYNC.map(|now| InStep {
            whole: false,
            ..now
        });
        assert_eq!(
            owed(&events, &[(0, SYNC), (2, lost), (4, lost)], false),
            [1, 2]
        );
        // Degraded in between.
        let other = SYNC.map(|now| InStep {
            degradations: 2,
            ..now
        });
        assert_eq!(
            owed(&events, &[(0, SYNC), (2, SYNC), (4, other)], false),
            NONE
        );
    }

    #[test]
    fn what_was_only_received_is_owed_by_a_daemon_that_lives() {
        let events = [submit(1, Kind::Write, 0), complete(1)];
        let memory = SYNC.map(|now| InStep {
            mode: Mode::Memory,
            ..now
        });
        let looks = [(0, memory), (2, memory)];
        assert_eq!(owed(&events, &looks, true), [1]);
        assert_eq!(owed(&events, &looks, false), NONE);
    }

    #[test]
    fn a_promised_flush_covers_what_its_volume_had_done() {
        let events = [
            submit(1, Kind::Write, 0),
            submit(2, Kind::Write, 1),
            submit(3, Kind::Write, 0),
            complete(1),
            complete(2),
            submit(4, Kind::Flush, 0),
            complete(3),
            complete(4),
        ];
        let other = SYNC.map(|now| InStep {
            degradations: 2,
            ..now
        });
        let looks = [(0, SYNC), (6, other), (8, other)];
        assert_eq!(owed(&events, &looks, false), [1, 3, 4]);
    }
}
