//! Events as they happen: one JSON object a line until either side ends it.
//!
//! Owns the stream of one follower, with its bounds: a number of followers, and a time within
//! which a follower must read what it is sent.

use super::commands::{Caller, query_of};
use super::http::Refusal;
use super::peer::Role;
use super::server::Shared;
use axum::body::{Body, Bytes};
use axum::extract::{Extension, Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use blkrep_api::{ApiError, ErrorCode, EventQuery, FollowLine};
use http_body_util::channel::{Channel, Sender};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;

/// Lines on their way to one follower at most.
const LINES_BUFFERED: usize = 64;
/// An idle stream carries a line this often, so that both sides notice when the other has gone.
const IDLE: Duration = Duration::from_secs(15);
/// A follower that does not read for this long is dropped.
const STUCK: Duration = Duration::from_secs(30);

pub(super) async fn follow(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Refusal> {
    caller.needs(Role::Monitor)?;
    let query: EventQuery = query_of(&request)?;
    let permit = Arc::clone(&shared.followers).try_acquire_owned();
    let permit = permit.map_err(|_| {
        ApiError::new(
            ErrorCode::Overloaded,
            "events",
            "too many clients follow them already",
            "end one of them, or ask without --follow",
        )
    })?;
    let (sender, body) = Channel::<Bytes, Infallible>::new(LINES_BUFFERED);
    tokio::spawn(send_all(shared, query, sender, permit));
    let lines = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((lines, Body::new(body)).into_response())
}

/// Sends until the follower has gone, is stuck, or the daemon stops.
async fn send_all(
    shared: Arc<Shared>,
    mut query: EventQuery,
    mut sender: Sender<Bytes>,
    _permit: OwnedSemaphorePermit,
) {
    let mut newest = shared.events.watch();
    let mut stop = shared.stop.subscribe();
    loop {
        newest.mark_unchanged();
        let page = shared.events.page(&query);
        // What was missed is only news to a follower that had been told of what came before.
        let missed = query.after.map_or(0, |_| page.missed);
        let missed = (missed > 0).then_some(FollowLine::Missed { count: missed });
        let events = page.events.into_iter().map(FollowLine::Event);
        for line in missed.into_iter().chain(events) {
            if !send(&mut sender, &line).await {
                return;
            }
        }
        // The limit is one of the first page only.
        query.limit = None;
        query.after = Some(page.next);
        let idle = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            changed = newest.changed() => match changed {
                Ok(()) => false,
                Err(_) => return,
            },
            () = tokio::time::sleep(IDLE) => true,
        };
        if idle && !send(&mut sender, &FollowLine::Idle).await {
            return;
        }
    }
}

async fn send(sender: &mut Sender<Bytes>, line: &FollowLine) -> bool {
    let Ok(mut bytes) = serde_json::to_vec(line) else {
        return false;
    };
    bytes.push(b'\n');
    let sent = tokio::time::timeout(STUCK, sender.send_data(bytes.into())).await;
    matches!(sent, Ok(Ok(())))
}
