//! Attempts at webhooks from their archive and its tail: every one of a delivery, and how deliveries stand where nobody
//! keeps that at hand.

mod newest;

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
use sendtrail_schemas::mail::{Attempt, DeliveryStatus};
use sendtrail_schemas::time::{DAY, Millis};
use uuid::Uuid;

use super::exporting::{exporting, one_by_one, tail_of};
use super::provider::{ArchiveTable, Chosen};
use super::{context, every, time};
use crate::{Deliveries, DeliveriesQuery, DeliveryOf, DeliveryPage, DeliveryRow, DeliveryState, Error};
use newest::Newest;

/// How far clocks may be apart, milliseconds.
const CLOCKS: i64 = 60_000;
/// How far back deliveries are listed from here, milliseconds.
const LISTED: i64 = 30 * DAY;
/// Deliveries that are held at once where those that stand in some way are looked for among them.
const HELD: usize = 50_000;

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

    /// Hands on each attempt of an account that matches, in no order.
    async fn each(
        &self,
        view: &ArchiveView,
        account: AccountId,
        since: Millis,
        wanted: Expr,
        mut take: impl FnMut(LoggedAttempt) + Send,
    ) -> Result<(), Error> {
        if view.files.is_empty() && view.tail.is_empty() {
            return Ok(());
        }
        // What was answered may be large, and is not asked for.
        let none = || lit(ScalarValue::Utf8(None));
        let rows = self.table(view, account, since)?.filter(wanted)?;
        let rows = rows.with_column("response", none())?.with_column("error", none())?;
        let mut batches = rows.execute_stream().await?;
        let read = |batch: RecordBatch| Ok::<_, Error>(read_attempts(&batch)?);
        while let Some(batch) = batches.try_next().await? {
            for logged in read(batch)? {
                take(logged);
            }
        }
        Ok(())
    }

    /// The newest deliveries of a destination. Of those that stand in some way, `held` are looked through at once.
    async fn list(&self, account: AccountId, query: &DeliveriesQuery, held: usize) -> Result<DeliveryPage, Error> {
        let view = self.cell.load();
        let since = query.now.plus(-LISTED);
        // One more tells that there is a next page.
        let enough = query.limit + 1;
        let mut rows: Vec<DeliveryRow> = Vec::new();
        match query.status {
            None => {
                let mut newest = Newest::new(enough);
                let wanted = of_destination(query, query.before);
                self.each(&view, account, since, wanted, |logged| newest.take(&logged)).await?;
                rows.extend(newest.into_rows());
            }
            Some(status) => {
                let mut before = query.before;
                loop {
                    // A delivery that stands so has an attempt that left it so; what came after that one is read then.
                    let mut newest = Newest::new(held);
                    let once = of_destination(query, before).and(left_it(status));
                    self.each(&view, account, since, once, |logged| newest.take(&logged)).await?;
                    let Some(least) = newest.least() else { break };
                    let of_these = of_destination(query, before).and(col("event_seq").gt_eq(lit(least as i64)));
                    let renew = |logged: LoggedAttempt| {
                        newest.renew(&logged);
                    };
                    self.each(&view, account, since, of_these, renew).await?;
                    let goes_on = newest.is_full();
                    rows.extend(newest.into_rows().filter(|row| row.status == status));
                    if rows.len() >= enough || !goes_on {
                        break;
                    }
                    // All of an account's events are in one partition: none of this number is left.
                    before = Some(least);
                }
            }
        }
        let next = rows.get(query.limit).and_then(|_| rows.get(query.limit - 1)).map(|row| row.seq);
        rows.truncate(query.limit);
        Ok(DeliveryPage { rows, next })
    }
}

/// Attempts at a destination, of events before a number.
fn of_destination(query: &DeliveriesQuery, before: Option<u64>) -> Expr {
    let of = col("destination_id").eq(lit(query.destination.to_string()));
    match before {
        Some(before) => of.and(col("event_seq").lt(lit(i64::try_from(before).unwrap_or(i64::MAX)))),
        None => of,
    }
}

/// Attempts that left a delivery so. A name that is not known here is read as pending.
fn left_it(status: DeliveryStatus) -> Expr {
    let others = [DeliveryStatus::Failed, DeliveryStatus::Delivered, DeliveryStatus::GaveUp];
    match status {
        DeliveryStatus::Pending => {
            col("status").in_list(others.iter().map(|status| lit(status.name())).collect(), true)
        }
        status => col("status").eq(lit(status.name())),
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
        let numbers = col("event_seq").in_list(numbers, false);
        let view = self.cell.load();
        let mut last: HashMap<(u32, u64, Vec<u8>), LoggedAttempt> = HashMap::new();
        let keep = |logged: LoggedAttempt| {
            let Attempt { event_seq, destination_id, .. } = &logged.attempt;
            let key = (logged.partition, *event_seq, destination_id.clone());
            if last.get(&key).is_none_or(|kept| kept.offset < logged.offset) {
                last.insert(key, logged);
            }
        };
        self.each(&view, account, since, numbers, keep).await?;
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
        Ok(Some(self.list(account, query, HELD).await?))
    }
}

#[cfg(test)]
mod tests;
