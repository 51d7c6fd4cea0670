//! The state machine of every account, and what surrounds it: store, delivery, dispatcher, sinks and projections.

pub mod archive;
pub mod clickhouse;
pub mod core;
pub mod delivery;
pub mod dispatch;
mod erasures;
mod intake;
mod partition;
mod projections;
mod rebuild;
mod said;
mod sink;
mod snapshots;
mod store;
mod views;

use sendtrail_eventlog::EventLog;
use sendtrail_schemas::topic::TopicPartition;

pub use erasures::Erasures;
pub use intake::{Archiver, IntakeArchive, RebuiltState, Verdict, rebuild_state, replace_state};
pub use partition::{Inquiries, Inquiry, Partition, PartitionHandle};
pub use projections::{DeliveryQuery, ErasureJobs, LastAttempt, ProjectionReader, Projections, total};
pub use rebuild::{Rebuilt, rebuild_projections};
pub use said::{Said, ViewOf};
pub use sink::{Sink, SinkHandle, SinkOptions};
pub use snapshots::Snapshots;
pub use store::{Store, Writes};
pub use views::Views;

/// Does what blocks beside the runtime's workers; `what` is told when it panics.
pub(crate) async fn blocking<T: Send + 'static, E: Into<Error> + Send + 'static>(
    what: &str,
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|cause| Error::Io { what: what.into(), cause: cause.into() })?.map_err(Into::into)
}

/// The offset of the first record that a log still has of a partition.
///
/// # Errors
/// [`Error::Log`].
pub(crate) fn first_kept(log: &dyn EventLog, of: TopicPartition) -> Result<u64, Error> {
    match log.read(of, 0, 1) {
        Ok(_) => Ok(0),
        Err(sendtrail_eventlog::Error::Trimmed { first, .. }) => Ok(first),
        Err(error) => Err(error.into()),
    }
}

/// What can go wrong around the core.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store failed.
    #[error("the state store: {0}")]
    Store(#[from] fjall::Error),
    /// The log failed.
    #[error("the log: {0}")]
    Log(#[from] sendtrail_eventlog::Error),
    /// A row or record is not what it should be.
    #[error("{0}")]
    Schema(#[from] sendtrail_schemas::Error),
    /// The archive's table failed.
    #[error("the archive's table: {0}")]
    Delta(#[from] deltalake_core::DeltaTableError),
    /// A Parquet file could not be written or read.
    #[error("a Parquet file: {0}")]
    Parquet(#[from] parquet::errors::ParquetError),
    /// Columns do not fit together.
    #[error("columns: {0}")]
    Arrow(#[from] arrow::error::ArrowError),
    /// The archive's store failed.
    #[error("the archive's store: {0}")]
    Archive(#[from] object_store::Error),
    /// ClickHouse failed, or does not answer.
    #[error("ClickHouse: {0}")]
    ClickHouse(#[from] ::clickhouse::error::Error),
    /// The archive's seals cannot be read, written or gone on from.
    #[error("seals: {0}")]
    Audit(#[from] sendtrail_audit::Error),
    /// A snapshot is not what was written.
    #[error("a snapshot: {0}")]
    Snapshot(String),
    /// Archived intake is not what was written, or not all there.
    #[error("archived intake: {0}")]
    Intake(String),
    /// A table was changed by somebody else in a way that is not understood.
    #[error("{0}")]
    Foreign(String),
    /// Events are missing that must be there.
    #[error("{0}")]
    Missing(String),
    /// The device failed.
    #[error("{what}: {cause}")]
    Io {
        /// What was being done.
        what: String,
        /// What the system said.
        cause: std::io::Error,
    },
}

impl Error {
    /// Whether trying again is of no use: somebody has to look at the archive first.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Missing(_) | Self::Foreign(_))
    }
}
