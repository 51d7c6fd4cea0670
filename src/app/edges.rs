//! What clients speak to: the write side and the read side, over what is here and what is elsewhere.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use sendtrail_ingest::sources::Source as KafkaSource;
use sendtrail_ingest::{DeadLetters, Ingest, Limits};
use sendtrail_processor::archive::{ATTEMPTS, EVENTS, Follower, Layout};
use sendtrail_query_api::exports::{ExportOptions, Exports, Rows};
use sendtrail_query_api::{
    ArchivedAttempts, ClickHouseAnalytics, DataFusionAnalytics, Deliveries, Preferred, Query, Replica, Source,
};

use sendtrail_schemas::archive::ArchiveCell;
use sendtrail_schemas::time::{HOUR, Millis};

use super::Tasks;
use super::filing::Filing;
use super::shared::Shared;
use crate::clickhouse;
use crate::config::Config;
use crate::elsewhere::DistantReplica;
use crate::health::{self, Health};
use crate::keys::{self, ADMIN_KEY_VARIABLE, AdminKey, admin_key};
use crate::metrics;
use crate::ports::{
    AskedChanges, ClickHouseReplica, DeadLetterBox, DeliveryStates, FollowedArchive, LoggedDeadLetters,
    LoggedEventNumbers, OwnedAccounts, Sampler, Sums, SuppressionRows,
};
use crate::roles::{Role, Roles};
use crate::sources;

/// How often an archive is looked at that another server writes.
const FOLLOW_EVERY: Duration = Duration::from_secs(2);

/// Where answers come from.
pub struct Edges {
    accounts: Arc<OwnedAccounts>,
    source: Source,
    preferred: Option<Preferred>,
    deliveries: Arc<dyn Deliveries>,
    archive: Arc<DataFusionAnalytics>,
    clickhouse: Option<Arc<ClickHouseAnalytics>>,
    attempts: Arc<ArchivedAttempts>,
    dead_letters: Arc<dyn DeadLetters>,
}

impl Edges {
    pub async fn new(config: &Config, shared: &Shared, filing: &Filing, tasks: &mut Tasks) -> Self {
        let accounts = Arc::new(OwnedAccounts {
            log: shared.log.clone(),
            owners: shared.owners.clone(),
            pulses: shared.pulses.clone(),
            elsewhere: shared.elsewhere.clone(),
            sink: filing.sink.clone(),
            cell: filing.cell.clone(),
        });
        let dead_letters: Arc<dyn DeadLetters> = match &filing.reader {
            Some(reader) => Arc::new(DeadLetterBox(reader.clone())),
            None => Arc::new(LoggedDeadLetters { log: shared.log.clone(), partitions: config.log.partitions }),
        };
        let archive =
            Arc::new(DataFusionAnalytics::new(filing.cell.clone(), config.query.cache_bytes, config.query.threads));
        let attempts = Arc::new(ArchivedAttempts::new(filing.attempts.clone(), config.query.threads));
        let patience = Duration::from_millis(config.clickhouse.max_wait_ms);
        let replica: Arc<dyn Replica> = match &filing.clickhouse {
            Some((sink, _)) => Arc::new(ClickHouseReplica {
                sink: sink.clone(),
                cell: filing.cell.clone(),
                partitions: config.log.partitions,
                patience,
            }),
            None => {
                let (log, elsewhere) = (shared.log.clone(), shared.elsewhere.clone());
                Arc::new(DistantReplica { log, elsewhere, patience })
            }
        };
        let preferred = clickhouse::preferred(config, &archive, replica);
        let (preferred, analytics): (_, Option<Arc<ClickHouseAnalytics>>) = preferred.unzip();
        let clickhouse = analytics.clone();
        let (source, deliveries): (Source, Arc<dyn Deliveries>) = match &filing.reader {
            Some(reader) => (
                Source { rollups: Arc::new(Sums(reader.clone())), analytics: archive.clone() },
                Arc::new(DeliveryStates { reader: reader.clone(), partitions: config.log.partitions }),
            ),
            None => {
                let as_of = Arc::<AtomicI64>::default();
                let roles = &config.server.roles;
                // Whoever posts webhooks reads events that are to be told once more.
                if roles.has(Role::Query) || roles.has(Role::Dispatcher) {
                    let elsewhere = shared.elsewhere.clone();
                    let of_events = follower(config, &EVENTS, &filing.cell, as_of.clone());
                    let (log, clock) = (shared.log.clone(), shared.clock.clone());
                    let look = Box::new(move || elsewhere.look(&*log, &clock));
                    let of_events = Follower { look, ..of_events };
                    let of_attempts = follower(config, &ATTEMPTS, &filing.attempts, Arc::default());
                    for follower in [of_events, of_attempts] {
                        // Nobody asks before it was looked at.
                        tasks.spawn(follower.begin().await.run(tasks.stop.clone()));
                    }
                }
                let analytics_here = Arc::new(FollowedArchive { archive: archive.clone(), as_of });
                let deliveries: Arc<dyn Deliveries> = match analytics {
                    Some(clickhouse) => clickhouse,
                    None => attempts.clone(),
                };
                (Source { rollups: archive.clone(), analytics: analytics_here }, deliveries)
            }
        };
        Self { accounts, source, preferred, deliveries, archive, clickhouse, attempts, dead_letters }
    }

