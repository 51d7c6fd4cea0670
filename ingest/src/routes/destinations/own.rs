//! Every destination of an account in one place, whatever surface it was made on; and the two that an account has one of: the
//! account-level webhook (S2), and the one that is told of the others.

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use sendtrail_schemas::account::AccountConfig;
use sendtrail_schemas::destination::{Destination, Dialect, Surface};
use sendtrail_schemas::directory::KeyOwner;
use sendtrail_schemas::ids::DestinationId;
use sendtrail_schemas::problem::{Code, Problem};
use sendtrail_schemas::record::DestinationName;
use sendtrail_schemas::web::{Nothing, Path, invalid, ok};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{DestinationRequest, DestinationView, destination_id, find, types};
use crate::Ingest;
use crate::body::Json;
use crate::submit::Stamp;

#[derive(Serialize, ToSchema)]
struct One {
    destination: DestinationView,
}

#[derive(Serialize, ToSchema)]
struct All {
    destinations: Vec<DestinationView>,
    next_cursor: Option<String>,
}

/// List every webhook destination of the account, of sets and its own.
#[utoipa::path(get, path = "/destinations", tag = "webhooks",
    responses((status = 200, description = "destinations", body = inline(All))))]
pub(in crate::routes) async fn list(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
) -> Result<Response, Problem> {
    let account = ingest.account(owner.account.id())?;
    let destinations = account.destinations().map(|dest| DestinationView::of(&account, dest)).collect();
    Ok(ok(All { destinations, next_cursor: None }))
}

/// Show a destination with its health.
#[utoipa::path(get, path = "/destinations/{destination_id}", tag = "webhooks", params(("destination_id" = String, Path)),
    responses((status = 200, description = "the destination", body = inline(One)), (status = 404, description = "NOT_FOUND")))]
pub(in crate::routes) async fn get(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    Path(destination): Path<String>,
) -> Result<Response, Problem> {
    let account = ingest.account(owner.account.id())?;
    let found = find(&account, destination_id(&destination)?)?;
    Ok(ok(One { destination: DestinationView::of(&account, found) }))
}

/// Change a destination; what is absent stays. Enabling one that was disabled lets it be tried again at once.
#[utoipa::path(patch, path = "/destinations/{destination_id}", tag = "webhooks", params(("destination_id" = String, Path)),
    request_body = DestinationRequest,
    responses((status = 200, description = "the destination", body = inline(One)), (status = 404, description = "NOT_FOUND")))]
pub(in crate::routes) async fn patch(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    Path(destination): Path<String>,
    stamp: Stamp,
    Json(request): Json<DestinationRequest>,
) -> Result<Response, Problem> {
    let name = anywhere(destination_id(&destination)?);
    let made = ingest.patch_destination(&owner.account, stamp, name, request).await?;
    Ok(ok(One { destination: made.view()? }))
}

/// Delete a destination; what was not delivered to it yet never is.
#[utoipa::path(delete, path = "/destinations/{destination_id}", tag = "webhooks", params(("destination_id" = String, Path)),
    responses((status = 200, description = "gone"), (status = 404, description = "NOT_FOUND")))]
pub(in crate::routes) async fn delete(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    Path(destination): Path<String>,
    stamp: Stamp,
) -> Result<Response, Problem> {
    ingest.delete_destination(&owner.account, stamp, destination_id(&destination)?).await?;
    Ok(ok(Nothing {}))
}

/// A destination wherever it is.
pub(in crate::routes) fn anywhere(id: DestinationId) -> DestinationName {
    DestinationName { config_set_id: Vec::new(), destination_id: id.bytes().to_vec() }
}

/// Which sample.
#[derive(Deserialize, ToSchema)]
pub(in crate::routes) struct TestRequest {
    /// A type that the destination's dialect has a name for; `Delivery` by default. `bounced.hard` and `bounced.soft` are bounces.
    event_type: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct Tested {
    test: TestView,
}

/// What a receiver made of a sample.
#[derive(Serialize, ToSchema)]
struct TestView {
    /// The event's name in the destination's dialect.
    event: String,
    /// Whether the answer counts as delivered.
    delivered: bool,
    status_code: Option<u16>,
    /// `none`, `status`, `timeout`, `dns`, `connection`, `tls`, `refused` or `secret`.
    failure: &'static str,
    error: Option<String>,
    latency_ms: u64,
    /// What the receiver said, its first 4 KiB.
    response: String,
}

/// Post a signed sample and tell what came of it. Nothing is recorded, and nothing is tried again.
#[utoipa::path(post, path = "/destinations/{destination_id}/test", tag = "webhooks", params(("destination_id" = String, Path)),
    request_body = TestRequest,
    responses((status = 200, description = "what the receiver made of it", body = inline(Tested)), (status = 404, description = "NOT_FOUND")))]
