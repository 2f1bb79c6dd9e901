//! Pairing: two nodes that were told of each other by their operator pin each other's certificates.
//!
//! Owns the conversation, a line of JSON each way inside TLS. The joiner accepts only the certificate
//! that its token names, so what it says is heard by the inviter alone; the inviter believes the
//! joiner's certificate because it came with the token's secret. Each line is bounded, and so is the
//! time.

use super::identity::{hex, unhex};
use super::invite::Denied;
use super::keeper::Visitor;
use super::roster::Trust;
use super::token::Token;
use blkrep_api::{ApiError, ErrorCode, EventId, NewEvent, NodePairRequest, NodeReport};
use blkrep_types::NodeName;
use blkrep_wire::tls::{Door, Fingerprint, explain};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ServerConnection, StreamOwned};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a pairing may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest line: names, an address and a token's parts.
const LINE_BYTES_MAX: u64 = 4096;

/// What somebody comes to say.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Request {
    /// It was given a token.
    Join(Join),
    /// It is paired, and will have this certificate.
    Renew(String),
}

/// What the joiner says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Join {
    node: NodeName,
    /// Where it listens, as it knows itself.
    listen: SocketAddr,
    id: String,
    secret: String,
}

/// What is answered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Answer {
    Paired { node: NodeName },
    Renewed,
    Refused(ApiError),
}

/// A connection with an end to its time.
struct Timed {
    stream: TcpStream,
    seen: io::Cursor<Vec<u8>>,
    end: Instant,
}

impl Timed {
    fn new(stream: TcpStream, seen: Vec<u8>) -> Self {
        let seen = io::Cursor::new(seen);
        let end = Instant::now() + PATIENCE;
        Self { stream, seen, end }
    }

    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(Some(left))
    }
}

