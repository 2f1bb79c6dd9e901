//! The state words of `status`, kebab-case in JSON, each with its meaning.
//!
//! Owns one enum per axis. The axes are orthogonal: no state of one implies a state of another.

use serde::{Deserialize, Serialize};
use std::fmt;

/// An enum whose JSON form, `Display` and `FromStr` are the same word.
macro_rules! words {
    ($(#[$doc:meta])* $type:ident, $what:literal { $( $(#[$variant_doc:meta])* $variant:ident = $word:literal ),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $type {
            $( $(#[$variant_doc])* #[serde(rename = $word)] $variant ),+
        }

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
pub(crate) use words;

words! {
    /// What a link does about compression, and why.
    #[derive(Default)]
    CompressionState, "compression state" {
        /// Batches are compressed.
        On = "on",
        /// They are not: it is set so, or the link has no driver.
        #[default]
        Off = "off",
        /// They are not: the target does not take compressed frames.
        NotTaken = "not-taken",
        /// They are not: the line takes all there is at once.
        LineIdle = "line-idle",
        /// They are not for now: they do not get smaller.
        Incompressible = "incompressible",
        /// They are not for now: the line is faster than the compressor.
        LineFaster = "line-faster",
    }
}

impl CompressionState {
    /// Why nothing is compressed, in words.
    #[must_use]
    pub const fn reason(self) -> Option<&'static str> {
        match self {
            Self::On => None,
            Self::Off => Some("it is off"),
            Self::NotTaken => Some("the target does not take it"),
            Self::LineIdle => Some("the line takes all there is at once"),
            Self::Incompressible => Some("what is written does not get smaller"),
            Self::LineFaster => Some("the line is faster than the compressor"),
        }
    }
}

words! {
    /// What a node is for a group.
    Role, "role" {
        /// Serves the group and sends its writes.
        Source = "source",
        /// Receives the group's writes.
        Target = "target",
        /// Was a target, now serves the group.
        Promoted = "promoted",
        /// Promoted together with addresses, hooks and services.
        FailedOver = "failed-over",
    }
}
words! {
    /// How a volume is served.
    FrontendKind, "front end" {
        /// The first that works of the others, in this order.
        Auto = "auto",
        /// The kernel's ublk driver.
        Ublk = "ublk",
        /// A loop device over a FUSE file; root only.
        Loop = "loop",
        /// A network block device server.
        Nbd = "nbd",
    }
}
words! {
    /// What a volume's device does.
    VolumeState, "volume state" {
        /// Requests are served.
        Served = "served",
        /// The device is open and waits while a successor of the daemon takes it over.
        Recovering = "recovering",
        /// Requests wait because the backing failed and the policy is `freeze`.
        Frozen = "frozen",
        /// Requests are served by a target: the backing is lost.
        ServedByTarget = "served-by-target",
        /// The backing failed; its errors go to the application.
        Failing = "failing",
        /// Every request gets EIO: a newer generation exists elsewhere.
        Fenced = "fenced",
        /// Known, but served by no device.
        Offline = "offline",
        /// A replica: it takes what the source writes, and is served once it is promoted.
        Replica = "replica",
    }
}
words! {
    /// The state of a link's connection.
    ConnectionState, "connection state" {
        /// Both ends talk.
        Connected = "connected",
        /// The connection or its handshake is being made.
        Connecting = "connecting",
        /// No connection; the next attempt waits for its interval.
        Down = "down",
        /// The peer refused; nothing is tried again before someone acts.
        Refused = "refused",
        /// Ended by command; changes are tracked.
        Disconnected = "disconnected",
        /// There is no target: what would be sent is measured.
        Simulated = "simulated",
    }
}
words! {
    /// Whether writes are sent.
    TransmitState, "transmit state" {
        /// Sent as they come.
        Started = "started",
        /// Held back by command; the log keeps them.
        Paused = "paused",
        /// Stopped by command; changes are tracked as dirty extents.
        Stopped = "stopped",
        /// Held back until the schedule says so.
        Scheduled = "scheduled",
        /// Sending failed.
        Error = "error",
    }
}
words! {
    /// Why a schedule holds a link back.
    ScheduleHold, "hold of a schedule" {
        /// The window is closed.
        Window = "window-closed",
        /// The next planned start has not come.
        Start = "before-start",
        /// The queue is not long enough.
        Queue = "queue-short",
        /// What this window allows is used up.
        Limit = "limit-reached",
    }
}
words! {
    /// What completed writes may rely on.
    #[derive(Default)]
    ProtectionState, "protection" {
        /// The mode asks for no acknowledgement.
        #[default]
        NotAsked = "not-asked",
        /// The target has what completed, as the mode asks.
        Kept = "kept",
        /// The link is lost and writes wait for it: none has completed without it.
        Waiting = "waiting",
        /// Writes may have completed without the target, and it is getting them.
        CatchingUp = "catching-up",
        /// Writes complete without the target; that is on record.
        Degraded = "degraded",
    }
}
words! {
    /// What the mirror does.
    MirrorState, "mirror state" {
        /// Nothing to do.
        Idle = "idle",
        /// Copying.
        Mirroring = "mirroring",
        /// Held by command; its position is kept.
        Paused = "paused",
        /// Would run, but waits: for the link, or for a drain rate above the dirtying rate.
        Waiting = "waiting",
        /// Comparing without sending data.
        Verifying = "verifying",
        /// Copying newer data back to a former source.
        Restoring = "restoring",
    }
}
words! {
    /// How a link keeps up.
    ReplicationState, "replication state" {
        /// Writes reach the target in order.
        Replicating = "replicating",
        /// Could replicate; transmission is held back.
        Ready = "ready",
        /// Not replicating; changes are tracked.
        Stopped = "stopped",
        /// Writes wait in the log for the link.
        Pending = "pending",
        /// The log overflowed into dirty extents: a difference mirror is needed.
        Behind = "behind",
    }
}
words! {
    /// What the target's applying does.
    TargetState, "target state" {
        /// Applies as writes come.
        Ok = "ok",
        /// Does not apply, by command; the journal goes on receiving.
        Paused = "paused",
        /// Will be paused after the batch in hand.
        PausePending = "pause-pending",
        /// A write failed and is tried again.
        Retrying = "retrying",
        /// The replica's journal or disks could not be opened.
        NotLoaded = "not-loaded",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_one_word_in_json_text_and_display() {
        for state in VolumeState::ALL {
            let json = serde_json::to_string(state).unwrap();
            assert_eq!(json, format!("\"{state}\""));
            assert_eq!(state.as_str().parse::<VolumeState>().unwrap(), *state);
        }
        for state in blkrep_types::DataState::ALL {
            let json = serde_json::to_string(state).unwrap();
            assert_eq!(json, format!("\"{state}\""));
        }
        let error = "perhaps".parse::<TargetState>().unwrap_err();
        assert!(error.starts_with("'perhaps' is not a target state: use ok, paused"));
    }
}
