//! One run: the plan carried out under the virtual clock, and judged.
//!
//! Owns the schedule: turns of workers, requests, restarts, and what is due later. A plan enters; a
//! report or a complaint leaves.

use super::cluster::{Cluster, QueueCounts, Serving, Table};
use super::daemon::Daemon;
use super::group::GroupRun;
use super::judge;
use super::moment::{Awaited, awaited};
use super::names::Names;
use super::plan::Plan;
use super::promises::Promises;
use super::report::Report;
use super::start::StartError;
use super::tasks::Tasks;
use super::told::Told;
use blkrep_io::sim::{Next, ProcessId, SimRandom, SimWorld};
use blkrep_types::{BlockSize, ByteLen, Nanos, NoteState};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// How long everything may take to become quiet and equal once nothing is wrong any more.
const QUIET_MAX: Duration = Duration::from_secs(300);

/// An operator looks at writes that stand still this long, longer than any rest or fault.
const BLOCKED_MAX: Duration = Duration::from_secs(120);

/// How long the application may need for its requests, with every fault on the way: far longer
/// than the faults can last.
const LOAD_MAX: Duration = Duration::from_secs(600);

/// How long a daemon is tried to be started: longer than the latest write of a dead one.
const START_MAX: Duration = Duration::from_secs(60);

/// Writes of the load, unless most of its requests fail.
const WRITES_MIN: u64 = 200;

/// How often what is not yet so is looked at again.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// What is to happen by itself later.
#[derive(Debug, Clone)]
pub(super) enum Todo {
    /// A node's daemon is started.
    Start(usize),
    /// A fault ends, or what it began goes on.
    After(super::fault::After),
    /// An operator takes back what he did.
    Undo(super::operator::Undo),
}

/// A host and its daemon.
#[derive(Debug, Default)]
pub(super) struct Node {
    pub(super) daemon: Option<Daemon>,
    /// How long it is away the next time.
    pub(super) down: Duration,
    /// Its host is switched off when its daemon has ended in order.
    pub(super) reboots: bool,
    start_since: Option<Nanos>,
    /// Nobody starts it.
    pub(super) held_down: bool,
}

/// Says what becomes of a process that was stopped in a call, by its node.
pub(super) type Decide = Box<dyn FnOnce(&mut Run, usize, ProcessId) -> Result<(), String>>;

/// A run under way.
pub struct Run {
    /// What is done when a process was stopped.
    pub(super) decide: Option<Decide>,
    pub(super) cluster: Cluster,
    pub(super) world: SimWorld,
    pub(super) random: SimRandom,
    pub(super) nodes: Vec<Node>,
    pub(super) groups: Vec<GroupRun>,
    pub(super) todo: Vec<(Nanos, Todo)>,
    /// What is done while a mirror runs.
    pub(super) awaited: Vec<Awaited>,
    look_at: Nanos,
    /// Groups and targets that were not as they must be at the last look.
    pub(super) suspects: BTreeSet<(usize, usize)>,
    pub(super) promises: Vec<Promises>,
    pub(super) report: Report,
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Run(seed {}, {:?})", self.plan().seed, self.report)
    }
}

impl Run {
    /// A world for the plan, nothing started; `aloud` tells every step.
    ///
    /// # Panics
    /// If the plan is none.
    #[must_use]
    pub fn new(plan: Plan, aloud: bool) -> Self {
        let world = SimWorld::new(plan.seed, plan.options.clone());
        let cluster = Cluster {
            hosts: (0..plan.nodes).map(|_| world.add_node()).collect(),
            table: Table::default(),
            serving: Serving::default(),
            names: plan
                .groups
                .iter()
                .map(|_| Names::of(plan.fails_disks()))
                .collect(),
            told: Told::new(&world, aloud),
            queues: QueueCounts::default(),
            tasks: Tasks::default(),
            world: world.clone(),
            plan: Arc::new(plan),
        };
        add_devices(&cluster);
        for (host, rate) in cluster.hosts.iter().zip(&cluster.plan.clocks) {
            world.set_clock_rate(*host, *rate);
        }
        let groups = 0..cluster.plan.groups.len();
        let run = Self {
            decide: None,
            random: world.fork_random(),
            nodes: (0..cluster.plan.nodes).map(|_| Node::default()).collect(),
            groups: groups
                .clone()
                .map(|group| GroupRun::new(&cluster, group))
                .collect(),
            todo: Vec::new(),
            awaited: awaited(&cluster.plan.moments),
            look_at: world.now(),
            suspects: BTreeSet::new(),
            promises: groups
                .map(|group| Promises::of(&cluster.plan, group))
                .collect(),
            report: Report::of(&cluster.plan),
            cluster,
            world,
        };
        for (group, plan) in run.cluster.plan.groups.iter().enumerate() {
            let entry = super::cluster::Entry {
                promoted: false,
                untracked: false,
                detached: 0,
            };
            run.cluster.table.put(plan.home, group, entry);
        }
        run
    }

