//! Settings: the defaults file, a file of one's own, the environment, in this order. All errors are told at once.

mod environment;
mod rules;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use figment::value::{Dict, Value};
use ipnet::IpNet;
use sendtrail_eventlog::embedded::Options;
use sendtrail_eventlog::kafka;
use sendtrail_eventlog::objects::{self, Place};
use sendtrail_processor::core::step::LOGIC_VERSION;
use sendtrail_processor::dispatch::Patience;
use sendtrail_schemas::time::{HOUR, SECOND};
use sendtrail_schemas::topic::Topic;
use serde::{Deserialize, Serialize};

use crate::properties;
use crate::roles::{Role, Roles};
use crate::sources::KafkaSource;

/// The defaults, with what they mean.
pub const DEFAULTS: &str = include_str!("../config.default.toml");
/// How the environment names settings: `SENDTRAIL__SECTION__KEY`.
const ENVIRONMENT: &str = "SENDTRAIL__";

macro_rules! sections {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $kind:ty),* $(,)? })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
            #[serde(deny_unknown_fields)]
            #[expect(missing_docs, reason = "each field is told in config.default.toml")]
            pub struct $name { $(pub $field: $kind),* }
        )*
    };
}

sections! {
    /// All settings.
    Config {
        server: Server, data: Data, log: Log, kafka: Kafka, state: State, intake: Intake, sending: Sending, dedup: Dedup,
        identities: Identities, simulator: Simulator, webhooks: Webhooks, archive: Archive, query: Query, exports: Exports,
        clickhouse: ClickHouse, sources: Sources, blobs: Blobs, s3: S3, secrets: Secrets, telemetry: Telemetry,
    }
    /// The HTTP server.
    Server {
        roles: Roles, listen: String, max_connections: usize, max_header_bytes: usize, header_timeout_ms: u64, body_timeout_ms: u64,
        max_body_bytes: usize, shutdown_grace_seconds: u64, requests_per_second_per_account: u32, trusted_proxies: Vec<ipnet::IpNet>,
    }
    /// Where everything is kept.
    Data { dir: PathBuf }
    /// The event log.
    Log {
        backend: Backend, partitions: u32, simulated: bool, segment_bytes: u64, segment_hours: u64, cache_bytes: usize, queue_bytes: u64, disk_budget_bytes: u64,
    }
    /// Apache Kafka, when the log is there.
    Kafka {
        bootstrap_servers: String, namespace: String, replication: i32, allow_single_replica: bool, create_topics: bool,
        accept_new_folder: bool, retention_hours: u64, security_protocol: String, sasl_mechanism: String, sasl_username: String,
        sasl_password: String, ssl_ca_location: String, properties: Vec<String>,
    }
    /// The state store.
    State { cache_bytes: u64, checkpoint_ms: u64, snapshots: String, snapshot_seconds: u64, logic_version: u32 }
    /// Event intake.
    Intake { max_events: usize, max_lag_ms: u64, inline_bytes: usize }
    /// Sends.
    Sending { decision_timeout_ms: u64, system_sender: String }
    /// Duplicates.
    Dedup { repeatable_horizon_hours: u32 }
    /// Sending identities.
    Identities { mail_domain: String, dkim_selector: String }
    /// The delivery simulator.
    Simulator {
        permanent_bounce_ppm: u32, delay_ppm: u32, complaint_ppm: u32, open_ppm: u32, click_ppm: u32,
        delivery_delay_ms: u32, reaction_delay_ms: u32,
    }
    /// Webhooks.
    Webhooks {
        allow_http: bool, allow_private_networks: Vec<IpNet>, ports: Vec<u16>, concurrency_per_destination: usize, concurrency: usize,
        failing_after_failures: u32, failing_after_seconds: u64, probe_seconds: u64, disabled_after_hours: u64, dns_servers: Vec<SocketAddr>,
        proxy: String, ca_location: PathBuf,
    }
    /// The Parquet archive.
    Archive {
        dir: PathBuf, commit_seconds: u64, commit_rows: usize, merge_seconds: u64, vacuum_after_hours: u64, seal: bool,
        seal_after_minutes: u32, intake: String, intake_days: u32, intake_seconds: u64,
    }
    /// Queries.
    Query {
        timeout_ms: u64, turn_within_ms: u64, concurrency: usize, concurrency_per_account: usize, threads: usize, cache_bytes: usize,
    }
    /// Exports.
    Exports {
        dir: PathBuf, at_once: usize, keep_hours: u32, waiting_per_account: usize, kept_per_account: usize, file_rows: u64,
    }
    /// ClickHouse, when there is one.
    ClickHouse {
        url: String, database: String, user: String, password: String, lanes: u32, retention_days: u32, batch_rows: usize,
        flush_ms: u64, insert_timeout_ms: u64, fallback: Fallback, max_wait_ms: u64, max_query_memory_bytes: u64,
        max_query_rows: u64,
    }
    /// Topics that others write, read into the intake.
    Sources { kafka: Vec<KafkaSource> }
    /// Large message bodies.
    Blobs { dir: String, retention_days: u32 }
    /// Buckets.
    S3 { endpoint: String, region: String, access_key_id: String, secret_access_key: String, allow_http: bool }
    /// Keys.
    Secrets { key: String, previous_keys: Vec<String>, seal_key: String }
    /// What is logged.
    Telemetry { log: String, format: String }
}

