//! Webhooks: how fast they go out beside a bare client that signs the same, how soon after an event was acknowledged, what bad
//! receivers cost good ones, and what pending retries weigh.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use sendtrail::app::App;
use sendtrail::client::Api;
use sendtrail::config::Config;
use serde_json::{Value, json};
use sha2::Sha256;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const PARTNER: &str = "/api/v1/partner/email";
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
/// Destinations that share the load of the first measurement, and attempts to each at once.
const DESTINATIONS: usize = 8;
const CONCURRENCY: usize = 32;
const POSTS: u64 = 160_000;
const PARTS: [&str; 4] = ["throughput", "latency", "isolation", "pending"];

pub fn run() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    // Some of it only, if some of it is named.
    let asked: Vec<String> = std::env::args().collect();
    let all = !PARTS.iter().any(|part| asked.iter().any(|asked| asked == part));
    let wants = |part: usize| all || asked.iter().any(|asked| asked == PARTS[part]);
    runtime.block_on(async {
        for _ in 0..3 {
            if wants(0) {
                throughput().await;
            }
        }
        if wants(1) {
            latency().await;
        }
        for _ in 0..3 {
            if wants(2) {
                isolation(0).await;
                isolation(20).await;
            }
        }
        if wants(3) {
            pending().await;
        }
    });
}

/// A receiver in this process.
struct Receiver {
    address: SocketAddr,
    count: Arc<AtomicU64>,
    /// When messages came first.
    seen: Arc<Mutex<HashMap<u64, Instant>>>,
    gate: watch::Sender<bool>,
}

/// What it does.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Counts,
    Notes,
    Refuses,
    Hangs,
}

