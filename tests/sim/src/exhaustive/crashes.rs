//! Every crash of every short history of the whole engine.
//!
//! Owns the enumeration: hosts, calls, ways to die, losses, and what is asked afterwards. Counts leave,
//! or the first promise that was not kept, with the history and the crash that broke it.
//!
//! A history is run once to count the calls of both hosts, then once for every call and way to die,
//! while the other side lives. Crashes before the last letter of a history are those of a shorter one.
//! At a power cut every subset of the sectors that were not safe is tried in a copy of the world: the
//! source's images keep what was flushed, the target promoted alone is a prefix, and both become equal
//! when both daemons begin again.

use super::counts::Counts;
use super::history::histories;
use super::loss::{Losses, digest, fingerprint, subsets};
use super::world::{self, ALL, History, REQUESTS, SOURCE, TARGET};
use crate::judge;
use crate::probe::promote_alone;
use crate::run::Run;
use blkrep::engine::target::TargetCommandError;
use blkrep_core::target::PromoteRefusal;
use blkrep_io::sim::{Moment, ProcessId};
use std::collections::BTreeSet;
use std::fmt::{self, Display, Formatter};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How a process that stops goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    /// Killed; what it had in flight lands.
    Landed,
    /// Killed; what it had in flight never lands.
    Lost,
    /// The power is cut and nothing is kept that was not flushed.
    NothingKept,
    /// The power is cut and everything that was complete is kept.
    AllKept,
}

/// A power cut after a call's effect is one before the next call, or takes what that one could take.
const DEATHS: [(Moment, Death); 6] = [
    (Moment::Before, Death::NothingKept),
    (Moment::Before, Death::AllKept),
    (Moment::Before, Death::Landed),
    (Moment::Before, Death::Lost),
    (Moment::After, Death::Landed),
    (Moment::After, Death::Lost),
];

/// One crash of one history.
#[derive(Debug, Clone, Copy)]
struct Point {
    node: usize,
    call: u64,
    moment: Moment,
    death: Death,
}

/// States that were tried already.
type Seen = Arc<Mutex<BTreeSet<u128>>>;

/// How much is gone through.
#[derive(Debug, Clone, Copy)]
pub struct Scope {
    /// Letters of a history.
    pub length: usize,
    /// Histories with commands, in a group of one volume; without them of requests alone, over one and
    /// two volumes, one after another and at once.
    pub commands: bool,
    /// Only every so manieth call is a crash point.
    pub stride: u64,
    /// Flushes do nothing, to see that this is found.
    pub flushes_lie: bool,
    /// Which of the histories.
    pub part: Part,
    /// Threads.
    pub jobs: usize,
}

/// One of so many parts of all histories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// From 1.
    which: usize,
    of: usize,
}

impl Part {
    /// All of them.
    pub const WHOLE: Self = Self { which: 1, of: 1 };

    const fn has(self, index: usize) -> bool {
        index % self.of == self.which - 1
    }
}

impl Display for Part {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match *self {
            Self::WHOLE => Ok(()),
            Self { which, of } => write!(f, ", part {which}/{of}"),
        }
    }
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/').and_then(|(which, of)| {
            let (which, of) = (which.parse().ok()?, of.parse().ok()?);
            (1..=of).contains(&which).then_some(Self { which, of })
        });
        numbers.ok_or_else(|| format!("{text:?} is no part: 2/10 is the second of ten"))
    }
}

fn all_histories(scope: &Scope) -> Vec<History> {
    let alphabet: &[_] = if scope.commands { &ALL } else { &REQUESTS };
    let mut all = Vec::new();
    for letters in histories(alphabet, scope.length) {
        let requests = letters.iter().all(|letter| letter.is_request());
        if letters.len() != scope.length || requests == scope.commands {
            continue;
        }
        let whole = [(1, false), (2, false), (1, true), (2, true)];
        let kinds = match (scope.commands, scope.length) {
            (true, _) => &whole[..1],
            (false, 1) => &whole[..2],
            (false, _) => &whole[..],
        };
        all.extend(kinds.iter().map(|(volumes, at_once)| History {
            volumes: *volumes,
            letters: letters.clone(),
            at_once: *at_once,
            flushes_lie: scope.flushes_lie,
        }));
    }
    all
}

