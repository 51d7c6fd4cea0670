//! Events from the Parquet archive and its tail, by DataFusion.

pub mod attempts;
mod exporting;
mod lookup;
mod provider;
mod sums;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{AsArray, RecordBatch};
use datafusion::arrow::compute::min;
use datafusion::arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use datafusion::common::ScalarValue;
use datafusion::dataframe::DataFrame;
use datafusion::functions_nested::expr_fn::{array_has, map_extract, map_keys};
use datafusion::logical_expr::{Expr, col, lit};
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::StreamExt;
use futures::stream::BoxStream;
use sendtrail_schemas::archive::{ArchiveCell, ArchiveView, ArchivedFile};
use sendtrail_schemas::columns::read_events;
use sendtrail_schemas::event::Event;
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::rollup::{Apart, HourRows, Rollup};
use sendtrail_schemas::time::{Day, Hour, Millis};

use crate::analytics::{Analytics, EventQuery, Position, UNASKED};
use crate::reconcile::Numbered;
use crate::{Error, Rollups};
use exporting::{exporting, one_by_one, tail_of};
use lookup::{LookUp, Wanted};
use provider::ArchiveTable;

/// Files of the first round of a page; each round takes twice as many.
const FIRST_FILES: usize = 4;

/// Which events are asked for.
#[derive(Clone, Copy, Debug)]
pub enum Part {
    /// All.
    All,
    /// Those received before a UTC day.
    Before(Day),
}

impl Part {
    fn has(self, file: &ArchivedFile) -> bool {
        match self {
            Self::All => true,
            Self::Before(day) => file.day < day,
        }
    }

    /// What may be in it of a view's tail.
    fn of_tail(self, view: &ArchiveView) -> Vec<RecordBatch> {
        let tail = view.tail.iter().map(|batch| &batch.rows);
        let Self::Before(day) = self else { return tail.cloned().collect() };
        let before = |rows: &&RecordBatch| {
            let received = rows.column_by_name("received_at");
            let received = received.and_then(|column| column.as_primitive_opt::<TimestampMicrosecondType>());
            received.and_then(min).is_none_or(|first| Millis(first.div_euclid(1_000)).day() < day)
        };
        tail.filter(before).cloned().collect()
    }

    fn predicate(self) -> Option<Expr> {
        match self {
            Self::All => None,
            Self::Before(day) => Some(col("received_at").lt(time(Millis::of_day(day)))),
        }
    }
}

/// What runs queries over files of ours.
fn context(threads: usize, bloom_filters: bool) -> SessionContext {
    let mut config = SessionConfig::new().with_target_partitions(threads).with_batch_size(4_096);
    let parquet = &mut config.options_mut().execution.parquet;
    parquet.pushdown_filters = true;
    parquet.reorder_filters = true;
    parquet.schema_force_view_types = false;
    parquet.bloom_filter_on_read = bloom_filters;
    SessionContext::new_with_config(config)
}

/// Answers from the archive of one process.
pub struct DataFusionAnalytics {
    context: SessionContext,
    exporting: SessionContext,
    cell: Arc<ArchiveCell>,
    look_up: Arc<LookUp>,
}

impl DataFusionAnalytics {
    /// Over an archive; `cache_bytes` bounds what is remembered of files.
    pub fn new(cell: Arc<ArchiveCell>, cache_bytes: usize, threads: usize) -> Self {
        // Ours are looked at before, and remembered.
        let context = context(threads, false);
        Self { context, exporting: exporting(), cell, look_up: Arc::new(LookUp::new(cache_bytes)) }
    }

