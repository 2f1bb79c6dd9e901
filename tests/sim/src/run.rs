//! One run: the plan carried out under the virtual clock, and judged.
//!
//! Owns the schedule of faults, restarts and the operator's command, and the ages of the record. A
//! plan enters; a report or a complaint leaves.

use super::app::{Age, App};
use super::front::Front;
use super::judge;
use super::names::Names;
use super::plan::{Command, Ending, Fault, Plan, REQUESTS, Side};
use super::source::{Opening, Source};
use super::start::StartError;
use super::target::Target;
use super::told::Told;
use blkrep_io::sim::{Crash, DiskFault, Next, NodeId, SimRandom, SimWorld};
use blkrep_types::{BlockSize, ByteLen, Nanos};
use std::path::PathBuf;
use std::time::Duration;

/// How long everything may take to become quiet and equal once nothing is wrong any more.
const QUIET_MAX: Duration = Duration::from_secs(600);

/// How long the application may need for its requests, with every fault on the way: far longer
/// than the faults can last.
const LOAD_MAX: Duration = Duration::from_secs(600);

/// How long a daemon is tried to be started: longer than the latest write of a dead one.
const START_MAX: Duration = Duration::from_secs(60);

/// How soon the application looks again when it could not issue a request.
const FULL_WAIT: Duration = Duration::from_millis(2);

/// How often what is not yet so is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// What a run did, for the totals that a campaign prints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Requests of the application.
    pub requests: u64,
    /// Reads judged.
    pub reads: u64,
    /// Requests that were answered with an error.
    pub failures: u64,
    /// Times a daemon died.
    pub deaths: u64,
    /// Times a replica was promoted and its image judged.
    pub promotions: u64,
    /// Times a promotion was refused.
    pub refusals: u64,
    /// Names of writes seen on the wire.
    pub names: u64,
}

#[derive(Debug, Clone, PartialEq)]
enum Todo {
    Start(Side),
    Heal { from: Side, both: bool },
    Unpause,
    Connect,
}

/// A run under way.
pub struct Run {
    pub(super) plan: Plan,
    pub(super) world: SimWorld,
    pub(super) random: SimRandom,
    pub(super) nodes: [NodeId; 2],
    pub(super) fronts: Vec<Front>,
    pub(super) app: App,
    /// Ages that have ended.
    ages: Vec<Age>,
    pub(super) source: Option<Source>,
    pub(super) target: Option<Target>,
    todo: Vec<(Nanos, Todo)>,
    down: [Duration; 2],
    start_since: [Option<Nanos>; 2],
    issue_at: Nanos,
    /// The source's host lost power and has not served since: its age is over.
    age_over: bool,
    pub(super) report: Report,
    pub(super) names: Names,
    pub(super) told: Told,
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Run(seed {}, {:?})", self.plan.seed, self.report)
    }
}

/// Where the source's volumes are.
#[must_use]
pub fn source_path(volume: usize) -> PathBuf {
    PathBuf::from(format!("/dev/source{volume}"))
}

/// Where the target's are.
#[must_use]
pub fn target_path(volume: usize) -> PathBuf {
    PathBuf::from(format!("/dev/target{volume}"))
}

const fn index(side: Side) -> usize {
    match side {
        Side::Source => 0,
        Side::Target => 1,
    }
}

const fn other(side: Side) -> Side {
    match side {
        Side::Source => Side::Target,
        Side::Target => Side::Source,
    }
}

impl Run {
    /// A world for the plan, nothing started; `told` prints every step.
    #[must_use]
    pub fn new(plan: Plan, aloud: bool) -> Self {
        let world = SimWorld::new(plan.seed, plan.options.clone());
        let nodes = [world.add_node(), world.add_node()];
        let block = BlockSize::try_from(plan.block_bytes).expect("512 or 4096");
        for (volume, len) in plan.volumes.iter().enumerate() {
            let len = ByteLen::new(*len);
            world.add_device(nodes[0], &source_path(volume), len, block, plan.write_cache);
            world.add_device(nodes[1], &target_path(volume), len, block, plan.write_cache);
        }
        let fronts: Vec<Front> = plan.volumes.iter().map(|_| Front::new()).collect();
        let base = plan
            .volumes
            .iter()
            .map(|len| vec![0; usize::try_from(*len).expect("small")]);
        let app = App::new(
            world.fork_random(),
            plan.habits,
            plan.block_bytes,
            fronts.clone(),
            base.collect(),
        );
        Self {
            told: Told::new(&world, aloud),
            names: Names::default(),
            random: world.fork_random(),
            issue_at: world.now(),
            plan,
            world,
            nodes,
            fronts,
            app,
            ages: Vec::new(),
            source: None,
            target: None,
            todo: Vec::new(),
            down: [Duration::ZERO; 2],
            start_since: [None; 2],
            age_over: false,
            report: Report::default(),
        }
    }