/// Where the log is.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// In the data folder.
    Embedded,
    /// On Apache Kafka.
    Kafka,
}

/// What becomes of queries while ClickHouse cannot answer.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Fallback {
    /// The archive answers.
    Archive,
    /// 503.
    Refuse,
}

/// Everything that is wrong with the settings.
#[derive(Debug, thiserror::Error)]
#[error("the settings have {} error(s):\n  {}", .0.len(), .0.join("\n  "))]
pub struct Invalid(pub Vec<String>);

impl Config {
    /// The defaults.
    pub fn defaults() -> Self {
        // A test reads them.
        #[expect(clippy::expect_used, reason = "the file is part of the program")]
        Figment::from(Toml::string(DEFAULTS)).extract().expect("config.default.toml fits the program")
    }

    /// Reads a file, if one is given, and the environment over the defaults.
    ///
    /// # Errors
    /// [`Invalid`] with every error there is.
    pub fn load(file: Option<&Path>) -> Result<Self, Invalid> {
        Self::load_with(file, &[])
    }

    /// The same, with other roles if any are given.
    ///
    /// # Errors
    /// [`Invalid`] with every error there is.
    pub fn load_with(file: Option<&Path>, roles: &[Role]) -> Result<Self, Invalid> {
        let mut given = Figment::new();
        if let Some(file) = file {
            if !file.is_file() {
                return Err(Invalid(vec![format!("{} is not a file", file.display())]));
            }
            given = given.merge(Toml::file(file));
        }
        given = environment::as_text(given.merge(Env::prefixed(ENVIRONMENT).split("__")), std::env::vars_os());
        if !roles.is_empty() {
            given = given.merge(Serialized::global("server.roles", roles));
        }
        Self::read(given)
    }

    /// Reads what was given over the defaults.
    fn read(given: Figment) -> Result<Self, Invalid> {
        let whole: Dict =
            given.extract().map_err(|cause| Invalid(cause.into_iter().map(|e| e.to_string()).collect()))?;
        let mut errors = Vec::new();
        let mut leaves = Vec::new();
        gather("", &Value::from(whole), &mut leaves);
        // Each setting is tried by itself, so that one error does not hide another.
        let mut sound = Figment::from(Toml::string(DEFAULTS));
        for (path, value) in leaves {
            let alone = Figment::from(Toml::string(DEFAULTS)).merge(Serialized::global(&path, &value));
            match alone.extract::<Self>() {
                Ok(_) => sound = sound.merge(Serialized::global(&path, &value)),
                Err(cause) => errors
                    .extend(cause.into_iter().map(|error| format!("{path}: {}", environment::told(&path, error.kind)))),
            }
        }
        match sound.extract::<Self>() {
            Ok(config) => {
                config.check(&mut errors);
                if errors.is_empty() { Ok(config) } else { Err(Invalid(errors)) }
            }
            Err(cause) => {
                errors.extend(cause.into_iter().map(|error| error.to_string()));
                Err(Invalid(errors))
            }
        }
    }

    /// A folder in the data folder, unless the settings name another.
    fn folder(&self, named: &Path, usual: &str) -> PathBuf {
        if named.as_os_str().is_empty() { self.data.dir.join(usual) } else { named.to_owned() }
    }