impl Read for Timed {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = self.seen.read(bytes)?;
        if count > 0 {
            return Ok(count);
        }
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(bytes)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes)
    }

    /// rustls says its last words, an alert after what it had to say before, in one write.
    fn write_vectored(&mut self, parts: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write_vectored(parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

fn hear<T: DeserializeOwned>(stream: impl Read) -> io::Result<T> {
    let mut line = String::new();
    BufReader::new(stream.take(LINE_BYTES_MAX)).read_line(&mut line)?;
    serde_json::from_str(&line).map_err(io::Error::from)
}

fn say(stream: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    stream.flush()
}

/// An error of TLS in its words, any other in the kernel's.
pub(super) fn words(error: &io::Error) -> String {
    let tls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    tls.map_or_else(|| error.to_string(), explain)
}

/// Looks after somebody who wants to be paired. Blocks, for a bounded time.
pub fn receive(trust: &Trust, visitor: Visitor) {
    let from = visitor.from;
    if let Err(error) = converse(trust, visitor) {
        let place = from.ip().to_canonical();
        let why = words(&error);
        trust.refusal(EventId::PairRefused, format!("pairing with {place}: {why}"));
    }
}

fn converse(trust: &Trust, visitor: Visitor) -> io::Result<()> {
    let Some(keys) = trust.view().keys.clone() else {
        let why = "this node has made no token yet; make one: blkctl node pair --invite";
        return Err(io::Error::other(why));
    };
    visitor.stream.set_nonblocking(false)?;
    let connection = ServerConnection::new(Arc::clone(&keys.pairs)).map_err(io::Error::other)?;
    let timed = Timed::new(visitor.stream, visitor.seen);
    let mut stream = StreamOwned::new(connection, timed);
    let request: Request = hear(&mut stream)?;
    let shown = stream.conn.peer_certificates().and_then(<[_]>::first);
    let Some(certificate) = shown.map(Fingerprint::of) else {
        return Err(io::Error::other("no certificate was shown"));
    };
    let from = visitor.from.ip();
    let answer = match request {
        Request::Join(join) => trust
            .join(&join, certificate, from)
            .map(|()| Answer::Paired {
                node: trust.name.clone(),
            }),
        Request::Renew(next) => {
            let next = next.parse().map_err(io::Error::other)?;
            trust.renew(&certificate, next).map(|()| Answer::Renewed)
        }
    };
    say(&mut stream, &answer.unwrap_or_else(Answer::Refused))?;
    stream.conn.send_close_notify();
    stream.flush()
}

impl Trust {
    /// Somebody says he was invited.
    fn join(&self, join: &Join, certificate: Fingerprint, from: IpAddr) -> Result<(), ApiError> {
        let place = from.to_canonical();
        let refuse = |denied: Denied| {
            let node = &join.node;
            let text = format!(
                "node {node} at {place} with certificate {certificate}: {}",
                denied.text()
            );
            self.tell(NewEvent::new(EventId::PairRefused, text));
            ApiError::new(
                ErrorCode::TokenRefused,
                format!("node {}", self.name),
                denied.text(),
                "make a new token there: blkctl node pair --invite",
            )
        };
        let part = |text: &str| unhex(text).unwrap_or_default();
        let (Ok(id), Ok(secret)) = (part(&join.id).try_into(), part(&join.secret).try_into())
        else {
            return Err(refuse(Denied::Unknown));
        };
        let role = self.invites().take(&id, &secret, Instant::now());
        let role = role.map_err(refuse)?;
        // Where it listens on every address, or on its own host's alone, it is known by where it
        // comes from.
        let mut address = join.listen;
        if address.ip().is_unspecified() || address.ip().is_loopback() {
            address.set_ip(place);
        }
        let pinned = self.pin(&join.node, certificate, Some(address), role);
        pinned.map(drop).map_err(|error| {
            self.invites().give_back(&id);
            let text = format!("node {} at {place}: {error}", join.node);
            self.tell(NewEvent::new(EventId::PairRefused, text));
            error
        })
    }

    /// Uses a token at the node that made it.
    ///
    /// # Errors
    /// The token is no token, the node is not the one that made it, or it refuses.
    pub fn pair(&self, request: &NodePairRequest) -> Result<NodeReport, ApiError> {
        let token = Token::parse(&request.token).map_err(|why| {
            ApiError::new(
                ErrorCode::TokenRefused,
                "token",
                why,
                "copy it whole from `blkctl node pair --invite`",
            )
        })?;
        let subject = format!("node at {}", request.address);
        let unreachable = |why: &dyn std::fmt::Display| {
            let action =
                "give address and port of the other node's blkrepd, such as 192.0.2.1:7420";
            ApiError::new(
                ErrorCode::PeerUnreachable,
                &subject,
                why.to_string(),
                action,
            )
        };
        let mut found = request
            .address
            .to_socket_addrs()
            .map_err(|error| unreachable(&error))?;
        let address = found.next().ok_or_else(|| unreachable(&"no such host"))?;
        self.need_keys()?;
        let stream =
            TcpStream::connect_timeout(&address, PATIENCE).map_err(|error| unreachable(&error))?;
        let node = self.ask(&token, stream).map_err(|error| {
            let why = words(&error);
            let (happened, action) = why
                .split_once("; ")
                .unwrap_or((&why, "see blkctl events there, and try again"));
            self.refusal(EventId::PairRefused, format!("{subject}: {happened}"));
            ApiError::new(ErrorCode::PeerRefused, &subject, happened, action)
        })?;
        match node {
            Answer::Paired { node } => self.pin(&node, token.inviter, Some(address), request.role),
            Answer::Refused(error) => Err(error),
            Answer::Renewed => Err(unreachable(&"it answers something else")),
        }
    }

    fn ask(&self, token: &Token, stream: TcpStream) -> io::Result<Answer> {
        let inviter = token.inviter;
        let pins = Arc::new(move |shown: &Fingerprint| *shown == inviter);
        let config = self
            .connecting(pins, Some(Door::Pair))
            .map_err(io::Error::other)?;
        let join = Join {
            node: self.name.clone(),
            listen: self.listen,
            id: hex(&token.id),
            secret: hex(&token.secret),
        };
        exchange(stream, config, &Request::Join(join))
    }

    pub(super) fn say_renewed(
        &self,
        address: SocketAddr,
        config: Arc<ClientConfig>,
        next: Fingerprint,
    ) -> io::Result<Answer> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        exchange(stream, config, &Request::Renew(next.to_string()))
    }
}

/// Says something to whom the configuration accepts, and nothing before that is proven.
fn exchange(stream: TcpStream, config: Arc<ClientConfig>, request: &Request) -> io::Result<Answer> {
    let name = ServerName::try_from("blkrep").map_err(io::Error::other)?;
    let connection = ClientConnection::new(config, name).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(connection, Timed::new(stream, Vec::new()));
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    say(&mut stream, request)?;
    hear(&mut stream)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Counts what is read of it, and has no end.
    struct Endless(u64);

    impl Read for Endless {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            bytes.fill(b' ');
            self.0 += bytes.len() as u64;
            Ok(bytes.len())
        }
    }

    #[test]
    fn a_line_without_end_is_read_no_further_than_any_legal_one() {
        let mut endless = Endless(0);
        assert!(hear::<Request>(&mut endless).is_err());
        assert!(endless.0 <= LINE_BYTES_MAX, "{}", endless.0);
    }

    #[test]
    fn what_is_said_is_heard() {
        let join = Join {
            node: NodeName::new("a").unwrap(),
            listen: "192.0.2.1:7420".parse().unwrap(),
            id: hex(&[1; 8]),
            secret: hex(&[2; 16]),
        };
        let mut line = Vec::new();
        say(&mut line, &Request::Join(join)).unwrap();
        assert!(line.len() < 500);
        let Request::Join(heard) = hear(&line[..]).unwrap() else {
            panic!("another request")
        };
        assert_eq!((heard.id, heard.node.as_str()), (hex(&[1; 8]), "a"));
    }

    proptest! {
        /// Somebody with any certificate at all can say this much.
        #[test]
        fn what_a_stranger_says_is_a_request_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..600), text in "\\{\"(join|renew)\":[\\{\"\\}a-z:,0-9\\[\\]]{0,80}\\}?") {
            for said in [&bytes[..], text.as_bytes()] {
                if let Ok(Request::Renew(text)) = hear::<Request>(said) {
                    prop_assert!(text.len() < 600);
                }
            }
        }
    }
}
