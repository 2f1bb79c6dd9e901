//! Commands for another node: `blkctl --node NAME`.
//!
//! Owns the way there and back. A request with the header [`blkrep_api::NODE_HEADER`] is not carried
//! out here but sent to that node, over a connection that both nodes' certificates prove, and its
//! answer is passed on as it comes. The caller's role is checked here, this node's there.

use super::commands::{Answer, Caller, Origin};
use super::http::{BODY_BYTES_MAX, Refusal};
use super::peer::Role;
use super::server::Shared;
use crate::trust::Trust;
use axum::body::{Body, to_bytes};
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use blkrep_api::{ADDRESS_HEADER, ApiError, ErrorCode, NODE_HEADER};
use blkrep_types::NodeName;
use blkrep_wire::tls::{Door, explain};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How long a connection and its handshake may take.
const CONNECT_TIME: Duration = Duration::from_secs(10);

/// Passes a request on, or carries it out here.
pub(super) async fn forward(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    request: Request,
    next: Next,
) -> Response {
    if !request.headers().contains_key(NODE_HEADER) {
        return next.run(request).await;
    }
    pass_on(&shared, &caller, request)
        .await
        .unwrap_or_else(|refusal| refusal.into_response())
}

async fn pass_on(shared: &Shared, caller: &Caller, request: Request) -> Answer {
    let reads = request.method() == Method::GET;
    caller.needs(if reads {
        Role::Monitor
    } else {
        Role::Administrator
    })?;
    if let Origin::Node(node) = &caller.origin {
        return Err(Refusal(ApiError::new(
            ErrorCode::Forbidden,
            "request",
            format!("node {node} asks this one to ask another"),
            "pair the two nodes",
        )));
    }
    let (node, address) = destination(&shared.trust, request.headers())?;
    let (parts, body) = request.into_parts();
    tracing::info!(origin = %caller.origin, %node, command = parts.uri.path(), "command for another node");
    let body = tokio::time::timeout(
        shared.limits.request_timeout,
        to_bytes(body, BODY_BYTES_MAX),
    );
    let bytes = match body.await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) => return Err(Refusal(super::http::bad_request(&error.to_string()))),
        Err(_) => {
            return Err(Refusal(super::http::bad_request(
                "its body did not arrive in time",
            )));
        }
    };
    let failed = |error: &io::Error| Refusal(unreachable(&node, address, error));
    let stream = tokio::time::timeout(CONNECT_TIME, connect(&shared.trust, &node, address));
    let stream = match stream.await {
        Ok(stream) => stream.map_err(|error| failed(&error))?,
        Err(_) => return Err(failed(&io::ErrorKind::TimedOut.into())),
    };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failed(&io::Error::other(error)))?;
    tokio::spawn(connection);
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let asked = Request::builder()
        .method(parts.method)
        .uri(path)
        .header(header::HOST, "blkrepd")
        .header(header::CONTENT_TYPE, "application/json")
        .body(http_body_util::Full::new(bytes))
        .map_err(|error| ApiError::internal(format!("make a request: {error}")))?;
    // The other daemon ends a command that takes long in its own time.
    let patience = 2 * shared.limits.request_timeout + shared.limits.operation_timeout;
    match tokio::time::timeout(patience, sender.send_request(asked)).await {
        Ok(Ok(response)) => Ok(response.map(Body::new)),
        Ok(Err(error)) => Err(failed(&tls_error(&error))),
        Err(_) => Err(failed(&io::ErrorKind::TimedOut.into())),
    }
}

/// What is below an error of HTTP: a refusal of the other node comes after the handshake.
fn tls_error(error: &hyper::Error) -> io::Error {
    let below = std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<io::Error>())
        .and_then(io::Error::get_ref)
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    below.map_or_else(
        || io::Error::other(error.to_string()),
        |tls| io::Error::other(tls.clone()),
    )
}

fn unreachable(node: &NodeName, address: SocketAddr, error: &io::Error) -> ApiError {
    let tls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let (code, why) = match tls {
        Some(tls) => (ErrorCode::PeerRefused, explain(tls)),
        None => (ErrorCode::PeerUnreachable, error.to_string()),
    };
    let otherwise = "check the network and that blkrepd runs there, or give --address";
    let (happened, action) = why.split_once("; ").unwrap_or((&why, otherwise));
    ApiError::new(code, format!("node {node} at {address}"), happened, action)
}

fn destination(trust: &Trust, headers: &HeaderMap) -> Result<(NodeName, SocketAddr), ApiError> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let node = text(NODE_HEADER).and_then(|name| NodeName::new(name).ok());
    let node = node.ok_or_else(|| super::http::bad_request("it names no node"))?;
    let known = trust.address_of(&node)?;
    let given = match text(ADDRESS_HEADER).map(str::parse) {
        Some(Ok(address)) => Some(address),
        Some(Err(_)) => return Err(super::http::bad_request("its address is none")),
        None => known,
    };
    given.map(|address| (node.clone(), address)).ok_or_else(|| {
        ApiError::new(
            ErrorCode::PeerUnreachable,
            format!("node {node}"),
            "its address is not known",
            "give it with --address",
        )
    })
}

async fn connect(
    trust: &Trust,
    node: &NodeName,
    address: SocketAddr,
) -> io::Result<TlsStream<TcpStream>> {
    let config = trust
        .connecting_to(node, Door::Control)
        .map_err(io::Error::other)?;
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("blkrep").map_err(io::Error::other)?;
    TlsConnector::from(config).connect(name, stream).await
}
