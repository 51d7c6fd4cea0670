//! A topic that others write, read from where its reader says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Headers, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList, TopicPartitionListElem};

use super::PATIENCE;
use super::connect::{self, Context, Health, io};
use crate::Error;

/// Which topic, and how.
#[derive(Clone, Debug)]
pub struct SourceOptions {
    /// The topic.
    pub topic: String,
    /// The consumer group by which others see how far we are. What is read does not go by it.
    pub group: String,
    /// The header that is wanted of each message, if one is.
    pub header: Option<String>,
    /// Settings of librdkafka, `bootstrap.servers` among them.
    pub properties: BTreeMap<String, String>,
}

/// A message.
#[derive(Clone, Copy, Debug)]
pub struct SourceMessage<'a> {
    /// The topic's partition.
    pub partition: u32,
    /// Its offset there.
    pub offset: u64,
    /// What it says; none for a tombstone.
    pub payload: Option<&'a [u8]>,
    /// The header that was asked for; the last one of its name.
    pub header: Option<&'a [u8]>,
}

/// A reader of all partitions of a topic. Its methods block.
pub struct SourceTopic {
    options: SourceOptions,
    consumer: BaseConsumer<Context>,
    health: Arc<Health>,
}

impl SourceTopic {
    /// Prepares to connect.
    ///
    /// # Errors
    /// [`Error::Settings`] when librdkafka does not know a setting or its value.
    pub fn new(options: SourceOptions) -> Result<Self, Error> {
        let health = Arc::new(Health::default());
        let consumer = connect::create(&connect::reader(&options.properties, &options.group), &health)?;
        Ok(Self { options, consumer, health })
    }

    /// How many partitions the topic has.
    ///
    /// # Errors
    /// [`Error::Io`] when no broker answers; [`Error::Settings`] when there is no such topic.
    pub fn partitions(&self) -> Result<u32, Error> {
        let topic = &self.options.topic;
        let told = self.consumer.fetch_metadata(Some(topic), PATIENCE);
        let told = told.map_err(|cause| {
            self.hear();
            self.why(io(format!("ask Kafka for {topic}"))(cause))
        })?;
        let count = told.topics().first().filter(|found| found.error().is_none()).map_or(0, |t| t.partitions().len());
        if count == 0 {
            return Err(Error::Settings(format!("there is no topic {topic}, or it may not be seen")));
        }
        self.health.well();
        Ok(count as u32)
    }

    /// The first offset that there is of a partition, and the one after the last.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn bounds(&self, partition: u32) -> Result<(u64, u64), Error> {
        let topic = &self.options.topic;
        let found = self.consumer.fetch_watermarks(topic, partition as i32, PATIENCE);
        let found = found.map_err(|cause| self.why(io(format!("ask Kafka where {topic}/{partition} ends"))(cause)))?;
        Ok((found.0 as u64, found.1 as u64))
    }

    /// Begins to read, each partition from an offset.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn begin(&self, at: impl IntoIterator<Item = (u32, u64)>) -> Result<(), Error> {
        self.consumer.assign(&self.places(at)?).map_err(io("read a source"))
    }

    /// Hands over what comes, as long as it is asked for more and there is more: the first message is waited for.
    ///
    /// # Errors
    /// [`Error::Io`]: when messages are gone that were asked for, or damaged, or the topic is gone, or may not be read.
    /// While no broker answers, nothing comes.
    pub fn read(&self, patience: Duration, mut take: impl FnMut(SourceMessage<'_>) -> bool) -> Result<(), Error> {
        let until = Instant::now() + patience;
        let mut wait = patience;
        loop {
            match self.consumer.poll(wait) {
                Some(Ok(message)) => {
                    let name = self.options.header.as_deref();
                    let headers = message.headers().into_iter().flat_map(Headers::iter);
                    let header = headers.filter(|header| Some(header.key) == name).last().and_then(|found| found.value);
                    let (partition, offset) = (message.partition() as u32, message.offset() as u64);
                    self.health.well();
                    if !take(SourceMessage { partition, offset, payload: message.payload(), header }) {
                        return Ok(());
                    }
                    // What is here already, and no more.
                    wait = Duration::ZERO;
                }
                Some(Err(error)) if !is_passing(&error) => return Err(io("read a source")(error)),
                // The client goes on by itself.
                Some(Err(error)) => {
                    tracing::debug!(%error, topic = self.options.topic, "a source");
                    wait = wait.min(until.saturating_duration_since(Instant::now()));
                }
                None => return Ok(()),
            }
        }
    }

    /// Up to where each partition was handed over: beyond its last message where a transaction ended, or was aborted.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn positions(&self) -> Result<Vec<(u32, u64)>, Error> {
        let places = self.consumer.position().map_err(io("read a source"))?;
        let known = |place: &TopicPartitionListElem<'_>| match place.offset() {
            Offset::Offset(offset) => Some((place.partition() as u32, offset as u64)),
            _ => None,
        };
        Ok(places.elements().iter().filter_map(known).collect())
    }

    /// Why nothing comes, if the brokers are the reason.
    pub fn failure(&self) -> Option<String> {
        self.health.failure()
    }

    /// Tells the group how far we are, for those who look at it.
    pub fn note(&self, settled: impl IntoIterator<Item = (u32, u64)>) {
        let noted = self.places(settled).map(|places| self.consumer.commit(&places, CommitMode::Async));
        if let Ok(Err(error)) = noted {
            tracing::debug!(%error, topic = self.options.topic, "the group was not told how far we are");
        }
    }

    fn places(&self, at: impl IntoIterator<Item = (u32, u64)>) -> Result<TopicPartitionList, Error> {
        let mut places = TopicPartitionList::new();
        for (partition, offset) in at {
            let offset = Offset::Offset(offset as i64);
            let added = places.add_partition_offset(&self.options.topic, partition as i32, offset);
            added.map_err(io("read a source"))?;
        }
        Ok(places)
    }

    /// Hears what the client noticed. Whoever reads hears it anyway, and a message would be lost here.
    fn hear(&self) {
        if self.consumer.assignment().is_ok_and(|places| places.count() == 0) {
            for _ in 0..20 {
                self.consumer.poll(PATIENCE / 1_000);
            }
        }
    }

    /// The error with what the client noticed: that tells more than "timed out".
    fn why(&self, error: Error) -> Error {
        match (self.health.failure(), error) {
            (Some(cause), Error::Io { what, .. }) => Error::Io { what, cause },
            (_, error) => error,
        }
    }
}

/// Whether the client gets over it by itself, and nothing is left out.
fn is_passing(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::Authentication
                | RDKafkaErrorCode::BrokerNotAvailable
                | RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::CoordinatorLoadInProgress
                | RDKafkaErrorCode::CoordinatorNotAvailable
                | RDKafkaErrorCode::FencedLeaderEpoch
                // The group only shows how far we are.
                | RDKafkaErrorCode::GroupAuthorizationFailed
                | RDKafkaErrorCode::KafkaStorageError
                | RDKafkaErrorCode::LeaderNotAvailable
                | RDKafkaErrorCode::NetworkException
                | RDKafkaErrorCode::NotCoordinator
                | RDKafkaErrorCode::NotLeaderForPartition
                | RDKafkaErrorCode::OffsetNotAvailable
                | RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::ReplicaNotAvailable
                | RDKafkaErrorCode::RequestTimedOut
                | RDKafkaErrorCode::Resolve
                | RDKafkaErrorCode::SSL
                | RDKafkaErrorCode::UnknownLeaderEpoch
        )
    )
}
