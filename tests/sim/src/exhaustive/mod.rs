//! Exhaustive small worlds: every short history, every crash point, every loss.
//!
//! Owns enumeration instead of chance. What is small enough is gone through as a whole: the files
//! of the state directories alone, and the whole engine over tiny volumes. Counts leave, or the first
//! state that must not be.

pub mod counts;
pub mod crashes;
pub mod flaw;
pub mod history;
pub mod journal;
mod loss;
pub mod maps;
mod medium;
pub mod superblocks;
mod world;

use counts::Counts;
use crashes::{Part, Scope};
use flaw::Flaw;

/// Goes through every history of up to `longest` operations of all parts, and tells `say` what each
/// part was.
///
/// # Errors
/// The first state that must not be.
pub fn explore(jobs: usize, longest: usize, say: &dyn Fn(&str, &Counts)) -> Result<(), String> {
    say("map files", &maps::explore(longest, Flaw::None)?);
    say("superblocks", &superblocks::explore(longest, Flaw::None)?);
    say("journal", &journal::explore(longest, Flaw::None)?);
    (1..=longest).try_for_each(|length| explore_engine(jobs, length, Part::WHOLE, say))
}

/// Goes through a part of the histories of so many operations of the whole engine alone, for a machine
/// that has no time for all of them at once, and tells `say` what they were.
///
/// # Errors
/// The first state that must not be.
pub fn explore_engine(
    jobs: usize,
    length: usize,
    part: Part,
    say: &dyn Fn(&str, &Counts),
) -> Result<(), String> {
    for (commands, of) in [(false, "requests"), (true, "requests and commands")] {
        let scope = Scope {
            length,
            commands,
            stride: 1,
            flushes_lie: false,
            part,
            jobs,
        };
        let counts = crashes::explore(&scope)?;
        say(&format!("whole engine, {length} {of}{part}"), &counts);
    }
    Ok(())
}
