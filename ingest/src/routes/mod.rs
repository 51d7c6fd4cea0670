//! The routes of the write side.

mod accounts;
mod config_sets;
mod dead_letters;
mod destinations;
mod events;
mod identities;
mod send;
mod suppression;

use axum::Json;
use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::problem::{Code, Problem};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::str::FromStr;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::Ingest;

/// What a partner may write, below `/api/v1/partner/email`. To be put behind [`crate::auth::partner`].
pub fn partner_routes() -> OpenApiRouter<Ingest> {
    OpenApiRouter::new()
        .routes(routes!(send::send))
        .routes(routes!(events::post_events))
        .routes(routes!(identities::create, identities::list))
        .routes(routes!(identities::get, identities::delete))
        .routes(routes!(identities::verify))
        .routes(routes!(config_sets::create, config_sets::list))
        .routes(routes!(config_sets::get, config_sets::patch, config_sets::delete))
        .routes(routes!(destinations::create, destinations::list))
        .routes(routes!(destinations::get, destinations::patch, destinations::delete))
        .routes(routes!(suppression::list))
        .routes(routes!(suppression::get, suppression::put, suppression::delete))
}

/// What the administrator may write, below `/api/v1/admin`. To be put behind [`crate::auth::admin`].
pub fn admin_routes() -> OpenApiRouter<Ingest> {
    OpenApiRouter::new()
        .routes(routes!(accounts::create, accounts::list))
        .routes(routes!(accounts::get, accounts::patch))
        .routes(routes!(accounts::create_key, accounts::list_keys))
        .routes(routes!(accounts::revoke_key))
        .routes(routes!(accounts::pause))
        .routes(routes!(accounts::resume))
        .routes(routes!(identities::override_status))
        .routes(routes!(dead_letters::list))
        .routes(routes!(dead_letters::get))
        .routes(routes!(dead_letters::retry))
        .routes(routes!(accounts::tick))
}

/// A success: `{"success":true}` and the fields of `T`.
#[derive(Serialize)]
struct Success<T> {
    success: bool,
    #[serde(flatten)]
    rest: T,
}

fn ok<T: Serialize>(rest: T) -> Response {
    Json(Success { success: true, rest }).into_response()
}

fn created<T: Serialize>(rest: T) -> Response {
    (StatusCode::CREATED, ok(rest)).into_response()
}

/// Nothing but success.
#[derive(Serialize)]
struct Nothing {}

/// Query parameters; what does not parse is INVALID_PARAM.
struct Query<T>(T);

impl<T: DeserializeOwned> FromRequestParts<Ingest> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Ingest) -> Result<Self, Problem> {
        let malformed = |cause: axum::extract::rejection::QueryRejection| {
            Problem::new(Code::InvalidParam, format!("query: {}", cause.body_text()))
        };
        axum::extract::Query::<T>::try_from_uri(&parts.uri)
            .map(|axum::extract::Query(query)| Self(query))
            .map_err(malformed)
    }
}

/// Path parameters, unescaped.
struct Path<T>(T);

impl<T: DeserializeOwned + Send> FromRequestParts<Ingest> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, ingest: &Ingest) -> Result<Self, Problem> {
        let malformed = |cause: axum::extract::rejection::PathRejection| {
            Problem::new(Code::InvalidParam, format!("path: {}", cause.body_text()))
        };
        let path = axum::extract::Path::<T>::from_request_parts(parts, ingest).await;
        path.map(|axum::extract::Path(path)| Self(path)).map_err(malformed)
    }
}

/// An identifier in a path; one that is malformed names nothing, so it is not found.
fn id<I: FromStr>(text: &str, missing: Code, what: &str) -> Result<I, Problem> {
    text.parse().map_err(|_| Problem::new(missing, format!("no such {what}")))
}

fn account_id(text: &str) -> Result<AccountId, Problem> {
    id(text, Code::PartnerNotFound, "account")
}

/// An identifier for something new.
#[expect(clippy::disallowed_methods, reason = "identifiers are made at the door and travel in records")]
fn fresh() -> uuid::Uuid {
    uuid::Uuid::new_v4()
}

fn invalid(message: impl Into<String>) -> Problem {
    Problem::new(Code::InvalidRequest, message)
}

/// A page's size: 1 to 1000, 100 by default.
fn page(limit: Option<&str>) -> Result<usize, Problem> {
    let Some(text) = limit else { return Ok(100) };
    let within = text.parse().ok().filter(|limit| (1..=1000).contains(limit));
    within.ok_or_else(|| Problem::new(Code::InvalidParam, "limit is a number from 1 to 1000"))
}

/// Whether a field holds CR, LF or NUL, which must not reach a header.
fn one_line(name: &str, text: &str) -> Result<(), Problem> {
    if sendtrail_schemas::address::has_line_break(text) {
        return Err(invalid(format!("{name} holds a line break or NUL")));
    }
    Ok(())
}
