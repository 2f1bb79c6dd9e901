//! Why a handshake or a stream failed, in words.

use rustls::{AlertDescription, CertificateError, Error};

/// True if the other end said that it does not accept this one.
pub(super) const fn is_refusal(error: &Error) -> bool {
    matches!(
        error,
        Error::AlertReceived(
            AlertDescription::AccessDenied | AlertDescription::CertificateRequired
        )
    )
}

/// What happened and, after `; `, what to do.
#[must_use]
pub fn explain(error: &Error) -> String {
    let broken = "look for what changes bytes between the two nodes, if it repeats";
    match error {
        Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure) => {
            "its certificate is not one that is pinned here: the node is not paired, or it has \
             another key now; compare `blkctl node list` on both, and pair them if they belong \
             together"
                .to_owned()
        }
        Error::AlertReceived(AlertDescription::AccessDenied) => {
            "it does not accept this node's certificate: the nodes are not paired there, or this \
             node has another key now; compare `blkctl node list` on both, and pair them if they \
             belong together"
                .to_owned()
        }
        Error::NoCertificatesPresented
        | Error::AlertReceived(AlertDescription::CertificateRequired) => {
            "no certificate was shown; connect with blkrepd or blkctl, from a paired node"
                .to_owned()
        }
        Error::DecryptError | Error::AlertReceived(AlertDescription::BadRecordMac) => {
            format!("a record was changed on its way and was not used; {broken}")
        }
        Error::InvalidMessage(_) | Error::InappropriateMessage { .. } => {
            format!("what came is no legal TLS ({error}) and was not used; {broken}")
        }
        Error::NoApplicationProtocol
        | Error::AlertReceived(AlertDescription::NoApplicationProtocol) => {
            "both sides share no protocol; upgrade the older of the two nodes".to_owned()
        }
        other => format!("the encrypted connection failed: {other}; {broken}"),
    }
}
