//! One lane: the rows of some partitions, one insert after the other.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use bytes::Bytes;
use clickhouse::Client;
use metrics::{counter, histogram};
use sendtrail_eventlog::Clock;
use sendtrail_eventlog::failpoint::reach;
use sendtrail_schemas::archive::{ArchiveCell, ArchiveView};
use sendtrail_schemas::clickhouse as format;
use sendtrail_schemas::time::{Day, Millis};
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use super::claims::{Claim, Claims, Ranges};
use super::meta::read_meta;
use super::rows::Feed;
use super::{ClickHouseOptions, Marks, Progress, within};
use crate::{Error, blocking};

/// Bytes of one insert: rows of large bodies make smaller inserts.
const BATCH_BYTES: usize = 128 << 20;
/// What is being done when rows cannot be had.
const READ: &str = "read the archive";
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
    /// The database, as it calls itself.
    pub database_id: Uuid,
    /// What others see.
    pub progress: Arc<Progress>,
    /// How to work.
    pub options: ClickHouseOptions,
}

/// Where a lane goes on.
struct Recovered {
    /// The next claim.
    next: u64,
    marks: Marks,
    /// Where each partition began.
    first: Marks,
}

impl Lane {
    /// Runs until something fails.
    pub async fn run(self) -> Result<Infallible, Error> {
        let mut asked = self.progress.asked.subscribe();
        let Recovered { mut next, mut marks, first } = self.recover().await?;
        self.show(&marks);
        let mut looked: Option<Instant> = None;
        loop {
            let begun = Instant::now();
            let view = self.cell.load();
            self.progress.tell_lag(self.feed, &view);
            let mut ranges = self.open(&view, &marks);
            if !ranges.is_empty() {
                share(&mut ranges, self.options.batch_rows as u64);
                let (ranges, rows) = self.fetch(&view, ranges).await?;
                let claim = Claim { number: next, ranges, before: marks, first: first.clone() };
                self.claims.make(&claim).await?;
                reach("clickhouse.claimed");
                self.insert(&claim, &rows).await?;
                reach("clickhouse.inserted");
                self.claims.done(&claim).await?;
                (next, marks) = (next + 1, claim.after());
                self.show(&marks);
                if !self.open(&view, &marks).is_empty() {
                    continue;
                }
            }
            // Here ClickHouse has all of the view, of this lane.
            if self.number == 0 && looked.is_none_or(|at| at.elapsed() > LOOK_EVERY) && self.progress.has_filed(&view) {
                let whole = self.whole_since(&view).await?;
                self.progress.state.send_modify(|state| (state.whole_since, state.failure) = (Some(whole), None));
                looked = Some(begun);
            }
            self.wait(begun, &mut asked).await;
        }
    }

    /// Where to go on: the last claim is inserted again, since nobody knows whether it was.
    async fn recover(&self) -> Result<Recovered, Error> {
        let there = self.there().await?;
        let view = self.cell.load();
        let Some((last, done)) = self.claims.last().await? else {
            if !there.is_empty() {
                return Err(Error::Missing(format!(
                    "the table {} has rows that this server did not insert: use another database, or empty this one by \
                     'sendtrail migrate --recreate'",
                    self.feed.table
                )));
            }
            let mut first = if self.feed.layout.begins_anywhere {
                let feed = self.feed;
                blocking(READ, move || feed.first(&view)).await?
            } else {
                Marks::new()
            };
            first.retain(|partition, _| self.is_mine(*partition));
            return Ok(Recovered { next: 0, marks: first.clone(), first });
        };
        let after = last.after();
        if done {
            self.check(&there, &last.first, &[&after])?;
            return Ok(Recovered { next: last.number + 1, marks: after, first: last.first });
        }
        self.check(&there, &last.first, &[&last.before, &after])?;
        // After a crash its rows may have to be read from the log once more.
        let mut view = view;
        while last.ranges.iter().any(|(partition, (_, to))| view.ends().get(partition).is_none_or(|end| end < to)) {
            tokio::time::sleep(AT_ONCE).await;
            view = self.cell.load();
        }
        let (feed, ranges) = (self.feed, last.ranges.clone());
        let rows = blocking(READ, move || feed.fetch(&view, &ranges, usize::MAX)).await?;
        let rows = rows.ok_or_else(|| Error::Missing("an insert without bounds was too large".into()))?;
        self.insert(&last, &rows).await?;
        self.claims.done(&last).await?;
        self.check(&self.there().await?, &last.first, &[&after])?;
        Ok(Recovered { next: last.number + 1, marks: after, first: last.first })
    }

