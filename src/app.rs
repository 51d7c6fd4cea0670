//! The only place where everything is put together, and taken apart again in the right order.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use rand::Rng;
use sendtrail_eventlog::{Blobs, Clock, EventLog, LocalReplies, Pulse, Retention};
use sendtrail_ingest::{Ingest, Limits};
use sendtrail_processor::archive::{ATTEMPTS, EVENTS, Layout, Table, Upkeep, UpkeepOptions};
use sendtrail_processor::core::step::LOGIC_VERSION;
use sendtrail_processor::delivery::{Delivery, Mix, Simulator};
use sendtrail_processor::dispatch::{Dispatcher, Poster, Reach};
use sendtrail_processor::{Partition, PartitionHandle, Projections, Sink, SinkHandle, SinkOptions, Store, Views};
use sendtrail_query_api::{DataFusionAnalytics, Query, Source};
use sendtrail_schemas::archive::{ArchiveCell, ArchivedFile};
use sendtrail_schemas::directory::Directory;
use sendtrail_schemas::record::Settings;
use sendtrail_schemas::time::Millis;
use sendtrail_schemas::topic::{Topic, TopicPartition};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::backbone::Backbone;
use crate::clickhouse;
use crate::config::Config;
use crate::health::{self, Health};
use crate::keys::{ADMIN_KEY_VARIABLE, admin_key, vault};
use crate::metrics;
use crate::ports::{AppliedSources, DeadLetterBox, DeliveryStates, OwnedAccounts, Sums, SuppressionLists};
use crate::server::{Server, ServerOptions};
use crate::sources;
use crate::telemetry;

/// How often an event may wait before queries see it.
const FLUSH_EVERY: Duration = Duration::from_millis(250);

/// How long stopping may take while the log takes what is left.
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// A running server.
pub struct App {
    /// Where it listens.
    pub address: SocketAddr,
    /// The administrator's key, if it was made at this start.
    pub fresh_admin_key: Option<String>,
    server: Server,
    edges: CancellationToken,
    edge_tasks: JoinSet<()>,
    partitions: CancellationToken,
    partition_handles: Vec<PartitionHandle>,
    sink_stop: CancellationToken,
    sink: Arc<SinkHandle>,
    backbone: Backbone,
    archive: Arc<ArchiveCell>,
}

