//! The routes of the read side.

mod deliveries;
mod events;
mod exports;
mod reconciliation;
mod replays;
mod standing;
mod stats;

use std::time::Duration;

use axum::extract::{FromRequest, Request};
use axum::http::header;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use sendtrail_schemas::problem::{Code, Problem};
use sendtrail_schemas::web::check_type;
use tokio::time::timeout;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::Query;

/// What a partner may read, below `/api/v1/partner/email`. To be put behind the keys of the write side.
pub fn partner_routes() -> OpenApiRouter<Query> {
    OpenApiRouter::new()
        .routes(routes!(events::list))
        .routes(routes!(events::message))
        .routes(routes!(events::activity))
        .routes(routes!(deliveries::list))
        .routes(routes!(deliveries::get))
        .routes(routes!(replays::retry))
        .routes(routes!(replays::recover))
        .routes(routes!(replays::replay, replays::replays))
        .routes(routes!(replays::get_replay, replays::cancel_replay))
        .routes(routes!(exports::start, exports::list))
        .routes(routes!(exports::get, exports::remove))
        .routes(routes!(exports::file))
        .routes(routes!(stats::stats))
        .routes(routes!(standing::reputation))
        .routes(routes!(standing::quotas))
}

/// What the administrator may read, below `/api/v1/admin`. To be put behind the administrator's key.
pub fn admin_routes() -> OpenApiRouter<Query> {
    OpenApiRouter::new()
        .routes(routes!(events::history))
        .routes(routes!(events::admin_activity))
        .routes(routes!(reconciliation::reconciliation))
        .routes(routes!(exports::admin_start, exports::admin_list))
        .routes(routes!(exports::admin_get, exports::admin_remove))
        .routes(routes!(exports::admin_file))
}

/// Files of exports by signed links, below `/api/v1`. They need no key.
pub fn link_routes() -> OpenApiRouter<Query> {
    OpenApiRouter::new().routes(routes!(exports::linked))
}

/// Bytes of a small body.
const SMALL: usize = 64 << 10;
/// How long a small body may take to arrive.
const SMALL_WITHIN: Duration = Duration::from_secs(10);

/// A small body, as it came.
struct Body(bytes::Bytes);

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        check_type(request.headers())?;
        if request.headers().get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
            return Err(Problem::new(Code::UnsupportedMediaType, "a body this small is not packed"));
        }
        let read = Limited::new(request.into_body(), SMALL).collect();
        let late = |_| Problem::new(Code::RequestTimeout, "the body took too long to arrive");
        let read = timeout(SMALL_WITHIN, read).await.map_err(late)?;
        let broken = |cause: Box<dyn std::error::Error + Send + Sync>| match cause.is::<LengthLimitError>() {
            true => Problem::new(Code::PayloadTooLarge, format!("the body has more than {SMALL} bytes")),
            false => Problem::new(Code::InvalidRequest, "the body broke off"),
        };
        Ok(Self(read.map_err(broken)?.to_bytes()))
    }
}
