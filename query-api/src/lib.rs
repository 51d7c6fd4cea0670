//! The read side: what happened, answered from views, sums, and the archive with its tail.

mod again;
pub mod analytics;
mod archive;
mod clickhouse;
pub mod cursor;
pub mod exports;
pub mod reconcile;
mod routes;
mod show;
mod turns;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sendtrail_eventlog::{Clock, SETTLE};
use sendtrail_schemas::clickhouse::is_code;
use sendtrail_schemas::directory::Directory;
use sendtrail_schemas::ids::{AccountId, DestinationId};
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::mail::DeliveryStatus;
use sendtrail_schemas::problem::{Code, Problem};
use sendtrail_schemas::record::{Actor, Change};
use sendtrail_schemas::reputation::Reputation;
use sendtrail_schemas::rollup::{Apart, HourRows};
use sendtrail_schemas::time::{Hour, Millis};
use turns::Turns;

use crate::exports::Exports;
use crate::reconcile::LoggedEvents;
use sendtrail_schemas::rollup::Rollup;

pub use again::{Again, AgainPage, Bookmark, OldestFirst};
pub use analytics::{Analytics, EventQuery};
pub use archive::DataFusionAnalytics;
pub use archive::attempts::ArchivedAttempts;
pub use clickhouse::{ClickHouseAnalytics, ClickHouseBounds, Replica};
pub use routes::{admin_routes, link_routes, partner_routes};

/// What can go wrong with an answer, besides what is the client's.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The query engine failed.
    #[error("the query engine: {0}")]
    Engine(#[from] datafusion::error::DataFusionError),
    /// A file of the archive could not be read.
    #[error("an archive file: {0}")]
    Parquet(#[from] parquet::errors::ParquetError),
    /// A row is not what it should be.
    #[error("{0}")]
    Schema(#[from] sendtrail_schemas::Error),
    /// ClickHouse failed, or does not answer.
    #[error("ClickHouse: {0}")]
    ClickHouse(#[from] ::clickhouse::error::Error),
    /// Something behind a port failed.
    #[error("{0}")]
    Port(String),
    /// What was acknowledged is not seen yet, and the answer must not lack any of it.
    #[error("not everything that was acknowledged is seen yet")]
    Behind,
    /// More was asked for than is looked at at once.
    #[error("{0}")]
    Excess(String),
    /// A query took longer than it may.
    #[error("a query took longer than {0:?}")]
    Timeout(Duration),
    /// So many queries run that none more was begun for so long.
    #[error("a query had no turn within {0:?}")]
    Busy(Duration),
}

impl Error {
    /// Whether the query itself is the trouble: anywhere else it would only cost more.
    fn is_excess(&self) -> bool {
        // ClickHouse: TOO_MANY_ROWS, TIMEOUT_EXCEEDED, QUOTA_EXCEEDED, MEMORY_LIMIT_EXCEEDED, TOO_MANY_ROWS_OR_BYTES.
        const EXCESS: [u32; 5] = [158, 159, 201, 241, 396];
        if matches!(self, Self::Excess(_)) {
            return true;
        }
        let Self::ClickHouse(::clickhouse::error::Error::BadResponse(text)) = self else { return false };
        // Of memory, that of all queries together is nobody's fault.
        is_code(text, &EXCESS) && !text.contains("(total)")
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        if let Error::Behind = error {
            tracing::warn!(%error, "a query is refused");
            return Self::new(Code::Unavailable, "what was acknowledged is not all seen yet").retry_after(5);
        }
        if let Error::Busy(_) = error {
            // One client asks more than this server can answer; nothing is out of order.
            tracing::debug!(%error, "a query is refused");
            return Self::new(Code::Unavailable, "too many queries are being answered").retry_after(5);
        }
        if let Error::Excess(text) = error {
            // It would be too much again.
            tracing::debug!(text, "a query is refused");
            return Self::new(Code::InvalidParam, text);
        }
        tracing::error!(%error, "a query failed");
        let message = if error.is_excess() || matches!(error, Error::Timeout(_)) {
            "the query took too long or too much; ask for less"
        } else {
            "the analytics did not answer"
        };
        Self::new(Code::DbUnavailable, message).retry_after(5)
    }
}

/// How long an answer that must not lack anything waits for what was acknowledged before.
const SETTLE_ALL: Duration = Duration::from_secs(30);

/// Accounts, as their owners keep them.
#[async_trait]
pub trait Accounts: Send + Sync + 'static {
    /// Waits until what was acknowledged for an account before this call is seen by every reader, but not longer than
    /// `within`: then the time before which everything is.
    async fn settle(&self, account: AccountId, within: Duration) -> Option<Millis>;

    /// Waits until what was acknowledged for an account before this call is in the archive that this server reads, files of others
    /// included, which may take as long as they take to write one. Whether it is, in time.
    async fn settle_wholly(&self, account: AccountId, within: Duration) -> bool;

    /// An account's windows and usage; `None` when there is no such account.
    ///
    /// # Errors
    /// [`Error::Port`].
    async fn reputation(&self, account: AccountId) -> Result<Answered<Option<Reputation>>, Error>;
}

/// Hourly sums.
#[async_trait]
pub trait Rollups: Send + Sync + 'static {
    /// The rows of an account's hours, `from` to `to` exclusive, in the order of hours; those that need not be told apart are
    /// added up.
    ///
    /// # Errors
    /// [`Error::Port`].
    async fn rows(&self, account: AccountId, from: Hour, to: Hour, apart: &Apart) -> Result<Vec<HourRows>, Error>;
}

/// How the delivery of one event to one destination stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryState {
    /// How it stands.
    pub status: DeliveryStatus,
    /// How many attempts there were.
    pub attempts: u32,
    /// The receiver's last status code.
    pub last_status_code: Option<u32>,
    /// When the last attempt ended.
    pub finished_at: Millis,
}