    /// The write side; also what knows keys.
    pub fn ingest(
        &self,
        config: &Config,
        shared: &Shared,
        sources: &[KafkaSource],
        admin_key_hash: [u8; 32],
    ) -> Ingest {
        Ingest::new(sendtrail_ingest::Parts {
            log: shared.log.clone(),
            replies: shared.replies.clone(),
            directory: shared.directory.clone(),
            pulses: shared.pulses.clone(),
            blobs: shared.blobs.clone(),
            vault: shared.vault.clone(),
            clock: shared.clock.clone(),
            suppressions: Arc::new(shared.suppressions(config)),
            dead_letters: self.dead_letters.clone(),
            samples: Arc::new(Sampler(shared.sender.clone())),
            sources: sources::rules(sources),
            admin_key_hash,
            limits: limits(config),
        })
    }

    /// Exports, where this server is asked and sees the archive.
    fn exports(&self, config: &Config, shared: &Shared, tasks: &mut Tasks) -> anyhow::Result<Option<Exports>> {
        let roles = &config.server.roles;
        let sees_archive = roles.has(Role::Sinks) || !config.archive.dir.as_os_str().is_empty();
        if !roles.has(Role::Query) || !sees_archive {
            return Ok(None);
        }
        let data = &config.data.dir;
        let options = ExportOptions {
            folder: config.exports_folder(),
            keep: i64::from(config.exports.keep_hours) * HOUR,
            at_once: config.exports.at_once,
            waiting: config.exports.waiting_per_account,
            kept: config.exports.kept_per_account,
            file_rows: config.exports.file_rows,
            links_hold: HOUR,
            link_key: keys::link_key(data, config)?,
            seal_key: Arc::new(keys::seal_key(data, config)?),
        };
        let rows = Rows {
            events: self.archive.clone(),
            attempts: self.attempts.clone(),
            sums: self.source.rollups.clone(),
            suppressions: Arc::new(SuppressionRows(Arc::new(shared.suppressions(config)))),
            directory: shared.directory.clone(),
            accounts: self.accounts.clone(),
            partitions: config.log.partitions,
        };
        let exports = Exports::new(options, rows, shared.clock.clone());
        tasks.spawn(exports.clone().run(tasks.stop.clone()));
        Ok(Some(exports))
    }

    /// The read side.
    pub fn query(self, config: &Config, shared: &Shared, ingest: &Ingest, tasks: &mut Tasks) -> anyhow::Result<Query> {
        let exports = self.exports(config, shared, tasks)?;
        let files = self.archive.clone();
        Ok(Query::new(sendtrail_query_api::Parts {
            directory: shared.directory.clone(),
            accounts: self.accounts,
            source: self.source,
            preferred: self.preferred,
            deliveries: self.deliveries,
            attempts: self.attempts,
            changes: Arc::new(AskedChanges(ingest.clone())),
            partitions: config.log.partitions,
            clock: shared.clock.clone(),
            timeout: Duration::from_millis(config.query.timeout_ms),
            turn_within: Duration::from_millis(config.query.turn_within_ms),
            concurrency: config.query.concurrency,
            concurrency_per_account: config.query.concurrency_per_account,
            exports,
            files,
            clickhouse: self.clickhouse,
            logged: Arc::new(LoggedEventNumbers { log: shared.log.clone(), partitions: config.log.partitions }),
        }))
    }
}

