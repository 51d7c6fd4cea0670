//! Servers of one deployment, and partners who use it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use http::Method;
use sendtrail::client::Api;
use sendtrail_processor::clickhouse::migrate;
use sendtrail_schemas::topic::partition_of;
use tempfile::TempDir;

use crate::binary::{ADMIN_KEY, Process, refused};
use crate::kafka::environment;
use crate::support::*;

pub const PARTITIONS: usize = 4;
const SECRET: &str = "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2U=";

/// Servers that share a broker, a ClickHouse and folders, or a bucket; each has a data folder of its own.
pub struct Fleet {
    folder: TempDir,
    pub settings: Vec<(String, String)>,
}

impl Fleet {
    pub async fn new(namespace: &str, further: &[(&str, &str)]) -> Option<Self> {
        let (kafka, clickhouse) = (sendtrail_test_servers::kafka()?, sendtrail_test_servers::clickhouse()?);
        let folder = TempDir::new().unwrap();
        let shared = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let namespace = format!("{namespace}-{}", std::process::id());
        let database = namespace.replace('-', "_");
        let mut config = sendtrail::config::Config::defaults();
        config.clickhouse.url = format!("http://{clickhouse}");
        config.clickhouse.database.clone_from(&database);
        let client = sendtrail::clickhouse::client(&config.clickhouse).unwrap();
        migrate(&client, &sendtrail::clickhouse::wanted(&config, false)).await.unwrap();
        let mut settings: Vec<(String, String)> = environment(kafka, &namespace)
            .into_iter()
            .chain([
                // Shorter than usual, for those that are killed, and as long as a broker may stall that nobody stopped.
                ("SENDTRAIL__KAFKA__PROPERTIES", r#"["session.timeout.ms=12000"]"#),
                ("SENDTRAIL__CLICKHOUSE__URL", &config.clickhouse.url),
                ("SENDTRAIL__CLICKHOUSE__DATABASE", &database),
                ("SENDTRAIL__CLICKHOUSE__FLUSH_MS", "100"),
                ("SENDTRAIL__CLICKHOUSE__MAX_WAIT_MS", "20000"),
                // The engine answers one after the other, and other tests ask it, too.
                ("SENDTRAIL__QUERY__TIMEOUT_MS", "60000"),
                ("SENDTRAIL__ARCHIVE__DIR", &shared("archive")),
                ("SENDTRAIL__ARCHIVE__COMMIT_SECONDS", "1"),
                ("SENDTRAIL__ARCHIVE__INTAKE_SECONDS", "1"),
                ("SENDTRAIL__BLOBS__DIR", &shared("blobs")),
                ("SENDTRAIL__STATE__SNAPSHOTS", &shared("snapshots")),
                ("SENDTRAIL__STATE__SNAPSHOT_SECONDS", "1"),
                ("SENDTRAIL__SECRETS__KEY", SECRET),
                ("SENDTRAIL__WEBHOOKS__ALLOW_HTTP", "true"),
                ("SENDTRAIL__WEBHOOKS__ALLOW_PRIVATE_NETWORKS", r#"["127.0.0.0/8"]"#),
                ("SENDTRAIL__STATE__CHECKPOINT_MS", "200"),
            ])
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        settings.extend(further.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        Some(Self { folder, settings })
    }

    /// The same; what processors, dispatchers and doors share is in a bucket that fails half of the time, and every message's
    /// content.
    pub async fn in_bucket(namespace: &str) -> Option<Self> {
        let store = sendtrail_test_servers::unreliable_s3()?;
        let prefix = format!("s3://sendtrail/{namespace}");
        let (endpoint, below) = (format!("http://{store}"), |name: &str| format!("{prefix}/{name}"));
        let further = [
            ("SENDTRAIL__S3__ENDPOINT", &*endpoint),
            ("SENDTRAIL__S3__ALLOW_HTTP", "true"),
            ("SENDTRAIL__S3__REGION", "us-east-1"),
            ("SENDTRAIL__S3__ACCESS_KEY_ID", "name"),
            ("SENDTRAIL__S3__SECRET_ACCESS_KEY", "key"),
            ("SENDTRAIL__STATE__SNAPSHOTS", &below("snapshots")),
            ("SENDTRAIL__BLOBS__DIR", &below("blobs")),
            ("SENDTRAIL__ARCHIVE__INTAKE", &below("intake")),
            ("SENDTRAIL__INTAKE__INLINE_BYTES", "0"),
        ];
        Self::new(namespace, &further).await
    }

    pub fn data(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn settings<'a>(&'a self, roles: &'a str) -> Vec<(&'a str, &'a str)> {
        let shared = self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        shared.chain([("SENDTRAIL__SERVER__ROLES", roles)]).collect()
    }

    /// A server with some roles, on a folder of this name.
    pub fn start(&self, name: &str, roles: &[&str]) -> Process {
        self.start_with(name, roles, &[])
    }

    /// The same with other settings.
    pub fn start_with(&self, name: &str, roles: &[&str], further: &[(&str, &str)]) -> Process {
        let roles = json!(roles).to_string();
        let settings: Vec<_> = self.settings(&roles).into_iter().chain(further.iter().copied()).collect();
        Process::start(&self.data(name), &settings)
    }

    /// What a command says in the folder of a server that was stopped, and whether it did what it should.
    pub fn run(&self, name: &str, roles: &[&str], command: &str) -> (bool, String) {
        let roles = json!(roles).to_string();
        let settings = self.settings(&roles);
        let mut program = std::process::Command::new(crate::binary::PROGRAM);
        let done = program.args([command, "--data"]).arg(self.data(name)).envs(settings).output().unwrap();
        (done.status.success(), String::from_utf8_lossy(&done.stdout).into_owned())
    }

    /// What all are set to, by the end of the setting's name.
    pub fn setting(&self, name: &str) -> String {
        self.settings.iter().find(|(key, _)| key.ends_with(name)).unwrap().1.clone()
    }

    /// What one says that must not start.
    pub async fn refused(&self, name: &str, roles: &[&str], further: &[(&str, &str)]) -> String {
        let roles = json!(roles).to_string();
        let settings: Vec<_> = self.settings(&roles).into_iter().chain(further.iter().copied()).collect();
        refused(&self.data(name), &settings).await
    }
}

/// An account in production with a key, a verified domain and a webhook; its key and its identifier.
pub async fn partner(front: &Process, receiver: &Receiver, minimum_sends: u64) -> (String, String) {
    let admin = Api::new(&front.base, ADMIN_KEY);
    let body = json!({"name": "split", "contact_email": "a@b.example", "mode": "production",
        "daily_send_quota": 100_000_000, "peak_send_rate_per_second": 1_000_000,
        "policy": {"minimum_sends": minimum_sends}});
    let account = admin.post(&format!("{ADMIN}/accounts"), &body).await.unwrap();
    let id = account["account"]["account_id"].as_str().unwrap().to_owned();
    let account = format!("{ADMIN}/accounts/{id}");
    let key = admin.post(&format!("{account}/keys"), &json!({})).await.unwrap();
    let key = key["key"]["api_key"].as_str().unwrap().to_owned();
    // Whoever made a change sees it: the key is good at once where it was made.
    let api = admin.with_key(&key);
    let identity = json!({"identity_type": "DOMAIN", "identity_value": "split.example"});
    api.post(&format!("{PARTNER}/identities"), &identity).await.unwrap();
    let verify = format!("{account}/identities/DOMAIN/split.example/override");
    admin.post(&verify, &json!({"status": "VERIFIED"})).await.unwrap();
    let set = api.post(&format!("{PARTNER}/configuration-sets"), &json!({"name": "set"})).await.unwrap();
    let set = set["configuration_set"]["config_set_id"].as_str().unwrap().to_owned();
    let hook = json!({"name": "hook", "destination_type": "WEBHOOK", "webhook_url": receiver.base,
        "dialect": "standard"});
    api.post(&format!("{PARTNER}/configuration-sets/{set}/event-destinations"), &hook).await.unwrap();
    (key, id)
}

/// The same in every partition.
pub async fn partners(front: &Process, receiver: &Receiver) -> Vec<(String, String)> {
    let mut found = BTreeMap::new();
    while found.len() < PARTITIONS {
        let (key, id) = partner(front, receiver, 1_000_000_000).await;
        let account: sendtrail_schemas::ids::AccountId = id.parse().unwrap();
        found.insert(partition_of(account, PARTITIONS as u32), (key, id));
    }
    found.into_values().collect()
}

/// The sum of a metric over its labels, as a server tells it.
pub async fn told(server: &Process, name: &str) -> f64 {
    let reply = Api::new(&server.base, "").call(Method::GET, "/metrics", &[], "").await.unwrap();
    let text = String::from_utf8_lossy(&reply.body).into_owned();
    let value = text.lines().filter(|line| line.starts_with(name)).filter_map(|line| line.split(' ').next_back());
    value.map(|value| value.parse::<f64>().unwrap()).sum::<f64>()
}

pub fn message(to: &str) -> String {
    json!({"from": "News <news@split.example>", "to": [to], "subject": "Hello", "text_body": "Hello!",
        "configuration_set_name": "set"})
    .to_string()
}

pub async fn send(api: &Api, to: &str) -> (u16, Value) {
    let headers = [("content-type", "application/json")];
    let reply = api.call(Method::POST, &format!("{PARTNER}/send"), &headers, message(to)).await.unwrap();
    (reply.status.as_u16(), reply.json())
}
