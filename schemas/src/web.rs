//! What the routes of both sides share: successes, parameters and pages.

use std::str::FromStr;

use axum::Json;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::directory::KeyOwner;
use crate::ids::AccountId;
use crate::networks::ClientAddress;
use crate::problem::{Code, Problem};
use crate::record::Actor;
use crate::time::Millis;

/// Refuses types that are clearly not JSON; tells whether the body is lines of it.
///
/// # Errors
/// 415.
pub fn check_type(headers: &HeaderMap) -> Result<bool, Problem> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(false) };
    let text = value.to_str().unwrap_or_default().to_ascii_lowercase();
    let kind = text.split(';').next().unwrap_or_default().trim();
    let (family, rest) = kind.split_once('/').unwrap_or((kind, ""));
    let another = matches!(family, "image" | "audio" | "video" | "font" | "multipart" | "model" | "message")
        || matches!(rest, "html" | "xml" | "css" | "csv" | "pdf" | "zip" | "javascript")
        || rest.ends_with("+xml");
    if another {
        return Err(Problem::new(Code::UnsupportedMediaType, format!("{kind} is not read here; send JSON")));
    }
    Ok(matches!(rest, "x-ndjson" | "ndjson" | "jsonl" | "x-jsonl" | "jsonlines" | "x-jsonlines"))
}

/// A success: `{"success":true}` and the fields of `T`.
#[derive(Serialize)]
struct Success<T> {
    success: bool,
    #[serde(flatten)]
    rest: T,
}

/// Nothing but success.
#[derive(Serialize)]
pub struct Nothing {}

/// Answers 200.
pub fn ok<T: Serialize>(rest: T) -> Response {
    Json(Success { success: true, rest }).into_response()
}

/// Answers 201.
pub fn created<T: Serialize>(rest: T) -> Response {
    (StatusCode::CREATED, ok(rest)).into_response()
}

/// The header of an answer that may lack what is newer: everything before this time is in it.
pub const AS_OF: HeaderName = HeaderName::from_static("sendtrail-as-of");

/// An answer with the time of which it is true, if that is to be told.
pub fn dated(mut response: Response, as_of: Option<Millis>) -> Response {
    if let Some(value) = as_of.and_then(|at| HeaderValue::try_from(at.to_string()).ok()) {
        response.headers_mut().insert(AS_OF, value);
    }
    response
}

/// Query parameters; what does not parse is INVALID_PARAM.
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let query = axum::extract::Query::<T>::try_from_uri(&parts.uri);
        query.map(|query| Self(query.0)).map_err(|cause| invalid_param(format!("query: {}", cause.body_text())))
    }
}

/// Whose a request is, by what it was let through with: a key, or the administrator's.
pub fn actor(extensions: &axum::http::Extensions) -> Actor {
    let key = extensions.get::<KeyOwner>().map(|owner| owner.key.bytes().to_vec());
    let address = extensions.get::<ClientAddress>().map(|client| client.0.to_string());
    Actor { key_id: key.unwrap_or_default(), address: address.unwrap_or_default() }
}

/// See [`actor`].
pub struct By(pub Actor);

impl<S: Send + Sync> FromRequestParts<S> for By {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(Self(actor(&parts.extensions)))
    }
}

/// Path parameters, unescaped.
pub struct Path<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = axum::extract::Path::<T>::from_request_parts(parts, state).await;
        path.map(|path| Self(path.0)).map_err(|cause| invalid_param(format!("path: {}", cause.body_text())))
    }
}

/// A body that is a JSON object. An array is none, though it could be read as one, field by field.
///
/// # Errors
/// `INVALID_REQUEST` when it is not what is asked for.
pub fn object<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    if body.trim_ascii_start().first().is_some_and(|first| *first == b'[') {
        return Err(invalid("the body is a JSON object, not an array"));
    }
    serde_json::from_slice(body).map_err(|cause| invalid(format!("the body is not what is asked for: {cause}")))
}

/// A body that may be left out.
///
/// # Errors
/// `INVALID_REQUEST` when it is not what is asked for.
pub fn optional_json<T: DeserializeOwned + Default>(body: &[u8]) -> Result<T, Problem> {
    if body.trim_ascii().is_empty() {
        return Ok(T::default());
    }
    object(body)
}

/// INVALID_PARAM.
pub fn invalid_param(message: impl Into<String>) -> Problem {
    Problem::new(Code::InvalidParam, message)
}

/// INVALID_REQUEST.
pub fn invalid(message: impl Into<String>) -> Problem {
    Problem::new(Code::InvalidRequest, message)
}

/// An identifier in a path; one that is malformed names nothing, so it is not found.
///
/// # Errors
/// `missing`.
pub fn id<I: FromStr>(text: &str, missing: Code, what: &str) -> Result<I, Problem> {
    text.parse().map_err(|_| Problem::new(missing, format!("no such {what}")))
}

/// The account of a path.
///
/// # Errors
/// `PARTNER_NOT_FOUND`.
pub fn account_id(text: &str) -> Result<AccountId, Problem> {
    id(text, Code::PartnerNotFound, "account")
}

/// A page's size: 1 to 1000, 100 by default.
///
/// # Errors
/// `INVALID_PARAM`.
pub fn page(limit: Option<&str>) -> Result<usize, Problem> {
    let Some(text) = limit else { return Ok(100) };
    let within = text.parse().ok().filter(|limit| (1..=1000).contains(limit));
    within.ok_or_else(|| invalid_param("limit is a number from 1 to 1000"))
}
