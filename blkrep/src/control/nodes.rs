//! Commands on trust between nodes.
//!
//! Owns their translation into calls of `crate::trust`. What ends connections is told to the data
//! plane by trust itself.

use super::commands::{Answer, Caller, NoQuery, change};
use super::server::Shared;
use axum::extract::{Extension, Request, State};
use blkrep_api::{
    ApiError, ErrorCode, NodeForgetRequest, NodeInviteRequest, NodeList, NodePairRequest,
    NodeRoleRequest, NodeRotateRequest,
};
use std::sync::Arc;
use std::time::Duration;

/// The longest that a token can be used: whoever needs more makes another one.
const VALID_SECONDS_MAX: u64 = 24 * 60 * 60;

pub(super) fn nodes(shared: &Shared, _: NoQuery) -> Result<NodeList, ApiError> {
    Ok(shared.trust.list())
}

pub(super) async fn invite(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Answer {
    change(
        shared,
        caller,
        request,
        |shared, body: NodeInviteRequest| {
            if !(1..=VALID_SECONDS_MAX).contains(&body.valid_seconds) {
                return Err(ApiError::new(
                    ErrorCode::BadRequest,
                    "token",
                    "it is to be valid for less than a second or more than a day",
                    "give --valid from 1s to 1d",
                ));
            }
            let valid = Duration::from_secs(body.valid_seconds);
            shared.trust.invite(body.role, valid)
        },
    )
    .await
}

pub(super) async fn pair(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Answer {
    change(shared, caller, request, |shared, body: NodePairRequest| {
        shared.trust.pair(&body)
    })
    .await
}

pub(super) async fn forget(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Answer {
    change(
        shared,
        caller,
        request,
        |shared, body: NodeForgetRequest| shared.trust.forget(&body.node),
    )
    .await
}

pub(super) async fn role(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Answer {
    change(shared, caller, request, |shared, body: NodeRoleRequest| {
        shared.trust.set_role(&body.node, body.role)
    })
    .await
}

pub(super) async fn rotate(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Answer {
    change(
        shared,
        caller,
        request,
        |shared, body: NodeRotateRequest| shared.trust.rotate(body.force),
    )
    .await
}