/// The delivery of an event to a destination.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DeliveryOf {
    /// The event's partition.
    pub partition: u32,
    /// Its number there.
    pub seq: u64,
    /// When it was received: no attempt came before.
    pub received_at: Millis,
    /// Where to.
    pub destination: DestinationId,
}

/// Which deliveries of a destination are listed.
#[derive(Clone, Debug)]
pub struct DeliveriesQuery {
    /// Where to.
    pub destination: DestinationId,
    /// That stand so.
    pub status: Option<DeliveryStatus>,
    /// Of events before this number.
    pub before: Option<u64>,
    /// At most so many.
    pub limit: usize,
    /// What time it is.
    pub now: Millis,
}

/// A delivery in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryRow {
    /// The event's partition.
    pub partition: u32,
    /// Its number there.
    pub seq: u64,
    /// How it stands.
    pub status: DeliveryStatus,
    /// How many attempts there were.
    pub attempts: u32,
    /// The receiver's last status code.
    pub last_status_code: Option<u32>,
    /// When the event was received.
    pub created_at: Millis,
    /// The event's type; unspecified when that is not known.
    pub event_type: EventType,
    /// When the last attempt ended.
    pub finished_at: Option<Millis>,
    /// When the next one is due.
    pub next_due_at: Option<Millis>,
}

/// Some deliveries of a destination, of the newest events first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeliveryPage {
    /// They.
    pub rows: Vec<DeliveryRow>,
    /// The number to go on before, if there may be more.
    pub next: Option<u64>,
}

/// Changes of accounts that the read side asks for, with what it has read.
#[async_trait]
pub trait Changes: Send + Sync + 'static {
    /// Makes a change on somebody's behalf and waits until it is made.
    ///
    /// # Errors
    /// Why it is refused, or that it is not known whether it was made.
    async fn make(&self, account: AccountId, actor: Actor, change: Change) -> Result<(), Problem>;
}

/// Webhook deliveries.
#[async_trait]
pub trait Deliveries: Send + Sync + 'static {
    /// How deliveries of an account's events stand; those that are not in it have seen no attempt. None: nobody here knows.
    ///
    /// # Errors
    /// [`Error::Port`], [`Error::ClickHouse`].
    async fn states(
        &self,
        account: AccountId,
        wanted: &[DeliveryOf],
    ) -> Result<Option<HashMap<DeliveryOf, DeliveryState>>, Error>;

    /// Deliveries of a destination, of the newest events first. None: nobody here knows.
    ///
    /// # Errors
    /// [`Error::Port`], [`Error::Engine`].
    async fn page(&self, account: AccountId, query: &DeliveriesQuery) -> Result<Option<DeliveryPage>, Error>;
}

/// Where answers come from.
#[derive(Clone)]
pub struct Source {
    /// Hourly sums.
    pub rollups: Arc<dyn Rollups>,
    /// Events.
    pub analytics: Arc<dyn Analytics>,
}

/// A source that is asked first.
pub struct Preferred {
    /// It.
    pub source: Source,
    /// How far it is.
    pub replica: Arc<dyn Replica>,
    /// Whether the other answers while it cannot; else it is 503.
    pub fall_back: bool,
}

/// An answer.
#[derive(Debug)]
pub struct Answered<T> {
    /// It.
    pub value: T,
    /// If it may lack what is newer: everything before this time is in it.
    pub as_of: Option<Millis>,
    /// It comes from elsewhere than it should.
    pub is_makeshift: bool,
}