    /// Whether every partition is where one of some marks has it; one without rows is where it began.
    fn check(&self, there: &Marks, first: &Marks, expected: &[&Marks]) -> Result<(), Error> {
        let of = |marks: &Marks, partition: u32| marks.get(&partition).or(first.get(&partition)).copied().unwrap_or(0);
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
        let sql = format!(
            "SELECT partition, min(first) AS first, max(last) + 1 AS next, sum(rows) AS rows FROM {table}_progress \
             GROUP BY partition"
        );
        let rows = self.client.query(&sql).fetch_all::<(u32, u64, u64, u64)>();
        let mut there = Marks::new();
        for (partition, first, next, rows) in within(self.options.timeout, rows).await? {
            if rows != next - first {
                return Err(Error::Missing(format!(
                    "partition {partition} of the table {table} has {rows} rows numbered from {first} to {next}: it was \
                     changed by others. Make it anew by 'sendtrail migrate --recreate'"
                )));
            }
            if self.is_mine(partition) {
                there.insert(partition, next);
            }
        }
        Ok(there)
    }

    fn is_mine(&self, partition: u32) -> bool {
        partition % self.count == self.number
    }

    /// What is to be inserted yet.
    fn open(&self, view: &ArchiveView, marks: &Marks) -> Ranges {
        let mut open = Ranges::new();
        for (partition, end) in view.ends() {
            let mark = marks.get(&partition).copied().unwrap_or(0);
            if self.is_mine(partition) && mark < end {
                open.insert(partition, (mark, end));
            }
        }
        open
    }

