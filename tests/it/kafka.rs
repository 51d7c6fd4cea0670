//! The same program with its log on a real Kafka broker. `SENDTRAIL_TEST_LOG=kafka` runs the scenarios of others there, too (`docs/adr/0030-suite.md`).

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use http::Method;
use rdkafka::Message;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use sendtrail::backbone::Backbone;
use sendtrail_eventlog::Batch;
use sendtrail_schemas::codec;
use sendtrail_schemas::event::Event;
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::topic::{Topic, TopicPartition, partition_of};

use super::binary::{ADMIN_KEY, PROGRAM, Process, refused};
use super::crash::survive_kills;
use super::support::*;

async fn start() -> Option<Server> {
    sendtrail_test_servers::kafka()?;
    let start = Server::start_with(|config| {
        config.log.simulated = true;
        assert!(use_kafka(config), "there was a broker");
    });
    Some(start.await)
}

/// What an independent consumer finds on a topic: partition, key, value.
pub fn consume(address: &str, topic: &str, partitions: i32) -> Vec<(i32, Vec<u8>, Vec<u8>)> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", address)
        .set("group.id", "an auditor")
        .set("enable.partition.eof", "true")
        .create()
        .unwrap();
    let mut all = TopicPartitionList::new();
    (0..partitions).for_each(|partition| all.add_partition_offset(topic, partition, Offset::Beginning).unwrap());
    consumer.assign(&all).unwrap();
    let mut found = Vec::new();
    let mut ended = 0;
    while ended < partitions {
        match consumer.poll(Duration::from_secs(60)).expect("the broker answers") {
            Ok(message) => found.push((
                message.partition(),
                message.key().unwrap_or_default().to_vec(),
                message.payload().unwrap_or_default().to_vec(),
            )),
            Err(rdkafka::error::KafkaError::PartitionEOF(_)) => ended += 1,
            Err(error) => panic!("{error}"),
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn events_lie_on_topics_numbered_without_holes_and_the_pause_is_exact() {
    let Some(server) = start().await else { return };
    let receiver = Receiver::start_ok().await;
    let partner = server
        .partner_with(json!({"name": "topics", "mode": "production", "daily_send_quota": 100_000_000,
            "peak_send_rate_per_second": 1_000_000, "policy": {"minimum_sends": 100}}))
        .await;
    let set = partner.set(json!({"name": "set"})).await;
    partner.destination(&set, json!({"webhook_url": receiver.base, "dialect": "standard"})).await;
    let mut told: Vec<Value> = (0..400).map(|_| partner.event("Send")).collect();
    told[7]["configuration_set_name"] = "set".into();
    partner.stream(&told).await;
    partner.stream(&told).await;
    assert_eq!(partner.try_send(&["success@inbox.example"]).await.0, 200);
    partner.stream(&(0..60).map(|_| partner.event("HardBounce")).collect::<Vec<_>>()).await;
    let (status, refused) = partner.try_send(&["success@inbox.example"]).await;
    assert_eq!((status, &refused["error"]), (403, &json!("SENDING_PAUSED")));
    receiver.wait("/", 1).await;
    let log = partner.everything().await;
    let stats = partner.get("/stats?from=2026-05-01&to=2026-05-02").await;
    assert_eq!(stats["totals"]["sends"], 401);

    // A restart steps nothing twice and shows the same.
    let server = server.restart().await;
    let partner = partner.on(&server);
    assert_eq!(partner.everything().await.len(), log.len());
    assert_eq!(partner.get("/stats?from=2026-05-01&to=2026-05-02").await["totals"], stats["totals"]);
    assert_eq!(partner.try_send(&["success@inbox.example"]).await.0, 403);

    let kafka = &server.config.kafka;
    let topic = format!("{}.simulated.events", kafka.namespace);
    let found = consume(&kafka.bootstrap_servers, &topic, 3);
    let account = AccountId(partner.account_id.parse().unwrap());
    let home = partition_of(account, 3) as i32;
    let mut next: HashMap<i32, u64> = HashMap::new();
    let mut messages = HashSet::new();
    for (partition, key, value) in found {
        let event: Event = codec::decode(&value).unwrap();
        let next = next.entry(partition).or_default();
        assert_eq!(
            (event.seq, key.as_slice()),
            (*next, &next.to_be_bytes()[..]),
            "the key is the number, without holes"
        );
        *next += 1;
        if event.account() == account {
            assert_eq!(partition, home, "an account has one partition, that of Kafka's own hash");
            messages.insert(event.seq);
        }
    }
    let shown: HashSet<u64> = log.iter().map(|event| event["seq"].as_u64().unwrap()).collect();
    assert_eq!(messages, shown, "what /events shows is what the topic has");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_acknowledged_event_survives_a_kill_on_kafka() {
    let Some(address) = sendtrail_test_servers::kafka() else { return };
    let namespace = format!("kills-{}", std::process::id());
    survive_kills(&environment(address, &namespace), 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_broker_that_is_away_is_503_and_nothing_is_lost() {
    let Some(broker) = sendtrail_test_servers::Server::kafka() else { return };
    let server = Server::start_with(|config| {
        config.log.simulated = true;
        config.log.partitions = 1;
        config.log.backend = sendtrail::config::Backend::Kafka;
        config.kafka.bootstrap_servers = broker.address().into();
        config.kafka.replication = 1;
        config.kafka.allow_single_replica = true;
        config.kafka.properties =
            vec!["socket.timeout.ms=2000".into(), "socket.connection.setup.timeout.ms=2000".into()];
        // As long as a broker may stall that nobody stopped.
        config.sending.decision_timeout_ms = 20_000;
    })
    .await;
    let partner = server.partner("away").await;
    partner.stream(&[partner.event("Send")]).await;
    broker.signal("-STOP");
    let (status, reply) = partner.try_send(&["success@inbox.example"]).await;
    assert_eq!(status, 503, "the outcome is unknown: {reply}");
    let health = async || server.admin.call(Method::GET, "/health", &[], "").await.unwrap();
    eventually("health tells", async || health().await.status == 503).await;
    let told = health().await.json()["checks"]["log"].as_str().unwrap().to_owned();
    assert!(told.contains("Kafka"), "{told}");
    let reply = partner.call(Method::POST, "/events", &[], partner.event("Send").to_string()).await;
    assert_eq!(reply.status, 503, "refused at once");
    broker.signal("-CONT");
    eventually("health is back", async || health().await.status == 200).await;
    eventually("events are taken", async || {
        let reply = partner.call(Method::POST, "/events", &[], partner.event("Delivery").to_string()).await;
        reply.status == 200
    })
    .await;
    let log = partner.log().await;
    let sends = log.iter().filter(|event| event["event_type"] == "Send").count();
    // The send that was told to be unknown had reached the client's queue.
    assert_eq!(sends, 2, "{log:?}");
}

#[tokio::test]
async fn topics_are_planned_and_made_by_command() {
    let Some(address) = sendtrail_test_servers::kafka() else { return };
    let namespace = format!("commands-{}", std::process::id());
    let run = |command: &str, further: &[(&str, &str)]| {
        let output = std::process::Command::new(PROGRAM)
            .args(["topics", command])
            .env("SENDTRAIL__KAFKA__BOOTSTRAP_SERVERS", address)
            .env("SENDTRAIL__KAFKA__NAMESPACE", &namespace)
            .env("SENDTRAIL__KAFKA__REPLICATION", "1")
            .envs(further.iter().copied())
            .output()
            .unwrap();
        let told = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(told).unwrap())
    };
    let single = [("SENDTRAIL__KAFKA__ALLOW_SINGLE_REPLICA", "true")];
    let (done, told) = run("apply", &[]);
    assert!(!done && told.contains("kafka.replication is 1"), "{told}");
    let (done, told) = run("plan", &single);
    assert!(done && told.matches("to be made").count() == 9, "{told}");
    let (done, told) = run("apply", &single);
    assert!(done && told.matches(": made").count() == 9, "{told}");
    let (done, told) = run("plan", &single);
    assert!(done && told.matches("as it must be").count() == 9, "{told}");
    let (done, told) = run("plan", &[("SENDTRAIL__LOG__PARTITIONS", "9"), single[0]]);
    assert!(!done && told.contains("set log.partitions to 4"), "{told}");
}

/// Settings of a server on a broker, as an operator's environment has them.
pub fn environment<'a>(address: &'a str, namespace: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![
        ("SENDTRAIL_ADMIN_KEY", ADMIN_KEY),
        ("SENDTRAIL__LOG__BACKEND", "kafka"),
        ("SENDTRAIL__KAFKA__BOOTSTRAP_SERVERS", address),
        ("SENDTRAIL__KAFKA__NAMESPACE", namespace),
        ("SENDTRAIL__KAFKA__REPLICATION", "1"),
        ("SENDTRAIL__KAFKA__ALLOW_SINGLE_REPLICA", "true"),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_topic_that_lost_what_was_not_applied_halts_its_partition_and_says_what_to_do() {
    let Some(server) = start().await else { return };
    let (partner, other) = (server.partner("truncated").await, server.partner("whole").await);
    partner.stream(&[partner.event("Send")]).await;
    let stopped = server.stop().await;
    // Told while nobody applies it, and taken away by the broker before anybody does.
    let account = AccountId(partner.account_id.parse().unwrap());
    let home = partition_of(account, 3);
    let log = Backbone::open(&stopped.config).await.unwrap();
    let mut batch = Batch::new();
    (0..3).for_each(|_| batch.push_bytes(b"whatever it is"));
    let first = log.log().append(TopicPartition::new(Topic::Intake, home), batch).await.unwrap();
    tokio::task::spawn_blocking(move || log.close()).await.unwrap();
    let kafka = &stopped.config.kafka;
    let admin: AdminClient<_> =
        ClientConfig::new().set("bootstrap.servers", &kafka.bootstrap_servers).create().unwrap();
    let mut gone = TopicPartitionList::new();
    let topic = format!("{}.simulated.intake", kafka.namespace);
    gone.add_partition_offset(&topic, home as i32, Offset::Offset(first as i64 + 2)).unwrap();
    admin.delete_records(&gone, &AdminOptions::new()).await.unwrap();

    let server = stopped.start().await;
    let (partner, other) = (partner.on(&server), other.on(&server));
    let health = async || server.admin.call(Method::GET, "/health", &[], "").await.unwrap();
    eventually("it says what is wrong, and what to do", async || {
        let reply = health().await;
        let told = reply.json().to_string();
        reply.status == 503 && told.contains("older than the log reaches back") && told.contains("newer backup")
    })
    .await;
    let reply = partner.call(Method::POST, "/events", &[], partner.event("Send").to_string()).await;
    assert_eq!(reply.status, 503, "nothing more is taken that would not be applied");
    assert!(reply.headers.contains_key("retry-after"));
    if partition_of(AccountId(other.account_id.parse().unwrap()), 3) != home {
        other.stream(&[other.event("Send")]).await;
        assert_eq!(other.log().await.len(), 1, "the other partitions go on");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_loses_the_log_ends_and_a_folder_without_its_state_is_refused() {
    let Some(address) = sendtrail_test_servers::kafka() else { return };
    let namespace = format!("takeover-{}", std::process::id());
    let mut settings = environment(address, &namespace);
    settings.push(("SENDTRAIL__KAFKA__PROPERTIES", r#"["session.timeout.ms=6000"]"#));
    let folders = tempfile::TempDir::new().unwrap();
    let (own, copy, other) = (folders.path().join("own"), folders.path().join("copy"), folders.path().join("other"));
    let mut process = Process::start(&own, &settings);
    process.signal("-TERM");
    assert!(process.wait().success());
    assert!(std::process::Command::new("cp").arg("-r").arg(&own).arg(&copy).status().unwrap().success());

    // A copy on the same machine is taken for the same server, come back.
    let mut first = Process::start(&own, &settings);
    let second = Process::start(&copy, &settings);
    assert_eq!(first.wait().code(), Some(1), "it ends by itself");
    let api = sendtrail::client::Api::new(&second.base, "");
    eventually("the other one goes on", async || api.get("/health").await.is_ok_and(|health| health["status"] == "ok"))
        .await;
    drop(second);

    let told = refused(&other, &settings).await;
    assert!(told.contains("the topics hold another server's log"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_idle_server_notices_that_the_broker_is_back_and_stops_while_it_is_away() {
    let Some(broker) = sendtrail_test_servers::Server::kafka() else { return };
    let mut settings = environment(broker.address(), "idle");
    let timeouts = r#"["socket.timeout.ms=2000","socket.connection.setup.timeout.ms=2000"]"#;
    settings.push(("SENDTRAIL__KAFKA__PROPERTIES", timeouts));
    let folder = tempfile::TempDir::new().unwrap();
    let mut process = Process::start(folder.path(), &settings);
    let api = sendtrail::client::Api::new(&process.base, "");
    let status = async || api.call(Method::GET, "/health", &[], "").await.unwrap().status;
    broker.signal("-STOP");
    eventually("health tells", async || status().await == 503).await;
    broker.signal("-CONT");
    eventually("health is back without a request", async || status().await == 200).await;
    broker.signal("-STOP");
    process.signal("-TERM");
    // The broker stays away: one that waited for it would never end.
    eventually("it ends", async || process.has_ended()).await;
    broker.signal("-CONT");
}
