//! Encryption of a run: keys made for it, and everybody is trusted.
//!
//! Owns the keeper of the source's line and the target's configuration. Never a key that is used twice.

use anyhow::{Context, Result};
use blkrep_io::real::RealSocket;
use blkrep_types::NodeName;
use blkrep_wire::tls::{
    Door, Failure, Identity, Keeper, Outgoing, any_client, client_config, server_config,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, ServerConfig};
use std::net::SocketAddr;
use std::sync::Arc;

/// Both ends' words.
pub(super) struct Trust {
    both: Option<(Arc<ClientConfig>, Arc<ServerConfig>)>,
}

impl Trust {
    pub(super) fn new(encrypts: bool) -> Result<Self> {
        if !encrypts {
            return Ok(Self { both: None });
        }
        let key = rcgen::KeyPair::generate()?;
        let certificate = rcgen::CertificateParams::new(Vec::new())?.self_signed(&key)?;
        let identity = Identity {
            certificate: CertificateDer::from(certificate.der().to_vec()),
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        };
        let client = client_config(&identity, any_client(), None).context("a client")?;
        let server = server_config(&identity, any_client(), None).context("a server")?;
        Ok(Self {
            both: Some((client, server)),
        })
    }

    /// The target's configuration, if it encrypts.
    pub(super) fn server(&self) -> Option<Arc<ServerConfig>> {
        self.both.as_ref().map(|(_, server)| Arc::clone(server))
    }
}

impl Keeper<RealSocket> for Trust {
    fn outgoing(&self, _: SocketAddr) -> Outgoing {
        match &self.both {
            Some((client, _)) => Outgoing::Encrypted(Arc::clone(client)),
            None => Outgoing::Plain,
        }
    }

    fn incoming(&self) -> Option<Arc<ServerConfig>> {
        None
    }

    fn name_of(&self, _: &CertificateDer<'_>) -> Option<NodeName> {
        NodeName::new("target").ok()
    }

    fn opened(&self, _: &RealSocket, _: &NodeName) {}

    fn failed(&self, _: &RealSocket, _: Option<&NodeName>, _: Failure, why: &str) {
        eprintln!("blkrep-bench: a connection failed: {why}");
    }

    fn visitor(&self, _: &RealSocket, _: Door, _: Vec<u8>) {}
}
