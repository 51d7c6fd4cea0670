//! Events, messages, and the history of an account's standing.

use std::collections::HashMap;

use axum::Extension;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use sendtrail_schemas::directory::KeyOwner;
use sendtrail_schemas::event::Event;
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::problem::{Code, Problem};
use sendtrail_schemas::time::{DAY, Millis};
use sendtrail_schemas::web::{Path, Query as Params, dated, invalid_param, ok, page};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::analytics::{EventQuery, Position, TagFilter, UNASKED};
use crate::show::{EventView, deliveries, event as show, message_status};
use crate::{Answered, Error, Query, Source, cursor};

/// Events of one message that are looked for at once, and that are shown: the newest.
const MESSAGE_PAGE: usize = 1_000;
const MESSAGE_EVENTS: usize = 20_000;
/// How long the outcome of a webhook is known (S2: 30 days).
const OUTCOMES_KNOWN: i64 = 30 * DAY;

#[derive(Default, Deserialize)]
pub(super) struct EventParams {
    day_bucket: Option<String>,
    from: Option<String>,
    to: Option<String>,
    event_type: Option<String>,
    recipient: Option<String>,
    message_id: Option<String>,
    configuration_set_name: Option<String>,
    tag: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

impl EventParams {
    fn read(self, account: AccountId) -> Result<EventQuery, Problem> {
        let mut query = EventQuery::of(account, page(self.limit.as_deref())?);
        query.from = self.from.as_deref().map(|text| time("from", text)).transpose()?;
        query.to = self.to.as_deref().map(|text| time("to", text)).transpose()?;
        if let Some(text) = &self.day_bucket {
            if query.from.is_some() || query.to.is_some() {
                return Err(invalid_param("day_bucket stands for from and to; give one or the other"));
            }
            let day = Millis::parse_day(text).map_err(|cause| invalid_param(format!("day_bucket: {cause}")))?;
            (query.from, query.to) = (Some(day), Some(day.plus(DAY)));
        }
        if let (Some(from), Some(to)) = (query.from, query.to)
            && from >= to
        {
            return Err(invalid_param("from is before to"));
        }
        let names = self.event_type.iter().flat_map(|names| names.split(',')).filter(|name| !name.trim().is_empty());
        let read = |name: &str| {
            EventType::parse(name).ok_or_else(|| invalid_param(format!("event_type {name:?} is none that we know")))
        };
        query.kinds = names.map(read).collect::<Result<_, _>>()?;
        query.recipient = self.recipient;
        query.message_id = self.message_id;
        query.configuration_set_name = self.configuration_set_name;
        query.tag = self.tag.as_deref().map(TagFilter::parse);
        query.before = self.cursor.as_deref().map(cursor::decode).transpose()?;
        Ok(query)
    }
}

/// A day or a time.
pub(super) fn time(name: &str, text: &str) -> Result<Millis, Problem> {
    let read = Millis::parse_day(text).or_else(|_| Millis::parse(text));
    read.map_err(|_| invalid_param(format!("{name} is a day YYYY-MM-DD or an RFC 3339 time")))
}

/// One more than asked for tells whether there is another page.
async fn read_page(query: &Query, mut wanted: EventQuery) -> Result<Answered<Page>, Problem> {
    let limit = wanted.limit;
    wanted.limit += 1;
    let events = |source: Source| {
        let wanted = wanted.clone();
        async move { source.analytics.events(wanted).await }
    };
    let Answered { value: mut found, as_of, is_makeshift } = query.answered(wanted.account, events).await?;
    let more = found.len() > limit;
    found.truncate(limit);
    let next_cursor = found.last().filter(|_| more).map(|last| cursor::encode(&Position::of(last)));
    let shown = show_all(query, wanted.account, found, is_makeshift).await?;
    Ok(Answered { value: (shown, next_cursor), as_of, is_makeshift })
}

/// Events and where to go on.
type Page = (Vec<EventView>, Option<String>);

/// Shows events with their deliveries; when the answer is a makeshift one, without them if need be.
async fn show_all(
    query: &Query,
    account: AccountId,
    events: Vec<Event>,
    is_makeshift: bool,
) -> Result<Vec<EventView>, Problem> {
    let parts = query.parts();
    let wanted: Vec<_> = events.iter().flat_map(deliveries).collect();
    let known = if wanted.is_empty() {
        Some(HashMap::new())
    } else {
        // Without a turn of its own: the events had theirs, and are not to be thrown away for it.
        let timeout = parts.timeout;
        let looked = tokio::time::timeout(timeout, parts.deliveries.states(account, &wanted)).await;
        match looked.unwrap_or(Err(Error::Timeout(timeout))) {
            Ok(known) => known,
            Err(error) if is_makeshift => {
                tracing::warn!(%error, "events are shown without their deliveries");
                None
            }
            Err(error) => return Err(error.into()),
        }
    };
    let known_since = parts.clock.now().plus(-OUTCOMES_KNOWN);
    Ok(events.into_iter().map(|event| show(event, known.as_ref(), known_since)).collect())
}

#[derive(Serialize, ToSchema)]
struct Events {
    events: Vec<EventView>,
    next_cursor: Option<String>,
}

/// List events, newest first, each with its webhook deliveries. Cursors stay true while events arrive.
#[utoipa::path(get, path = "/events", tag = "events",
    params(("day_bucket" = Option<String>, Query, description = "a UTC day, YYYY-MM-DD"),
        ("from" = Option<String>, Query, description = "a day or a time, inclusive"),
        ("to" = Option<String>, Query, description = "a day or a time, exclusive"),
        ("event_type" = Option<String>, Query, description = "one or several, comma-separated, in any spelling"),
        ("recipient" = Option<String>, Query, description = "compared without case"), ("message_id" = Option<String>, Query),
        ("configuration_set_name" = Option<String>, Query), ("tag" = Option<String>, Query, description = "key:value or key"),
        ("limit" = Option<u16>, Query, description = "1 to 1000"), ("cursor" = Option<String>, Query)),
    responses((status = 200, description = "events", body = inline(Events)), (status = 400, description = "INVALID_PARAM"),
        (status = 503, description = "DB_UNAVAILABLE")))]
