//! One lane: the rows of some partitions, one insert after the other.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use bytes::Bytes;
use clickhouse::Client;
use metrics::{counter, gauge, histogram};
use sendtrail_eventlog::Clock;
use sendtrail_schemas::archive::{ArchiveCell, ArchiveView};
use sendtrail_schemas::clickhouse as format;
use sendtrail_schemas::time::{Day, Millis};
use tokio::time::Instant;

use super::claims::{Claim, Claims, Ranges};
use super::rows::Feed;
use super::{ClickHouseOptions, Marks, Progress};
use crate::Error;

/// Bytes of one insert: rows of large bodies make smaller inserts.
const BATCH_BYTES: usize = 128 << 20;
/// How soon after an insert a reader who waits gets the next.
const AT_ONCE: Duration = Duration::from_millis(100);
/// How often it is looked what days ClickHouse has.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// See the module.
pub struct Lane {
    /// Which of `count`.
    pub number: u32,
    /// Lanes of the table.
    pub count: u32,
    /// The table.
    pub feed: &'static Feed,
    /// Where its rows come from.
    pub cell: Arc<ArchiveCell>,
    /// ClickHouse.
    pub client: Client,
    /// This lane's claims.
    pub claims: Claims,
    /// What day it is.
    pub clock: Clock,
    /// How long ClickHouse keeps rows; 0: for good.
    pub retention_days: u32,
    /// What others see.
    pub progress: Arc<Progress>,
    /// How to work.
    pub options: ClickHouseOptions,
}

impl Lane {
    /// Runs until something fails.
    pub async fn run(self) -> Result<Infallible, Error> {
        let (mut next, mut marks) = self.recover().await?;
        self.show(&marks);
        let mut looked: Option<Instant> = None;
        loop {
            let begun = Instant::now();
            let view = self.cell.load();
            let ranges = self.plan(&view, &marks);
            if ranges.is_empty() {
                if self.number == 0 && looked.is_none_or(|at| at.elapsed() > LOOK_EVERY) {
                    let whole = self.whole_since(&view).await?;
                    self.progress.state.send_modify(|state| state.whole_since = whole);
                    looked = Some(begun);
                }
                self.wait(begun).await;
                continue;
            }
            let (ranges, rows) = self.fetch(&view, ranges).await?;
            let claim = Claim { number: next, ranges, before: marks };
            self.claims.make(&claim).await?;
            self.insert(&claim, &rows).await?;
            (next, marks) = (next + 1, claim.after());
            self.show(&marks);
            if rows.num_rows() < self.options.batch_rows {
                self.wait(begun).await;
            }
        }
    }

    /// Where to go on: the last claim is inserted again, since nobody knows whether it was.
    async fn recover(&self) -> Result<(u64, Marks), Error> {
        let there = self.there().await?;
        let view = self.cell.load();
        let Some(last) = self.claims.last().await? else {
            if !there.is_empty() {
                return Err(Error::Missing(format!(
                    "the table {} has rows that this server did not insert: use another database, or empty this one by \
                     'sendtrail migrate --recreate'",
                    self.feed.table
                )));
            }
            let mut first = if self.feed.layout.begins_anywhere {
                let feed = self.feed;
                blocking(move || feed.first(&view)).await?
            } else {
                Marks::new()
            };
            first.retain(|partition, _| self.is_mine(*partition));
            return Ok((0, first));
        };
        let after = last.after();
        self.check(&there, &[&last.before, &after])?;
        let (_, rows) = self.fetch(&view, last.ranges.clone()).await?;
        self.insert(&last, &rows).await?;
        self.check(&self.there().await?, &[&after])?;
        Ok((last.number + 1, after))
    }

    /// Whether every partition is where one of some marks has it.
    fn check(&self, there: &Marks, expected: &[&Marks]) -> Result<(), Error> {
        let of = |marks: &Marks, partition: u32| marks.get(&partition).copied().unwrap_or(0);
        let all = expected.iter().flat_map(|marks| marks.keys()).chain(there.keys());
        let strange =
            all.copied().find(|partition| !expected.iter().any(|marks| of(marks, *partition) == of(there, *partition)));
        let Some(partition) = strange else { return Ok(()) };
        Err(Error::Missing(format!(
            "partition {partition} of the table {} goes on at {}, which is not where this server left it: it was changed by \
             others. Make it anew by 'sendtrail migrate --recreate'",
            self.feed.table,
            of(there, partition)
        )))
    }

    /// Where ClickHouse is, by its own account.
    async fn there(&self) -> Result<Marks, Error> {
        let table = self.feed.table;
        let sql = format!("SELECT partition, max(last) + 1 AS next FROM {table}_progress GROUP BY partition");
        let rows = self.client.query(&sql).fetch_all::<(u32, u64)>().await?;
        Ok(rows.into_iter().filter(|(partition, _)| self.is_mine(*partition)).collect())
    }