impl Receiver {
    async fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (gate, open) = watch::channel(true);
        let receiver = Self { address, count: Arc::default(), seen: Arc::default(), gate };
        let (count, seen) = (receiver.count.clone(), receiver.seen.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                let (count, seen, open) = (count.clone(), seen.clone(), open.clone());
                let service = hyper::service::service_fn(move |request| {
                    answer(manner, request, count.clone(), seen.clone(), open.clone())
                });
                let connection = hyper::server::conn::http1::Builder::new();
                tokio::spawn(connection.serve_connection(TokioIo::new(stream), service));
            }
        });
        receiver
    }

    fn url(&self, n: usize) -> String {
        format!("http://{}/{n}", self.address)
    }

    async fn wait(&self, count: u64) {
        while self.count.load(Ordering::Relaxed) < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn answer(
    manner: Manner,
    request: Request<Incoming>,
    count: Arc<AtomicU64>,
    seen: Arc<Mutex<HashMap<u64, Instant>>>,
    mut open: watch::Receiver<bool>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = request.into_body().collect().await.unwrap().to_bytes();
    match manner {
        Manner::Hangs => std::future::pending::<()>().await,
        Manner::Notes => {
            seen.lock().entry(message(&body)).or_insert_with(Instant::now);
        }
        Manner::Counts | Manner::Refuses => drop(open.wait_for(|open| *open).await),
    }
    count.fetch_add(1, Ordering::Relaxed);
    let mut response = Response::new(Full::default());
    if manner == Manner::Refuses {
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    }
    Ok(response)
}

/// The number that an event has as its message's id.
fn message(body: &[u8]) -> u64 {
    const FIELD: &[u8] = br#""message_id":""#;
    let at = body.windows(FIELD.len()).position(|window| window == FIELD).unwrap() + FIELD.len();
    let digits = body[at..].iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0'))
}

struct Stage {
    app: App,
    admin: Api,
    _folder: TempDir,
}

async fn stage(change: impl FnOnce(&mut Config)) -> Stage {
    let folder = TempDir::new().unwrap();
    let mut config = Config::defaults();
    config.data.dir = folder.path().to_path_buf();
    config.server.listen = "127.0.0.1:0".into();
    config.webhooks.allow_http = true;
    config.webhooks.allow_private_networks = vec!["127.0.0.0/8".parse().unwrap()];
    change(&mut config);
    let app = App::start(&config).await.unwrap();
    let admin = Api::new(&format!("http://{}", app.address), app.fresh_admin_key.as_ref().unwrap());
    Stage { app, admin, _folder: folder }
}

impl Stage {
    /// An account with a set `set`, whose events go to destinations.
    async fn partner(&self, name: &str, destinations: impl IntoIterator<Item = Value>) -> Api {
        let body = json!({"name": name, "contact_email": "a@b.example", "mode": "production"});
        let account = self.admin.post("/api/v1/admin/accounts", &body).await.unwrap();
        let path = format!("/api/v1/admin/accounts/{}/keys", account["account"]["account_id"].as_str().unwrap());
        let key = self.admin.post(&path, &json!({})).await.unwrap();
        let partner = self.admin.with_key(key["key"]["api_key"].as_str().unwrap());
        let mut sets = HashMap::new();
        for mut destination in destinations {
            let set = destination["set"].take().as_str().unwrap().to_owned();
            destination.as_object_mut().unwrap().remove("set");
            if !sets.contains_key(&set) {
                let made = partner.post(&format!("{PARTNER}/configuration-sets"), &json!({"name": set})).await.unwrap();
                sets.insert(set.clone(), made["configuration_set"]["config_set_id"].as_str().unwrap().to_owned());
            }
            let path = format!("{PARTNER}/configuration-sets/{}/event-destinations", sets[&set]);
            partner.post(&path, &destination).await.unwrap();
        }
        partner
    }
}

fn destination(set: &str, name: &str, url: String) -> Value {
    json!({"set": set, "name": name, "destination_type": "WEBHOOK", "webhook_url": url, "webhook_secret": SECRET,
        "dialect": "standard"})
}

fn line(message: u64, set: &str) -> String {
    let set = if set.is_empty() { String::new() } else { format!(r#""configuration_set_name":"{set}","#) };
    let (user, host) = (message % 99_991, message % 40);
    format!(
        "{{\"event_type\":\"Delivery\",\"message_id\":\"{message}\",{set}\"recipient\":\"user{user}@mail{host}.example\",\
         \"tags\":{{\"campaign\":\"june\"}},\"delivery\":{{\"smtpResponse\":\"250 OK\",\"processingTimeMillis\":420}}}}\n"
    )
}

async fn stream(partner: &Api, body: String) {
    let headers = [("content-type", "application/x-ndjson")];
    let body = Bytes::from(body);
    loop {
        let reply = partner.call(Method::POST, &format!("{PARTNER}/events"), &headers, body.clone()).await.unwrap();
        if reply.status == 200 {
            return;
        }
        assert_eq!(reply.status, 503, "{}", reply.json());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Signed posts a second: events that wait when the receiver begins to answer, and a bare client beside it.
async fn throughput() {
    let receiver = Receiver::start(Manner::Counts).await;
    let stage = stage(|_| {}).await;
    let destinations = (0..DESTINATIONS).map(|n| {
        let mut made = destination(&format!("set{n}"), "hook", receiver.url(n));
        made["concurrency"] = CONCURRENCY.into();
        made
    });
    let partner = stage.partner("throughput", destinations).await;
    receiver.gate.send_replace(false);
    for batch in 0..POSTS / 1_000 {
        let body = (0..1_000).map(|n| line(batch * 1_000 + n, &format!("set{}", n as usize % DESTINATIONS))).collect();
        stream(&partner, body).await;
    }
    let begun = Instant::now();
    receiver.gate.send_replace(true);
    receiver.wait(POSTS).await;
    let ours = begun.elapsed();
    crate::rate("signed, posted, recorded", POSTS, ours);
    stage.app.stop().await;

    receiver.count.store(0, Ordering::Relaxed);
    let begun = Instant::now();
    let each = POSTS / (DESTINATIONS * CONCURRENCY) as u64;
    let mut clients = tokio::task::JoinSet::new();
    for n in 0..DESTINATIONS * CONCURRENCY {
        clients.spawn(bare(receiver.address, n, each));
    }
    clients.join_all().await;
    let bare = begun.elapsed();
    crate::rate("bare: a hyper connection each, signed and posted", each * (DESTINATIONS * CONCURRENCY) as u64, bare);
    println!("  of the bare client: {:.2}", bare.as_secs_f64() / ours.as_secs_f64());
}

/// Posts over one connection, as plainly as can be.
async fn bare(to: SocketAddr, client: usize, count: u64) {
    let stream = TcpStream::connect(to).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for n in 0..count {
        let data = line(n, "set").trim_end().to_owned();
        let body = format!(r#"{{"type":"email.delivered","timestamp":"2026-11-27T12:00:00Z","data":{data}}}"#);
        let (id, timestamp) = (format!("{client}-{n}"), "1795780800");
        let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
        mac.update(format!("{id}.{timestamp}.").as_bytes());
        mac.update(body.as_bytes());
        let signature =
            format!("v1,{}", base64::Engine::encode(&base64::prelude::BASE64_STANDARD, mac.finalize().into_bytes()));
        let request = Request::post("/")
            .header("host", "127.0.0.1")
            .header("content-type", "application/json")
            .header("user-agent", "bare")
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signature)
            .body(Full::new(Bytes::from(body)))
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        response.into_body().collect().await.unwrap();
    }
}

/// Events at a steady pace, each to one of some sets in turn: how long after they were acknowledged their posts came.
async fn paced(partner: &[Api], sets: usize, receiver: &Receiver, seconds: u64, per_second: u64) -> Vec<Duration> {
    let mut acknowledged = HashMap::new();
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    let each = per_second / 100;
    for tick in 0..seconds * 100 {
        ticks.tick().await;
        let numbers = tick * each..(tick + 1) * each;
        let api = &partner[tick as usize % partner.len()];
        let body = numbers.clone().map(|n| line(n, &format!("set{}", n as usize % sets))).collect();
        stream(api, body).await;
        let now = Instant::now();
        acknowledged.extend(numbers.map(|n| (n, now)));
    }
    receiver.wait(seconds * per_second).await;
    let seen = receiver.seen.lock();
    // The first second warms up. What came before its answer took nothing.
    let waits = acknowledged.iter().filter(|(n, _)| **n >= per_second);
    let mut waits: Vec<Duration> = waits.map(|(n, at)| seen[n].saturating_duration_since(*at)).collect();
    waits.sort_unstable();
    waits
}

fn show(what: &str, waits: &[Duration]) {
    let at = |share: f64| waits[(waits.len() as f64 * share) as usize].as_secs_f64() * 1e3;
    println!("  {what:<58} {:>6.1} / {:.1} ms", at(0.5), at(0.99));
}

/// From the acknowledgement of an event until its post is seen, at a thousand events a second.
async fn latency() {
    let receiver = Receiver::start(Manner::Notes).await;
    let stage = stage(|_| {}).await;
    let destinations = (0..4).map(|n| destination(&format!("set{n}"), "hook", receiver.url(n)));
    let partner = stage.partner("latency", destinations).await;
    let waits = paced(&[partner], 4, &receiver, 15, 1_000).await;
    show("acknowledged to seen at 1,000/s: median, p99", &waits);
    stage.app.stop().await;
}

/// 200 good destinations of 20 accounts, and some that hang, which get as many events each.
async fn isolation(bad: usize) {
    let (receiver, hole) = (Receiver::start(Manner::Notes).await, Receiver::start(Manner::Hangs).await);
    let stage = stage(|_| {}).await;
    let mut partners = Vec::new();
    for account in 0..20 {
        let mut all: Vec<Value> =
            (0..10).map(|n| destination(&format!("set{n}"), "good", receiver.url(account * 10 + n))).collect();
        if account < bad {
            all.extend((0..10).map(|n| destination(&format!("set{n}"), "bad", hole.url(account))).take(1));
        }
        partners.push(stage.partner(&format!("p{account}"), all).await);
    }
    let waits = paced(&partners, 10, &receiver, 20, 1_000).await;
    show(&format!("200 good destinations, {bad} that hang: median, p99"), &waits);
    stage.app.stop().await;
}

/// What a million deliveries weigh that wait for their next attempt.
async fn pending() {
    const EVENTS: u64 = 1_000_000;
    let receiver = Receiver::start(Manner::Refuses).await;
    let stage = stage(|config| config.webhooks.failing_after_failures = u32::MAX).await;
    let mut made = destination("set0", "hook", receiver.url(0));
    // Each waits for a day after its first attempt. What has failed is approached by one at a time, so there are many.
    made["retry_schedule_seconds"] = json!([86_400]);
    let all = (0..100).map(|n| {
        let mut made = made.clone();
        (made["set"], made["name"]) = (format!("set{}", n % 50).into(), format!("hook{n}").into());
        made
    });
    let partner = stage.partner("pending", all).await;
    // Two destinations a set: half as many events as deliveries. First as many that go nowhere.
    let fill = async |from: u64, count: u64, of: &dyn Fn(u64) -> String| {
        for batch in 0..count / 1_000 {
            let body = (0..1_000).map(|n| line(from + batch * 1_000 + n, &of(n))).collect();
            stream(&partner, body).await;
        }
    };
    let none = |_| String::new();
    fill(0, EVENTS / 2, &none).await;
    let before = memory();
    let begun = Instant::now();
    fill(EVENTS, EVENTS / 2, &|n| format!("set{}", n % 50)).await;
    receiver.wait(EVENTS).await;
    // Recorded, and noted.
    tokio::time::sleep(Duration::from_secs(3)).await;
    println!(
        "  {EVENTS} deliveries wait, after {:.0} s; memory before and after: {before} and {} MB; on disk {} MB",
        begun.elapsed().as_secs_f64(),
        memory(),
        size(&stage._folder.path().join("state"))
    );
    stage.app.stop().await;
}

/// What this process has in memory, MB.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
}

/// Bytes of the files in a folder, MB.
fn size(folder: &std::path::Path) -> u64 {
    fn bytes(folder: &std::path::Path) -> u64 {
        let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
        entries
            .flatten()
            .map(|entry| match entry.file_type() {
                Ok(kind) if kind.is_dir() => bytes(&entry.path()),
                _ => entry.metadata().map_or(0, |meta| meta.len()),
            })
            .sum()
    }
    bytes(folder) >> 20
}
