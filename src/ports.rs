//! The ports of the edge, filled by what the processor keeps.

mod logged;
mod owned;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use sendtrail_eventlog::Pulse;
use sendtrail_ingest::{Ingest, LetterPage, Sampled, SuppressionQuery};
use sendtrail_processor::clickhouse::ClickHouseHandle;
use sendtrail_processor::dispatch::{History, HistoryPage, Redelivery, Sender};
use sendtrail_processor::{DeliveryQuery, LastAttempt, ProjectionReader, Views};
use sendtrail_query_api::analytics::EventQuery;
use sendtrail_query_api::{
    Bookmark, DataFusionAnalytics, DeliveriesQuery, DeliveryOf, DeliveryPage, DeliveryRow, DeliveryState, Query,
};
use sendtrail_schemas::account::{AccountConfig, Suppression};
use sendtrail_schemas::archive::ArchiveCell;
use sendtrail_schemas::destination::{Destination, ReplayQuery};
use sendtrail_schemas::event::Event;
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::mail::{DeadLetter, DeliveryStatus};
use sendtrail_schemas::problem::Problem;
use sendtrail_schemas::record::{Actor, Change, SourcePosition};
use sendtrail_schemas::rollup::{Apart, HourRows, Rollup};
use sendtrail_schemas::time::{Day, Hour, Millis};
use sendtrail_schemas::topic::partition_of;

pub use logged::{LoggedDeadLetters, LoggedEventNumbers};
pub use owned::OwnedAccounts;

use crate::backbone::Backbone;
use crate::ownership::Ownership;
use crate::reception::Owners;

/// Suppression lists, from the views: of accounts of this process's partitions its own, for they come first.
pub struct SuppressionLists {
    /// What partitions of this process made.
    pub own: Option<Views>,
    /// What others made known.
    pub others: Option<Views>,
    /// Which partitions are this process's.
    pub ownership: Arc<Ownership>,
    /// How many there are.
    pub partitions: u32,
}

impl SuppressionLists {
    fn of(&self, account: AccountId) -> Result<&Views, sendtrail_ingest::Error> {
        let is_own = self.others.is_none() || self.ownership.knows(partition_of(account, self.partitions));
        let views = if is_own { &self.own } else { &self.others };
        views.as_ref().ok_or_else(|| sendtrail_ingest::Error::Port("nothing is known of accounts".into()))
    }
}

impl sendtrail_ingest::Suppressions for SuppressionLists {
    fn list(&self, account: AccountId, query: &SuppressionQuery) -> Result<Vec<Suppression>, sendtrail_ingest::Error> {
        let keep = |row: &Suppression| {
            query.reason.as_ref().is_none_or(|reason| *reason == row.reason)
                && query.search.as_ref().is_none_or(|search| row.email.to_lowercase().contains(search))
        };
        let found = self.of(account)?.suppressions(account, query.after.as_deref(), query.limit, keep);
        found.map_err(|error| sendtrail_ingest::Error::Port(error.to_string()))
    }

    fn get(&self, account: AccountId, email: &str) -> Result<Option<Suppression>, sendtrail_ingest::Error> {
        self.of(account)?.suppression(account, email).map_err(|error| sendtrail_ingest::Error::Port(error.to_string()))
    }
}

/// The same lists for exports, a page at a time.
pub struct SuppressionRows(pub Arc<SuppressionLists>);

#[async_trait]
impl sendtrail_query_api::exports::SuppressionPages for SuppressionRows {
    async fn page(
        &self,
        account: AccountId,
        after: Option<String>,
        limit: usize,
    ) -> Result<(Vec<Suppression>, Option<String>), sendtrail_query_api::Error> {
        let lists = self.0.clone();
        let query = SuppressionQuery { after, limit, ..SuppressionQuery::default() };
        let found = tokio::task::spawn_blocking(move || sendtrail_ingest::Suppressions::list(&*lists, account, &query));
        let port = |cause: String| sendtrail_query_api::Error::Port(cause);
        let found = found.await.map_err(|cause| port(cause.to_string()))?.map_err(|cause| port(cause.to_string()))?;
        let next = found.last().filter(|_| found.len() == limit);
        let next = next.map(|last| sendtrail_schemas::address::fold(&last.email).into_owned());
        Ok((found, next))
    }
}

/// Dead letters, from the projections.
pub struct DeadLetterBox(pub ProjectionReader);

#[async_trait]
impl sendtrail_ingest::DeadLetters for DeadLetterBox {
    async fn list(&self, from: (u32, u64), limit: usize, bytes: usize) -> Result<LetterPage, sendtrail_ingest::Error> {
        let reader = self.0.clone();
        let (letters, next) = aside(move || reader.dead_letters(from, limit, bytes)).await?;
        Ok(LetterPage { letters, next })
    }

    async fn get(&self, partition: u32, seq: u64) -> Result<Option<DeadLetter>, sendtrail_ingest::Error> {
        let reader = self.0.clone();
        aside(move || reader.dead_letter(partition, seq)).await
    }
}