    /// The rows of some ranges, or of the first part of them if they are too large for one insert.
    async fn fetch(&self, view: &Arc<ArchiveView>, mut ranges: Ranges) -> Result<(Ranges, RecordBatch), Error> {
        loop {
            let smallest = ranges.values().all(|(from, to)| to - from <= 1);
            let bytes = if smallest { usize::MAX } else { BATCH_BYTES };
            let (feed, view, asked) = (self.feed, view.clone(), ranges.clone());
            if let Some(rows) = blocking(READ, move || feed.fetch(&view, &asked, bytes)).await? {
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
        let body = blocking("encode rows", move || format::encode(&sent)).await?;
        if !self.claims.is_last(claim).await? {
            return Err(Error::Missing(format!("another server inserts into the table {table}")));
        }
        // One block, so that the token stands for all of it.
        let mut insert = self
            .client
            .insert_formatted_with(sql)
            .with_setting("insert_deduplication_token", self.claims.token(claim))
            .with_setting("deduplicate_insert", "enable")
            .with_setting("deduplicate_blocks_in_dependent_materialized_views", "1")
            .with_setting("async_insert", "0")
            .with_setting("max_insert_threads", "1")
            // Years of a quiet account are one insert.
            .with_setting("max_partitions_per_insert_block", "0")
            .with_timeouts(Some(self.options.timeout), Some(self.options.timeout));
        insert.send(Bytes::from(body)).await?;
        insert.end().await?;
        counter!("sendtrail_clickhouse_rows_total", "table" => table).increment(rows.num_rows() as u64);
        histogram!("sendtrail_clickhouse_insert_seconds", "table" => table).record(begun.elapsed().as_secs_f64());
        Ok(())
    }

    /// The first day of receipt from which on ClickHouse has as many rows of each day as the files of a view that was
    /// inserted wholly, and does not drop them soon.
    async fn whole_since(&self, view: &ArchiveView) -> Result<Day, Error> {
        let meta = within(self.options.timeout, read_meta(&self.client)).await?;
        if meta.database_id != self.database_id {
            return Err(Error::Missing("the ClickHouse tables were made anew".into()));
        }
        let mut filed: BTreeMap<Day, u64> = BTreeMap::new();
        for file in view.files.iter() {
            *filed.entry(file.day).or_default() += file.rows;
        }
        let sql = "SELECT partition, sum(rows) AS rows FROM system.parts \
                   WHERE database = currentDatabase() AND table = ? AND active GROUP BY partition";
        let parts = self.client.query(sql).bind(self.feed.table).fetch_all::<(String, u64)>();
        let parts = within(self.options.timeout, parts).await?;
        let mut there: BTreeMap<Day, u64> = BTreeMap::new();
        for (day, rows) in parts {
            there.insert(Millis::parse_day(&day)?.day(), rows);
        }
        let lacking = filed.iter().rev().find(|(day, rows)| there.get(day).is_none_or(|has| has < *rows));
        let counted = lacking.map_or(Day::MIN, |(day, _)| day + 1);
        let kept = match meta.retention_days {
            0 => Day::MIN,
            days => self.clock.now().day() - days as Day,
        };
        Ok(counted.max(kept))
    }

    fn show(&self, marks: &Marks) {
        self.progress.state.send_modify(|state| {
            state.failure = None;
            state.marks.extend(marks);
        });
    }

    /// Until rows have waited long enough for others, or a reader waits for them.
    async fn wait(&self, begun: Instant, asked: &mut watch::Receiver<u64>) {
        let asked = async {
            // Whoever asks is of this process: the channel lives as long as it does.
            let _ = asked.changed().await;
            tokio::time::sleep_until(begun + AT_ONCE).await;
        };
        tokio::select! {
            () = asked => {}
            () = tokio::time::sleep_until(begun + self.options.flush_every) => {}
        }
    }
}

/// Cuts ranges down to so many rows in all: short ones are whole, the others share what is left.
fn share(ranges: &mut Ranges, rows: u64) {
    let mut lengths: Vec<u64> = ranges.values().map(|(from, to)| to - from).collect();
    lengths.sort_unstable();
    let (mut left, mut most) = (rows, u64::MAX);
    for (at, length) in lengths.iter().enumerate() {
        let part = (left / (lengths.len() - at) as u64).max(1);
        if *length > part {
            most = part;
            break;
        }
        left = left.saturating_sub(*length);
    }
    ranges.values_mut().for_each(|(from, to)| *to = (*to).min(from.saturating_add(most)));
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::super::rows::EVENTS;
    use super::*;

    #[tokio::test]
    async fn whoever_was_away_while_another_went_on_inserts_nothing() {
        let database_id = Uuid::from_u128(1);
        let lane = Lane {
            number: 0,
            count: 1,
            feed: &EVENTS,
            cell: Arc::default(),
            // Nobody is there.
            client: Client::default().with_url("http://127.0.0.1:1"),
            claims: Claims::new(Arc::new(InMemory::new()), database_id, "events", 0),
            clock: Clock::wall(),
            database_id,
            progress: Arc::default(),
            options: ClickHouseOptions {
                batch_rows: 1,
                flush_every: Duration::from_secs(1),
                timeout: Duration::from_secs(1),
            },
        };
        let claim = |number| Claim { number, ranges: Ranges::new(), before: Marks::new(), first: Marks::new() };
        let rows = RecordBatch::new_empty((EVENTS.layout.schema)());
        for number in [0, 1] {
            lane.claims.make(&claim(number)).await.unwrap();
        }
        assert!(matches!(lane.insert(&claim(0), &rows).await, Err(Error::Missing(_))));
        assert!(matches!(lane.insert(&claim(1), &rows).await, Err(Error::ClickHouse(_))));
    }

    #[test]
    fn short_ranges_are_whole_and_the_others_share() {
        let shared = |lengths: &[u64], rows| {
            let range = |(at, length): (usize, &u64)| (at as u32, (10, 10 + length));
            let mut ranges: Ranges = lengths.iter().enumerate().map(range).collect();
            share(&mut ranges, rows);
            ranges.values().map(|(from, to)| to - from).collect::<Vec<_>>()
        };
        assert_eq!(shared(&[], 10), [0; 0]);
        assert_eq!(shared(&[3, 4], 10), [3, 4]);
        assert_eq!(shared(&[1_000, 2, 3], 10), [5, 2, 3]);
        assert_eq!(shared(&[1_000, 2, 1_000], 10), [4, 2, 4]);
        assert_eq!(shared(&[9, 9, 9, 9], 2), [1, 1, 1, 1], "each goes on, however many there are");
    }
}