    /// Carries the plan out.
    ///
    /// # Errors
    /// A promise that was not kept.
    pub fn carry_out(mut self) -> Result<Report, String> {
        self.start(Side::Target)?;
        self.start(Side::Source)?;
        self.load()?;
        self.settle()?;
        // One that is still to come would hit a daemon that was promoted and ends.
        self.world.crash_no_more();
        match self.plan.ending {
            Ending::Quiet => {}
            Ending::PromoteDead => self.promote_dead()?,
            Ending::PromoteCut => self.promote_cut()?,
        }
        self.names.judge()?;
        self.report.names = self.names.count();
        self.report.requests = self.app.requests;
        self.report.reads = self.app.reads;
        self.report.failures = self.app.failures;
        Ok(self.report)
    }

    fn later(&mut self, after: Duration, todo: Todo) {
        let at = self.world.now().after(after);
        self.todo.push((at, todo));
    }

    /// The load, with faults and the command in it.
    fn load(&mut self) -> Result<(), String> {
        let mut faults = self.plan.faults.clone().into_iter().peekable();
        let mut probes = self.plan.probes.clone().into_iter().peekable();
        let mut command = Some(self.plan.command);
        let end = self.world.now().after(LOAD_MAX);
        while self.app.requests < REQUESTS {
            if self.world.now() > end {
                let outstanding = self.app.outstanding();
                return Err(format!(
                    "the load stands still with {outstanding} requests under way\n{}",
                    self.status()
                ));
            }
            while let Some((_, fault)) = faults.next_if(|(at, _)| *at <= self.app.requests) {
                self.strike(&fault);
            }
            while let Some((_, crash)) = probes.next_if(|(at, _)| *at <= self.app.requests) {
                self.probe(crash)?;
            }
            if let Some((_, what)) = command.take_if(|(at, _)| *at <= self.app.requests) {
                self.operate(what);
            }
            self.maybe_issue();
            self.step(self.issue_at)?;
        }
        Ok(())
    }

    /// Issues a request if it is time and somebody is there, or will be.
    pub(super) fn maybe_issue(&mut self) {
        let now = self.world.now();
        if now < self.issue_at {
            return;
        }
        let served = self.source.is_some() || (self.plan.reissues && !self.age_over);
        let room = self.app.outstanding() < self.plan.outstanding_max;
        let issued = served && room && self.app.issue();
        let think = Duration::from_nanos(self.random.below(self.plan.think_nanos_max) + 1000);
        self.issue_at = now.after(if issued { think } else { think.max(FULL_WAIT) });
    }

    /// A side's host.
    pub(super) fn node(&self, side: Side) -> NodeId {
        self.nodes[index(side)]
    }

    /// When the next request is due.
    pub(super) fn issue_time(&self) -> Nanos {
        self.issue_at
    }

    /// Ends the source's daemon, or its host, and lets neither come back.
    pub(super) fn source_dies_for_good(&mut self, power: bool) {
        if let Some(source) = self.source.take() {
            if power {
                self.world.power_loss(self.nodes[0]);
            } else {
                self.world.crash_process(source.process());
            }
        }
    }

    /// Runs to the next thing that happens, at most to `until`.
    pub(super) fn step(&mut self, until: Nanos) -> Result<(), String> {
        let due = self.todo.iter().map(|(at, _)| *at).min();
        let limit = due.map_or(until, |due| due.min(until));
        match self.world.next(limit) {
            Next::Ring(ring) => {
                let mine = self.source.as_mut().is_some_and(|source| source.turn(ring));
                if !mine && !self.target.as_mut().is_some_and(|target| target.turn(ring)) {
                    return Err(format!("{ring:?} belongs to nobody"));
                }
            }
            Next::Until => self.do_due()?,
        }
        self.app.take_answers()?;
        self.notice_deaths()
    }

