//! The rows of an export, some thousand at once, from wherever they are kept.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{
    ArrayRef, Int64Builder, MapBuilder, MapFieldNames, RecordBatch, StringBuilder, TimestampMicrosecondBuilder,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use sendtrail_schemas::account::Suppression;
use sendtrail_schemas::directory::Directory;
use sendtrail_schemas::ids::{AccountId, ConfigSetId};
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::rollup::{Apart, HourRows, Rollup, Sums};
use sendtrail_schemas::time::{Hour, Millis};
use sendtrail_schemas::topic::partition_of;

use super::job::{Dataset, Job, Part};
use crate::analytics::{EventQuery, TagFilter, UNASKED};
use crate::archive::DataFusionAnalytics;
use crate::archive::attempts::ArchivedAttempts;
use crate::{Accounts, Error, Rollups};

/// Accounts, and rows of a suppression list, that are looked up at once.
const PAGE: usize = 1_000;
/// Hours whose sums are read at once, and rows of sums that are handed on at once.
const HOURS: Hour = 6;
const ROWS: usize = 10_000;

/// Suppression lists.
#[async_trait]
pub trait SuppressionPages: Send + Sync + 'static {
    /// Suppressed addresses of an account after one, in the order of addresses, at most `limit`; and where to go on.
    ///
    /// # Errors
    /// [`Error::Port`].
    async fn page(
        &self,
        account: AccountId,
        after: Option<String>,
        limit: usize,
    ) -> Result<(Vec<Suppression>, Option<String>), Error>;
}

/// Where rows come from.
pub struct Rows {
    /// Events; also for hours that no sums are kept of.
    pub events: Arc<DataFusionAnalytics>,
    /// Attempts at webhooks.
    pub attempts: Arc<ArchivedAttempts>,
    /// Sums.
    pub sums: Arc<dyn Rollups>,
    /// Suppression lists.
    pub suppressions: Arc<dyn SuppressionPages>,
    /// Every account.
    pub directory: Arc<Directory>,
    /// Who knows what is seen yet.
    pub accounts: Arc<dyn Accounts>,
    /// How many partitions there are.
    pub partitions: u32,
}

/// Rows.
pub type Batches<'a> = BoxStream<'a, Result<RecordBatch, Error>>;

impl Rows {
    /// Waits until what was acknowledged is in what is exported: of an account, or of all. Whether it is, in time.
    pub async fn settle(&self, account: Option<AccountId>, within: Duration) -> bool {
        // Of all, one of each partition is as good as all of them.
        let some: BTreeMap<u32, AccountId> = match account {
            Some(account) => BTreeMap::from([(0, account)]),
            None => self.directory.ids().into_iter().map(|id| (partition_of(id, self.partitions), id)).collect(),
        };
        let settled = some.into_values().map(|account| self.accounts.settle_wholly(account, within));
        futures::future::join_all(settled).await.into_iter().all(|settled| settled)
    }