/// What the archive's files hold.
#[derive(Clone, Copy, Debug, Default)]
pub struct ArchiveTotals {
    /// Files.
    pub files: usize,
    /// Their rows.
    pub rows: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What several rooms are handed.
struct Shared {
    log: Arc<dyn EventLog>,
    store: Store,
    directory: Arc<Directory>,
    views: Views,
    replies: Arc<LocalReplies>,
    retention: Arc<Retention>,
    clock: Clock,
    blobs: Blobs,
}

impl App {
    /// Starts everything: what is in the log is applied before the first request is taken.
    ///
    /// # Errors
    /// When the folder cannot be opened, what is in it is corrupt, or the address is taken.
    pub async fn start(config: &Config) -> anyhow::Result<Self> {
        let data = &config.data.dir;
        std::fs::create_dir_all(data).with_context(|| format!("create {}", data.display()))?;
        let told = telemetry::metrics()?;
        let backbone = Backbone::open(config).await?;
        let shared = open(config, backbone.log())?;
        let admin = admin_key(data, std::env::var(ADMIN_KEY_VARIABLE).ok().filter(|key| !key.is_empty()))?;
        let vault = vault(data, config)?;
        let count = config.log.partitions;
        let pulses: Vec<Arc<Pulse>> = (0..count).map(|_| Arc::default()).collect();

        let partitions = CancellationToken::new();
        let mut partition_handles = Vec::new();
        for number in 0..count {
            let partition = partition(config, &shared, number, pulses[number as usize].clone());
            partition_handles.push(partition.start(partitions.clone())?);
        }
        catch_up(&*shared.log, &pulses).await;

        let table = open_table(&EVENTS, data).await?;
        let attempts = open_table(&ATTEMPTS, data).await?;
        let (cell, attempts_cell): (Arc<ArchiveCell>, Arc<ArchiveCell>) = Default::default();
        let projections = Projections::open(shared.store.database())?;
        let reader = projections.reader();
        let sink_stop = CancellationToken::new();
        let sink = Sink {
            log: shared.log.clone(),
            table: table.clone(),
            attempts: attempts.clone(),
            cell: cell.clone(),
            attempts_cell: attempts_cell.clone(),
            projections,
            retention: shared.retention.clone(),
            partitions: (0..count).collect(),
            clock: shared.clock.clone(),
            options: SinkOptions {
                flush_every: FLUSH_EVERY,
                commit_every: Duration::from_secs(config.archive.commit_seconds),
                commit_rows: config.archive.commit_rows,
            },
        };
        let sink = Arc::new(sink.start(sink_stop.clone()).await?);

        let edges = CancellationToken::new();
        let mut edge_tasks = JoinSet::new();
        for (table, cell) in [(table, cell.clone()), (attempts, attempts_cell.clone())] {
            let options = UpkeepOptions {
                every: Duration::from_secs(config.archive.merge_seconds),
                vacuum_after: Duration::from_secs(config.archive.vacuum_after_hours * 3_600),
            };
            let upkeep = Upkeep { table, cell, clock: shared.clock.clone(), options };
            edge_tasks.spawn(upkeep.run(edges.clone()));
        }
        edge_tasks.spawn(metrics::upkeep(told.clone(), edges.clone()));
        edge_tasks.spawn(drop_old_blobs(
            shared.blobs.clone(),
            shared.clock.clone(),
            config.blobs.retention_days,
            edges.clone(),
        ));
        let reach = Reach {
            allow_http: config.webhooks.allow_http,
            allow_private_networks: config.webhooks.allow_private_networks.clone(),
        };
        let poster = Poster::new(reach);
        let transport = Arc::new(Simulator::new(mix(config)));
        for number in 0..count {
            let delivery = Delivery {
                partition: number,
                log: shared.log.clone(),
                store: shared.store.clone(),
                blobs: shared.blobs.clone(),
                clock: shared.clock.clone(),
                retention: shared.retention.clone(),
                transport: transport.clone(),
                checkpoint_every: config.checkpoint_every(),
            };
            edge_tasks.spawn(delivery.run(edges.clone()));
            let dispatcher = Dispatcher {
                partition: number,
                log: shared.log.clone(),
                store: shared.store.clone(),
                directory: shared.directory.clone(),
                vault: vault.clone(),
                poster: poster.clone(),
                retention: shared.retention.clone(),
                concurrency: config.webhooks.concurrency_per_destination,
                checkpoint_every: config.checkpoint_every(),
            };
            edge_tasks.spawn(dispatcher.run(edges.clone()));
        }

        let archive = Arc::new(DataFusionAnalytics::new(cell.clone(), config.query.cache_bytes, config.query.threads));
        let cells = clickhouse::Cells { events: cell.clone(), attempts: attempts_cell };
        let clickhouse = clickhouse::start(config, &cells, &archive, &shared.clock, &edges, &mut edge_tasks);
        let (clickhouse, preferred) = clickhouse.unzip();

        let sources = sources::sources(&config.sources.kafka, &config.kafka_options().properties);
        let ingest = Ingest::new(sendtrail_ingest::Parts {
            log: shared.log.clone(),
            replies: shared.replies.clone(),
            directory: shared.directory.clone(),
            pulses: pulses.clone(),
            blobs: shared.blobs.clone(),
            vault,
            clock: shared.clock.clone(),
            suppressions: Arc::new(SuppressionLists(shared.views.clone())),
            dead_letters: Arc::new(DeadLetterBox(reader.clone())),
            sources: sources::rules(&sources),
            admin_key_hash: admin.hash,
            limits: limits(config),
        });
        let query = Query::new(sendtrail_query_api::Parts {
            directory: shared.directory.clone(),
            accounts: Arc::new(OwnedAccounts {
                log: shared.log.clone(),
                inquiries: partition_handles.iter().map(|partition| partition.inquiries.clone()).collect(),
                pulses: pulses.clone(),
                sink: sink.clone(),
            }),
            source: Source { rollups: Arc::new(Sums(reader.clone())), analytics: archive },
            preferred,
            deliveries: Arc::new(DeliveryStates(reader)),
            clock: shared.clock.clone(),
            timeout: Duration::from_millis(config.query.timeout_ms),
            concurrency: config.query.concurrency,
        });
        let applied =
            Arc::new(AppliedSources { log: shared.log.clone(), store: shared.store.clone(), pulses: pulses.clone() });
        let statuses = sources.iter().map(|source| (source.name.clone(), source.status.clone())).collect();
        for source in sources {
            edge_tasks.spawn(source.run(ingest.clone(), applied.clone(), edges.clone()));
        }
        let health = Health {
            log: shared.log.clone(),
            pulses,
            sink: sink.clone(),
            clickhouse,
            sources: statuses,
            metrics: told,
        };
        let router = routes(ingest.clone(), query, health);
        let server = Server::start(&ServerOptions::of(&config.server), router, ingest).await?;
        Ok(Self {
            address: server.address,
            fresh_admin_key: admin.fresh,
            server,
            edges,
            edge_tasks,
            partitions,
            partition_handles,
            sink_stop,
            sink,
            backbone,
            archive: cell,
        })
    }

