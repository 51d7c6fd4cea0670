//! Events that others write to Kafka are read from there, each once.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext, ThreadedProducer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use sendtrail::client::Api;
use sendtrail::config::Config;
use tokio::sync::oneshot;

use super::binary::{ADMIN_KEY, Process};
use super::support::*;

/// Hands the offset of each message to whoever wrote it.
#[derive(Clone)]
struct Acknowledged;

impl ClientContext for Acknowledged {}

impl ProducerContext for Acknowledged {
    type DeliveryOpaque = Box<oneshot::Sender<i64>>;

    fn delivery(&self, result: &DeliveryResult<'_>, waiting: Self::DeliveryOpaque) {
        // Whoever waits hears of a failure by not hearing.
        let _ = result.as_ref().map(|message| waiting.send(message.offset()));
    }
}

/// What writes to a topic.
pub struct Writer {
    address: String,
    pub topic: String,
    producer: ThreadedProducer<Acknowledged>,
}

impl Writer {
    /// Of a topic of its own; none where there is no broker.
    pub async fn new(name: &str, partitions: i32) -> Option<Self> {
        let writer = Self::unmade(name)?;
        writer.make(partitions).await;
        Some(writer)
    }

    async fn make(&self, partitions: i32) {
        let topic = NewTopic::new(&self.topic, partitions, TopicReplication::Fixed(1));
        self.admin().create_topics([&topic], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
    }

    fn unmade(name: &str) -> Option<Self> {
        Some(Self::on(sendtrail_test_servers::kafka()?, name))
    }

    fn on(address: &str, name: &str) -> Self {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", address).set("topic.metadata.refresh.interval.ms", "500");
        let producer = config.create_with_context(Acknowledged).unwrap();
        Self { address: address.into(), topic: format!("{name}-{}", std::process::id()), producer }
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        ClientConfig::new().set("bootstrap.servers", &self.address).create().unwrap()
    }

    /// Writes a message; its offset.
    pub async fn write(&self, partition: i32, payload: &str, account: Option<&str>) -> i64 {
        loop {
            let (waiting, offset) = oneshot::channel();
            let record = BaseRecord::<(), _, _>::with_opaque_to(&self.topic, Box::new(waiting));
            let mut record = record.partition(partition).payload(payload);
            if let Some(account) = account {
                record = record.headers(OwnedHeaders::new().insert(Header { key: "account", value: Some(account) }));
            }
            match self.producer.send(record) {
                Ok(()) => return offset.await.unwrap(),
                // It does not know yet that there is one more.
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::UnknownPartition), _)) => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err((error, _)) => panic!("{error}"),
            }
        }
    }

    /// What the group was told, as Kafka's tools show it.
    fn noted(&self, partition: i32) -> Option<i64> {
        let consumer: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", &self.address).set("group.id", "sendtrail").create().unwrap();
        let mut places = TopicPartitionList::new();
        places.add_partition(&self.topic, partition);
        let noted = consumer.committed_offsets(places, Duration::from_secs(60)).unwrap();
        noted.elements()[0].offset().to_raw().filter(|offset| *offset >= 0)
    }

    /// A server that reads the topic.
    async fn server(&self, settings: &str) -> Server {
        Server::start_with(|config| self.read(config, settings)).await
    }

    /// Has a server read the topic.
    pub fn read(&self, config: &mut Config, settings: &str) {
        let source = format!("topic = {:?}\nbootstrap_servers = {:?}\n{settings}", self.topic, self.address);
        config.sources.kafka = vec![toml::from_str(&source).unwrap()];
    }
}

pub async fn letters(api: &Api) -> Vec<Value> {
    api.rows(&format!("{ADMIN}/dead-letters"), "dead_letters").await.unwrap()
}

