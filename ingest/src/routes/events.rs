//! Event intake: partners stream what happened to their messages.

use axum::Extension;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use metrics::counter;
use sendtrail_schemas::directory::KeyOwner;
use sendtrail_schemas::event::EventFact;
use sendtrail_schemas::ids::hash128;
use sendtrail_schemas::problem::{Code, Problem};
use sendtrail_schemas::record::{Body, Change, Claim, Command, Idempotency, Outcome};
use sendtrail_schemas::web::{Query, invalid};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use super::send::{idempotency, replayed};
use crate::Ingest;
use crate::admission::Kind;
use crate::body::Payload;
use crate::intake::{Format, Rejection, native, split};
use crate::submit::{Stamp, refused};

/// Bytes of metadata that a request may become.
const MAX_EXPANDED: usize = 64 << 20;

#[derive(Deserialize)]
pub(super) struct Form {
    format: Option<String>,
}

/// What was taken.
#[derive(Serialize, ToSchema)]
pub(super) struct Accepted {
    success: bool,
    /// Valid events, duplicates included: they are found later.
    accepted: usize,
    rejected: Vec<Rejection>,
}

/// Stream events in: a JSON object, an array, or NDJSON; optionally gzip or zstd; up to 10,000 events and 16 MiB.
///
/// The good ones are kept, durable when this answers; each bad one is named with its index. With `format=ses` each
/// document is one that Amazon SES publishes, bare or in an SNS or EventBridge envelope; with `format=kumomta`, a log
/// record of KumoMTA.
#[utoipa::path(post, path = "/events", tag = "events", request_body = native::NativeEvent,
    params(("format" = Option<String>, Query, description = "`native` (default), `ses` or `kumomta`"),
        ("Idempotency-Key" = Option<String>, Header, description = "honoured for 24 hours")),
    responses((status = 200, description = "what was taken", body = Accepted), (status = 400, description = "INVALID_REQUEST, MISSING_PARAM"),
        (status = 409, description = "IDEMPOTENCY_MISMATCH"), (status = 413, description = "PAYLOAD_TOO_LARGE"),
        (status = 415, description = "UNSUPPORTED_MEDIA_TYPE"), (status = 503, description = "UNAVAILABLE, DB_UNAVAILABLE")))]
pub(super) async fn post_events(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    Query(Form { format }): Query<Form>,
    headers: HeaderMap,
    stamp: Stamp,
    payload: Payload,
) -> Result<Response, Problem> {
    let format = format.as_deref().unwrap_or("native");
    let format = Format::parse(format).ok_or_else(|| {
        Problem::new(Code::InvalidParam, format!("format {format:?} is neither native, ses nor kumomta"))
    })?;
    let account = owner.account.id();
    ingest.admit(Kind::Events, ingest.partition(account))?;
    let (mut facts, rejected) = read(&payload, format, ingest.limits().max_events)?;
    let reply = Accepted { success: true, accepted: facts.len(), rejected };
    let body = serde_json::to_vec(&reply).map_err(|_| Problem::internal())?;
    let claimed = match idempotency(&headers, "events", &payload.bytes)? {
        Some(mut key) => {
            if format != Format::Native {
                // The same bytes say something else when they are read otherwise.
                let read_as = [format as u8];
                key.body_hash = Sha256::new_with_prefix(&key.body_hash).chain_update(read_as).finalize().to_vec();
            }
            lend_identities(&mut facts, &key);
            claim(&ingest, account, stamp.clone(), key, body.clone()).await?
        }
        None => None,
    };
    // Also when the claim was made before: whoever made it may have been cut off here, and facts are counted once.
    ingest.append_facts(account, stamp, facts).await?;
    counter!("sendtrail_events_accepted_total").increment(reply.accepted as u64);
    counter!("sendtrail_events_rejected_total").increment(reply.rejected.len() as u64);
    let json = |body: Vec<u8>| ([("content-type", "application/json")], body).into_response();
    Ok(match claimed {
        Some(earlier) => replayed(json(earlier)),
        None => json(body),
    })
}

/// The events of a body, and what was rejected.
fn read(payload: &Payload, format: Format, most: usize) -> Result<(Vec<EventFact>, Vec<Rejection>), Problem> {
    let items = split(&payload.bytes, payload.lines, most)?;
    let mut facts = Vec::with_capacity(items.len());
    let mut rejected = Vec::new();
    let mut bytes = 0;
    for (index, text) in items.into_iter().enumerate() {
        let before = facts.len();
        if let Err(fault) = format.read(&text, &mut facts) {
            rejected.push(fault.at(index));
        }
        if format == Format::Native {
            continue;
        }
        // A document becomes an event for each recipient, with all that it says.
        let metadata = facts.iter().skip(before).filter_map(|fact| fact.metadata.as_ref());
        bytes += metadata.map(String::len).sum::<usize>();
        if facts.len() > most || bytes > MAX_EXPANDED {
            let message = format!("more than {most} events, or {MAX_EXPANDED} bytes, once there is one a recipient");
            return Err(Problem::new(Code::PayloadTooLarge, message));
        }
    }
    Ok((facts, rejected))
}

/// An event that nothing else tells apart is told apart by the key and its place, so that repeating the request is safe.
fn lend_identities(facts: &mut [EventFact], key: &Idempotency) {
    for (index, fact) in facts.iter_mut().enumerate() {
        if fact.event_id.is_none() && fact.occurred_at_nanos.is_none() {
            let hash = hash128(&[key.key.as_bytes(), &key.body_hash, &index.to_le_bytes()]);
            fact.lent_identity = Some(hash.to_be_bytes().to_vec());
        }
    }
}

/// Claims a key; the answer it holds from an earlier request, if there was one.
async fn claim(
    ingest: &Ingest,
    account: sendtrail_schemas::ids::AccountId,
    stamp: Stamp,
    key: Idempotency,
    response: Vec<u8>,
) -> Result<Option<Vec<u8>>, Problem> {
    let change = Some(Change::Claim(Claim { idempotency: Some(key), response }));
    let decision = ingest.decide(account, stamp, Body::Command(Command { change })).await?;
    match decision.outcome {
        Some(Outcome::Claimed(earlier)) => Ok(decision.replayed.then_some(earlier)),
        Some(Outcome::Refused(refusal)) => Err(refused(refusal)),
        _ => Err(invalid("the Idempotency-Key was used for something else")),
    }
}
