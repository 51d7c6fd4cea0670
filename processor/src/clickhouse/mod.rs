//! The sink into ClickHouse: rows of the archive, each exactly once.
//!
//! ```text
//! archive's view (tail in memory, else files) ─► claim n: which numbers ─► one insert with token lane/n ─► claim n + 1
//! ```
//!
//! It reads nothing but what readers see of the archive, and keeps nothing but claims: whatever happens, it begins again
//! with the last claim. Unless that is known to be done it is inserted again: the archive still has its rows, and ClickHouse
//! still knows its token.

mod claims;
mod erase;
mod lane;
mod meta;
mod repair;
mod rows;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use clickhouse::Client;
use metrics::{counter, gauge};
use sendtrail_eventlog::Clock;
use sendtrail_eventlog::objects::Place;
use sendtrail_schemas::archive::{ArchiveCell, ArchiveView};
use sendtrail_schemas::time::Day;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::Error;
pub use erase::{Rows, clear};
use lane::Lane;
pub use meta::{Meta, Migrated, Wanted, migrate, read_meta};
pub use repair::{Repaired, repair};
use rows::Feed;

/// How long to leave ClickHouse alone after a failure, at first and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// Rows behind that no reader waits for.
pub const FAR: u64 = 500_000;

/// How rows are inserted.
#[derive(Clone, Debug)]
pub struct ClickHouseOptions {
    /// Rows of one insert, at most.
    pub batch_rows: usize,
    /// How long rows may wait for others.
    pub flush_every: Duration,
    /// How long one insert may take.
    pub timeout: Duration,
}

/// What a sink into ClickHouse works with.
pub struct ClickHouseSink {
    /// ClickHouse.
    pub client: Client,
    /// What readers see of events.
    pub events: Arc<ArchiveCell>,
    /// What readers see of attempts.
    pub attempts: Arc<ArchiveCell>,
    /// Where claims are kept: a folder of this server's.
    pub claims: std::path::PathBuf,
    /// What day it is.
    pub clock: Clock,
    /// How to work.
    pub options: ClickHouseOptions,
}

/// What others see of the sink.
#[derive(Clone)]
pub struct ClickHouseHandle {
    events: Arc<Progress>,
    attempts: Arc<Progress>,
}

impl ClickHouseHandle {
    /// Why it does not get on, if it does not.
    pub fn failure(&self) -> Option<String> {
        self.events.failure().or_else(|| self.attempts.failure())
    }

    /// Waits, at most for `patience`, until ClickHouse has a partition's events before a number; whether it has.
    pub async fn has(&self, partition: u32, next: u64, patience: Duration) -> bool {
        let mut state = self.events.state.subscribe();
        let mark = |state: &State| state.marks.get(&partition).copied().unwrap_or(0);
        let there = |state: &State| state.failure.is_none() && state.whole_since.is_some() && mark(state) >= next;
        // While it fails, or is filled, nobody should wait.
        let is_far = |state: &State| !state.marks.is_empty() && mark(state) + FAR < next;
        let decided = |state: &State| there(state) || state.failure.is_some() || is_far(state);
        if !decided(&state.borrow()) {
            self.events.asked.send_modify(|count| *count += 1);
        }
        match tokio::time::timeout(patience, state.wait_for(decided)).await {
            Ok(Ok(state)) => there(&state),
            _ => false,
        }
    }

    /// Whether ClickHouse has a partition's attempts before a number.
    pub fn has_attempts(&self, partition: u32, next: u64) -> bool {
        let state = self.attempts.state.borrow();
        state.failure.is_none() && state.marks.get(&partition).copied().unwrap_or(0) >= next
    }

    /// Notes that ClickHouse did not answer a query: it is not asked again before the sink has reached it.
    pub fn note_silence(&self) {
        self.events.state.send_modify(|state| state.failure = Some("a query was not answered in time".into()));
    }

    /// The number after the last event of each partition that ClickHouse has.
    pub fn marks(&self) -> BTreeMap<u32, u64> {
        self.events.state.borrow().marks.clone()
    }

    /// The first UTC day of receipt since when ClickHouse has every event; `None` while that is not known.
    pub fn whole_since(&self) -> Option<Day> {
        self.events.state.borrow().whole_since
    }
}

/// The number after the last row of each partition that ClickHouse has.
type Marks = BTreeMap<u32, u64>;

