//! What a client asks for.
//!
//! Owns the JSON of requests. Unknown fields are refused: an older daemon must not carry out half
//! of what a newer client means. Names and sizes are checked while they are parsed.

use crate::{EventId, FrontendKind, MirrorKind, Mode, OnLoss, SettingAssignment, Severity};
use blkrep_types::{ByteLen, ByteOffset, ExtentSize, GroupName, LinkName, VolumeName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// `status`: which groups.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatusQuery {
    /// Only this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
}

/// `attach`: serve a backing as a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachRequest {
    /// Name of the volume.
    pub volume: VolumeName,
    /// A block device or a file; absolute.
    pub backing: PathBuf,
    /// Group it belongs to; one of its own name if `None`.
    #[serde(default)]
    pub group: Option<GroupName>,
    /// What serves it.
    pub frontend: FrontendKind,
    /// Number of the device; any free one if `None`.
    #[serde(default)]
    pub device_id: Option<u32>,
    /// First byte of the backing that belongs to the volume.
    #[serde(default)]
    pub offset: ByteOffset,
    /// Bytes that belong to it; up to the end if `None`.
    #[serde(default)]
    pub size: Option<ByteLen>,
    /// Grain of its dirty maps; the setting's value if `None`.
    #[serde(default)]
    pub extent_size: Option<ExtentSize>,
    /// Refuse writes.
    #[serde(default)]
    pub read_only: bool,
    /// Forget it at the next start of the host.
    #[serde(default)]
    pub transient: bool,
}

/// `detach`: stop serving a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetachRequest {
    /// Its name.
    pub volume: VolumeName,
    /// Even while it is open: its users get errors.
    #[serde(default)]
    pub force: bool,
}

/// `connect`: create a link, or connect an ended one again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectRequest {
    /// The group.
    pub group: GroupName,
    /// `ADDR:PORT` of the target.
    pub to: String,
    /// Name of the link; chosen by the daemon if `None`.
    #[serde(default)]
    pub link: Option<LinkName>,
    /// Where each volume goes on the target.
    #[serde(default)]
    pub map: BTreeMap<VolumeName, PathBuf>,
    /// When the application gets its completion; as before, or `async`, if `None`.
    #[serde(default)]
    pub mode: Option<Mode>,
    /// What happens to writes when the link is lost; as before, or `continue`, if `None`.
    #[serde(default)]
    pub on_loss: Option<OnLoss>,
    /// How long they wait for it before, in milliseconds; as before, or 2000, if `None`.
    #[serde(default)]
    pub loss_timeout_ms: Option<u32>,
    /// Copy nothing that is there already: both ends hold the same, which is checked by digest.
    #[serde(default)]
    pub no_mirror: bool,
    /// What to mirror; what the maps allow if `None`.
    #[serde(default)]
    pub mirror: Option<MirrorKind>,
    /// Replace whatever the target's path holds.
    #[serde(default)]
    pub overwrite: bool,
    /// Trust the maps though the backing was unwatched.
    #[serde(default)]
    pub trust_map: bool,
    /// The caller has confirmed what will be overwritten.
    #[serde(default)]
    pub confirmed: bool,
}

/// `link`: change how a link is used; what is `None` stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkRequest {
    /// The group.
    pub group: GroupName,
    /// The link; every one if `None`.
    #[serde(default)]
    pub link: Option<LinkName>,
    /// When the application gets its completion.
    #[serde(default)]
    pub mode: Option<Mode>,
    /// What happens to writes when the link is lost.
    #[serde(default)]
    pub on_loss: Option<OnLoss>,
    /// How long they wait for it before, in milliseconds.
    #[serde(default)]
    pub loss_timeout_ms: Option<u32>,
}

/// `replace`: another disk holds a volume from now on; links stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplaceRequest {
    /// The group.
    pub group: GroupName,
    /// The volume.
    pub volume: VolumeName,
    /// What holds it from now on; the path of before, if another disk is there now.
    pub path: PathBuf,
    /// On a target: replace whatever that holds.
    #[serde(default)]
    pub overwrite: bool,
}

/// `disconnect`: end a link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DisconnectRequest {
    /// The group.
    pub group: GroupName,
    /// The link; the only one if `None`.
    #[serde(default)]
    pub link: Option<LinkName>,
    /// Track no longer: the next connect needs a full or checksum mirror.
    #[serde(default)]
    pub forget: bool,
}

/// `forget`: drop what the node remembers of a group that is neither attached nor connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForgetRequest {
    /// The group.
    pub group: GroupName,
}

/// What to do with a mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MirrorAction {
    /// Begin.
    Start,
    /// End; the position is given up, the dirty extents are kept.
    Stop,
    /// Hold; the position is kept.
    Pause,
    /// Go on.
    Resume,
}

/// `mirror`: bring a target to equality.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MirrorRequest {
    /// The group.
    pub group: GroupName,
    /// The link; every one if `None`.
    #[serde(default)]
    pub link: Option<LinkName>,
    /// What to do.
    pub action: MirrorAction,
    /// What to compare and send; for `start` only.
    #[serde(default)]
    pub kind: Option<MirrorKind>,
}

/// What to do with transmission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TransmitAction {
    /// Send, after `stop`.
    Start,
    /// Send nothing, track changes as dirty extents.
    Stop,
    /// Send nothing, keep writes in the log.
    Pause,
    /// Send, after `pause`.
    Resume,
}

/// `transmit`: whether writes are sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransmitRequest {
    /// The group.
    pub group: GroupName,
    /// The link; every one if `None`.
    #[serde(default)]
    pub link: Option<LinkName>,
    /// What to do.
    pub action: TransmitAction,
}

/// What to do with applying.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TargetAction {
    /// Stop applying; the journal goes on receiving.
    Pause,
    /// Apply again.
    Resume,
}

/// `target`: whether a target applies what it received.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetRequest {
    /// The group.
    pub group: GroupName,
    /// What to do.
    pub action: TargetAction,
}

/// `promote`: give a target the right to write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromoteRequest {
    /// The group.
    pub group: GroupName,
    /// Although the source is alive.
    #[serde(default)]
    pub force: bool,
    /// Although the replica is not consistent.
    #[serde(default)]
    pub inconsistent: bool,
    /// What serves its volumes; `auto` if `None`.
    #[serde(default)]
    pub frontend: Option<FrontendKind>,
}

/// `demote`: stop serving a promoted group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DemoteRequest {
    /// The group.
    pub group: GroupName,
}

/// `get`: which settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetQuery {
    /// Only this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// As they hold for this group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
}

/// `set`: change settings, all or none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetRequest {
    /// For this group only; for the whole node if `None`.
    #[serde(default)]
    pub group: Option<GroupName>,
    /// What to change.
    pub assignments: Vec<SettingAssignment>,
}

/// `events`: which of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventQuery {
    /// Only those after this cursor; from the oldest kept if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// The newest so many of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Only those of at least this severity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub severity: Option<Severity>,
    /// Only those of this group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
    /// Only those with this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<EventId>,
}
