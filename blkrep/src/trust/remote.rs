//! Remote control: what a paired node may do here.

use super::roster::{Rights, Trust};
use crate::control::Role;
use blkrep_api::{ApiError, ErrorCode, EventId, NewEvent};
use blkrep_types::NodeName;
use blkrep_wire::tls::{Door, Keeper as _};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ServerConfig};
use std::net::SocketAddr;
use std::sync::Arc;

impl Trust {
    /// How connections for remote control are accepted; `None` if nobody was ever paired.
    #[must_use]
    pub fn accepting_commands(&self) -> Option<Arc<ServerConfig>> {
        let view = self.view();
        view.keys.as_ref().map(|keys| Arc::clone(&keys.controls))
    }

    /// Where a paired node listens, as far as it is known.
    ///
    /// # Errors
    /// It is not paired.
    pub fn address_of(&self, node: &NodeName) -> Result<Option<SocketAddr>, ApiError> {
        Ok(self.known(node)?.address)
    }

    /// How to connect to a node that is no link's target.
    ///
    /// # Errors
    /// This node has no key.
    pub fn connecting_to(&self, node: &NodeName, door: Door) -> Result<Arc<ClientConfig>, String> {
        self.connecting(self.pins_of(node), Some(door))
    }

    /// What the node with a certificate may do here.
    #[must_use]
    pub fn rights_of(&self, certificate: &CertificateDer<'_>) -> Option<Rights> {
        self.rights(&self.name_of(certificate)?)
    }

    /// A connection for remote control failed before it asked for anything.
    pub fn refused_command(&self, why: &str) {
        self.refusal(EventId::NodeRefused, format!("remote control from {why}"));
    }

    /// A node asked for more than its role allows.
    #[must_use]
    pub fn overstepped(&self, node: &NodeName, role: Role, needed: Role) -> ApiError {
        let (has, needs) = (role.as_str(), needed.as_str());
        let happened = format!("it needs the role {needs}; node {node} has {has} here");
        let event = NewEvent::new(EventId::RemoteRefused, happened.clone());
        self.tell(event);
        let action = format!(
            "on node {}: blkctl node role {node} {}",
            self.name,
            if needed == Role::Monitor {
                "monitor"
            } else {
                "admin"
            }
        );
        ApiError::new(ErrorCode::Forbidden, "request", happened, action)
    }
}
