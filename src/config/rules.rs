//! What must hold of settings beyond their types.

use std::path::Path;

use sendtrail_processor::core::step::LOGIC_VERSION;

use super::{Backend, Config};
use crate::roles::Role;
use crate::{properties, sources};

impl Config {
    /// What types cannot tell.
    pub(super) fn check(&self, errors: &mut Vec<String>) {
        let mut need = |holds: bool, what: &str| {
            if !holds {
                errors.push(what.to_owned());
            }
        };
        need(self.server.listen.parse::<std::net::SocketAddr>().is_ok(), "server.listen: not an address and a port");
        need(self.server.max_connections > 0, "server.max_connections: at least 1");
        need(self.server.max_header_bytes >= 8_192, "server.max_header_bytes: at least 8192");
        need(self.server.max_body_bytes >= 1_024, "server.max_body_bytes: at least 1024");
        need((1..=65_535).contains(&self.log.partitions), "log.partitions: 1 to 65535");
        need((1 << 16..=2 << 30).contains(&self.log.segment_bytes), "log.segment_bytes: 64 KiB to 2 GiB");
        need(self.log.queue_bytes >= 1 << 20, "log.queue_bytes: at least 1 MiB");
        need((1..=8_760).contains(&self.log.segment_hours), "log.segment_hours: 1 to 8760");
        need(self.log.disk_budget_bytes >= 2 * self.log.segment_bytes, "log.disk_budget_bytes: at least two segments");
        need(!self.kafka.bootstrap_servers.is_empty(), "kafka.bootstrap_servers: none");
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let namespace = &self.kafka.namespace;
        need(
            (1..=200).contains(&namespace.len()) && namespace.chars().all(plain),
            "kafka.namespace: letters, digits, . _ -",
        );
        need(self.kafka.replication > 0, "kafka.replication: at least 1");
        need((24..=87_600).contains(&self.kafka.retention_hours), "kafka.retention_hours: 24 to 87600");
        need(properties::are_sound(&self.kafka.properties), "kafka.properties: each is name=value");
        need(self.state.checkpoint_ms >= 10, "state.checkpoint_ms: at least 10");
        need(self.state.snapshot_seconds > 0, "state.snapshot_seconds: at least 1");
        need(
            self.state.logic_version <= LOGIC_VERSION,
            &format!("state.logic_version: this program knows 1 to {LOGIC_VERSION}"),
        );
        need(self.intake.max_events > 0, "intake.max_events: at least 1");
        need(self.intake.inline_bytes <= 512 << 10, "intake.inline_bytes: at most 512 KiB");
        // What a request is repeated with has to be known for longer than its `Idempotency-Key`, which is a day.
        need((25..=360).contains(&self.dedup.repeatable_horizon_hours), "dedup.repeatable_horizon_hours: 25 to 360");
        let sender = &self.sending.system_sender;
        let reads = sendtrail_schemas::address::parse_mailbox(sender).is_ok();
        need(sender.is_empty() || reads, "sending.system_sender: not an e-mail address");
        let shares = &self.simulator;
        let shares =
            [shares.permanent_bounce_ppm, shares.delay_ppm, shares.complaint_ppm, shares.open_ppm, shares.click_ppm];
        need(shares.iter().all(|share| *share <= 1_000_000), "simulator: shares are at most 1000000 parts per million");
        let webhooks = &self.webhooks;
        need(webhooks.concurrency_per_destination > 0, "webhooks.concurrency_per_destination: at least 1");
        need((1..=65_536).contains(&webhooks.concurrency), "webhooks.concurrency: 1 to 65536");
        need(webhooks.failing_after_failures > 0, "webhooks.failing_after_failures: at least 1");
        let times = [webhooks.failing_after_seconds, webhooks.probe_seconds, webhooks.disabled_after_hours * 3_600];
        let within = times.into_iter().all(|seconds| seconds <= 365 * 86_400);
        need(
            within && webhooks.probe_seconds > 0,
            "webhooks: probe_seconds is at least 1, and no time longer than a year",
        );
        let proxy = webhooks.proxy.is_empty() || self.webhook_proxy().is_some();
        need(proxy, "webhooks.proxy: not an http:// address");
        need(self.archive.commit_rows >= 1_000, "archive.commit_rows: at least 1000");
        need(self.archive.commit_seconds > 0, "archive.commit_seconds: at least 1");
        need(self.archive.merge_seconds > 0, "archive.merge_seconds: at least 1");
        need(self.archive.intake_days <= 3_650, "archive.intake_days: at most 3650");
        need(self.archive.intake_seconds > 0, "archive.intake_seconds: at least 1");
        need(self.query.concurrency > 0 && self.query.threads > 0, "query.concurrency and query.threads: at least 1");
        need(self.exports.file_rows > 0, "exports.file_rows: at least 1");
        need((1..=16).contains(&self.exports.at_once), "exports.at_once: 1 to 16");
        need(self.query.concurrency_per_account > 0, "query.concurrency_per_account: at least 1");
        let clickhouse = &self.clickhouse;
        let reads = url::Url::parse(&clickhouse.url).is_ok_and(|url| ["http", "https"].contains(&url.scheme()));
        need(clickhouse.url.is_empty() || reads, "clickhouse.url: not an http:// or https:// address");
        need(!clickhouse.database.is_empty(), "clickhouse.database: none");
        need((1..=64).contains(&clickhouse.lanes), "clickhouse.lanes: 1 to 64");
        need(clickhouse.retention_days <= 36_500, "clickhouse.retention_days: at most 36500");
        need((1_000..=1_000_000).contains(&clickhouse.batch_rows), "clickhouse.batch_rows: 1000 to 1000000");
        need(clickhouse.flush_ms >= 10, "clickhouse.flush_ms: at least 10");
        need(clickhouse.insert_timeout_ms >= 1_000, "clickhouse.insert_timeout_ms: at least 1000");
        need(clickhouse.max_query_memory_bytes >= 1 << 20, "clickhouse.max_query_memory_bytes: at least 1048576");
        let places = [
            ("state.snapshots", &self.state.snapshots),
            ("archive.intake", &self.archive.intake),
            ("blobs.dir", &self.blobs.dir),
        ];
        for (name, named) in places {
            let reads = named.is_empty() || self.place(named).is_some();
            need(reads, &format!("{name}: neither a folder nor s3://bucket/prefix"));
        }
        let endpoint = url::Url::parse(&self.s3.endpoint).ok();
        let endpoint = endpoint.filter(|url| url.username().is_empty() && url.password().is_none());
        let allowed = match endpoint.as_ref().map(url::Url::scheme) {
            Some("http") => self.s3.allow_http,
            scheme => self.s3.endpoint.is_empty() || scheme == Some("https"),
        };
        need(
            allowed,
            "s3.endpoint: not an https:// address (nor an http:// one with s3.allow_http), or with a password",
        );
        let keys = [&self.s3.access_key_id, &self.s3.secret_access_key].map(|key| key.is_empty());
        need(keys[0] == keys[1], "s3.access_key_id and s3.secret_access_key: both or none");
        need(self.blobs.retention_days > 0, "blobs.retention_days: at least 1");
        need(self.secrets.key.is_empty() || self.secret_key().is_some(), "secrets.key: not 32 bytes in base64");
        let previous = self.previous_secret_keys().len() == self.secrets.previous_keys.len();
        need(previous, "secrets.previous_keys: not 32 bytes in base64, each");
        let seal_key = self.secrets.seal_key.is_empty() || self.seal_key().is_some();
        need(seal_key, "secrets.seal_key: not 32 bytes in base64");
        need(
            ["auto", "pretty", "json"].contains(&self.telemetry.format.as_str()),
            "telemetry.format: auto, pretty or json",
        );
        self.check_roles(&mut need);
        sources::check(&self.sources.kafka, errors);
    }

    /// What a server needs that does not do everything.
    fn check_roles(&self, need: &mut impl FnMut(bool, &str)) {
        let roles = &self.server.roles;
        need(!roles.is_empty(), "server.roles: none");
        if roles.is_all() || roles.is_empty() {
            return;
        }
        need(self.log.backend == Backend::Kafka, "server.roles: only with the log on Kafka can others do the rest");
        need(!self.secrets.key.is_empty(), "secrets.key: needed where roles are split, the same on every server");
        let has_dir = |dir: &Path| !dir.as_os_str().is_empty();
        need(
            !self.blobs.dir.is_empty() || !(roles.has(Role::Ingest) || roles.has(Role::Delivery)),
            "blobs.dir: needed where roles are split, a folder or bucket that every server with ingest or delivery sees",
        );
        let keeps_all = !self.clickhouse.url.is_empty() && self.clickhouse.retention_days == 0;
        need(
            !roles.has(Role::Query) || roles.has(Role::Sinks) || has_dir(&self.archive.dir) || keeps_all,
            "archive.dir: needed where query and sinks are apart, a folder that both see, unless ClickHouse keeps \
             everything (clickhouse.retention_days = 0)",
        );
    }
}
