//! Accepts clients on the control socket and serves each one request.
//!
//! Owns the connections and their limits. One request a connection: then the time a client can
//! hold one is bounded by the time-outs of its parts.

use super::commands::{Caller, Origin, router};
use super::doors::{next_errand, run_errand};
use super::forward::forward;
use super::node::Node;
use super::peer::{Judge, Peer, Role};
use crate::events::Events;
use crate::settings::Settings;
use crate::trust::Trust;
use axum::Extension;
use axum::middleware::from_fn_with_state;
use blkrep_types::NodeName;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// Commands that change something, running at once; more wait.
const CHANGES_MAX: usize = 8;
/// Commands that read, running at once; more wait.
const READS_MAX: usize = 8;
/// Clients that follow events at once.
const FOLLOWERS_MAX: usize = 16;
/// Clients without a role at once: only to be told so.
const STRANGERS_MAX: usize = 8;
/// Pairings at once.
const PAIRINGS_MAX: usize = 4;
/// Bytes of a request's head at most.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// How long running requests may take to end when the daemon stops.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// Pause after a failed accept: the process is out of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Limits of what clients may cost.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Clients of each role at once.
    pub connections: usize,
    /// A client must have sent its whole request within this time.
    pub request_timeout: Duration,
    /// A client waits for a command at most this long.
    pub operation_timeout: Duration,
}

/// What the control plane serves.
pub struct Served {
    /// Name of the node.
    pub name: NodeName,
    /// The address other nodes connect to.
    pub listen: Option<String>,
    /// Looked at by `doctor`.
    pub state_dir: PathBuf,
    /// Carries commands out.
    pub node: Arc<dyn Node>,
    /// What is in force.
    pub settings: Arc<Settings>,
    /// Whom the node trusts.
    pub trust: Arc<Trust>,
    /// What happened.
    pub events: Events,
    /// Decides on roles.
    pub judge: Arc<dyn Judge>,
    /// Limits of what clients may cost.
    pub limits: Limits,
}

impl std::fmt::Debug for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Served")
            .field("name", &self.name)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

pub(super) struct Shared {
    pub(super) name: NodeName,
    pub(super) listen: Option<String>,
    pub(super) state_dir: PathBuf,
    pub(super) node: Arc<dyn Node>,
    pub(super) settings: Arc<Settings>,
    pub(super) trust: Arc<Trust>,
    pub(super) events: Events,
    pub(super) limits: Limits,
    pub(super) reads: Arc<Semaphore>,
    pub(super) changes: Arc<Semaphore>,
    pub(super) followers: Arc<Semaphore>,
    pub(super) stop: watch::Sender<bool>,
    judge: Arc<dyn Judge>,
    administrators: Arc<Semaphore>,
    monitors: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    unjudged: Arc<Semaphore>,
    /// Pairings under way, and paired nodes that command.
    pub(super) pairings: Arc<Semaphore>,
    pub(super) nodes: Arc<Semaphore>,
}

/// A control plane, ready to run.
pub struct Control {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control")
            .field("name", &self.shared.name)
            .finish_non_exhaustive()
    }
}

impl Control {
    /// A control plane for what is to be served.
    #[must_use]
    pub fn new(served: Served) -> Self {
        let gate = |permits| Arc::new(Semaphore::new(permits));
        let connections = served.limits.connections;
        Self {
            shared: Arc::new(Shared {
                name: served.name,
                listen: served.listen,
                state_dir: served.state_dir,
                node: served.node,
                settings: served.settings,
                trust: served.trust,
                events: served.events,
                limits: served.limits,
                reads: gate(READS_MAX),
                changes: gate(CHANGES_MAX),
                followers: gate(FOLLOWERS_MAX.min(connections / 2)),
                stop: watch::Sender::new(false),
                judge: served.judge,
                administrators: gate(connections),
                monitors: gate(connections),
                strangers: gate(STRANGERS_MAX),
                unjudged: gate(connections),
                pairings: gate(PAIRINGS_MAX),
                nodes: gate(connections),
            }),
        }
    }

    /// Serves clients until `stopped` is done; then lets running requests end, for a bounded time.
    ///
    /// # Errors
    /// The listener cannot be used.
    pub async fn run(
        self,
        listener: std::os::unix::net::UnixListener,
        stopped: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let listener = UnixListener::from_std(listener)?;
        let mut clients = JoinSet::new();
        let mut errands = self.shared.trust.take_errands();
        tokio::pin!(stopped);
        loop {
            tokio::select! {
                () = &mut stopped => break,
                Some(_) = clients.join_next(), if !clients.is_empty() => {}
                Some(errand) = next_errand(errands.as_mut()) => {
                    clients.spawn(run_errand(Arc::clone(&self.shared), errand));
                }
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        clients.spawn(client(Arc::clone(&self.shared), stream));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "accept a client on the control socket");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        drop(listener);
        self.shared.stop.send_replace(true);
        let ended = async { while clients.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_PATIENCE, ended).await.is_err() {
            tracing::warn!("commands were still running at the stop; their clients are dropped");
        }
        Ok(())
    }
}

/// Serves one connection, if the limits of its client's role allow.
async fn client(shared: Arc<Shared>, stream: UnixStream) {
    let Ok(unjudged) = Arc::clone(&shared.unjudged).try_acquire_owned() else {
        return;
    };
    let Ok(credentials) = stream.peer_cred() else {
        return;
    };
    let peer = Peer {
        uid: credentials.uid(),
        gid: credentials.gid(),
    };
    let judge = Arc::clone(&shared.judge);
    let role = tokio::task::spawn_blocking(move || judge.role(peer));
    let role = role.await.unwrap_or(Role::None);
    drop(unjudged);
    let gate = match role {
        Role::Administrator => &shared.administrators,
        Role::Monitor => &shared.monitors,
        Role::None => &shared.strangers,
    };
    let Ok(_permit) = Arc::clone(gate).try_acquire_owned() else {
        tracing::warn!(uid = peer.uid, "too many clients on the control socket");
        return;
    };
    let caller = Caller {
        origin: Origin::Here(peer),
        role,
        trust: Arc::clone(&shared.trust),
    };
    serve(&shared, caller, stream).await;
}

/// Serves the one request of a connection.
pub(super) async fn serve(
    shared: &Arc<Shared>,
    caller: Caller,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) {
    let origin = caller.origin.clone();
    let forward = from_fn_with_state(Arc::clone(shared), forward);
    let app = router(Arc::clone(shared))
        .layer(forward)
        .layer(Extension(caller));
    let mut stop = shared.stop.subscribe();
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.limits.request_timeout)
        .max_buf_size(HEAD_BYTES_MAX)
        .keep_alive(false)
        .half_close(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    tokio::pin!(connection);
    let stopped = async move {
        // An error would say that the daemon is gone, which is a stop too.
        drop(stop.wait_for(|stop| *stop).await);
    };
    let ended = tokio::select! {
        ended = &mut connection => Some(ended),
        () = stopped => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%origin, %error, "a client of the control API ended early");
    }
}