/// Reads what waits for a device beside the runtime's workers.
async fn aside<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, sendtrail_processor::Error> + Send + 'static,
) -> Result<T, sendtrail_ingest::Error> {
    let port = |error: &dyn std::fmt::Display| sendtrail_ingest::Error::Port(error.to_string());
    let read = tokio::task::spawn_blocking(read).await;
    read.map_err(|error| port(&error))?.map_err(|error| port(&error))
}

/// How far sources have come, from the partitions' owners.
pub struct AppliedSources {
    /// The log.
    pub backbone: Backbone,
    /// Who knows.
    pub owners: Owners,
    /// How far the partitions are.
    pub pulses: Vec<Arc<Pulse>>,
}

/// How soon an owner is asked again: it may be behind, or another one by then.
const ASK_AGAIN: Duration = Duration::from_secs(2);

impl AppliedSources {
    /// The marks of a source with everything that is in each partition now.
    async fn look(&self, source: &str) -> Result<Vec<(u32, SourcePosition)>, sendtrail_ingest::Error> {
        let mut found = Vec::new();
        let ends = self.backbone.intake_ends(self.pulses.len() as u32).await;
        let ends = ends.map_err(|error| sendtrail_ingest::Error::Port(error.to_string()))?;
        for ((partition, pulse), end) in (0..).zip(&self.pulses).zip(ends) {
            let marks = loop {
                let asked = tokio::time::timeout(ASK_AGAIN, self.owners.source(partition, source, end)).await;
                if let Ok(answer) = asked {
                    break answer.map_err(sendtrail_ingest::Error::Port)?;
                }
                if let Some(why) = pulse.halted() {
                    return Err(sendtrail_ingest::Error::Port(format!("partition {partition} is halted: {why}")));
                }
            };
            found.extend(marks.into_iter().map(|mark| (partition, mark)));
        }
        Ok(found)
    }
}

#[async_trait]
impl sendtrail_ingest::sources::SourceMarks for AppliedSources {
    async fn marks(&self, source: &str) -> Result<sendtrail_ingest::sources::Marks, sendtrail_ingest::Error> {
        // In this order: another reader may still write, and what is settled must not be newer than the numbers.
        let settled = self.look(source).await?;
        let numbers = self.look(source).await?;
        Ok(sendtrail_ingest::sources::Marks { settled: settled.into_iter().map(|(_, mark)| mark).collect(), numbers })
    }
}

/// Sums, from the projections.
pub struct Sums(pub ProjectionReader);

#[async_trait]
impl sendtrail_query_api::Rollups for Sums {
    async fn rows(
        &self,
        account: AccountId,
        from: Hour,
        to: Hour,
        apart: &Apart,
    ) -> Result<Vec<HourRows>, sendtrail_query_api::Error> {
        let (reader, apart) = (self.0.clone(), apart.clone());
        let port = |error: &dyn std::fmt::Display| sendtrail_query_api::Error::Port(error.to_string());
        let read = tokio::task::spawn_blocking(move || reader.rollups(account, from, to, &apart)).await;
        read.map_err(|error| port(&error))?.map_err(|error| port(&error))
    }
}

/// How far ClickHouse is behind what readers of the archive see.
pub struct ClickHouseReplica {
    /// The sink into it.
    pub sink: ClickHouseHandle,
    /// What readers of the archive see.
    pub cell: Arc<ArchiveCell>,
    /// How many partitions there are.
    pub partitions: u32,
    /// How long a reader waits for it.
    pub patience: Duration,
}

#[async_trait]
impl sendtrail_query_api::Replica for ClickHouseReplica {
    async fn is_ready(&self, account: AccountId) -> bool {
        let partition = partition_of(account, self.partitions);
        let end = self.cell.load().ends().get(&partition).copied().unwrap_or(0);
        self.sink.has(partition, end, self.patience).await
    }

    fn note_silence(&self) {
        self.sink.note_silence();
    }

    fn whole_since(&self) -> Option<Day> {
        self.sink.whole_since()
    }
}

/// The archive as another server writes it.
pub struct FollowedArchive {
    /// It.
    pub archive: Arc<DataFusionAnalytics>,
    /// Everything before this is in it, milliseconds since the epoch; 0 while that is not known.
    pub as_of: Arc<AtomicI64>,
}

#[async_trait]
impl sendtrail_query_api::Analytics for FollowedArchive {
    async fn events(&self, query: EventQuery) -> Result<Vec<Event>, sendtrail_query_api::Error> {
        self.archive.events(query).await
    }

    async fn scan(
        &self,
        account: AccountId,
        from: Millis,
        to: Millis,
        apart: &Apart,
    ) -> Result<Vec<(Hour, Rollup)>, sendtrail_query_api::Error> {
        self.archive.scan(account, from, to, apart).await
    }

    fn as_of(&self) -> Option<Millis> {
        Some(Millis(self.as_of.load(Ordering::Acquire)))
    }
}

