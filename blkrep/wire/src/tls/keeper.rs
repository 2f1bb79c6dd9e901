//! Who decides on connections.

use super::config::Protocol;
use blkrep_types::NodeName;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ServerConfig};
use std::net::SocketAddr;
use std::sync::Arc;

/// How a connection is made.
#[derive(Debug)]
pub enum Outgoing {
    /// As it is, with nothing but checksums.
    Plain,
    /// Encrypted, to whom the configuration accepts.
    Encrypted(Arc<ClientConfig>),
    /// Not at all: why, and after `; ` what to do.
    Refused(String),
}

/// How a connection failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// One end does not accept the other.
    Refused,
    /// What came from a proven node was changed on its way.
    Broken,
}

/// What a visitor that is no link wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// The control API.
    Control,
    /// To be paired.
    Pair,
}

impl Door {
    /// The protocol's name on the wire.
    #[must_use]
    pub const fn protocol(self) -> &'static [u8] {
        match self {
            Self::Control => Protocol::CONTROL,
            Self::Pair => Protocol::PAIR,
        }
    }
}

/// Knows whom this node trusts. Called on data-plane threads: it must not block.
pub trait Keeper<S>: Send + Sync + 'static {
    /// How to connect to `peer`.
    fn outgoing(&self, peer: SocketAddr) -> Outgoing;

    /// How connections of other nodes' links are accepted; `None` if nobody was ever paired.
    fn incoming(&self) -> Option<Arc<ServerConfig>>;

    /// The node that a certificate is pinned for.
    fn name_of(&self, certificate: &CertificateDer<'_>) -> Option<NodeName>;

    /// A connection is proven to be with `node`. It ends when the node is trusted no longer.
    fn opened(&self, socket: &S, node: &NodeName);

    /// A connection failed. `node` is who was proven to be there, if somebody was.
    fn failed(&self, socket: &S, node: Option<&NodeName>, failure: Failure, why: &str);

    /// Somebody came who is no link: the connection is the keeper's from now on, with what it said
    /// so far.
    fn visitor(&self, socket: &S, door: Door, seen: Vec<u8>);
}
