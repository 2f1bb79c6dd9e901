//! Talks to the daemon: one HTTP request a connection, on its unix socket.
//!
//! Owns the connection and its time-outs. Requests enter as values; replies, or the daemon's own
//! error, leave as values. Never retries: a command may have been carried out.

use anyhow::Context as _;
use blkrep_api::{ADDRESS_HEADER, ApiError, ErrorBody, NODE_HEADER};
use blkrep_types::NodeName;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

/// Largest reply that is read: the status of thousands of groups.
const REPLY_BYTES_MAX: usize = 64 << 20;
/// Longest line of a stream that is read.
const LINE_BYTES_MAX: usize = 1 << 20;
/// A stream carries a line at least every 15 s; one silent for longer than this is dead.
const STREAM_SILENCE: Duration = Duration::from_secs(45);
/// How long a reply may take unless told otherwise: longer than the daemon itself waits.
const REPLY_TIMEOUT: Duration = Duration::from_secs(150);

/// The daemon cannot be talked to; what to do is part of the text.
#[derive(Debug, thiserror::Error)]
#[error("{happened}")]
pub(crate) struct Unreachable {
    pub(crate) happened: String,
    pub(crate) action: String,
    /// No daemon is there at all: no command can have been carried out.
    nobody: bool,
}

/// True if the error says that no daemon is there.
pub(crate) fn nobody_listens(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<Unreachable>()
        .is_some_and(|unreachable| unreachable.nobody)
}

/// A client of one daemon.
#[derive(Debug)]
pub(crate) struct Client {
    socket: PathBuf,
    node: Option<NodeName>,
    address: Option<SocketAddr>,
    timeout: Duration,
    runtime: Runtime,
}

