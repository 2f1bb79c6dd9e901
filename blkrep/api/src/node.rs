//! Trust between nodes: requests and replies.

use crate::state::words;
use blkrep_types::NodeName;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;

words! {
    /// What a paired node may do here by remote control. Links need none.
    NodeRole, "role" {
        /// Nothing.
        None = "none",
        /// Read.
        Monitor = "monitor",
        /// Everything.
        Admin = "admin",
    }
}

/// Makes a one-time token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeInviteRequest {
    /// How long it can be used.
    pub valid_seconds: u64,
    /// What whoever uses it may do here.
    pub role: NodeRole,
}

/// A token was made.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInviteReply {
    /// [`crate::SCHEMA`].
    pub schema: u32,
    /// To be used once, on the other node.
    pub token: String,
    /// How long it can be used.
    pub valid_seconds: u64,
    /// Where this node listens.
    pub listen: String,
    /// This node's certificate.
    pub fingerprint: String,
}

impl fmt::Debug for NodeInviteReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeInviteReply({})", self.fingerprint)
    }
}

/// Uses a token of another node.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodePairRequest {
    /// Address and port of the node that made it.
    pub address: String,
    /// The token.
    pub token: String,
    /// What that node may do here.
    pub role: NodeRole,
}

impl fmt::Debug for NodePairRequest {
    /// The log shows requests, and must not show a token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodePairRequest({}, {})", self.address, self.role)
    }
}

/// A paired node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// Its name.
    pub name: NodeName,
    /// Its certificate: SHA-256.
    pub fingerprint: String,
    /// Where it listens.
    pub address: Option<String>,
    /// What it may do here.
    pub role: NodeRole,
    /// When it was paired.
    pub paired: Timestamp,
}

/// Every paired node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeList {
    /// [`crate::SCHEMA`].
    pub schema: u32,
    /// This node.
    pub node: NodeName,
    /// Its certificate; `None` before it was first needed.
    pub fingerprint: Option<String>,
    /// The others.
    pub nodes: Vec<NodeReport>,
}

/// Trusts a node no longer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeForgetRequest {
    /// The node.
    pub node: NodeName,
}

/// Changes this node's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeRotateRequest {
    /// Although nodes are not reached: they must be paired again.
    pub force: bool,
}

/// Gives a node another role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeRoleRequest {
    /// The node.
    pub node: NodeName,
    /// What it may do here.
    pub role: NodeRole,
}
