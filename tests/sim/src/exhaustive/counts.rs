//! What was gone through.
//!
//! Owns the sums that a reader wants to see beside the verdict. Never judges.

use std::fmt::{Display, Formatter, Result};
use std::ops::AddAssign;

/// How much an exhaustive set was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Sequences of operations.
    pub histories: u64,
    /// Instants at which a crash was tried.
    pub crash_points: u64,
    /// Subsets of what was not flushed, over all crash points.
    pub loss_subsets: u128,
    /// Crash points at which there were too many subsets to try them all.
    pub sampled: u64,
    /// Different states that the subsets left, each judged.
    pub states: u64,
    /// Sectors that were made to rot, each judged.
    pub rotten: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.histories += other.histories;
        self.crash_points += other.crash_points;
        self.loss_subsets += other.loss_subsets;
        self.sampled += other.sampled;
        self.states += other.states;
        self.rotten += other.rotten;
    }
}

impl Display for Counts {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(
            f,
            "{} histories, {} crash points, {} loss subsets, {} different states",
            self.histories, self.crash_points, self.loss_subsets, self.states
        )?;
        if self.sampled > 0 {
            write!(
                f,
                ", {} crash points with a part of their subsets",
                self.sampled
            )?;
        }
        if self.rotten > 0 {
            write!(f, ", {} rotten sectors", self.rotten)?;
        }
        Ok(())
    }
}
