//! A node's key and its certificate, which it makes itself.

use blkrep_types::NodeName;
use blkrep_wire::tls::Identity;
use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

/// An identity as it is written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OwnKey {
    /// The certificate, DER in hexadecimal.
    pub(super) certificate: String,
    /// Its key, PKCS 8 in hexadecimal.
    key: Secret,
}

/// Text that is shown to nobody.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl OwnKey {
    /// A new key with its certificate. Names and times in it are for people who look at it: what
    /// counts is its fingerprint.
    ///
    /// # Errors
    /// There is no randomness.
    pub(super) fn make(node: &NodeName) -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        let common = format!("blkrep node {node}");
        params.distinguished_name.push(DnType::CommonName, common);
        let certificate = params.self_signed(&key)?;
        Ok(Self {
            certificate: hex(certificate.der()),
            key: Secret(hex(&key.serialize_der())),
        })
    }

    /// As TLS uses it.
    ///
    /// # Errors
    /// What was written down is no key.
    pub(super) fn identity(&self) -> anyhow::Result<Identity> {
        let bytes = |text: &str| {
            unhex(text).ok_or_else(|| anyhow::anyhow!("the node's key is not written legally"))
        };
        Ok(Identity {
            certificate: CertificateDer::from(bytes(&self.certificate)?),
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(bytes(&self.key.0)?)),
        })
    }
}

/// Bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of a text in hexadecimal.
pub(super) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let byte = |pair: &[u8]| {
        let pair = std::str::from_utf8(pair).ok()?;
        u8::from_str_radix(pair, 16).ok()
    };
    digits.chunks(2).map(byte).collect()
}
