//! HTTP intake until Kafka has acknowledged, by the write side alone, beside a bare axum server that hands each line to a
//! producer with the same settings. Broker, servers and clients share the cores.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::routing::post;
use bytes::Bytes;
use rdkafka::client::ClientContext;
use rdkafka::producer::{BaseRecord, DeliveryResult, ProducerContext, ThreadedProducer};
use sendtrail::client::Api;
use sendtrail_eventlog::kafka::{KafkaLog, Options};
use sendtrail_eventlog::objects::Place;
use sendtrail_eventlog::{Blobs, Clock, LocalReplies, Pulse};
use sendtrail_ingest::{
    DeadLetters, Error, Ingest, LetterPage, Limits, Parts, Sampled, Samples, SuppressionQuery, Suppressions,
};
use sendtrail_schemas::account::{AccountConfig, ApiKey, Suppression};
use sendtrail_schemas::destination::Destination;
use sendtrail_schemas::directory::{Directory, hash_key};
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::mail::DeadLetter;
use sendtrail_schemas::secret::Vault;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use uuid::Uuid;

const SECONDS: u64 = 6;
const CLIENTS: u64 = 8;
const BATCH: u64 = 500;
const PARTITIONS: u32 = 4;

/// Nothing is asked of these here.
struct Nothing;

impl Suppressions for Nothing {
    fn list(&self, _: AccountId, _: &SuppressionQuery) -> Result<Vec<Suppression>, Error> {
        Ok(Vec::new())
    }

    fn get(&self, _: AccountId, _: &str) -> Result<Option<Suppression>, Error> {
        Ok(None)
    }
}

#[async_trait::async_trait]
impl DeadLetters for Nothing {
    async fn list(&self, _: (u32, u64), _: usize, _: usize) -> Result<LetterPage, Error> {
        Ok(LetterPage::default())
    }

    async fn get(&self, _: u32, _: u64) -> Result<Option<DeadLetter>, Error> {
        Ok(None)
    }
}

#[async_trait::async_trait]
impl Samples for Nothing {
    async fn post(&self, _: &AccountConfig, _: &Destination, _: EventType) -> Option<Sampled> {
        None
    }

    fn refusal(&self, _: &url::Url) -> Option<String> {
        None
    }
}

pub fn run() {
    let Some(address) = sendtrail_test_servers::kafka() else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let folder = tempfile::TempDir::new().unwrap();
    let options = Options {
        namespace: format!("intake-{}", std::process::id()),
        partitions: PARTITIONS,
        replication: 1,
        allow_single_replica: true,
        properties: [("bootstrap.servers".to_owned(), address.to_owned())].into(),
        ..Options::default()
    };
    let log = Arc::new(KafkaLog::open(options.clone()).unwrap());
    let directory = Arc::new(Directory::default());
    let keys: Vec<String> = (0..CLIENTS).map(|n| publish(&directory, n)).collect();
    let ingest = Ingest::new(Parts {
        log,
        replies: Arc::new(LocalReplies::new(1)),
        directory,
        pulses: (0..PARTITIONS).map(|_| Arc::new(Pulse::default())).collect(),
        blobs: Blobs::open(Place::from(folder.path()).join("blobs")).unwrap(),
        vault: Vault::new(&[7; 32]),
        clock: Clock::wall(),
        suppressions: Arc::new(Nothing),
        dead_letters: Arc::new(Nothing),
        samples: Arc::new(Nothing),
        sources: HashMap::new(),
        admin_key_hash: [0; 32],
        limits: Limits {
            requests_per_second: 0,
            max_lag: Duration::from_secs(1),
            decision_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(10),
            max_body_bytes: 16 << 20,
            max_events: 10_000,
            mail_domain: String::new(),
            dkim_selector: String::new(),
            inline_bytes: 1 << 16,
        },
    });
    let ours = Router::new()
        .merge(Router::from(sendtrail_ingest::partner_routes()).with_state(ingest.clone()))
        .layer(from_fn_with_state(ingest.clone(), sendtrail_ingest::auth::partner));
    let bare = Router::new().route("/events", post(produce)).with_state(Bare::new(address, &options));
    runtime.block_on(async {
        let (ours, bare) = (serve(ours).await, serve(bare).await);
        // The broker is quicker from round to round.
        for _ in 0..6 {
            stream("checked, encoded, acknowledged and read by the tail", &ours, &keys).await;
            stream("bare: split into lines and acknowledged", &bare, &keys).await;
        }
    });
}