    pub(super) fn plan(&self) -> &Plan {
        &self.cluster.plan
    }

    /// Carries the plan out.
    ///
    /// # Errors
    /// A promise that was not kept.
    pub fn carry_out(mut self) -> Result<Report, String> {
        for node in 0..self.nodes.len() {
            self.start(node)?;
        }
        self.load()?;
        self.settle()?;
        for takeover in self.plan().takeovers.clone() {
            self.take_over(takeover)?;
        }
        self.take_over_the_lost()?;
        for names in &self.cluster.names {
            names.judge()?;
        }
        self.cluster.tasks.judge()?;
        self.sum_up();
        Ok(self.report)
    }

    fn sum_up(&mut self) {
        let lives = self.groups.iter().flat_map(GroupRun::lives);
        for life in lives {
            self.report.requests += life.app.requests;
            self.report.writes += life.app.writes;
            self.report.reads += life.app.reads;
            self.report.failures += life.app.failures;
        }
        self.report.names = self.cluster.names.iter().map(Names::count).sum();
        let queues = &self.cluster.queues;
        self.report.served_there = queues.of("served");
        self.report.spills = queues.of("spills");
        self.report.drains = queues.of("drains");
        self.report.full_queues = queues.of("full");
        self.report.failed_queues = queues.of("failures");
        self.report.unreadable_queues = queues.of("unreadable");
        let tasks = &self.cluster.tasks;
        self.report.bookmarks_set = tasks.of(NoteState::Set);
        self.report.tasks_done = tasks.of(NoteState::Done);
        self.report.tasks_interrupted = tasks.of(NoteState::Interrupted);
        self.report.notes_skipped = tasks.of(NoteState::Skipped);
        self.report.virtual_time = Duration::from_nanos(self.world.now().get());
    }

    pub(super) fn later(&mut self, after: Duration, todo: Todo) {
        let at = self.world.now().after(after);
        self.todo.push((at, todo));
    }

    /// Requests of all applications so far.
    pub(super) fn requests(&self) -> u64 {
        let lives = self.groups.iter().flat_map(GroupRun::lives);
        lives.map(|life| life.app.requests).sum()
    }

    /// Requests that failed, or were reads, are followed by others: a run without writes shows nothing.
    fn writes_too_little(&self, plan: &Plan) -> bool {
        let lives = self.groups.iter().flat_map(GroupRun::lives);
        let writes: u64 = lives.map(|life| life.app.writes).sum();
        plan.requests >= WRITES_MIN && writes < WRITES_MIN && self.requests() < 4 * plan.requests
    }

    /// The load, with faults and commands in it.
    fn load(&mut self) -> Result<(), String> {
        let plan = Arc::clone(&self.cluster.plan);
        let mut faults = plan.faults.iter().peekable();
        let mut probes = plan.probes.iter().peekable();
        let mut commands = plan.commands.iter().peekable();
        let mut rests = plan.rests.iter().peekable();
        for group in &mut self.groups {
            group.life_mut().active = true;
        }
        let end = self.world.now().after(LOAD_MAX);
        let mut moved = (0, self.world.now());
        while self.requests() < plan.requests || self.writes_too_little(&plan) {
            if self.world.now() > end {
                return Err(format!("the load stands still\n{}", self.status()));
            }
            let requests = self.requests();
            if requests > moved.0 {
                moved = (requests, self.world.now());
            } else if self.world.now() > moved.1.after(BLOCKED_MAX) {
                self.let_writes_go_on();
                moved.1 = self.world.now();
            }
            while let Some((_, fault)) = faults.next_if(|(at, _)| *at <= requests) {
                self.strike(fault);
            }
            while let Some((_, probe)) = probes.next_if(|(at, _)| *at <= requests) {
                self.probe(*probe)?;
            }
            while let Some((_, command)) = commands.next_if(|(at, _)| *at <= requests) {
                self.operate(*command);
            }
            while let Some((_, span)) = rests.next_if(|(at, _)| *at <= requests) {
                self.rest(*span);
            }
            let soon = self.world.now().after(LOOK_AGAIN);
            self.step(soon)?;
            self.watch_mirrors()?;
        }
        Ok(())
    }

    /// No application issues anything for a while.
    fn rest(&mut self, span: Duration) {
        self.cluster.told.say(&("all rests", span));
        let until = self.world.now().after(span);
        let lives = self.groups.iter_mut().flat_map(GroupRun::lives_mut);
        lives.for_each(|life| life.rest(until));
    }

