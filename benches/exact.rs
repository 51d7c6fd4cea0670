//! From the intake topic to exact state: one processor on a real broker, beside Kafka Streams on the same records. Then how
//! soon a processor is back. Broker and processor share the cores.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sendtrail::app::App;
use sendtrail::config::{Backend, Config};
use sendtrail::roles::{Role, Roles};
use sendtrail::telemetry;
use sendtrail_eventlog::kafka::{KafkaLog, Options};
use sendtrail_eventlog::{Batch, EventLog};
use sendtrail_schemas::event::EventFact;
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::record::{AccountFields, Body, Change, Command as Asked, Record};
use sendtrail_schemas::topic::{Topic, TopicPartition, partition_of};
use tempfile::TempDir;
use uuid::Uuid;

use crate::rate;

const EVENTS: u64 = 1_000_000;
const ACCOUNTS: u64 = 8;
const BATCH: u64 = 500;
/// Batches on their way at once.
const AT_ONCE: usize = 16;

pub fn run() {
    let Some(address) = sendtrail_test_servers::kafka() else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    for round in 0..3 {
        runtime.block_on(async {
            let config = config(address, &format!("exact-{round}"), 4);
            fill(&config, ACCOUNTS, EVENTS).await;
            apply(config.clone()).await;
            rival(address, &config, &[], "Kafka Streams, exactly_once_v2: 336 buckets");
            rival(address, &config, &["whole"], "the same, copies passed over, an event of each");
        });
    }
    runtime.block_on(recover(address));
}

/// A processor on topics of its own.
fn config(address: &str, name: &str, partitions: u32) -> Config {
    let mut config = Config::defaults();
    config.log.backend = Backend::Kafka;
    config.log.partitions = partitions;
    config.kafka.bootstrap_servers = address.into();
    config.kafka.namespace = format!("{name}-{}", std::process::id());
    config.kafka.replication = 1;
    config.kafka.allow_single_replica = true;
    config.server.listen = "127.0.0.1:0".into();
    config.server.roles = Roles::of([Role::Processor]);
    config
}

fn account(n: u64) -> AccountId {
    AccountId(Uuid::from_u128(u128::from(n) + 1))
}

/// Writes accounts and their events into the intake, while nobody applies them.
async fn fill(config: &Config, accounts: u64, events: u64) {
    let options =
        Options { parts: Vec::new(), shared: Vec::new(), topics: vec![Topic::Intake], ..config.kafka_options() };
    let log = tokio::task::spawn_blocking(|| KafkaLog::open(options)).await.unwrap().unwrap();
    let partitions = config.log.partitions;
    let record = |n: u64, body| Record {
        version: 1,
        account_id: account(n % accounts).bytes().to_vec(),
        body: Some(body),
        ..Record::default()
    };
    let create = (0..accounts).map(|n| {
        let fields = AccountFields { name: Some(format!("p{n}")), mode: Some(1), ..AccountFields::default() };
        record(n, Body::Command(Asked { change: Some(Change::CreateAccount(fields)) }))
    });
    let facts = (0..events).map(|n| {
        record(
            n,
            Body::Fact(EventFact {
                kind: EventType::Send as i32,
                message_id: format!("message-{n:010}"),
                recipient: format!("user{n}@mail{}.example", n % 40),
                from: Some("News <news@acme.example>".into()),
                ..EventFact::default()
            }),
        )
    });
    let mut batches: Vec<Batch> = (0..partitions).map(|_| Batch::new()).collect();
    let mut on_way = Vec::new();
    for (n, record) in create.chain(facts).enumerate() {
        let account = record.account().unwrap();
        let to = partition_of(account, partitions);
        let batch = &mut batches[to as usize];
        batch.push(&record);
        if batch.len() as u64 == BATCH || n as u64 + 1 == accounts {
            let full = std::mem::replace(batch, Batch::new());
            on_way.push(log.append(TopicPartition::new(Topic::Intake, to), full));
        }
        if on_way.len() == AT_ONCE {
            futures::future::try_join_all(std::mem::take(&mut on_way)).await.unwrap();
        }
    }
    let rest = batches.into_iter().enumerate().filter(|(_, batch)| !batch.is_empty());
    on_way.extend(rest.map(|(to, batch)| log.append(TopicPartition::new(Topic::Intake, to as u32), batch)));
    futures::future::try_join_all(on_way).await.unwrap();
    tokio::task::spawn_blocking(move || log.close()).await.unwrap();
}

