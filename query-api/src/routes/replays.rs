//! Deliveries once more: one, all that gave up, or whatever the history has.

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use sendtrail_schemas::account::AccountConfig;
use sendtrail_schemas::destination::{Replay, ReplayQuery};
use sendtrail_schemas::directory::KeyOwner;
use sendtrail_schemas::ids::{AccountId, DestinationId, ReplayId};
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::mail::DeliveryStatus;
use sendtrail_schemas::problem::{Code, Problem};
use sendtrail_schemas::record::{Actor, Change};
use sendtrail_schemas::time::{DAY, Millis};
use sendtrail_schemas::web::{By, Nothing, Path, created, id, invalid, ok, optional_json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Body;
use super::deliveries::{attempts_of, destination_of, row, status};
use super::events::time;
use crate::{Bookmark, Query};

/// Events that a dry run looks at.
const DRY_EVENTS: u64 = 1_000_000;
/// Deliveries a second that a replay may be bounded to.
const MAX_RATE: u32 = 10_000;

/// A replay as its owner sees it.
#[derive(Serialize, ToSchema)]
struct ReplayView {
    replay_id: String,
    /// `running`, `done`, `cancelled` or `failed`. Deliveries of one that is done may still be under way.
    status: &'static str,
    from: Option<Millis>,
    to: Option<Millis>,
    event_types: Vec<&'static str>,
    destination_ids: Vec<String>,
    statuses: Vec<&'static str>,
    rate_per_second: Option<u32>,
    /// Events looked at.
    events: u64,
    /// Deliveries handed over.
    deliveries: u64,
    created_at: Millis,
    finished_at: Option<Millis>,
    error: Option<String>,
}

fn replay_view(replay: &Replay) -> ReplayView {
    let query = replay.query.clone().unwrap_or_default();
    let counts = replay.counts.unwrap_or_default();
    let whole = query.seq.is_none();
    ReplayView {
        replay_id: replay.id().map(|id| id.to_string()).unwrap_or_default(),
        status: replay.state().name(),
        from: whole.then_some(Millis(query.from)),
        to: whole.then_some(Millis(query.to)),
        event_types: query.event_types().map(EventType::name).collect(),
        destination_ids: query
            .destination_ids
            .iter()
            .filter_map(|id| DestinationId::from_slice(id).ok())
            .map(|id| id.to_string())
            .collect(),
        statuses: query.statuses().map(DeliveryStatus::name).collect(),
        rate_per_second: (replay.rate_per_second > 0).then_some(replay.rate_per_second),
        events: counts.events,
        deliveries: counts.deliveries,
        created_at: Millis(replay.created_at),
        finished_at: replay.finished_at.map(Millis),
        error: (!replay.error.is_empty()).then(|| replay.error.clone()),
    }
}

#[derive(Serialize, ToSchema)]
struct OneReplay {
    replay: ReplayView,
}

#[derive(Serialize, ToSchema)]
struct Dry {
    dry_run: DryView,
}

#[derive(Serialize, ToSchema)]
struct DryView {
    /// Events that match.
    events: u64,
    /// Deliveries that would be made.
    deliveries: u64,
    /// Whether that is all: a dry run ends after a million events, or when its time is over.
    complete: bool,
}

impl Query {
    async fn start(
        &self,
        account: AccountId,
        actor: Actor,
        query: ReplayQuery,
        rate: u32,
    ) -> Result<Response, Problem> {
        let id = ReplayId(fresh());
        let replay =
            Replay { replay_id: id.bytes().to_vec(), query: Some(query), rate_per_second: rate, ..Replay::default() };
        self.parts().changes.make(account, actor, Change::StartReplay(replay)).await?;
        Ok(created(OneReplay { replay: replay_view(&self.replay(account, id)?) }))
    }

    fn replay(&self, account: AccountId, id: ReplayId) -> Result<Replay, Problem> {
        let config = self.parts().directory.account(account);
        let found = config.iter().flat_map(|config| &config.replays).find(|replay| replay.replay_id == id.bytes());
        found.cloned().ok_or_else(|| Problem::new(Code::NotFound, "no such replay"))
    }

    /// What a replay would make.
    async fn dry(&self, account: AccountId, query: &ReplayQuery) -> Result<DryView, Problem> {
        let begun = std::time::Instant::now();
        let mut dry = DryView { events: 0, deliveries: 0, complete: false };
        let mut at = Bookmark { from: Millis(query.from), told: None };
        while dry.events < DRY_EVENTS && begun.elapsed() < self.parts().timeout {
            let page = self.again(account, query, at, usize::MAX).await?;
            dry.events += page.events;
            dry.deliveries += page.deliveries.len() as u64;
            let Some(next) = page.next else {
                dry.complete = true;
                break;
            };
            at = next;
        }
        Ok(dry)
    }
}

/// One that takes nothing would only be noted as having failed again.
fn check_enabled(config: &AccountConfig, id: DestinationId) -> Result<(), Problem> {
    match config.destination(id) {
        Some(found) if !found.enabled => Err(invalid("the destination is disabled; enable it first")),
        _ => Ok(()),
    }
}

/// An identifier for something new: 122 random bits (RFC 9562 §5.4).
fn fresh() -> uuid::Uuid {
    uuid::Builder::from_random_bytes(rand::random()).into_uuid()
}

/// Make a delivery once more, whatever became of it; its identifier stays.
#[utoipa::path(post, path = "/deliveries/{delivery_id}/retry", tag = "webhooks", params(("delivery_id" = String, Path)),
    responses((status = 201, description = "a replay of this one delivery", body = inline(OneReplay)), (status = 404, description = "NOT_FOUND")))]
