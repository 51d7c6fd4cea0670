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
use sendtrail_schemas::problem::{Code, Problem};
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
        let read = axum::body::to_bytes(request.into_body(), SMALL);
        let late = |_| Problem::new(Code::RequestTimeout, "the body took too long to arrive");
        let read = timeout(SMALL_WITHIN, read).await.map_err(late)?;
        let large = |_| Problem::new(Code::PayloadTooLarge, format!("the body has more than {SMALL} bytes"));
        Ok(Self(read.map_err(large)?))
    }
}