    fn do_due(&mut self) -> Result<(), String> {
        let now = self.world.now();
        while let Some(place) = self.todo.iter().position(|(at, _)| *at <= now) {
            let (_, todo) = self.todo.remove(place);
            self.told.say(&todo);
            match todo {
                Todo::Start(side) => self.start(side)?,
                Todo::Heal { from, both } => self.heal(from, both),
                Todo::Unpause => {
                    if let Some(target) = &self.target {
                        target.pause(false);
                    }
                }
                Todo::Connect => {
                    if let Some(source) = &self.source {
                        source.connect();
                    }
                }
            }
        }
        Ok(())
    }

    fn process_of(&self, side: Side) -> Option<blkrep_io::sim::ProcessId> {
        match side {
            Side::Source => self.source.as_ref().map(Source::process),
            Side::Target => self.target.as_ref().map(Target::process),
        }
    }

    fn strike(&mut self, fault: &Fault) {
        self.told.say(fault);
        match fault {
            Fault::Crash {
                side,
                crash,
                calls,
                down,
            } => {
                let Some(process) = self.process_of(*side) else {
                    return;
                };
                self.down[index(*side)] = *down;
                match (calls, crash) {
                    (Some(calls), crash) => self.world.crash_after(process, *calls, *crash),
                    (None, Crash::Process) => self.world.crash_process(process),
                    (None, Crash::Power) => self.world.power_loss(self.nodes[index(*side)]),
                }
            }
            Fault::Cut { from, both, span } => {
                let (here, there) = (self.nodes[index(*from)], self.nodes[index(other(*from))]);
                self.world.cut(here, there);
                if *both {
                    self.world.cut(there, here);
                }
                self.later(
                    *span,
                    Todo::Heal {
                        from: *from,
                        both: *both,
                    },
                );
            }
            Fault::Reset => self.world.reset_connections(self.nodes[0], self.nodes[1]),
            Fault::Disk {
                side,
                kind,
                errno,
                times,
            } => {
                let path = self.data_path(*side);
                let (kind, errno, times) = (*kind, *errno, *times);
                let fault = DiskFault {
                    kind,
                    errno,
                    bytes: None,
                    times,
                };
                self.world.inject(self.nodes[index(*side)], &path, fault);
            }
            Fault::Stall { side, span } => {
                let path = self.data_path(*side);
                self.world.stall(self.nodes[index(*side)], &path, *span);
            }
        }
    }

    /// Any file or device of a side: data, journal, maps, superblock.
    fn data_path(&mut self, side: Side) -> PathBuf {
        let paths = self.world.paths(self.nodes[index(side)]);
        paths[self.random.index(paths.len())].clone()
    }

    fn heal(&self, from: Side, both: bool) {
        let (here, there) = (self.nodes[index(from)], self.nodes[index(other(from))]);
        self.world.heal(here, there);
        if both {
            self.world.heal(there, here);
        }
    }

    fn operate(&mut self, command: Command) {
        self.told.say(&command);
        match command {
            Command::PauseTarget(span) => {
                if let Some(target) = &self.target {
                    target.pause(true);
                }
                self.later(span, Todo::Unpause);
            }
            Command::Mirror(kind) => {
                if let Some(source) = &self.source {
                    source.mirror(kind);
                }
            }
            Command::Reconnect(span) => {
                if let Some(source) = &self.source {
                    source.disconnect();
                }
                self.later(span, Todo::Connect);
            }
            Command::Restart(side) => match side {
                Side::Source => self.source.iter_mut().for_each(Source::stop),
                Side::Target => self.target.iter_mut().for_each(Target::stop),
            },
        }
    }

    /// Finds daemons that died or ended, and has them come back.
    fn notice_deaths(&mut self) -> Result<(), String> {
        let ended = |finished: bool, alive: bool| finished || !alive;
        if let Some(source) = &self.source {
            let alive = self.world.alive(source.process());
            if ended(source.finished(), alive) {
                self.source_ended(alive)?;
            }
        }
        if let Some(target) = &self.target {
            let alive = self.world.alive(target.process());
            if ended(target.finished(), alive) {
                let process = target.process();
                self.target = None;
                self.world.crash_process(process);
                self.report.deaths += u64::from(!alive);
                self.told.say(&"the target's daemon ended");
                self.later(self.down[1], Todo::Start(Side::Target));
            }
        }
        Ok(())
    }