pub(super) async fn retry(
    State(query): State<Query>,
    Extension(owner): Extension<KeyOwner>,
    By(actor): By,
    Path(delivery): Path<String>,
) -> Result<Response, Problem> {
    let account = owner.account.id();
    let attempts = attempts_of(&query, account, &delivery).await?;
    let (destination, row) = row(&attempts).ok_or_else(Problem::internal)?;
    let (config, _) = destination_of(&query, &owner, &destination.to_string())?;
    check_enabled(&config, destination)?;
    let wanted = ReplayQuery {
        from: row.created_at.0,
        destination_ids: vec![destination.bytes().to_vec()],
        seq: Some(row.seq),
        ..ReplayQuery::default()
    };
    query.start(account, actor, wanted, 0).await
}

/// Since when.
#[derive(Deserialize, ToSchema, Default)]
#[serde(default)]
pub(super) struct RecoverRequest {
    /// A day or a time of the events; needed.
    since: Option<String>,
    /// Until when; now by default. What comes after the request is not part of it.
    until: Option<String>,
    rate_per_second: Option<u32>,
}

/// Make every delivery to a destination once more that was given up since a time.
#[utoipa::path(post, path = "/destinations/{destination_id}/recover", tag = "webhooks", params(("destination_id" = String, Path)),
    request_body = RecoverRequest,
    responses((status = 201, description = "a replay of what was given up", body = inline(OneReplay)), (status = 404, description = "NOT_FOUND")))]
pub(super) async fn recover(
    State(query): State<Query>,
    Extension(owner): Extension<KeyOwner>,
    By(actor): By,
    Path(destination): Path<String>,
    Body(body): Body,
) -> Result<Response, Problem> {
    let (account, destination) = destination_of(&query, &owner, &destination)?;
    check_enabled(&account, destination)?;
    let request: RecoverRequest = optional_json(&body)?;
    let since = request.since.ok_or_else(|| invalid("since is needed: a day or a time"))?;
    let (from, to) = (body_time("since", &since)?, until(&query, "until", request.until.as_deref())?);
    if from >= to {
        return Err(invalid("since is before until"));
    }
    let wanted = ReplayQuery {
        from: from.0,
        to: to.0,
        destination_ids: vec![destination.bytes().to_vec()],
        statuses: vec![DeliveryStatus::GaveUp as i32],
        ..ReplayQuery::default()
    };
    query.start(account.id(), actor, wanted, rate(request.rate_per_second)?).await
}

fn body_time(name: &str, text: &str) -> Result<Millis, Problem> {
    time(name, text).map_err(|problem| Problem { code: Code::InvalidRequest, ..problem })
}

/// Everything that has happened by now, when no end is given, also what is dated ahead: a replay ends at what was there when it was
/// asked for ([`ReplayQuery::below`]).
fn until(query: &Query, name: &str, text: Option<&str>) -> Result<Millis, Problem> {
    match text {
        Some(text) => body_time(name, text),
        None => Ok(query.parts().clock.now().plus(DAY)),
    }
}

fn rate(asked: Option<u32>) -> Result<u32, Problem> {
    match asked {
        Some(rate) if rate == 0 || rate > MAX_RATE => Err(invalid("rate_per_second is 1 to 10000")),
        rate => Ok(rate.unwrap_or(0)),
    }
}

/// What to make once more.
#[derive(Deserialize, ToSchema, Default)]
#[serde(default)]
pub(super) struct ReplayRequest {
    /// Events that happened at or after: a day or a time.
    from: Option<String>,
    /// And before. What comes after the request is not part of it, and is only delivered as new.
    to: Option<String>,
    /// Of these types; none: all.
    event_types: Option<Vec<String>>,
    /// To these destinations, also to those that were made later; none: to all that the event went to.
    destination_ids: Option<Vec<String>>,
    /// Deliveries that stand so: `pending`, `failed`, `delivered`, `gave_up`; none: however they stand.
    statuses: Option<Vec<String>>,
    /// Count, and do nothing.
    dry_run: bool,
    /// Deliveries a second at most.
    rate_per_second: Option<u32>,
}

