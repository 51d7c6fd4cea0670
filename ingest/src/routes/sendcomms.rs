//! S3's surface: `/api/v1/webhooks`. Each gets every email event of the account, in S3's dialect.

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use sendtrail_schemas::destination::{Destination, Dialect, Surface};
use sendtrail_schemas::directory::KeyOwner;
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::problem::{Code, Problem};
use sendtrail_schemas::time::Millis;
use sendtrail_schemas::web::{Nothing, Query, created, ok};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::destinations::{DestinationRequest, destination_id, find};
use crate::Ingest;
use crate::body::Json;
use crate::submit::Stamp;

/// A webhook.
#[derive(Deserialize, ToSchema)]
pub(super) struct WebhookRequest {
    url: Option<String>,
    /// `email.sent`, `email.delivered`, `email.bounced`, `email.complained`, `email.opened`, `email.clicked`; none: all.
    events: Option<Vec<String>>,
    /// Absent: one is made.
    secret: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct WebhookView {
    id: String,
    url: String,
    events: Vec<&'static str>,
    /// Shown once.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
    active: bool,
    created_at: Millis,
}

fn view(destination: &Destination, secret: Option<String>) -> WebhookView {
    WebhookView {
        id: destination.id().map(|id| id.to_string()).unwrap_or_default(),
        url: destination.webhook_url.clone(),
        events: events(destination),
        secret,
        active: destination.enabled,
        created_at: Millis(destination.created_at),
    }
}

/// The events of a destination by its dialect's names, each once.
pub(super) fn events(destination: &Destination) -> Vec<&'static str> {
    let (dialect, bounces) = (destination.dialect(), destination.bounces());
    // Only of bounces there are two kinds, which S1 has names for, should such a webhook speak its dialect.
    let named = |kind: EventType| {
        let permanents = [true, false].into_iter().filter(move |permanent| bounces.include(*permanent));
        permanents.filter_map(move |permanent| dialect.event_name(kind, permanent))
    };
    let mut names = Vec::new();
    for name in destination.matching_event_types().flat_map(named) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

#[derive(Serialize, ToSchema)]
struct One {
    data: WebhookView,
}

#[derive(Serialize, ToSchema)]
struct Many {
    data: Vec<WebhookView>,
}

/// Whether all events are of a dialect: others would never come.
pub(super) fn all_spoken(events: Option<&Vec<String>>, dialect: Dialect) -> Result<(), Problem> {
    for name in events.into_iter().flatten() {
        let known = EventType::ALL.into_iter().any(|kind| dialect.event_name(kind, true) == Some(name.as_str()));
        if !known {
            return Err(Problem::new(Code::InvalidRequest, format!("events: {name:?} is none that is sent")));
        }
    }
    Ok(())
}

/// Register a webhook. Its secret is shown in this answer only.
#[utoipa::path(post, path = "/", tag = "sendcomms", request_body = WebhookRequest,
    responses((status = 201, description = "the webhook", body = inline(One)), (status = 400, description = "INVALID_REQUEST")))]
pub(super) async fn create(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    stamp: Stamp,
    Json(request): Json<WebhookRequest>,
) -> Result<Response, Problem> {
    all_spoken(request.events.as_ref(), Dialect::Sendcomms)?;
    let request = DestinationRequest::of("webhook", request.url, request.events, request.secret, None);
    let kind = (Surface::Sendcomms, Dialect::Sendcomms);
    let made = ingest.create_destination(&owner.account, stamp, None, kind, request).await?;
    Ok(created(One { data: view(find(&made.account, made.id)?, made.secret) }))
}

/// List webhooks, without their secrets.
#[utoipa::path(get, path = "/", tag = "sendcomms",
    responses((status = 200, description = "webhooks", body = inline(Many))))]
pub(super) async fn list(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
) -> Result<Response, Problem> {
    let account = ingest.account(owner.account.id())?;
    let mine = account.webhooks.iter().filter(|webhook| webhook.surface() == Surface::Sendcomms);
    Ok(ok(Many { data: mine.map(|webhook| view(webhook, None)).collect() }))
}

#[derive(Deserialize)]
pub(super) struct Which {
    id: Option<String>,
}

/// Delete a webhook.
#[utoipa::path(delete, path = "/", tag = "sendcomms", params(("id" = String, Query)),
    responses((status = 200, description = "gone"), (status = 404, description = "NOT_FOUND")))]
pub(super) async fn delete(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    stamp: Stamp,
    Query(which): Query<Which>,
) -> Result<Response, Problem> {
    let id = which.id.ok_or_else(|| Problem::new(Code::MissingParam, "id is needed"))?;
    let id = destination_id(&id)?;
    let account = ingest.account(owner.account.id())?;
    if find(&account, id)?.surface() != Surface::Sendcomms {
        return Err(Problem::new(Code::NotFound, "no such webhook"));
    }
    ingest.delete_destination(&account, stamp, id).await?;
    Ok(ok(Nothing {}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sendtrail_schemas::destination::Bounces;

    #[test]
    fn bounces_have_the_names_of_those_that_come() {
        let shown = |dialect: Dialect, bounces: Bounces| {
            let types = vec![EventType::Delivery as i32, EventType::Bounce as i32];
            events(&Destination {
                dialect: dialect as i32,
                matching_event_types: types,
                bounces: bounces as i32,
                ..Destination::default()
            })
        };
        for (bounces, expected) in [
            (Bounces::Both, &["delivered", "bounced.hard", "bounced.soft"][..]),
            (Bounces::Hard, &["delivered", "bounced.hard"]),
            (Bounces::Soft, &["delivered", "bounced.soft"]),
        ] {
            assert_eq!(shown(Dialect::Nexuspromail, bounces), expected);
            assert_eq!(shown(Dialect::Sendcomms, bounces), ["email.delivered", "email.bounced"]);
        }
    }
}
