//! The routes of the read side.

mod events;
mod standing;
mod stats;

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
