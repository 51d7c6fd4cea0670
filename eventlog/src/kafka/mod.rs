//! The log on Apache Kafka.
//!
//! ```text
//! owner: one server at a time for each part, by membership of a group
//! share: the partitions of this one, where several share them
//! append ─► writer (idempotent producer, one acknowledgement counter a batch) ─► broker
//! broker ─► tail (one consumer of the newest records) ─► memory ─► readers close behind
//!      └──► backlog (a consumer of its own) ─────────────────────► readers further behind
//! ```
//!
//! A record of a numbered topic carries its number as its key, eight bytes, most significant first. The broker may hold
//! such a record more than once: after a crash, outputs are written again when it is in doubt whether they were. Readers
//! here see each number once, in order, and stop at a gap. What the broker keeps is decided by the topics' retention:
//! [`EventLog::trim`] does nothing.

mod backlog;
mod bearer;
mod connect;
mod exchange;
mod numbers;
mod owner;
mod share;
mod source;
mod tail;
mod topics;
mod writer;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use rdkafka::consumer::BaseConsumer;
use sendtrail_schemas::topic::{Topic, TopicPartition};
use tokio::sync::watch;

use crate::batch::{Batch, StoredBatch};
use crate::{Error, EventLog, Status, aside};
use backlog::Backlog;
use connect::{Context, Health};
use owner::Owner;
use share::Share;
use tail::Tail;
use writer::Writer;

pub use exchange::{Exchange, Heard, Voice, Word};
pub use owner::Part;
pub use source::{SourceMessage, SourceOptions, SourceTopic};
pub use topics::{Plan, Step};

/// How long the broker may take to answer a question.
const PATIENCE: Duration = Duration::from_secs(10);

/// How the log is kept.
#[derive(Clone, Debug)]
pub struct Options {
    /// What topics' names begin with, `sendtrail` by default: several installations may share a cluster.
    pub namespace: String,
    /// Partitions of every topic, at least 1; fixed when the topics are made.
    pub partitions: u32,
    /// Who this is, the same after a restart: what tells a server that comes back from another one.
    pub instance: String,
    /// What this process does of which there must be one at a time; each is waited for, in this order.
    pub parts: Vec<Part>,
    /// The topics that it reads, and writes to so that it sees what it wrote.
    pub topics: Vec<Topic>,
    /// The same for those partitions that it is given, if it shares them with others: see [`KafkaLog::acquire`].
    pub shared: Vec<Topic>,
    /// Whether records carry their own time: such a log has topics of its own.
    pub simulated: bool,
    /// Copies of every topic.
    pub replication: i32,
    /// Whether fewer than three copies are accepted.
    pub allow_single_replica: bool,
    /// How long the broker keeps records, hours.
    pub retention_hours: u64,
    /// Whether topics that do not exist are made.
    pub create_topics: bool,
    /// Bytes of the newest records kept in memory for readers close behind.
    pub cache_bytes: usize,
    /// Bytes that may wait to be written; intake beyond is refused.
    pub queue_bytes: u64,
    /// Settings of librdkafka, `bootstrap.servers` among them.
    pub properties: BTreeMap<String, String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            namespace: "sendtrail".into(),
            partitions: 4,
            instance: "sendtrail".into(),
            parts: Part::ALL.into(),
            topics: Topic::ALL.into(),
            shared: Vec::new(),
            simulated: false,
            replication: 3,
            allow_single_replica: false,
            retention_hours: 168,
            create_topics: true,
            cache_bytes: 64 << 20,
            queue_bytes: 64 << 20,
            properties: BTreeMap::from([("bootstrap.servers".into(), "127.0.0.1:9092".into())]),
        }
    }
}

impl Options {
    /// What the names of this log's topics begin with: no other log's do.
    pub fn log_name(&self) -> String {
        format!("{}{}", self.namespace, if self.simulated { ".simulated" } else { "" })
    }

    /// A topic's name on the broker.
    pub fn topic(&self, topic: Topic) -> String {
        format!("{}{}", self.log_name(), topic.name().trim_start_matches("sendtrail"))
    }

    /// Every topic's name on the broker.
    fn names(&self) -> [(String, Topic); 5] {
        Topic::ALL.map(|topic| (self.topic(topic), topic))
    }

    fn beside(&self, name: &str) -> String {
        format!("{}.{name}", self.log_name())
    }

    /// The name of the topic whose owner owns the log.
    fn owner_topic(&self) -> String {
        self.beside("owner")
    }

    /// The names of the topics of [`Exchange`].
    fn views_topic(&self) -> String {
        self.beside("views")
    }

    fn questions_topic(&self) -> String {
        self.beside("questions")
    }

    fn replies_topic(&self) -> String {
        self.beside("replies")
    }

