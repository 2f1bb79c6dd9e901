//! The whole engine in a tiny world: a source, a target, a few sectors, no chance.
//!
//! Owns the letters of a history and how they are carried out, one after another or at once.

use crate::app::Habits;
use crate::group::GroupRun;
use crate::plan::{GroupPlan, Plan};
use crate::run::{LOOK_AGAIN, Run};
use blkrep_core::compression::Compression;
use blkrep_core::source::StreamLimits;
use blkrep_core::target::RetryPolicy;
use blkrep_io::sim::SimOptions;
use blkrep_types::{LossPolicy, MirrorKind, Mode};
use blkrep_ublk::RequestKind;
use std::ops::Range;
use std::time::Duration;

/// The node that serves.
pub(super) const SOURCE: usize = 0;

/// The node that receives.
pub(super) const TARGET: usize = 1;

/// How long a request or a restart may take.
const ANSWER_MAX: Duration = Duration::from_secs(120);

/// How long the world goes on after a history: the intent map is empty before that.
const UPKEEP: Duration = Duration::from_secs(7);

/// Sectors of a volume: two extents of the dirty map.
const SECTORS: u64 = 16;

/// One operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Letter {
    /// A write of two sectors.
    A,
    /// A write over the second of them, to the last volume.
    B,
    /// A write of the next extent, with FUA.
    Fua,
    /// A flush.
    Flush,
    /// A discard that covers part of what `A` wrote.
    Discard,
    /// A checksum mirror.
    Mirror,
    /// The link is disconnected.
    Disconnect,
    /// The link is connected.
    Connect,
    /// The source's daemon ends in order and comes back.
    Restart,
    /// The source's daemon is killed and comes back.
    Kill,
    /// The target's daemon is killed and comes back.
    KillTarget,
}

/// Requests of an application.
pub(super) const REQUESTS: [Letter; 5] = [
    Letter::A,
    Letter::B,
    Letter::Fua,
    Letter::Flush,
    Letter::Discard,
];

/// Everything there is.
pub(super) const ALL: [Letter; 11] = [
    Letter::A,
    Letter::B,
    Letter::Fua,
    Letter::Flush,
    Letter::Discard,
    Letter::Mirror,
    Letter::Disconnect,
    Letter::Connect,
    Letter::Restart,
    Letter::Kill,
    Letter::KillTarget,
];

impl Letter {
    /// True for requests: the replica stays `ok` through them.
    pub(super) fn is_request(self) -> bool {
        REQUESTS.contains(&self)
    }

    fn request(self, volumes: usize) -> Option<(usize, RequestKind, Range<u64>)> {
        let write = RequestKind::Write { fua: false };
        Some(match self {
            Self::A => (0, write, 0..2),
            Self::B => (volumes - 1, write, 1..4),
            Self::Fua => (0, RequestKind::Write { fua: true }, 8..9),
            Self::Flush => (0, RequestKind::Flush, 0..0),
            Self::Discard => (0, RequestKind::Discard, 0..1),
            _ => return None,
        })
    }
}

/// A world and what happens in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct History {
    /// Volumes of the group.
    pub volumes: usize,
    /// What happens.
    pub letters: Vec<Letter>,
    /// Flushes do nothing.
    pub flushes_lie: bool,
    /// All of it at once.
    pub at_once: bool,
}

fn plan(volumes: usize, flushes_lie: bool) -> Plan {
    Plan {
        seed: 1,
        theme: None,
        options: SimOptions {
            disk_nanos: (100_000, 100_000),
            sync_nanos: (1_000_000, 1_000_000),
            net_nanos: (200_000, 200_000),
            slow_one_in: 0,
            ghost_nanos_max: 0,
            steady: true,
            sync_lies: flushes_lie,
            ..SimOptions::default()
        },
        nodes: 2,
        clocks: vec![1000; 2],
        rests: Vec::new(),
        older: None,
        groups: vec![GroupPlan {
            compression: Compression::On,
            connections: 1,
            home: SOURCE,
            targets: vec![TARGET],
            modes: vec![Mode::Async],
            losses: vec![LossPolicy::default()],
            volumes: vec![SECTORS * 512; volumes],
            block_bytes: 512,
            extent_bytes: 4096,
            stream: StreamLimits::default(),
            log_bytes: 2 << 20,
            throttle: None,
            hands_over: false,
            queue: None,
            retry: RetryPolicy {
                limit: None,
                delay: Duration::from_millis(500),
            },
            journal_bytes: 4 << 20,
            first_mirror: MirrorKind::Full,
            habits: Habits {
                reads: 0,
                flushes: 0,
                clears: 0,
                fua: 0,
                hot: 0,
                blocks_max: 1,
            },
            outstanding_max: 8,
            think_nanos_max: 1,
        }],
        write_cache: true,
        reissues: true,
        requests: 0,
        faults: Vec::new(),
        commands: Vec::new(),
        probes: Vec::new(),
        moments: Vec::new(),
        takeovers: Vec::new(),
    }
}

