//! Who may overwrite whom, and where a stream may go on.
//!
//! Owns one pure function: the source's identity, what it knows of the link and the peer's answer
//! enter, a verdict leaves. Never "closest": a stream goes on by exact name or a mirror follows.

use crate::source::{PeerRole, WelcomeFacts};
use blkrep_types::{
    DataState, Generation, History, Incarnation, MirrorKind, Seq, WriteName, planted,
};

/// A place in the order of one generation.
pub type Place = (Incarnation, Seq);

/// The place of a name.
#[must_use]
pub const fn place(name: WriteName) -> Place {
    (name.incarnation, name.seq)
}

/// What the source knows.
#[derive(Debug, Clone, Copy)]
pub struct SourceIdentity<'a> {
    /// Its data history.
    pub history: &'a History,
    /// The last name it gave in its current run.
    pub head: Place,
    /// The log keeps what the link has not acknowledged.
    pub following: bool,
    /// The peer's last name is in the log, or directly before it.
    pub in_log: bool,
    /// What the maps in memory are worth: they cover every difference to a target that has all up
    /// to this place. `None` after a crash of the host.
    pub memory_floor: Option<Place>,
    /// The maps on disk, with the intent map, cover every difference to a target that has all up
    /// to this place.
    pub disk_floor: Option<Place>,
    /// The operator allowed what the target holds to be overwritten.
    pub overwrite: bool,
    /// The mirror that was asked for and has not begun.
    pub first_mirror: Option<MirrorKind>,
}

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The stream goes on after the peer's last name.
    Resume,
    /// A mirror of what the maps in memory say.
    Difference,
    /// A mirror of what the maps on disk and the intent map say, by digest.
    DifferenceFromDisk,
    /// A mirror of everything; full if nothing is known to be equal, else by digest.
    Everything(MirrorKind, &'static str),
    /// The mirror that was asked for.
    First(MirrorKind),
    /// This source is stale.
    Stale(Generation),
    /// Refused, with the reason.
    Refuse(String),
}

/// Judges a peer's answer.
#[must_use]
pub fn judge(source: &SourceIdentity<'_>, peer: &WelcomeFacts) -> Verdict {
    let ours = source.history.current();
    let theirs = peer.history.current();
    if peer.history.supersedes(ours) && !planted!(IgnoreNewerGeneration) {
        return Verdict::Stale(theirs);
    }
    if theirs == Generation::NONE {
        return Verdict::First(source.first_mirror.unwrap_or(MirrorKind::Full));
    }
    if theirs != ours || peer.role == PeerRole::Source {
        return foreign(source, peer, ours);
    }
    if peer.data_state == DataState::NotReady {
        let kind = source.first_mirror.unwrap_or(MirrorKind::Full);
        return Verdict::First(kind);
    }
    if let Some(kind) = source.first_mirror {
        return Verdict::First(kind);
    }
    same_generation(source, peer)
}

/// The peer belongs to another history, or serves the group itself.
fn foreign(source: &SourceIdentity<'_>, peer: &WelcomeFacts, ours: Generation) -> Verdict {
    let theirs = peer.history.current();
    let known = source.history.find(theirs).is_some();
    if peer.role == PeerRole::Source {
        return Verdict::Refuse(serving(source, theirs, ours));
    }
    if source.overwrite {
        let kind = source.first_mirror.unwrap_or(MirrorKind::Checksum);
        return Verdict::First(kind);
    }
    if known {
        return Verdict::Everything(
            MirrorKind::Checksum,
            "the target belongs to an older generation",
        );
    }
    Verdict::Refuse(format!(
        "the target holds generation {theirs}, unrelated to {ours}; to overwrite it, connect again \
         with --mirror checksum --yes"
    ))
}

/// Why a peer that serves the group itself is not written to. One that our generation follows gives
/// it up when it hears that it may be overwritten; any other is given up by its own operator only.
fn serving(source: &SourceIdentity<'_>, theirs: Generation, ours: Generation) -> String {
    let older = theirs != ours && source.history.find(theirs).is_some();
    if older && !source.overwrite {
        return format!(
            "the target has served generation {theirs} itself and may hold writes of its own; to \
             overwrite it, connect again with --mirror checksum --yes"
        );
    }
    let relation = if theirs == ours {
        "as this node does"
    } else if older {
        "an older one, and did not give it up"
    } else {
        "which this node does not know"
    };
    format!(
        "the target serves generation {theirs} itself, {relation}; decide which data is right: on \
         the node where it is not, detach the volumes and forget the group (blkctl detach, blkctl \
         forget), then connect from the other one with --map, and --mirror checksum --yes"
    )
}