/// How far the lanes of one table are.
#[derive(Default)]
struct Progress {
    state: watch::Sender<State>,
    /// How often a reader had to wait.
    asked: watch::Sender<u64>,
}

#[derive(Clone, Debug, Default)]
struct State {
    marks: Marks,
    whole_since: Option<Day>,
    /// Why the last try did not get on.
    failure: Option<String>,
}

impl Progress {
    /// Whether ClickHouse has everything that is in a view's files.
    fn has_filed(&self, view: &ArchiveView) -> bool {
        let state = self.state.borrow();
        view.filed.iter().all(|(partition, filed)| state.marks.get(partition).copied().unwrap_or(0) >= *filed)
    }

    fn tell_lag(&self, feed: &Feed, view: &ArchiveView) {
        let state = self.state.borrow();
        let behind =
            |(partition, end): (u32, u64)| end.saturating_sub(state.marks.get(&partition).copied().unwrap_or(0));
        let behind: u64 = view.ends().into_iter().map(behind).sum();
        gauge!("sendtrail_clickhouse_lag_rows", "table" => feed.table).set(behind as f64);
    }

    fn failure(&self) -> Option<String> {
        self.state.borrow().failure.clone()
    }
}

impl ClickHouseSink {
    /// Starts the sink. It runs until `stop` is cancelled; what ClickHouse does not have then is found again at the next
    /// start.
    pub fn start(self, stop: CancellationToken) -> (ClickHouseHandle, impl Future<Output = ()> + Send + use<>) {
        let handle = ClickHouseHandle { events: Arc::default(), attempts: Arc::default() };
        let (events, attempts) = (handle.events.clone(), handle.attempts.clone());
        let running = async move {
            let sink = self;
            tokio::join!(
                sink.feed(&rows::EVENTS, &sink.events, &events, &stop),
                sink.feed(&rows::ATTEMPTS, &sink.attempts, &attempts, &stop)
            );
        };
        (handle, running)
    }

    /// Feeds one table, by as many lanes as the database has.
    async fn feed(
        &self,
        feed: &'static Feed,
        cell: &Arc<ArchiveCell>,
        progress: &Arc<Progress>,
        stop: &CancellationToken,
    ) {
        // Told from the start, so that the first failure is seen.
        counter!("sendtrail_clickhouse_failures_total", "table" => feed.table).absolute(0);
        let mut backoff = BACKOFF.0;
        while !stop.is_cancelled() {
            let begun = tokio::time::Instant::now();
            let fed = tokio::select! {
                fed = self.feed_once(feed, cell, progress) => fed,
                () = stop.cancelled() => return,
            };
            let Err(error) = fed;
            counter!("sendtrail_clickhouse_failures_total", "table" => feed.table).increment(1);
            tracing::warn!(table = feed.table, %error, "rows do not get into ClickHouse; they are kept, and tried again");
            progress.state.send_modify(|state| {
                (state.whole_since, state.failure) = (None, Some(error.to_string()));
            });
            progress.tell_lag(feed, &cell.load());
            backoff = if begun.elapsed() > BACKOFF.1 { BACKOFF.0 } else { (backoff * 2).min(BACKOFF.1) };
            tokio::select! {
                () = tokio::time::sleep(backoff) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// The same until something fails.
    async fn feed_once(
        &self,
        feed: &'static Feed,
        cell: &Arc<ArchiveCell>,
        progress: &Arc<Progress>,
    ) -> Result<Infallible, Error> {
        let meta = within(self.options.timeout, read_meta(&self.client)).await?;
        let store = Place::from(&*self.claims).open()?;
        let lanes = (0..meta.lanes).map(|number| {
            let lane = Lane {
                number,
                count: meta.lanes,
                feed,
                cell: cell.clone(),
                client: self.client.clone(),
                claims: claims::Claims::new(store.clone(), meta.database_id, feed.table, number),
                clock: self.clock.clone(),
                database_id: meta.database_id,
                progress: progress.clone(),
                options: self.options.clone(),
            };
            Box::pin(lane.run())
        });
        let (failed, _, _) = futures::future::select_all(lanes).await;
        failed
    }
}

/// What a request gives, unless nobody answers in time.
async fn within<T, E: Into<Error>>(timeout: Duration, request: impl Future<Output = Result<T, E>>) -> Result<T, Error> {
    match tokio::time::timeout(timeout, request).await {
        Ok(outcome) => outcome.map_err(Into::into),
        Err(_) => Err(clickhouse::error::Error::TimedOut.into()),
    }
}