/// The world of a history, in which both sides are equal and nothing is under way.
pub(super) fn quiet(history: &History) -> Result<Run, String> {
    let mut run = Run::new(plan(history.volumes, history.flushes_lie), false);
    run.start(TARGET)?;
    run.start(SOURCE)?;
    run.settle()?;
    Ok(run)
}

impl Run {
    /// Calls on a host so far.
    pub(super) fn calls(&self, node: usize) -> u64 {
        self.world.calls(self.cluster.hosts[node])
    }

    /// Carries a history out, up to its last letter's beginning; then the rest is [`Run::end`].
    pub(super) fn before_last(&mut self, history: &History) -> Result<(), String> {
        if history.at_once {
            return Ok(());
        }
        let (_, before) = history.letters.split_last().ok_or("an empty history")?;
        for letter in before {
            self.begin(*letter)?;
            self.wait()?;
        }
        Ok(())
    }

    /// The last letter, or all of them at once, and the time in which the engine tidies up.
    pub(super) fn end(&mut self, history: &History) -> Result<(), String> {
        let first = if history.at_once {
            0
        } else {
            history.letters.len() - 1
        };
        for letter in &history.letters[first..] {
            self.begin(*letter)?;
        }
        self.wait()?;
        self.pass(UPKEEP)
    }

    fn pass(&mut self, span: Duration) -> Result<(), String> {
        let end = self.world.now().after(span);
        while self.world.now() < end {
            self.step(end)?;
        }
        Ok(())
    }

    /// Begins one operation. Nothing is issued where an application would not: to a device that is
    /// gone, or zeroes beside a write to the same place.
    fn begin(&mut self, letter: Letter) -> Result<(), String> {
        let volumes = self.cluster.plan.groups[0].volumes.len();
        if let Some((volume, kind, sectors)) = letter.request(volumes) {
            let app = &mut self.groups[0].life_mut().app;
            if app.allowed(kind, volume, &sectors) {
                app.issue_this(volume, kind, &sectors);
            }
            return Ok(());
        }
        match letter {
            Letter::Mirror => self.with_link(0, TARGET, |served, link| {
                served.mirror(link, MirrorKind::Checksum);
            }),
            Letter::Disconnect => self.with_link(0, TARGET, crate::served::Served::disconnect),
            Letter::Connect => self.with_link(0, TARGET, crate::served::Served::connect),
            Letter::Restart => {
                if let Some(daemon) = &self.nodes[SOURCE].daemon {
                    daemon.stop();
                }
            }
            Letter::Kill => self.kill(SOURCE),
            Letter::KillTarget => self.kill(TARGET),
            _ => return Err(format!("{letter:?} is a request")),
        }
        self.pass(Duration::from_millis(1))
    }

    /// What it has in flight lands as if nothing had happened.
    fn kill(&mut self, node: usize) {
        if let Some(daemon) = &self.nodes[node].daemon {
            let process = daemon.process();
            self.world
                .crash_process_with(process, |_| Some(Duration::ZERO));
        }
    }

    /// Everything is answered and both daemons are there.
    fn wait(&mut self) -> Result<(), String> {
        let end = self.world.now().after(ANSWER_MAX);
        loop {
            let answered = self.groups[0].life().app.outstanding() == 0;
            let served = self.nodes[SOURCE].daemon.as_ref();
            let served =
                served.is_some_and(|daemon| daemon.gate(0).is_some() && !daemon.finished());
            if answered && served && self.nodes[TARGET].daemon.is_some() {
                return Ok(());
            }
            if self.world.now() > end {
                return Err(format!("no answer in time\n{}", self.status()));
            }
            let soon = self.world.now().after(LOOK_AGAIN);
            self.step(soon)?;
        }
    }

    /// A world with copies of this one's disks as they are now, in which nothing runs.
    pub(super) fn copied(&self) -> Run {
        let mut copy = Run::new((*self.cluster.plan).clone(), false);
        for (to, from) in copy.cluster.hosts.iter().zip(&self.cluster.hosts) {
            copy.world.copy_files(*to, &self.world, *from);
        }
        copy.cluster.table = self.cluster.table.copy();
        copy.cluster.names = self
            .cluster
            .names
            .iter()
            .map(crate::names::Names::copy)
            .collect();
        copy.groups = vec![GroupRun::later(&copy.cluster, 0, self.groups[0].runs())];
        copy
    }

    /// Both daemons of a copied world begin over what is there; both sides must become equal.
    pub(super) fn begin_again(mut self) -> Result<(), String> {
        self.groups = vec![GroupRun::later(&self.cluster, 0, self.groups[0].runs())];
        self.start(TARGET)?;
        self.start(SOURCE)?;
        self.settle()?;
        self.judge_names()
    }

    /// No name of a write was used twice.
    pub(super) fn judge_names(&self) -> Result<(), String> {
        let mut names = self.cluster.names.iter();
        names.try_for_each(crate::names::Names::judge)
    }
}