/// Replay events to webhooks, back to the archive's beginning. Deliveries keep their identifiers, carry `X-Sendtrail-Replay`,
/// and come behind what is new.
#[utoipa::path(post, path = "/events/replay", tag = "webhooks", request_body = ReplayRequest,
    responses((status = 200, description = "a dry run's counts", body = inline(Dry)),
        (status = 201, description = "the replay", body = inline(OneReplay)),
        (status = 400, description = "INVALID_REQUEST, REPLAY_LIMIT_REACHED"), (status = 404, description = "NOT_FOUND")))]
pub(super) async fn replay(
    State(query): State<Query>,
    Extension(owner): Extension<KeyOwner>,
    By(actor): By,
    Body(body): Body,
) -> Result<Response, Problem> {
    let request: ReplayRequest = optional_json(&body)?;
    let from = request.from.as_deref().ok_or_else(|| invalid("from is needed: a day or a time"))?;
    let (from, to) = (body_time("from", from)?, until(&query, "to", request.to.as_deref())?);
    if from >= to {
        return Err(invalid("from is before to"));
    }
    let kind = |name: &String| {
        let kind = EventType::parse(name).ok_or_else(|| invalid(format!("event_types: {name:?} is none that we know")));
        kind.map(|kind| kind as i32)
    };
    let destination = |text: &String| {
        let (_, id) = destination_of(&query, &owner, text)?;
        Ok::<_, Problem>(id.bytes().to_vec())
    };
    let standing = |text: &String| {
        let status = status(text).map_err(|problem| Problem { code: Code::InvalidRequest, ..problem });
        status.map(|status| status as i32)
    };
    let wanted = ReplayQuery {
        from: from.0,
        to: to.0,
        event_types: request.event_types.iter().flatten().map(kind).collect::<Result<_, _>>()?,
        destination_ids: request.destination_ids.iter().flatten().map(destination).collect::<Result<_, _>>()?,
        statuses: request.statuses.iter().flatten().map(standing).collect::<Result<_, _>>()?,
        ..ReplayQuery::default()
    };
    let rate = rate(request.rate_per_second)?;
    if request.dry_run {
        return Ok(ok(Dry { dry_run: query.dry(owner.account.id(), &wanted).await? }));
    }
    query.start(owner.account.id(), actor, wanted, rate).await
}

#[derive(Serialize, ToSchema)]
struct Replays {
    replays: Vec<ReplayView>,
    next_cursor: Option<String>,
}

/// List replays, the newest first; the last twenty are known.
#[utoipa::path(get, path = "/events/replay", tag = "webhooks",
    responses((status = 200, description = "replays", body = inline(Replays))))]
pub(super) async fn replays(
    State(query): State<Query>,
    Extension(owner): Extension<KeyOwner>,
) -> Result<Response, Problem> {
    let config = query.parts().directory.account(owner.account.id()).unwrap_or(owner.account);
    Ok(ok(Replays { replays: config.replays.iter().rev().map(replay_view).collect(), next_cursor: None }))
}

/// Show how far a replay is.
#[utoipa::path(get, path = "/events/replay/{replay_id}", tag = "webhooks", params(("replay_id" = String, Path)),
    responses((status = 200, description = "the replay", body = inline(OneReplay)), (status = 404, description = "NOT_FOUND")))]
pub(super) async fn get_replay(
    State(query): State<Query>,
    Extension(owner): Extension<KeyOwner>,
    Path(replay): Path<String>,
) -> Result<Response, Problem> {
    let id: ReplayId = id(&replay, Code::NotFound, "replay")?;
    Ok(ok(OneReplay { replay: replay_view(&query.replay(owner.account.id(), id)?) }))
}

/// End a replay: what was not handed over yet never is, and what waits is forgotten.
#[utoipa::path(delete, path = "/events/replay/{replay_id}", tag = "webhooks", params(("replay_id" = String, Path)),
    responses((status = 200, description = "ended"), (status = 404, description = "NOT_FOUND")))]
pub(super) async fn cancel_replay(
    State(query): State<Query>,
    Extension(owner): Extension<KeyOwner>,
    By(actor): By,
    Path(replay): Path<String>,
) -> Result<Response, Problem> {
    let id: ReplayId = id(&replay, Code::NotFound, "replay")?;
    query.parts().changes.make(owner.account.id(), actor, Change::CancelReplay(id.bytes().to_vec())).await?;
    Ok(ok(Nothing {}))
}
