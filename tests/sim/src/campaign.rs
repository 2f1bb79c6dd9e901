//! Many seeds, and what they add up to.
//!
//! Owns how a campaign is spread over threads and how a failure is reported: with its seed and the
//! command that replays it. Seeds enter, totals or the failures leave.

use super::plan::Plan;
use super::report::Report;
use super::run::Run;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Failures that a campaign shows; the first ones say enough.
const SHOWN_MAX: usize = 10;

/// What a campaign came to.
#[derive(Debug, Default)]
pub struct Totals {
    /// Runs that kept every promise.
    pub kept: u64,
    /// Their sums.
    pub sum: Report,
    /// Fewest writes of one.
    pub writes_min: Option<u64>,
    /// Seeds that failed, with why.
    pub failed: Vec<(u64, String)>,
}

/// Carries one seed out.
///
/// # Errors
/// The promise that was not kept, in words.
pub fn seed(seed: u64) -> Result<Report, String> {
    carry_out(Plan::of(seed), false)
}

/// Carries a plan out; a panic of the engine is a complaint too.
///
/// # Errors
/// The promise that was not kept, in words.
pub fn carry_out(plan: Plan, aloud: bool) -> Result<Report, String> {
    let run = AssertUnwindSafe(|| Run::new(plan, aloud).carry_out());
    match catch_unwind(run) {
        Ok(result) => result,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Err(format!("panicked: {}", text.unwrap_or_default()))
        }
    }
}

/// As many threads as there are processors.
#[must_use]
pub fn all_processors() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Carries all seeds out on `jobs` threads.
#[must_use]
pub fn seeds(range: Range<u64>, jobs: usize) -> Totals {
    let next = AtomicU64::new(range.start);
    let totals = Mutex::new(Totals::default());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= range.end {
                        return;
                    }
                    let result = seed(number);
                    let mut totals = totals.lock().expect("a seed's panic is caught");
                    match result {
                        Ok(report) => totals.add(&report),
                        Err(why) => totals.failed.push((number, why)),
                    }
                }
            });
        }
    });
    let mut totals = totals.into_inner().expect("a seed's panic is caught");
    totals.failed.sort();
    totals
}

fn ratio(count: u64, of: u64) -> f64 {
    let number = |count: u64| u32::try_from(count).map_or(f64::from(u32::MAX), f64::from);
    number(count) / number(of).max(1.0)
}

impl Totals {
    fn add(&mut self, report: &Report) {
        self.kept += 1;
        self.sum.add(report);
        let least = self.writes_min.unwrap_or(u64::MAX);
        self.writes_min = Some(least.min(report.writes));
    }

    /// What the seeds contained that kept every promise.
    #[must_use]
    pub fn histogram(&self) -> String {
        let hours = self.sum.virtual_time.as_secs_f64() / 3600.0;
        let mut text = format!("  {hours:.1} virtual hours\n");
        for (name, count) in self.sum.counters() {
            let name = name.replace('_', " ");
            let each = ratio(count, self.kept);
            text.push_str(&format!("  {name:<22} {count:>12} {each:>9.2} a seed\n"));
        }
        let least = self.writes_min.unwrap_or_default();
        text.push_str(&format!("  fewest writes of a seed: {least}\n"));
        text
    }

    /// The failures in words, each with the command that replays it.
    #[must_use]
    pub fn complaints(&self) -> String {
        let mut text = String::new();
        let commit = std::env::var("BLKREP_COMMIT").unwrap_or_else(|_| "unknown".to_owned());
        for (seed, why) in self.failed.iter().take(SHOWN_MAX) {
            text.push_str(&format!(
                "seed {seed}: {why}\n  commit {commit}; replay: cargo xtask sim --seed {seed}\n"
            ));
        }
        if self.failed.len() > SHOWN_MAX {
            let seeds: Vec<u64> = self.failed.iter().map(|(seed, _)| *seed).collect();
            text.push_str(&format!("and more: seeds {seeds:?}\n"));
        }
        text
    }
}