fn same_generation(source: &SourceIdentity<'_>, peer: &WelcomeFacts) -> Verdict {
    let theirs = place(peer.durable);
    let worthless = matches!(
        peer.data_state,
        DataState::Unknown | DataState::RestoreRequired | DataState::Reverted
    );
    if worthless {
        return Verdict::Everything(
            MirrorKind::Checksum,
            "the target cannot tell what its data is worth",
        );
    }
    if peer.durable.generation != source.history.current() {
        return Verdict::Everything(
            MirrorKind::Checksum,
            "the target names no write of this generation",
        );
    }
    if theirs > source.head {
        return Verdict::Everything(
            MirrorKind::Checksum,
            "the target names a write that was never made here",
        );
    }
    if source.following && source.in_log {
        return Verdict::Resume;
    }
    if source.memory_floor.is_some_and(|floor| theirs >= floor) {
        return Verdict::Difference;
    }
    if source.disk_floor.is_some_and(|floor| theirs >= floor) {
        return Verdict::DifferenceFromDisk;
    }
    Verdict::Everything(
        MirrorKind::Checksum,
        "the target is older than what the maps cover",
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

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

    const fn at(incarnation: u64, seq: u64) -> Place {
        (Incarnation::new(incarnation), Seq::new(seq))
    }

    fn source(history: &History) -> SourceIdentity<'_> {
        SourceIdentity {
            history,
            head: at(2, 100),
            following: true,
            in_log: true,
            memory_floor: Some(at(2, 40)),
            disk_floor: Some(at(1, 10)),
            overwrite: false,
            first_mirror: None,
        }
    }

    fn peer(history: History, incarnation: u64, seq: u64) -> WelcomeFacts {
        WelcomeFacts {
            role: PeerRole::Replica,
            data_state: DataState::Ok,
            durable: WriteName {
                generation: history.current(),
                incarnation: Incarnation::new(incarnation),
                seq: Seq::new(seq),
            },
            history,
            reads: true,
        }
    }

    #[test]
    fn a_stream_goes_on_only_by_exact_name() {
        let ours = history(&[G1]);
        let known = source(&ours);
        assert_eq!(judge(&known, &peer(ours.clone(), 2, 50)), Verdict::Resume);
        let gone = SourceIdentity {
            in_log: false,
            ..known
        };
        assert_eq!(
            judge(&gone, &peer(ours.clone(), 2, 50)),
            Verdict::Difference
        );
        assert_eq!(
            judge(&gone, &peer(ours.clone(), 2, 39)),
            Verdict::DifferenceFromDisk
        );
        assert_eq!(
            judge(&gone, &peer(ours.clone(), 1, 10)),
            Verdict::DifferenceFromDisk
        );
        for (incarnation, seq) in [(1, 9), (2, 101), (3, 1)] {
            let verdict = judge(&gone, &peer(ours.clone(), incarnation, seq));
            assert!(matches!(
                verdict,
                Verdict::Everything(MirrorKind::Checksum, _)
            ));
        }
        let behind = SourceIdentity {
            following: false,
            ..known
        };
        assert_eq!(
            judge(&behind, &peer(ours.clone(), 2, 50)),
            Verdict::Difference
        );
    }

    #[test]
    fn a_target_whose_last_write_is_of_an_older_generation_is_compared_as_a_whole() {
        let ours = history(&[G1, G2]);
        let mut behind = peer(ours.clone(), 2, 50);
        behind.durable.generation = G1;
        let verdict = judge(&source(&ours), &behind);
        let whole = matches!(verdict, Verdict::Everything(MirrorKind::Checksum, _));
        assert!(whole, "{verdict:?}");
    }

    #[test]
    fn a_newer_generation_makes_the_source_stale_whatever_was_allowed() {
        let ours = history(&[G1]);
        let allowed = SourceIdentity {
            overwrite: true,
            ..source(&ours)
        };
        for role in [PeerRole::Replica, PeerRole::Source] {
            let newer = WelcomeFacts {
                role,
                ..peer(history(&[G1, G2]), 1, 1)
            };
            assert_eq!(judge(&allowed, &newer), Verdict::Stale(G2));
        }
    }

    #[test]
    fn a_foreign_or_serving_peer_is_never_overwritten_by_itself() {
        let ours = history(&[G1, G2]);
        let known = source(&ours);
        let unrelated = peer(history(&[G3]), 2, 50);
        let promoted = WelcomeFacts {
            role: PeerRole::Source,
            ..peer(ours.clone(), 2, 50)
        };
        let old_source = WelcomeFacts {
            role: PeerRole::Source,
            ..peer(history(&[G1]), 1, 7)
        };
        for wrong in [&unrelated, &promoted, &old_source] {
            assert!(matches!(judge(&known, wrong), Verdict::Refuse(_)));
        }
        let allowed = SourceIdentity {
            overwrite: true,
            ..known
        };
        assert_eq!(
            judge(&allowed, &unrelated),
            Verdict::First(MirrorKind::Checksum)
        );
        let replica = peer(history(&[G1]), 1, 3);
        assert!(matches!(
            judge(&known, &replica),
            Verdict::Everything(MirrorKind::Checksum, _)
        ));
    }

    /// A source of a lost state directory was told to overwrite a promoted target, and tried for ever.
    #[test]
    fn a_peer_that_still_serves_is_refused_whatever_was_allowed() {
        let ours = history(&[G1, G2]);
        let allowed = SourceIdentity {
            overwrite: true,
            ..source(&ours)
        };
        for theirs in [history(&[G3]), ours.clone(), history(&[G1])] {
            let serves = WelcomeFacts {
                role: PeerRole::Source,
                ..peer(theirs, 1, 7)
            };
            let Verdict::Refuse(why) = judge(&allowed, &serves) else {
                panic!("it was not refused");
            };
            assert!(why.contains("blkctl forget"), "{why}");
        }
    }

    #[test]
    fn a_new_target_gets_what_was_asked_for() {
        let ours = history(&[G1]);
        let new = peer(History::new(), 0, 0);
        assert_eq!(
            judge(&source(&ours), &new),
            Verdict::First(MirrorKind::Full)
        );
        let asked = SourceIdentity {
            first_mirror: Some(MirrorKind::Checksum),
            ..source(&ours)
        };
        assert_eq!(judge(&asked, &new), Verdict::First(MirrorKind::Checksum));
    }

    #[test]
    fn a_target_that_cannot_tell_is_compared_whole() {
        let ours = history(&[G1]);
        let unknown = WelcomeFacts {
            data_state: DataState::Unknown,
            ..peer(ours.clone(), 2, 50)
        };
        assert!(matches!(
            judge(&source(&ours), &unknown),
            Verdict::Everything(_, _)
        ));
    }
}