    fn is_mine(&self, partition: u32) -> bool {
        partition % self.count == self.number
    }

    /// What to insert next: of each partition what there is, in equal shares where there is too much.
    fn plan(&self, view: &Arc<ArchiveView>, marks: &Marks) -> Ranges {
        let mut open: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        let mut behind = 0;
        for (partition, end) in view.ends() {
            let mark = marks.get(&partition).copied().unwrap_or(0);
            if self.is_mine(partition) && mark < end {
                open.insert(partition, (mark, end));
                behind += end - mark;
            }
        }
        let lane = self.number.to_string();
        gauge!("sendtrail_clickhouse_lag_rows", "table" => self.feed.table, "lane" => lane).set(behind as f64);
        let share = (self.options.batch_rows / open.len().max(1)).max(1) as u64;
        open.values_mut().for_each(|(from, to)| *to = (*to).min(*from + share));
        open
    }

    /// The rows of some ranges, or of the first part of them if they are too large for one insert.
    async fn fetch(&self, view: &Arc<ArchiveView>, mut ranges: Ranges) -> Result<(Ranges, RecordBatch), Error> {
        loop {
            let (feed, view, asked) = (self.feed, view.clone(), ranges.clone());
            let rows = blocking(move || feed.fetch(&view, &asked)).await?;
            if rows.get_array_memory_size() <= BATCH_BYTES || rows.num_rows() <= ranges.len() {
                return Ok((ranges, rows));
            }
            ranges.values_mut().for_each(|(from, to)| *to = *from + (*to - *from).div_ceil(2));
        }
    }

    /// Inserts a claim's rows; ClickHouse has each once, however often this is done.
    async fn insert(&self, claim: &Claim, rows: &RecordBatch) -> Result<(), Error> {
        let begun = Instant::now();
        let table = self.feed.table;
        let columns: Vec<String> = rows.schema().fields().iter().map(|field| format!("`{}`", field.name())).collect();
        let sql = format!("INSERT INTO {table} ({}) FORMAT {}", columns.join(", "), format::FORMAT);
        let sent = rows.clone();
        let body = blocking(move || Ok(format::encode(&sent)?)).await?;
        // One block, so that the token stands for all of it.
        let mut insert = self
            .client
            .insert_formatted_with(sql)
            .with_setting("insert_deduplication_token", self.claims.token(claim))
            .with_setting("deduplicate_insert", "enable")
            .with_setting("deduplicate_blocks_in_dependent_materialized_views", "1")
            .with_setting("async_insert", "0")
            .with_setting("max_insert_threads", "1")
            .with_timeouts(Some(self.options.timeout), Some(self.options.timeout));
        insert.send(Bytes::from(body)).await?;
        insert.end().await?;
        counter!("sendtrail_clickhouse_rows_total", "table" => table).increment(rows.num_rows() as u64);
        histogram!("sendtrail_clickhouse_insert_seconds", "table" => table).record(begun.elapsed().as_secs_f64());
        Ok(())
    }

    /// The first day of receipt from which on ClickHouse has as many rows of each day as the files of a view that was
    /// inserted wholly, and does not drop them soon.
    async fn whole_since(&self, view: &Arc<ArchiveView>) -> Result<Option<Day>, Error> {
        let mut filed: BTreeMap<Day, u64> = BTreeMap::new();
        for file in view.files.iter() {
            *filed.entry(file.day).or_default() += file.rows;
        }
        let sql = "SELECT partition, sum(rows) AS rows FROM system.parts \
                   WHERE database = currentDatabase() AND table = ? AND active GROUP BY partition";
        let parts = self.client.query(sql).bind(self.feed.table).fetch_all::<(String, u64)>().await?;
        let mut there: BTreeMap<Day, u64> = BTreeMap::new();
        for (day, rows) in parts {
            there.insert(Millis::parse_day(&day)?.day(), rows);
        }
        let lacking = filed.iter().rev().find(|(day, rows)| there.get(day).is_none_or(|has| has < *rows));
        let counted = lacking.map_or(Day::MIN, |(day, _)| day + 1);
        let kept = match self.retention_days {
            0 => Day::MIN,
            days => self.clock.now().day() - days as Day,
        };
        Ok(Some(counted.max(kept)))
    }

    fn show(&self, marks: &Marks) {
        self.progress.state.send_modify(|state| {
            state.failure = None;
            state.marks.extend(marks);
        });
    }

    /// Until rows have waited long enough for others, or a reader waits for them.
    async fn wait(&self, begun: Instant) {
        let asked = async {
            self.progress.wanted.notified().await;
            tokio::time::sleep_until(begun + AT_ONCE).await;
        };
        tokio::select! {
            () = asked => {}
            () = tokio::time::sleep_until(begun + self.options.flush_every) => {}
        }
    }
}

/// Does what blocks beside the runtime's workers.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|cause| Error::Io { what: "read the archive".into(), cause: cause.into() })?
}
