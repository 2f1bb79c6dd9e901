//! Replies and errors as HTTP, and requests as values.
//!
//! Owns the translation, with its bounds: no body over [`BODY_BYTES_MAX`], none that takes longer
//! than the request's time-out.

use super::peer::Role;
use axum::Json;
use axum::body::{Body, HttpBody as _, to_bytes};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use blkrep_api::{ApiError, ErrorBody, ErrorCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// Largest request body: `connect` with a path for each of the 64 volumes of a group, twice over.
pub(super) const BODY_BYTES_MAX: usize = 640 << 10;

/// An [`ApiError`] on its way out.
#[derive(Debug)]
pub(super) struct Refusal(pub(super) ApiError);

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.http_status());
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(ErrorBody::from(self.0))).into_response()
    }
}

/// A successful reply.
pub(super) fn success<T: Serialize>(reply: &T) -> Response {
    match serde_json::to_vec(reply) {
        Ok(mut bytes) => {
            bytes.push(b'\n');
            let json = HeaderValue::from_static("application/json");
            ([(header::CONTENT_TYPE, json)], bytes).into_response()
        }
        Err(error) => {
            Refusal(ApiError::internal(format!("encode a reply: {error}"))).into_response()
        }
    }
}

/// Reads and parses a body within its bounds.
pub(super) async fn read_body<T: DeserializeOwned>(
    body: Body,
    time_out: Duration,
) -> Result<T, ApiError> {
    // What is announced too large is refused before anything of it is read.
    if body.size_hint().lower() > BODY_BYTES_MAX as u64 {
        return Err(too_large());
    }
    let bytes = match tokio::time::timeout(time_out, to_bytes(body, BODY_BYTES_MAX)).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) => return Err(broken_body(&error)),
        Err(_) => {
            return Err(ApiError::new(
                ErrorCode::TooSlow,
                "request",
                format!("its body did not arrive within {} s", time_out.as_secs()),
                "send it faster, or raise control.request-timeout",
            ));
        }
    };
    serde_json::from_slice(&bytes).map_err(|error| bad_request(&error.to_string()))
}

fn broken_body(error: &axum::Error) -> ApiError {
    let over = std::error::Error::source(error)
        .is_some_and(|source| source.is::<http_body_util::LengthLimitError>());
    if over {
        too_large()
    } else {
        bad_request(&error.to_string())
    }
}

fn too_large() -> ApiError {
    ApiError::new(
        ErrorCode::TooLarge,
        "request",
        format!("its body is larger than {BODY_BYTES_MAX} bytes"),
        "send less: no legal request is that large",
    )
}

/// The request is not what the command takes.
pub(super) fn bad_request(why: &str) -> ApiError {
    ApiError::new(
        ErrorCode::BadRequest,
        "request",
        why,
        "use a blkctl of the daemon's version, or compare the request with the API's reference",
    )
}

/// The caller's role does not suffice.
pub(super) fn forbidden(role: Role, needed: Role) -> ApiError {
    ApiError::new(
        ErrorCode::Forbidden,
        "request",
        format!(
            "it needs the role {}; yours is {}",
            needed.as_str(),
            role.as_str()
        ),
        format!(
            "run it as root, or as a member of group {}",
            match needed {
                Role::Monitor => super::MONITOR_GROUP,
                Role::None | Role::Administrator => super::ADMIN_GROUP,
            }
        ),
    )
}