    /// What is in Parquet files by now.
    pub fn archive(&self) -> ArchiveTotals {
        let view = self.archive.load();
        let sum = |of: fn(&ArchivedFile) -> u64| view.files.iter().map(|file| of(file)).sum();
        ArchiveTotals { files: view.files.len(), rows: sum(|file| file.rows), bytes: sum(|file| file.bytes) }
    }

    /// Resolves when the log belongs to another server. This one must then end at once, as by a crash: what is on its way
    /// is no longer its to finish.
    pub fn lost(&self) -> impl Future<Output = ()> + use<> {
        self.backbone.clone().lost()
    }

    /// Stops from the outside in: requests, then what acts on the world, then the state, then the archive, last the log.
    /// Afterwards every acknowledged event is in the archive.
    pub async fn stop(mut self) {
        tracing::info!("stopping");
        // A log that does not answer must not keep it from stopping: whoever waits for it is told that it is closed.
        let closing = self.backbone.clone();
        let watchdog = tokio::spawn(async move {
            tokio::time::sleep(STOP_WITHIN).await;
            tracing::warn!("the log does not take what is left; it is found again at the next start");
            let _ = tokio::task::spawn_blocking(move || closing.close()).await;
        });
        self.server.stop().await;
        self.edges.cancel();
        while self.edge_tasks.join_next().await.is_some() {}
        self.partitions.cancel();
        let (partitions, sink, sink_stop, backbone) =
            (self.partition_handles, self.sink, self.sink_stop, self.backbone);
        // Threads are joined beside the runtime's workers, which they still need.
        let joined = tokio::task::spawn_blocking(move || {
            partitions.into_iter().for_each(PartitionHandle::join);
            sink_stop.cancel();
            match Arc::try_unwrap(sink) {
                Ok(sink) => sink.join(),
                Err(_) => tracing::error!("a request still holds the sink"),
            }
            backbone.close();
        });
        if let Err(error) = joined.await {
            tracing::error!(%error, "stopping went wrong");
        }
        watchdog.abort();
        // It holds the log, and with it the folder's lock.
        let _ = watchdog.await;
        tracing::info!("stopped");
    }
}

fn open(config: &Config, log: Arc<dyn EventLog>) -> anyhow::Result<Shared> {
    let data = &config.data.dir;
    let store =
        Store::open(&data.join("state"), config.log.partitions, config.state.cache_bytes).context("open the state")?;
    let directory = Arc::new(Directory::default());
    let views = Views::open(&store, directory.clone()).context("read the accounts")?;
    let clock = if config.log.simulated { simulated_clock(&store, config.log.partitions)? } else { Clock::wall() };
    Ok(Shared {
        replies: Arc::new(LocalReplies::new(rand::rng().next_u64())),
        retention: Arc::new(Retention::new(log.clone())),
        blobs: Blobs::open(&data.join("blobs"))?,
        log,
        store,
        directory,
        views,
        clock,
    })
}

async fn open_table(layout: &'static Layout, data: &Path) -> anyhow::Result<Arc<Mutex<Table>>> {
    let table = Table::open(layout, &data.join("archive").join(layout.name)).await;
    Ok(Arc::new(Mutex::new(table.with_context(|| format!("open the archive of {}", layout.name))?)))
}

/// A simulated clock goes on from where the state stands.
fn simulated_clock(store: &Store, partitions: u32) -> anyhow::Result<Clock> {
    let clock = Clock::simulated(Millis(0));
    for partition in 0..partitions {
        if let Some(progress) = store.progress(partition)? {
            clock.reached(Millis(progress.last_t));
        }
    }
    Ok(clock)
}

fn partition(config: &Config, shared: &Shared, number: u32, pulse: Arc<Pulse>) -> Partition {
    Partition {
        number,
        log: shared.log.clone(),
        store: shared.store.clone(),
        views: shared.views.clone(),
        replies: shared.replies.clone(),
        pulse,
        retention: shared.retention.clone(),
        clock: shared.clock.clone(),
        settings: Settings {
            logic_version: LOGIC_VERSION,
            simulated: config.log.simulated,
            repeatable_horizon_hours: config.dedup.repeatable_horizon_hours,
            system_sender: config.sending.system_sender.clone(),
        },
        checkpoint_every: config.checkpoint_every(),
    }
}

/// Waits until everything in the log is applied, so that what is outside begins with what is inside.
async fn catch_up(log: &dyn EventLog, pulses: &[Arc<Pulse>]) {
    for (number, pulse) in pulses.iter().enumerate() {
        let end = *log.end(TopicPartition::new(Topic::Intake, number as u32)).borrow();
        loop {
            let wait = tokio::time::timeout(Duration::from_millis(200), pulse.reached(end)).await;
            // A halted partition never catches up; the others serve, and health tells.
            if wait.is_ok() || pulse.halted().is_some() {
                break;
            }
        }
    }
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

fn mix(config: &Config) -> Mix {
    let simulator = &config.simulator;
    Mix {
        permanent_bounce_ppm: simulator.permanent_bounce_ppm,
        delay_ppm: simulator.delay_ppm,
        complaint_ppm: simulator.complaint_ppm,
        open_ppm: simulator.open_ppm,
        click_ppm: simulator.click_ppm,
        delivery_delay: i64::from(simulator.delivery_delay_ms),
        reaction_delay: i64::from(simulator.reaction_delay_ms),
    }
}

async fn drop_old_blobs(blobs: Blobs, clock: Clock, days: u32, stop: CancellationToken) {
    loop {
        let before = clock.now().day() - days as i32;
        let folder = blobs.clone();
        match tokio::task::spawn_blocking(move || folder.drop_before(before)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "old message bodies could not be dropped"),
            Err(error) => tracing::warn!(%error, "old message bodies could not be dropped"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(3_600)) => {}
        }
    }
}

fn routes(ingest: Ingest, query: Query, health: Health) -> Router {
    let partner = Router::new()
        .merge(Router::from(sendtrail_ingest::partner_routes()).with_state(ingest.clone()))
        .merge(Router::from(sendtrail_query_api::partner_routes()).with_state(query.clone()))
        .layer(from_fn_with_state(ingest.clone(), sendtrail_ingest::auth::partner));
    let admin = Router::new()
        .merge(Router::from(sendtrail_ingest::admin_routes()).with_state(ingest.clone()))
        .merge(Router::from(sendtrail_query_api::admin_routes()).with_state(query))
        .layer(from_fn_with_state(ingest, sendtrail_ingest::auth::admin));
    Router::new()
        .nest("/api/v1/partner/email", partner)
        .nest("/api/v1/admin", admin)
        .merge(health::routes(health))
        .fallback(health::not_found)
        .method_not_allowed_fallback(health::method_not_allowed)
        .layer(from_fn(metrics::measure))
}
