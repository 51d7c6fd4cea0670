//! Dead letters, for the operator: look, and try again.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::response::Response;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sendtrail_eventlog::Batch;
use sendtrail_schemas::codec;
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::mail::DeadLetter;
use sendtrail_schemas::problem::{Code, Problem};
use sendtrail_schemas::record::{Body, Record, SourcePosition};
use sendtrail_schemas::time::Millis;
use sendtrail_schemas::topic::{Topic, TopicPartition};
use sendtrail_schemas::web::{Path, Query, ok, page};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::submit::record;
use crate::{Ingest, LetterPage};

/// Bytes of the records that are read for a page: each holds a message, and is as large as that.
const PAGE_BYTES: usize = 8 << 20;

#[derive(Serialize, ToSchema)]
struct LetterView {
    partition: u32,
    seq: u64,
    topic: String,
    offset: u64,
    at: Millis,
    reason: String,
    /// Of a message that was read from a source: where it stood there. Then the payload is that message.
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<SourceView>,
    payload_bytes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
}

/// A place in a source.
#[derive(Serialize, ToSchema)]
struct SourceView {
    /// The topic, or `name/topic`.
    topic: String,
    partition: u32,
    offset: u64,
}

impl SourceView {
    fn of(at: &SourcePosition) -> Self {
        Self { topic: at.source.clone(), partition: at.partition, offset: at.offset }
    }
}

fn view(letter: &DeadLetter, whole: bool) -> LetterView {
    LetterView {
        partition: letter.partition,
        seq: letter.seq,
        topic: letter.topic.clone(),
        offset: letter.offset,
        at: Millis(letter.at),
        reason: letter.reason.clone(),
        source: letter.source.as_ref().map(SourceView::of),
        payload_bytes: letter.payload.len(),
        payload_base64: whole.then(|| BASE64_STANDARD.encode(&letter.payload)),
    }
}

#[derive(Deserialize)]
pub(super) struct ListQuery {
    limit: Option<String>,
    cursor: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct Letters {
    dead_letters: Vec<LetterView>,
    next_cursor: Option<String>,
}

/// List dead letters, in the order of partitions and numbers.
#[utoipa::path(get, path = "/dead-letters", tag = "admin",
    params(("limit" = Option<u16>, Query, description = "1 to 1000; a page of large ones has fewer, and a `next_cursor`"),
        ("cursor" = Option<String>, Query)),
    responses((status = 200, description = "dead letters", body = inline(Letters))))]
pub(super) async fn list(State(ingest): State<Ingest>, Query(query): Query<ListQuery>) -> Result<Response, Problem> {
    let limit = page(query.limit.as_deref())?;
    let malformed = || Problem::new(Code::InvalidParam, "cursor is not one of ours");
    let from = match query.cursor.as_deref() {
        None => (0, 0),
        Some(cursor) => {
            let (partition, seq) = cursor.split_once('-').ok_or_else(malformed)?;
            let partition = partition.parse().ok().filter(|partition| *partition < ingest.partitions());
            (partition.ok_or_else(malformed)?, seq.parse().map_err(|_| malformed())?)
        }
    };
    let LetterPage { letters, next } = ingest.parts().dead_letters.list(from, limit, PAGE_BYTES).await?;
    let next_cursor = next.map(|(partition, seq)| format!("{partition}-{seq}"));
    let dead_letters = letters.iter().map(|letter| view(letter, false)).collect();
    Ok(ok(Letters { dead_letters, next_cursor }))
}

async fn find(ingest: &Ingest, partition: u32, seq: u64) -> Result<DeadLetter, Problem> {
    let known = partition < ingest.partitions();
    let found = if known { ingest.parts().dead_letters.get(partition, seq).await? } else { None };
    found.ok_or_else(|| Problem::new(Code::NotFound, "no such dead letter"))
}

#[derive(Serialize, ToSchema)]
struct One {
    dead_letter: LetterView,
}

/// Show a dead letter with its payload.
#[utoipa::path(get, path = "/dead-letters/{partition}/{seq}", tag = "admin",
    params(("partition" = u32, Path), ("seq" = u64, Path)),
    responses((status = 200, description = "the dead letter", body = inline(One)), (status = 404, description = "NOT_FOUND")))]