/// What follows a table that another server writes.
fn follower(config: &Config, layout: &'static Layout, cell: &Arc<ArchiveCell>, as_of: Arc<AtomicI64>) -> Follower {
    Follower {
        layout,
        root: config.archive_folder().join(layout.name()),
        cell: cell.clone(),
        look: Box::new(|| (Millis(0), BTreeMap::new())),
        as_of,
        every: FOLLOW_EVERY,
    }
}

/// The administrator's key. Where several servers have clients it must be given to each: one that is made is only one's
/// own.
pub fn admin(config: &Config) -> anyhow::Result<AdminKey> {
    let roles = &config.server.roles;
    let given = std::env::var(ADMIN_KEY_VARIABLE).ok().filter(|key| !key.is_empty());
    if !roles.has_clients() {
        // Nobody can have a key to this.
        return Ok(AdminKey { hash: rand::random(), fresh: None });
    }
    if !roles.is_all() && given.is_none() && !config.data.dir.join("admin-key.sha256").exists() {
        anyhow::bail!("{ADMIN_KEY_VARIABLE} is needed where roles are split, the same for every server with clients");
    }
    admin_key(&config.data.dir, given)
}

fn limits(config: &Config) -> Limits {
    Limits {
        max_lag: Duration::from_millis(config.intake.max_lag_ms),
        decision_timeout: Duration::from_millis(config.sending.decision_timeout_ms),
        body_timeout: Duration::from_millis(config.server.body_timeout_ms),
        max_body_bytes: config.server.max_body_bytes,
        max_events: config.intake.max_events,
        mail_domain: config.identities.mail_domain.clone(),
        dkim_selector: config.identities.dkim_selector.clone(),
        inline_bytes: config.intake.inline_bytes,
        requests_per_second: config.server.requests_per_second_per_account,
    }
}

/// Everything that this server answers.
pub fn routes(roles: &Roles, ingest: Ingest, query: Query, health: Health) -> Router {
    let (mut partner, mut admin) = (Router::new(), Router::new());
    if roles.has(Role::Ingest) {
        partner = partner.merge(Router::from(sendtrail_ingest::partner_routes()).with_state(ingest.clone()));
        admin = admin.merge(Router::from(sendtrail_ingest::admin_routes()).with_state(ingest.clone()));
    }
    if roles.has(Role::Query) {
        partner = partner.merge(Router::from(sendtrail_query_api::partner_routes()).with_state(query.clone()));
        admin = admin.merge(Router::from(sendtrail_query_api::admin_routes()).with_state(query.clone()));
    }
    let mut router = Router::new();
    if roles.has(Role::Query) {
        router = router.nest("/api/v1", Router::from(sendtrail_query_api::link_routes()).with_state(query));
    }
    if roles.has(Role::Ingest) {
        let of_sendcomms = from_fn_with_state(ingest.clone(), sendtrail_ingest::auth::sendcomms);
        let of_zmailer = from_fn_with_state(ingest.clone(), sendtrail_ingest::auth::zmailer);
        let of = |routes| Router::from(routes).with_state(ingest.clone());
        let sendcomms = of(sendtrail_ingest::sendcomms_routes()).layer(of_sendcomms);
        let zmailer = of(sendtrail_ingest::zmailer_routes()).layer(of_zmailer);
        router = router
            .nest("/api/v1/webhooks", sendcomms.layer(from_fn(sendtrail_ingest::style::sendcomms)))
            .nest("/api/v1/inbound", of(sendtrail_ingest::inbound_routes()))
            .merge(zmailer.layer(from_fn(sendtrail_ingest::style::zmailer)));
    }
    if roles.has_clients() {
        let partner = partner.layer(from_fn_with_state(ingest.clone(), sendtrail_ingest::auth::partner));
        let admin = admin.layer(from_fn_with_state(ingest, sendtrail_ingest::auth::admin));
        router = router.nest("/api/v1/partner/email", partner).nest("/api/v1/admin", admin);
    }
    router
        .merge(health::routes(health))
        .fallback(health::not_found)
        .method_not_allowed_fallback(health::method_not_allowed)
        .layer(from_fn(metrics::measure))
}
