//! How far mail was handed over.

use std::sync::Arc;

use fjall::{Keyspace, KeyspaceCreateOptions};
use sendtrail_eventlog::{EventLog, read};
use sendtrail_schemas::codec;
use sendtrail_schemas::mail::Mail;
use sendtrail_schemas::time::{Day, Millis};
use sendtrail_schemas::topic::{Topic, TopicPartition};

use crate::{Error, Store, blocking, first_kept};

/// Where it is kept, by partition.
pub(super) fn open(store: &Store) -> Result<Keyspace, Error> {
    Ok(store.database().keyspace("delivery.marks", KeyspaceCreateOptions::default)?)
}

/// The first message that may be handed over once more.
pub(super) async fn next(marks: &Keyspace, log: &Arc<dyn EventLog>, mail: TopicPartition) -> Result<u64, Error> {
    let value = marks.get((mail.partition as u16).to_be_bytes())?;
    match value.and_then(|value| value[..].try_into().ok()).map(u64::from_be_bytes) {
        Some(marked) => Ok(marked),
        // A new partition, or a folder that was lost: what the log still has goes out, perhaps again.
        None => {
            let log = log.clone();
            blocking("look for mail", move || first_kept(&*log, mail)).await
        }
    }
}

/// The day on which the first message was accepted that may be handed over once more, of all partitions; none when none waits.
///
/// # Errors
/// [`Error::Store`], [`Error::Log`]; [`Error::Schema`]: it is of a newer program.
pub async fn oldest_waiting(log: &Arc<dyn EventLog>, store: &Store, partitions: u32) -> Result<Option<Day>, Error> {
    let marks = open(store)?;
    let mut oldest = None;
    for partition in 0..partitions {
        let mail = TopicPartition::new(Topic::Mail, partition);
        let from = next(&marks, log, mail).await?;
        if from >= *log.end(mail).borrow() {
            continue;
        }
        let batches = read(log, mail, from, 1).await?;
        let Some(record) = batches.iter().flat_map(|batch| batch.records(from)).next() else { continue };
        let day = Millis(codec::decode::<Mail>(&record.value)?.accepted_at).day();
        oldest = Some(oldest.map_or(day, |oldest: Day| oldest.min(day)));
    }
    Ok(oldest)
}
