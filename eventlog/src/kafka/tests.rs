//! The suite on a real broker, and what only a broker can do.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use super::*;
use crate::contract::Subject;

const EVENTS: TopicPartition = TopicPartition { topic: Topic::Events, partition: 0 };
/// Longer than the slowest machine needs, also when a broker stalls.
pub const WITHIN: Duration = Duration::from_secs(120);

struct Namespace(Option<Options>);

pub fn options(address: &str) -> Options {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    Options {
        namespace: format!("test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)),
        partitions: 2,
        replication: 1,
        allow_single_replica: true,
        // Small, so that tests read what is no longer in memory.
        cache_bytes: 4_000,
        properties: BTreeMap::from([("bootstrap.servers".into(), address.into())]),
        ..Options::default()
    }
}

pub fn open(options: &Options) -> Result<Arc<KafkaLog>, Error> {
    let options = options.clone();
    tokio::task::block_in_place(|| KafkaLog::open(options).map(Arc::new))
}

impl Subject for Namespace {
    async fn fresh() -> Self {
        Self(sendtrail_test_servers::kafka().map(options))
    }

    async fn open(&self) -> Option<Arc<dyn EventLog>> {
        Some(open(self.0.as_ref()?).unwrap())
    }
}

crate::contract_suite!(Namespace);

/// Waits until readers see what was appended.
async fn seen(log: &KafkaLog, of: TopicPartition, next: u64) {
    let mut end = log.end(of);
    let reached = tokio::time::timeout(WITHIN, end.wait_for(|end| *end >= next)).await;
    assert!(reached.is_ok(), "{of} did not reach {next} but {}", *log.end(of).borrow());
}

pub fn numbered(first: u64, count: u64) -> Batch {
    let mut batch = Batch::numbered(first);
    (first..first + count).for_each(|n| batch.push_bytes(&n.to_le_bytes()));
    batch
}

pub fn values(log: &KafkaLog, of: TopicPartition, from: u64) -> Vec<(u64, Vec<u8>)> {
    let mut found: Vec<(u64, Vec<u8>)> = Vec::new();
    loop {
        let next = found.last().map_or(from, |(offset, _)| offset + 1);
        let batches = tokio::task::block_in_place(|| log.read(of, next, 1_000)).unwrap();
        if batches.is_empty() {
            return found;
        }
        let records = batches.iter().flat_map(|batch| batch.records(next));
        found.extend(records.map(|record| (record.offset, record.value.to_vec())));
    }
}

/// Waits until something holds, but not for ever.
pub async fn soon(holds: impl Fn() -> bool) {
    let until = Instant::now() + WITHIN;
    while !holds() && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn every_topic_has_a_name_of_its_own_whatever_the_namespace() {
    for (namespace, simulated, begin) in
        [("sendtrail", false, "sendtrail"), ("sendtrail", true, "sendtrail.simulated"), ("a.intake", false, "a.intake")]
    {
        let options = Options { namespace: namespace.into(), simulated, ..Options::default() };
        assert_eq!(options.topic(Topic::Intake), format!("{begin}.intake"));
        assert_eq!(options.topic(Topic::DeadLetter), format!("{begin}.dead-letter"));
        assert_eq!(options.owner_topic(), format!("{begin}.owner"));
        assert_eq!(options.views_topic(), format!("{begin}.views"));
    }
}

/// What a process that was thought dead writes.
fn zombie(options: &Options, numbers: impl Iterator<Item = u64>) {
    let producer: BaseProducer = connect::producer(options).create().unwrap();
    for n in numbers {
        let (topic, key, value) = (options.topic(Topic::Events), numbers::key(n), n.to_le_bytes());
        let record = BaseRecord::to(&topic).partition(0).key(&key).payload(&value);
        producer.send(record).unwrap();
    }
    producer.flush(WITHIN).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_again_is_read_once_from_wherever() {
    let Some(address) = sendtrail_test_servers::kafka() else { return };
    let options = options(address);
    let log = open(&options).unwrap();
    for n in 0..10 {
        log.append(EVENTS, numbered(n * 50, 50)).await.unwrap();
    }
    // Another owner that began at an older checkpoint, and was slower.
    zombie(&options, 100..420);
    log.append(EVENTS, numbered(500, 50)).await.unwrap();
    zombie(&options, 420..500);
    log.append(EVENTS, numbered(550, 50)).await.unwrap();
    seen(&log, EVENTS, 600).await;
    let check = |log: &KafkaLog| {
        for from in (0..600).step_by(37) {
            let found = values(log, EVENTS, from);
            assert_eq!(found.len() as u64, 600 - from);
            assert!(found.iter().zip(from..).all(|((at, value), n)| *at == n && *value == n.to_le_bytes()), "{from}");
        }
    };
    check(&log);
    drop(log);
    // The last record has an old number: the greatest counts.
    zombie(&options, 300..310);
    let log = open(&options).unwrap();
    assert_eq!(*log.end(EVENTS).borrow(), 600);
    check(&log);
    log.append(EVENTS, numbered(590, 20)).await.unwrap();
    seen(&log, EVENTS, 610).await;
    assert_eq!(values(&log, EVENTS, 595).len(), 15);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_stops_the_reader_and_says_where() {
    let Some(address) = sendtrail_test_servers::kafka() else { return };
    let options = options(address);
    let log = open(&options).unwrap();
    log.append(EVENTS, numbered(0, 5)).await.unwrap();
    seen(&log, EVENTS, 5).await;
    zombie(&options, 7..8);
    soon(|| log.read(EVENTS, 5, 1_000).is_err()).await;
    let error = log.read(EVENTS, 5, 1_000).unwrap_err();
    assert!(matches!(&error, Error::Corrupt { at: 5, why, .. } if why.contains("record 7 stands where 5")), "{error}");
    assert_eq!(values_before(&log, 5), 5, "what comes before is read");
}

fn values_before(log: &KafkaLog, next: u64) -> u64 {
    let batches = log.read(EVENTS, 0, 1 << 20).unwrap();
    batches.iter().map(|batch| u64::from(batch.count)).sum::<u64>().min(next)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_that_are_wrong_are_named() {
    let Some(address) = sendtrail_test_servers::kafka() else { return };
    let options = options(address);
    let careless = Options { allow_single_replica: false, ..options.clone() };
    let refused = open(&careless).unwrap_err().to_string();
    assert!(refused.contains("kafka.replication is 1"), "{refused}");
    let missing = open(&Options { create_topics: false, ..options.clone() }).unwrap_err().to_string();
    assert!(missing.contains(".intake does not exist; 'sendtrail topics apply'"), "{missing}");
    let plan = tokio::task::block_in_place(|| Plan::of(&options)).unwrap();
    assert_eq!(plan.missing().count(), 9);
    let log = open(&options).unwrap();
    assert!(log.cluster().is_some_and(|id| !id.is_empty() && plan.cluster.as_deref() == Some(id)), "{plan:?}");
    drop(log);
    let plan = tokio::task::block_in_place(|| Plan::of(&options)).unwrap();
    assert!(plan.steps.iter().all(|(_, step)| *step == Step::Keep), "{plan:?}");
    let more = open(&Options { partitions: 3, ..options.clone() }).unwrap_err().to_string();
    assert!(more.contains("set log.partitions to 2"), "{more}");
    let strict = open(&careless).unwrap_err().to_string();
    assert!(strict.contains("1 replica(s)") && strict.contains("min.insync.replicas is 1"), "{strict}");
    // Made by hand, as a broker makes topics by default.
    let by_hand = Options { namespace: format!("{}-hand", options.namespace), ..options.clone() };
    tokio::task::block_in_place(|| {
        let health = Arc::default();
        let admin: rdkafka::admin::AdminClient<connect::Context> =
            connect::create(&connect::admin(&by_hand), &health).unwrap();
        let name = by_hand.topic(Topic::Events);
        let topic = rdkafka::admin::NewTopic::new(&name, 2, rdkafka::admin::TopicReplication::Fixed(1));
        let topics = [topic];
        let made = admin.create_topics(&topics, &rdkafka::admin::AdminOptions::new());
        futures::executor::block_on(made).unwrap();
    });
    let wrong = open(&by_hand).unwrap_err().to_string();
    assert!(wrong.contains("message.timestamp.type is 'CreateTime' and must be 'LogAppendTime'"), "{wrong}");
    assert!(wrong.contains("max.message.bytes"), "{wrong}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_server_waits_until_the_first_is_gone() {
    let Some(address) = sendtrail_test_servers::kafka() else { return };
    let mut options = options(address);
    options.properties.insert("session.timeout.ms".into(), "6000".into());
    let first = open(&options).unwrap();
    first.append(EVENTS, numbered(0, 10)).await.unwrap();
    let other = Options { instance: "another".into(), ..options.clone() };
    let mut second = tokio::task::spawn_blocking(move || KafkaLog::open(other));
    assert!(tokio::time::timeout(Duration::from_secs(3), &mut second).await.is_err(), "it waits");
    first.append(EVENTS, numbered(10, 10)).await.unwrap();
    assert_eq!(first.status().failed, None, "one that waits takes nothing away");
    tokio::task::block_in_place(|| drop(first));
    let second = tokio::time::timeout(WITHIN, second).await.expect("it takes over").unwrap().unwrap();
    assert_eq!(*second.end(EVENTS).borrow(), 20);
    second.append(EVENTS, numbered(20, 1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_loses_the_log_writes_nothing_more() {
    let Some(address) = sendtrail_test_servers::kafka() else { return };
    let options = options(address);
    let first = open(&options).unwrap();
    first.append(EVENTS, numbered(0, 10)).await.unwrap();
    // The same server once more: it came back, and the one before is taken for dead.
    let second = open(&options).unwrap();
    second.append(EVENTS, numbered(10, 1)).await.unwrap();
    soon(|| first.status().failed.is_some()).await;
    let refused = first.append(EVENTS, numbered(10, 5)).await.unwrap_err();
    assert!(matches!(&refused, Error::Failed(why) if why.contains("another server")), "{refused}");
    second.append(EVENTS, numbered(11, 1)).await.unwrap();
    assert_eq!(second.status().failed, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_does_not_answer_is_told_with_its_address() {
    let mut options = options("127.0.0.1:1");
    options.properties.insert("socket.connection.setup.timeout.ms".into(), "1000".into());
    let error = open(&options).unwrap_err().to_string();
    assert!(error.contains("no Kafka broker answers") && error.contains("127.0.0.1:1"), "{error}");
    options.properties.insert("no.such.setting".into(), "1".into());
    let error = open(&options).unwrap_err();
    assert!(matches!(&error, Error::Settings(why) if why.contains("no.such.setting")), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_and_passwords_and_one_clear_error_without_them() {
    let Some(broker) = sendtrail_test_servers::Server::secure_kafka("mail:correct horse") else { return };
    let mut secure = options(broker.address());
    let mut set = |name: &str, value: &str| drop(secure.properties.insert(name.into(), value.into()));
    set("security.protocol", "sasl_ssl");
    set("ssl.ca.location", broker.certificate().to_str().unwrap());
    set("sasl.username", "mail");
    set("sasl.password", "correct horse");
    for mechanism in ["SCRAM-SHA-256", "PLAIN"] {
        let mut options = Options { namespace: format!("{}-{mechanism}", secure.namespace), ..secure.clone() };
        options.properties.insert("sasl.mechanism".into(), mechanism.into());
        let log = open(&options).unwrap();
        log.append(EVENTS, numbered(0, 3)).await.unwrap();
        assert_eq!(values(&log, EVENTS, 0).len(), 3);
        drop(log);
        options.properties.insert("sasl.password".into(), "wrong".into());
        let refused = open(&options).unwrap_err().to_string();
        assert!(refused.contains("Kafka refuses the credentials"), "{refused}");
        assert!(!refused.contains("wrong"), "no password is told: {refused}");
    }
    secure.properties.insert("sasl.mechanism".into(), "PLAIN".into());
    secure.properties.remove("ssl.ca.location");
    let refused = open(&secure).unwrap_err().to_string();
    assert!(refused.contains("TLS with Kafka fails"), "{refused}");
}