    /// Where the Parquet archive is.
    pub fn archive_folder(&self) -> PathBuf {
        self.folder(&self.archive.dir, "archive")
    }

    /// Whether intake is kept after the log has let it go.
    pub fn archives_intake(&self) -> bool {
        self.archive.intake_days > 0 && self.server.roles.has(Role::Processor)
    }

    /// Where it is kept.
    pub fn intake_place(&self) -> Place {
        match self.place(&self.archive.intake) {
            Some(place) => place.join(&self.kafka_options().log_name()),
            None => self.usual_intake_place(),
        }
    }

    /// Where it is kept unless the settings name a place.
    pub fn usual_intake_place(&self) -> Place {
        Place::Folder(self.archive_folder().join("intake"))
    }

    /// The places that this server shares with others, or might.
    pub fn places(&self) -> Vec<Place> {
        let roles = &self.server.roles;
        let blobs = (roles.has(Role::Ingest) || roles.has(Role::Delivery)).then(|| self.blobs_place());
        let intake = self.archives_intake().then(|| self.intake_place());
        let snapshots = self.snapshots().filter(|_| roles.has(Role::Processor) || roles.has(Role::Dispatcher));
        blobs.into_iter().chain(intake).chain(snapshots).collect()
    }

    /// Where exports are.
    pub fn exports_folder(&self) -> PathBuf {
        self.folder(&self.exports.dir, "exports")
    }

    /// Where large message bodies are.
    pub fn blobs_place(&self) -> Place {
        self.place(&self.blobs.dir).unwrap_or_else(|| Place::Folder(self.data.dir.join("blobs")))
    }

    /// A place that the settings name, if they do.
    fn place(&self, named: &str) -> Option<Place> {
        let S3 { endpoint, region, access_key_id, secret_access_key, allow_http } = self.s3.clone();
        let access = objects::S3 { endpoint, region, access_key_id, secret_access_key, allow_http };
        (!named.is_empty()).then(|| Place::read(named, &Arc::new(access)))?
    }

    /// The key that was given to seal secrets with.
    pub fn secret_key(&self) -> Option<[u8; 32]> {
        read_key(&self.secrets.key)
    }

    /// Keys that secrets were sealed with before.
    pub fn previous_secret_keys(&self) -> Vec<[u8; 32]> {
        self.secrets.previous_keys.iter().filter_map(|key| read_key(key)).collect()
    }

    /// The seed of the key that the archive is sealed with, if the settings have one.
    pub fn seal_key(&self) -> Option<[u8; 32]> {
        read_key(&self.secrets.seal_key)
    }

    /// How much is borne of webhooks that fail.
    pub fn webhook_patience(&self) -> Patience {
        let webhooks = &self.webhooks;
        let first_probe = webhooks.probe_seconds as i64 * SECOND;
        Patience {
            failures: webhooks.failing_after_failures,
            lasting: webhooks.failing_after_seconds as i64 * SECOND,
            first_probe,
            last_probe: first_probe.max(Patience::default().last_probe),
            disabled_after: webhooks.disabled_after_hours as i64 * HOUR,
        }
    }

    /// The proxy for webhooks, if there is one.
    pub fn webhook_proxy(&self) -> Option<http::Uri> {
        let uri: http::Uri = self.webhooks.proxy.parse().ok()?;
        (uri.scheme_str() == Some("http") && uri.host().is_some()).then_some(uri)
    }

    /// The settings as a file; secrets are not shown.
    pub fn show(&self) -> String {
        let mut shown = self.clone();
        if !shown.secrets.key.is_empty() {
            shown.secrets.key = "(set)".into();
        }
        shown.secrets.previous_keys.fill("(set)".into());
        let secrets = [
            &mut shown.secrets.seal_key,
            &mut shown.kafka.sasl_password,
            &mut shown.clickhouse.password,
            &mut shown.s3.secret_access_key,
        ];
        for secret in secrets {
            if !secret.is_empty() {
                *secret = "(set)".into();
            }
        }
        for address in [&mut shown.clickhouse.url, &mut shown.webhooks.proxy] {
            if let Ok(mut url) = url::Url::parse(address)
                && url.password().is_some()
                && url.set_password(Some("set")).is_ok()
            {
                *address = url.into();
            }
        }
        properties::hide(&mut shown.kafka.properties);
        shown.sources.kafka.iter_mut().for_each(|source| properties::hide(&mut source.properties));
        toml::to_string_pretty(&shown).unwrap_or_default()
    }

