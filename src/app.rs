//! The only place where everything is put together, and taken apart again in the right order.

mod edges;
mod filing;
mod owning;
mod shared;
mod working;

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use metrics_exporter_prometheus::PrometheusHandle;
use sendtrail_ingest::Ingest;
use sendtrail_processor::dispatch::History;
use sendtrail_processor::{SinkHandle, Store};
use sendtrail_schemas::archive::{ArchiveCell, ArchivedFile};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::backbone::Backbone;
use crate::config::Config;
use crate::health::Health;
use crate::ports::{AppliedSources, Events};
use crate::roles::Role;
use crate::server::{Server, ServerOptions};
use crate::{metrics, sources, telemetry};
use edges::{Edges, admin, routes};
use filing::Filing;
use owning::Owning;
pub use owning::remove;
use shared::Shared;

/// How often it is looked whether the store is broken, and what a device must take to be taken for well again.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const ROOM: usize = 8 << 20;
/// How long stopping may take while the log takes what is left.
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// A running server.
pub struct App {
    /// Where it listens.
    pub address: SocketAddr,
    /// The administrator's key, if it was made at this start.
    pub fresh_admin_key: Option<String>,
    server: Server,
    parts: Parts,
    archive: Arc<ArchiveCell>,
    store: Store,
    data: PathBuf,
}

/// What runs behind the server, as far as it was started.
struct Parts {
    edges: Tasks,
    partitions: CancellationToken,
    owning: Option<Owning>,
    sink_stop: CancellationToken,
    sink: Option<Arc<SinkHandle>>,
    backbone: Backbone,
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

/// Whether a device takes some writes, durably.
fn takes_writes(folder: &Path) -> bool {
    let path = folder.join("is-there-room");
    let write = || {
        let mut file = std::fs::File::create(&path)?;
        file.write_all(&vec![0; ROOM])?;
        file.sync_all()
    };
    let written: std::io::Result<()> = write();
    drop(std::fs::remove_file(&path));
    written.is_ok()
}

/// Tasks that end before partitions do.
struct Tasks {
    stop: CancellationToken,
    running: JoinSet<()>,
}

impl Tasks {
    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.running.spawn(task);
    }
}

impl App {
    /// Starts what the roles ask for: what is in the log is applied before the first request is taken.
    ///
    /// # Errors
    /// When the folder cannot be opened, what is in it is corrupt, the address is taken, or the log goes to another server.
    pub async fn start(config: &Config) -> anyhow::Result<Self> {
        let data = &config.data.dir;
        std::fs::create_dir_all(data).with_context(|| format!("create {}", data.display()))?;
        let told = telemetry::metrics()?;
        let backbone = Backbone::open(config).await?;
        let (log, lost) = (backbone.log(), backbone.clone().lost());
        tokio::select! {
            started = Self::start_on(backbone, config, told) => started,
            // Nothing would ever be applied.
            () = lost => anyhow::bail!("the log is lost to this server: {}", log.status().failed.unwrap_or_default()),
        }
    }

    async fn start_on(backbone: Backbone, config: &Config, told: PrometheusHandle) -> anyhow::Result<Self> {
        let mut parts = Parts::new(backbone);
        match Self::start_with(&mut parts, config, told).await {
            Ok(started) => Ok(Self {
                address: started.server.address,
                fresh_admin_key: started.fresh_admin_key,
                server: started.server,
                archive: started.archive,
                store: started.store,
                data: config.data.dir.clone(),
                parts,
            }),
            Err(error) => {
                // Threads must not outlive what they run on.
                let watchdog = parts.watchdog();
                parts.stop().await;
                watchdog.abort();
                Err(error)
            }
        }
    }

    /// Starts everything; what is to be ended, if that does not succeed, is in `parts`.
    async fn start_with(parts: &mut Parts, config: &Config, told: PrometheusHandle) -> anyhow::Result<Started> {
        let (roles, backbone) = (&config.server.roles, parts.backbone.clone());
        let shared = Arc::new(Shared::open(config, &backbone)?);
        let admin = admin(config)?;

        if roles.has(Role::Processor) {
            parts.owning = Some(Owning::start(config, &shared, &backbone, &parts.partitions).await?);
        }
        shared.meet_others(config).await?;
        let tasks = &mut parts.edges;
        let filing = Filing::start(config, &shared, &parts.sink_stop, tasks).await?;
        parts.sink.clone_from(&filing.sink);
        tasks.spawn(metrics::upkeep(told.clone(), tasks.stop.clone()));
        tasks.spawn(shared.elsewhere.clone().watch_lag(shared.log.clone(), tasks.stop.clone()));

        let edges = Edges::new(config, &shared, &filing, tasks).await;
        let sources = sources::sources(&config.sources.kafka, &config.kafka_options().properties);
        let ingest = edges.ingest(config, &shared, &sources, admin.hash);
        let query = edges.query(config, &shared, &ingest, tasks)?;
        let history: Arc<dyn History> = Arc::new(Events(query.clone()));
        working::start(config, &shared, &backbone, &history, tasks)?;
        let statuses = sources.iter().map(|source| (source.name.clone(), source.status.clone())).collect();
        if roles.has(Role::Processor) {
            tasks.spawn(run_sources(sources, ingest.clone(), backbone, shared.clone(), tasks.stop.clone()));
        }
        let health = Health {
            log: shared.log.clone(),
            pulses: shared.pulses.clone(),
            sink: filing.sink,
            clickhouse: filing.clickhouse,
            sources: if roles.has(Role::Processor) { statuses } else { Vec::new() },
            delivery: roles.has(Role::Delivery).then(|| shared.waits.clone()),
            metrics: told,
        };
        let router = routes(roles, ingest.clone(), query, health);
        let server = Server::start(&ServerOptions::of(&config.server), router, ingest).await?;
        Ok(Started { server, fresh_admin_key: admin.fresh, archive: filing.cell, store: shared.store.clone() })
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
        self.parts.backbone.clone().lost()
    }

