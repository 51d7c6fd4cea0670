//! The log that everything is folded over.
//!
//! [`EventLog`] is the port; [`embedded`] keeps the log in a local folder, [`kafka`] on Apache Kafka. [`contract`] is
//! the suite that every implementation must pass.

mod announce;
pub mod batch;
mod blobs;
mod clock;
pub mod contract;
pub mod embedded;
pub mod failpoint;
pub mod kafka;
pub mod objects;
mod pulse;
mod replies;
mod retention;

use std::sync::Arc;

use futures::future::BoxFuture;
use sendtrail_schemas::topic::TopicPartition;
use tokio::sync::watch;

pub use announce::Announce;
pub use batch::{Batch, Record, StoredBatch};
pub use blobs::Blobs;
pub use clock::Clock;
pub use pulse::{Pulse, SETTLE};
pub use replies::{Desk, LocalReplies, Replies, Waiting};
pub use retention::{Reader, Retention};

/// What can go wrong with the log.
#[derive(Debug, thiserror::Error, Clone)]
pub enum Error {
    /// The device did not take it. Nothing of the batch is in the log; the same batch may be tried again.
    #[error("the log could not be written: {0}")]
    Write(String),
    /// What is on the device is in doubt (a failed fsync, a shut-down log): no append will succeed before a restart.
    #[error("the log is out of service: {0}")]
    Failed(String),
    /// Whether it is in the log is not known; appended again, it may be there twice.
    #[error("the log did not acknowledge a record: {0}")]
    InDoubt(String),
    /// More waits to be written than may: try again shortly.
    #[error("the log's queue is full")]
    Full,
    /// The offset is below what is kept.
    #[error("{of}: offset {from} was trimmed, the first kept is {first}")]
    Trimmed {
        /// Of which partition.
        of: TopicPartition,
        /// What was asked for.
        from: u64,
        /// What is kept.
        first: u64,
    },
    /// A batch would leave a hole in a dense sequence.
    #[error("{of}: a batch begins at {first}, but the next number is {next}")]
    Gap {
        /// Of which partition.
        of: TopicPartition,
        /// Where the batch begins.
        first: u64,
        /// Where it should.
        next: u64,
    },
    /// What is on the device is not what was written.
    #[error("{file} is corrupt at byte {at}: {why}")]
    Corrupt {
        /// The file.
        file: String,
        /// Where.
        at: u64,
        /// How it shows.
        why: String,
    },
    /// A message's body is not where bodies are.
    #[error("the body {0} is not there")]
    NoBlob(String),
    /// The folder is not a log, or not one that was made with these settings.
    #[error("{0}")]
    Settings(String),
    /// The device failed.
    #[error("{what}: {cause}")]
    Io {
        /// What was being done.
        what: String,
        /// What the system said.
        cause: String,
    },
}

/// [`EventLog::read`], beside the runtime's workers: it may wait for a device or a broker.
///
/// # Errors
/// As [`EventLog::read`].
pub async fn read(
    log: &Arc<dyn EventLog>,
    of: TopicPartition,
    from: u64,
    max_bytes: usize,
) -> Result<Vec<StoredBatch>, Error> {
    let log = log.clone();
    aside("read the log", move || log.read(of, from, max_bytes)).await
}

/// Surveys a partition without keeping the runtime waiting.
///
/// # Errors
/// As [`EventLog::survey`].
pub async fn survey(log: &Arc<dyn EventLog>, of: TopicPartition) -> Result<u64, Error> {
    let log = log.clone();
    aside("look where the log ends", move || log.survey(of)).await
}

/// Does what waits for a device or a broker beside the runtime's workers; `what` is told when it panics.
async fn aside<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|cause| Err(Error::Io { what: what.into(), cause: cause.to_string() }))
}

/// How the log stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Bytes appended but not durable yet.
    pub queued_bytes: u64,
    /// Bytes kept.
    pub disk_bytes: u64,
    /// Bytes that may be kept before intake is refused.
    pub disk_budget: u64,
    /// Why the log is out of service, if it is.
    pub failed: Option<String>,
}

/// A durable log of topics and partitions, each a sequence of records numbered from 0 without holes.
///
/// Guarantees: an append that resolves is durable, in the order of its offset, and seen by the readers of this process;
/// the records of a batch follow one another, though other servers' may be in between; readers see only what is durable, in
/// order, each number of a dense sequence once. An append that fails has left nothing, unless it fails with [`Error::InDoubt`].
pub trait EventLog: Send + Sync + 'static {
    /// Appends a batch; resolves with the offset of its first record once it is durable.
    ///
    /// A batch with a `first_number` belongs to a dense sequence (offset = number): records whose number the log has
    /// are dropped, so that outputs may be appended again after a crash; a hole is [`Error::Gap`]. Topics that
    /// [are numbered](sendtrail_schemas::topic::Topic::is_numbered) take only such batches, the others none.
    fn append(&self, to: TopicPartition, batch: Batch) -> BoxFuture<'static, Result<u64, Error>>;

    /// Batches from an offset on, up to about `max_bytes` but at least one if there is any; the first may begin before
    /// the offset. Does not wait for records that are not there yet, but for the device or the broker: see [`read`].
    ///
    /// # Errors
    /// [`Error::Trimmed`] below what is kept; [`Error::Corrupt`] when the device does not return what was written.
    fn read(&self, of: TopicPartition, from: u64, max_bytes: usize) -> Result<Vec<StoredBatch>, Error>;

    /// The offset after the last durable record, as it moves. Of a partition that this process does not follow it stays at what was
    /// seen last, 0 at first, which says nothing of whether there are records: [`EventLog::survey`] tells.
    fn end(&self, of: TopicPartition) -> watch::Receiver<u64>;

    /// The offset after the last durable record as it is now, also where this process does not follow the partition as it
    /// moves: that is then read as far as this told last. Waits for the broker.
    ///
    /// # Errors
    /// [`Error::Io`] when the brokers do not answer.
    fn survey(&self, of: TopicPartition) -> Result<u64, Error> {
        Ok(*self.end(of).borrow())
    }

    /// Allows everything before an offset to be forgotten. Space is freed in larger pieces, some time after, or by the
    /// log's own rules.
    fn trim(&self, of: TopicPartition, before: u64);

    /// How the log stands.
    fn status(&self) -> Status;

    /// The partitions that this process owns, as they change.
    fn assignments(&self) -> watch::Receiver<Vec<u32>>;
}