    /// The rows of a part.
    pub fn of<'a>(&'a self, job: &'a Job, part: &'a Part) -> Batches<'a> {
        let filters = &job.request.filters;
        let rows = match job.request.dataset {
            dataset @ (Dataset::Events | Dataset::StatusChanges | Dataset::Activity) => {
                let is_wanted = |kind: &EventType| match dataset {
                    Dataset::StatusChanges => kind.is_status(),
                    Dataset::Activity => *kind == UNASKED,
                    _ => true,
                };
                let mut kinds: Vec<EventType> = filters.kinds().filter(is_wanted).collect();
                if dataset != Dataset::Events && filters.event_types.is_empty() {
                    kinds = EventType::ALL.into_iter().filter(is_wanted).collect();
                }
                let query = EventQuery {
                    from: Some(part.from),
                    to: Some(part.to),
                    kinds,
                    recipient: filters.recipient.clone(),
                    message_id: filters.message_id.clone(),
                    configuration_set_name: filters.configuration_set_name.clone(),
                    tag: filters.tag.as_deref().map(TagFilter::parse),
                    ..EventQuery::of(job.account().unwrap_or(AccountId(uuid::Uuid::nil())), usize::MAX)
                };
                self.events.rows(job.account(), &query, None)
            }
            Dataset::WebhookAttempts => {
                self.attempts.rows(job.account(), part.from, part.to, filters.destination_id.as_deref())
            }
            Dataset::Suppressions => {
                let of = move |account| {
                    let pages = stream::try_unfold(Some(None), move |at: Option<Option<String>>| async move {
                        let Some(after) = at else { return Ok::<_, Error>(None) };
                        let (rows, next) = self.suppressions.page(account, after, PAGE).await?;
                        let kept = rows.iter().filter(|row| (part.from.0..part.to.0).contains(&row.created_at));
                        Ok(Some((suppressions(account, kept)?, next.map(Some))))
                    });
                    pages.boxed()
                };
                self.accounts(job).flat_map(of).boxed()
            }
            Dataset::Stats => self
                .accounts(job)
                .flat_map(move |account| self.stats(account, part.from.hour(), part.to.plus(-1).hour() + 1))
                .boxed(),
        };
        rows.try_filter(|batch| std::future::ready(batch.num_rows() > 0)).boxed()
    }

    /// The accounts of an export.
    fn accounts(&self, job: &Job) -> BoxStream<'_, AccountId> {
        if let Some(account) = job.account() {
            return stream::once(std::future::ready(account)).boxed();
        }
        let pages = stream::unfold(Some(None), move |at: Option<Option<AccountId>>| async move {
            let found = self.directory.list(at?, PAGE);
            let ids: Vec<AccountId> = found.iter().map(|config| config.id()).collect();
            let next = ids.last().copied().map(Some);
            Some((stream::iter(ids), next))
        });
        pages.flatten().boxed()
    }

    /// A few hours at once: each may have many rows.
    fn stats(&self, account: AccountId, from: Hour, to: Hour) -> BoxStream<'_, Result<RecordBatch, Error>> {
        let some = stream::iter((from..to).step_by(HOURS as usize));
        let of = move |first: Hour| async move {
            let until = to.min(first + HOURS);
            let mut kept: Vec<(Hour, Rollup)> = Vec::new();
            let mut scanned: Vec<(Hour, Hour)> = Vec::new();
            match self.sums.rows(account, first, until, &Apart::ALL).await {
                Ok(hours) => {
                    for hour in hours {
                        match hour {
                            HourRows::Exact(hour, rows) => kept.extend(rows.into_iter().map(|row| (hour, row))),
                            HourRows::Overflowing(hour) => scanned.push((hour, hour + 1)),
                        }
                    }
                }
                // Where none are kept they are counted, and there may be more than are held at once.
                Err(Error::Excess(_)) => scanned.push((first, until)),
                Err(error) => return Err(error),
            }
            let scan = move |(from, to): (Hour, Hour)| {
                self.events.scan_in_pieces(account, Millis::of_hour(from), Millis::of_hour(to))
            };
            let kept = stream::once(std::future::ready(Ok::<_, Error>(kept)));
            let pieces = kept.chain(stream::iter(scanned).flat_map(scan));
            Ok::<_, Error>(pieces.map_ok(move |rows| stream::iter(batches(account, rows))).try_flatten())
        };
        some.then(of).try_flatten().boxed()
    }
}

fn utc() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

fn times() -> TimestampMicrosecondBuilder {
    TimestampMicrosecondBuilder::new().with_data_type(utc())
}

fn finish(schema: SchemaRef, columns: Vec<ArrayRef>) -> Result<RecordBatch, Error> {
    RecordBatch::try_new(schema, columns).map_err(|cause| Error::Port(cause.to_string()))
}

