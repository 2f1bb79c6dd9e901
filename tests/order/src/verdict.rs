//! What was found wrong, in words and numbers.
//!
//! Owns the findings and their bound. Reasons with sectors enter, a verdict leaves. Never decides.

use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// A sector of a volume of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Sector {
    /// Index of the volume.
    pub volume: u16,
    /// Its number, in units of 512 bytes.
    pub sector: u64,
}

/// Sectors of one volume: the volume, the first sector, and one past the last.
pub type Span = (u16, u64, u64);

/// One reason, with the sectors it was seen at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Kind of damage, a stable word.
    pub kind: &'static str,
    /// What the first sector shows and what it should.
    pub detail: String,
    /// Where.
    pub ranges: Vec<Span>,
}

/// Everything wrong with an image set.
#[derive(Debug, Default)]
pub struct Findings {
    by_reason: BTreeMap<(&'static str, String), Vec<Span>>,
    sectors: u64,
}

/// A wrecked volume has a million reasons; these many are enough to see why.
const REASONS_MAX: usize = 64;
/// Ranges kept for one reason.
const RANGES_MAX: usize = 16;

impl Findings {
    /// Notes one sector. `detail` is made only while there is room for another reason.
    pub fn add(&mut self, kind: &'static str, at: Sector, detail: impl FnOnce() -> String) {
        self.sectors += 1;
        if self.by_reason.len() >= REASONS_MAX {
            return;
        }
        let ranges = self.by_reason.entry((kind, detail())).or_default();
        let grows = |(volume, _, end): &Span| *volume == at.volume && *end == at.sector;
        if let Some(last) = ranges.last_mut().filter(|last| grows(last)) {
            last.2 += 1;
        } else if ranges.len() < RANGES_MAX {
            ranges.push((at.volume, at.sector, at.sector + 1));
        }
    }

    /// True if nothing was found.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sectors == 0
    }

    /// Sectors noted so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.sectors
    }

    /// The reasons, by kind.
    #[must_use]
    pub fn into_list(self) -> Vec<Finding> {
        let list = self.by_reason.into_iter();
        list.map(|((kind, detail), ranges)| Finding {
            kind,
            detail,
            ranges,
        })
        .collect()
    }
}

/// The answer about an image set.
#[derive(Debug, Clone, Serialize)]
pub struct Verdict {
    /// True if some legal order and instant explains every sector.
    pub legal: bool,
    /// Operations on record.
    pub operations: usize,
    /// Of them, completed.
    pub completed: usize,
    /// Writes of which a sector shows.
    pub visible: usize,
    /// Operations the images must hold, visible or overwritten.
    pub held: usize,
    /// Completed operations that the images do not hold (allowed losses if legal).
    pub absent: usize,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.legal { "legal" } else { "NOT LEGAL" };
        writeln!(
            f,
            "{word}: {} operations, {} completed, {} visible, {} held, {} completed but absent",
            self.operations, self.completed, self.visible, self.held, self.absent
        )?;
        for finding in &self.findings {
            write!(f, "  {}: {}; at", finding.kind, finding.detail)?;
            for (volume, first, end) in &finding.ranges {
                write!(f, " volume {volume} sectors {first}..{end}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