fn publish(directory: &Directory, n: u64) -> String {
    let key = format!("pk_live_{n:056}");
    let account_id = Uuid::from_u128(u128::from(n) + 1).as_bytes().to_vec();
    let api_key = ApiKey {
        key_id: Uuid::from_u128(u128::from(n) + 100).as_bytes().to_vec(),
        hash: hash_key(&key).to_vec(),
        last_used_at: Some(i64::MAX),
        ..ApiKey::default()
    };
    directory.publish(&AccountConfig { account_id, version: 1, keys: vec![api_key], ..AccountConfig::default() });
    key
}

async fn serve(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    base
}

/// All clients at once, batch after batch.
async fn stream(what: &str, base: &str, keys: &[String]) {
    let bodies: Vec<Bytes> =
        (0..CLIENTS).map(|n| (0..BATCH).map(|at| crate::door::line(n, at)).collect::<String>().into()).collect();
    let accepted = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    let until = begun + Duration::from_secs(SECONDS);
    let mut tasks = tokio::task::JoinSet::new();
    for (key, body) in keys.iter().zip(bodies) {
        let (api, accepted) = (Api::new(base, key), accepted.clone());
        tasks.spawn(async move {
            while Instant::now() < until {
                let headers = [("content-type", "application/x-ndjson")];
                let reply = api.call(http::Method::POST, "/events", &headers, body.clone()).await.unwrap();
                if reply.status == 200 {
                    accepted.fetch_add(BATCH, Ordering::Relaxed);
                } else {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        });
    }
    tasks.join_all().await;
    crate::rate(what, accepted.load(Ordering::Relaxed), begun.elapsed());
}

/// What waits for the last acknowledgement of a batch.
struct Counter {
    left: AtomicUsize,
    done: parking_lot::Mutex<Option<oneshot::Sender<()>>>,
}

struct Acknowledging;

impl ClientContext for Acknowledging {}

impl ProducerContext for Acknowledging {
    type DeliveryOpaque = Arc<Counter>;

    fn delivery(&self, result: &DeliveryResult<'_>, counter: Arc<Counter>) {
        assert!(result.is_ok());
        if counter.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            let done = counter.done.lock().take();
            done.unwrap().send(()).unwrap();
        }
    }
}

#[derive(Clone)]
struct Bare {
    producer: Arc<ThreadedProducer<Acknowledging>>,
    topic: Arc<str>,
}

impl Bare {
    fn new(address: &str, options: &Options) -> Self {
        let producer = crate::bare::producer(address).create_with_context(Acknowledging).unwrap();
        let topic = options.topic(sendtrail_schemas::topic::Topic::Mail).into();
        Self { producer: Arc::new(producer), topic }
    }
}

async fn produce(State(bare): State<Bare>, body: Bytes) -> StatusCode {
    let lines: Vec<&[u8]> = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
    let (done, wait) = oneshot::channel();
    let left = AtomicUsize::new(lines.len());
    let counter = Arc::new(Counter { left, done: parking_lot::Mutex::new(Some(done)) });
    for line in lines {
        let record = BaseRecord::<(), _, _>::with_opaque_to(&bare.topic, counter.clone());
        bare.producer.send(record.payload(line)).map_err(|(error, _)| error).unwrap();
    }
    wait.await.unwrap();
    StatusCode::OK
}
