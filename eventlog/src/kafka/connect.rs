//! Clients of librdkafka, configured alike, and what they say about the brokers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use sendtrail_schemas::time::Millis;
use tokio::sync::watch;

use super::{Options, bearer};
use crate::Error;

/// Bytes of the largest batch of records.
pub const MAX_BATCH: i64 = 16 << 20;

/// Whether brokers answer, as the clients notice it.
#[derive(Default, Debug)]
pub struct Health {
    failure: Mutex<Option<String>>,
    refused: AtomicBool,
    /// Why this process may write nothing more.
    lost: watch::Sender<Option<String>>,
}

impl Health {
    /// Why nothing gets on, if nothing does.
    pub fn failure(&self) -> Option<String> {
        self.is_lost().or_else(|| self.failure.lock().clone())
    }

    /// Whether a broker answered with a refusal: waiting does not help.
    pub fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Acquire)
    }

    /// Why this process may write nothing more.
    pub fn is_lost(&self) -> Option<String> {
        self.lost.borrow().clone()
    }

    /// The same, once it is so.
    pub fn losing(&self) -> watch::Receiver<Option<String>> {
        self.lost.subscribe()
    }

    /// This process may write nothing more.
    pub fn lost(&self, why: &str) {
        tracing::error!(why, "the log is lost to this server");
        self.lost.send_replace(Some(why.to_owned()));
    }

    /// A broker answered.
    pub fn well(&self) {
        let mut failure = self.failure.lock();
        if failure.take().is_some() {
            tracing::info!("the brokers answer again");
        }
    }

    fn failed(&self, error: &KafkaError, reason: &str) {
        let what = match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AllBrokersDown) => "no Kafka broker answers",
            Some(RDKafkaErrorCode::Authentication) => "Kafka refuses the credentials",
            Some(RDKafkaErrorCode::SSL) => "TLS with Kafka fails",
            Some(RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::ClusterAuthorizationFailed) => {
                "Kafka denies access"
            }
            _ => return,
        };
        let refused = !matches!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::AllBrokersDown));
        self.refused.fetch_or(refused, Ordering::AcqRel);
        let mut failure = self.failure.lock();
        // The first reason is the cause: that no broker answers only follows from refused credentials.
        if failure.is_none() {
            tracing::error!(reason, "{what}");
            *failure = Some(format!("{what}: {reason}"));
        }
    }
}

/// What every client is made with.
#[derive(Clone, Debug)]
pub struct Context {
    pub health: Arc<Health>,
}

impl ClientContext for Context {
    // What librdkafka renews by itself it does not ask for.
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
                tracing::warn!(facility, message, "librdkafka");
            }
            _ => tracing::debug!(facility, message, "librdkafka"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.health.failed(&error, reason);
    }

    fn generate_oauth_token(&self, config: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        Ok(bearer::unsigned(config.unwrap_or_default(), Millis::wall())?)
    }
}

impl ConsumerContext for Context {}

/// What is usual here, below what the operator sets.
fn usual(properties: &BTreeMap<String, String>) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("client.id", "sendtrail");
    // Retries are quick at first, and not so frequent that they drown the log.
    config.set("reconnect.backoff.ms", "100").set("reconnect.backoff.max.ms", "5000");
    // A broker that is silent is told of before the session that it holds is over.
    config.set("socket.timeout.ms", "15000").set("socket.connection.setup.timeout.ms", "15000");
    for (name, value) in properties {
        config.set(name, value);
    }
    config
}

/// A consumer's settings: it is told where to begin, and stops where records are missing.
pub fn consumer(options: &Options) -> ClientConfig {
    reader(&options.properties, &format!("{}-readers", options.namespace))
}

/// The same for any topic, in a group.
pub fn reader(properties: &BTreeMap<String, String>, group: &str) -> ClientConfig {
    let mut config = usual(properties);
    config
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("enable.partition.eof", "false")
        .set("fetch.wait.max.ms", "100")
        .set("fetch.queue.backoff.ms", "2")
        .set("queued.max.messages.kbytes", "32768")
        .set("fetch.message.max.bytes", "4194304")
        .set("check.crcs", "true");
    config
}

/// A producer's settings: nothing is lost, doubled or out of order as long as it lives.
pub fn producer(options: &Options) -> ClientConfig {
    let mut config = usual(&options.properties);
    config
        .set("enable.idempotence", "true")
        .set("enable.gapless.guarantee", "true")
        .set("acks", "all")
        // A broker that knows nothing of a new producer takes any first batch: a second one on its way could be taken
        // before a first that is tried again, and leave a hole.
        .set("max.in.flight.requests.per.connection", "1")
        .set("message.timeout.ms", "0")
        .set("message.max.bytes", MAX_BATCH.to_string())
        .set("compression.type", "lz4")
        .set("linger.ms", "1")
        .set("batch.num.messages", "10000")
        .set("queue.buffering.max.messages", "0")
        .set("queue.buffering.max.kbytes", "2097151");
    config
}

/// The settings of a client that only asks and makes topics.
pub fn admin(options: &Options) -> ClientConfig {
    usual(&options.properties)
}

/// Makes a client.
///
/// # Errors
/// [`Error::Settings`] when librdkafka does not know a setting or its value.
pub fn create<T: FromClientConfigAndContext<Context>>(config: &ClientConfig, health: &Arc<Health>) -> Result<T, Error> {
    create_with(config, Context { health: health.clone() })
}

/// Makes a client with a context of its own.
///
/// # Errors
/// As [`create`].
pub fn create_with<C, T>(config: &ClientConfig, context: C) -> Result<T, Error>
where
    C: ClientContext,
    T: FromClientConfigAndContext<C>,
{
    bearer::check(config).map_err(|why| Error::Settings(format!("Kafka: {why}")))?;
    let made = config.create_with_context(context);
    made.map_err(|cause| match cause {
        // With the value, which may be a secret, it would be told everywhere.
        KafkaError::ClientConfig(_, why, name, _) => Error::Settings(format!("Kafka: {name}: {why}")),
        cause => Error::Settings(format!("Kafka: {cause}")),
    })
}

/// Ends a client, which takes a moment that nobody should wait for.
pub fn end_aside(client: impl Send + 'static) {
    std::thread::spawn(move || drop(client));
}

/// What went wrong while something was asked of a broker.
pub fn io(what: impl Into<String>) -> impl FnOnce(KafkaError) -> Error {
    move |cause| Error::Io { what: what.into(), cause: cause.to_string() }
}
