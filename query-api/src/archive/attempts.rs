//! Attempts at webhooks from their archive and its tail: every one of a delivery, and how deliveries stand where nobody
//! keeps that at hand.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use datafusion::common::ScalarValue;
use datafusion::dataframe::DataFrame;
use datafusion::logical_expr::{Expr, col, lit};
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;
use futures::stream::BoxStream;
use sendtrail_schemas::archive::{ArchiveCell, ArchiveView, ArchivedFile};
use sendtrail_schemas::attempts::{LoggedAttempt, read_attempts, schema};
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::mail::Attempt;
use sendtrail_schemas::time::{DAY, Millis};
use uuid::Uuid;

use super::exporting::{exporting, one_by_one, tail_of};
use super::provider::{ArchiveTable, Chosen};
use super::{context, every, time};
use crate::{Deliveries, DeliveriesQuery, DeliveryOf, DeliveryPage, DeliveryRow, DeliveryState, Error};

/// How far clocks may be apart, milliseconds.
const CLOCKS: i64 = 60_000;
/// How far back deliveries are listed from here, milliseconds.
const LISTED: i64 = 30 * DAY;

/// See the module.
pub struct ArchivedAttempts {
    context: SessionContext,
    exporting: SessionContext,
    cell: Arc<ArchiveCell>,
}

impl ArchivedAttempts {
    /// Over the archive of attempts.
    pub fn new(cell: Arc<ArchiveCell>, threads: usize) -> Self {
        Self { context: context(threads, true), exporting: exporting(), cell }
    }

    /// The attempts of an account that began at or after a time.
    fn table(&self, view: &ArchiveView, account: AccountId, since: Millis) -> Result<DataFrame, Error> {
        let may_hold = |file: &&Arc<ArchivedFile>| file.may_hold(Some(account), Some(since), None);
        let files = view.files.iter().filter(may_hold).cloned().map(Chosen::whole).collect();
        let tail: Vec<RecordBatch> = view.tail.iter().map(|batch| batch.rows.clone()).collect();
        let table = ArchiveTable { schema: schema(), root: view.root.clone(), files, tail };
        let rows = self.context.read_table(Arc::new(table))?;
        Ok(rows.filter(col("account_id").eq(lit(account.to_string())).and(col("started_at").gt_eq(time(since))))?)
    }

    /// All attempts of an account, or of all, that began in a span of time, in no order, some thousand at once.
    pub(crate) fn rows(
        &self,
        account: Option<AccountId>,
        from: Millis,
        to: Millis,
        destination: Option<&str>,
    ) -> BoxStream<'static, Result<RecordBatch, Error>> {
        let view = self.cell.load();
        let files = view.files.iter().filter(|file| file.may_hold(account, Some(from), Some(to)));
        let tail = tail_of(&view, "started_at", Some(from), Some(to));
        let mut all = vec![col("started_at").gt_eq(time(from)).and(col("started_at").lt(time(to)))];
        all.extend(account.map(|account| col("account_id").eq(lit(account.to_string()))));
        all.extend(destination.map(|destination| col("destination_id").eq(lit(destination))));
        one_by_one(&self.exporting, schema(), &view, files.cloned(), tail, every(all), None)
    }

    /// Every attempt of a delivery, the first one first. None: there was none, or no such delivery.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn of_delivery(&self, account: AccountId, delivery: Uuid) -> Result<Vec<LoggedAttempt>, Error> {
        let view = self.cell.load();
        if view.files.is_empty() && view.tail.is_empty() {
            return Ok(Vec::new());
        }
        let wanted = col("delivery_id").eq(lit(delivery.to_string()));
        let mut found = Vec::new();
        for batch in self.table(&view, account, Millis(i64::MIN / 1_000))?.filter(wanted)?.collect().await? {
            found.extend(read_attempts(&batch)?);
        }
        found.sort_by_key(|logged| logged.offset);
        Ok(found)
    }

    /// The last attempt of each delivery of those that match.
    async fn last(
        &self,
        account: AccountId,
        since: Millis,
        wanted: Expr,
    ) -> Result<HashMap<(u32, u64, Vec<u8>), LoggedAttempt>, Error> {
        let view = self.cell.load();
        let mut last: HashMap<_, LoggedAttempt> = HashMap::new();
        if view.files.is_empty() && view.tail.is_empty() {
            return Ok(last);
        }
        // What was answered may be large, and is not asked for.
        let none = || lit(ScalarValue::Utf8(None));
        let rows = self.table(&view, account, since)?.filter(wanted)?;
        let rows = rows.with_column("response", none())?.with_column("error", none())?;
        let mut batches = rows.execute_stream().await?;
        let read = |batch: RecordBatch| Ok::<_, Error>(read_attempts(&batch)?);
        while let Some(batch) = batches.try_next().await? {
            for logged in read(batch)? {
                let Attempt { event_seq, destination_id, .. } = &logged.attempt;
                let key = (logged.partition, *event_seq, destination_id.clone());
                if last.get(&key).is_none_or(|kept| kept.offset < logged.offset) {
                    last.insert(key, logged);
                }
            }
        }
        Ok(last)
    }
}

#[async_trait]
impl Deliveries for ArchivedAttempts {
    async fn states(
        &self,
        account: AccountId,
        wanted: &[DeliveryOf],
    ) -> Result<Option<HashMap<DeliveryOf, DeliveryState>>, Error> {
        let since = wanted.iter().map(|of| of.received_at).min().unwrap_or(Millis(0)).plus(-CLOCKS);
        let numbers = wanted.iter().map(|of| lit(of.seq as i64)).collect();
        let last = self.last(account, since, col("event_seq").in_list(numbers, false)).await?;
        let state = |of: &DeliveryOf| {
            let attempt = &last.get(&(of.partition, of.seq, of.destination.bytes().to_vec()))?.attempt;
            let state = DeliveryState {
                status: attempt.status(),
                attempts: attempt.number,
                last_status_code: attempt.status_code,
                finished_at: Millis(attempt.finished_at),
            };
            Some((*of, state))
        };
        Ok(Some(wanted.iter().filter_map(state).collect()))
    }

    async fn page(&self, account: AccountId, query: &DeliveriesQuery) -> Result<Option<DeliveryPage>, Error> {
        let mut wanted = col("destination_id").eq(lit(query.destination.to_string()));
        if let Some(before) = query.before {
            wanted = wanted.and(col("event_seq").lt(lit(i64::try_from(before).unwrap_or(i64::MAX))));
        }
        let last = self.last(account, query.now.plus(-LISTED), wanted).await?;
        let mut rows: Vec<DeliveryRow> = last.into_values().map(|logged| row(&logged)).collect();
        rows.retain(|row| query.status.is_none_or(|status| row.status == status));
        rows.sort_by_key(|row| std::cmp::Reverse(row.seq));
        let next = rows.get(query.limit).and_then(|_| rows.get(query.limit - 1)).map(|row| row.seq);
        rows.truncate(query.limit);
        Ok(Some(DeliveryPage { rows, next }))
    }
}

fn row(logged: &LoggedAttempt) -> DeliveryRow {
    let attempt = &logged.attempt;
    let received = if attempt.event_received_at > 0 { attempt.event_received_at } else { attempt.first_started_at };
    DeliveryRow {
        partition: logged.partition,
        seq: attempt.event_seq,
        status: attempt.status(),
        attempts: attempt.number,
        last_status_code: attempt.status_code,
        created_at: Millis(received),
        event_type: attempt.event_type(),
        finished_at: Some(Millis(attempt.finished_at)),
        next_due_at: attempt.next_due_at.map(Millis),
    }
}
