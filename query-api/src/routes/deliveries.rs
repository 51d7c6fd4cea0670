//! Deliveries to webhooks: how they stand, and every attempt.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use sendtrail_eventlog::SETTLE;
use sendtrail_schemas::account::AccountConfig;
use sendtrail_schemas::attempts::LoggedAttempt;
use sendtrail_schemas::directory::KeyOwner;
use sendtrail_schemas::ids::{AccountId, DestinationId, delivery_id};
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::mail::{DeliveryStatus, FailureClass};
use sendtrail_schemas::problem::{Code, Problem};
use sendtrail_schemas::time::Millis;
use sendtrail_schemas::web::{Path, Query as Params, id, invalid_param, ok, page};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{DeliveriesQuery, DeliveryRow, Error, Query};

/// A delivery as its owner sees it.
#[derive(Serialize, ToSchema)]
#[schema(as = DeliveryOfDestination)]
struct DeliveryView {
    delivery_id: String,
    destination_id: String,
    partition: u32,
    seq: u64,
    event_type: Option<&'static str>,
    /// `pending`, `failed`, `delivered` or `gave_up`.
    status: &'static str,
    attempts: u32,
    last_status_code: Option<u32>,
    created_at: Millis,
    last_attempt_at: Option<Millis>,
    next_attempt_at: Option<Millis>,
    delivered_at: Option<Millis>,
}

fn view(account: AccountId, destination: DestinationId, row: &DeliveryRow) -> DeliveryView {
    DeliveryView {
        delivery_id: delivery_id(account, row.partition, row.seq, destination).to_string(),
        destination_id: destination.to_string(),
        partition: row.partition,
        seq: row.seq,
        event_type: (row.event_type != EventType::Unspecified).then(|| row.event_type.name()),
        status: row.status.name(),
        attempts: row.attempts,
        last_status_code: row.last_status_code,
        created_at: row.created_at,
        last_attempt_at: row.finished_at.filter(|_| row.attempts > 0),
        next_attempt_at: row.next_due_at,
        delivered_at: row.finished_at.filter(|_| row.status == DeliveryStatus::Delivered),
    }
}

#[derive(Deserialize)]
pub(super) struct ListParams {
    status: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct Deliveries {
    deliveries: Vec<DeliveryView>,
    next_cursor: Option<String>,
}

pub(super) fn destination_of(
    query: &Query,
    owner: &KeyOwner,
    text: &str,
) -> Result<(Arc<AccountConfig>, DestinationId), Problem> {
    let id: DestinationId = id(text, Code::NotFound, "destination")?;
    let account = query.parts().directory.account(owner.account.id()).unwrap_or_else(|| owner.account.clone());
    if account.destination(id).is_none() {
        return Err(Problem::new(Code::NotFound, "no such destination"));
    }
    Ok((account, id))
}

pub(super) fn status(text: &str) -> Result<DeliveryStatus, Problem> {
    let unknown = || invalid_param(format!("status {text:?} is none of pending, failed, delivered, gave_up"));
    DeliveryStatus::parse(text).ok_or_else(unknown)
}

/// List deliveries to a destination, of the newest events first. A page may be short and still have a next one.
#[utoipa::path(get, path = "/destinations/{destination_id}/deliveries", tag = "webhooks",
    params(("destination_id" = String, Path), ("status" = Option<String>, Query, description = "pending, failed, delivered or gave_up"),
        ("limit" = Option<u16>, Query, description = "1 to 1000"), ("cursor" = Option<String>, Query)),
    responses((status = 200, description = "deliveries", body = inline(Deliveries)), (status = 404, description = "NOT_FOUND")))]
pub(super) async fn list(
    State(query): State<Query>,
    Extension(owner): Extension<KeyOwner>,
    Path(destination): Path<String>,
    Params(params): Params<ListParams>,
) -> Result<Response, Problem> {
    let (account, destination) = destination_of(&query, &owner, &destination)?;
    let malformed = |_| invalid_param("cursor is not one of ours");
    let wanted = DeliveriesQuery {
        destination,
        status: params.status.as_deref().map(status).transpose()?,
        before: params.cursor.map(|cursor| cursor.parse()).transpose().map_err(malformed)?,
        limit: page(params.limit.as_deref())?,
        now: query.parts().clock.now(),
    };
    let _ = query.parts().accounts.settle(account.id(), SETTLE).await;
    let reading = async {
        let page = query.parts().deliveries.page(account.id(), &wanted).await?;
        page.ok_or_else(|| Error::Port("how deliveries stand is not known to this server".into()))
    };
    let found = query.bounded(account.id(), reading).await?;
    let deliveries = found.rows.iter().map(|row| view(account.id(), destination, row)).collect();
    Ok(ok(Deliveries { deliveries, next_cursor: found.next.map(|next| next.to_string()) }))
}