/// Applies everything: windows, duplicates, events on their topic, checkpoints.
async fn apply(mut config: Config) {
    let folder = TempDir::new().unwrap();
    config.data.dir = folder.path().to_path_buf();
    let metrics = telemetry::metrics().unwrap();
    let applied = move || {
        let text = metrics.render();
        let line = text.lines().find(|line| line.starts_with("sendtrail_events_total ")).unwrap_or("0 0");
        line.rsplit_once(' ').map_or(0, |(_, value)| value.parse::<f64>().unwrap() as u64)
    };
    let before = applied();
    let starting = tokio::spawn(async move { App::start(&config).await.unwrap() });
    while applied() == before {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (begun, first) = (Instant::now(), applied());
    let app = starting.await.unwrap();
    // It listens once everything is applied that was in the log.
    rate("intake topic, applied, events durable on their topic", applied() - first, begun.elapsed());
    app.stop().await;
}

/// Kafka Streams on the same topic, with as many threads as there are cores.
fn rival(address: &str, config: &Config, further: &[&str], what: &str) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/rivals/kafka-streams/run");
    let topic = config.kafka_options().topic(Topic::Intake);
    let output = Command::new(script).args([address, &topic, &EVENTS.to_string(), "2"]).args(further).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    // Maven may have said something before.
    match told.lines().last().unwrap_or_default().trim().parse::<f64>() {
        Ok(told) => println!("  {what:<58} {told:>12.0} /s"),
        Err(_) => println!("  {what}: it does not run here: {told}{}", String::from_utf8_lossy(&output.stderr)),
    }
}

/// One partition with many accounts: a processor that is killed, on its own folder and without one.
async fn recover(address: &str) {
    const ACCOUNTS: u64 = 100_000;
    const EVENTS: u64 = 500_000;
    let folder = TempDir::new().unwrap();
    let mut config = config(address, "recover", 1);
    config.secrets.key = "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2U=".into();
    config.state.snapshots = folder.path().join("snapshots").display().to_string();
    config.state.snapshot_seconds = 2;
    let config = Arc::new(config);
    fill(&config, ACCOUNTS, EVENTS).await;
    let file = folder.path().join("settings.toml");
    // The program reads what is shown, but for secrets.
    std::fs::write(&file, config.show()).unwrap();
    let start = |name: &str, session: &str| {
        let begun = Instant::now();
        let mut process = Command::new(env!("CARGO_BIN_EXE_sendtrail"))
            .args(["serve", "--config"])
            .arg(&file)
            .arg("--data")
            .arg(folder.path().join(name))
            .env("SENDTRAIL__SECRETS__KEY", &config.secrets.key)
            .env("SENDTRAIL__KAFKA__PROPERTIES", format!("[\"session.timeout.ms={session}\"]"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        lines.find(|line| line.as_ref().is_ok_and(|line| line.starts_with("listening"))).unwrap().unwrap();
        (process, begun.elapsed())
    };
    let kill = |mut process: Child| {
        process.kill().unwrap();
        process.wait().unwrap();
    };
    let (process, took) = start("one", "6000");
    println!("  {:<58} {:>10.2} s", "from the beginning of the log", took.as_secs_f64());
    std::thread::sleep(Duration::from_secs(10));
    kill(process);
    for _ in 0..3 {
        let (process, took) = start("one", "6000");
        println!("  {:<58} {:>10.2} s", "killed, on its own folder", took.as_secs_f64());
        kill(process);
    }
    for round in 0..3 {
        // The session of the one before ends.
        std::thread::sleep(Duration::from_secs(8));
        let (process, took) = start(&format!("other-{round}"), "6000");
        println!("  {:<58} {:>10.2} s", "killed, elsewhere from its snapshot, its session over", took.as_secs_f64());
        kill(process);
    }
}
