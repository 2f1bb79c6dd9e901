//! Errors of the control API: a stable code, and what happened, to what, and what to do.
//!
//! Owns the catalogue of codes with their HTTP status. A code never changes its meaning; programs
//! act on it, people read the sentences.

use serde::{Deserialize, Serialize};
use std::fmt::{self, Write as _};

macro_rules! codes {
    ($( $variant:ident = $word:literal, $status:literal, $meaning:literal; )+) => {
        /// What kind of error it is; kebab-case in JSON.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $( #[doc = $meaning] #[serde(rename = $word)] $variant ),+
        }

        impl ErrorCode {
            /// Every code, in the order of the reference.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The word used in JSON.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            /// The HTTP status it travels with.
            #[must_use]
            pub const fn http_status(self) -> u16 {
                match self { $(Self::$variant => $status),+ }
            }

            /// What it means, in a sentence.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning),+ }
            }
        }
    };
}

codes! {
    BadRequest = "bad-request", 400, "The request is not what this command takes.";
    TooLarge = "too-large", 413, "The request is larger than any legal one.";
    TooSlow = "too-slow", 408, "The request did not arrive in time.";
    Overloaded = "overloaded", 503, "Too many clients at once.";
    Forbidden = "forbidden", 403, "The caller's role does not allow it.";
    NoSuchCommand = "no-such-command", 404, "This daemon has no such command.";
    NotSupported = "not-supported", 501, "This daemon, kernel or machine cannot do it.";
    ConfirmationRequired = "confirmation-required", 409, "It destroys data and was not confirmed.";
    NoSuchVolume = "no-such-volume", 404, "No volume of that name.";
    NoSuchGroup = "no-such-group", 404, "No group of that name.";
    NoSuchLink = "no-such-link", 404, "No link of that name, or none at all.";
    NoSuchNote = "no-such-note", 404, "No bookmark or task of that id is remembered.";
    NoSuchSetting = "no-such-setting", 404, "No setting of that name.";
    SettingInvalid = "setting-invalid", 400, "A value outside its range.";
    LinkAmbiguous = "link-ambiguous", 409, "The group has several links and none was named.";
    VolumeExists = "volume-exists", 409, "A volume of that name exists already.";
    LinkExists = "link-exists", 409, "A link of that name, or to that target, exists already.";
    GroupFull = "group-full", 409, "The group has as many volumes or links as it can have.";
    GroupBusy = "group-busy", 409, "The group is attached, connected or changing.";
    BackingMissing = "backing-missing", 404, "The backing does not exist.";
    BackingMounted = "backing-mounted", 409, "The backing is mounted.";
    BackingInUse = "backing-in-use", 409, "The backing is open elsewhere.";
    BackingAttached = "backing-attached", 409, "The backing is attached already.";
    BackingOverlaps = "backing-overlaps", 409, "The range shares bytes with another volume.";
    BackingReadOnly = "backing-read-only", 409, "The backing cannot be written.";
    BackingFailing = "backing-failing", 502, "The backing returns errors.";
    BackingUnsuitable = "backing-unsuitable", 400, "The backing, offset or size cannot be served.";
    DeviceNumberTaken = "device-number-taken", 409, "Another device has that number.";
    DeviceOpen = "device-open", 409, "The device is open.";
    FrontendUnavailable = "frontend-unavailable", 501, "The front end does not work here.";
    PeerUnreachable = "peer-unreachable", 502, "The target did not answer.";
    PeerRefused = "peer-refused", 409, "The target refused.";
    PeerIncompatible = "peer-incompatible", 409, "The two nodes have no version in common.";
    TargetTooSmall = "target-too-small", 409, "The target's path is smaller than the volume.";
    TargetPathDenied = "target-path-denied", 403, "The target's configuration does not allow the path.";
    TargetPathTaken = "target-path-taken", 409, "The target's path belongs to another link.";
    TargetHoldsData = "target-holds-data", 409, "The target's path holds a filesystem or other signature.";
    WrongRole = "wrong-role", 409, "The node is not in the role this needs.";
    SourceAlive = "source-alive", 409, "The source still serves the group.";
    ReplicaNotOk = "replica-not-ok", 409, "The replica is not consistent.";
    GenerationUnknown = "generation-unknown", 409, "The two ends share no known history.";
    RestoreRequired = "restore-required", 409, "A newer generation of the data exists elsewhere.";
    MirrorNotRunning = "mirror-not-running", 409, "No mirror to pause, resume or stop.";
    MirrorRunning = "mirror-running", 409, "A mirror runs already.";
    LimitReached = "limit-reached", 409, "A configured limit would be passed.";
    NotPaired = "not-paired", 409, "The nodes are not paired.";
    NodeExists = "node-exists", 409, "Another certificate is pinned for that node, or another node has it.";
    TokenRefused = "token-refused", 403, "The token is unknown, used, expired or wrong.";
    StateFull = "state-full", 507, "The state directory or a journal has no space.";
    StateCorrupt = "state-corrupt", 500, "Recorded state is damaged.";
    StateNewer = "state-newer", 500, "Recorded state was written by a newer version.";
    NoRights = "no-rights", 500, "The operating system denied the daemon what it needs.";
    StillRunning = "still-running", 504, "The command takes longer than a client may wait; it goes on.";
    ShuttingDown = "shutting-down", 503, "The daemon is stopping.";
    Internal = "internal", 500, "A fault of blkrep itself.";
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A refusal or failure, for programs by its code and for people in sentences.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{subject}: {happened}")]
pub struct ApiError {
    /// What kind it is.
    pub code: ErrorCode,
    /// What happened.
    pub happened: String,
    /// To what: `volume pgdata`, `group db`, `/dev/sdb`.
    pub subject: String,
    /// What to do next.
    pub action: String,
}

impl ApiError {
    /// An error in sentences.
    #[must_use]
    pub fn new(
        code: ErrorCode,
        subject: impl Into<String>,
        happened: impl Into<String>,
        action: impl Into<String>,
    ) -> Self {
        Self {
            code,
            happened: happened.into(),
            subject: subject.into(),
            action: action.into(),
        }
    }

    /// A fault of blkrep itself.
    #[must_use]
    pub fn internal(happened: impl Into<String>) -> Self {
        Self::new(
            ErrorCode::Internal,
            "blkrepd",
            happened,
            "look into the daemon's log and report this as a bug",
        )
    }
}

/// The body of every reply that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// [`crate::SCHEMA`].
    pub schema: u32,
    /// The error.
    pub error: ApiError,
}

