//! The routes of the write side.

mod accounts;
mod config_sets;
mod dead_letters;
mod destinations;
mod events;
mod identities;
mod send;
mod suppression;

use sendtrail_schemas::problem::Problem;
use sendtrail_schemas::web::invalid;
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

/// An identifier for something new.
#[expect(clippy::disallowed_methods, reason = "identifiers are made at the door and travel in records")]
fn fresh() -> uuid::Uuid {
    uuid::Uuid::new_v4()
}

/// Whether a field holds CR, LF or NUL, which must not reach a header.
fn one_line(name: &str, text: &str) -> Result<(), Problem> {
    if sendtrail_schemas::address::has_line_break(text) {
        return Err(invalid(format!("{name} holds a line break or NUL")));
    }
    Ok(())
}