    /// Every partition of some topics.
    fn partitions_of<'a>(&self, topics: &'a [Topic]) -> impl Iterator<Item = TopicPartition> + use<'a> {
        let partitions = self.partitions;
        topics.iter().flat_map(move |topic| (0..partitions).map(move |p| TopicPartition::new(*topic, p)))
    }

    /// Every partition of every topic that this process may read.
    fn all(&self) -> impl Iterator<Item = TopicPartition> + '_ {
        let shared = self.partitions_of(&self.shared).filter(|of| !self.topics.contains(&of.topic));
        self.partitions_of(&self.topics).chain(shared)
    }
}

/// See the module.
pub struct KafkaLog {
    options: Arc<Options>,
    health: Arc<Health>,
    writer: Writer,
    tail: Tail,
    backlog: Backlog,
    exchange: Arc<Exchange>,
    owners: Vec<Owner>,
    share: Option<Share>,
    assignments: watch::Receiver<Vec<u32>>,
    cluster: Option<String>,
    /// Where partitions that are not followed ended when that was asked.
    surveyed: Mutex<HashMap<TopicPartition, u64>>,
}

impl KafkaLog {
    /// Connects, makes or checks the topics, waits until no other server does this one's parts, and finds where each
    /// partition ends. Blocks while it does.
    ///
    /// # Errors
    /// [`Error::Settings`] when a topic is not as it must be, or a setting is unknown to librdkafka; [`Error::Io`] when
    /// no broker answers.
    pub fn open(options: Options) -> Result<Self, Error> {
        let options = Arc::new(options);
        let plan = Plan::of(&options)?;
        if options.create_topics {
            plan.create(&options)?;
        } else if let Some(missing) = plan.missing().next() {
            let why = "does not exist; 'sendtrail topics apply' makes it";
            return Err(Error::Settings(format!("the topic {missing} {why}")));
        }
        plan.check()?;
        let health = Arc::new(Health::default());
        // Before anything is looked at: an owner before may still have written.
        let (owners, share) = join(&options, &health)?;
        let ends = numbers::ends(&options, &health, options.partitions_of(&options.topics))?;
        let writer = Writer::new(options.clone(), health.clone());
        writer.begin(ends.iter());
        let tail = Tail::start(&options, health.clone())?;
        tail.follow(ends.iter())?;
        let backlog = Backlog::new(options.clone(), health.clone());
        let exchange = Arc::new(Exchange::new(options.clone(), health.clone())?);
        let all = || watch::channel((0..options.partitions).collect()).1;
        let assignments = share.as_ref().map_or_else(all, Share::given);
        Ok(Self {
            options,
            health,
            writer,
            tail,
            backlog,
            exchange,
            owners,
            share,
            assignments,
            cluster: plan.cluster,
            surveyed: Mutex::default(),
        })
    }

    /// Where the partitions of intake end by what the broker says now.
    ///
    /// # Errors
    /// [`Error::Io`] when the brokers do not answer.
    pub async fn intake_ends(&self) -> Result<Vec<u64>, Error> {
        let (options, health) = (self.options.clone(), self.health.clone());
        aside("look where intake ends", move || {
            let asking: BaseConsumer<Context> = connect::create(&connect::consumer(&options), &health)?;
            let name = options.topic(Topic::Intake);
            let end = |partition| Ok(numbers::watermarks(&asking, &name, partition)?.1 as u64);
            (0..options.partitions).map(end).collect()
        })
        .await
    }

    /// Begins to work on a partition that this server was given: readers see all that is in it. Until it is released, nobody
    /// else is given it, unless this server is thought dead.
    ///
    /// # Errors
    /// [`Error::Failed`] when it was taken away meanwhile, [`Error::Io`] when the brokers do not answer; whatever it is, it is
    /// to be released.
    pub async fn acquire(self: &Arc<Self>, partition: u32) -> Result<(), Error> {
        let Some(share) = &self.share else { return Ok(()) };
        share.begin(partition)?;
        // What was asked of it as another's says nothing any more.
        self.surveyed.lock().retain(|of, _| of.partition != partition);
        let log = self.clone();
        let ends = aside("begin a partition", move || {
            let of = log.options.shared.iter().map(|topic| TopicPartition::new(*topic, partition));
            let ends = numbers::ends(&log.options, &log.health, of)?;
            log.tail.follow(ends.iter().filter(|(of, _)| !log.options.topics.contains(&of.topic)))?;
            log.writer.begin(ends.iter());
            Ok(ends)
        })
        .await?;
        for (of, end) in ends {
            // What is read here anyway may be behind.
            let seen = self.tail.seen(of).await_next(end.next.unwrap_or(0));
            let late = |_| Error::Io { what: format!("begin {of}"), cause: "it is not read in time".into() };
            tokio::time::timeout(PATIENCE, seen).await.map_err(late)??;
        }
        Ok(())
    }

    /// Nothing of a partition is on its way any more: another server may be given it.
    pub fn release(&self, partition: u32) {
        let Some(share) = &self.share else { return };
        let left = self.options.shared.iter().filter(|topic| !self.options.topics.contains(topic));
        self.tail.leave(left.map(|topic| TopicPartition::new(*topic, partition)));
        share.end(partition);
    }

