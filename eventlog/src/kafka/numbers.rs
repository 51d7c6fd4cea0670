//! Numbers of records: offsets where every record is written once, keys where it may be there again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use sendtrail_schemas::topic::{Topic, TopicPartition};

use super::connect::{self, Context, Health, io};
use super::{Options, PATIENCE};
use crate::Error;

/// Newest records among which the greatest number is looked for. What was written twice at a crash is far less.
const WINDOW: i64 = 100_000;

/// Where a partition ends.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// The offset after the last record on the broker.
    pub offset: i64,
    /// The number after the last. Unknown when the broker has dropped all numbered records.
    pub next: Option<u64>,
}

/// The key of a numbered record.
pub fn key(number: u64) -> [u8; 8] {
    number.to_be_bytes()
}

/// The number of a record.
///
/// # Errors
/// [`Error::Corrupt`] when a numbered topic has a record without a number: another program writes to it.
pub fn number(message: &BorrowedMessage<'_>, topic: Topic) -> Result<u64, Error> {
    if !topic.is_numbered() {
        return Ok(message.offset() as u64);
    }
    let number = message.key().and_then(|key| key.try_into().ok()).map(u64::from_be_bytes);
    number.ok_or_else(|| corrupt(message, "the record has no number: another program writes to this topic".into()))
}

/// That a record is not what it should be.
fn corrupt(message: &BorrowedMessage<'_>, why: String) -> Error {
    let file = format!("{}/{}", message.topic(), message.partition());
    Error::Corrupt { file, at: message.offset() as u64, why }
}

/// That numbers are missing before a record.
pub fn gap(message: &BorrowedMessage<'_>, found: u64, wanted: u64) -> Error {
    corrupt(message, format!("record {found} stands where {wanted} should"))
}

/// When the broker took a record, milliseconds since the epoch.
pub fn received_at(message: &BorrowedMessage<'_>) -> i64 {
    message.timestamp().to_millis().unwrap_or_default()
}

/// Where partitions end. Blocks.
///
/// # Errors
/// [`Error::Io`] when the brokers do not answer.
pub fn ends(
    options: &Options,
    health: &Arc<Health>,
    partitions: impl Iterator<Item = TopicPartition>,
) -> Result<HashMap<TopicPartition, End>, Error> {
    let consumer: BaseConsumer<Context> = connect::create(&connect::consumer(options), health)?;
    let mut ends = HashMap::new();
    let mut look = TopicPartitionList::new();
    for of in partitions {
        let name = options.topic(of.topic);
        let (low, high) = watermarks(&consumer, &name, of.partition)?;
        let next = (!of.topic.is_numbered() || high == 0).then_some(high as u64);
        if of.topic.is_numbered() && high > low {
            let from = Offset::Offset(low.max(high - WINDOW));
            look.add_partition_offset(&name, of.partition as i32, from).map_err(io("look for the last numbers"))?;
        }
        ends.insert(of, End { offset: high, next });
    }
    let names = options.names();
    let mut left = look.count();
    consumer.assign(&look).map_err(io("look for the last numbers"))?;
    let mut since = Instant::now();
    while left > 0 {
        let Some(message) = consumer.poll(PATIENCE / 10) else {
            if since.elapsed() > PATIENCE {
                return Err(Error::Io { what: "look for the last numbers".into(), cause: "no answer".into() });
            }
            continue;
        };
        let message = message.map_err(io("look for the last numbers"))?;
        since = Instant::now();
        let Some((_, topic)) = names.iter().find(|(name, _)| name == message.topic()) else { continue };
        let next = number(&message, *topic)? + 1;
        if let Some(end) = ends.get_mut(&TopicPartition::new(*topic, message.partition() as u32)) {
            end.next = end.next.max(Some(next));
            left -= usize::from(message.offset() + 1 == end.offset);
        }
    }
    Ok(ends)
}

/// The first offset that the broker has, and the one after the last.
///
/// # Errors
/// [`Error::Io`].
pub fn watermarks(consumer: &BaseConsumer<Context>, name: &str, partition: u32) -> Result<(i64, i64), Error> {
    let begun = Instant::now();
    loop {
        match consumer.fetch_watermarks(name, partition as i32, PATIENCE) {
            // A topic that was made just now, or a partition that moves to another broker.
            Err(error) if is_settling(&error) && begun.elapsed() < PATIENCE => std::thread::sleep(PATIENCE / 200),
            found => return found.map_err(io(format!("ask Kafka where {name}/{partition} ends"))),
        }
    }
}

fn is_settling(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::NotLeaderForPartition
                | RDKafkaErrorCode::LeaderNotAvailable
                | RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownPartition
        )
    )
}
