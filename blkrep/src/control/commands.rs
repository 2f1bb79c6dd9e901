//! The commands: path, role needed, and what carries each out.
//!
//! Owns the table of routes. Blocking work goes to threads that may block, a bounded number at
//! once; a command that outlasts its client's patience goes on and says so.

use super::advice;
use super::follow::follow;
use super::http::{Refusal, bad_request, forbidden, read_body, success};
use super::nodes::{forget, invite, nodes, pair, role, rotate};
use super::peer::{Peer, Role};
use super::server::{Limits, Shared};
use crate::trust::Trust;
use axum::Router;
use axum::extract::{Extension, Query, Request, State};
use axum::response::Response;
use axum::routing::{get, post};
use blkrep_api::{
    ApiError, DoctorReport, ErrorCode, EventId, EventQuery, GetQuery, NewEvent, NoteList,
    NoteQuery, SCHEMA, SetRequest, SettingReply, Status, StatusQuery, VersionReply, route,
};
use blkrep_types::NodeName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use tokio::sync::Semaphore;

pub(super) type Answer = Result<Response, Refusal>;

/// Where a request comes from.
#[derive(Debug, Clone)]
pub(super) enum Origin {
    /// A process of this host.
    Here(Peer),
    /// A paired node, proven.
    Node(NodeName),
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Here(peer) => write!(f, "uid {}", peer.uid),
            Self::Node(node) => write!(f, "node {node}"),
        }
    }
}

/// Who asks.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub(super) origin: Origin,
    pub(super) role: Role,
    pub(super) trust: Arc<Trust>,
}

impl Caller {
    /// Refuses what the caller's role does not allow.
    pub(super) fn needs(&self, needed: Role) -> Result<(), ApiError> {
        if self.role >= needed {
            return Ok(());
        }
        Err(match &self.origin {
            Origin::Here(_) => forbidden(self.role, needed),
            Origin::Node(node) => self.trust.overstepped(node, self.role, needed),
        })
    }
}

/// A command that only reads.
async fn read<Q, R, F>(shared: Arc<Shared>, caller: Caller, request: Request, run: F) -> Answer
where
    Q: DeserializeOwned + Send + 'static,
    R: Serialize + Send + 'static,
    F: FnOnce(&Shared, Q) -> Result<R, ApiError> + Send + 'static,
{
    caller.needs(Role::Monitor)?;
    let query = query_of(&request)?;
    let gate = Arc::clone(&shared.reads);
    let reply = blocking(shared, gate, move |shared| run(shared, query)).await?;
    Ok(success(&reply))
}

/// A command that changes something.
pub(super) async fn change<B, R, F>(
    shared: Arc<Shared>,
    caller: Caller,
    request: Request,
    run: F,
) -> Answer
where
    B: DeserializeOwned + std::fmt::Debug + Send + 'static,
    R: Serialize + Send + 'static,
    F: FnOnce(&Shared, B) -> Result<R, ApiError> + Send + 'static,
{
    caller.needs(Role::Administrator)?;
    let path = request.uri().path().to_owned();
    let body: B = read_body(request.into_body(), shared.limits.request_timeout).await?;
    let origin = caller.origin;
    tracing::info!(%origin, command = path, request = ?body, "command");
    let gate = Arc::clone(&shared.changes);
    let reply = blocking(shared, gate, move |shared| run(shared, body)).await;
    if let Err(error) = &reply {
        tracing::info!(%origin, command = path, code = %error.code, %error, "command refused");
    }
    Ok(success(&reply?))
}

/// Parses the query of a request.
pub(super) fn query_of<Q: DeserializeOwned>(request: &Request) -> Result<Q, ApiError> {
    let query = Query::<Q>::try_from_uri(request.uri());
    query
        .map(|Query(query)| query)
        .map_err(|error| bad_request(&error.body_text()))
}

/// Runs `run` in a thread that may block, when the gate lets it.
async fn blocking<R, F>(shared: Arc<Shared>, gate: Arc<Semaphore>, run: F) -> Result<R, ApiError>
where
    R: Send + 'static,
    F: FnOnce(&Shared) -> Result<R, ApiError> + Send + 'static,
{
    let Limits {
        request_timeout,
        operation_timeout,
        ..
    } = shared.limits;
    let permit = tokio::time::timeout(request_timeout, gate.acquire_owned()).await;
    let Ok(permit) = permit else {
        return Err(ApiError::new(
            ErrorCode::Overloaded,
            "command",
            "others run and it could not begin; nothing was done",
            "try again when they are done",
        ));
    };
    let permit = permit.map_err(|_| ApiError::internal("the command gate is closed"))?;
    let work = tokio::task::spawn_blocking(move || {
        // Held until the work ends, also when its client has gone.
        let _permit = permit;
        run(&shared)
    });
    match tokio::time::timeout(operation_timeout, work).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(ApiError::internal("the command panicked")),
        Err(_) => Err(ApiError::new(
            ErrorCode::StillRunning,
            "command",
            format!("it is not done after {} s", operation_timeout.as_secs()),
            "it goes on; watch it with `blkctl status` and `blkctl events`",
        )),
    }
}