    /// All events that match, of an account or of all, in no order, some thousand at once; of them some columns, or all.
    pub(crate) fn rows(
        &self,
        account: Option<AccountId>,
        query: &EventQuery,
        columns: Option<&[&str]>,
    ) -> BoxStream<'static, Result<RecordBatch, Error>> {
        let view = self.cell.load();
        let files = view.files.iter().filter(|file| file.may_hold(account, query.from, query.to));
        let mut all = conditions(query, Part::All);
        all.extend(account.map(|account| col("account_id").eq(lit(account.to_string()))));
        let schema = sendtrail_schemas::columns::schema();
        let tail = tail_of(&view, "occurred_at", query.from, query.to);
        one_by_one(&self.exporting, schema, &view, files.cloned(), tail, every(all), columns)
    }

    /// The numbers of all events that match, in no order.
    ///
    /// # Errors
    /// [`Error`]; [`Error::Excess`]: there are more than `limit`.
    pub(crate) async fn numbers(&self, query: &EventQuery, limit: usize) -> Result<Vec<Numbered>, Error> {
        let mut batches = self.rows(Some(query.account), query, Some(&["occurred_at", "partition", "seq"]));
        let mut numbers = Vec::new();
        while let Some(batch) = batches.next().await {
            let batch = batch?;
            let mistyped = |name: &str| Error::Port(format!("column {name:?} is missing or of another type"));
            let whole = |name: &'static str| {
                let column = batch.column_by_name(name).and_then(|column| column.as_primitive_opt::<Int64Type>());
                column.ok_or_else(|| mistyped(name))
            };
            let occurred = batch.column_by_name("occurred_at");
            let occurred = occurred.and_then(|column| column.as_primitive_opt::<TimestampMicrosecondType>());
            let occurred = occurred.ok_or_else(|| mistyped("occurred_at"))?;
            let (partitions, seqs) = (whole("partition")?, whole("seq")?);
            for row in 0..batch.num_rows() {
                let at = Millis(occurred.value(row).div_euclid(1_000));
                numbers.push((at, partitions.value(row) as u32, seqs.value(row) as u64));
            }
            if numbers.len() > limit {
                return Err(Error::Excess(format!("more than {limit} events: ask for less")));
            }
        }
        Ok(numbers)
    }

    /// A table of some files and some of the tail.
    fn table(
        &self,
        view: &Arc<ArchiveView>,
        files: Vec<provider::Chosen>,
        tail: Vec<RecordBatch>,
    ) -> Result<DataFrame, Error> {
        let schema = sendtrail_schemas::columns::schema();
        let table = ArchiveTable { schema, root: view.root.clone(), files, tail };
        Ok(self.context.read_table(Arc::new(table))?)
    }

    /// The files that may hold what is wanted, with the row groups that may, newest first.
    async fn choose(
        &self,
        view: &Arc<ArchiveView>,
        query: &EventQuery,
        part: Part,
    ) -> Result<Vec<provider::Chosen>, Error> {
        let to = query.before.as_ref().map(|before| before.occurred_at.plus(1));
        let to = match (to, query.to) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        let files = view.files.iter().filter(|file| part.has(file));
        let mut files: Vec<Arc<ArchivedFile>> =
            files.filter(|file| file.may_hold(Some(query.account), query.from, to)).cloned().collect();
        files.sort_by_key(|file| std::cmp::Reverse(file.occurred.1));
        let wanted = Wanted { message_id: query.message_id.clone(), recipient: query.recipient.clone() };
        if wanted.is_anything() {
            return Ok(files.into_iter().map(provider::Chosen::whole).collect());
        }
        let (look_up, root) = (self.look_up.clone(), view.root.clone());
        let chosen = tokio::task::spawn_blocking(move || look_up.choose(&root, files, &wanted)).await;
        chosen.map_err(|cause| Error::Port(cause.to_string()))?
    }

    /// The newest matching events of some files and some of the tail.
    async fn round(
        &self,
        view: &Arc<ArchiveView>,
        files: Vec<provider::Chosen>,
        tail: Vec<RecordBatch>,
        query: &EventQuery,
        part: Part,
    ) -> Result<Vec<Event>, Error> {
        let newest_first = ["occurred_at", "event_id", "partition", "seq"].map(|name| col(name).sort(false, false));
        let rows = self
            .table(view, files, tail)?
            .filter(predicate(query, part))?
            .sort(newest_first.to_vec())?
            .limit(0, Some(query.limit))?;
        let mut events = Vec::new();
        for batch in rows.collect().await? {
            events.extend(read_events(&batch)?);
        }
        Ok(events)
    }

    /// The newest events of a part that match, newest first.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn events_in(&self, query: EventQuery, part: Part) -> Result<Vec<Event>, Error> {
        let view = self.cell.load();
        let mut rest = self.choose(&view, &query, part).await?;
        let mut tail = part.of_tail(&view);
        if rest.is_empty() && tail.is_empty() {
            return Ok(Vec::new());
        }
        // Files are taken newest first, a few at a time, until the page cannot change any more.
        let mut page: Vec<Event> = Vec::new();
        let mut count = if query.message_id.is_some() { usize::MAX } else { FIRST_FILES };
        loop {
            let next: Vec<_> = rest.drain(..count.min(rest.len())).collect();
            page.extend(self.round(&view, next, std::mem::take(&mut tail), &query, part).await?);
            page.sort_by_cached_key(|event| std::cmp::Reverse(Position::of(event)));
            page.truncate(query.limit);
            count = count.saturating_mul(2);
            let oldest = page.last().filter(|_| page.len() == query.limit).map(Event::occurred);
            if let Some(oldest) = oldest {
                rest.retain(|chosen| chosen.file.occurred.1 >= oldest);
            }
            if rest.is_empty() {
                return Ok(page);
            }
        }
    }
}

