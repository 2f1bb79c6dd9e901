//! What the control plane asks of the data plane.
//!
//! Owns the trait only. Calls are blocking and come from threads that may block; replies are
//! values. A long operation (a mirror) is begun by the call and watched through `status`.

use crate::events::Events;
use crate::settings::Settings;
use crate::trust::Trust;
use blkrep_api::{
    ApiError, AttachReply, AttachRequest, BookmarkRequest, CommandReply, ConnectReply,
    ConnectRequest, DemoteRequest, DetachRequest, DisconnectReply, DisconnectRequest, Finding,
    ForgetRequest, GroupStatus, LinkRequest, MirrorRequest, NoteList, NoteQuery, NoteReply,
    PromoteRequest, ReplaceRequest, StatusQuery, TargetRequest, TaskRequest, TransmitRequest,
};
use blkrep_types::{GroupName, NodeName};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;

/// What a node is made from.
#[derive(Debug)]
pub struct NodeContext {
    /// Its name.
    pub name: NodeName,
    /// Directory for what must outlive the daemon; exclusively this daemon's.
    pub state_dir: PathBuf,
    /// Directories that other nodes may place replicas in.
    pub replica_dirs: Vec<PathBuf>,
    /// Bound and listening; other nodes connect to it.
    pub listener: TcpListener,
    /// Whom it trusts.
    pub trust: Arc<Trust>,
    /// What is in force.
    pub settings: Arc<Settings>,
    /// Where to tell what happens.
    pub events: Events,
}

/// The data plane of a node, as its administrators see it.
///
/// Every method may be called from several threads at once. An error changes nothing.
pub trait Node: Send + Sync + 'static {
    /// The state of every group, or of the one asked for; `problems` may be left empty where the
    /// states say all: the control plane puts those into words.
    ///
    /// # Errors
    /// No such group.
    fn status(&self, query: &StatusQuery) -> Result<Vec<GroupStatus>, ApiError>;

    /// Serves a backing as a device.
    ///
    /// # Errors
    /// The backing, the name or the front end cannot be used.
    fn attach(&self, request: &AttachRequest) -> Result<AttachReply, ApiError>;

    /// Stops serving a volume.
    ///
    /// # Errors
    /// It is open, or does not exist.
    fn detach(&self, request: &DetachRequest) -> Result<CommandReply, ApiError>;

    /// Makes a link and starts to replicate.
    ///
    /// # Errors
    /// The target refuses, is not reached, or the request contradicts what is.
    fn connect(&self, request: &ConnectRequest) -> Result<ConnectReply, ApiError>;

    /// Ends links.
    ///
    /// # Errors
    /// No such link.
    fn disconnect(&self, request: &DisconnectRequest) -> Result<DisconnectReply, ApiError>;

    /// Drops what is remembered of a group.
    ///
    /// # Errors
    /// It is attached or connected.
    fn forget(&self, request: &ForgetRequest) -> Result<CommandReply, ApiError>;

    /// Changes the mode of links, or what happens when they are lost.
    ///
    /// # Errors
    /// No such link, or a value out of range.
    fn change_link(&self, request: &LinkRequest) -> Result<CommandReply, ApiError>;

    /// Starts, stops, pauses or resumes a mirror.
    ///
    /// # Errors
    /// The mirror's state does not allow it.
    fn mirror(&self, request: &MirrorRequest) -> Result<CommandReply, ApiError>;

    /// Starts, stops, pauses or resumes transmission.
    ///
    /// # Errors
    /// No such link.
    fn transmit(&self, request: &TransmitRequest) -> Result<CommandReply, ApiError>;

    /// Pauses or resumes applying.
    ///
    /// # Errors
    /// This node is not the group's target.
    fn target(&self, request: &TargetRequest) -> Result<CommandReply, ApiError>;

    /// Another disk holds a volume from now on; links stay.
    ///
    /// # Errors
    /// No such volume, a source's group is open, or the disk does not fit or is in use: then
    /// nothing was changed.
    fn replace(&self, request: &ReplaceRequest) -> Result<CommandReply, ApiError>;

    /// Gives this node the right to write a group.
    ///
    /// # Errors
    /// The source is alive, or the replica is not consistent.
    fn promote(&self, request: &PromoteRequest) -> Result<CommandReply, ApiError>;

    /// Stops serving a promoted group.
    ///
    /// # Errors
    /// It is not promoted, or open.
    fn demote(&self, request: &DemoteRequest) -> Result<CommandReply, ApiError>;

    /// Puts a task into the order of writes.
    ///
    /// # Errors
    /// It is no legal command, or would reach no target.
    fn submit_task(&self, request: &TaskRequest) -> Result<NoteReply, ApiError>;

    /// Puts a bookmark into the order of writes.
    ///
    /// # Errors
    /// It would reach no target.
    fn set_bookmark(&self, request: &BookmarkRequest) -> Result<NoteReply, ApiError>;

    /// Bookmarks and tasks that are remembered.
    ///
    /// # Errors
    /// No such group, or none of that id.
    fn notes(&self, query: &NoteQuery) -> Result<NoteList, ApiError>;

    /// Settings were changed: of one group, or of any. What applies live is to be read again.
    fn settings_changed(&self, group: Option<&GroupName>);

    /// What `doctor` should tell beside what it finds itself.
    fn findings(&self) -> Vec<Finding> {
        Vec::new()
    }

    /// True while the data plane's threads make progress; systemd's watchdog is fed with it.
    fn healthy(&self) -> bool {
        true
    }

    /// Stops in order: devices that can wait for a successor do. Called once, last.
    fn stop(&self);
}
