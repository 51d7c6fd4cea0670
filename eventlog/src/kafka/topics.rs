//! The topics: what they must be like, what is there, and what would have to be done.

use std::sync::Arc;
use std::time::Instant;

use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::metadata::{Metadata, MetadataTopic};
use rdkafka::types::RDKafkaErrorCode;
use sendtrail_schemas::topic::Topic;

use super::connect::{self, Context, Health, MAX_BATCH, io};
use super::{Options, PATIENCE};
use crate::Error;

/// What a topic is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Use {
    /// The log, and who owns it.
    Log,
    /// The last word on each key.
    Views,
    /// What is of use to nobody soon.
    Passing,
}

/// A topic that must be there.
#[derive(Clone, Debug)]
struct Wanted {
    name: String,
    partitions: u32,
    of: Use,
}

/// A day, an hour, ten minutes: milliseconds.
const DAY: i64 = 24 * HOUR;
const HOUR: i64 = 3_600_000;
const MINUTES: i64 = 600_000;

impl Options {
    /// Every topic.
    fn wanted(&self) -> Vec<Wanted> {
        let log = Topic::ALL.iter().map(|topic| (self.topic(*topic), self.partitions, Use::Log));
        let beside = [
            (self.owner_topic(), 1, Use::Log),
            (self.views_topic(), self.partitions, Use::Views),
            (self.questions_topic(), self.partitions, Use::Passing),
            (self.replies_topic(), self.partitions, Use::Passing),
        ];
        log.chain(beside).map(|(name, partitions, of)| Wanted { name, partitions, of }).collect()
    }
}

impl Use {
    /// Settings that a topic must have. The time of the log is the sequencer's: what it is counted by.
    fn must(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Log => &[("cleanup.policy", "delete"), ("message.timestamp.type", "LogAppendTime")],
            Self::Views => &[("cleanup.policy", "compact")],
            Self::Passing => &[("cleanup.policy", "delete")],
        }
    }

    /// The least time that records are kept, milliseconds, and what happens otherwise.
    fn keeps(self) -> Option<(i64, &'static str)> {
        match self {
            Self::Log => Some((DAY, "less than a day: readers could miss records")),
            Self::Views => None,
            Self::Passing => Some((MINUTES, "less than ten minutes: servers could miss what they are told")),
        }
    }

    /// Further settings of one that is made.
    fn made(self, options: &Options) -> Vec<(&'static str, String)> {
        match self {
            Self::Log => vec![("retention.ms", (options.retention_hours as i64 * HOUR).to_string())],
            // How far partitions are is told again and again: only what is not written to any more is cleaned.
            Self::Views => vec![
                ("segment.ms", MINUTES.to_string()),
                ("segment.bytes", (64 << 20).to_string()),
                ("min.cleanable.dirty.ratio", "0.1".into()),
            ],
            Self::Passing => vec![("retention.ms", HOUR.to_string()), ("segment.bytes", (64 << 20).to_string())],
        }
    }
}

/// What there is to do about one topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It is as it must be.
    Keep,
    /// It does not exist.
    Create,
    /// It is wrong, and this program does not change it: what, and what it should be.
    Wrong(Vec<String>),
}

/// What there is to do about every topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The topics' names, and what there is to do.
    pub steps: Vec<(String, Step)>,
    /// The cluster's id, if the brokers tell it.
    pub cluster: Option<String>,
}

/// Settings of a topic that is made.
fn settings(options: &Options, of: Use) -> Vec<(&'static str, String)> {
    let further = [
        ("max.message.bytes", MAX_BATCH.to_string()),
        ("min.insync.replicas", if options.replication >= 3 { "2" } else { "1" }.into()),
    ];
    let must = of.must().iter().map(|(name, value)| (*name, (*value).to_owned()));
    must.chain(further).chain(of.made(options)).collect()
}