pub(super) async fn list(
    State(query): State<Query>,
    Extension(owner): Extension<KeyOwner>,
    Params(params): Params<EventParams>,
) -> Result<Response, Problem> {
    let Answered { value: (events, next_cursor), as_of, .. } =
        read_page(&query, params.read(owner.account.id())?).await?;
    Ok(dated(ok(Events { events, next_cursor }), as_of))
}

#[derive(Serialize, ToSchema)]
struct One {
    email: EmailView,
}

#[derive(Serialize, ToSchema)]
struct EmailView {
    message_id: String,
    send_id: Option<String>,
    from: Option<String>,
    recipient: String,
    subject: Option<String>,
    status: &'static str,
    created_at: Millis,
    configuration_set_name: Option<String>,
    customer_id: Option<String>,
    category: Option<String>,
    tags: sendtrail_schemas::event::Tags,
    events: Vec<EventView>,
}

/// Show a message with everything that happened to it, oldest first.
#[utoipa::path(get, path = "/emails/{message_id}", tag = "events", params(("message_id" = String, Path)),
    responses((status = 200, description = "the message", body = inline(One)), (status = 404, description = "MESSAGE_NOT_FOUND")))]
pub(super) async fn message(
    State(query): State<Query>,
    Extension(owner): Extension<KeyOwner>,
    Path(message_id): Path<String>,
) -> Result<Response, Problem> {
    let account = owner.account.id();
    let wanted = EventQuery { message_id: Some(message_id), ..EventQuery::of(account, MESSAGE_PAGE) };
    let all = |source: Source| all_events(source, wanted.clone());
    let Answered { value: mut events, as_of, is_makeshift } = query.answered(account, all).await?;
    events.reverse();
    // Its Send tells most; without one, whatever came first does.
    let is_send = |event: &&Event| matches!(event.kind(), EventType::Send | EventType::Reject);
    let first = events.iter().find(is_send).or_else(|| events.first());
    let Some(first) = first.cloned() else {
        // It may be that it is not seen yet.
        return Ok(dated(Problem::new(Code::MessageNotFound, "no such message").into_response(), as_of));
    };
    let status = message_status(&events);
    let shown = One {
        email: EmailView {
            created_at: Millis(first.sent_at.unwrap_or(first.occurred_at)),
            message_id: first.message_id,
            send_id: first.send_id,
            from: first.from,
            recipient: first.recipient,
            subject: first.subject,
            status,
            configuration_set_name: first.configuration_set_name,
            customer_id: first.customer_id,
            category: first.category,
            tags: first.tags,
            events: show_all(&query, account, events, is_makeshift).await?,
        },
    };
    Ok(dated(ok(shown), as_of))
}

