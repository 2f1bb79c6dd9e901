//! A node that serves nothing.
//!
//! Owns no volume and no group. It lets the control plane run by itself: settings, events and
//! `doctor` work, and every command about a volume or group says that there is none.

use super::node::Node;
use blkrep_api::{
    ApiError, AttachReply, AttachRequest, CommandReply, ConnectReply, ConnectRequest,
    DemoteRequest, DetachRequest, DisconnectReply, DisconnectRequest, ErrorCode, ForgetRequest,
    GroupStatus, MirrorRequest, PromoteRequest, StatusQuery, TargetRequest, TransmitRequest,
};
use blkrep_types::GroupName;

/// A node that serves nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct EmptyNode;

fn no_group<T>(name: &GroupName) -> Result<T, ApiError> {
    Err(ApiError::new(
        ErrorCode::NoSuchGroup,
        format!("group {name}"),
        "this node has no group of that name",
        "see its groups with: blkctl status",
    ))
}

impl Node for EmptyNode {
    fn status(&self, query: &StatusQuery) -> Result<Vec<GroupStatus>, ApiError> {
        query.group.as_ref().map_or(Ok(Vec::new()), no_group)
    }

    fn attach(&self, request: &AttachRequest) -> Result<AttachReply, ApiError> {
        Err(ApiError::new(
            ErrorCode::NotSupported,
            format!("volume {}", request.volume),
            "this daemon was started without a data plane",
            "start blkrepd with one",
        ))
    }

    fn detach(&self, request: &DetachRequest) -> Result<CommandReply, ApiError> {
        Err(ApiError::new(
            ErrorCode::NoSuchVolume,
            format!("volume {}", request.volume),
            "this node has no volume of that name",
            "see its volumes with: blkctl status",
        ))
    }

    fn connect(&self, request: &ConnectRequest) -> Result<ConnectReply, ApiError> {
        no_group(&request.group)
    }

    fn disconnect(&self, request: &DisconnectRequest) -> Result<DisconnectReply, ApiError> {
        no_group(&request.group)
    }

    fn forget(&self, request: &ForgetRequest) -> Result<CommandReply, ApiError> {
        no_group(&request.group)
    }

    fn mirror(&self, request: &MirrorRequest) -> Result<CommandReply, ApiError> {
        no_group(&request.group)
    }

    fn transmit(&self, request: &TransmitRequest) -> Result<CommandReply, ApiError> {
        no_group(&request.group)
    }

    fn target(&self, request: &TargetRequest) -> Result<CommandReply, ApiError> {
        no_group(&request.group)
    }

    fn promote(&self, request: &PromoteRequest) -> Result<CommandReply, ApiError> {
        no_group(&request.group)
    }

    fn demote(&self, request: &DemoteRequest) -> Result<CommandReply, ApiError> {
        no_group(&request.group)
    }

    fn settings_changed(&self, _group: Option<&GroupName>) {}

    fn stop(&self) {}
}