/// The columns of a suppression list.
fn suppressions<'a>(account: AccountId, rows: impl Iterator<Item = &'a Suppression>) -> Result<RecordBatch, Error> {
    let text = |name: &str, nullable| Field::new(name, DataType::Utf8, nullable);
    let schema = Arc::new(Schema::new(vec![
        text("account_id", false),
        text("email", false),
        text("reason", false),
        text("details", true),
        Field::new("created_at", utc(), false),
        text("event_id", true),
    ]));
    let mut texts: [StringBuilder; 5] = Default::default();
    let mut created = times();
    let whose = account.to_string();
    for row in rows {
        let values = [Some(&whose), Some(&row.email), Some(&row.reason), row.details.as_ref(), row.event_id.as_ref()];
        texts.iter_mut().zip(values).for_each(|(column, value)| column.append_option(value));
        created.append_value(row.created_at.saturating_mul(1_000));
    }
    let [account, email, reason, details, event] = texts.map(|mut column| Arc::new(column.finish()) as ArrayRef);
    finish(schema, vec![account, email, reason, details, Arc::new(created.finish()), event])
}

/// Hourly sums, some thousand at once.
fn batches(account: AccountId, rows: Vec<(Hour, Rollup)>) -> impl Iterator<Item = Result<RecordBatch, Error>> {
    let mut rows = rows.into_iter();
    std::iter::from_fn(move || {
        let some: Vec<(Hour, Rollup)> = rows.by_ref().take(ROWS).collect();
        (!some.is_empty()).then(|| stats(account, &some))
    })
}

/// The columns of hourly sums.
fn stats(account: AccountId, rows: &[(Hour, Rollup)]) -> Result<RecordBatch, Error> {
    let text = |name: &str| Field::new(name, DataType::Utf8, true);
    let names = MapFieldNames { entry: "key_value".into(), key: "key".into(), value: "value".into() };
    let mut tags = MapBuilder::new(Some(names), StringBuilder::new(), StringBuilder::new());
    let mut texts: [StringBuilder; 4] = Default::default();
    let mut accounts = StringBuilder::new();
    let mut hours = times();
    let mut sums: [Int64Builder; 13] = Default::default();
    let whose = account.to_string();
    for (hour, Rollup { dims, sums: of_row }) in rows {
        accounts.append_value(&whose);
        hours.append_value(Millis::of_hour(*hour).0.saturating_mul(1_000));
        let set = dims.config_set_id.as_deref().and_then(|id| ConfigSetId::from_slice(id).ok());
        let set = set.map(|id| id.to_string());
        let values = [&dims.configuration_set_name, &set, &dims.from_domain, &dims.recipient_domain];
        texts.iter_mut().zip(values).for_each(|(column, value)| column.append_option(value.as_ref()));
        for (key, value) in &dims.tags {
            tags.keys().append_value(key);
            tags.values().append_value(value);
        }
        // Appending fails only when keys and values differ in number.
        let _ = tags.append(true);
        sums.iter_mut().zip(of_row.counts()).for_each(|(column, count)| column.append_value(count as i64));
    }
    let tags: ArrayRef = Arc::new(tags.finish());
    let mut fields = vec![
        Field::new("account_id", DataType::Utf8, false),
        Field::new("hour", utc(), false),
        text("configuration_set_name"),
        text("config_set_id"),
        text("from_domain"),
        text("recipient_domain"),
        Field::new("tags", tags.data_type().clone(), true),
    ];
    fields.extend(Sums::NAMES.map(|name| Field::new(name, DataType::Int64, false)));
    let mut columns: Vec<ArrayRef> = vec![Arc::new(accounts.finish()), Arc::new(hours.finish())];
    columns.extend(texts.map(|mut column| Arc::new(column.finish()) as ArrayRef));
    columns.push(tags);
    columns.extend(sums.map(|mut column| Arc::new(column.finish()) as ArrayRef));
    finish(Arc::new(Schema::new(fields)), columns)
}

#[cfg(test)]
mod tests;