async fn check(api: &Api) -> String {
    let health = api.call(http::Method::GET, "/health", &[], "").await.unwrap();
    let checks = health.json()["checks"].clone();
    let well = checks.as_object().unwrap().iter().all(|(name, check)| name == "sources" || check == "ok");
    assert_eq!(health.status == 200, well, "others do not depend on a source: {checks}");
    checks["sources"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn messages_become_events_of_their_accounts_and_what_cannot_be_read_is_kept() {
    let Some(writer) = Writer::new("native", 2).await else { return };
    let server = writer.server("account_header = \"account\"").await;
    let (one, two) = (server.partner("one").await, server.partner("two").await);
    let send = |partner: &Partner| partner.event("Send").to_string();
    writer.write(0, &send(&one), Some(&one.account_id)).await;
    writer.write(1, &format!("[{}, {}]", send(&two), send(&two)), Some(&two.account_id)).await;
    let bad = writer.write(1, r#"{"event_type": "Send"}"#, Some(&two.account_id)).await;
    let strange = writer.write(0, &send(&one), None).await;
    let nobody = "018f2f6e-0000-7000-8000-000000000009";
    let unknown = writer.write(0, &send(&one), Some(nobody)).await;
    let last = writer.write(0, &send(&one), Some(&one.account_id)).await;
    eventually("all is read", async || one.log().await.len() == 2 && two.log().await.len() == 2).await;
    eventually("three letters", async || letters(&server.admin).await.len() == 3).await;

    let found = letters(&server.admin).await;
    let at = |partition: i32, offset: i64| json!({"topic": writer.topic, "partition": partition, "offset": offset});
    let of = |at: Value| found.iter().find(|letter| letter["source"] == at).unwrap();
    assert_eq!(of(at(1, bad))["reason"], "message_id is missing");
    assert_eq!(of(at(0, strange))["reason"], "the header account is missing");
    let orphan = found.iter().find(|letter| letter.get("source").is_none()).unwrap();
    let place = format!("no such account ({}, partition 0, offset {unknown})", writer.topic);
    assert_eq!((&orphan["reason"], &orphan["topic"]), (&json!(place), &json!("sendtrail.intake")));
    let path = |letter: &Value| format!("{ADMIN}/dead-letters/{}/{}", letter["partition"], letter["seq"]);
    let whole = server.admin.get(&path(of(at(1, bad)))).await.unwrap();
    assert_eq!(whole["dead_letter"]["payload_base64"], "eyJldmVudF90eXBlIjogIlNlbmQifQ==", "the message as it was");
    let again =
        server.admin.call(http::Method::POST, &format!("{}/retry", path(of(at(1, bad)))), &[], "").await.unwrap();
    assert_eq!((again.status.as_u16(), &again.json()["error"]), (400, &json!("INVALID_REQUEST")));

    // The group only shows it; metrics do, too.
    assert_eq!(check(&server.admin).await, "ok");
    eventually("the group is told", async || writer.noted(0) == Some(last + 1)).await;
    let lag = format!("sendtrail_source_lag_messages{{source=\"{}\",partition=\"0\"}} 0", writer.topic);
    let read = format!("sendtrail_source_messages_total{{source=\"{}\"}} 6", writer.topic);
    eventually("metrics tell that all is read", async || {
        let metrics = server.admin.call(http::Method::GET, "/metrics", &[], "").await.unwrap();
        let text = String::from_utf8_lossy(&metrics.body).into_owned();
        text.contains(&lag) && text.contains(&read)
    })
    .await;

    // A restart reads nothing again, and goes on where it was.
    let server = server.restart().await;
    let (one, two) = (one.on(&server), two.on(&server));
    writer.write(1, &send(&two), Some(&two.account_id)).await;
    eventually("it goes on", async || two.log().await.len() == 3).await;
    assert_eq!((one.log().await.len(), letters(&server.admin).await.len()), (2, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_mail_servers_log_pauses_its_sender() {
    let Some(writer) = Writer::new("kumomta", 1).await else { return };
    let server = writer.server("format = \"kumomta\"\naccount_field = \"/meta/account\"").await;
    let partner = server
        .partner_with(json!({"name": "mta", "mode": "production", "daily_send_quota": 1_000_000,
            "peak_send_rate_per_second": 1_000_000, "policy": {"minimum_sends": 50}}))
        .await;
    let now = 1_000 * (sendtrail_schemas::time::Millis::wall().0 / 1_000_000);
    let record = |kind: &str, n: usize, class: &str, code: u16| {
        json!({"type": kind, "id": format!("spool-{n}"), "sender": "b@mta.example", "recipient": format!("r{n}@inbox.example"),
            "queue": "inbox.example", "site": "mx", "size": 10, "timestamp": now, "created": now - 1, "num_attempts": 0,
            "response": {"code": code, "content": "said so"}, "bounce_classification": class,
            "meta": {"account": partner.account_id, "campaign": "spring"}, "headers": {}, "reception_protocol": "ESMTP"})
        .to_string()
    };
    for n in 0..60 {
        writer.write(0, &record("Reception", n, "Uncategorized", 250), None).await;
    }
    for n in 0..7 {
        writer.write(0, &record("Bounce", n, "SpamBlock", 554), None).await;
    }
    eventually("all is read", async || partner.log().await.len() >= 67).await;
    assert_eq!(partner.get("/reputation").await["status"], "HEALTHY", "a refusal of spam is no hard bounce");
    for n in 10..17 {
        writer.write(0, &record("Bounce", n, "InvalidRecipient", 550), None).await;
    }
    eventually("it is paused", async || partner.get("/reputation").await["status"] == "PAUSED").await;
    assert_eq!(partner.rows("/suppression", "suppressions").await.len(), 7);
    let (status, refused) = partner.try_send(&["success@inbox.example"]).await;
    assert_eq!((status, &refused["error"]), (403, &json!("SENDING_PAUSED")));
    let log = partner.log().await;
    assert_eq!(log[0]["tags"], json!({"account": partner.account_id, "campaign": "spring"}));
    assert_eq!(log[0]["message_id"], "spool-0");
    // The same form over HTTP.
    let reply = partner.call(http::Method::POST, "/events?format=kumomta", &[], record("Delivery", 1, "", 250)).await;
    assert_eq!((reply.status.as_u16(), &reply.json()["accepted"]), (200, &json!(1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_set_aside_is_read_again_by_the_rules_of_now_once() {
    let Some(writer) = Writer::new("again", 1).await else { return };
    let server = writer.server("account_field = \"/partner\"").await;
    let partner = server.partner("again").await;
    // Nothing but its place tells this open apart.
    let mut open = partner.event("Open");
    open["metadata"] = json!({"partner": partner.account_id});
    writer.write(0, &format!("[{open},{open}]"), None).await;
    eventually("it is set aside", async || letters(&server.admin).await.len() == 1).await;
    let letter = letters(&server.admin).await.remove(0);
    assert!(
        letter["reason"].as_str().unwrap().starts_with("2 of 2 cannot be read; the first: /partner is missing"),
        "{letter}"
    );
    let path = format!("{ADMIN}/dead-letters/{}/{}/retry", letter["partition"], letter["seq"]);
    let mut stopped = server.stop().await;
    stopped.config.sources.kafka[0].account_field = "/metadata/partner".into();
    let server = stopped.start().await;
    let partner = partner.on(&server);
    for _ in 0..2 {
        let again = server.admin.call(http::Method::POST, &path, &[], "").await.unwrap();
        assert_eq!(again.status, 200, "{}", again.json());
    }
    eventually("both are read", async || partner.log().await.len() == 2).await;
    assert_eq!((partner.log().await.len(), letters(&server.admin).await.len()), (2, 1));
    let mut stopped = server.stop().await;
    stopped.config.sources.kafka.clear();
    let server = stopped.start().await;
    let again = server.admin.call(http::Method::POST, &path, &[], "").await.unwrap();
    assert_eq!((again.status.as_u16(), &again.json()["error"]), (404, &json!("NOT_FOUND")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn transactions_are_read_when_they_are_committed_and_their_ends_are_no_loss() {
    let Some(writer) = Writer::new("transactions", 1).await else { return };
    let server = writer.server("account_header = \"account\"").await;
    let partner = server.partner("transactions").await;
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &writer.address).set("transactional.id", &writer.topic);
    let producer: BaseProducer = config.create().unwrap();
    let patience = Duration::from_secs(60);
    producer.init_transactions(patience).unwrap();
    for (count, commit) in [(3, true), (2, false)] {
        producer.begin_transaction().unwrap();
        for _ in 0..count {
            let (event, header) =
                (partner.event("Send").to_string(), Header { key: "account", value: Some(&partner.account_id) });
            let record =
                BaseRecord::<(), _>::to(&writer.topic).payload(&event).headers(OwnedHeaders::new().insert(header));
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        producer.flush(patience).unwrap();
        let ended = if commit { producer.commit_transaction(patience) } else { producer.abort_transaction(patience) };
        ended.unwrap();
    }
    // Three messages, an end, two that were taken back, an end.
    eventually("the group is told of the ends, too", async || writer.noted(0) == Some(7)).await;
    assert_eq!(partner.log().await.len(), 3);
    let stopped = server.stop().await;
    let mut places = TopicPartitionList::new();
    places.add_partition_offset(&writer.topic, 0, Offset::Offset(7)).unwrap();
    writer.admin().delete_records(&places, &AdminOptions::new()).await.unwrap();
    let server = stopped.start().await;
    let partner = partner.on(&server);
    writer.write(0, &partner.event("Open").to_string(), Some(&partner.account_id)).await;
    eventually("it goes on", async || partner.log().await.len() == 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_source_at_rest_notices_that_its_broker_is_back() {
    let Some(broker) = sendtrail_test_servers::Server::kafka() else { return };
    let writer = Writer::on(broker.address(), "rest");
    writer.make(1).await;
    let timeouts = r#"properties = ["socket.timeout.ms=2000", "socket.connection.setup.timeout.ms=2000"]"#;
    let server = writer.server(&format!("account_header = \"account\"\n{timeouts}")).await;
    let partner = server.partner("rest").await;
    eventually("it begins", async || check(&server.admin).await == "ok").await;
    broker.signal("-STOP");
    eventually("it tells", async || check(&server.admin).await != "ok").await;
    broker.signal("-CONT");
    eventually("it gets on without a message", async || check(&server.admin).await == "ok").await;
    writer.write(0, &partner.event("Send").to_string(), Some(&partner.account_id)).await;
    eventually("it reads", async || partner.log().await.len() == 1).await;
}

/// Reads with kills at any moment; every message must have had its effect once.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_message_is_read_once_whenever_the_server_is_killed() {
    const MESSAGES: usize = 9_000;
    let Some(writer) = Writer::new("kills", 3).await else { return };
    let folder = tempfile::TempDir::new().unwrap();
    let namespace = format!("source-kills-{}", std::process::id());
    let mut settings = vec![("SENDTRAIL_ADMIN_KEY", ADMIN_KEY), ("SENDTRAIL__STATE__CHECKPOINT_MS", "300")];
    if std::env::var("SENDTRAIL_TEST_LOG").is_ok_and(|log| log == "kafka") {
        settings.extend(super::kafka::environment(&writer.address, &namespace));
    }
    let process = Process::start(folder.path(), &settings);
    let admin = Api::new(&process.base, ADMIN_KEY);
    let body = json!({"name": "kill", "contact_email": "a@b.example", "policy": {"minimum_sends": 1_000_000_000}});
    let account = admin.post(&format!("{ADMIN}/accounts"), &body).await.unwrap();
    let account_id = account["account"]["account_id"].as_str().unwrap().to_owned();
    let key = admin.post(&format!("{ADMIN}/accounts/{account_id}/keys"), &json!({})).await.unwrap();
    let key = key["key"]["api_key"].as_str().unwrap().to_owned();
    drop(process);

    // Each third cannot be read: dead letters know no duplicates, so one that is read twice is there twice.
    let sources =
        format!("[{{topic={:?},bootstrap_servers={:?},account={account_id:?}}}]", writer.topic, writer.address);
    settings.push(("SENDTRAIL__SOURCES__KAFKA", sources.as_str()));
    let mut process = Process::start(folder.path(), &settings);
    let mut random = StdRng::seed_from_u64(11);
    let mut bad: BTreeMap<(i64, i64), usize> = BTreeMap::new();
    for part in 0..6 {
        let writes = (0..MESSAGES / 6).map(|n| {
            let (partition, bad) = ((n % 3) as i32, n % 9 < 3);
            let n = part * MESSAGES / 6 + n;
            let text = if bad { format!("not JSON {n}") } else { event("Open", &format!("m{n}")).to_string() };
            let writer = &writer;
            async move { (bad, partition, writer.write(partition, &text, None).await) }
        });
        for (is_bad, partition, offset) in futures::future::join_all(writes).await {
            if is_bad {
                bad.insert((partition.into(), offset), 0);
            }
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(20..700))).await;
        process.signal("-KILL");
        process.wait();
        process = Process::start(folder.path(), &settings);
    }
    let (admin, api) = (Api::new(&process.base, ADMIN_KEY), Api::new(&process.base, &key));
    let opens = async || api.rows(&format!("{PARTNER}/events"), "events").await.unwrap();
    let wanted = MESSAGES - bad.len();
    eventually("all is read", async || letters(&admin).await.len() >= bad.len() && opens().await.len() >= wanted).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut seen: HashMap<String, usize> = HashMap::new();
    for event in opens().await {
        *seen.entry(event["message_id"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    assert_eq!((seen.len(), seen.values().max()), (wanted, Some(&1)));
    for letter in letters(&admin).await {
        let place = (letter["source"]["partition"].as_i64().unwrap(), letter["source"]["offset"].as_i64().unwrap());
        *bad.get_mut(&place).expect("it is one of those that cannot be read") += 1;
    }
    let other: Vec<_> = bad.iter().filter(|(_, count)| **count != 1).collect();
    assert!(other.is_empty(), "of {}: {other:?}", bad.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_source_that_does_not_get_on_says_why() {
    let Some(writer) = Writer::unmade("troubled") else { return };
    let server = writer.server("account_header = \"account\"\nstart = \"latest\"").await;
    let partner = server.partner("troubled").await;
    eventually("it is missing", async || check(&server.admin).await.contains("there is no topic")).await;
    writer.make(1).await;
    let send = || partner.event("Send").to_string();
    let account = Some(partner.account_id.as_str());
    writer.write(0, &send(), account).await;
    eventually("it begins", async || check(&server.admin).await == "ok").await;
    // It began with what came after it first saw the topic, which is known once what comes now is read.
    let marker = partner.event("Send");
    writer.write(0, &marker.to_string(), account).await;
    let is_read = async || partner.log().await.iter().any(|event| event["message_id"] == marker["message_id"]);
    eventually("it reads", is_read).await;
    let begun = partner.log().await.len() - 1;

    // A partition that is added is read from its first message.
    writer.admin().create_partitions([&NewPartitions::new(&writer.topic, 2)], &AdminOptions::new()).await.unwrap();
    let mut last = writer.write(1, &send(), account).await;
    eventually("the new partition is read", async || partner.log().await.len() == begun + 2).await;

    // Messages that are deleted unread stop it.
    let stopped = server.stop().await;
    for _ in 0..3 {
        last = writer.write(1, &send(), account).await;
    }
    let mut places = TopicPartitionList::new();
    places.add_partition_offset(&writer.topic, 1, Offset::Offset(last)).unwrap();
    writer.admin().delete_records(&places, &AdminOptions::new()).await.unwrap();
    let mut stopped = {
        let server = stopped.start().await;
        eventually("it stops", async || check(&server.admin).await.contains("up to 2 messages were deleted unread"))
            .await;
        server.stop().await
    };
    stopped.config.sources.kafka[0].accept_loss = true;
    let server = stopped.start().await;
    let partner = partner.on(&server);
    eventually("it goes on with what is left", async || partner.log().await.len() == begun + 3).await;

    // Another topic of the same name is not the same.
    let mut stopped = server.stop().await;
    writer.admin().delete_topics(&[&writer.topic], &AdminOptions::new()).await.unwrap();
    let remade = async || {
        let topic = NewTopic::new(&writer.topic, 2, TopicReplication::Fixed(1));
        writer.admin().create_topics([&topic], &AdminOptions::new()).await.unwrap()[0].is_ok()
    };
    eventually("it is made again", remade).await;
    stopped = {
        let server = stopped.start().await;
        eventually("it is another", async || check(&server.admin).await.contains("it is another topic by now")).await;
        server.stop().await
    };
    stopped.config.sources.kafka[0].name = "second".into();
    writer.write(0, &send(), account).await;
    let server = stopped.start().await;
    let partner = partner.on(&server);
    eventually("it begins", async || check(&server.admin).await == "ok").await;
    writer.write(0, &send(), account).await;
    eventually("under its new name it is read", async || partner.log().await.len() >= begun + 4).await;
}