/// What the read side is made of.
pub struct Parts {
    /// Every account's configuration.
    pub directory: Arc<Directory>,
    /// Every account's windows.
    pub accounts: Arc<dyn Accounts>,
    /// Webhook deliveries.
    pub deliveries: Arc<dyn Deliveries>,
    /// Every attempt at them.
    pub attempts: Arc<ArchivedAttempts>,
    /// Changes of accounts.
    pub changes: Arc<dyn Changes>,
    /// Files and tail of the archive, whatever is asked before it.
    pub files: Arc<DataFusionAnalytics>,
    /// ClickHouse, if there is one.
    pub clickhouse: Option<Arc<ClickHouseAnalytics>>,
    /// Events that are still in the log.
    pub logged: Arc<dyn LoggedEvents>,
    /// Exports, where the archive is seen.
    pub exports: Option<Exports>,
    /// How many partitions there are.
    pub partitions: u32,
    /// The archive and its sums.
    pub source: Source,
    /// What is asked before it.
    pub preferred: Option<Preferred>,
    /// What time it is.
    pub clock: Clock,
    /// How long a query may take.
    pub timeout: Duration,
    /// How long it may wait for its turn before.
    pub turn_within: Duration,
    /// Queries at once; others wait.
    pub concurrency: usize,
    /// Of these, at most so many of one account.
    pub concurrency_per_account: usize,
}

impl Parts {
    /// Sums of an account, from the archive's events.
    async fn files_scan(&self, account: AccountId, from: Millis, to: Millis) -> Result<Vec<(Hour, Rollup)>, Error> {
        self.files.scan(account, from, to, &Apart::NONE).await
    }
}

/// The read side of one process.
#[derive(Clone)]
pub struct Query {
    inner: Arc<Inner>,
}

struct Inner {
    parts: Parts,
    turns: Turns,
}

impl Query {
    /// A read side.
    pub fn new(parts: Parts) -> Self {
        let turns = Turns::new(parts.concurrency, parts.concurrency_per_account);
        Self { inner: Arc::new(Inner { parts, turns }) }
    }

    fn parts(&self) -> &Parts {
        &self.inner.parts
    }

    /// Waits until everything is in the archive that was acknowledged for an account before this call.
    ///
    /// # Errors
    /// [`Error::Behind`]: it takes too long.
    async fn settled(&self, account: AccountId) -> Result<(), Error> {
        let settled = self.parts().accounts.settle_wholly(account, SETTLE_ALL).await;
        if settled { Ok(()) } else { Err(Error::Behind) }
    }

    /// The same, where what is preferred is asked if it is ready: not every server sees the archive.
    async fn settled_somewhere(&self, account: AccountId) -> Result<(), Error> {
        let parts = self.parts();
        if let Some(preferred) = &parts.preferred {
            let settled = parts.accounts.settle(account, SETTLE_ALL).await.is_none();
            if settled && preferred.replica.is_ready(account).await {
                return Ok(());
            }
            if !preferred.fall_back {
                return Err(Error::Behind);
            }
        }
        self.settled(account).await
    }

    /// Asks the preferred source, if there is one and it is ready, else the archive; of either, everything that was
    /// acknowledged for the account before this call, or before the time that it tells.
    async fn answered<T, F: Future<Output = Result<T, Error>>>(
        &self,
        account: AccountId,
        query: impl Fn(Source) -> F,
    ) -> Result<Answered<T>, Error> {
        let parts = self.parts();
        // Before anything is waited for: it is this moment of which answers are told.
        let asked = parts.clock.now();
        let seen = parts.accounts.settle(account, SETTLE).await;
        let earlier = |as_of: Option<Millis>| [as_of, seen].into_iter().flatten().min();
        let here = parts.source.analytics.as_of();
        let Some(preferred) = &parts.preferred else {
            let value = self.bounded(account, query(parts.source.clone())).await?;
            return Ok(Answered { value, as_of: earlier(here), is_makeshift: here.is_some() });
        };
        let error = if preferred.replica.is_ready(account).await {
            match self.bounded(account, query(preferred.source.clone())).await {
                Ok(value) => return Ok(Answered { value, as_of: earlier(None), is_makeshift: false }),
                Err(error) if error.is_excess() || matches!(error, Error::Busy(_)) => return Err(error),
                Err(error) => {
                    if matches!(error, Error::Timeout(_)) {
                        preferred.replica.note_silence();
                    }
                    tracing::warn!(%error, "ClickHouse does not answer a query");
                    error
                }
            }
        } else {
            Error::Port("ClickHouse is behind".into())
        };
        if !preferred.fall_back {
            return Err(error);
        }
        metrics::counter!("sendtrail_query_fallbacks_total").increment(1);
        let as_of = earlier(here.or(Some(asked)));
        let value = self.bounded(account, query(parts.source.clone())).await?;
        Ok(Answered { value, as_of, is_makeshift: true })
    }

    /// Runs a query in its turn and within its time, which begins with its turn.
    async fn bounded<T>(&self, account: AccountId, query: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let Parts { timeout, turn_within, .. } = *self.parts();
        let turn = tokio::time::timeout(turn_within, self.inner.turns.take(account)).await;
        let _turn = turn.map_err(|_| Error::Busy(turn_within))?;
        tokio::time::timeout(timeout, query).await.map_err(|_| Error::Timeout(timeout))?
    }
}
