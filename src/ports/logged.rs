//! What is read from the log itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use sendtrail_eventlog::{EventLog, read};
use sendtrail_query_api::reconcile::Numbered;
use sendtrail_schemas::codec;
use sendtrail_schemas::event::Event;
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::mail::DeadLetter;
use sendtrail_schemas::time::Millis;
use sendtrail_schemas::topic::{Topic, TopicPartition, partition_of};

/// Dead letters, from the log: as long as it keeps them.
pub struct LoggedDeadLetters {
    /// The log.
    pub log: Arc<dyn EventLog>,
    /// How many partitions there are.
    pub partitions: u32,
}

/// Bytes of dead letters that are read at once.
const LETTERS_BYTES: usize = 1 << 20;

impl LoggedDeadLetters {
    /// Some from a number on; none when there are no more.
    async fn read(&self, partition: u32, from: u64, bytes: usize) -> Result<Vec<DeadLetter>, sendtrail_ingest::Error> {
        let of = TopicPartition::new(Topic::DeadLetter, partition);
        let (batches, from) = match read(&self.log, of, from, bytes).await {
            // What is older is gone.
            Err(sendtrail_eventlog::Error::Trimmed { first, .. }) if first > from => {
                (read(&self.log, of, first, bytes).await?, first)
            }
            read => (read?, from),
        };
        let records = batches.iter().flat_map(|batch| batch.records(from));
        let letters = records.map(|record| codec::decode(&record.value)).collect::<Result<_, _>>();
        letters.map_err(|error| sendtrail_ingest::Error::Port(error.to_string()))
    }
}

#[async_trait]
impl sendtrail_ingest::DeadLetters for LoggedDeadLetters {
    async fn list(&self, from: (u32, u64), limit: usize) -> Result<Vec<DeadLetter>, sendtrail_ingest::Error> {
        let mut found = Vec::new();
        for partition in from.0..self.partitions {
            let mut next = if partition == from.0 { from.1 } else { 0 };
            while found.len() < limit {
                let letters = self.read(partition, next, LETTERS_BYTES).await?;
                let Some(last) = letters.last() else { break };
                next = last.seq + 1;
                found.extend(letters);
            }
        }
        found.truncate(limit);
        Ok(found)
    }

    async fn get(&self, partition: u32, seq: u64) -> Result<Option<DeadLetter>, sendtrail_ingest::Error> {
        if partition >= self.partitions {
            return Ok(None);
        }
        Ok(self.read(partition, seq, 1).await?.into_iter().find(|letter| letter.seq == seq))
    }
}

/// Events that are still in the log, for reconciliation.
pub struct LoggedEventNumbers {
    /// The log.
    pub log: Arc<dyn EventLog>,
    /// How many partitions there are.
    pub partitions: u32,
}

/// Bytes of events that are read at once.
const EVENTS_BYTES: usize = 4 << 20;
/// Events of a partition's log that are looked at.
const EVENTS_LOOKED: usize = 5_000_000;

#[async_trait]
impl sendtrail_query_api::reconcile::LoggedEvents for LoggedEventNumbers {
    async fn numbers(
        &self,
        account: AccountId,
        from: Millis,
        to: Millis,
        limit: usize,
    ) -> Result<(Vec<Numbered>, BTreeMap<u32, u64>, BTreeMap<u32, u64>), sendtrail_query_api::Error> {
        use sendtrail_query_api::Error;
        let port = |cause: &dyn std::fmt::Display| Error::Port(cause.to_string());
        let partition = partition_of(account, self.partitions);
        let of = TopicPartition::new(Topic::Events, partition);
        // A server that only answers queries does not follow events.
        let (mut next, end) = (0, sendtrail_eventlog::survey(&self.log, of).await.map_err(|cause| port(&cause))?);
        let (mut numbers, mut first, mut looked) = (Vec::new(), None, 0);
        while next < end {
            let batches = match read(&self.log, of, next, EVENTS_BYTES).await {
                Ok(batches) => batches,
                Err(sendtrail_eventlog::Error::Trimmed { first: kept, .. }) if kept > next => {
                    // What was read before it is not kept any more, either.
                    (next, first) = (kept, None);
                    numbers.clear();
                    continue;
                }
                Err(error) => return Err(port(&error)),
            };
            let before = next;
            for record in batches.iter().flat_map(|batch| batch.records(before)) {
                if record.offset >= end {
                    // It came since.
                    break;
                }
                let event: Event = codec::decode(&record.value).map_err(|cause| port(&cause))?;
                first.get_or_insert(event.seq);
                next = event.seq + 1;
                looked += 1;
                let occurred = event.occurred();
                if event.account() == account && from <= occurred && occurred < to {
                    numbers.push((occurred, event.partition, event.seq));
                }
            }
            if looked > EVENTS_LOOKED || numbers.len() > limit {
                return Err(Error::Excess("there is too much in the log to compare: ask for less".into()));
            }
            if next == before {
                break;
            }
        }
        let of = |number| BTreeMap::from([(partition, number)]);
        // A log that has dropped everything tells neither what is missing nor where to end.
        let ends = if first.is_some() { of(end) } else { BTreeMap::new() };
        Ok((numbers, of(first.unwrap_or(u64::MAX)), ends))
    }
}