    /// How the embedded log is opened.
    pub fn log_options(&self) -> Options {
        let log = &self.log;
        Options {
            partitions: log.partitions,
            simulated: log.simulated,
            segment_bytes: log.segment_bytes,
            segment_age: Duration::from_secs(log.segment_hours * 3_600),
            cache_bytes: log.cache_bytes,
            queue_bytes: log.queue_bytes,
            disk_budget: log.disk_budget_bytes,
        }
    }

    /// How the log on Kafka is opened.
    pub fn kafka_options(&self) -> kafka::Options {
        let kafka = &self.kafka;
        let named = [
            ("bootstrap.servers", &kafka.bootstrap_servers),
            ("security.protocol", &kafka.security_protocol),
            ("sasl.mechanism", &kafka.sasl_mechanism),
            ("sasl.username", &kafka.sasl_username),
            ("sasl.password", &kafka.sasl_password),
            ("ssl.ca.location", &kafka.ssl_ca_location),
        ];
        let named = named.into_iter().filter(|(_, value)| !value.is_empty());
        let named = named.map(|(name, value)| (name.to_owned(), value.clone()));
        kafka::Options {
            namespace: kafka.namespace.clone(),
            partitions: self.log.partitions,
            simulated: self.log.simulated,
            replication: kafka.replication,
            allow_single_replica: kafka.allow_single_replica,
            retention_hours: kafka.retention_hours,
            create_topics: kafka.create_topics,
            cache_bytes: self.log.cache_bytes,
            queue_bytes: self.log.queue_bytes,
            parts: self.parts(),
            topics: self.topics(),
            shared: if self.shares_partitions() { Role::Processor.topics().into() } else { Vec::new() },
            properties: named.chain(properties::parse(&kafka.properties)).collect(),
            ..kafka::Options::default()
        }
    }

    /// Whether this server is a processor that owns what it is given while others own the rest: they find the state of what
    /// comes to them in snapshots.
    pub fn shares_partitions(&self) -> bool {
        let has_snapshots = !self.state.snapshots.is_empty();
        self.log.backend == Backend::Kafka && self.server.roles.has(Role::Processor) && has_snapshots
    }

    /// Where this log's snapshots are, if there are to be any: other logs' may be at the same place.
    pub fn snapshots(&self) -> Option<Place> {
        Some(self.place(&self.state.snapshots)?.join(&self.kafka_options().log_name()))
    }

    /// Where snapshots of what webhooks wait are, if another server may go on with them.
    pub fn book_snapshots(&self) -> Option<Place> {
        self.snapshots().filter(|_| self.log.backend == Backend::Kafka).map(|place| place.join("webhooks"))
    }

    /// What this server does of which there is one at a time.
    fn parts(&self) -> Vec<kafka::Part> {
        let parts = self.server.roles.parts().into_iter();
        parts.filter(|part| *part != kafka::Part::Processor || !self.shares_partitions()).collect()
    }

    /// The topics of which it reads every partition.
    fn topics(&self) -> Vec<Topic> {
        let roles = &self.server.roles;
        if !self.shares_partitions() {
            return roles.topics();
        }
        let mut topics = roles.without(Role::Processor).topics();
        // A source may have events of any partition.
        if !self.sources.kafka.is_empty() && !topics.contains(&Topic::Intake) {
            topics.push(Topic::Intake);
        }
        topics
    }

    /// Logic to decide by.
    pub fn logic_version(&self) -> u32 {
        if self.state.logic_version == 0 { LOGIC_VERSION } else { self.state.logic_version }
    }

    /// How often the state is made durable.
    pub fn checkpoint_every(&self) -> Duration {
        Duration::from_millis(self.state.checkpoint_ms)
    }
}

/// Every setting with its path.
fn gather(path: &str, value: &Value, leaves: &mut Vec<(String, Value)>) {
    match value {
        Value::Dict(_, dict) => {
            for (name, value) in dict {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                gather(&path, value, leaves);
            }
        }
        leaf => leaves.push((path.to_owned(), leaf.clone())),
    }
}

/// Thirty-two bytes in base64.
fn read_key(text: &str) -> Option<[u8; 32]> {
    use base64::Engine;
    base64::prelude::BASE64_STANDARD.decode(text).ok()?.try_into().ok()
}
