//! The states that cross rooms: modes, mirror kinds, the target's data state.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// The words of an enum as JSON has them, for `Display`, `FromStr` and lists.
macro_rules! words {
    ($type:ident, $what:literal { $( $variant:ident = $word:literal ),+ $(,)? }) => {
        impl $type {
            /// Every value, in order of declaration.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The word used in JSON, on the command line and in documents.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $type {
            type Err = String;

            fn from_str(word: &str) -> Result<Self, String> {
                Self::ALL.iter().copied().find(|value| value.as_str() == word).ok_or_else(|| {
                    let words: Vec<_> = Self::ALL.iter().map(|value| value.as_str()).collect();
                    format!("'{word}' is not a {}: use {}", $what, words.join(", "))
                })
            }
        }
    };
}

words!(Mode, "mode" { Async = "async", Memory = "memory", Sync = "sync" });
words!(OnLoss, "policy for a lost link" {
    Continue = "continue", Block = "block", Fail = "fail",
});
words!(MirrorKind, "kind of mirror" {
    Full = "full", Difference = "difference", Checksum = "checksum",
});
words!(DataState, "data state" {
    Ok = "ok", Mirroring = "mirroring", MirrorRequired = "mirror-required",
    RestoreRequired = "restore-required", NotReady = "not-ready", Reverted = "reverted",
    Unknown = "unknown",
});

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

/// What happens to writes when a link in `memory` or `sync` mode is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnLoss {
    /// They complete without it, which is recorded first.
    #[default]
    Continue,
    /// They wait until it is back.
    Block,
    /// They get an error until it is back.
    Fail,
}

/// What happens to writes when a link in `memory` or `sync` mode is lost, and after which time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LossPolicy {
    /// What happens.
    pub on_loss: OnLoss,
    /// How long they wait for the link before. Whole milliseconds, below 2^32 of them.
    pub timeout: Duration,
}

impl LossPolicy {
    /// Two attempts to connect again fit in: a connection that is reset costs a pause and no protection.
    pub const TIMEOUT: Duration = Duration::from_secs(2);
}

impl Default for LossPolicy {
    fn default() -> Self {
        Self {
            on_loss: OnLoss::default(),
            timeout: Self::TIMEOUT,
        }
    }
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_read_as_it_is_printed() {
        for state in DataState::ALL {
            assert_eq!(state.as_str().parse::<DataState>().unwrap(), *state);
        }
        let error = "perhaps".parse::<Mode>().unwrap_err();
        assert_eq!(error, "'perhaps' is not a mode: use async, memory, sync");
    }
}
