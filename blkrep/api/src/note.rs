//! Bookmarks and tasks: what is asked for, and what became of it.
//!
//! Owns their JSON. Unknown fields of requests are refused, as everywhere.

use crate::state::words;
use blkrep_types::{BookmarkName, Generation, GroupName, LinkName, NoteId, Seq};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;

words! {
    /// What a note is.
    NoteSort, "kind of note" {
        /// A place with a name.
        Bookmark = "bookmark",
        /// A command that targets run at its place.
        Task = "task",
    }
}

words! {
    /// How far a bookmark or task is, at one target.
    NoteProgress, "state of a note" {
        /// In the source's log, not sent yet.
        Queued = "queued",
        /// Sent, and not known to be durable at the target.
        Sent = "sent",
        /// In the target's journal; earlier writes, or a pause, come first.
        Waiting = "waiting",
        /// The command runs.
        Running = "running",
        /// It ended with exit status 0.
        Done = "done",
        /// It ended otherwise, or could not be started.
        Failed = "failed",
        /// It did not end in time and was killed.
        TimedOut = "timed-out",
        /// The target does not run it.
        Refused = "refused",
        /// Its place was no state of the source at the target, or was jumped over.
        Skipped = "skipped",
        /// The target stopped, was promoted or died while it ran; it is not run again.
        Interrupted = "interrupted",
        /// The target's blkrepd is too old.
        Unable = "unable",
        /// The target remembers the bookmark.
        Set = "set",
    }
}

impl NoteProgress {
    /// Nothing follows.
    #[must_use]
    pub const fn is_final(self) -> bool {
        !matches!(
            self,
            Self::Queued | Self::Sent | Self::Waiting | Self::Running
        )
    }

    /// It is as it was meant to be.
    #[must_use]
    pub const fn is_good(self) -> bool {
        matches!(self, Self::Done | Self::Set)
    }
}

/// `task submit`: have every target run a command at this place of the order of writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskRequest {
    /// The group.
    pub group: GroupName,
    /// The program's name in the target's `task.directory`, and its arguments.
    pub command: Vec<String>,
    /// What it is for; may be empty.
    #[serde(default)]
    pub description: String,
}

/// `point bookmark`: give this place of the order of writes a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BookmarkRequest {
    /// The group.
    pub group: GroupName,
    /// The name.
    pub name: BookmarkName,
}

/// `task list`, `task show`, `point list`: which of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoteQuery {
    /// The group.
    pub group: GroupName,
    /// Only these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<NoteSort>,
    /// Only this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<NoteId>,
}

/// A bookmark or a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoteStatus {
    /// Which one.
    pub id: NoteId,
    /// What it is.
    pub kind: NoteSort,
    /// The bookmark's name, or the task's description.
    pub text: String,
    /// The command; empty for a bookmark.
    pub command: String,
    /// Its place: the data history.
    pub generation: Generation,
    /// The run of the source.
    pub incarnation: u64,
    /// The place in its order: behind every write with a smaller one.
    pub seq: Seq,
    /// When it was submitted, by the source's clock.
    pub submitted: Timestamp,
    /// What became of it, for each link it was put in for; on a target there is one, without a name.
    pub links: Vec<NoteOnLink>,
}

/// What became of a bookmark or task on one link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoteOnLink {
    /// The link; `None` on a target.
    pub link: Option<LinkName>,
    /// How far it is.
    pub state: NoteProgress,
    /// The command's exit status; `None` if it has none.
    pub exit_status: Option<u8>,
    /// When its place was reached, by the target's clock.
    pub began: Option<Timestamp>,
    /// When it was over, by the target's clock.
    pub ended: Option<Timestamp>,
    /// The end of the command's output; or why it was not run, or the bookmark not set.
    pub output: String,
}

/// The reply to what submits one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoteReply {
    /// It.
    pub note: NoteStatus,
    /// What will happen, in sentences.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// The reply to what lists them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoteList {
    /// [`crate::SCHEMA`].
    pub schema: u32,
    /// Them, oldest first.
    pub notes: Vec<NoteStatus>,
}
