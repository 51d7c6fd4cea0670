//! The log on a real Kafka broker beside what librdkafka does bare, with the same settings and records. The broker, one
//! node on the same cores, is part of both figures.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rdkafka::Message;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use sendtrail_eventlog::kafka::{KafkaLog, Options};
use sendtrail_eventlog::{Batch, EventLog};
use sendtrail_schemas::topic::{Topic, TopicPartition};

use crate::rate;

const BATCHES: u64 = 2_000;
const RECORDS: u64 = 500;
const BYTES: usize = 300;
const PARTITIONS: u32 = 4;
/// Batches on their way at once.
const AT_ONCE: u64 = 16;

fn payload(n: u64) -> [u8; BYTES] {
    let mut bytes = [0u8; BYTES];
    // Half of it differs from record to record, as in events.
    bytes.chunks_exact_mut(8).step_by(2).enumerate().for_each(|(at, chunk)| {
        chunk.copy_from_slice(&(n + at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    });
    bytes
}

fn options(address: &str) -> Options {
    Options {
        namespace: format!("bench-{}", std::process::id()),
        partitions: PARTITIONS,
        replication: 1,
        allow_single_replica: true,
        properties: [("bootstrap.servers".to_owned(), address.to_owned())].into(),
        ..Options::default()
    }
}

pub fn run() {
    let Some(address) = sendtrail_test_servers::kafka() else { return };
    let options = options(address);
    let log = Arc::new(KafkaLog::open(options.clone()).unwrap());
    for round in 0..3 {
        append(&log);
        produce(address, &options, round);
    }
    drop(log);
    let log = KafkaLog::open(options.clone()).unwrap();
    for _ in 0..3 {
        read(&log);
        consume(address, &options);
    }
}

/// Appends, acknowledged and seen by readers.
fn append(log: &Arc<KafkaLog>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let begun = Instant::now();
    runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for writer in 0..AT_ONCE {
            let log = log.clone();
            tasks.spawn(async move {
                for at in 0..BATCHES / AT_ONCE {
                    let mut batch = Batch::new().with_room(RECORDS as usize * (BYTES + 4));
                    (0..RECORDS).for_each(|n| batch.push_bytes(&payload(at * RECORDS + n)));
                    let to = TopicPartition::new(Topic::Attempts, writer as u32 % PARTITIONS);
                    log.append(to, batch).await.unwrap();
                }
            });
        }
        tasks.join_all().await;
    });
    rate("appended, acknowledged and read by the tail", BATCHES * RECORDS, begun.elapsed());
}

struct Counting(AtomicU64);

impl ClientContext for Counting {}

impl ProducerContext for Counting {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        assert!(result.is_ok());
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The same number of records by a bare producer, one counter for all.
fn produce(address: &str, options: &Options, round: u32) {
    let producer: ThreadedProducer<Counting> =
        crate::bare::producer(address).create_with_context(Counting(AtomicU64::new(0))).unwrap();
    let topic = options.topic(Topic::Intake);
    let begun = Instant::now();
    for n in 0..BATCHES * RECORDS {
        let value = payload(n);
        let partition = (n / RECORDS) as u32 % PARTITIONS;
        producer.send(BaseRecord::to(&topic).partition(partition as i32).payload(&value).key("")).unwrap();
        let sent = n + 1;
        // As much on its way as above.
        while sent - producer.context().0.load(Ordering::Relaxed) > AT_ONCE * RECORDS {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
    while producer.context().0.load(Ordering::Relaxed) < BATCHES * RECORDS {
        std::thread::sleep(Duration::from_micros(100));
    }
    rate(&format!("bare producer, acknowledged (round {round})"), BATCHES * RECORDS, begun.elapsed());
}

/// Reads everything that is no longer in memory.
fn read(log: &KafkaLog) {
    let of = TopicPartition::new(Topic::Attempts, 0);
    let (begun, mut next) = (Instant::now(), 0);
    loop {
        let batches = log.read(of, next, 1 << 20).unwrap();
        let Some(last) = batches.last() else { break };
        next = last.next_offset();
    }
    rate("read from the broker", next, begun.elapsed());
}

fn consume(address: &str, options: &Options) {
    let consumer: BaseConsumer = crate::bare::consumer(address).create().unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&options.topic(Topic::Attempts), 0, Offset::Beginning).unwrap();
    consumer.assign(&list).unwrap();
    let (begun, mut count, mut bytes) = (Instant::now(), 0, 0);
    while let Some(Ok(message)) = consumer.poll(Duration::from_secs(10)) {
        bytes += message.payload().map_or(0, <[u8]>::len);
        count += 1;
    }
    assert_eq!(bytes as u64, count * BYTES as u64);
    rate("bare consumer", count, begun.elapsed());
}