    /// Resolves when another server owns the log: this one must end, and may be started again. What it does to the world
    /// from then on is not its to do.
    pub fn lost(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut lost = self.health.losing();
        async move {
            if lost.wait_for(Option::is_some).await.is_err() {
                // Nobody can lose a log that was closed.
                std::future::pending::<()>().await;
            }
        }
    }

    /// The id of the cluster, which it has for life, if the brokers tell it.
    pub fn cluster(&self) -> Option<&str> {
        self.cluster.as_deref()
    }

    /// What this server and others tell one another.
    pub fn exchange(&self) -> &Arc<Exchange> {
        &self.exchange
    }

    /// Whether anything was ever written to a topic that this process reads.
    pub fn has(&self, topic: Topic) -> bool {
        (0..self.options.partitions).any(|of| *self.tail.end(TopicPartition::new(topic, of)).borrow() > 0)
    }

    /// Waits for what is being written, for a while, and refuses more.
    pub fn close(&self) {
        self.writer.close();
        self.tail.close();
        self.exchange.close();
        // Last: nobody else may write as long as this one does.
        self.share.iter().for_each(Share::close);
        self.owners.iter().for_each(Owner::close);
    }
}

/// Takes what there is one of at a time, and a share of the partitions. Blocks as long as others have it.
fn join(options: &Options, health: &Arc<Health>) -> Result<(Vec<Owner>, Option<Share>), Error> {
    loop {
        if options.parts.len() > 1 || !options.shared.is_empty() {
            owner::wait_until_free(options, health)?;
        }
        let owners = options.parts.iter().map(|part| Owner::become_owner(*part, options, health));
        let owners: Vec<Owner> = owners.collect::<Result<_, _>>()?;
        if options.parts.contains(&Part::Processor) {
            share::wait_until_left(options, health)?;
        }
        if options.shared.is_empty() {
            return Ok((owners, None));
        }
        if let Some(share) = Share::join(options, health)? {
            return Ok((owners, Some(share)));
        }
        // One owns everything: what was taken here is given back, for it may wait for that.
    }
}

impl Drop for KafkaLog {
    fn drop(&mut self) {
        self.close();
    }
}

impl EventLog for KafkaLog {
    fn append(&self, to: TopicPartition, batch: Batch) -> BoxFuture<'static, Result<u64, Error>> {
        let seen = self.tail.seen(to);
        if let Some(error) = seen.broken() {
            // Nobody would see it.
            return Box::pin(async move { Err(error) });
        }
        // Handed to the producer here and now, so that the order of calls is the order of the log.
        let written = self.writer.append(to, &batch);
        Box::pin(async move {
            let (first, next) = written?.await.unwrap_or_else(|_| Err(Error::InDoubt("the log was closed".into())))?;
            // It is durable, whatever keeps it from being seen here.
            seen.await_next(next).await.map_err(|error| Error::InDoubt(error.to_string()))?;
            Ok(first)
        })
    }

    fn read(&self, of: TopicPartition, from: u64, max_bytes: usize) -> Result<Vec<StoredBatch>, Error> {
        if !self.tail.follows(of)
            && let Some(until) = self.surveyed.lock().get(&of).copied()
        {
            return if from < until { self.backlog.read(of, from, until, max_bytes) } else { Ok(Vec::new()) };
        }
        match self.tail.read(of, from, max_bytes)? {
            tail::Found::Batches(batches) => Ok(batches),
            tail::Found::Older { until } => self.backlog.read(of, from, until, max_bytes),
        }
    }

    fn end(&self, of: TopicPartition) -> watch::Receiver<u64> {
        self.tail.end(of)
    }

    fn survey(&self, of: TopicPartition) -> Result<u64, Error> {
        if self.tail.follows(of) {
            return Ok(*self.tail.end(of).borrow());
        }
        let ends = numbers::ends(&self.options, &self.health, [of].into_iter())?;
        // Of what the broker has dropped there is nothing to read.
        let end = ends.get(&of).and_then(|end| end.next).unwrap_or(0);
        self.surveyed.lock().insert(of, end);
        Ok(end)
    }

    fn trim(&self, of: TopicPartition, before: u64) {
        // The broker keeps it by its own rules.
        if let Some(share) = self.share.as_ref().filter(|_| of.topic == Topic::Intake) {
            share.note(of.partition, before);
        }
    }

    fn status(&self) -> Status {
        Status {
            queued_bytes: self.writer.queued_bytes(),
            disk_bytes: 0,
            disk_budget: u64::MAX,
            failed: self.health.failure(),
        }
    }

    fn assignments(&self) -> watch::Receiver<Vec<u32>> {
        self.assignments.clone()
    }
}

impl std::fmt::Debug for KafkaLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Properties may hold passwords.
        f.debug_struct("KafkaLog").field("namespace", &self.options.namespace).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
