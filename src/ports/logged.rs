//! What is read from the log itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use sendtrail_eventlog::{EventLog, Record, read};
use sendtrail_ingest::LetterPage;
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
    async fn read(&self, partition: u32, from: u64, bytes: usize) -> Result<Vec<Record>, sendtrail_ingest::Error> {
        let of = TopicPartition::new(Topic::DeadLetter, partition);
        let (batches, from) = match read(&self.log, of, from, bytes).await {
            // What is older is gone.
            Err(sendtrail_eventlog::Error::Trimmed { first, .. }) if first > from => {
                (read(&self.log, of, first, bytes).await?, first)
            }
            read => (read?, from),
        };
        Ok(batches.iter().flat_map(|batch| batch.records(from)).collect())
    }
}

fn letter(record: &Record) -> Result<DeadLetter, sendtrail_ingest::Error> {
    codec::decode(&record.value).map_err(|error| sendtrail_ingest::Error::Port(error.to_string()))
}

#[async_trait]
impl sendtrail_ingest::DeadLetters for LoggedDeadLetters {
    async fn list(&self, from: (u32, u64), limit: usize, bytes: usize) -> Result<LetterPage, sendtrail_ingest::Error> {
        let (mut letters, mut left) = (Vec::new(), bytes);
        for partition in from.0..self.partitions {
            let mut next = if partition == from.0 { from.1 } else { 0 };
            loop {
                let records = self.read(partition, next, LETTERS_BYTES).await?;
                let Some(last) = records.last() else { break };
                next = last.offset + 1;
                for record in records {
                    if letters.len() >= limit || record.value.len() > left && !letters.is_empty() {
                        return Ok(LetterPage { letters, next: Some((partition, record.offset)) });
                    }
                    left = left.saturating_sub(record.value.len());
                    letters.push(letter(&record)?);
                }
            }
        }
        Ok(LetterPage { letters, next: None })
    }

    async fn get(&self, partition: u32, seq: u64) -> Result<Option<DeadLetter>, sendtrail_ingest::Error> {
        if partition >= self.partitions {
            return Ok(None);
        }
        let records = self.read(partition, seq, 1).await?;
        records.iter().find(|record| record.offset == seq).map(letter).transpose()
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

#[cfg(test)]
mod tests {
    use sendtrail_eventlog::Batch;
    use sendtrail_eventlog::embedded::{EmbeddedLog, Options};
    use sendtrail_ingest::DeadLetters;

    use super::*;

    #[tokio::test]
    async fn pages_of_letters_are_bounded_by_bytes_and_lead_through_all() {
        let folder = tempfile::TempDir::new().unwrap();
        let log = EmbeddedLog::open(folder.path(), Options { partitions: 2, ..Options::default() }).unwrap();
        for (partition, first, sizes) in [(0, 0, vec![10, 5_000, 10]), (0, 3, vec![10]), (1, 0, vec![600, 600])] {
            let mut batch = Batch::numbered(first);
            for (seq, size) in (first..).zip(sizes) {
                let payload = vec![0; size];
                batch.push(&DeadLetter { version: codec::VERSION, partition, seq, payload, ..DeadLetter::default() });
            }
            log.append(TopicPartition::new(Topic::DeadLetter, partition), batch).await.unwrap();
        }
        let letters = LoggedDeadLetters { log: Arc::new(log), partitions: 2 };
        let pages = async |limit: usize, bytes: usize| {
            let (mut pages, mut from) = (Vec::new(), Some((0, 0)));
            while let Some(place) = from {
                let page = letters.list(place, limit, bytes).await.unwrap();
                let places = page.letters.iter().map(|letter| (letter.partition, letter.seq));
                pages.push(places.collect::<Vec<(u32, u64)>>());
                from = page.next;
            }
            pages
        };
        // The second is larger than a page may be.
        let by_bytes = [vec![(0, 0)], vec![(0, 1)], vec![(0, 2), (0, 3), (1, 0)], vec![(1, 1)]];
        assert_eq!(pages(1_000, 1_000).await, by_bytes);
        let by_number = [vec![(0, 0), (0, 1)], vec![(0, 2), (0, 3)], vec![(1, 0), (1, 1)]];
        assert_eq!(pages(2, usize::MAX).await, by_number);
        assert_eq!(letters.get(0, 2).await.unwrap().map(|letter| letter.seq), Some(2), "within a batch");
        assert_eq!(letters.get(0, 4).await.unwrap(), None);
    }
}
