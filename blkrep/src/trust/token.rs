//! The one-time token: what one node says to another by way of their operator.
//!
//! Owns its form. It proves both sides to each other: it names the inviter's certificate, and holds a
//! secret that only whoever was given it knows.

use super::identity::{hex, unhex};
use blkrep_wire::tls::Fingerprint;
use std::fmt;

/// What a token begins with, version and all.
const PREFIX: &str = "blkrep1-";
const ID_BYTES: usize = 8;
const SECRET_BYTES: usize = 16;
const SUM_BYTES: usize = 4;
const TOKEN_BYTES: usize = ID_BYTES + SECRET_BYTES + 32 + SUM_BYTES;

/// Names an invitation.
pub(super) type InviteId = [u8; ID_BYTES];
/// Proves that one was invited.
pub(super) type InviteSecret = [u8; SECRET_BYTES];

/// A token.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) id: InviteId,
    pub(super) secret: InviteSecret,
    /// The inviter's certificate.
    pub(super) inviter: Fingerprint,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", hex(&self.id))
    }
}

impl Token {
    /// Its text, to be copied.
    pub(super) fn text(&self) -> String {
        let mut bytes = Vec::with_capacity(TOKEN_BYTES);
        bytes.extend_from_slice(&self.id);
        bytes.extend_from_slice(&self.secret);
        bytes.extend_from_slice(self.inviter.as_bytes());
        let sum = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&sum.to_le_bytes());
        format!("{PREFIX}{}", hex(&bytes))
    }

    /// Reads a text that a person copied. The error does not repeat it.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        let body = text.trim().strip_prefix(PREFIX);
        let body = body.ok_or("it does not begin as a token does")?;
        let bytes = unhex(body).ok_or("it has characters that no token has")?;
        if bytes.len() != TOKEN_BYTES {
            return Err("it is not whole");
        }
        let (content, sum) = bytes.split_at(TOKEN_BYTES - SUM_BYTES);
        if crc32fast::hash(content).to_le_bytes() != *sum {
            return Err("it was mistyped");
        }
        let (id, rest) = content.split_at(ID_BYTES);
        let (secret, inviter) = rest.split_at(SECRET_BYTES);
        let wrong = "it is not whole";
        Ok(Self {
            id: id.try_into().map_err(|_| wrong)?,
            secret: secret.try_into().map_err(|_| wrong)?,
            inviter: Fingerprint::from_bytes(inviter.try_into().map_err(|_| wrong)?),
        })
    }
}
