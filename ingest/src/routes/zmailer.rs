//! S4's surface: `/webhooks` at the root. Each gets every email event of the account, in S4's dialect.

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use sendtrail_schemas::account::{AccountConfig, KeyScope};
use sendtrail_schemas::destination::{Destination, Dialect, Surface};
use sendtrail_schemas::directory::KeyOwner;
use sendtrail_schemas::ids::DestinationId;
use sendtrail_schemas::problem::{Code, Problem};
use sendtrail_schemas::time::Millis;
use sendtrail_schemas::web::{Nothing, Path, created, ok};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::destinations::own::anywhere;
use super::destinations::{DestinationRequest, destination_id, find};
use super::sendcomms::{all_spoken, events};
use crate::Ingest;
use crate::body::Json;
use crate::submit::Stamp;

/// An endpoint, or other values for one; in an update, what is absent stays.
#[derive(Deserialize, ToSchema)]
pub(super) struct EndpointRequest {
    url: Option<String>,
    /// `email.sent`, `email.delivered`, `email.bounced`, `email.complained`, `email.failed`; empty: all.
    events: Option<Vec<String>>,
    description: Option<String>,
    active: Option<bool>,
}

#[derive(Serialize, ToSchema)]
struct EndpointView {
    id: String,
    url: String,
    events: Vec<&'static str>,
    description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
    active: bool,
    created_at: Millis,
}

fn view(destination: &Destination, secret: Option<String>) -> EndpointView {
    EndpointView {
        id: destination.id().map(|id| id.to_string()).unwrap_or_default(),
        url: destination.webhook_url.clone(),
        events: events(destination),
        description: destination.description.clone(),
        secret,
        active: destination.enabled,
        created_at: Millis(destination.created_at),
    }
}

#[derive(Serialize, ToSchema)]
struct One {
    endpoint: EndpointView,
}

#[derive(Serialize, ToSchema)]
struct Many {
    endpoints: Vec<EndpointView>,
}

fn mine<'a>(account: &'a AccountConfig, id: &str) -> Result<(DestinationId, &'a Destination), Problem> {
    let id = destination_id(id)?;
    let found = find(account, id)?;
    if found.surface() != Surface::Zmailer {
        return Err(Problem::new(Code::NotFound, "no such endpoint"));
    }
    Ok((id, found))
}

/// Register an endpoint, with a secret that is made for it.
#[utoipa::path(post, path = "/webhooks", tag = "zmailer", request_body = EndpointRequest,
    responses((status = 201, description = "the endpoint", body = inline(One)), (status = 400, description = "INVALID_REQUEST")))]
pub(super) async fn create(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    stamp: Stamp,
    Json(request): Json<EndpointRequest>,
) -> Result<Response, Problem> {
    all_spoken(request.events.as_ref(), Dialect::Zmailer)?;
    let active = request.active;
    let request = DestinationRequest::of("endpoint", request.url, request.events, None, request.description);
    let kind = (Surface::Zmailer, Dialect::Zmailer);
    let request = request.with_enabled(active);
    let made = ingest.create_destination(&owner.account, stamp, None, kind, request).await?;
    Ok(created(One { endpoint: view(find(&made.account, made.id)?, made.secret) }))
}

/// List endpoints, without their secrets.
#[utoipa::path(get, path = "/webhooks", tag = "zmailer",
    responses((status = 200, description = "endpoints", body = inline(Many))))]
pub(super) async fn list(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
) -> Result<Response, Problem> {
    let account = ingest.account(owner.account.id())?;
    let mine = account.webhooks.iter().filter(|webhook| webhook.surface() == Surface::Zmailer);
    Ok(ok(Many { endpoints: mine.map(|webhook| view(webhook, None)).collect() }))
}

/// Show an endpoint, with its secret to keys of the scope `manage`.
#[utoipa::path(get, path = "/webhooks/{id}", tag = "zmailer", params(("id" = String, Path)),
    responses((status = 200, description = "the endpoint", body = inline(One)), (status = 404, description = "NOT_FOUND")))]
pub(super) async fn get(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let account = ingest.account(owner.account.id())?;
    let (_, found) = mine(&account, &id)?;
    // Who has it can sign: that is more than looking.
    let secret = if owner.may(KeyScope::Manage) { ingest.shown_secret(found) } else { None };
    Ok(ok(One { endpoint: view(found, secret) }))
}

/// Change an endpoint; what is absent stays.
#[utoipa::path(put, path = "/webhooks/{id}", tag = "zmailer", params(("id" = String, Path)), request_body = EndpointRequest,
    responses((status = 200, description = "the endpoint", body = inline(One)), (status = 404, description = "NOT_FOUND")))]
pub(super) async fn put(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    Path(id): Path<String>,
    stamp: Stamp,
    Json(request): Json<EndpointRequest>,
) -> Result<Response, Problem> {
    let account = ingest.account(owner.account.id())?;
    let (id, _) = mine(&account, &id)?;
    all_spoken(request.events.as_ref(), Dialect::Zmailer)?;
    let changes = DestinationRequest::changes(request.url, request.events, request.description);
    let changes = changes.with_enabled(request.active);
    let made = ingest.patch_destination(&account, stamp, anywhere(id), changes).await?;
    let found = find(&made.account, made.id)?;
    Ok(ok(One { endpoint: view(found, ingest.shown_secret(found)) }))
}

/// Delete an endpoint.
#[utoipa::path(delete, path = "/webhooks/{id}", tag = "zmailer", params(("id" = String, Path)),
    responses((status = 200, description = "gone"), (status = 404, description = "NOT_FOUND")))]
pub(super) async fn delete(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    Path(id): Path<String>,
    stamp: Stamp,
) -> Result<Response, Problem> {
    let account = ingest.account(owner.account.id())?;
    let (id, _) = mine(&account, &id)?;
    ingest.delete_destination(&account, stamp, id).await?;
    Ok(ok(Nothing {}))
}
