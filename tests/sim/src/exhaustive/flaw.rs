//! Mistakes that somebody could make with these files, to see that each is found.
//!
//! Owns their names. What carries a history out asks whether one is to be made.

/// A mistake, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// What the product does.
    None,
    /// A commit of a map is announced before its flush.
    CommitAnnouncedEarly,
    /// A superblock is announced before its flush.
    SaveAnnouncedEarly,
    /// The second copy of a superblock is not flushed.
    SecondNotFlushed,
    /// A start leaves the older of two copies of a superblock as it is.
    OldCopyLeft,
    /// Every copy of a superblock goes to the same place.
    OnePlace,
    /// A batch is acknowledged before it is durable.
    BatchAnnouncedEarly,
    /// A batch is written over what a head frees before that head is durable.
    FreedEarly,
    /// Heads are written in turn and not copied to the other place.
    HeadsInTurn,
}
