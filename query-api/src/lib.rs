//! The read side: what happened, answered from views, sums, and the archive with its tail.

pub mod analytics;
mod archive;
mod cursor;
mod routes;
mod show;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sendtrail_eventlog::Clock;
use sendtrail_schemas::directory::Directory;
use sendtrail_schemas::ids::{AccountId, DestinationId};
use sendtrail_schemas::mail::DeliveryStatus;
use sendtrail_schemas::problem::{Code, Problem};
use sendtrail_schemas::reputation::Reputation;
use sendtrail_schemas::rollup::HourRows;
use sendtrail_schemas::time::{Hour, Millis};
use tokio::sync::Semaphore;

pub use analytics::{Analytics, EventQuery};
pub use archive::DataFusionAnalytics;
pub use routes::{admin_routes, partner_routes};

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
    /// Something behind a port failed.
    #[error("{0}")]
    Port(String),
    /// A query took longer than it may.
    #[error("a query took longer than {0:?}")]
    Timeout(Duration),
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        tracing::error!(%error, "a query failed");
        let message = match error {
            Error::Timeout(_) => "the query took too long; ask for less",
            _ => "the analytics did not answer",
        };
        Self::new(Code::DbUnavailable, message).retry_after(5)
    }
}

/// Accounts, as their owners keep them.
#[async_trait]
pub trait Accounts: Send + Sync + 'static {
    /// Waits, not for long, until what was acknowledged for an account before this call is seen by every reader.
    async fn settle(&self, account: AccountId);

    /// An account's windows and usage; `None` when there is no such account.
    ///
    /// # Errors
    /// [`Error::Port`].
    async fn reputation(&self, account: AccountId) -> Result<Option<Reputation>, Error>;
}

/// Hourly sums.
pub trait Rollups: Send + Sync + 'static {
    /// The rows of an account's hours, `from` to `to` exclusive, in the order of hours.
    ///
    /// # Errors
    /// [`Error::Port`].
    fn rows(&self, account: AccountId, from: Hour, to: Hour) -> Result<Vec<HourRows>, Error>;
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

/// Webhook deliveries.
pub trait Deliveries: Send + Sync + 'static {
    /// How a delivery stands; `None` before its first attempt.
    ///
    /// # Errors
    /// [`Error::Port`].
    fn state(&self, partition: u32, seq: u64, destination: DestinationId) -> Result<Option<DeliveryState>, Error>;
}

/// What the read side is made of.
pub struct Parts {
    /// Every account's configuration.
    pub directory: Arc<Directory>,
    /// Every account's windows.
    pub accounts: Arc<dyn Accounts>,
    /// Hourly sums.
    pub rollups: Arc<dyn Rollups>,
    /// Webhook deliveries.
    pub deliveries: Arc<dyn Deliveries>,
    /// Events.
    pub analytics: Arc<dyn Analytics>,
    /// What time it is.
    pub clock: Clock,
    /// How long a query may take.
    pub timeout: Duration,
    /// Queries at once; others wait.
    pub concurrency: usize,
}

/// The read side of one process.
#[derive(Clone)]
pub struct Query {
    inner: Arc<Inner>,
}

struct Inner {
    parts: Parts,
    turns: Semaphore,
}

impl Query {
    /// A read side.
    pub fn new(parts: Parts) -> Self {
        let turns = Semaphore::new(parts.concurrency);
        Self { inner: Arc::new(Inner { parts, turns }) }
    }

    fn parts(&self) -> &Parts {
        &self.inner.parts
    }

    /// Runs a query in its turn and within its time.
    async fn bounded<T>(&self, query: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let timeout = self.parts().timeout;
        let turn = async {
            let _turn = self.inner.turns.acquire().await;
            query.await
        };
        tokio::time::timeout(timeout, turn).await.unwrap_or(Err(Error::Timeout(timeout)))
    }
}
