//! The routes of the write side.

mod accounts;
mod config_sets;
mod dead_letters;
mod destinations;
mod erasures;
mod events;
mod identities;
mod inbound;
mod keys;
mod networks;
mod send;
mod sendcomms;
pub mod style;
mod suppression;
mod zmailer;

use sendtrail_schemas::problem::Problem;
use sendtrail_schemas::web::invalid;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::Ingest;
use destinations::{of_sets, own, secrets};

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
        .routes(routes!(of_sets::create, of_sets::list))
        .routes(routes!(of_sets::get, of_sets::patch, of_sets::delete))
        .routes(routes!(own::list))
        .routes(routes!(own::get, own::patch, own::delete))
        .routes(routes!(own::test))
        .routes(routes!(secrets::rotate))
        .routes(routes!(secrets::switch))
        .routes(routes!(own::put_webhook, own::get_webhook, own::delete_webhook))
        .routes(routes!(own::put_operational, own::get_operational, own::delete_operational))
        .routes(routes!(suppression::list))
        .routes(routes!(networks::get, networks::put))
        .routes(routes!(erasures::delete))
        .routes(routes!(erasures::list))
        .routes(routes!(erasures::get))
        .routes(routes!(suppression::get, suppression::put, suppression::delete))
}

/// What the administrator may write, below `/api/v1/admin`. To be put behind [`crate::auth::admin`].
pub fn admin_routes() -> OpenApiRouter<Ingest> {
    OpenApiRouter::new()
        .routes(routes!(accounts::create, accounts::list))
        .routes(routes!(accounts::get, accounts::patch))
        .routes(routes!(keys::create_key, keys::list_keys))
        .routes(routes!(keys::revoke_key))
        .routes(routes!(accounts::pause))
        .routes(routes!(networks::admin_get, networks::admin_put))
        .routes(routes!(erasures::admin_delete))
        .routes(routes!(erasures::admin_list))
        .routes(routes!(accounts::resume))
        .routes(routes!(identities::override_status))
        .routes(routes!(dead_letters::list))
        .routes(routes!(dead_letters::get))
        .routes(routes!(dead_letters::retry))
        .routes(routes!(inbound::lifecycle))
        .routes(routes!(secrets::reseal))
        .routes(routes!(accounts::tick))
}

/// S3's surface, below `/api/v1/webhooks`. To be put behind [`crate::auth::sendcomms`] and [`style::sendcomms`].
pub fn sendcomms_routes() -> OpenApiRouter<Ingest> {
    OpenApiRouter::new().routes(routes!(sendcomms::create, sendcomms::list, sendcomms::delete))
}

/// S4's surface, at the root. To be put behind [`crate::auth::zmailer`] and [`style::zmailer`].
pub fn zmailer_routes() -> OpenApiRouter<Ingest> {
    OpenApiRouter::new().routes(routes!(zmailer::create, zmailer::list)).routes(routes!(
        zmailer::get,
        zmailer::put,
        zmailer::delete
    ))
}

/// Callbacks of others, below `/api/v1/inbound`: each has its token in its path.
pub fn inbound_routes() -> OpenApiRouter<Ingest> {
    OpenApiRouter::new().routes(routes!(inbound::rcs)).routes(routes!(inbound::whatsapp, inbound::whatsapp_challenge))
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
