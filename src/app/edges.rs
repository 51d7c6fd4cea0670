//! What clients speak to: the write side and the read side, over what is here and what is elsewhere.

use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use sendtrail_ingest::sources::Source as KafkaSource;
use sendtrail_ingest::{DeadLetters, Ingest, Limits};
use sendtrail_processor::archive::{EVENTS, Follower};
use sendtrail_query_api::{DataFusionAnalytics, Deliveries, Preferred, Query, Replica, Source};

use super::Tasks;
use super::filing::Filing;
use super::shared::Shared;
use crate::clickhouse;
use crate::config::Config;
use crate::elsewhere::DistantReplica;
use crate::health::{self, Health};
use crate::keys::{ADMIN_KEY_VARIABLE, AdminKey, admin_key};
use crate::metrics;
use crate::ports::{
    ClickHouseReplica, DeadLetterBox, DeliveryStates, FollowedArchive, LoggedDeadLetters, NoDeliveries, OwnedAccounts,
    Sums,
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
        });
        let dead_letters: Arc<dyn DeadLetters> = match &filing.reader {
            Some(reader) => Arc::new(DeadLetterBox(reader.clone())),
            None => Arc::new(LoggedDeadLetters { log: shared.log.clone(), partitions: config.log.partitions }),
        };
        let archive =
            Arc::new(DataFusionAnalytics::new(filing.cell.clone(), config.query.cache_bytes, config.query.threads));
        let patience = Duration::from_millis(config.clickhouse.max_wait_ms);
        let replica: Arc<dyn Replica> = match &filing.clickhouse {
            Some((sink, _)) => Arc::new(ClickHouseReplica {
                sink: sink.clone(),
                cell: filing.cell.clone(),
                partitions: config.log.partitions,
                patience,
            }),
            None => Arc::new(DistantReplica { elsewhere: shared.elsewhere.clone(), patience }),
        };
        let preferred = clickhouse::preferred(config, &archive, replica);
        let (preferred, analytics) = preferred.unzip();
        let (source, deliveries): (Source, Arc<dyn Deliveries>) = match &filing.reader {
            Some(reader) => (
                Source { rollups: Arc::new(Sums(reader.clone())), analytics: archive },
                Arc::new(DeliveryStates(reader.clone())),
            ),
            None => {
                let as_of = Arc::<AtomicI64>::default();
                if config.server.roles.has(Role::Query) {
                    let elsewhere = shared.elsewhere.clone();
                    let follower = Follower {
                        layout: &EVENTS,
                        root: config.archive_folder().join(EVENTS.name),
                        cell: filing.cell.clone(),
                        ends: Box::new(move || elsewhere.ends()),
                        clock: shared.clock.clone(),
                        as_of: as_of.clone(),
                        every: FOLLOW_EVERY,
                    };
                    // Nobody asks before it was looked at.
                    tasks.spawn(follower.begin().await.run(tasks.stop.clone()));
                }
                let analytics_here = Arc::new(FollowedArchive { archive: archive.clone(), as_of });
                let deliveries: Arc<dyn Deliveries> = match analytics {
                    Some(clickhouse) => clickhouse,
                    None => Arc::new(NoDeliveries),
                };
                (Source { rollups: archive, analytics: analytics_here }, deliveries)
            }
        };
        Self { accounts, source, preferred, deliveries, dead_letters }
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
            sources: sources::rules(sources),
            admin_key_hash,
            limits: limits(config),
        })
    }

    /// The read side.
    pub fn query(self, config: &Config, shared: &Shared) -> Query {
        Query::new(sendtrail_query_api::Parts {
            directory: shared.directory.clone(),
            accounts: self.accounts,
            source: self.source,
            preferred: self.preferred,
            deliveries: self.deliveries,
            clock: shared.clock.clone(),
            timeout: Duration::from_millis(config.query.timeout_ms),
            concurrency: config.query.concurrency,
            concurrency_per_account: config.query.concurrency_per_account,
        })
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
        allow_http_webhooks: config.webhooks.allow_http,
        inline_bytes: config.intake.inline_bytes,
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
        admin = admin.merge(Router::from(sendtrail_query_api::admin_routes()).with_state(query));
    }
    let mut router = Router::new();
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
