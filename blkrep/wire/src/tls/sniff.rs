//! The first bytes of an accepted connection: what is it?
//!
//! Owns them until that is known. They are of a stranger: their number is bounded, and nothing but
//! rustls' reader of a client's first message looks into them.

use super::config::Protocol;
use super::keeper::Door;
use super::words::explain;
use blkrep_io::{Region, Slice};
use blkrep_types::Errno;
use rustls::server::Acceptor;
use std::fmt;

/// A first message is one record, of a kind that this byte says.
const HANDSHAKE: u8 = 0x16;
/// Bytes of a first message: one record, and some to spare.
const SEEN_BYTES_MAX: usize = (16 << 10) + 512;

/// What a connection is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Not known yet.
    Nothing,
    /// No TLS.
    Plain,
    /// A link, encrypted.
    Link,
    /// Something else, encrypted.
    Visitor(Door),
    /// Neither.
    Rubbish(String),
}

/// The beginning of a connection.
pub(super) struct Sniff {
    bytes: Slice,
    len: usize,
    acceptor: Acceptor,
}

impl fmt::Debug for Sniff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sniff({} bytes)", self.len)
    }
}

impl Sniff {
    /// # Errors
    /// There is no memory.
    pub(super) fn new() -> Result<Self, Errno> {
        Ok(Self {
            bytes: Region::anonymous(SEEN_BYTES_MAX)?.whole(),
            len: 0,
            acceptor: Acceptor::default(),
        })
    }

    /// Where the next bytes go, no more than `limit`.
    pub(super) fn space(&self, limit: usize) -> Slice {
        let end = SEEN_BYTES_MAX.min(self.len + limit);
        self.bytes.part(self.len..end)
    }

    /// What has come so far.
    pub(super) fn seen(&self) -> Slice {
        self.bytes.part(0..self.len)
    }

    /// So many bytes came into the last [`Sniff::space`].
    pub(super) fn received(&mut self, count: usize) -> Found {
        let new = self.bytes.part(self.len..self.len + count);
        self.len += count;
        if self.seen().with(|bytes| bytes[0]) != HANDSHAKE {
            return Found::Plain;
        }
        let read = new.with(|mut bytes| {
            while !bytes.is_empty() {
                match self.acceptor.read_tls(&mut bytes) {
                    Ok(count) if count > 0 => {}
                    Ok(_) | Err(_) => return false,
                }
            }
            true
        });
        let too_long = || Found::Rubbish("a first message without end".to_owned());
        match self.acceptor.accept() {
            Ok(None) if !read || self.len == SEEN_BYTES_MAX => too_long(),
            Ok(None) => Found::Nothing,
            Err((error, _)) => Found::Rubbish(explain(&error)),
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                let mut names = hello.alpn().into_iter().flatten();
                names.find_map(what).unwrap_or_else(|| {
                    Found::Rubbish("TLS that asks for none of blkrep's protocols".to_owned())
                })
            }
        }
    }
}

fn what(name: &[u8]) -> Option<Found> {
    match name {
        Protocol::LINK => Some(Found::Link),
        Protocol::CONTROL => Some(Found::Visitor(Door::Control)),
        Protocol::PAIR => Some(Found::Visitor(Door::Pair)),
        _ => None,
    }
}
