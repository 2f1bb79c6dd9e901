//! Paths of the control API. `GET` reads, `POST` changes something.
//!
//! Owns the names only; daemon and clients both take them from here, so they cannot differ.

/// `GET`: versions of the daemon and of the API.
pub const VERSION: &str = "/v1/version";
/// `GET`: the state of every group, or of one.
pub const STATUS: &str = "/v1/status";
/// `POST`: serve a backing as a device.
pub const ATTACH: &str = "/v1/attach";
/// `POST`: stop serving it.
pub const DETACH: &str = "/v1/detach";
/// `POST`: create a link and start to replicate.
pub const CONNECT: &str = "/v1/connect";
/// `POST`: change a link's mode and what happens when it is lost.
pub const LINK: &str = "/v1/link";
/// `POST`: end a link.
pub const DISCONNECT: &str = "/v1/disconnect";
/// `POST`: drop what the node remembers of a group.
pub const FORGET: &str = "/v1/forget";
/// `POST`: start, stop, pause or resume a mirror.
pub const MIRROR: &str = "/v1/mirror";
/// `POST`: start, stop, pause or resume transmission.
pub const TRANSMIT: &str = "/v1/transmit";
/// `POST`: pause or resume applying on a target.
pub const TARGET: &str = "/v1/target";
/// `POST`: give a target the right to write.
pub const PROMOTE: &str = "/v1/promote";
/// `POST`: put another disk in the place of a volume's.
pub const REPLACE: &str = "/v1/replace";
/// `POST`: stop serving a promoted group.
pub const DEMOTE: &str = "/v1/demote";
/// `POST`: have targets run a command at this place of the order of writes.
pub const TASK: &str = "/v1/task";
/// `POST`: give this place of the order of writes a name.
pub const BOOKMARK: &str = "/v1/bookmark";
/// `GET`: bookmarks and tasks, and what became of them.
pub const NOTES: &str = "/v1/notes";
/// `GET`: settings with value, default, range and unit.
pub const SETTINGS: &str = "/v1/settings";
/// `POST`: change settings.
pub const SET: &str = "/v1/set";
/// `GET`: one page of events.
pub const EVENTS: &str = "/v1/events";
/// `GET`: events as they happen, one JSON object a line.
pub const EVENTS_FOLLOW: &str = "/v1/events/follow";
/// `GET`: what the node's surroundings lack.
pub const DOCTOR: &str = "/v1/doctor";
/// `GET`: this node's certificate and the nodes it is paired with.
pub const NODES: &str = "/v1/nodes";
/// `POST`: make a one-time token.
pub const NODE_INVITE: &str = "/v1/nodes/invite";
/// `POST`: use a token of another node.
pub const NODE_PAIR: &str = "/v1/nodes/pair";
/// `POST`: trust a node no longer.
pub const NODE_FORGET: &str = "/v1/nodes/forget";
/// `POST`: give a node another role.
pub const NODE_ROLE: &str = "/v1/nodes/role";
/// `POST`: change this node's key.
pub const NODE_ROTATE: &str = "/v1/nodes/rotate";