#[async_trait]
impl Analytics for DataFusionAnalytics {
    async fn events(&self, query: EventQuery) -> Result<Vec<Event>, Error> {
        self.events_in(query, Part::All).await
    }

    async fn scan(
        &self,
        account: AccountId,
        from: Millis,
        to: Millis,
        apart: &Apart,
    ) -> Result<Vec<(Hour, Rollup)>, Error> {
        self.scan_in(account, from, to, Part::All, apart).await
    }
}

/// Sums where nobody keeps any: counted from the events.
#[async_trait]
impl Rollups for DataFusionAnalytics {
    async fn rows(&self, account: AccountId, from: Hour, to: Hour, apart: &Apart) -> Result<Vec<HourRows>, Error> {
        let mut hours: BTreeMap<Hour, Vec<Rollup>> = BTreeMap::new();
        for (hour, row) in self.scan(account, Millis::of_hour(from), Millis::of_hour(to), apart).await? {
            hours.entry(hour).or_default().push(row);
        }
        Ok(hours.into_iter().map(|(hour, rows)| HourRows::Exact(hour, rows)).collect())
    }
}

fn time(millis: Millis) -> Expr {
    lit(ScalarValue::TimestampMicrosecond(Some(millis.0.saturating_mul(1_000)), Some("UTC".into())))
}

/// What a row must be to be on the page.
fn predicate(query: &EventQuery, part: Part) -> Expr {
    let mut all = vec![col("account_id").eq(lit(query.account.to_string()))];
    all.extend(conditions(query, part));
    every(all)
}

fn every(all: Vec<Expr>) -> Expr {
    all.into_iter().reduce(Expr::and).unwrap_or_else(|| lit(true))
}

/// The same without the account.
fn conditions(query: &EventQuery, part: Part) -> Vec<Expr> {
    let mut all: Vec<Expr> = part.predicate().into_iter().collect();
    all.extend(query.from.map(|from| col("occurred_at").gt_eq(time(from))));
    all.extend(query.to.map(|to| col("occurred_at").lt(time(to))));
    if query.kinds.is_empty() {
        all.push(col("event_type").not_eq(lit(UNASKED.name())));
    } else {
        let names = query.kinds.iter().map(|kind| lit(kind.name())).collect();
        all.push(col("event_type").in_list(names, false));
    }
    all.extend(query.message_id.as_ref().map(|id| col("message_id").eq(lit(id))));
    all.extend(query.configuration_set_name.as_ref().map(|name| col("configuration_set_name").eq(lit(name))));
    if let Some(recipient) = &query.recipient {
        let folded = || lit(sendtrail_schemas::address::fold(recipient).into_owned());
        let as_given = col("recipient_folded").is_null().and(col("recipient").eq(folded()));
        all.push(col("recipient_folded").eq(folded()).or(as_given));
    }
    if let Some(tag) = &query.tag {
        let meaning = |(key, value): (&str, Option<&str>)| match value {
            Some(value) => array_has(map_extract(col("tags"), lit(key)), lit(value)),
            None => has_key(key),
        };
        all.extend(tag.meanings().map(meaning).reduce(Expr::or));
    }
    if let Some(place) = &query.place {
        let of = col("partition").eq(lit(i64::from(place.partition))).and(col("seq").eq(lit(place.seq as i64)));
        all.push(col("received_at").eq(time(place.received_at)).and(of));
    }
    all.extend(query.below.map(|below| col("seq").lt(lit(below as i64))));
    if let Some(before) = &query.before {
        all.push(comes_after(before));
    }
    all
}

fn has_key(key: &str) -> Expr {
    array_has(map_keys(col("tags")), lit(key))
}

/// Rows that come after a position: smaller by the four, one after the other.
fn comes_after(position: &Position) -> Expr {
    let steps = [
        ("occurred_at", time(position.occurred_at)),
        ("event_id", lit(&position.event_id)),
        ("partition", lit(i64::from(position.partition))),
        ("seq", lit(position.seq as i64)),
    ];
    let mut after = lit(false);
    for (name, value) in steps.into_iter().rev() {
        after = col(name).lt(value.clone()).or(col(name).eq(value).and(after));
    }
    // Said once more by itself, so that files and pages can be told apart by it.
    col("occurred_at").lt_eq(time(position.occurred_at)).and(after)
}
