//! Event destinations of a configuration set.

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use sendtrail_schemas::account::ConfigSet;
use sendtrail_schemas::destination::{Destination, Dialect, Surface};
use sendtrail_schemas::directory::KeyOwner;
use sendtrail_schemas::ids::{ConfigSetId, DestinationId};
use sendtrail_schemas::problem::{Code, Problem};
use sendtrail_schemas::record::{Change, DestinationName};
use sendtrail_schemas::web::{Nothing, Path, created, ok};
use serde::Serialize;
use utoipa::ToSchema;

use super::{DestinationRequest, DestinationView, destination_id};
use crate::Ingest;
use crate::body::Json;
use crate::routes::config_sets::{find as find_set, set_id};
use crate::submit::Stamp;

#[derive(Serialize, ToSchema)]
struct One {
    event_destination: DestinationView,
}

fn find(set: &ConfigSet, id: DestinationId) -> Result<&Destination, Problem> {
    let found = set.destinations.iter().find(|destination| destination.destination_id == id.bytes());
    found.ok_or_else(|| Problem::new(Code::NotFound, "no such event destination"))
}

fn name(set: ConfigSetId, destination: DestinationId) -> DestinationName {
    DestinationName { config_set_id: set.bytes().to_vec(), destination_id: destination.bytes().to_vec() }
}

/// Create a destination; a set has at most five.
#[utoipa::path(post, path = "/configuration-sets/{config_set_id}/event-destinations", tag = "event destinations",
    params(("config_set_id" = String, Path)), request_body = DestinationRequest,
    responses((status = 201, description = "the destination, without its secret unless that was made", body = inline(One)),
        (status = 400, description = "INVALID_REQUEST, DESTINATION_LIMIT_REACHED"), (status = 404, description = "CONFIG_SET_NOT_FOUND")))]
pub(in crate::routes) async fn create(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    Path(set): Path<String>,
    stamp: Stamp,
    Json(request): Json<DestinationRequest>,
) -> Result<Response, Problem> {
    let set = set_id(&set)?;
    let kind = (Surface::ConfigSet, Dialect::Splashify);
    let made = ingest.create_destination(&owner.account, stamp, Some(set), kind, request).await?;
    Ok(created(One { event_destination: made.view()? }))
}

#[derive(Serialize, ToSchema)]
struct Destinations {
    event_destinations: Vec<DestinationView>,
    next_cursor: Option<String>,
}

/// List a set's destinations.
#[utoipa::path(get, path = "/configuration-sets/{config_set_id}/event-destinations", tag = "event destinations",
    params(("config_set_id" = String, Path)),
    responses((status = 200, description = "destinations", body = inline(Destinations)), (status = 404, description = "CONFIG_SET_NOT_FOUND")))]
pub(in crate::routes) async fn list(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    Path(set): Path<String>,
) -> Result<Response, Problem> {
    let account = ingest.account(owner.account.id())?;
    let set = find_set(&account, set_id(&set)?)?;
    let event_destinations = set.destinations.iter().map(|dest| DestinationView::of(&account, dest)).collect();
    Ok(ok(Destinations { event_destinations, next_cursor: None }))
}

/// Show a destination, without its secret.
#[utoipa::path(get, path = "/configuration-sets/{config_set_id}/event-destinations/{destination_id}", tag = "event destinations",
    params(("config_set_id" = String, Path), ("destination_id" = String, Path)),
    responses((status = 200, description = "the destination", body = inline(One)), (status = 404, description = "CONFIG_SET_NOT_FOUND, NOT_FOUND")))]
pub(in crate::routes) async fn get(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    Path((set, destination)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let account = ingest.account(owner.account.id())?;
    let set = find_set(&account, set_id(&set)?)?;
    let found = find(set, destination_id(&destination)?)?;
    Ok(ok(One { event_destination: DestinationView::of(&account, found) }))
}

/// Change a destination; what is absent stays. A new secret is effective with the next event.
#[utoipa::path(patch, path = "/configuration-sets/{config_set_id}/event-destinations/{destination_id}", tag = "event destinations",
    params(("config_set_id" = String, Path), ("destination_id" = String, Path)), request_body = DestinationRequest,
    responses((status = 200, description = "the destination", body = inline(One)), (status = 404, description = "CONFIG_SET_NOT_FOUND, NOT_FOUND")))]
pub(in crate::routes) async fn patch(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    Path((set, destination)): Path<(String, String)>,
    stamp: Stamp,
    Json(request): Json<DestinationRequest>,
) -> Result<Response, Problem> {
    let name = name(set_id(&set)?, destination_id(&destination)?);
    let made = ingest.patch_destination(&owner.account, stamp, name, request).await?;
    Ok(ok(One { event_destination: made.view()? }))
}

/// Delete a destination; what was not delivered to it yet never is.
#[utoipa::path(delete, path = "/configuration-sets/{config_set_id}/event-destinations/{destination_id}", tag = "event destinations",
    params(("config_set_id" = String, Path), ("destination_id" = String, Path)),
    responses((status = 200, description = "gone"), (status = 404, description = "CONFIG_SET_NOT_FOUND, NOT_FOUND")))]
pub(in crate::routes) async fn delete(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    Path((set, destination)): Path<(String, String)>,
    stamp: Stamp,
) -> Result<Response, Problem> {
    let name = name(set_id(&set)?, destination_id(&destination)?);
    ingest.command(owner.account.id(), stamp, Change::DeleteDestination(name)).await?;
    Ok(ok(Nothing {}))
}