/// One attempt.
#[derive(Serialize, ToSchema)]
struct AttemptView {
    number: u32,
    /// `schedule`, `probe` or `replay`: what made it.
    trigger: &'static str,
    started_at: Millis,
    latency_ms: i64,
    status_code: Option<u32>,
    /// `none`, `status`, `timeout`, `dns`, `connection`, `tls`, `refused`, `unavailable`, `gone` or `secret`.
    failure: &'static str,
    error: Option<String>,
    /// What the receiver said, its first 4 KiB, unless it took the delivery.
    response: Option<String>,
    next_attempt_at: Option<Millis>,
}

fn attempt(logged: &LoggedAttempt) -> AttemptView {
    let attempt = &logged.attempt;
    let response = String::from_utf8_lossy(&attempt.response);
    AttemptView {
        number: attempt.number,
        trigger: attempt.trigger().name(),
        started_at: Millis(attempt.started_at),
        latency_ms: attempt.finished_at - attempt.started_at,
        status_code: attempt.status_code,
        failure: if attempt.status() == DeliveryStatus::Delivered {
            FailureClass::None.name()
        } else {
            attempt.failure().name()
        },
        error: attempt.error.clone(),
        response: (!response.is_empty()).then(|| response.into_owned()),
        next_attempt_at: attempt.next_due_at.map(Millis),
    }
}

#[derive(Serialize, ToSchema)]
struct Whole {
    #[serde(flatten)]
    of: DeliveryView,
    /// The first one first.
    attempt_log: Vec<AttemptView>,
}

#[derive(Serialize, ToSchema)]
struct One {
    delivery: Whole,
}

/// The attempts of a delivery of an account, the first one first.
pub(super) async fn attempts_of(query: &Query, account: AccountId, text: &str) -> Result<Vec<LoggedAttempt>, Problem> {
    let missing = || Problem::new(Code::NotFound, "no such delivery, or no attempt at it yet");
    let delivery = text.parse().map_err(|_| missing())?;
    // An attempt may always come later: what is there is shown.
    let _ = query.parts().accounts.settle(account, SETTLE).await;
    let found = query.bounded(account, query.parts().attempts.of_delivery(account, delivery)).await?;
    if found.is_empty() { Err(missing()) } else { Ok(found) }
}

pub(super) fn row(attempts: &[LoggedAttempt]) -> Option<(DestinationId, DeliveryRow)> {
    let last = attempts.last()?;
    let attempt = &last.attempt;
    let received = attempts.iter().map(|logged| logged.attempt.event_received_at).find(|at| *at > 0);
    let row = DeliveryRow {
        partition: last.partition,
        seq: attempt.event_seq,
        status: attempt.status(),
        attempts: attempt.number,
        last_status_code: attempt.status_code,
        created_at: Millis(received.unwrap_or(attempt.first_started_at)),
        event_type: attempt.event_type(),
        finished_at: Some(Millis(attempt.finished_at)),
        next_due_at: attempt.next_due_at.map(Millis),
    };
    Some((attempt.destination().ok()?, row))
}

/// Show a delivery with every attempt.
#[utoipa::path(get, path = "/deliveries/{delivery_id}", tag = "webhooks", params(("delivery_id" = String, Path)),
    responses((status = 200, description = "the delivery", body = inline(One)), (status = 404, description = "NOT_FOUND")))]
pub(super) async fn get(
    State(query): State<Query>,
    Extension(owner): Extension<KeyOwner>,
    Path(delivery): Path<String>,
) -> Result<Response, Problem> {
    let account = owner.account.id();
    let attempts = attempts_of(&query, account, &delivery).await?;
    let (destination, row) = row(&attempts).ok_or_else(Problem::internal)?;
    let attempt_log = attempts.iter().map(attempt).collect();
    Ok(ok(One { delivery: Whole { of: view(account, destination, &row), attempt_log } }))
}