/// A route that hands a body to a method of the node.
macro_rules! command {
    ($method:ident) => {
        post(
            |State(shared): State<Arc<Shared>>,
             Extension(caller): Extension<Caller>,
             request: Request| {
                change(shared, caller, request, |shared, body| {
                    shared.node.$method(&body)
                })
            },
        )
    };
}

/// A route that answers a query.
macro_rules! question {
    ($function:expr) => {
        get(
            |State(shared): State<Arc<Shared>>,
             Extension(caller): Extension<Caller>,
             request: Request| { read(shared, caller, request, $function) },
        )
    };
}

pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route(route::VERSION, question!(version))
        .route(route::STATUS, question!(status))
        .route(route::SETTINGS, question!(settings))
        .route(route::EVENTS, question!(events))
        .route(route::DOCTOR, question!(doctor))
        .route(route::EVENTS_FOLLOW, get(follow))
        .route(route::ATTACH, command!(attach))
        .route(route::DETACH, command!(detach))
        .route(route::CONNECT, command!(connect))
        .route(route::LINK, command!(change_link))
        .route(route::DISCONNECT, command!(disconnect))
        .route(route::FORGET, command!(forget))
        .route(route::MIRROR, command!(mirror))
        .route(route::TRANSMIT, command!(transmit))
        .route(route::TARGET, command!(target))
        .route(route::PROMOTE, command!(promote))
        .route(route::DEMOTE, command!(demote))
        .route(route::REPLACE, command!(replace))
        .route(route::TASK, command!(submit_task))
        .route(route::BOOKMARK, command!(set_bookmark))
        .route(route::NOTES, question!(notes))
        .route(route::SET, post(set))
        .route(route::NODES, question!(nodes))
        .route(route::NODE_INVITE, post(invite))
        .route(route::NODE_PAIR, post(pair))
        .route(route::NODE_FORGET, post(forget))
        .route(route::NODE_ROLE, post(role))
        .route(route::NODE_ROTATE, post(rotate))
        .fallback(unknown)
        .method_not_allowed_fallback(unknown)
        .with_state(shared)
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NoQuery {}

fn version(shared: &Shared, _: NoQuery) -> Result<VersionReply, ApiError> {
    Ok(VersionReply {
        schema: SCHEMA,
        program: "blkrepd".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node: shared.name.clone(),
        listen: shared.listen.clone(),
    })
}

fn status(shared: &Shared, query: StatusQuery) -> Result<Status, ApiError> {
    let mut groups = shared.node.status(&query)?;
    groups.iter_mut().for_each(advice::explain);
    groups.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Status::new(shared.name.clone(), groups))
}

fn notes(shared: &Shared, query: NoteQuery) -> Result<NoteList, ApiError> {
    shared.node.notes(&query)
}

fn settings(shared: &Shared, query: GetQuery) -> Result<SettingReply, ApiError> {
    shared.settings.get(&query)
}

fn events(shared: &Shared, query: EventQuery) -> Result<blkrep_api::EventPage, ApiError> {
    Ok(shared.events.page(&query))
}

fn doctor(shared: &Shared, _: NoQuery) -> Result<DoctorReport, ApiError> {
    let mut findings = crate::doctor::examine(&shared.state_dir);
    findings.extend(shared.node.findings());
    Ok(DoctorReport {
        schema: SCHEMA,
        findings,
    })
}

async fn set(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Answer {
    change(shared, caller, request, set_and_tell).await
}

fn set_and_tell(shared: &Shared, request: SetRequest) -> Result<SettingReply, ApiError> {
    let reply = shared.settings.set(&request)?;
    let node = shared.settings.node();
    let (file_size, files) = (node.events_file_size, node.events_files);
    shared.events.set_file_limits(file_size, files);
    shared.node.settings_changed(request.group.as_ref());
    for setting in &reply.settings {
        let text = format!("{} = {}, {}", setting.key, setting.value, setting.applies);
        let mut event = NewEvent::new(EventId::SettingChanged, text);
        event.group.clone_from(&request.group);
        shared.events.publish(event);
    }
    Ok(reply)
}

async fn unknown(Extension(caller): Extension<Caller>, request: Request) -> Answer {
    caller.needs(Role::Monitor)?;
    let path: String = request.uri().path().chars().take(80).collect();
    Err(Refusal(ApiError::new(
        ErrorCode::NoSuchCommand,
        format!("{} {path}", request.method()),
        "this daemon has no such command",
        "use a blkctl of the daemon's version: blkrepd --version tells it",
    )))
}