/// What is wrong with a topic, and what it should be.
fn wrongs(
    options: &Options,
    topic: &MetadataTopic,
    wanted: &Wanted,
    described: Option<&ConfigResource>,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let partitions = topic.partitions().len();
    let count = wanted.partitions;
    if partitions != count as usize {
        wrong.push(format!(
            "it has {partitions} partitions and must have {count}; accounts are bound to partitions, so their \
             number cannot change: set log.partitions to {partitions}"
        ));
    }
    let copies = topic.partitions().iter().map(|partition| partition.replicas().len()).min().unwrap_or(0);
    if copies < 3 && !options.allow_single_replica {
        wrong.push(format!(
            "it has {copies} replica(s): a broker that fails would take acknowledged events with it; three are \
             needed, or kafka.allow_single_replica"
        ));
    }
    let value = |setting: &str| described.and_then(|topic| topic.get(setting)?.value.as_deref()).unwrap_or("");
    let number = |setting: &str| value(setting).parse::<i64>().unwrap_or(0);
    for (setting, must) in wanted.of.must() {
        if value(setting) != *must {
            wrong.push(format!("its {setting} is '{}' and must be '{must}'", value(setting)));
        }
    }
    let in_sync = number("min.insync.replicas");
    if !options.allow_single_replica && in_sync < 2 {
        wrong.push(format!("its min.insync.replicas is {in_sync} and must be 2"));
    }
    let largest = number("max.message.bytes");
    if largest < MAX_BATCH {
        wrong.push(format!("its max.message.bytes is {largest} and must be at least {MAX_BATCH}"));
    }
    let retention = number("retention.ms");
    if let Some((least, why)) = wanted.of.keeps()
        && (0..least).contains(&retention)
    {
        wrong.push(format!("its retention.ms is {retention}, {why}"));
    }
    wrong
}

/// What the brokers have. A broker that is about to start is waited for, one that refuses is not.
fn metadata(asking: &BaseConsumer<Context>, health: &Health) -> Result<Metadata, String> {
    let begun = Instant::now();
    loop {
        let cause = match asking.fetch_metadata(None, PATIENCE / 5) {
            Ok(metadata) => return Ok(metadata),
            Err(cause) => cause,
        };
        // What the client noticed says more than the call does.
        for _ in 0..20 {
            asking.poll(PATIENCE / 1_000);
        }
        if health.is_refused() || begun.elapsed() > PATIENCE {
            return Err(health.failure().unwrap_or_else(|| cause.to_string()));
        }
    }
}

impl Plan {
    /// Looks at what is there. Blocks.
    ///
    /// # Errors
    /// [`Error::Io`] when no broker answers; [`Error::Settings`] when a setting is unknown.
    pub fn of(options: &Options) -> Result<Self, Error> {
        let health = Arc::new(Health::default());
        let admin: AdminClient<Context> = connect::create(&connect::admin(options), &health)?;
        let asking: BaseConsumer<Context> = connect::create(&connect::consumer(options), &health)?;
        let metadata = metadata(&asking, &health).map_err(|cause| {
            let servers = options.properties.get("bootstrap.servers").map_or("", String::as_str);
            Error::Io { what: format!("ask Kafka at {servers} for its topics"), cause }
        })?;
        let found = |name: &str| metadata.topics().iter().find(|topic| topic.name() == name);
        let topics = options.wanted();
        let there: Vec<&String> = topics.iter().map(|topic| &topic.name).filter(|name| found(name).is_some()).collect();
        let described = if there.is_empty() {
            Vec::new()
        } else {
            let resources: Vec<_> = there.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
            let ask = admin.describe_configs(&resources, &AdminOptions::new().request_timeout(Some(PATIENCE)));
            futures::executor::block_on(ask).map_err(io("ask Kafka for its topics' settings"))?
        };
        let step = |wanted: &Wanted| {
            let name = wanted.name.clone();
            let Some(topic) = found(&name) else { return (name, Step::Create) };
            let at = there.iter().position(|there| **there == name);
            let described = at.and_then(|at| described.get(at)?.as_ref().ok());
            let wrong = wrongs(options, topic, wanted, described);
            (name, if wrong.is_empty() { Step::Keep } else { Step::Wrong(wrong) })
        };
        let steps = topics.iter().map(step).collect();
        // It came with the metadata.
        let cluster = asking.client().fetch_cluster_id(PATIENCE / 10);
        Ok(Self { steps, cluster })
    }