/// Goes through a scope.
///
/// # Errors
/// The first promise that was not kept.
pub fn explore(scope: &Scope) -> Result<Counts, String> {
    let all = all_histories(scope).into_iter().enumerate();
    let all = all.filter(|(index, _)| scope.part.has(*index));
    let all: Vec<History> = all.map(|(_, history)| history).collect();
    let next = AtomicUsize::new(0);
    let seen = Seen::default();
    let total = Mutex::new(Ok(Counts::default()));
    std::thread::scope(|threads| {
        for _ in 0..scope.jobs {
            threads.spawn(|| {
                while let Some(history) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = one_history(history, scope.stride, &seen);
                    let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
                    match (&mut *total, found) {
                        (Ok(sum), Ok(counts)) => *sum += counts,
                        (Ok(_), Err(why)) => *total = Err(why),
                        (Err(_), _) => {}
                    }
                    if total.is_err() {
                        return;
                    }
                }
            });
        }
    });
    total.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn one_history(history: &History, stride: u64, seen: &Seen) -> Result<Counts, String> {
    let told = |why: String| format!("{history:?}: {why}");
    let mut counts = Counts {
        histories: 1,
        ..Counts::default()
    };
    let mut run = world::quiet(history).map_err(told)?;
    run.before_last(history).map_err(told)?;
    let first = [SOURCE, TARGET].map(|node| run.calls(node));
    run.end(history).map_err(told)?;
    let last = [SOURCE, TARGET].map(|node| run.calls(node));
    run.settle()
        .and_then(|()| run.judge_names())
        .map_err(told)?;
    for node in [SOURCE, TARGET] {
        for call in first[node]..last[node] {
            if !call.is_multiple_of(stride) {
                continue;
            }
            counts.crash_points += 1;
            for (moment, death) in DEATHS {
                let point = Point {
                    node,
                    call,
                    moment,
                    death,
                };
                let found = catch_unwind(AssertUnwindSafe(|| crash(history, point, seen)));
                let found = found.unwrap_or_else(|_| Err("panicked".to_owned()));
                counts += found.map_err(|why| format!("{history:?}, {point:?}: {why}"))?;
            }
        }
    }
    Ok(counts)
}

/// One run with one crash: the other side lives, the dead one comes back, both become equal.
fn crash(history: &History, point: Point, seen: &Seen) -> Result<Counts, String> {
    let counts = Arc::new(Mutex::new(Counts::default()));
    let mut run = world::quiet(history)?;
    let sum = Arc::clone(&counts);
    let requests_only = history.letters.iter().all(|letter| letter.is_request());
    let seen = Arc::clone(seen);
    run.decide = Some(Box::new(move |run, node, process| {
        if point.death == Death::NothingKept {
            let found = every_loss(run, node, requests_only, &seen)?;
            *sum.lock().unwrap_or_else(PoisonError::into_inner) += found;
        }
        die(run, node, process, point.death);
        Ok(())
    }));
    run.before_last(history)?;
    let host = run.cluster.hosts[point.node];
    run.world.halt_at(host, point.call, point.moment);
    run.end(history)?;
    run.settle()?;
    run.judge_names()?;
    let counts = *counts.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(counts)
}

fn die(run: &mut Run, node: usize, process: ProcessId, death: Death) {
    let host = run.cluster.hosts[node];
    match death {
        Death::Landed => run
            .world
            .crash_process_with(process, |_| Some(Duration::ZERO)),
        Death::Lost => run.world.crash_process_with(process, |_| None),
        Death::NothingKept | Death::AllKept => {
            let losses = Losses::of(&run.world, host);
            run.world.crash_process_with(process, |_| None);
            run.world.power_loss(host);
            let keep = vec![death == Death::AllKept; losses.len()];
            losses.apply(&run.world, host, &keep);
        }
    }
}

/// Every subset of what a power cut now may take, each in a copy of the world.
fn every_loss(run: &Run, node: usize, requests_only: bool, seen: &Seen) -> Result<Counts, String> {
    let mut counts = Counts::default();
    let losses = Losses::of(&run.world, run.cluster.hosts[node]);
    let nothing = {
        let copy = run.copied();
        let host = copy.cluster.hosts[node];
        copy.world.power_loss(host);
        losses.apply(&copy.world, host, &vec![false; losses.len()]);
        fingerprint(&copy.world, &copy.cluster.hosts)
    };
    let (subsets, all) = subsets(losses.len());
    counts.sampled += u64::from(!all);
    for keep in subsets {
        counts.loss_subsets += 1;
        let copy = run.copied();
        let host = copy.cluster.hosts[node];
        copy.world.power_loss(host);
        losses.apply(&copy.world, host, &keep);
        let images = copy.cluster.images(node, 0);
        let told =
            |why: String| format!("of {} sectors not flushed kept {keep:?}: {why}", keep.len());
        if node == SOURCE {
            judge::after_power_loss(run.groups[0].life().app.age(), &images).map_err(told)?;
        }
        let state = losses.state(nothing, &keep);
        let new = |seen: &Seen, state| {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.insert(state)
        };
        if node == TARGET {
            // What is legal depends on what was issued too.
            let issued = run.groups[0].ages();
            let record = format!(
                "{:?}",
                issued.iter().map(|age| &age.events).collect::<Vec<_>>()
            );
            let both = state ^ digest(record.as_bytes());
            if new(seen, both) {
                alone(run, &copy, requests_only).map_err(told)?;
            }
        }
        if new(seen, state) {
            counts.states += 1;
            copy.begin_again().map_err(told)?;
        }
    }
    Ok(counts)
}

/// The target of a copied world, promoted alone, is a prefix.
fn alone(run: &Run, copy: &Run, requests_only: bool) -> Result<(), String> {
    let again = copy.copied();
    match promote_alone(&again.cluster, TARGET, 0)? {
        None => Ok(()),
        Some(Ok(_)) => {
            let images = again.cluster.images(TARGET, 0);
            judge::replica(&run.groups[0].ages(), &images)
        }
        Some(Err(TargetCommandError::Promote(
            PromoteRefusal::NotOk(_) | PromoteRefusal::Nothing,
        ))) if !requests_only => Ok(()),
        Some(Err(error)) => Err(format!("not promoted: {error}")),
    }
}
