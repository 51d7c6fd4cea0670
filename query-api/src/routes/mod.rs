//! The routes of the read side.

mod events;
mod standing;
mod stats;

use axum::http::HeaderValue;
use axum::response::Response;
use sendtrail_schemas::time::Millis;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::Query;

/// What a partner may read, below `/api/v1/partner/email`. To be put behind the keys of the write side.
pub fn partner_routes() -> OpenApiRouter<Query> {
    OpenApiRouter::new()
        .routes(routes!(events::list))
        .routes(routes!(events::message))
        .routes(routes!(stats::stats))
        .routes(routes!(standing::reputation))
        .routes(routes!(standing::quotas))
}

/// What the administrator may read, below `/api/v1/admin`. To be put behind the administrator's key.
pub fn admin_routes() -> OpenApiRouter<Query> {
    OpenApiRouter::new().routes(routes!(events::history))
}

/// The header of an answer from the archive while ClickHouse cannot answer: when it was true.
const AS_OF: &str = "sendtrail-as-of";

/// An answer with the time when it was true, if that is to be told.
fn dated(mut response: Response, as_of: Option<Millis>) -> Response {
    if let Some(value) = as_of.and_then(|at| HeaderValue::try_from(at.to_string()).ok()) {
        response.headers_mut().insert(AS_OF, value);
    }
    response
}