    /// Runs to the next thing that happens, at most to `until`.
    pub(super) fn step(&mut self, until: Nanos) -> Result<(), String> {
        self.issue();
        let due = self.todo.iter().map(|(at, _)| *at);
        let issues = self.groups.iter().filter_map(GroupRun::issue_at);
        let limit = due.chain(issues).chain([self.look_at]).min();
        match self
            .world
            .next(limit.map_or(until, |limit| limit.min(until)))
        {
            Next::Ring(ring) => {
                let mut mine = false;
                for node in &mut self.nodes {
                    if let Some(daemon) = &mut node.daemon {
                        mine = mine || daemon.turn(ring)?;
                    }
                }
                if !mine {
                    return Err(format!("{ring:?} belongs to nobody"));
                }
            }
            Next::Until => self.do_due()?,
        }
        for group in &mut self.groups {
            group.take_answers()?;
        }
        self.note_promises();
        self.notice_deaths()
    }

    fn issue(&mut self) {
        let now = self.world.now();
        let nodes = &self.nodes;
        let reissues = self.cluster.plan.reissues;
        for (index, group) in self.groups.iter_mut().enumerate() {
            if group.issue_at().is_none_or(|at| at > now) {
                continue;
            }
            let daemon = |node: usize| nodes[node].daemon.as_ref();
            let served = |node| daemon(node).is_some_and(|daemon| daemon.gate(index).is_some());
            // A device that its node has given up waits for nobody.
            let kept = |node| {
                let entry = self.cluster.table.get(node, index);
                let all = self.cluster.all_volumes(index);
                entry.is_some_and(|entry| entry.detached != all)
            };
            let down = |node: usize| daemon(node).is_none() && !nodes[node].held_down;
            let waits = |node| reissues && down(node) && kept(node);
            group.issue(&served, &waits);
        }
    }

    fn do_due(&mut self) -> Result<(), String> {
        let now = self.world.now();
        if now >= self.look_at {
            self.look_at = now.after(LOOK_AGAIN);
            self.cluster.tasks.finish(&self.cluster);
            self.cluster.tasks.judge()?;
            for node in &mut self.nodes {
                node.daemon.as_mut().map_or(Ok(()), Daemon::tend)?;
            }
            self.hand_over();
            self.begin_there()?;
            self.look()?;
        }
        while let Some(place) = self.todo.iter().position(|(at, _)| *at <= now) {
            let (_, todo) = self.todo.remove(place);
            self.cluster.told.say(&todo);
            match todo {
                Todo::Start(node) => self.start(node)?,
                Todo::After(after) => self.after(after)?,
                Todo::Undo(undo) => self.undo(undo)?,
            }
        }
        Ok(())
    }

    /// Finds daemons that died or ended, and has them come back.
    fn notice_deaths(&mut self) -> Result<(), String> {
        for index in 0..self.nodes.len() {
            let node = &mut self.nodes[index];
            let gone = |daemon: &Daemon| daemon.finished() || !self.world.alive(daemon.process());
            if !node.daemon.as_ref().is_some_and(gone) {
                continue;
            }
            let daemon = node.daemon.take().expect("it was there a line ago");
            let (down, held) = (std::mem::take(&mut node.down), node.held_down);
            self.bury(index, &daemon)?;
            drop(daemon);
            if !held {
                self.later(down, Todo::Start(index));
            }
        }
        Ok(())
    }

    /// A process that was stopped in one of its calls ends as it was said.
    fn end_stopped(&mut self, node: usize, process: ProcessId) -> Result<(), String> {
        match self.decide.take_if(|_| self.world.halted(process)) {
            Some(decide) => decide(self, node, process),
            None => Ok(()),
        }
    }

    fn bury(&mut self, node: usize, daemon: &Daemon) -> Result<(), String> {
        let process = daemon.process();
        self.end_stopped(node, process)?;
        let alive = self.world.alive(process);
        if alive {
            daemon.close();
        }
        self.world.crash_process(process);
        if std::mem::take(&mut self.nodes[node].reboots) && alive {
            self.world.power_loss(self.cluster.hosts[node]);
        }
        let power = !self.world.powered(self.cluster.hosts[node]);
        self.report.restarts += u64::from(alive);
        self.report.kills += u64::from(!alive && !power);
        self.report.power_cuts += u64::from(power);
        let told = self.cluster.told.of(format!("node{node}"));
        if !alive {
            let promises = self.promises.iter_mut();
            promises.for_each(|promises| promises.daemon_died(node));
        }
        told.say(&match (power, alive) {
            (true, _) => "its host lost power",
            (_, true) => "its daemon ended",
            _ => "its daemon was killed",
        });
        let reissues = self.plan().reissues;
        for (index, group) in self.groups.iter_mut().enumerate() {
            group
                .node_is_gone(node, power, reissues)
                .map_err(|why| format!("group {index}, node {node}: {why}"))?;
        }
        Ok(())
    }