    /// Resolves when the state store is broken, by a full disk for example, and the disk takes writes again. Until then
    /// everything that needs it is refused; afterwards the program must begin anew, as after a crash.
    pub fn broken(&self) -> impl Future<Output = ()> + use<> {
        let (store, data) = (self.store.clone(), self.data.clone());
        async move {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                let (store, data) = (store.clone(), data.clone());
                let healed = tokio::task::spawn_blocking(move || store.is_broken() && takes_writes(&data)).await;
                if healed.unwrap_or(false) {
                    return;
                }
            }
        }
    }

    /// Stops from the outside in: requests, then what acts on the world, then the state, then the archive, last the log.
    /// Afterwards every acknowledged event is in the archive, if nobody else is to see to that, and the sink was not far behind: then the
    /// rest is filed after the next start.
    pub async fn stop(self) {
        tracing::info!("stopping");
        let watchdog = self.parts.watchdog();
        self.server.stop().await;
        self.parts.stop().await;
        watchdog.abort();
        // It holds the log, and with it the folder's lock.
        let _ = watchdog.await;
        tracing::info!("stopped");
    }
}

/// What a start gave besides the parts.
struct Started {
    server: Server,
    fresh_admin_key: Option<String>,
    archive: Arc<ArchiveCell>,
    store: Store,
}

impl Parts {
    fn new(backbone: Backbone) -> Self {
        Self {
            edges: Tasks { stop: CancellationToken::new(), running: JoinSet::new() },
            partitions: CancellationToken::new(),
            owning: None,
            sink_stop: CancellationToken::new(),
            sink: None,
            backbone,
        }
    }

    /// Sees to it that a log that does not answer does not keep them from stopping: whoever waits for it is told that it is
    /// closed.
    fn watchdog(&self) -> JoinHandle<()> {
        let closing = self.backbone.clone();
        tokio::spawn(async move {
            tokio::time::sleep(STOP_WITHIN).await;
            tracing::warn!("the log does not take what is left; it is found again at the next start");
            let _ = tokio::task::spawn_blocking(move || closing.close()).await;
        })
    }

    async fn stop(mut self) {
        self.edges.stop.cancel();
        while self.edges.running.join_next().await.is_some() {}
        self.partitions.cancel();
        if let Some(owning) = self.owning {
            owning.join().await;
        }
        let (sink, sink_stop, backbone) = (self.sink, self.sink_stop, self.backbone);
        // Threads are joined beside the runtime's workers, which they still need.
        let joined = tokio::task::spawn_blocking(move || {
            sink_stop.cancel();
            match sink.map(Arc::try_unwrap) {
                Some(Ok(sink)) => sink.join(),
                Some(Err(_)) => tracing::error!("a request still holds the sink"),
                None => {}
            }
            backbone.close();
        });
        if let Err(error) = joined.await {
            tracing::error!(%error, "stopping went wrong");
        }
    }
}

/// Reads the topics of others, each in a task of its own, on whichever server owns the first partition. While that moves, two
/// may read: what is told twice has the same number.
async fn run_sources(
    sources: Vec<sendtrail_ingest::sources::Source>,
    ingest: Ingest,
    backbone: Backbone,
    shared: Arc<Shared>,
    stop: CancellationToken,
) {
    let (owners, pulses) = (shared.owners.clone(), shared.pulses.clone());
    let applied = Arc::new(AppliedSources { backbone, owners, pulses });
    while !stop.is_cancelled() {
        tokio::select! {
            () = shared.ownership.becomes(0, true) => {}
            () = stop.cancelled() => return,
        }
        let reading = stop.child_token();
        let mut running = JoinSet::new();
        for source in sources.clone() {
            running.spawn(source.run(ingest.clone(), applied.clone(), reading.clone()));
        }
        tokio::select! {
            () = shared.ownership.becomes(0, false) => {}
            () = stop.cancelled() => {}
        }
        reading.cancel();
        while running.join_next().await.is_some() {}
    }
}
