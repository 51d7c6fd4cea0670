//! Where the sink stands in one partition, and what it reads from there.

use std::time::Instant;

use sendtrail_eventlog::{EventLog, Record};
use sendtrail_schemas::codec::{self, Wire};
use sendtrail_schemas::topic::{Topic, TopicPartition};
use tokio::sync::watch;

use crate::{Error, Projections, first_kept};

/// Bytes of a partition read at once, so that all partitions get their turn.
const READ_BYTES: usize = 1 << 20;

const TOPICS: [Topic; 3] = [Topic::Events, Topic::Attempts, Topic::DeadLetter];

/// See the module.
pub struct Cursor {
    pub partition: u32,
    /// The next event to read, the first that is in no file, the first that is in no sum.
    pub next: u64,
    pub archived: u64,
    pub summed: u64,
    /// The same of attempts.
    pub next_attempt: u64,
    pub archived_attempts: u64,
    pub noted_attempts: u64,
    pub letters: u64,
    /// When the last event that was read was received.
    pub received_at: i64,
    pub ends: [watch::Receiver<u64>; 3],
    /// Why it cannot be read, and when to try again: the others go on.
    pub failed: Option<(Instant, Error)>,
}

impl Cursor {
    /// Where what was filed before ends: events and attempts in files, all of them in projections.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::Log`].
    pub fn new(
        log: &dyn EventLog,
        projections: &Projections,
        partition: u32,
        (archived, mut archived_attempts): (u64, u64),
    ) -> Result<Self, Error> {
        let of = |topic| TopicPartition::new(topic, partition);
        let summed = projections.mark(of(Topic::Events))?;
        let mut noted_attempts = projections.mark(of(Topic::Attempts))?;
        if archived_attempts == 0 {
            // A new table begins with what the log still has.
            archived_attempts = first_kept(log, of(Topic::Attempts))?;
            noted_attempts = noted_attempts.max(archived_attempts);
        }
        Ok(Self {
            partition,
            next: archived.min(summed),
            archived,
            summed,
            next_attempt: archived_attempts.min(noted_attempts),
            archived_attempts,
            noted_attempts,
            letters: projections.mark(of(Topic::DeadLetter))?,
            received_at: 0,
            ends: TOPICS.map(|topic| log.end(of(topic))),
            failed: None,
        })
    }
}

/// The records of a piece of a partition, with their offsets; each is decoded when its turn comes.
///
/// # Errors
/// [`Error::Missing`]: the log no longer has them, and why that is a loss.
pub fn decode<W: Wire>(
    log: &dyn EventLog,
    topic: Topic,
    partition: u32,
    from: u64,
    lost: &str,
) -> Result<impl Iterator<Item = Result<(u64, W), Error>>, Error> {
    let batches = match log.read(TopicPartition::new(topic, partition), from, READ_BYTES) {
        Ok(batches) => batches,
        Err(error @ sendtrail_eventlog::Error::Trimmed { .. }) => {
            return Err(Error::Missing(format!("{error}; {lost}")));
        }
        Err(error) => return Err(error.into()),
    };
    let records: Vec<Record> = batches.iter().flat_map(|batch| batch.records(from)).collect();
    Ok(records.into_iter().map(|record| Ok((record.offset, codec::decode(&record.value)?))))
}