    /// The topics that do not exist.
    pub fn missing(&self) -> impl Iterator<Item = &str> {
        self.steps.iter().filter(|(_, step)| *step == Step::Create).map(|(name, _)| name.as_str())
    }

    /// Refuses topics that are wrong.
    ///
    /// # Errors
    /// [`Error::Settings`] with everything that is wrong.
    pub fn check(&self) -> Result<(), Error> {
        let wrong = self.steps.iter().filter_map(|(name, step)| match step {
            Step::Wrong(why) => Some(why.iter().map(move |why| format!("the topic {name}: {why}"))),
            Step::Keep | Step::Create => None,
        });
        let wrong: Vec<String> = wrong.flatten().collect();
        if wrong.is_empty() { Ok(()) } else { Err(Error::Settings(wrong.join("\n"))) }
    }

    /// Makes the topics that do not exist. Blocks.
    ///
    /// # Errors
    /// [`Error::Settings`] when fewer than three copies are asked for and not allowed, or the broker refuses;
    /// [`Error::Io`] when none answers.
    pub fn create(&self, options: &Options) -> Result<(), Error> {
        let topics = options.wanted();
        let missing: Vec<&Wanted> =
            topics.iter().filter(|topic| self.missing().any(|missing| missing == topic.name)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        if options.replication < 3 && !options.allow_single_replica {
            let is = options.replication;
            let why = "three are needed for an acknowledged event to survive a broker, or kafka.allow_single_replica";
            return Err(Error::Settings(format!("kafka.replication is {is}: {why}")));
        }
        let health = Arc::new(Health::default());
        let admin: AdminClient<Context> = connect::create(&connect::admin(options), &health)?;
        let settings = [Use::Log, Use::Views, Use::Passing].map(|of| (of, settings(options, of)));
        let topics: Vec<NewTopic<'_>> = missing
            .iter()
            .map(|wanted| {
                let copies = TopicReplication::Fixed(options.replication);
                let topic = NewTopic::new(&wanted.name, wanted.partitions as i32, copies);
                let settings = settings.iter().filter(|(of, _)| *of == wanted.of).flat_map(|(_, settings)| settings);
                settings.fold(topic, |topic, (name, value)| topic.set(name, value))
            })
            .collect();
        let create = admin.create_topics(&topics, &AdminOptions::new().operation_timeout(Some(PATIENCE)));
        for outcome in futures::executor::block_on(create).map_err(io("make topics"))? {
            match outcome {
                // Another process was faster.
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((name, why)) => return Err(Error::Settings(format!("the topic {name} could not be made: {why}"))),
            }
        }
        wait(&admin, &missing)
    }
}

/// A topic that was made is known to every broker some time later.
fn wait(admin: &AdminClient<Context>, made: &[&Wanted]) -> Result<(), Error> {
    for _ in 0..100 {
        let metadata = admin.inner().fetch_metadata(None, PATIENCE).map_err(io("ask Kafka for its topics"))?;
        let ready = made.iter().all(|wanted| {
            metadata.topics().iter().any(|topic| {
                let led = topic.partitions().iter().filter(|partition| partition.leader() >= 0).count();
                topic.name() == wanted.name && led == wanted.partitions as usize
            })
        });
        if ready {
            return Ok(());
        }
        std::thread::sleep(PATIENCE / 100);
    }
    Err(Error::Io { what: "make topics".into(), cause: "they have no leaders".into() })
}
