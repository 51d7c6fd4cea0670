//! A topic of Kafka read into the intake, beside what reading and parsing it takes bare. Broker and readers share the cores.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use sendtrail::app::App;
use sendtrail::client::Api;
use sendtrail::config::Config;
use serde::Deserialize;
use serde_json::json;

const MESSAGES: u64 = 1_000_000;
const PARTITIONS: i32 = 4;
const ACCOUNTS: u64 = 8;

pub fn run() {
    let Some(address) = sendtrail_test_servers::kafka() else { return };
    let topic = format!("source-{}", std::process::id());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", address).create().unwrap();
        let new = NewTopic::new(&topic, PARTITIONS, TopicReplication::Fixed(1));
        admin.create_topics([&new], &AdminOptions::new()).await.unwrap();
        let folder = tempfile::TempDir::new().unwrap();
        let mut config = Config::defaults();
        config.data.dir = folder.path().to_path_buf();
        config.server.listen = "127.0.0.1:0".into();
        let app = App::start(&config).await.unwrap();
        let key = app.fresh_admin_key.clone().unwrap();
        let api = Api::new(&format!("http://{}", app.address), &key);
        let mut accounts = Vec::new();
        for n in 0..ACCOUNTS {
            let body = json!({"name": format!("p{n}"), "contact_email": "a@b.example", "mode": "production"});
            let account = api.post("/api/v1/admin/accounts", &body).await.unwrap();
            accounts.push(account["account"]["account_id"].as_str().unwrap().to_owned());
        }
        let before = total(&api, "sendtrail_events_total").await;
        app.stop().await;
        write(address, &topic, &accounts);
        for _ in 0..3 {
            bare(address, &topic);
        }
        let source = format!("topic = {topic:?}\nbootstrap_servers = {address:?}\naccount_header = \"account\"");
        config.sources.kafka = vec![toml::from_str(&source).unwrap()];
        let app = App::start(&config).await.unwrap();
        let api = Api::new(&format!("http://{}", app.address), &key);
        while total(&api, "sendtrail_source_messages_total").await == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let begun = Instant::now();
        // No message is a copy of another.
        while total(&api, "sendtrail_events_total").await < before + MESSAGES {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        crate::rate("read into the log and applied", MESSAGES, begun.elapsed());
        app.stop().await;
    });
}

/// A counter of `/metrics`, all labels together.
async fn total(api: &Api, name: &str) -> u64 {
    let reply = api.call(http::Method::GET, "/metrics", &[], "").await.unwrap();
    let text = String::from_utf8_lossy(&reply.body).into_owned();
    let lines = text.lines().filter(|line| line.starts_with(name));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum::<f64>() as u64
}

fn write(address: &str, topic: &str, accounts: &[String]) {
    let producer: ThreadedProducer<rdkafka::producer::DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", address)
        .set("compression.type", "lz4")
        .set("linger.ms", "5")
        .set("queue.buffering.max.messages", "0")
        .create()
        .unwrap();
    for n in 0..MESSAGES {
        let line = super::door::line(n % ACCOUNTS, n / ACCOUNTS);
        let account = &accounts[(n % ACCOUNTS) as usize];
        let header = OwnedHeaders::new().insert(Header { key: "account", value: Some(account) });
        let record = BaseRecord::<(), _>::to(topic).partition((n % ACCOUNTS) as i32 % PARTITIONS);
        producer.send(record.payload(&line).headers(header)).unwrap();
        if n % 10_000 == 0 {
            while producer.in_flight_count() > 100_000 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    producer.flush(Duration::from_secs(60)).unwrap();
}

/// What any program that reads the topic has to do.
#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow)]
    event_type: &'a str,
    #[serde(borrow)]
    message_id: &'a str,
    #[serde(borrow)]
    recipient: &'a str,
}

fn bare(address: &str, topic: &str) {
    let consumer: BaseConsumer = crate::bare::consumer(address).create().unwrap();
    let mut places = TopicPartitionList::new();
    (0..PARTITIONS).for_each(|at| places.add_partition_offset(topic, at, Offset::Beginning).unwrap());
    let begun = Instant::now();
    consumer.assign(&places).unwrap();
    let (mut ended, mut counts) = (0, HashMap::<(Vec<u8>, u8), u64>::new());
    let read = Arc::new(AtomicU64::new(0));
    while ended < PARTITIONS {
        match consumer.poll(Duration::from_secs(10)).unwrap() {
            Ok(message) => {
                let event: Event<'_> = serde_json::from_slice(message.payload().unwrap()).unwrap();
                let account = message.headers().unwrap().get(0).value.unwrap().to_vec();
                let kind = event.event_type.as_bytes()[0];
                *counts.entry((account, kind)).or_default() +=
                    u64::from(!event.message_id.is_empty() && !event.recipient.is_empty());
                read.fetch_add(1, Ordering::Relaxed);
            }
            Err(KafkaError::PartitionEOF(_)) => ended += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(counts.values().sum::<u64>(), MESSAGES);
    crate::rate("bare: consumed, parsed and counted by account", MESSAGES, begun.elapsed());
}