    /// Starts a daemon, or tries again later if its predecessor's last writes have not landed.
    pub(super) fn start(&mut self, node: usize) -> Result<(), String> {
        let now = self.world.now();
        let since = *self.nodes[node].start_since.get_or_insert(now);
        let host = self.world.start(self.cluster.hosts[node]);
        let process = host.process();
        for group in &mut self.groups {
            group.node_is_back(node);
        }
        let groups = &self.groups;
        let fronts = groups.iter().map(|group| group.fronts(node).to_vec());
        let all = 0..groups.len();
        let opened = Daemon::open(&self.cluster, host, node, all, fronts.collect());
        self.end_stopped(node, process)?;
        match opened {
            Ok(daemon) => {
                self.nodes[node].daemon = Some(daemon);
                self.nodes[node].start_since = None;
            }
            Err(_) if !self.world.alive(process) => {
                self.cluster.told.say(&("died while it started", node));
                if !self.world.powered(self.cluster.hosts[node]) {
                    let groups = self.groups.iter_mut();
                    groups.for_each(|group| group.start_lost_power(node));
                }
                self.later(LOOK_AGAIN, Todo::Start(node));
            }
            Err(StartError::Busy(why)) => {
                self.world.crash_process(process);
                if now.since(since) > START_MAX {
                    return Err(format!("node {node} cannot be started: {why}"));
                }
                self.later(LOOK_AGAIN, Todo::Start(node));
            }
            Err(StartError::Failed(why)) => return Err(format!("start node {node}: {why}")),
        }
        Ok(())
    }

    /// Nothing is wrong any more: all ends must become equal, with everything answered.
    pub(super) fn settle(&mut self) -> Result<(), String> {
        self.cluster.told.say(&"nothing is wrong from here on");
        for group in &mut self.groups {
            group.lives_mut().for_each(|life| life.active = false);
        }
        self.mend()?;
        let end = self.world.now().after(QUIET_MAX);
        let mut look = self.world.now();
        loop {
            self.step(look)?;
            if self.world.now() < look {
                continue;
            }
            look = self.world.now().after(LOOK_AGAIN);
            self.calm()?;
            match self.quiet() {
                Ok(()) => break,
                Err(why) if self.world.now() > end => {
                    return Err(format!("not quiet in time: {why}\n{}", self.status()));
                }
                Err(_) => {}
            }
        }
        for (index, group) in self.groups.iter().enumerate() {
            let life = group.life();
            let images = self.cluster.images_of(life.node, index);
            judge::source(life.app.age(), &images)
                .map_err(|why| format!("group {index} on node {}: {why}", life.node))?;
        }
        self.promises.iter_mut().for_each(Promises::all_is_well);
        Ok(())
    }

    fn quiet(&mut self) -> Result<(), String> {
        for index in 0..self.groups.len() {
            self.group_is_quiet(index)
                .map_err(|why| format!("group {index}: {why}"))?;
        }
        Ok(())
    }

    fn group_is_quiet(&mut self, index: usize) -> Result<(), String> {
        let life = self.groups[index].life();
        let home = life.node;
        if life.waits_for_there() {
            return Err("its application waits for what its target has".to_owned());
        }
        let outstanding = life.app.outstanding();
        if outstanding > 0 {
            return Err(format!("{outstanding} requests are not answered"));
        }
        let Some(daemon) = &mut self.nodes[home].daemon else {
            return Err(format!("node {home} is down"));
        };
        let served = daemon.with_served(index, |served, _| (served.quiet(), served.targets()));
        let Some((quiet, targets)) = served else {
            return Err(format!("node {home} does not serve it"));
        };
        quiet?;
        let serving = self.cluster.serving.get(home, index);
        for target in targets {
            if serving.is_some_and(|serving| serving != target) {
                continue;
            }
            let Some(daemon) = &self.nodes[target].daemon else {
                return Err(format!("node {target} is down"));
            };
            let quiet = daemon.with_received(index, |received| received.quiet());
            quiet.unwrap_or_else(|| Err(format!("node {target} has no replica")))?;
            let images = |node| self.cluster.images(node, index);
            let ours = self.cluster.images_of(home, index);
            judge::equal(&ours, &images(target))
                .map_err(|why| format!("nodes {home} and {target}: {why}"))?;
        }
        Ok(())
    }

    pub(super) fn status(&self) -> String {
        format!("{:#?}", self.nodes)
    }
}

fn add_devices(cluster: &Cluster) {
    for (group, plan) in cluster.plan.groups.iter().enumerate() {
        let block = BlockSize::try_from(plan.block_bytes).expect("512 or 4096");
        for (path, len) in cluster.backings(group).iter().zip(&plan.volumes) {
            for host in &cluster.hosts {
                let cache = cluster.plan.write_cache;
                let len = ByteLen::new(*len);
                cluster.world.add_device(*host, path, len, block, cache);
            }
        }
    }
}
