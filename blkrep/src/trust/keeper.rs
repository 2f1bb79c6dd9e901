//! Decisions about connections, as the data plane asks for them.

use super::roster::{Trust, lock};
use blkrep_api::{ApiError, ErrorCode, EventId, NewEvent};
use blkrep_io::LineFacts;
use blkrep_io::real::RealSocket;
use blkrep_types::NodeName;
use blkrep_wire::tls::{Door, Failure, Fingerprint, Keeper, Outgoing};
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A refusal that is repeated within this time is no news: a link tries again and again.
const REPEATED: Duration = Duration::from_secs(60);
/// Refusals that are remembered for it.
const TOLD_MAX: usize = 64;

/// A connection that is no link.
#[derive(Debug)]
pub struct Visitor {
    /// What it wants.
    pub door: Door,
    /// The connection.
    pub stream: TcpStream,
    /// What it said so far.
    pub seen: Vec<u8>,
    /// Where it comes from.
    pub from: SocketAddr,
}

/// What the data plane leaves to the control plane.
#[derive(Debug)]
pub enum Errand {
    /// Somebody came.
    Visitor(Visitor),
    /// A node used the key that it had announced.
    Renewed(NodeName),
}

/// What was told lately.
#[derive(Debug, Default)]
pub(super) struct Told(VecDeque<(String, Instant)>);

impl Told {
    fn is_news(&mut self, text: &str, now: Instant) -> bool {
        self.0.retain(|(_, at)| now.duration_since(*at) < REPEATED);
        if self.0.iter().any(|(told, _)| told == text) {
            return false;
        }
        if self.0.len() == TOLD_MAX {
            self.0.pop_front();
        }
        self.0.push_back((text.to_owned(), now));
        true
    }
}

/// Connections of this host to itself need no encryption unless the other end is paired.
fn is_own_host(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

fn place(address: Option<SocketAddr>) -> String {
    address.map_or_else(
        || "an unknown address".to_owned(),
        |address| address.ip().to_canonical().to_string(),
    )
}

impl Trust {
    /// Publishes a refusal, unless the same was told a moment ago.
    pub(super) fn refusal(&self, id: EventId, text: String) {
        if lock(&self.told).is_news(&text, Instant::now()) {
            self.tell(NewEvent::new(id, text));
        }
    }

    /// What stands against a link from `hello_node` on a connection: why, and after `; ` what to do.
    ///
    /// # Errors
    /// It is plain and must not be, or somebody else's than it says.
    pub fn judge_link(
        &self,
        facts: &LineFacts,
        from: Option<SocketAddr>,
        hello_node: &NodeName,
    ) -> Result<(), String> {
        let name = &self.name;
        let (id, text) = match &facts.node {
            Some(node) if node == hello_node => return Ok(()),
            Some(node) => (
                EventId::NodeRefused,
                format!(
                    "node {node}, by its certificate, says it is node {hello_node}; pair it again \
                     with node {name} if it was renamed"
                ),
            ),
            None if self.view().nodes.contains_key(hello_node) => (
                EventId::PlainRefused,
                format!(
                    "node {hello_node} is paired with node {name} and came without encryption; \
                     pair them again if it lost its key, or forget it on node {name}"
                ),
            ),
            None if self.insecure_plain => return Ok(()),
            None if from.is_some_and(|from| is_own_host(from.ip())) => return Ok(()),
            None => (
                EventId::PlainRefused,
                format!(
                    "node {hello_node} at {} came without encryption, which node {name} takes from \
                     its own host only; pair the two nodes: blkctl node pair",
                    place(from)
                ),
            ),
        };
        self.refusal(id, text.clone());
        Err(text)
    }

    /// What stands against a link to `peer`.
    ///
    /// # Errors
    /// It would be plain and must not be.
    pub fn judge_target(&self, peer: SocketAddr) -> Result<(), ApiError> {
        match self.outgoing(peer) {
            Outgoing::Plain | Outgoing::Encrypted(_) => Ok(()),
            Outgoing::Refused(why) => {
                let (happened, action) = why.split_once("; ").unwrap_or((&why, ""));
                let subject = format!("target address {peer}");
                Err(ApiError::new(
                    ErrorCode::NotPaired,
                    subject,
                    happened,
                    action,
                ))
            }
        }
    }

    fn encrypted(&self, pins: blkrep_wire::tls::Pins) -> Outgoing {
        match self.connecting(pins, None) {
            Ok(config) => Outgoing::Encrypted(config),
            Err(why) => Outgoing::Refused(why),
        }
    }

    /// Ends every connection with a node.
    pub(super) fn cut(&self, node: &NodeName) {
        lock(&self.connections).retain(|(name, socket)| {
            if name == node {
                socket.shutdown();
            }
            name != node
        });
    }
}

impl Keeper<RealSocket> for Trust {
    fn outgoing(&self, peer: SocketAddr) -> Outgoing {
        let (known, somebody) = {
            let view = self.view();
            let mut nodes = view.nodes.iter();
            let known = nodes.find(|(_, known)| known.address == Some(peer));
            (known.map(|(name, _)| name.clone()), !view.nodes.is_empty())
        };
        match known {
            Some(node) => self.encrypted(self.pins_of(&node)),
            None if is_own_host(peer.ip()) || self.insecure_plain => Outgoing::Plain,
            None if somebody => self.encrypted(self.paired()),
            None => Outgoing::Refused(
                "it is another host and no node is paired with this one; pair the two nodes: \
                 `blkctl node pair --invite` there, `blkctl node pair ADDR:PORT --token TOKEN` here"
                    .to_owned(),
            ),
        }
    }

    fn incoming(&self) -> Option<Arc<ServerConfig>> {
        self.view()
            .keys
            .as_ref()
            .map(|keys| Arc::clone(&keys.links))
    }

    fn name_of(&self, certificate: &CertificateDer<'_>) -> Option<NodeName> {
        let fingerprint = Fingerprint::of(certificate);
        let view = self.view();
        let name = view.by_certificate.get(&fingerprint)?.clone();
        let renewed = view
            .nodes
            .get(&name)
            .is_some_and(|known| known.next == Some(fingerprint));
        drop(view);
        if renewed {
            // If nobody has time for it, the next connection says it again.
            let _ = self.errands.try_send(Errand::Renewed(name.clone()));
        }
        Some(name)
    }

    fn opened(&self, socket: &RealSocket, node: &NodeName) {
        let mut connections = lock(&self.connections);
        connections.retain(|(_, socket)| socket.is_open());
        connections.push((node.clone(), socket.weak()));
        drop(connections);
        // It may have been forgotten just before.
        if !self.view().nodes.contains_key(node) {
            self.cut(node);
        }
    }

    fn failed(&self, socket: &RealSocket, node: Option<&NodeName>, failure: Failure, why: &str) {
        let from = place(socket.peer());
        let id = match failure {
            Failure::Refused => EventId::NodeRefused,
            Failure::Broken => EventId::StreamBroken,
        };
        let who = match node {
            Some(node) => format!("node {node} at {from}"),
            None => format!("a connection with {from}"),
        };
        self.refusal(id, format!("{who}: {why}"));
    }

    fn visitor(&self, socket: &RealSocket, door: Door, seen: Vec<u8>) {
        let (Ok(stream), Some(from)) = (socket.stream(), socket.peer()) else {
            return;
        };
        let visitor = Errand::Visitor(Visitor {
            door,
            stream,
            seen,
            from,
        });
        // With too many at once the connection just ends.
        if self.errands.try_send(visitor).is_err() {
            tracing::warn!(%from, "too many connections for pairing or control");
        }
    }
}
