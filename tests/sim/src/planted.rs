//! The simulator judged: every planted bug must be noticed.
//!
//! Owns the hunt: seeds are run with one mistake made until a judge complains, and the seed that
//! showed it is run again without. A bug enters; the seeds it took and the complaint leave.

use super::campaign;
use super::plan::Plan;
use super::theme::Theme;
use blkrep_types::planted::Bug;
use std::fmt;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Seeds that no planted bug may survive.
pub const SEEDS_MAX: u64 = 20_000;

/// What shows by chance once in thousands of seeds is looked for in those of its theme.
const THEMED: [(Bug, Theme); 4] = [
    (Bug::SyncWaitsForReceived, Theme::BothDie),
    (Bug::UnnotedWritesForgotten, Theme::FirstLink),
    (Bug::BaseFlushRetriedOnly, Theme::FailedFlush),
    (Bug::FlushNotAtTarget, Theme::Served),
];

/// Characters of a judge's words that a table shows.
const WORDS_MAX: usize = 160;

/// What became of one mistake.
#[derive(Debug, Clone)]
pub struct Hunt {
    /// The mistake.
    pub bug: Bug,
    /// Seeds until it was noticed, that one included; all of them if it never was. Those of other themes than the mistake's own
    /// count, though nobody runs them.
    pub seeds: u64,
    /// The seed that showed it and what its judge said.
    pub caught: Option<(u64, String)>,
}

impl Hunt {
    /// Runs the seeds with the mistake made until one fails that does not fail without it; of a mistake that has a theme, those
    /// of that theme.
    #[must_use]
    pub fn run(bug: Bug, seeds: Range<u64>) -> Self {
        let first = seeds.start;
        let theme = THEMED
            .iter()
            .find(|(of, _)| *of == bug)
            .map(|(_, theme)| *theme);
        let mut caught = None;
        let mut ran = 0;
        for seed in seeds {
            ran = seed - first + 1;
            if theme.is_some() && Plan::of(seed).theme != theme {
                continue;
            }
            if let Err(why) = bug.with(|| campaign::seed(seed))
                && campaign::seed(seed).is_ok()
            {
                caught = Some((seed, why));
                break;
            }
        }
        Self {
            bug,
            seeds: ran,
            caught,
        }
    }
}

/// Hunts each of them on `jobs` threads; `told` hears of each at once.
///
/// # Panics
/// Never: a seed's panic is caught.
pub fn hunt_all(
    bugs: &[Bug],
    seeds: &Range<u64>,
    jobs: usize,
    told: impl Fn(&Hunt) + Sync,
) -> Vec<Hunt> {
    let next = AtomicUsize::new(0);
    let hunts = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(bug) = bugs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let hunt = Hunt::run(*bug, seeds.clone());
                    told(&hunt);
                    hunts.lock().expect("a seed's panic is caught").push(hunt);
                }
            });
        }
    });
    let mut hunts = hunts.into_inner().expect("a seed's panic is caught");
    hunts.sort_by_key(|hunt| hunt.bug);
    hunts
}

impl fmt::Display for Hunt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bug, seeds, caught } = self;
        match caught {
            None => write!(f, "| {bug:?} | survives {seeds} seeds | | |"),
            Some((seed, why)) => {
                let first = why.lines().next().unwrap_or_default();
                let words: String = first.chars().take(WORDS_MAX).collect();
                write!(f, "| {bug:?} | {seeds} | {seed} | {words} |")
            }
        }
    }
}
