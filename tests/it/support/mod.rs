//! A server in this process, partners on it, and a receiver of webhooks.

pub mod adversary;
pub mod proxy;
pub mod python;
mod receiver;

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use http::Method;
use sendtrail::app::App;
use sendtrail::client::{Api, Reply};
use sendtrail::config::{Backend, Config, Fallback};
use sendtrail_processor::clickhouse::migrate;
use sendtrail_schemas::time::Millis;
pub use serde_json::{Value, json};
use tempfile::TempDir;

pub use self::receiver::{Answer, Post, Receiver};

pub const ADMIN: &str = "/api/v1/admin";
pub const PARTNER: &str = "/api/v1/partner/email";
pub const MINUTE: i64 = 60_000;
pub const HOUR: i64 = 60 * MINUTE;
pub const DAY: i64 = 24 * HOUR;

/// When simulated tests begin: a Friday at noon.
pub fn noon() -> Millis {
    Millis::parse("2026-05-01T12:00:00Z").unwrap()
}

/// A server on a folder of its own.
pub struct Server {
    pub app: App,
    pub admin: Api,
    pub config: Config,
    key: String,
    folder: TempDir,
}

impl Server {
    /// With simulated time.
    pub async fn start() -> Self {
        Self::start_with(|config| config.log.simulated = true).await
    }

    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let folder = TempDir::new().unwrap();
        let mut config = Config::defaults();
        config.data.dir = folder.path().to_path_buf();
        config.server.listen = "127.0.0.1:0".into();
        config.log.partitions = 3;
        config.log.segment_bytes = 1 << 20;
        config.state.checkpoint_ms = 200;
        config.archive.commit_seconds = 1;
        config.archive.merge_seconds = 1;
        config.archive.intake_seconds = 1;
        config.webhooks.allow_http = true;
        config.webhooks.allow_private_networks = vec!["127.0.0.0/8".parse().unwrap()];
        // A slow machine, or one that stalls for a while, is no fault: what these bound has tests of its own.
        config.intake.max_lag_ms = 30_000;
        config.sending.decision_timeout_ms = 60_000;
        config.query.timeout_ms = 60_000;
        config.query.turn_within_ms = 30_000;
        if std::env::var("SENDTRAIL_TEST_LOG").is_ok_and(|log| log == "kafka") {
            assert!(use_kafka(&mut config), "there is no broker");
        }
        if std::env::var("SENDTRAIL_TEST_ANALYTICS").is_ok_and(|analytics| analytics == "clickhouse") {
            assert!(use_clickhouse(&mut config), "there is no ClickHouse");
        }
        change(&mut config);
        if let Some(client) = sendtrail::clickhouse::client(&config.clickhouse) {
            migrate(&client, &sendtrail::clickhouse::wanted(&config, false)).await.unwrap();
        }
        Self::open(folder, config, None).await
    }

    async fn open(folder: TempDir, config: Config, key: Option<String>) -> Self {
        let app = App::start(&config).await.unwrap();
        let key = app.fresh_admin_key.clone().or(key).unwrap();
        let admin = Api::new(&format!("http://{}", app.address), &key);
        Self { app, admin, config, key, folder }
    }

    /// Stops it; what it kept stays in the folder, and is what comes of its intake when that is folded once more.
    pub async fn stop(self) -> Stopped {
        self.app.stop().await;
        let rebuilt = async || sendtrail::rebuild::run(&self.config, &Default::default()).await;
        // In one process a thread that listened to the broker may hold the store a moment longer.
        let until = std::time::Instant::now() + std::time::Duration::from_secs(120);
        let is_held =
            |told: &anyhow::Error| format!("{told:#}").contains("Locked") && std::time::Instant::now() < until;
        let mut done = rebuilt().await;
        while done.as_ref().is_err_and(is_held) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            done = rebuilt().await;
        }
        assert_eq!(done.unwrap(), std::process::ExitCode::SUCCESS);
        Stopped { config: self.config, key: self.key, folder: self.folder }
    }

    /// Stops it and starts it on the same folder.
    pub async fn restart(self) -> Self {
        self.stop().await.start().await
    }

    /// A partner in production that may send as fast as it likes, from a verified domain.
    pub async fn partner(&self, name: &str) -> Partner {
        self.partner_with(json!({"name": name, "mode": "production", "daily_send_quota": 100_000_000,
            "peak_send_rate_per_second": 1_000_000}))
            .await
    }

    pub async fn partner_with(&self, fields: Value) -> Partner {
        let admin = self.admin.at(noon());
        let domain = format!("{}.example", fields["name"].as_str().unwrap());
        let mut body = json!({"contact_email": "contact@partner.example"});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let account = admin.post(&format!("{ADMIN}/accounts"), &body).await.unwrap();
        let account_id = account["account"]["account_id"].as_str().unwrap().to_owned();
        let account = format!("{ADMIN}/accounts/{account_id}");
        let key = admin.post(&format!("{account}/keys"), &json!({"name": "test"})).await.unwrap();
        let api = admin.with_key(key["key"]["api_key"].as_str().unwrap());
        let identity = json!({"identity_type": "DOMAIN", "identity_value": domain});
        api.post(&format!("{PARTNER}/identities"), &identity).await.unwrap();
        let path = format!("{account}/identities/DOMAIN/{domain}/override");
        admin.post(&path, &json!({"status": "VERIFIED"})).await.unwrap();
        Partner { api, account_id, account, domain, messages: AtomicI64::new(0) }
    }

    /// Moves simulated time.
    pub async fn tick(&self, t: Millis) {
        self.admin.post(&format!("{ADMIN}/clock"), &json!({"now": t})).await.unwrap();
    }
}

