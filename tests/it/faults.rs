//! A server that is killed again and again, at random moments and at named points, under traffic of every kind; in the end
//! everything equals a plain recount of what was acknowledged.
//!
//! `SENDTRAIL_CRASH_SEEDS=500` runs so many seeds (20 by default), `SENDTRAIL_CRASH_SEED=17` begins with that one. A seed that fails
//! is printed, and fails again.

mod broker;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use http::Method;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sendtrail::client::{Api, Reply};
use sendtrail_eventlog::failpoint::POINTS;
use sendtrail_processor::archive::{EVENTS, Table, read_file};
use sendtrail_schemas::columns::read_events;

use super::binary::{ADMIN_KEY, Process};
use super::support::*;

/// What an account's client does before it is satisfied.
const STEPS: usize = 120;
/// How often a server is ended.
const ENDS: usize = 4;
/// Seeds at once.
const TOGETHER: usize = 3;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whatever_ends_it_when_everything_is_there_once() {
    let first = number("SENDTRAIL_CRASH_SEED", 0);
    let count = if std::env::var_os("SENDTRAIL_CRASH_SEED").is_some() { 1 } else { 20 };
    run_seeds(first, number("SENDTRAIL_CRASH_SEEDS", count), &|_| Vec::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_same_on_kafka_and_with_clickhouse() {
    let (Some(kafka), Some(clickhouse)) = (sendtrail_test_servers::kafka(), sendtrail_test_servers::clickhouse())
    else {
        return;
    };
    let first = number("SENDTRAIL_CRASH_SEED", 1_000);
    run_seeds(first, number("SENDTRAIL_CRASH_SEEDS_KAFKA", 3), &|seed| {
        let name = format!("faults-{}-{seed}", std::process::id());
        let url = format!("http://{clickhouse}");
        let database = name.replace('-', "_");
        let mut settings = super::kafka::environment(kafka, &name);
        settings.extend([("SENDTRAIL__CLICKHOUSE__URL", &*url), ("SENDTRAIL__CLICKHOUSE__DATABASE", &*database)]);
        settings.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    })
    .await;
}

/// Stores answer half of what they are asked by 500 or 503, at times when they have done it. Snapshots are kept, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_same_while_stores_fail_half_of_the_time() {
    let first = number("SENDTRAIL_CRASH_SEED", 2_000);
    let shared = tempfile::TempDir::new().unwrap();
    run_seeds(first, number("SENDTRAIL_CRASH_SEEDS_STORE", 3), &|seed| {
        let snapshots = shared.path().join(seed.to_string());
        [
            ("FAILPOINTS", "object.asked=40%return;object.answered=20%return"),
            ("SENDTRAIL__STATE__SNAPSHOTS", snapshots.to_str().unwrap()),
            ("SENDTRAIL__STATE__SNAPSHOT_SECONDS", "1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    })
    .await;
}

type Settings = Vec<(String, String)>;

async fn run_seeds(first: u64, count: u64, further: &(impl Fn(u64) -> Settings + Sync)) {
    let seeds = futures::stream::iter(first..first + count);
    seeds.for_each_concurrent(TOGETHER, |seed| async move { run(seed, further(seed)).await }).await;
}

/// What becomes of one seed.
async fn run(seed: u64, further: Settings) {
    let mut random = StdRng::seed_from_u64(seed);
    let folder = tempfile::TempDir::new().unwrap();
    let mut settings: Settings = further;
    for (name, value) in [
        ("SENDTRAIL_ADMIN_KEY", ADMIN_KEY),
        ("SENDTRAIL__LOG__SEGMENT_BYTES", "262144"),
        ("SENDTRAIL__ARCHIVE__COMMIT_SECONDS", "1"),
        ("SENDTRAIL__ARCHIVE__MERGE_SECONDS", "1"),
        ("SENDTRAIL__ARCHIVE__INTAKE_SECONDS", "1"),
        ("SENDTRAIL__STATE__CHECKPOINT_MS", "50"),
        ("SENDTRAIL__WEBHOOKS__ALLOW_HTTP", "true"),
        ("SENDTRAIL__WEBHOOKS__ALLOW_PRIVATE_NETWORKS", r#"["127.0.0.0/8"]"#),
    ] {
        settings.push((name.to_owned(), value.to_owned()));
    }
    let has_clickhouse = settings.iter().any(|(name, _)| name.contains("CLICKHOUSE"));
    if has_clickhouse {
        let mut migrate = std::process::Command::new(env!("CARGO_BIN_EXE_sendtrail"));
        migrate.args(["migrate", "--data"]).arg(folder.path()).envs(settings.iter().cloned());
        assert!(migrate.status().unwrap().success());
    }
    let receiver = Receiver::start_ok().await;
    let always = settings.extract_if(.., |(name, _)| name == "FAILPOINTS").map(|(_, points)| points).next();
    let start = |failpoints: &str| {
        let mut all: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (&**name, &**value)).collect();
        let failpoints = [always.as_deref().unwrap_or_default(), failpoints].join(";");
        all.push(("FAILPOINTS", &failpoints));
        Process::try_start(folder.path(), &all)
    };
    let well = || start("").expect("it listens");
    let mut process = well();
    let base = Arc::new(Mutex::new(process.base.clone()));
    let mut clients = tokio::task::JoinSet::new();
    for name in ["a", "b"] {
        let client = Client::new(&base, &format!("{name}{seed}"), &receiver, random.random()).await;
        clients.spawn(client.work());
    }
    let mut told = Vec::new();
    for _ in 0..ENDS {
        // At a point, when it is reached so often; else, or if it is not, at some moment.
        let point = POINTS[random.random_range(0..POINTS.len())];
        // What is done every second is not waited for for ever.
        let is_rare = ["archive", "merge", "projections", "clickhouse", "snapshot", "erase", "intake"]
            .iter()
            .any(|name| point.starts_with(name));
        let after: u32 = random.random_range(0..if is_rare { 2 } else { 12 });
        let failpoints = if random.random_bool(0.7) { format!("{point}={after}*off->return") } else { String::new() };
        let moment = Duration::from_millis(random.random_range(if is_rare { 1_200..3_000 } else { 50..1_500 }));
        process.kill();
        // It may end before it listens.
        process = start(&failpoints).unwrap_or_else(well);
        base.lock().clone_from(&process.base);
        tokio::time::sleep(moment).await;
        let of_itself = if process.has_ended() { " (reached)" } else { "" };
        told.push(format!("{failpoints}{of_itself} within {moment:?}"));
    }
    println!("seed {seed}: {}", told.join(", "));
    process.kill();
    process = well();
    base.lock().clone_from(&process.base);
    let clients = clients.join_all().await;
    let mut known = BTreeSet::new();
    for client in &clients {
        known.extend(client.check(&receiver).await);
    }
    if has_clickhouse {
        check_clickhouse(&settings, known.len() as u64).await;
    }
    process.signal("-TERM");
    assert!(process.wait().success());
    check_archive(&folder.path().join("archive/events"), &known).await;
    check_state(folder.path(), &settings);
}

/// The state is what its intake gives.
fn check_state(folder: &Path, settings: &Settings) {
    let mut rebuild = std::process::Command::new(super::binary::PROGRAM);
    rebuild.args(["rebuild-state", "--data"]).arg(folder).envs(settings.iter().cloned());
    let rebuilt = rebuild.output().unwrap();
    let told = String::from_utf8_lossy(&rebuilt.stdout);
    assert!(rebuilt.status.success() && told.matches("byte for byte").count() == 4, "{told}");
}

/// A client of one account: one step after the other, each again and again until the server has said what became of it.
struct Client {
    base: Arc<Mutex<String>>,
    name: String,
    key: String,
    /// Below the administrator's routes.
    account: String,
    random: StdRng,
    steps: usize,
    paused: bool,
    /// What was told of messages of its own making, by kind and message.
    told: BTreeSet<(&'static str, String)>,
    /// Messages that the server accepted, and those that it rejected.
    sent: BTreeSet<String>,
    rejected: BTreeSet<String>,
    suppressed: BTreeSet<String>,
    /// Messages whose recipients were erased, those of them that were sent again since, and what is told of them bare.
    erased: BTreeSet<String>,
    sent_since: BTreeSet<String>,
    bare: BTreeSet<(&'static str, String)>,
}

const KINDS: [(&str, &str); 4] =
    [("Send", "Send"), ("Delivery", "Delivery"), ("HardBounce", "Bounce"), ("Complaint", "Complaint")];

impl Client {
    async fn new(base: &Arc<Mutex<String>>, name: &str, receiver: &Receiver, seed: u64) -> Self {
        let admin = Api::new(&base.lock().clone(), ADMIN_KEY);
        let body = json!({"name": name, "contact_email": "a@b.example", "mode": "production", "daily_send_quota": 1_000_000,
            "peak_send_rate_per_second": 1_000_000, "policy": {"minimum_sends": 1_000_000_000}});
        let account = admin.post(&format!("{ADMIN}/accounts"), &body).await.unwrap();
        let account = format!("{ADMIN}/accounts/{}", account["account"]["account_id"].as_str().unwrap());
        let key = admin.post(&format!("{account}/keys"), &json!({})).await.unwrap()["key"]["api_key"].take();
        let key = key.as_str().unwrap().to_owned();
        let api = admin.with_key(&key);
        let domain = format!("{name}.example");
        let identity = json!({"identity_type": "DOMAIN", "identity_value": domain});
        api.post(&format!("{PARTNER}/identities"), &identity).await.unwrap();
        let path = format!("{account}/identities/DOMAIN/{domain}/override");
        admin.post(&path, &json!({"status": "VERIFIED"})).await.unwrap();
        let hook = json!({"webhook_url": format!("{}/{name}", receiver.base)});
        api.send(Method::PUT, &format!("{PARTNER}/webhook"), &hook).await.unwrap();
        Self {
            base: base.clone(),
            name: name.to_owned(),
            key,
            account,
            random: StdRng::seed_from_u64(seed),
            steps: 0,
            paused: false,
            told: BTreeSet::new(),
            sent: BTreeSet::new(),
            rejected: BTreeSet::new(),
            suppressed: BTreeSet::new(),
            erased: BTreeSet::new(),
            sent_since: BTreeSet::new(),
            bare: BTreeSet::new(),
        }
    }

    fn api(&self) -> Api {
        Api::new(&self.base.lock().clone(), &self.key)
    }

    async fn work(mut self) -> Self {
        for step in 0..STEPS {
            self.steps = step;
            match self.random.random_range(0..11) {
                0..5 => self.tell().await,
                5..7 => self.send().await,
                7 => self.suppress().await,
                8 => self.allow().await,
                9 => self.erase().await,
                _ => self.pause_or_resume().await,
            }
        }
        self
    }

    /// Calls until there is an answer that is not "later".
    async fn until(&self, key: &str, method: Method, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        loop {
            let api = Api::new(&self.base.lock().clone(), key);
            match api.call(method.clone(), path, headers, body.to_owned()).await {
                Ok(reply) if !matches!(reply.status.as_u16(), 429 | 503) => return reply,
                // It is down, or up again elsewhere.
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Streams events: new ones, copies, and what happened before what it follows from.
    async fn tell(&mut self) {
        let mut lines = String::new();
        for at in 0..self.random.random_range(1..15) {
            let (kind, named) = KINDS[self.random.random_range(0..KINDS.len())];
            let known = self.random.random_range(0..=self.steps);
            let message = match self.random.random_bool(0.3) {
                true => format!("{}-{known}-{at}", self.name),
                false => format!("{}-{}-{at}", self.name, self.steps),
            };
            let told = event(kind, &message);
            for _ in 0..self.random.random_range(1..3) {
                lines += &format!("{told}\n");
            }
            if !self.told.insert((named, message.clone())) {
                continue;
            }
            let is_erased = self.erased.contains(&message);
            if is_erased && named == "Send" {
                self.sent_since.insert(message.clone());
            }
            if is_erased && !self.sent_since.contains(&message) {
                self.bare.insert((named, message));
            } else if matches!(named, "Bounce" | "Complaint") {
                self.suppressed.insert(recipient(&message));
            }
        }
        let headers = [("content-type", "application/x-ndjson")];
        let reply = self.until(&self.key, Method::POST, &format!("{PARTNER}/events"), &headers, &lines).await;
        assert_eq!((reply.status.as_u16(), &reply.json()["rejected"]), (200, &json!([])), "{}", reply.json());
    }

    fn somebody(&mut self) -> String {
        format!("success+{}@{}.test.example", self.random.random_range(0..6), self.name)
    }

    async fn send(&mut self) {
        let to: BTreeSet<String> = (0..self.random.random_range(1..4)).map(|_| self.somebody()).collect();
        let body =
            json!({"from": format!("News <news@{}.example>", self.name), "to": to, "subject": "x", "text_body": "y"});
        let once = format!("{}-{}", self.name, self.steps);
        let headers = [("content-type", "application/json"), ("idempotency-key", &once)];
        let reply = self.until(&self.key, Method::POST, &format!("{PARTNER}/send"), &headers, &body.to_string()).await;
        let told = reply.json();
        if self.paused {
            assert_eq!((reply.status.as_u16(), &told["error"]), (403, &json!("SENDING_PAUSED")), "{told}");
            return;
        }
        assert_eq!(reply.status.as_u16(), 200, "{told}");
        for result in told["results"].as_array().unwrap() {
            let (to, id) = (result["recipient"].as_str().unwrap(), result["message_id"].as_str().unwrap());
            let accepted = result["status"] == "queued";
            assert_eq!(accepted, !self.suppressed.contains(to), "{told}");
            let new = if accepted { &mut self.sent } else { &mut self.rejected };
            assert!(new.insert(id.to_owned()), "{id} once more");
        }
    }

    async fn suppress(&mut self) {
        let email = self.somebody();
        let headers = [("content-type", "application/json")];
        let path = format!("{PARTNER}/suppression/{email}");
        let reply = self.until(&self.key, Method::PUT, &path, &headers, "{}").await;
        assert_eq!(reply.status.as_u16(), 200, "{}", reply.json());
        self.suppressed.insert(email);
    }

    async fn allow(&mut self) {
        let email = self.somebody();
        let reply = self.until(&self.key, Method::DELETE, &format!("{PARTNER}/suppression/{email}"), &[], "").await;
        // The second time, if the first one's answer was lost.
        assert!(matches!(reply.status.as_u16(), 200 | 404), "{}", reply.json());
        self.suppressed.remove(&email);
    }

    /// Erases whoever a message was to, or nobody that anything is known of.
    async fn erase(&mut self) {
        let at = self.random.random_range(0..=self.told.len());
        let message = self.told.iter().nth(at).map_or_else(|| "nothing".to_owned(), |(_, message)| message.clone());
        let path = format!("{PARTNER}/recipients/{}", recipient(&message));
        let reply = self.until(&self.key, Method::DELETE, &path, &[], "").await;
        assert_eq!(reply.status.as_u16(), 202, "{}", reply.json());
        // What is sent in the same millisecond counts as before.
        tokio::time::sleep(Duration::from_millis(3)).await;
        self.suppressed.remove(&recipient(&message));
        self.sent_since.remove(&message);
        self.bare.extend(self.told.iter().filter(|(_, known)| *known == message).cloned());
        self.erased.insert(message);
    }

    async fn pause_or_resume(&mut self) {
        let what = if self.paused { "resume" } else { "pause" };
        let headers = [("content-type", "application/json")];
        let path = format!("{}/{what}", self.account);
        let body = json!({"reason": "a test"}).to_string();
        let reply = self.until(ADMIN_KEY, Method::POST, &path, &headers, &body).await;
        assert!(reply.status.is_success() || reply.status.as_u16() == 409, "{}", reply.json());
        self.paused = !self.paused;
    }

    /// Compares everything that the server shows; the identities of its events.
    async fn check(&self, receiver: &Receiver) -> BTreeSet<(u64, u64)> {
        let (name, api) = (&self.name, self.api());
        let events = async || api.rows(&format!("{PARTNER}/events"), "events").await.unwrap();
        let of = |log: &[Value], kind: &str| -> Vec<String> {
            let rows = log.iter().filter(|event| event["event_type"] == kind);
            rows.map(|event| event["message_id"].as_str().unwrap_or_default().to_owned()).collect()
        };
        let delivered = async || {
            let log = events().await;
            let delivered: HashSet<String> = of(&log, "Delivery").into_iter().collect();
            self.sent.iter().all(|id| delivered.contains(id))
        };
        eventually("what was sent is delivered", delivered).await;
        let erased = async || {
            let all = api.get(&format!("{PARTNER}/erasures")).await.unwrap();
            all["erasures"].as_array().unwrap().iter().all(|erasure| erasure["status"] == "ERASED")
        };
        eventually("whoever is erased is erased everywhere", erased).await;
        let log = whole_rows(&api, "/events", "events").await;
        for event in log.iter().filter(|event| event["recipient"].is_null()) {
            let named = |(kind, message): &(&str, String)| {
                event["event_type"] == *kind && event["message_id"] == message.as_str()
            };
            let of_message = event["message_id"].is_string();
            assert!(!of_message || self.bare.iter().any(named), "{name}: {event} says too little");
        }
        let said = |(kind, message): &(&str, String)| {
            let of = |event: &&Value| event["event_type"] == *kind && event["message_id"] == message.as_str();
            log.iter().filter(of).any(|event| event["recipient"].is_string())
        };
        let too_much: Vec<_> = self.bare.iter().filter(|told| said(told)).collect();
        assert!(too_much.is_empty(), "{name}: {too_much:?}");
        let mut wanted: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (kind, message) in &self.told {
            wanted.entry(kind).or_default().push(message.clone());
        }
        for kind in ["Send", "Delivery"] {
            wanted.entry(kind).or_default().extend(self.sent.iter().cloned());
        }
        wanted.entry("Reject").or_default().extend(self.rejected.iter().cloned());
        for (kind, mut messages) in wanted.clone() {
            let mut found = of(&log, kind);
            messages.sort_unstable();
            found.sort_unstable();
            assert_eq!(found, messages, "{name}: every {kind} once");
        }
        let count = |kind: &str| json!(wanted.get(kind).map_or(0, Vec::len));
        let reputation = whole(&api, "/reputation").await;
        let shown = ["sent", "bounced", "complained"].map(|field| reputation[field].clone());
        assert_eq!(shown, ["Send", "Bounce", "Complaint"].map(count), "{name}");
        assert_eq!(reputation["status"] == "PAUSED", self.paused, "{name}: {reputation}");
        let totals = whole(&api, "/stats").await["totals"].take();
        let shown =
            ["sends", "deliveries", "permanent_bounces", "complaints", "rejects"].map(|field| totals[field].clone());
        assert_eq!(shown, ["Send", "Delivery", "Bounce", "Complaint", "Reject"].map(count), "{name}");
        let listed = whole_rows(&api, "/suppression", "suppressions").await;
        let listed: BTreeSet<String> = listed.iter().map(|row| row["email"].as_str().unwrap().to_owned()).collect();
        assert_eq!(listed, self.suppressed, "{name}");
        // Posted at least once each, under one identifier.
        let posted = || {
            let posts = receiver.posts(&format!("/{name}"));
            posts.iter().map(|post| post.header("x-splashify-delivery-id").to_owned()).collect::<HashSet<_>>().len()
        };
        let mails: usize = wanted.values().map(Vec::len).sum();
        eventually("every event is posted", async || posted() >= mails).await;
        assert_eq!(posted(), mails, "{name}: nothing else is");
        let activity = whole_rows(&api, "/activity", "activity").await;
        let all = log.iter().chain(&activity);
        all.map(|event| (event["partition"].as_u64().unwrap(), event["seq"].as_u64().unwrap())).collect()
    }
}

/// The recipient of a message that was told of.
fn recipient(message: &str) -> String {
    format!("to-{message}@inbox.example")
}

/// Every partition of the files is whole, and they hold what was shown.
async fn check_archive(folder: &Path, known: &BTreeSet<(u64, u64)>) {
    let table = Table::open(&EVENTS, folder).await.unwrap();
    let mut found = Vec::new();
    for file in table.files() {
        for batch in read_file(&EVENTS, table.root(), &file).unwrap() {
            let events = read_events(&batch.unwrap()).unwrap();
            found.extend(events.iter().map(|event| (u64::from(event.partition), event.seq)));
        }
    }
    let distinct: BTreeSet<(u64, u64)> = found.iter().copied().collect();
    assert_eq!(distinct.len(), found.len(), "no row twice");
    assert_eq!(&distinct, known, "the files have what was shown");
    let mut next: BTreeMap<u64, u64> = BTreeMap::new();
    for (partition, seq) in distinct {
        let next = next.entry(partition).or_default();
        assert_eq!(seq, *next, "partition {partition} is dense");
        *next += 1;
    }
}

async fn check_clickhouse(settings: &Settings, rows: u64) {
    let setting =
        |name: &str| settings.iter().find(|(one, _)| one.ends_with(name)).map(|(_, value)| value.clone()).unwrap();
    let client = clickhouse::Client::default()
        .with_url(setting("CLICKHOUSE__URL"))
        .with_database(setting("CLICKHOUSE__DATABASE"))
        .with_compression(clickhouse::Compression::None);
    let count = async || client.query("SELECT count() FROM events").fetch_one::<u64>().await.unwrap();
    eventually("ClickHouse has every row", async || count().await >= rows).await;
    let sql = "SELECT count() FROM (SELECT partition FROM events GROUP BY partition \
               HAVING count() != uniqExact(seq) OR count() != max(seq) - min(seq) + 1)";
    let broken = client.query(sql).fetch_one::<u64>().await.unwrap();
    assert_eq!((count().await, broken), (rows, 0), "each row once, none missing");
}
