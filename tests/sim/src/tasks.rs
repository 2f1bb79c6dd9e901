//! Bookmarks and tasks: a task sees exactly its place, and is never run twice; a bookmark is at its place.
//!
//! Owns what was submitted, with the application's record up to then, and the commands that targets run:
//! they look at the bases when they begin and when they end. Submissions enter, complaints leave.

use super::age::Age;
use super::cluster::Cluster;
use super::judge;
use super::told::Told;
use blkrep::engine::target::{TargetEvent, TargetWatch, TaskDone, TaskEnd, TaskOrder};
use blkrep_io::sim::{ProcessId, SimHost};
use blkrep_order::{Judgement, Keep};
use blkrep_types::{GroupName, Nanos, Note, NoteId, NoteReport, NoteState, Seq};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What was submitted.
#[derive(Debug, Clone)]
struct Submitted {
    seq: Seq,
    /// What the application had done.
    age: Age,
    lasts: Duration,
}

/// A command that runs on a node.
struct Running {
    id: NoteId,
    group: usize,
    node: usize,
    process: ProcessId,
    until: Nanos,
    began_with: Vec<Vec<u8>>,
    done: TaskDone,
}

#[derive(Default)]
struct Inner {
    submitted: BTreeMap<NoteId, Submitted>,
    /// How often a task was run, by node.
    runs: BTreeMap<(usize, NoteId), u32>,
    running: Vec<Running>,
    /// How many reached each state at a target.
    counts: BTreeMap<&'static str, u64>,
    complaint: Option<String>,
}

/// The bookmarks and tasks of a run.
#[derive(Clone, Default)]
pub struct Tasks(Arc<Mutex<Inner>>);

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tasks")
    }
}

impl Tasks {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was submitted, for a copy of the world; what runs stays behind.
    #[must_use]
    pub fn copy(&self) -> Self {
        let inner = self.lock();
        let copy = Inner {
            submitted: inner.submitted.clone(),
            runs: inner.runs.clone(),
            ..Inner::default()
        };
        Self(Arc::new(Mutex::new(copy)))
    }

    /// A note got its place.
    pub fn submitted(&self, note: &Note, seq: Seq, age: &Age, lasts: Duration) {
        let age = age.clone();
        let submitted = Submitted { seq, age, lasts };
        self.lock().submitted.insert(note.id, submitted);
    }

    /// What is wrong.
    ///
    /// # Errors
    /// The first such thing.
    pub fn judge(&self) -> Result<(), String> {
        self.lock().complaint.clone().map_or(Ok(()), Err)
    }

    /// How many bookmarks and tasks reached a state at a target.
    #[must_use]
    pub fn of(&self, state: NoteState) -> u64 {
        let inner = self.lock();
        inner
            .counts
            .get(state.as_str())
            .copied()
            .unwrap_or_default()
    }

    fn complain(&self, why: String) {
        self.lock().complaint.get_or_insert(why);
    }

    /// Ends the commands whose time is over.
    pub fn finish(&self, cluster: &Cluster) {
        let now = cluster.world.now();
        loop {
            let over = {
                let mut inner = self.lock();
                let due = inner.running.iter().position(|task| task.until <= now);
                due.map(|place| inner.running.swap_remove(place))
            };
            let Some(task) = over else { return };
            if !cluster.world.alive(task.process) {
                continue;
            }
            let ends_with = cluster.images(task.node, task.group);
            if let Err(why) = judge::equal(&task.began_with, &ends_with) {
                let (group, node) = (task.group, task.node);
                self.complain(format!(
                    "something was applied to group {group} on node {node} while a task ran: {why}"
                ));
            }
            (task.done)(TaskEnd {
                state: NoteState::Done,
                exit: Some(0),
                output: String::new(),
            });
        }
    }
}

/// What hears a replica's events, and runs its tasks.
#[derive(Debug)]
pub struct Watch {
    told: Told,
    cluster: Cluster,
    process: ProcessId,
    node: usize,
    group: usize,
}

impl Watch {
    /// Of the replica of a group in a node's process.
    #[must_use]
    pub fn new(cluster: &Cluster, host: &SimHost, (node, group): (usize, usize)) -> Self {
        Self {
            told: cluster.told.of(format!("node{node} g{group}")),
            cluster: cluster.clone(),
            process: host.process(),
            node,
            group,
        }
    }

    /// Its disks fail or its files are put back: what it knew may be gone.
    fn is_forgiven(&self) -> bool {
        let faults = &self.cluster.plan.faults;
        let mut of = faults.iter().map(|(_, fault)| fault.fails_disks_of());
        of.any(|node| node == Some(self.node))
    }

    fn place_of(&self, what: &str, report: (NoteId, Seq)) {
        let tasks = &self.cluster.tasks;
        let known = tasks.lock().submitted.get(&report.0).map(|it| it.seq);
        let (id, seq) = report;
        if known.is_some_and(|known| known != seq) {
            tasks.complain(format!(
                "{what} {id} was put at {known:?}, and is at {seq} on node {}",
                self.node
            ));
        }
    }

    /// The bases must be what the application had done, no less and no more.
    fn look(&self, order: &TaskOrder, images: &[Vec<u8>]) {
        let tasks = &self.cluster.tasks;
        let age = {
            let mut inner = tasks.lock();
            let runs = inner.runs.entry((self.node, order.id)).or_default();
            *runs += 1;
            let again = *runs > 1;
            if again && !self.is_forgiven() {
                let why = format!("task {} ran twice on node {}", order.id, self.node);
                inner.complaint.get_or_insert(why);
            }
            let submitted = inner.submitted.get(&order.id);
            submitted.map(|submitted| submitted.age.clone())
        };
        let Some(age) = age.filter(|age| age.failed_sectors().is_empty()) else {
            return;
        };
        let verdict = judge::by_age(&age, images, Judgement::Replica, Keep::Completed);
        if !verdict.legal {
            tasks.complain(format!(
                "a task ran on node {} at {}, and group {} was not what it was there\n{verdict}",
                self.node, order.name, self.group
            ));
        }
    }

    fn note(&self, report: &NoteReport) {
        let what = if report.task { "task" } else { "bookmark" };
        self.place_of(what, (report.id, report.name.seq));
        let mut inner = self.cluster.tasks.lock();
        *inner.counts.entry(report.state.as_str()).or_default() += 1;
    }
}

impl TargetWatch for Watch {
    fn event(&self, _: &GroupName, event: &TargetEvent) {
        self.told.say(event);
        if let TargetEvent::Note { report } = event {
            self.note(report);
        }
    }

    fn admits(&self, _: &GroupName, order: &TaskOrder) -> Result<(), String> {
        match order.command.words()[0].as_str() {
            "look" => Ok(()),
            other => Err(format!("{other} is not allowed here")),
        }
    }

    fn run(&self, _: &GroupName, order: TaskOrder, done: TaskDone) {
        let images = self.cluster.images(self.node, self.group);
        self.look(&order, &images);
        let mut inner = self.cluster.tasks.lock();
        let lasts = inner.submitted.get(&order.id).map(|it| it.lasts);
        let until = self.cluster.world.now().after(lasts.unwrap_or_default());
        inner.running.push(Running {
            id: order.id,
            group: self.group,
            node: self.node,
            process: self.process,
            until,
            began_with: images,
            done,
        });
    }

    fn cancel(&self, _: &GroupName, task: NoteId) {
        let mut inner = self.cluster.tasks.lock();
        let node = self.node;
        inner.running.retain(|it| it.id != task || it.node != node);
    }

    fn now(&self) -> u64 {
        self.cluster.world.now().get()
    }
}