pub(in crate::routes) async fn test(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    Path(destination): Path<String>,
    Json(request): Json<TestRequest>,
) -> Result<Response, Problem> {
    let account = ingest.account(owner.account.id())?;
    let found = find(&account, destination_id(&destination)?)?;
    let name = request.event_type.as_deref().unwrap_or("Delivery");
    let unknown = || invalid(format!("event_type {name:?} is none that we know"));
    let (kind, part) = types::one(name).ok_or_else(unknown)?;
    // Of the kind that is named, whichever the destination asked for.
    let bounces = part.unwrap_or(found.bounces()) as i32;
    let sampled = ingest.parts().samples.post(&account, &Destination { bounces, ..found.clone() }, kind).await;
    let unspoken = || invalid(format!("the dialect {} has no name for {name}", found.dialect().name()));
    let sampled = sampled.ok_or_else(unspoken)?;
    Ok(ok(Tested {
        test: TestView {
            event: sampled.event_name,
            delivered: sampled.failure == "none",
            status_code: sampled.status_code,
            failure: sampled.failure,
            error: sampled.error,
            latency_ms: sampled.latency.as_millis() as u64,
            response: sampled.response,
        },
    }))
}

#[derive(Serialize, ToSchema)]
struct Webhook {
    webhook: DestinationView,
}

async fn put_single(
    ingest: &Ingest,
    owner: &KeyOwner,
    stamp: Stamp,
    (surface, dialect): (Surface, Dialect),
    request: DestinationRequest,
) -> Result<Response, Problem> {
    let account = ingest.account(owner.account.id())?;
    let made = match account.webhook_of(surface).and_then(|there| there.id()) {
        Some(id) => ingest.patch_destination(&account, stamp, anywhere(id), request).await?,
        None => {
            let name = request.name.clone().or_else(|| Some(surface.name().to_owned()));
            let request = DestinationRequest { name, ..request };
            ingest.create_destination(&account, stamp, None, (surface, dialect), request).await?
        }
    };
    Ok(ok(Webhook { webhook: made.view()? }))
}

fn single(account: &AccountConfig, surface: Surface) -> Result<DestinationId, Problem> {
    let missing = || Problem::new(Code::NotFound, format!("the account has no {} webhook", surface.name()));
    account.webhook_of(surface).and_then(|there| there.id()).ok_or_else(missing)
}

fn show_single(ingest: &Ingest, owner: &KeyOwner, surface: Surface) -> Result<Response, Problem> {
    let account = ingest.account(owner.account.id())?;
    let found = find(&account, single(&account, surface)?)?;
    Ok(ok(Webhook { webhook: DestinationView::of(&account, found) }))
}

async fn delete_single(ingest: &Ingest, owner: &KeyOwner, stamp: Stamp, surface: Surface) -> Result<Response, Problem> {
    let account = ingest.account(owner.account.id())?;
    ingest.delete_destination(&account, stamp, single(&account, surface)?).await?;
    Ok(ok(Nothing {}))
}

const OF_ACCOUNT: (Surface, Dialect) = (Surface::Account, Dialect::Splashify);
const OPERATIONAL: (Surface, Dialect) = (Surface::Operational, Dialect::Standard);

/// Set the account-level webhook: every email event of the account, whatever its set, and lifecycle posts.
#[utoipa::path(put, path = "/webhook", tag = "webhooks", request_body = DestinationRequest,
    responses((status = 200, description = "the webhook", body = inline(Webhook))))]
pub(in crate::routes) async fn put_webhook(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    stamp: Stamp,
    Json(request): Json<DestinationRequest>,
) -> Result<Response, Problem> {
    put_single(&ingest, &owner, stamp, OF_ACCOUNT, request).await
}

/// Show the account-level webhook.
#[utoipa::path(get, path = "/webhook", tag = "webhooks",
    responses((status = 200, description = "the webhook", body = inline(Webhook)), (status = 404, description = "NOT_FOUND")))]
pub(in crate::routes) async fn get_webhook(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
) -> Result<Response, Problem> {
    show_single(&ingest, &owner, Surface::Account)
}

/// Delete the account-level webhook.
#[utoipa::path(delete, path = "/webhook", tag = "webhooks",
    responses((status = 200, description = "gone"), (status = 404, description = "NOT_FOUND")))]
pub(in crate::routes) async fn delete_webhook(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    stamp: Stamp,
) -> Result<Response, Problem> {
    delete_single(&ingest, &owner, stamp, Surface::Account).await
}

/// Set the operational webhook: told, in Standard Webhooks, when a destination fails, recovers or is disabled.
#[utoipa::path(put, path = "/operational-webhook", tag = "webhooks", request_body = DestinationRequest,
    responses((status = 200, description = "the webhook", body = inline(Webhook))))]
pub(in crate::routes) async fn put_operational(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    stamp: Stamp,
    Json(request): Json<DestinationRequest>,
) -> Result<Response, Problem> {
    put_single(&ingest, &owner, stamp, OPERATIONAL, request).await
}

/// Show the operational webhook.
#[utoipa::path(get, path = "/operational-webhook", tag = "webhooks",
    responses((status = 200, description = "the webhook", body = inline(Webhook)), (status = 404, description = "NOT_FOUND")))]
pub(in crate::routes) async fn get_operational(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
) -> Result<Response, Problem> {
    show_single(&ingest, &owner, Surface::Operational)
}

/// Delete the operational webhook.
#[utoipa::path(delete, path = "/operational-webhook", tag = "webhooks",
    responses((status = 200, description = "gone"), (status = 404, description = "NOT_FOUND")))]
pub(in crate::routes) async fn delete_operational(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    stamp: Stamp,
) -> Result<Response, Problem> {
    delete_single(&ingest, &owner, stamp, Surface::Operational).await
}
