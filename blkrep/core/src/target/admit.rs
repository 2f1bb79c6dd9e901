//! May this source write to this replica?
//!
//! A source is taken as it is or refused with a reason; what it may overwrite is decided here,
//! whatever the source decided for itself.

use super::facts::Facts;
use blkrep_types::{
    BlockSize, ByteLen, DataState, ExtentSize, Generation, History, Incarnation, WriteName,
};
use std::fmt;

/// What a source says of itself.
#[derive(Debug, Clone)]
pub struct Offer {
    /// Its data history.
    pub history: History,
    /// Its run.
    pub incarnation: Incarnation,
    /// The operator agreed that whatever is here is overwritten.
    pub overwrite: bool,
}

/// Where its stream begins.
#[derive(Debug, Clone, Copy)]
pub struct StreamOffer {
    /// The record directly before the first.
    pub after: WriteName,
    /// The last one named when it took over our map.
    pub head: WriteName,
    /// The generation of all of them.
    pub generation: Generation,
    /// Our data becomes a replica of its history, whatever it was.
    pub adopt: bool,
}

/// How a stream is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adoption {
    /// It goes on where the replica is, or begins with a mirror.
    Continue,
    /// The replica is taken over: what it has is given up.
    Adopt,
}

/// The kind of a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DenialKind {
    /// The volumes are others than those held.
    Volumes,
    /// The replica is of a newer generation than the source.
    Newer,
    /// The two have no common history, or not one that allows it.
    Unrelated,
    /// What was said contradicts itself.
    Malformed,
}

/// A refusal: what is wrong and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// Its kind.
    pub kind: DenialKind,
    /// In words.
    pub text: String,
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn deny<T>(kind: DenialKind, text: String) -> Result<T, Denial> {
    Err(Denial { kind, text })
}

/// The shape of one volume, for comparison.
pub type Shape = (ByteLen, BlockSize, ExtentSize);

/// Compares the volumes of a source with those of the replica.
///
/// # Errors
/// They differ in number, size, block size or extent size.
pub fn check_volumes(ours: &[Shape], theirs: &[Shape]) -> Result<(), Denial> {
    if ours.len() != theirs.len() {
        return deny(
            DenialKind::Volumes,
            format!(
                "the group has {} volumes at the source and {} here; disconnect with --forget and connect again",
                theirs.len(),
                ours.len()
            ),
        );
    }
    for (index, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        if ours != theirs {
            return deny(
                DenialKind::Volumes,
                format!(
                    "volume {index} is {} in blocks of {} and extents of {} at the source, and {} in blocks of {} and extents of {} here; disconnect with --forget and connect again",
                    theirs.0,
                    theirs.1.get(),
                    ByteLen::new(theirs.2.get()),
                    ours.0,
                    ours.1.get(),
                    ByteLen::new(ours.2.get()),
                ),
            );
        }
    }
    Ok(())
}

/// Judges the begin of a stream. `last` is the last record the replica has received.
///
/// # Errors
/// The stream would overwrite what nobody allowed to be overwritten, or reuse names.
pub fn begin_stream(
    facts: &Facts,
    last: WriteName,
    offer: &Offer,
    stream: &StreamOffer,
) -> Result<Adoption, Denial> {
    let theirs = offer.history.current();
    let ours = facts.history.current();
    let foreign = |name: WriteName| name != WriteName::NONE && name.generation != theirs;
    if stream.generation != theirs || theirs == Generation::NONE || foreign(stream.head) {
        return deny(
            DenialKind::Malformed,
            format!(
                "the stream is of generation {}, the hello of {theirs}",
                stream.generation
            ),
        );
    }
    if facts.history.supersedes(theirs) {
        return deny(
            DenialKind::Newer,
            format!(
                "this replica is of generation {ours}, which followed {theirs}: the source is stale"
            ),
        );
    }
    if stream.adopt {
        return adopt(facts, offer);
    }
    if ours != theirs {
        return deny(
            DenialKind::Unrelated,
            format!("this replica is of generation {ours}, the stream of {theirs}"),
        );
    }
    if matches!(facts.state(), DataState::RestoreRequired) {
        return deny(
            DenialKind::Newer,
            "a newer history of this group exists elsewhere".to_owned(),
        );
    }
    // A source that never named what we hold was set back, and would give the same names again.
    let head = (stream.head.incarnation, stream.head.seq);
    if last.generation == theirs && (last.incarnation, last.seq) > head {
        return deny(
            DenialKind::Unrelated,
            format!(
                "this replica holds write {}/{}, the source has named none after {}/{}: it was set back",
                last.incarnation.get(),
                last.seq,
                stream.head.incarnation.get(),
                stream.head.seq
            ),
        );
    }
    Ok(Adoption::Continue)
}

fn adopt(facts: &Facts, offer: &Offer) -> Result<Adoption, Denial> {
    let ours = facts.history.current();
    let unused = ours == Generation::NONE && facts.state() == DataState::NotReady;
    if unused || offer.overwrite || offer.history.find(ours).is_some() {
        return Ok(Adoption::Adopt);
    }
    deny(
        DenialKind::Unrelated,
        format!(
            "this replica is of generation {ours}, which the source does not know; to overwrite it, connect again with --mirror checksum --yes"
        ),
    )
}