impl Client {
    pub(crate) fn new(socket: &Path, timeout: Option<Duration>) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start the client's runtime")?;
        Ok(Self {
            socket: socket.to_owned(),
            node: None,
            address: None,
            timeout: timeout.unwrap_or(REPLY_TIMEOUT),
            runtime,
        })
    }

    /// Asks another node by way of the daemon.
    pub(crate) fn for_node(mut self, node: Option<NodeName>, address: Option<SocketAddr>) -> Self {
        (self.node, self.address) = (node, address);
        self
    }

    /// Asks.
    pub(crate) fn get<R: DeserializeOwned>(
        &self,
        path: &str,
        query: &impl Serialize,
    ) -> anyhow::Result<R> {
        let path = with_query(path, query)?;
        self.reply(Method::GET, &path, Bytes::new())
    }

    /// Commands.
    pub(crate) fn post<R: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<R> {
        let body = serde_json::to_vec(body).context("encode the request")?;
        self.reply(Method::POST, path, body.into())
    }

    fn reply<R: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<R> {
        let exchange = async {
            let response = self.send(method, path, body).await?;
            let status = response.status();
            let bytes = Limited::new(response.into_body(), REPLY_BYTES_MAX).collect();
            let bytes = bytes
                .await
                .map_err(|error| self.broken(&error.to_string()))?;
            self.decode(status, &bytes.to_bytes())
        };
        self.runtime.block_on(async {
            let result = tokio::time::timeout(self.timeout, exchange).await;
            result.unwrap_or_else(|_| Err(self.too_slow().into()))
        })
    }

    fn decode<R: DeserializeOwned>(&self, status: StatusCode, bytes: &[u8]) -> anyhow::Result<R> {
        if !status.is_success() {
            let refused: Result<ErrorBody, _> = serde_json::from_slice(bytes);
            let error: ApiError = match refused {
                Ok(body) => body.error,
                Err(_) => return Err(self.broken(&format!("it answered {status}")).into()),
            };
            return Err(error.into());
        }
        let reply = serde_json::from_slice(bytes);
        reply.map_err(|error| {
            self.broken(&format!("its reply is not understood: {error}"))
                .into()
        })
    }

    /// Reads a stream of lines; ends when `each` returns false or the daemon ends it.
    pub(crate) fn lines<R: DeserializeOwned>(
        &self,
        path: &str,
        query: &impl Serialize,
        mut each: impl FnMut(R) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let path = with_query(path, query)?;
        self.runtime.block_on(async {
            let response = self.send(Method::GET, &path, Bytes::new()).await?;
            let status = response.status();
            let mut body = response.into_body();
            if !status.is_success() {
                let bytes = Limited::new(body, REPLY_BYTES_MAX).collect().await;
                let bytes = bytes.map_err(|error| self.broken(&error.to_string()))?;
                return self.decode::<()>(status, &bytes.to_bytes());
            }
            let mut pending = Vec::new();
            while let Some(bytes) = self.next(&mut body).await? {
                pending.extend_from_slice(&bytes);
                while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = pending.drain(..=end).collect();
                    if !each(self.decode(StatusCode::OK, &line)?)? {
                        return Ok(());
                    }
                }
                if pending.len() > LINE_BYTES_MAX {
                    return Err(self.broken("it sent a line without end").into());
                }
            }
            Ok(())
        })
    }

    async fn next(&self, body: &mut Incoming) -> anyhow::Result<Option<Bytes>> {
        let frame = tokio::time::timeout(STREAM_SILENCE, body.frame()).await;
        match frame {
            Err(_) => Err(self.broken("it fell silent").into()),
            Ok(None) => Ok(None),
            Ok(Some(Err(error))) => Err(self.broken(&error.to_string()).into()),
            Ok(Some(Ok(frame))) => Ok(Some(frame.into_data().unwrap_or_default())),
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<Response<Incoming>> {
        let stream = UnixStream::connect(&self.socket).await;
        let stream = stream.map_err(|error| self.not_reached(&error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(&error.to_string()))?;
        tokio::spawn(connection);
        let mut request = Request::builder();
        if let Some(node) = &self.node {
            request = request.header(NODE_HEADER, node.as_str());
        }
        if let Some(address) = &self.address {
            request = request.header(ADDRESS_HEADER, address.to_string());
        }
        let request = request
            .method(method)
            .uri(path)
            .header(header::HOST, "blkrepd")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .context("make the request")?;
        let response = sender.send_request(request).await;
        Ok(response.map_err(|error| self.broken(&error.to_string()))?)
    }

    fn not_reached(&self, error: &std::io::Error) -> Unreachable {
        let socket = self.socket.display();
        let (why, action) = match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => (
                "no daemon answers there".to_owned(),
                "start it: systemctl start blkrepd; or name its socket with --socket",
            ),
            ErrorKind::PermissionDenied => (
                "you may not open it".to_owned(),
                "run it as root, or as a member of group blkrep-admin or blkrep-monitor",
            ),
            _ => (
                error.to_string(),
                "look into the daemon's log: journalctl -u blkrepd",
            ),
        };
        Unreachable {
            happened: format!("control socket {socket}: {why}"),
            action: action.to_owned(),
            nobody: matches!(
                error.kind(),
                ErrorKind::NotFound | ErrorKind::ConnectionRefused
            ),
        }
    }

    fn broken(&self, why: &str) -> Unreachable {
        Unreachable {
            happened: format!("the daemon at {}: {why}", self.socket.display()),
            action: "see with `blkctl status` what was done; look into the daemon's log: \
                     journalctl -u blkrepd"
                .to_owned(),
            nobody: false,
        }
    }

    fn too_slow(&self) -> Unreachable {
        let seconds = self.timeout.as_secs_f64();
        Unreachable {
            happened: format!(
                "the daemon at {} did not answer within {seconds} s",
                self.socket.display()
            ),
            action: "the command may still be carried out: see blkctl status; or allow more with \
                     --timeout"
                .to_owned(),
            nobody: false,
        }
    }
}

/// Adds a flat struct as the query of a path.
fn with_query(path: &str, query: &impl Serialize) -> anyhow::Result<String> {
    let fields = serde_json::to_value(query).context("encode the query")?;
    let mut text = path.to_owned();
    let mut separator = '?';
    for (name, value) in fields.as_object().into_iter().flatten() {
        let value = match value {
            serde_json::Value::Null => continue,
            serde_json::Value::String(value) => value.clone(),
            other => other.to_string(),
        };
        text.push(separator);
        text.push_str(&format!("{name}={}", escape(&value)));
        separator = '&';
    }
    Ok(text)
}

/// Percent-encodes all but what RFC 3986 calls unreserved.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use blkrep_api::GetQuery;

    #[test]
    fn a_query_is_escaped_and_leaves_out_what_is_not_given() {
        let query = GetQuery {
            key: Some("a&b=c ü".to_owned()),
            group: None,
        };
        let path = with_query("/v1/settings", &query).unwrap();
        assert_eq!(path, "/v1/settings?key=a%26b%3Dc%20%C3%BC");
        assert_eq!(with_query("/v1/x", &GetQuery::default()).unwrap(), "/v1/x");
    }
}
