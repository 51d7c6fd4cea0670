//! What servers tell one another beside the log, on three topics of their own.
//!
//! ```text
//! views      compacted: the last word on each account and address, and how far each partition is
//! questions  to the owner of a partition ──► replies  to one server, in its partition of that topic
//! ```
//!
//! Nothing here is in the sequence. A view may be written by an owner who does not know yet that he is none any more; it
//! is told by its reign, which is the offset of a record that every owner begins with, and whoever owns the partition
//! then says again what is true.

mod following;

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use futures::future::{BoxFuture, FutureExt};
use parking_lot::Mutex;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use sendtrail_schemas::codec::{self, Wire};
use sendtrail_schemas::exchange::{Question, Reign, Reply, Seen, View};
use tokio::sync::oneshot;

use super::connect::{self, Context, Health, io};
use super::{Options, PATIENCE};
use crate::{Announce, Error};

pub use following::{Heard, Voice, Word};

/// How long a view may take to be acknowledged before its writer learns that it was not.
const VIEW_TIMEOUT: &str = "30000";

/// See the module.
pub struct Exchange {
    options: Arc<Options>,
    health: Arc<Health>,
    producer: ThreadedProducer<Publishing>,
    reigns: Vec<AtomicU64>,
    /// By which its own reigns are told from others'.
    instance: u64,
    stop: Arc<AtomicBool>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Publishing(Context);

impl ClientContext for Publishing {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = Context::ENABLE_REFRESH_OAUTH_TOKEN;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.0.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal) {
            // Nothing more would be made known.
            self.0.health.lost(&format!("views cannot be written any more: {reason}"));
        }
        self.0.error(error, reason);
    }

    fn generate_oauth_token(&self, config: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.0.generate_oauth_token(config)
    }
}

/// Who waits for an acknowledgement, if anybody does.
type Ticket = Box<Option<oneshot::Sender<Result<i64, String>>>>;

impl ProducerContext for Publishing {
    type DeliveryOpaque = Ticket;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: Ticket) {
        let outcome = match result {
            Ok(message) => {
                self.0.health.well();
                Ok(message.offset())
            }
            Err((error, _)) => Err(error.to_string()),
        };
        if let Some(waiting) = *ticket {
            // Whoever waited may have given up.
            let _ = waiting.send(outcome);
        }
    }
}

impl Exchange {
    /// Prepares to connect.
    ///
    /// # Errors
    /// [`Error::Settings`] when librdkafka does not know a setting or its value.
    pub(super) fn new(options: Arc<Options>, health: Arc<Health>) -> Result<Self, Error> {
        let mut config = connect::producer(&options);
        // What is not told soon is of no use to those who wait, and views are told again after a failure.
        config.set("enable.gapless.guarantee", "false").set("message.timeout.ms", VIEW_TIMEOUT).set("linger.ms", "0");
        let producer = connect::create_with(&config, Publishing(Context { health: health.clone() }))?;
        let reigns = (0..options.partitions).map(|_| AtomicU64::new(0)).collect();
        let instance = RandomState::new().hash_one(std::process::id());
        Ok(Self { options, health, producer, reigns, instance, stop: Arc::default(), threads: Mutex::default() })
    }

    /// Begins to own a partition: its views are this process's from here on, which is the offset that is returned.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub async fn reign(&self, partition: u32) -> Result<u64, Error> {
        let told = self.view(partition, Seen::Reign(Reign { instance: self.instance }))?;
        let offset = told.await.map_err(|_| "the client ended".to_owned()).flatten();
        let offset = offset.map_err(|cause| Error::Io { what: "tell who owns a partition".into(), cause })?;
        if let Some(reign) = self.reigns.get(partition as usize) {
            reign.store(offset as u64, Ordering::Release);
        }
        Ok(offset as u64)
    }

    fn view(&self, partition: u32, seen: Seen) -> Result<oneshot::Receiver<Result<i64, String>>, Error> {
        let reign = self.reigns.get(partition as usize).map_or(0, |reign| reign.load(Ordering::Acquire));
        let key = seen.key();
        let (sender, told) = oneshot::channel();
        let view = View { version: codec::VERSION, reign, seen: Some(seen) };
        self.send(&self.options.views_topic(), partition, Some(&key), &view, Some(sender))?;
        Ok(told)
    }

    /// Puts a question to the owner of a partition.
    pub fn ask(&self, partition: u32, question: &Question) {
        self.pass(&self.options.questions_topic(), partition, question);
    }

    /// Replies to whoever waits, wherever it is.
    pub fn reply(&self, reply: &Reply) {
        self.pass(&self.options.replies_topic(), self.partition_of(reply.to.instance), reply);
    }

    /// The partition of replies that an instance reads.
    fn partition_of(&self, instance: u64) -> u32 {
        (instance % u64::from(self.options.partitions)) as u32
    }

    fn pass(&self, topic: &str, partition: u32, message: &impl Wire) {
        // Whoever waits gives up in time, and may ask again.
        if let Err(error) = self.send(topic, partition, None, message, None) {
            tracing::warn!(%error, topic, "a message to another server could not be sent");
        }
    }

    fn send(
        &self,
        topic: &str,
        partition: u32,
        key: Option<&[u8]>,
        message: &impl Wire,
        ticket: Option<oneshot::Sender<Result<i64, String>>>,
    ) -> Result<(), Error> {
        if let Some(why) = self.health.is_lost() {
            return Err(Error::Failed(why));
        }
        let payload = codec::encode(message);
        let mut record =
            BaseRecord::with_opaque_to(topic, Box::new(ticket)).partition(partition as i32).payload(&payload[..]);
        if let Some(key) = key {
            record = record.key(key);
        }
        self.producer.send(record).map_err(|(cause, _)| io(format!("write to {topic}"))(cause))
    }

    /// Ends the listening, and waits a while for what is on its way.
    pub(super) fn close(&self) {
        self.stop.store(true, Ordering::Release);
        if let Err(error) = self.producer.flush(PATIENCE) {
            tracing::warn!(%error, "not every view was acknowledged by Kafka in time");
        }
        for thread in self.threads.lock().drain(..) {
            // A panic in it was logged by the panic hook.
            let _ = thread.join();
        }
    }
}

impl Announce for Exchange {
    fn announce(&self, partition: u32, seen: Seen) -> BoxFuture<'static, Result<(), Error>> {
        let told = self.view(partition, seen);
        async move {
            let outcome = told?.await.unwrap_or_else(|_| Err("the client ended".into()));
            outcome.map(|_| ()).map_err(|cause| Error::Io { what: "publish a view".into(), cause })
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests;
