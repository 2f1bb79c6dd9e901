//! Those who come over the network and are no links: to be paired, or to command.
//!
//! Owns the end of their handshakes. A paired node's requests are served as those of the control
//! socket are, with the role that the node has here. Never touches block data.

use super::commands::{Caller, Origin};
use super::peer::Role;
use super::server::{Shared, serve};
use crate::trust::{Errand, Rights, Trust, Visitor, receive};
use blkrep_api::NodeRole;
use blkrep_wire::tls::{Door, explain};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

/// How long a handshake may take.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

/// The next one; never, if nobody lets them in.
pub(super) async fn next_errand(errands: Option<&mut mpsc::Receiver<Errand>>) -> Option<Errand> {
    match errands {
        Some(errands) => errands.recv().await,
        None => std::future::pending().await,
    }
}

/// Does what the data plane left to be done.
pub(super) async fn run_errand(shared: Arc<Shared>, errand: Errand) {
    match errand {
        Errand::Visitor(visitor) => visit(shared, visitor).await,
        Errand::Renewed(node) => {
            let trust = Arc::clone(&shared.trust);
            let settled = tokio::task::spawn_blocking(move || trust.settle(&node));
            if let Err(error) = settled.await {
                tracing::error!(%error, "take over a node's new key");
            }
        }
    }
}

/// Looks after one.
async fn visit(shared: Arc<Shared>, visitor: Visitor) {
    let (gate, from) = match visitor.door {
        Door::Pair => (&shared.pairings, visitor.from),
        Door::Control => (&shared.nodes, visitor.from),
    };
    let Ok(permit) = Arc::clone(gate).try_acquire_owned() else {
        tracing::warn!(%from, "too many connections for pairing or control");
        return;
    };
    match visitor.door {
        Door::Pair => {
            let trust = Arc::clone(&shared.trust);
            let paired = tokio::task::spawn_blocking(move || receive(&trust, visitor));
            if let Err(error) = paired.await {
                tracing::error!(%error, "pair a node");
            }
        }
        Door::Control => command(shared, visitor).await,
    }
    drop(permit);
}

/// Serves a paired node's request, until it is answered or the node's rights change.
async fn command(shared: Arc<Shared>, visitor: Visitor) {
    let from = visitor.from.ip().to_canonical();
    let trust = Arc::clone(&shared.trust);
    let mut changes = trust.changes();
    changes.mark_unchanged();
    let shaken = tokio::time::timeout(HANDSHAKE_TIME, shake(&trust, visitor)).await;
    let why = match shaken {
        Ok(Ok((rights, stream))) => {
            let caller = Caller {
                origin: Origin::Node(rights.node.clone()),
                role: role_of(rights.role),
                trust: Arc::clone(&trust),
            };
            let ended = async {
                while changes.changed().await.is_ok() {
                    if trust.rights(&rights.node).as_ref() != Some(&rights) {
                        return;
                    }
                }
            };
            tokio::select! {
                () = serve(&shared, caller, stream) => {}
                () = ended => {}
            }
            return;
        }
        Ok(Err(error)) => words(&error),
        Err(_) => "it did not end its handshake in time".to_owned(),
    };
    trust.refused_command(&format!("{from}: {why}"));
}

fn words(error: &io::Error) -> String {
    let tls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    tls.map_or_else(|| error.to_string(), explain)
}

async fn shake(
    trust: &Trust,
    visitor: Visitor,
) -> io::Result<(Rights, tokio_rustls::server::TlsStream<Begun>)> {
    let config = trust
        .accepting_commands()
        .ok_or_else(|| io::Error::other("this node is paired with nobody; pair the two nodes"))?;
    visitor.stream.set_nonblocking(true)?;
    let begun = Begun {
        stream: TcpStream::from_std(visitor.stream)?,
        seen: visitor.seen,
        taken: 0,
    };
    let stream = TlsAcceptor::from(config).accept(begun).await?;
    let shown = stream.get_ref().1.peer_certificates();
    let rights = shown
        .and_then(<[_]>::first)
        .and_then(|certificate| trust.rights_of(certificate));
    let rights = rights.ok_or_else(|| io::Error::other("the node was forgotten just now"))?;
    Ok((rights, stream))
}

const fn role_of(role: NodeRole) -> Role {
    match role {
        NodeRole::None => Role::None,
        NodeRole::Monitor => Role::Monitor,
        NodeRole::Admin => Role::Administrator,
    }
}

/// A connection of which something was read already.
struct Begun {
    stream: TcpStream,
    seen: Vec<u8>,
    taken: usize,
}

impl AsyncRead for Begun {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.taken < this.seen.len() {
            let left = &this.seen[this.taken..];
            let count = left.len().min(buf.remaining());
            buf.put_slice(&left[..count]);
            this.taken += count;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Begun {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
