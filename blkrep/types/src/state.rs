//! The states that cross rooms: modes, mirror kinds, the target's data state.

use serde::{Deserialize, Serialize};

/// When a write completes towards the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// When the local write is done.
    #[default]
    Async,
    /// And the target has received it.
    Memory,
    /// And it is durable on the target.
    Sync,
}

/// How a target is brought to equality.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MirrorKind {
    /// Every extent is sent.
    Full,
    /// The extents of the dirty map are sent.
    Difference,
    /// Digests are compared; what differs is sent.
    Checksum,
}

/// What a replica is worth. Durable at the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DataState {
    /// Equals the source after some prefix of its write order.
    Ok,
    /// A mirror is being applied: no prefix.
    Mirroring,
    /// Known to differ; only a mirror helps.
    MirrorRequired,
    /// A newer history exists elsewhere; it must be restored from there first.
    RestoreRequired,
    /// Nothing has been replicated yet.
    #[default]
    NotReady,
    /// Set back to an earlier point.
    Reverted,
    /// Cannot be told.
    Unknown,
}
