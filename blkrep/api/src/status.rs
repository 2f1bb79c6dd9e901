//! The reply to `status`: everything on orthogonal axes, and what is wrong in words.
//!
//! Owns the JSON of `blkctl status --json`. Fields of sizes end in `_bytes`, of times in `_ms`.

use crate::{
    CompressionState, ConnectionState, DataState, FrontendKind, MirrorKind, MirrorState, Mode,
    OnLoss, ProtectionState, ReplicationState, Role, SCHEMA, ScheduleHold, TargetState,
    TransmitState, VolumeState,
};
use blkrep_types::{ByteLen, Generation, GroupName, LinkName, NodeName, VolumeName};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::num::NonZeroU64;

/// The state of a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// [`SCHEMA`] of the daemon that answered.
    pub schema: u32,
    /// Its name.
    pub node: NodeName,
    /// Every group it is source or target of, by name.
    pub groups: Vec<GroupStatus>,
    /// What concerns the whole node.
    #[serde(default)]
    pub problems: Vec<Problem>,
}

impl Status {
    /// A status of `node` with nothing wrong and these groups.
    #[must_use]
    pub fn new(node: NodeName, groups: Vec<GroupStatus>) -> Self {
        Self {
            schema: SCHEMA,
            node,
            groups,
            problems: Vec::new(),
        }
    }
}

/// The state of one group on one node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// Its name.
    pub name: GroupName,
    /// What this node is for it.
    pub role: Role,
    /// The history its data belongs to; all zeroes before the first.
    pub generation: Generation,
    /// Its volumes in their order.
    pub volumes: Vec<VolumeStatus>,
    /// Its links outward.
    pub links: Vec<LinkStatus>,
    /// How its writers are slowed; `None` if they are not and have not been.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttle: Option<ThrottleStatus>,
    /// The link whose target serves the group, because its backing is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served_by: Option<LinkName>,
    /// The receiving side, while or after this node is its target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<TargetStatus>,
    /// What is wrong, what it means, what to do; the worst first.
    #[serde(default)]
    pub problems: Vec<Problem>,
}

/// The state of one volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Its name.
    pub name: VolumeName,
    /// What an application opens: a device path or an NBD address. Empty while none serves it.
    pub device: String,
    /// What serves it; `None` on a target that was not promoted.
    pub frontend: Option<FrontendKind>,
    /// The block device or file with its data.
    pub backing: String,
    /// Its size.
    pub size_bytes: ByteLen,
    /// What its device does.
    pub state: VolumeState,
    /// Requests get no writes.
    #[serde(default)]
    pub read_only: bool,
    /// Gone after a reboot.
    #[serde(default)]
    pub transient: bool,
}

/// The state of one link, seen from its source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LinkStatus {
    /// Its name, unique in its group.
    pub name: LinkName,
    /// Address and port of the target.
    pub peer: String,
    /// When the application gets its completion.
    pub mode: Mode,
    /// What happens to writes when the link is lost, in a mode that asks for an acknowledgement.
    #[serde(default)]
    pub on_loss: OnLoss,
    /// How long they wait for it before, in milliseconds.
    #[serde(default)]
    pub loss_timeout_ms: u64,
    /// What completed writes may rely on.
    #[serde(default)]
    pub protection: ProtectionState,
    /// The state of the connection.
    pub connection: ConnectionState,
    /// Whether writes are sent.
    pub transmit: TransmitState,
    /// The mirror.
    pub mirror: MirrorStatus,
    /// How the link keeps up.
    pub replication: ReplicationState,
    /// What the target's data is worth, as it said last.
    pub data_state: DataState,
    /// Age of the oldest write that is not durable on the target; 0 when there is none, `None`
    /// when it is not known (the log overflowed).
    pub lag_ms: Option<u64>,
    /// What waits in the log.
    pub queue: QueueStatus,
    /// Bytes in extents that may differ and that the log does not hold.
    pub dirty_bytes: ByteLen,
    /// Bytes of writes and mirror blocks sent since the link was made.
    pub sent_bytes: ByteLen,
    /// What they took on the wire, frames and all.
    pub sent_compressed_bytes: ByteLen,
    /// Bytes a second that it and those that share the limit may send; `None`: no limit.
    #[serde(default)]
    pub bandwidth_limit: Option<NonZeroU64>,
    /// What the link does about compression.
    #[serde(default)]
    pub compression: CompressionState,
    /// Connections that it sends over now; none while both ends do not talk.
    #[serde(default)]
    pub connections: u16,
    /// How many it is to have.
    #[serde(default)]
    pub connections_wanted: u16,
    /// Times that one of several was lost, since its driver began.
    #[serde(default)]
    pub connections_lost: u64,
    /// How its connections share the line; `None` before the first, and of one that sends nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub congestion_control: Option<String>,
    /// Why that is not what was set: in words and, after `; `, what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub congestion_refused: Option<String>,
    /// What its schedule does; `None` if it has none, or one that is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<ScheduleStatus>,
    /// What a real link would need, of one that sends nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub simulated: Option<SimulatedStatus>,
    /// The paired node that is proven to be at the other end; `None` without encryption.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proven: Option<NodeName>,
    /// What applying does at the target; `None` while both ends do not talk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_status: Option<TargetState>,
    /// Received there and not yet freed from the journal; `None` while both ends do not talk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_journal_bytes: Option<ByteLen>,
    /// Since when both ends talk.
    pub connected_since: Option<Timestamp>,
    /// Why the peer or this node refused, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
    /// Why the last attempt failed, in words, while both ends do not talk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// How writers of a group are slowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThrottleStatus {
    /// What a write is delayed by now, in microseconds.
    pub delay_us: u64,
    /// Writes that were delayed since the group was opened.
    pub delayed_writes: u64,
}