impl From<ApiError> for ErrorBody {
    fn from(error: ApiError) -> Self {
        Self {
            schema: crate::SCHEMA,
            error,
        }
    }
}

/// The reference page of the error codes.
#[must_use]
pub fn errors_markdown() -> String {
    let mut page = String::from(
        "# Error codes\n\nGenerated from the code. Every refused or failed command carries one of \
         these, in JSON as\n`{\"schema\": 1, \"error\": {\"code\", \"happened\", \"subject\", \
         \"action\"}}`. A code never changes its meaning.\n\n| code | HTTP | meaning |\n|---|---|---|\n",
    );
    for code in ErrorCode::ALL {
        writeln!(
            page,
            "| `{code}` | {} | {} |",
            code.http_status(),
            code.meaning()
        )
        .expect("a String takes all text");
    }
    page
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_code_is_a_kebab_case_word_of_its_own() {
        let words: BTreeSet<_> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(words.len(), ErrorCode::ALL.len());
        for word in words {
            assert!(
                word.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'),
                "{word}"
            );
        }
        for code in ErrorCode::ALL {
            assert!((400..600).contains(&code.http_status()), "{code}");
        }
    }

    #[test]
    fn an_error_says_what_happened_to_what_and_what_to_do() {
        let error = ApiError::new(
            ErrorCode::BackingMounted,
            "/dev/sdb",
            "it is mounted on /srv",
            "unmount it: umount /srv",
        );
        let json = serde_json::to_value(ErrorBody::from(error.clone())).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"schema": 1, "error": {"code": "backing-mounted",
                "happened": "it is mounted on /srv", "subject": "/dev/sdb",
                "action": "unmount it: umount /srv"}})
        );
        assert_eq!(error.to_string(), "/dev/sdb: it is mounted on /srv");
    }
}