    fn source_ended(&mut self, alive: bool) -> Result<(), String> {
        let source = self.source.take().expect("just seen");
        if alive && !source.close() {
            self.told.say(&"the source's run was not clean");
        }
        self.world.crash_process(source.process());
        drop(source);
        self.report.deaths += u64::from(!alive);
        if !self.world.powered(self.nodes[0]) {
            self.told.say(&"the source's host lost power");
            judge::after_power_loss(self.app.age(), &self.images(Side::Source))?;
            self.fronts.iter().for_each(Front::forget);
            self.age_over = true;
        } else {
            self.told.say(&"the source's daemon ended");
            if !self.plan.reissues {
                self.fronts.iter().for_each(Front::fail_outstanding);
                self.app.take_answers()?;
            }
        }
        self.later(self.down[0], Todo::Start(Side::Source));
        Ok(())
    }

    /// A side's volumes as a reader sees them.
    #[must_use]
    pub(super) fn images(&self, side: Side) -> Vec<Vec<u8>> {
        let node = self.nodes[index(side)];
        let path = |volume| match side {
            Side::Source => source_path(volume),
            Side::Target => target_path(volume),
        };
        (0..self.plan.volumes.len())
            .map(|volume| self.world.image(node, &path(volume)))
            .collect()
    }

    /// Starts a daemon, or tries again later if its predecessor's last writes have not landed.
    fn start(&mut self, side: Side) -> Result<(), String> {
        let place = index(side);
        let now = self.world.now();
        let since = *self.start_since[place].get_or_insert(now);
        let host = self.world.start(self.nodes[place]);
        let process = host.process();
        if side == Side::Source && self.age_over {
            let base = self.images(Side::Source);
            let age = self.app.begin_age(base);
            self.ages.push(age);
            self.age_over = false;
        }
        let started = match side {
            Side::Source => {
                let (plan, fronts) = (&self.plan, &self.fronts);
                let told = self.told.clone();
                let opening = Opening::first(plan, fronts, self.nodes[1], &self.names, told);
                Source::open(host, &opening).map(|source| self.source = Some(source))
            }
            Side::Target => Target::open(host, &self.plan, self.told.clone())
                .map(|target| self.target = Some(target)),
        };
        match started {
            Ok(()) => self.start_since[place] = None,
            Err(_) if !self.world.alive(process) => {
                self.told.say(&"died while it started");
                if side == Side::Source && !self.world.powered(self.nodes[0]) {
                    self.age_over = true;
                }
                self.later(LOOK_AGAIN, Todo::Start(side));
            }
            Err(StartError::Busy(why)) => {
                self.world.crash_process(process);
                if now.since(since) > START_MAX {
                    return Err(format!("the {side:?} cannot be started: {why}"));
                }
                self.later(LOOK_AGAIN, Todo::Start(side));
            }
            Err(StartError::Failed(why)) => return Err(format!("start the {side:?}: {why}")),
        }
        Ok(())
    }

    /// Nothing is wrong any more: both ends must become equal, with everything answered.
    fn settle(&mut self) -> Result<(), String> {
        self.told.say(&"nothing is wrong from here on");
        for from in [Side::Source, Side::Target] {
            self.heal(from, false);
            self.world.clear_faults(self.nodes[index(from)]);
        }
        self.todo.retain(|(_, todo)| matches!(todo, Todo::Start(_)));
        let end = self.world.now().after(QUIET_MAX);
        let mut look = self.world.now();
        loop {
            self.step(look)?;
            if self.world.now() < look {
                continue;
            }
            look = self.world.now().after(LOOK_AGAIN);
            if let Some(target) = &self.target {
                target.pause(false);
            }
            if let Some(source) = &self.source {
                source.calm();
            }
            match self.quiet() {
                Ok(()) => break,
                Err(why) if self.world.now() > end => {
                    return Err(format!("not quiet in time: {why}\n{}", self.status()));
                }
                Err(_) => {}
            }
        }
        judge::source(self.app.age(), &self.images(Side::Source))
    }

    fn quiet(&self) -> Result<(), String> {
        let (Some(source), Some(target)) = (&self.source, &self.target) else {
            return Err("a daemon is down".to_owned());
        };
        if self.app.outstanding() > 0 {
            return Err(format!(
                "{} requests are not answered",
                self.app.outstanding()
            ));
        }
        source.quiet()?;
        target.quiet()?;
        judge::equal(&self.images(Side::Source), &self.images(Side::Target))
    }

    fn status(&self) -> String {
        format!("source: {:#?}\ntarget: {:#?}", self.source, self.target)
    }

    /// Every age, the current one last.
    pub(super) fn ages(&self) -> Vec<&Age> {
        self.ages.iter().chain([self.app.age()]).collect()
    }
}