/// What the schedule of a link does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleStatus {
    /// Why nothing is transmitted; `None` while a session runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_by: Option<ScheduleHold>,
    /// Since when the session runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_since: Option<Timestamp>,
    /// Bytes the session has sent, frames and all.
    pub session_bytes: ByteLen,
}

/// What a real link would need, by what a simulated one has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SimulatedStatus {
    /// How long it was measured.
    pub span_ms: u64,
    /// Bytes of writes.
    pub write_bytes: ByteLen,
    /// What they would have taken on the wire.
    pub write_compressed_bytes: ByteLen,
    /// Bytes of mirror blocks.
    pub mirror_bytes: ByteLen,
    /// What they would have taken on the wire.
    pub mirror_compressed_bytes: ByteLen,
    /// Writes on the wire, a second, on average.
    pub average_bytes: ByteLen,
    /// The same in the busiest second.
    pub peak_1s_bytes: ByteLen,
    /// A second, in the busiest ten.
    pub peak_10s_bytes: ByteLen,
    /// A second, in the busiest sixty.
    pub peak_60s_bytes: ByteLen,
    /// The line that queue and time are about: `link.simulated-rate`, a second.
    pub rate_bytes: ByteLen,
    /// The longest queue that the writes would have made before that line.
    pub queue_bytes: ByteLen,
    /// How long the mirror would have taken on it.
    pub mirror_ms: u64,
}

/// The state of one mirror.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MirrorStatus {
    /// What it does.
    pub state: MirrorState,
    /// What it compares and sends; `None` if none ran yet.
    pub kind: Option<MirrorKind>,
    /// How much of its work is done, 0 to 100.
    pub percent: f64,
    /// Data sent.
    pub bytes_sent: ByteLen,
    /// Data found equal, or zero, and not sent.
    pub bytes_skipped: ByteLen,
    /// Data still to look at.
    pub bytes_remaining: ByteLen,
    /// Writes dirty extents faster than it sends them: it does not come to an end while they go on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub not_converging: bool,
    /// It waits until the target's journal has room.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held_back: bool,
}

impl MirrorStatus {
    /// No mirror runs and none ran.
    #[must_use]
    pub const fn idle() -> Self {
        Self {
            state: MirrorState::Idle,
            kind: None,
            percent: 100.0,
            bytes_sent: ByteLen::ZERO,
            bytes_skipped: ByteLen::ZERO,
            bytes_remaining: ByteLen::ZERO,
            not_converging: false,
            held_back: false,
        }
    }
}

/// What waits in a link's log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStatus {
    /// Bytes held in memory.
    pub memory_bytes: ByteLen,
    /// Bytes held in disk segments.
    pub disk_bytes: ByteLen,
    /// Writes in both.
    pub ops: u64,
    /// Bytes of memory there are; the links of a group share them.
    #[serde(default)]
    pub memory_max_bytes: ByteLen,
    /// Bytes that the disk queue takes at most, shared in the same way; `None`: there is none.
    #[serde(default)]
    pub disk_max_bytes: Option<ByteLen>,
}

/// The receiving side of a group, seen from its target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TargetStatus {
    /// Name of the source, once it connected.
    pub source: Option<NodeName>,
    /// The paired node that is proven to be that source; `None` without encryption.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proven: Option<NodeName>,
    /// The source is connected now.
    pub connected: bool,
    /// Connections that it sends over.
    #[serde(default)]
    pub connections: u16,
    /// Bytes received on some of them whose turn has not come: what came before is under way on another.
    #[serde(default)]
    pub out_of_order_bytes: ByteLen,
    /// When the source was last heard.
    pub last_heard: Option<Timestamp>,
    /// What the data is worth.
    pub data_state: DataState,
    /// What applying does.
    pub status: TargetState,
    /// Received and not yet freed from the journal.
    pub journal_bytes: ByteLen,
    /// What the journal can hold.
    pub journal_limit_bytes: ByteLen,
    /// What the replica's disk does not take is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retrying: Option<RetryingStatus>,
    /// Bytes in extents known to differ from the source.
    pub dirty_bytes: ByteLen,
    /// The command of the task that runs; nothing is applied meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// Bookmarks that are remembered.
    #[serde(default)]
    pub bookmarks: u64,
}

/// Why a replica's disk takes no writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RetryReason {
    /// It has no space.
    Full,
    /// Something else has it.
    Busy,
    /// It is read-only, or rights are missing.
    Denied,
    /// Anything else; see `error`.
    Unknown,
}

/// Writes that a replica's disk did not take and that are tried again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryingStatus {
    /// Why.
    pub why: RetryReason,
    /// Where the replica's volume is.
    pub path: String,
    /// What the kernel said last.
    pub error: String,
    /// When the first one failed.
    pub since: Timestamp,
    /// How often writes failed since.
    pub failures: u64,
}

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemLevel {
    /// Someone asked for it, or it passes by itself.
    Note,
    /// Protection is reduced.
    Warning,
    /// Nothing is protected, or the application gets errors.
    Error,
}

/// What is wrong, what it means, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// How bad it is.
    pub level: ProblemLevel,
    /// What is wrong, with the name of what it concerns.
    pub what: String,
    /// What that means for the data.
    pub meaning: String,
    /// What to do next; a command where one helps.
    pub action: String,
}

impl Problem {
    /// A problem in words.
    #[must_use]
    pub fn new(
        level: ProblemLevel,
        what: impl Into<String>,
        meaning: impl Into<String>,
        action: impl Into<String>,
    ) -> Self {
        Self {
            level,
            what: what.into(),
            meaning: meaning.into(),
            action: action.into(),
        }
    }
}