/// Puts the log on a real broker, in topics of its own; whether there is one.
pub fn use_kafka(config: &mut Config) -> bool {
    static NEXT: AtomicI64 = AtomicI64::new(0);
    let Some(address) = sendtrail_test_servers::kafka() else { return false };
    config.log.backend = Backend::Kafka;
    config.kafka.bootstrap_servers = address.into();
    config.kafka.namespace = format!("it-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    config.kafka.replication = 1;
    config.kafka.allow_single_replica = true;
    true
}

/// Answers from a real ClickHouse, in a database of its own, and from nowhere else; whether there is one.
pub fn use_clickhouse(config: &mut Config) -> bool {
    static NEXT: AtomicI64 = AtomicI64::new(0);
    let Some(address) = sendtrail_test_servers::clickhouse() else { return false };
    config.clickhouse.url = format!("http://{address}");
    config.clickhouse.database = format!("it_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    config.clickhouse.fallback = Fallback::Refuse;
    config.clickhouse.max_wait_ms = 20_000;
    true
}

/// A folder without a server.
pub struct Stopped {
    pub config: Config,
    key: String,
    folder: TempDir,
}

impl Stopped {
    pub async fn start(self) -> Server {
        Server::open(self.folder, self.config, Some(self.key)).await
    }
}

/// Streams a body, again and again while the server holds it back.
pub async fn stream(api: &Api, body: String) -> Value {
    let (body, headers) = (bytes::Bytes::from(body), [("content-type", "application/x-ndjson")]);
    loop {
        let reply = api.call(Method::POST, &format!("{PARTNER}/events"), &headers, body.clone()).await.unwrap();
        if reply.status != 503 {
            return reply.success().unwrap();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// How long an answer may lack what is newer, or be put off, when all is well.
const BEHIND: Duration = Duration::from_secs(120);

/// An answer that lacks nothing, where machines are slow; one that comes later is taken as it is.
async fn settled(api: &Api, path: &str) -> Reply {
    let begun = Instant::now();
    loop {
        let reply = api.call(Method::GET, path, &[], "").await.unwrap();
        let is_early = reply.headers.contains_key("sendtrail-as-of") || reply.status == 503;
        if !is_early || begun.elapsed() > BEHIND {
            return reply;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What a path of a partner's shows once it lacks nothing, for whoever is no [`Partner`].
pub async fn whole(api: &Api, path: &str) -> Value {
    settled(api, &format!("{PARTNER}{path}")).await.success().unwrap()
}

/// Every row of a list that lacks nothing.
pub async fn whole_rows(api: &Api, path: &str, name: &str) -> Vec<Value> {
    let path = format!("{PARTNER}{path}");
    let joint = if path.contains('?') { '&' } else { '?' };
    settled(api, &format!("{path}{joint}limit=1")).await;
    api.rows(&path, name).await.unwrap()
}

/// Rows of activity that [`Server::partner`] makes: the account, a key, an identity and its proof.
pub const CALLS: u64 = 4;

/// An account with a key.
pub struct Partner {
    /// At noon, where time is simulated.
    pub api: Api,
    pub account_id: String,
    /// Below the administrator's routes.
    pub account: String,
    pub domain: String,
    messages: AtomicI64,
}

impl Partner {
    /// The same partner on a server that was started again.
    pub fn on(&self, server: &Server) -> Self {
        let key = self.api.key().to_owned();
        Self {
            api: server.admin.with_key(&key).at(noon()),
            account_id: self.account_id.clone(),
            account: self.account.clone(),
            domain: self.domain.clone(),
            messages: AtomicI64::new(self.messages.load(Ordering::Relaxed)),
        }
    }

    pub fn at(&self, t: Millis) -> Self {
        Self {
            api: self.api.at(t),
            account_id: self.account_id.clone(),
            account: self.account.clone(),
            domain: self.domain.clone(),
            messages: AtomicI64::new(0),
        }
    }

    /// An answer that lacks nothing.
    pub async fn get(&self, path: &str) -> Value {
        whole(&self.api, path).await
    }

    /// Every row of a list that lacks nothing.
    pub async fn rows(&self, path: &str, name: &str) -> Vec<Value> {
        whole_rows(&self.api, path, name).await
    }

    /// Who changed what, the newest first.
    pub async fn activity(&self) -> Vec<Value> {
        self.rows("/activity", "activity").await
    }

    /// Every event, in the order of the log.
    pub async fn log(&self) -> Vec<Value> {
        let mut events = self.rows("/events?from=2000-01-01", "events").await;
        events.sort_by_key(|event| event["seq"].as_u64());
        events
    }

    /// The same with who changed what: all that the archive has of the account.
    pub async fn everything(&self) -> Vec<Value> {
        let mut events = self.log().await;
        events.extend(self.activity().await);
        events.sort_by_key(|event| event["seq"].as_u64());
        events
    }

    pub async fn post(&self, path: &str, body: &Value) -> Value {
        self.api.post(&format!("{PARTNER}{path}"), body).await.unwrap()
    }

    pub async fn call(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<bytes::Bytes>,
    ) -> Reply {
        self.api.call(method, &format!("{PARTNER}{path}"), headers, body).await.unwrap()
    }

    /// Streams events; all must be accepted.
    pub async fn stream(&self, events: &[Value]) {
        for events in events.chunks(5_000) {
            let body: String = events.iter().map(|event| format!("{event}\n")).collect();
            let reply = self.stream_text(body).await;
            assert_eq!(reply["accepted"], events.len(), "{reply}");
        }
    }

    /// See [`stream`].
    pub async fn stream_text(&self, body: String) -> Value {
        stream(&self.api, body).await
    }

    pub fn message(&self, to: &[&str]) -> Value {
        json!({"from": format!("News <news@{}>", self.domain), "to": to, "subject": "Hello", "text_body": "Hello!"})
    }

    /// Tries to send: status and body.
    pub async fn try_send(&self, to: &[&str]) -> (u16, Value) {
        self.try_send_body(&self.message(to)).await
    }

    pub async fn try_send_body(&self, message: &Value) -> (u16, Value) {
        let headers = [("content-type", "application/json")];
        let reply = self.call(Method::POST, "/send", &headers, message.to_string()).await;
        (reply.status.as_u16(), reply.json())
    }

    /// A configuration set; its id.
    pub async fn set(&self, fields: Value) -> String {
        let made = self.post("/configuration-sets", &fields).await;
        made["configuration_set"]["config_set_id"].as_str().unwrap().to_owned()
    }

    /// A webhook on a set; its id.
    pub async fn destination(&self, set: &str, fields: Value) -> String {
        let mut body = json!({"name": "hook", "destination_type": "WEBHOOK"});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let made = self.post(&format!("/configuration-sets/{set}/event-destinations"), &body).await;
        made["event_destination"]["destination_id"].as_str().unwrap().to_owned()
    }

    /// An event of the next message.
    pub fn event(&self, kind: &str) -> Value {
        let n = self.messages.fetch_add(1, Ordering::Relaxed);
        event(kind, &format!("{}-{n}", self.domain))
    }
}

/// The documented routes that a partner's key opens, with their parameters in braces.
pub async fn partner_routes(server: &Server) -> Vec<(String, Method)> {
    let document = server.admin.get("/openapi.json").await.unwrap();
    let mut routes = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        if path.starts_with("/api/v1/admin") {
            continue;
        }
        for (method, operation) in methods.as_object().unwrap() {
            // Opened by a token or a signature.
            if operation["security"] == json!([]) {
                continue;
            }
            routes.push((path.clone(), Method::from_bytes(method.to_uppercase().as_bytes()).unwrap()));
        }
    }
    routes
}

/// The code of an error, in the form of whichever surface; null when it is none.
pub fn told_code(body: &Value) -> Value {
    let places = [&body["error"]["code"], &body["code"], &body["error"]];
    places.into_iter().find(|code| code.is_string()).cloned().unwrap_or_default()
}

/// An event of a message to a recipient of its own.
pub fn event(kind: &str, message: &str) -> Value {
    let block = match kind {
        "HardBounce" => json!({"bounce": {"bounceType": "Permanent", "bounceSubType": "General"}}),
        "SoftBounce" => json!({"bounce": {"bounceType": "Transient", "bounceSubType": "General"}}),
        _ => json!({}),
    };
    let name = if kind.ends_with("Bounce") { "Bounce" } else { kind };
    let mut event =
        json!({"event_type": name, "message_id": message, "recipient": format!("to-{message}@inbox.example")});
    event.as_object_mut().unwrap().extend(block.as_object().unwrap().clone());
    event
}

/// Waits until something holds, for five minutes at most: other tests keep the machine busy.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    // Patient, since a busy machine is no fault: what holds costs no time.
    let until = std::time::Instant::now() + std::time::Duration::from_secs(300);
    while std::time::Instant::now() < until {
        if holds().await {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("{what}: not within five minutes");
}

pub fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["event_type"].as_str().unwrap()).collect()
}