pub(super) async fn get(
    State(ingest): State<Ingest>,
    Path((partition, seq)): Path<(u32, u64)>,
) -> Result<Response, Problem> {
    Ok(ok(One { dead_letter: view(&find(&ingest, partition, seq).await?, true) }))
}

#[derive(Serialize, ToSchema)]
struct Retried {
    partition: u32,
    offset: u64,
}

/// Put a dead letter's record back at the end of intake, as it was; a message of a source is read again by the source's
/// rules as they are now.
#[utoipa::path(post, path = "/dead-letters/{partition}/{seq}/retry", tag = "admin",
    params(("partition" = u32, Path), ("seq" = u64, Path)),
    responses((status = 200, description = "where it stands now", body = inline(Retried)),
        (status = 400, description = "INVALID_REQUEST: the message still cannot be read, or was erased"), (status = 404, description = "NOT_FOUND")))]
pub(super) async fn retry(
    State(ingest): State<Ingest>,
    Path((partition, seq)): Path<(u32, u64)>,
) -> Result<Response, Problem> {
    let letter = find(&ingest, partition, seq).await?;
    if letter.payload.is_empty() {
        return Err(Problem::new(Code::InvalidRequest, format!("nothing is left of the record: {}", letter.reason)));
    }
    let batches = match &letter.source {
        Some(source) => read_again(&ingest, &letter, source)?,
        None => BTreeMap::from([(partition, as_it_was(&letter.payload))]),
    };
    let log = &ingest.parts().log;
    let appends =
        batches.into_iter().map(|(to, batch)| (to, log.append(TopicPartition::new(Topic::Intake, to), batch)));
    // All are handed over before the first is waited for.
    let appends: Vec<_> = appends.collect();
    let mut first = None;
    for (partition, appended) in appends {
        let offset = ingest.durable(appended).await?;
        first = first.or(Some(Retried { partition, offset }));
    }
    Ok(ok(first.ok_or_else(|| Problem::new(Code::InvalidRequest, "the message speaks of no event"))?))
}

/// The record of a dead letter. One that was read from a source has had its turn there.
fn as_it_was(payload: &[u8]) -> Batch {
    let mut batch = Batch::new();
    match codec::decode::<Record>(payload) {
        Ok(record) if record.source.is_some() => {
            batch.push(&Record { version: codec::VERSION, source: None, ..record });
        }
        _ => batch.push_bytes(payload),
    }
    batch
}

/// The records that a source's message becomes now, by their partitions.
fn read_again(ingest: &Ingest, letter: &DeadLetter, source: &SourcePosition) -> Result<BTreeMap<u32, Batch>, Problem> {
    let rule = ingest.parts().sources.get(&source.source);
    let rule = rule.ok_or_else(|| Problem::new(Code::NotFound, format!("no source {} is set up", source.source)))?;
    let known = AccountId::from_slice(&letter.account_id).ok();
    let read = rule.read_again(source, &letter.payload, known);
    let events = read.map_err(|reason| Problem::new(Code::InvalidRequest, reason))?;
    let mut batches: BTreeMap<u32, Batch> = BTreeMap::new();
    for (account, fact) in events {
        let batch = batches.entry(ingest.partition(account)).or_default();
        batch.push(&record(account, None, None, Body::Fact(fact)));
    }
    Ok(batches)
}

#[cfg(test)]
mod tests {
    use sendtrail_schemas::event::EventFact;

    use super::*;

    #[test]
    fn a_record_of_a_source_goes_back_without_its_turn() {
        let source = Some(SourcePosition { source: "mail".into(), number: 3, ..SourcePosition::default() });
        let body = Some(Body::Fact(EventFact { message_id: "m".into(), ..EventFact::default() }));
        let sourced = Record { version: codec::SOURCED, source, body, ..Record::default() };
        let own = Record { version: codec::VERSION, source: None, ..sourced.clone() };
        let batch = |record: &Record| {
            let mut batch = Batch::new();
            batch.push(record);
            format!("{batch:?}")
        };
        for record in [&sourced, &own] {
            assert_eq!(format!("{:?}", as_it_was(&codec::encode(record))), batch(&own));
        }
        let mut rubbish = Batch::new();
        rubbish.push_bytes(b"\xff rubbish");
        assert_eq!(format!("{:?}", as_it_was(b"\xff rubbish")), format!("{rubbish:?}"));
    }
}