/// Webhook deliveries, from the projections.
pub struct DeliveryStates {
    /// Who keeps them.
    pub reader: ProjectionReader,
    /// How many partitions there are.
    pub partitions: u32,
}

#[async_trait]
impl sendtrail_query_api::Deliveries for DeliveryStates {
    async fn states(
        &self,
        _: AccountId,
        wanted: &[DeliveryOf],
    ) -> Result<Option<HashMap<DeliveryOf, DeliveryState>>, sendtrail_query_api::Error> {
        let port = |error: &dyn std::fmt::Display| sendtrail_query_api::Error::Port(error.to_string());
        let mut found = HashMap::new();
        for of in wanted {
            let last = self.reader.last_attempt(of.partition, of.seq, of.destination).map_err(|error| port(&error))?;
            let state = last.filter(|last| last.attempts > 0).map(|last| DeliveryState {
                status: DeliveryStatus::try_from(last.status).unwrap_or(DeliveryStatus::Pending),
                attempts: last.attempts,
                last_status_code: last.status_code,
                finished_at: Millis(last.finished_at),
            });
            found.extend(state.map(|state| (*of, state)));
        }
        Ok(Some(found))
    }

    async fn page(
        &self,
        account: AccountId,
        query: &DeliveriesQuery,
    ) -> Result<Option<DeliveryPage>, sendtrail_query_api::Error> {
        let port = |error: &dyn std::fmt::Display| sendtrail_query_api::Error::Port(error.to_string());
        let partition = partition_of(account, self.partitions);
        let wanted = DeliveryQuery {
            destination: query.destination,
            status: query.status,
            before: query.before,
            limit: query.limit,
        };
        let reader = self.reader.clone();
        let read = tokio::task::spawn_blocking(move || reader.deliveries(partition, &wanted)).await;
        let (found, next) = read.map_err(|error| port(&error))?.map_err(|error| port(&error))?;
        let row = |(seq, last): (u64, LastAttempt)| DeliveryRow {
            partition,
            seq,
            status: DeliveryStatus::try_from(last.status).unwrap_or(DeliveryStatus::Pending),
            attempts: last.attempts,
            last_status_code: last.status_code,
            created_at: Millis(last.created_at),
            event_type: EventType::try_from(last.event_type).unwrap_or(EventType::Unspecified),
            finished_at: (last.attempts > 0).then_some(Millis(last.finished_at)),
            next_due_at: last.next_due_at.map(Millis),
        };
        Ok(Some(DeliveryPage { rows: found.into_iter().map(row).collect(), next }))
    }
}

/// Changes that the read side asks for, by way of the write side.
pub struct AskedChanges(pub Ingest);

#[async_trait]
impl sendtrail_query_api::Changes for AskedChanges {
    async fn make(&self, account: AccountId, actor: Actor, change: Change) -> Result<(), Problem> {
        self.0.change(account, Some(actor), change).await
    }
}

/// Events that are told once more, from wherever queries find them.
pub struct Events(pub Query);

#[async_trait]
impl History for Events {
    async fn page(
        &self,
        account: AccountId,
        query: &ReplayQuery,
        cursor: &str,
        limit: usize,
    ) -> Result<HistoryPage, String> {
        let found = self.0.again(account, query, bookmark(cursor), limit).await.map_err(|error| error.to_string())?;
        let deliveries = found.deliveries.into_iter().map(|again| Redelivery {
            event: again.event,
            destination: again.destination,
            attempts: again.attempts,
        });
        Ok(HistoryPage { deliveries: deliveries.collect(), events: found.events, next: found.next.map(cursor_of) })
    }
}

/// A bookmark as text: a time, then an event's number and a destination.
fn cursor_of(Bookmark { from, told }: Bookmark) -> String {
    match told {
        Some((seq, to)) => format!("{} {seq} {to}", from.0),
        None => from.0.to_string(),
    }
}

fn bookmark(cursor: &str) -> Bookmark {
    let mut parts = cursor.split(' ');
    let from = parts.next().and_then(|from| from.parse().ok()).unwrap_or(i64::MIN);
    let told = parts.next().and_then(|seq| seq.parse().ok()).zip(parts.next().and_then(|to| to.parse().ok()));
    Bookmark { from: Millis(from), told }
}

/// Posts samples.
pub struct Sampler(pub Sender);

#[async_trait]
impl sendtrail_ingest::Samples for Sampler {
    async fn post(&self, account: &AccountConfig, to: &Destination, kind: EventType) -> Option<Sampled> {
        let (event_name, answer) = self.0.sample(account, to, kind).await?;
        Some(Sampled {
            event_name,
            status_code: answer.status.as_ref().ok().copied(),
            failure: answer.class().name(),
            latency: answer.took,
            response: String::from_utf8_lossy(&answer.body).into_owned(),
            error: answer.status.err().map(|failed| failed.message),
        })
    }

    fn refusal(&self, url: &url::Url) -> Option<String> {
        self.0.poster.refusal(url)
    }
}
