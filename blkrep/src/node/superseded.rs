//! Hearing that another node has other data of a group.
//!
//! Owns the comparison of two histories for the event log: a newer one fences this node, and where
//! both went on from one write, two nodes wrote. Histories enter, events leave. Never fences.

use super::state::Engine;
use crate::events::Events;
use blkrep_api::{EventId, NewEvent};
use blkrep_core::identity::Place;
use blkrep_types::{Generation, GroupName, History, LinkName, Seq};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// What this node knows of itself.
#[derive(Debug)]
pub(super) struct Own {
    /// Its generations.
    pub(super) history: History,
    /// The last write it named, if that is known.
    pub(super) last: Option<Place>,
}

impl Own {
    pub(super) fn of(engine: &Engine) -> Self {
        Self {
            history: engine.history(),
            last: engine.last_name(),
        }
    }
}

/// Where the data of two nodes parted.
#[derive(Debug, PartialEq, Eq)]
enum Parting {
    /// Theirs follows ours.
    Newer,
    /// Theirs follows an earlier write of ours than the last one.
    NewerThanBranch(Place),
    /// Both have a generation of their own after this one.
    Fork(Generation),
    /// Ours follows theirs, they are one, or they have nothing in common.
    None,
}

fn parting(own: &Own, theirs: &History) -> Parting {
    let ours = own.history.current();
    if theirs.supersedes(ours) {
        let mut ancestors = theirs.ancestors().iter();
        let next = ancestors.find(|ancestor| ancestor.parent == ours);
        let branch = next.map(|next| (next.branch_incarnation, next.branch_seq));
        let beyond = branch.filter(|branch| {
            // A run that named nothing yet wrote nothing.
            own.last
                .is_some_and(|last| last.1 > Seq::ZERO && last > *branch)
        });
        return beyond.map_or(Parting::Newer, Parting::NewerThanBranch);
    }
    if ours == theirs.current() || own.history.supersedes(theirs.current()) {
        return Parting::None;
    }
    let mut common = own.history.ancestors().iter().rev();
    let common = common.find(|ancestor| theirs.find(ancestor.generation).is_some());
    common.map_or(Parting::None, |common| Parting::Fork(common.generation))
}

/// Tells of other histories, of each once in a run.
#[derive(Debug)]
pub(super) struct Teller {
    events: Events,
    /// The last one of each group.
    told: Mutex<BTreeMap<GroupName, Generation>>,
}

impl Teller {
    pub(super) fn new(events: Events) -> Self {
        Self {
            events,
            told: Mutex::default(),
        }
    }

    /// Tells what another node's history means for this one; `who` has it. False if it means nothing.
    pub(super) fn tell(
        &self,
        group: &GroupName,
        link: Option<&LinkName>,
        own: &Own,
        theirs: &History,
        who: &str,
    ) -> bool {
        let found = parting(own, theirs);
        if found == Parting::None {
            return false;
        }
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let before = told.insert(group.clone(), theirs.current());
        drop(told);
        if before == Some(theirs.current()) {
            return true;
        }
        for (id, text) in in_words(&found, own.history.current(), theirs.current(), who) {
            let mut event = NewEvent::new(id, text).group(group);
            event.link = link.cloned();
            self.events.publish(event);
        }
        true
    }
}

fn in_words(
    found: &Parting,
    ours: Generation,
    theirs: Generation,
    who: &str,
) -> Vec<(EventId, String)> {
    let fenced = || {
        let text = format!("{who} has generation {theirs}, which follows {ours} of this node");
        (EventId::SourceFenced, text)
    };
    let both = |text| (EventId::SplitBrain, text);
    match found {
        Parting::None => Vec::new(),
        Parting::Newer => vec![fenced()],
        Parting::NewerThanBranch((run, seq)) => vec![
            fenced(),
            both(format!(
                "generation {theirs} of {who} follows write {seq} of run {} of generation {ours}, \
                 and this node has made later ones",
                run.get()
            )),
        ],
        Parting::Fork(common) => vec![both(format!(
            "{who} has generation {theirs}, this node {ours}: both follow {common}, and neither \
             the other"
        ))],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blkrep_types::Incarnation;

    const G1: Generation = Generation::from_bytes([1; 16]);
    const G2: Generation = Generation::from_bytes([2; 16]);
    const G3: Generation = Generation::from_bytes([3; 16]);

    fn history(of: &[Generation]) -> History {
        let mut history = History::new();
        for generation in of {
            history.branch(*generation, Incarnation::new(1), Seq::new(5));
        }
        history
    }

    fn own(of: &[Generation], run: u64, seq: u64) -> Own {
        Own {
            history: history(of),
            last: Some((Incarnation::new(run), Seq::new(seq))),
        }
    }

    #[test]
    fn two_wrote_where_both_went_on_from_one_write() {
        let newer = history(&[G1, G2]);
        let branch = (Incarnation::new(1), Seq::new(5));
        for (run, seq, expected) in [
            (1, 5, Parting::Newer),
            (1, 6, Parting::NewerThanBranch(branch)),
            (2, 0, Parting::Newer),
            (2, 1, Parting::NewerThanBranch(branch)),
        ] {
            assert_eq!(parting(&own(&[G1], run, seq), &newer), expected);
        }
        let fork = own(&[G1, G3], 1, 9);
        assert_eq!(parting(&fork, &newer), Parting::Fork(G1));
    }

    #[test]
    fn one_that_follows_or_has_nothing_in_common_is_no_second_writer() {
        for theirs in [history(&[G1]), history(&[G1, G2]), history(&[G3])] {
            assert_eq!(parting(&own(&[G1, G2], 1, 9), &theirs), Parting::None);
        }
        let unknown = Own {
            history: history(&[G1]),
            last: None,
        };
        assert_eq!(parting(&unknown, &history(&[G1, G2])), Parting::Newer);
    }
}
