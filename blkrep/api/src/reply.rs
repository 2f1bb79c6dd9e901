//! What the daemon answers to commands that change something.

use crate::FrontendKind;
use blkrep_types::{ByteLen, LinkName};
use serde::{Deserialize, Serialize};

/// Versions of a daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionReply {
    /// [`crate::SCHEMA`].
    pub schema: u32,
    /// Name of the program.
    pub program: String,
    /// Its version.
    pub version: String,
    /// The node's name.
    pub node: blkrep_types::NodeName,
    /// Where it listens for other nodes; `None` if it does not.
    pub listen: Option<String>,
}

/// A volume is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachReply {
    /// What an application opens: `/dev/ublkb0`, `/dev/loop0`, `nbd+unix:///…`.
    pub device: String,
    /// What serves it; never `auto`.
    pub frontend: FrontendKind,
    /// Why `auto` picked that, or what this front end cannot promise; in sentences.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Size of the volume.
    pub size_bytes: ByteLen,
}

/// A link was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectReply {
    /// Its name.
    pub link: LinkName,
    /// What will happen, in sentences.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// Links were ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DisconnectReply {
    /// Their names.
    pub links: Vec<LinkName>,
    /// Changes are tracked further, so that a reconnect needs only a difference mirror.
    pub tracking: bool,
}

/// A command was carried out, or was begun if it takes long.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandReply {
    /// What was done, or what happens now, in sentences.
    #[serde(default)]
    pub notes: Vec<String>,
}

impl CommandReply {
    /// A reply of one sentence.
    #[must_use]
    pub fn note(text: impl Into<String>) -> Self {
        Self {
            notes: vec![text.into()],
        }
    }
}
