//! The control API: what `blkctl` and other clients say to `blkrepd`, and what it answers.
//!
//! Owns the JSON forms of requests, replies, states, errors, events and settings, the paths they
//! travel on, and the catalogues of error codes and events. Values enter and leave as serde types.
//! Never decides anything, never opens a socket or a file.
#![forbid(unsafe_code)]

mod doctor;
mod error;
mod event;
mod node;
mod note;
mod reply;
mod request;
pub mod route;
mod setting;
mod state;
mod status;

pub use blkrep_types::{DataState, MirrorKind, Mode, OnLoss};
pub use doctor::{DoctorReport, Finding, FindingLevel};
pub use error::{ApiError, ErrorBody, ErrorCode, errors_markdown};
pub use event::{EventId, EventPage, EventRecord, FollowLine, NewEvent, Severity, events_markdown};
pub use node::{
    NodeForgetRequest, NodeInviteReply, NodeInviteRequest, NodeList, NodePairRequest, NodeReport,
    NodeRole, NodeRoleRequest, NodeRotateRequest,
};
pub use note::{
    BookmarkRequest, NoteList, NoteOnLink, NoteProgress, NoteQuery, NoteReply, NoteSort,
    NoteStatus, TaskRequest,
};
pub use reply::{AttachReply, CommandReply, ConnectReply, DisconnectReply, VersionReply};
pub use request::{
    AttachRequest, ConnectRequest, DemoteRequest, DetachRequest, DisconnectRequest, EventQuery,
    ForgetRequest, GetQuery, LinkRequest, MirrorAction, MirrorRequest, PromoteRequest,
    ReplaceRequest, SetRequest, StatusQuery, TargetAction, TargetRequest, TransmitAction,
    TransmitRequest,
};
pub use setting::{SettingAssignment, SettingOrigin, SettingReply, SettingReport};
pub use state::{
    CompressionState, ConnectionState, FrontendKind, MirrorState, ProtectionState,
    ReplicationState, Role, ScheduleHold, TargetState, TransmitState, VolumeState,
};
pub use status::{
    GroupStatus, LinkStatus, MirrorStatus, Problem, ProblemLevel, QueueStatus, RetryReason,
    RetryingStatus, ScheduleStatus, SimulatedStatus, Status, TargetStatus, ThrottleStatus,
    VolumeStatus,
};

/// Version of the JSON forms. A field may be added without a new number; none is removed, renamed
/// or given another meaning under the same number.
pub const SCHEMA: u32 = 1;

/// Header of a request that the daemon passes on to a paired node of this name.
pub const NODE_HEADER: &str = "x-blkrep-node";
/// Header with the address of that node, if it is not the one it was paired with.
pub const ADDRESS_HEADER: &str = "x-blkrep-address";

/// Where a daemon listens for its administrators unless told otherwise.
pub const SOCKET_DEFAULT: &str = "/run/blkrep/control.sock";
