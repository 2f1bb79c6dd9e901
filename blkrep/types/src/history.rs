//! Where a group's data comes from: its generations, each with its parent and branch.
//!
//! Owns the bounded list that superblocks store and handshakes exchange. Never decides who may
//! overwrite whom: that is a pure function of two histories, elsewhere.

use crate::limits::GENERATION_HISTORY_MAX;
use crate::{Generation, Incarnation, Seq};
use serde::{Deserialize, Serialize};

/// One generation and where it left its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ancestor {
    /// The generation.
    pub generation: Generation,
    /// The generation it continues; [`Generation::NONE`] for the first.
    pub parent: Generation,
    /// The incarnation of the last write of the parent that it contains.
    pub branch_incarnation: Incarnation,
    /// The place of that write; with the incarnation above, the branch.
    pub branch_seq: Seq,
}

/// The last generations of a group, oldest first; the last one is current.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct History(Vec<Ancestor>);

impl History {
    /// No data history yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// The history with these generations, oldest first.
    ///
    /// `None` if there are more than [`GENERATION_HISTORY_MAX`], one is unnamed or named twice, or
    /// one that is not the first does not continue its predecessor.
    #[must_use]
    pub fn from_oldest(ancestors: Vec<Ancestor>) -> Option<Self> {
        let mut seen = std::collections::HashSet::new();
        let named = ancestors.iter().all(|ancestor| {
            ancestor.generation != Generation::NONE && seen.insert(ancestor.generation)
        });
        let linked = ancestors
            .windows(2)
            .all(|pair| pair[1].parent == pair[0].generation);
        (named && linked && ancestors.len() <= GENERATION_HISTORY_MAX).then_some(Self(ancestors))
    }

    /// The current generation; [`Generation::NONE`] before the first.
    #[must_use]
    pub fn current(&self) -> Generation {
        self.0
            .last()
            .map_or(Generation::NONE, |ancestor| ancestor.generation)
    }

    /// Every generation known, oldest first.
    #[must_use]
    pub fn ancestors(&self) -> &[Ancestor] {
        &self.0
    }

    /// The entry of `generation`, if it is known.
    #[must_use]
    pub fn find(&self, generation: Generation) -> Option<&Ancestor> {
        self.0
            .iter()
            .find(|ancestor| ancestor.generation == generation)
    }

    /// True if `generation` is known and a newer one follows it.
    #[must_use]
    pub fn supersedes(&self, generation: Generation) -> bool {
        self.current() != generation && self.find(generation).is_some()
    }

    /// Begins `generation` after the write (`incarnation`, `seq`) of the current one, and forgets
    /// the oldest if there are too many.
    ///
    /// # Panics
    /// If the generation is unnamed or was there before: 128 random bits do not repeat.
    pub fn branch(&mut self, generation: Generation, incarnation: Incarnation, seq: Seq) {
        assert!(generation != Generation::NONE, "a generation has a name");
        assert!(self.find(generation).is_none(), "a generation is new");
        let parent = self.current();
        if self.0.len() == GENERATION_HISTORY_MAX {
            self.0.remove(0);
        }
        self.0.push(Ancestor {
            generation,
            parent,
            branch_incarnation: incarnation,
            branch_seq: seq,
        });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn generation(number: u8) -> Generation {
        Generation::from_bytes([number; 16])
    }

    #[test]
    fn a_branch_continues_the_current_generation_and_the_oldest_is_forgotten() {
        let mut history = History::new();
        assert_eq!(history.current(), Generation::NONE);
        for number in 1..=70 {
            history.branch(
                generation(number),
                Incarnation::new(1),
                Seq::new(u64::from(number)),
            );
        }
        assert_eq!(history.ancestors().len(), GENERATION_HISTORY_MAX);
        assert_eq!(history.current(), generation(70));
        assert!(history.supersedes(generation(69)) && !history.supersedes(generation(70)));
        assert!(!history.supersedes(generation(1)), "forgotten, so unknown");
        let again = History::from_oldest(history.ancestors().to_vec()).unwrap();
        assert_eq!(again, history);
    }

    #[test]
    fn a_history_with_a_gap_a_repeat_or_an_unnamed_generation_is_none() {
        let mut history = History::new();
        history.branch(generation(1), Incarnation::new(0), Seq::ZERO);
        history.branch(generation(2), Incarnation::new(1), Seq::new(9));
        let good = history.ancestors().to_vec();
        let mut gap = good.clone();
        gap[1].parent = generation(7);
        let mut repeat = good.clone();
        repeat[1].generation = generation(1);
        let mut unnamed = good;
        unnamed[0].generation = Generation::NONE;
        for wrong in [gap, repeat, unnamed] {
            assert_eq!(History::from_oldest(wrong), None);
        }
    }
}