/// All pages, newest first, up to a bound.
async fn all_events(source: Source, mut wanted: EventQuery) -> Result<Vec<Event>, Error> {
    let mut events: Vec<Event> = Vec::new();
    loop {
        let page = source.analytics.events(wanted.clone()).await?;
        let whole = page.len() == wanted.limit;
        events.extend(page);
        wanted.before = events.last().map(Position::of);
        if !whole || events.len() >= MESSAGE_EVENTS {
            return Ok(events);
        }
    }
}

#[derive(Deserialize)]
pub(super) struct HistoryParams {
    limit: Option<String>,
    cursor: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct History {
    history: Vec<EventView>,
    next_cursor: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct ActivityParams {
    from: Option<String>,
    to: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct ActivityList {
    activity: Vec<EventView>,
    next_cursor: Option<String>,
}

impl Query {
    async fn activity(&self, account: AccountId, params: ActivityParams) -> Result<Response, Problem> {
        let ActivityParams { from, to, limit, cursor } = params;
        let only = EventParams { from, to, limit, cursor, ..EventParams::default() };
        let wanted = EventQuery { kinds: vec![UNASKED], ..only.read(account)? };
        let Answered { value: (activity, next_cursor), as_of, .. } = read_page(self, wanted).await?;
        Ok(dated(ok(ActivityList { activity, next_cursor }), as_of))
    }
}

/// List who changed what of the account, newest first: keys, identities, configuration sets, webhooks, suppressions, and what
/// the administrator did.
#[utoipa::path(get, path = "/activity", tag = "activity",
    params(("from" = Option<String>, Query, description = "a day, or RFC 3339"), ("to" = Option<String>, Query, description = "exclusive"),
        ("limit" = Option<u16>, Query, description = "1 to 1000"), ("cursor" = Option<String>, Query)),
    responses((status = 200, description = "changes", body = inline(ActivityList)), (status = 400, description = "INVALID_PARAM")))]
pub(super) async fn activity(
    State(query): State<Query>,
    Extension(owner): Extension<KeyOwner>,
    Params(params): Params<ActivityParams>,
) -> Result<Response, Problem> {
    query.activity(owner.account.id(), params).await
}

/// List who changed what of an account, newest first.
#[utoipa::path(get, path = "/accounts/{account_id}/activity", tag = "admin", operation_id = "admin_activity",
    params(("account_id" = String, Path), ("from" = Option<String>, Query, description = "a day, or RFC 3339"),
        ("to" = Option<String>, Query, description = "exclusive"), ("limit" = Option<u16>, Query, description = "1 to 1000"),
        ("cursor" = Option<String>, Query)),
    responses((status = 200, description = "changes", body = inline(ActivityList)), (status = 400, description = "INVALID_PARAM"),
        (status = 404, description = "PARTNER_NOT_FOUND")))]
pub(super) async fn admin_activity(
    State(query): State<Query>,
    Path(account): Path<String>,
    Params(params): Params<ActivityParams>,
) -> Result<Response, Problem> {
    let account = query.known(&account)?;
    query.activity(account, params).await
}

/// List an account's changes of status with their evidence, newest first.
#[utoipa::path(get, path = "/accounts/{account_id}/history", tag = "admin",
    params(("account_id" = String, Path), ("limit" = Option<u16>, Query, description = "1 to 1000"), ("cursor" = Option<String>, Query)),
    responses((status = 200, description = "changes", body = inline(History)), (status = 404, description = "PARTNER_NOT_FOUND")))]
pub(super) async fn history(
    State(query): State<Query>,
    Path(account): Path<String>,
    Params(params): Params<HistoryParams>,
) -> Result<Response, Problem> {
    let account = query.known(&account)?;
    let mut wanted = EventQuery::of(account, page(params.limit.as_deref())?);
    wanted.kinds = EventType::ALL.into_iter().filter(|kind| kind.is_status()).collect();
    wanted.before = params.cursor.as_deref().map(cursor::decode).transpose()?;
    let Answered { value: (history, next_cursor), as_of, .. } = read_page(&query, wanted).await?;
    Ok(dated(ok(History { history, next_cursor }), as_of))
}
