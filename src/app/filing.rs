//! What files events for readers: the archive, sums, ClickHouse.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rand::Rng;
use sendtrail_processor::archive::{ATTEMPTS, EVENTS, Eraser, Layout, Sealer, Table, Upkeep, UpkeepOptions};
use sendtrail_processor::clickhouse::ClickHouseHandle;
use sendtrail_processor::{Erasures, ProjectionReader, Projections, Sink, SinkHandle, SinkOptions};
use sendtrail_schemas::archive::ArchiveCell;
use sendtrail_schemas::time::MINUTE;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::Tasks;
use super::shared::Shared;
use crate::config::Config;
use crate::elsewhere::tell_clickhouse;
use crate::roles::Role;
use crate::{clickhouse, keys};

/// How often an event may wait before queries see it.
const FLUSH_EVERY: Duration = Duration::from_millis(250);
/// How long a sink that is behind reads on when the server stops; what it has read is written after that, and service managers kill
/// what takes a minute or a minute and a half.
const DRAIN_WITHIN: Duration = Duration::from_secs(15);

/// The sinks of this process, if they are here.
#[derive(Default)]
pub struct Filing {
    /// What readers see of events.
    pub cell: Arc<ArchiveCell>,
    /// What they see of attempts at webhooks.
    pub attempts: Arc<ArchiveCell>,
    /// The reader of all events.
    pub sink: Option<Arc<SinkHandle>>,
    /// Sums, last attempts, dead letters.
    pub reader: Option<ProjectionReader>,
    /// The sink into ClickHouse, if there is one, and whether answers depend on it.
    pub clickhouse: Option<(ClickHouseHandle, bool)>,
}

impl Filing {
    /// Starts them if the roles ask for it.
    pub async fn start(
        config: &Config,
        shared: &Shared,
        stop: &CancellationToken,
        tasks: &mut Tasks,
    ) -> anyhow::Result<Self> {
        if !config.server.roles.has(Role::Sinks) {
            return Ok(Self::default());
        }
        let folder = config.archive_folder();
        let table = open_table(&EVENTS, &folder).await?;
        let attempts = open_table(&ATTEMPTS, &folder).await?;
        let (cell, attempts_cell): (Arc<ArchiveCell>, Arc<ArchiveCell>) = Default::default();
        let projections = Projections::open(shared.store.database())?;
        let (reader, jobs) = (projections.reader(), projections.erasures());
        let sink = Sink {
            log: shared.log.clone(),
            table: table.clone(),
            attempts: attempts.clone(),
            cell: cell.clone(),
            attempts_cell: attempts_cell.clone(),
            projections,
            retention: shared.retention.clone(),
            partitions: (0..config.log.partitions).collect(),
            clock: shared.clock.clone(),
            options: SinkOptions {
                flush_every: FLUSH_EVERY,
                commit_every: Duration::from_secs(config.archive.commit_seconds),
                commit_rows: config.archive.commit_rows,
                drain_within: DRAIN_WITHIN,
            },
        };
        // Last of what may fail: who has a running sink must see to its end.
        let key = Arc::new(keys::seal_key(&config.data.dir, config)?);
        let sink = Arc::new(sink.start(stop.clone()).await?);
        let eraser = Eraser { table: table.clone(), cell: cell.clone(), key: key.clone() };
        let answers = Eraser { table: attempts.clone(), cell: attempts_cell.clone(), key: key.clone() };
        for table in [&table, &attempts].into_iter().filter(|_| config.archive.seal) {
            let sealer = Sealer {
                table: table.clone(),
                key: key.clone(),
                clock: shared.clock.clone(),
                after: i64::from(config.archive.seal_after_minutes) * MINUTE,
                every: Duration::from_secs(config.archive.merge_seconds),
                random: |bytes| rand::rng().fill_bytes(bytes),
            };
            tasks.spawn(sealer.run(tasks.stop.clone()));
        }
        for (table, cell) in [(table, cell.clone()), (attempts, attempts_cell.clone())] {
            let options = UpkeepOptions {
                every: Duration::from_secs(config.archive.merge_seconds),
                vacuum_after: Duration::from_secs(config.archive.vacuum_after_hours * 3_600),
            };
            let upkeep = Upkeep { table, cell, clock: shared.clock.clone(), options };
            tasks.spawn(upkeep.run(tasks.stop.clone()));
        }
        let cells = clickhouse::Cells { events: cell.clone(), attempts: attempts_cell.clone() };
        let clickhouse = clickhouse::sink(config, &cells, &shared.clock).map(|sink| {
            let (handle, running) = sink.start(tasks.stop.clone());
            tasks.spawn(running);
            if let Some(announce) = shared.announce() {
                let partitions = config.log.partitions;
                tasks.spawn(tell_clickhouse(handle.clone(), announce, partitions, tasks.stop.clone()));
            }
            (handle, clickhouse::is_needed(config))
        });
        let erasures = Erasures {
            jobs,
            eraser,
            answers,
            letters: reader.clone(),
            clickhouse: clickhouse::client(&config.clickhouse)
                .zip(clickhouse.as_ref().map(|(handle, _)| handle.clone())),
            log: shared.log.clone(),
            directory: shared.directory.clone(),
            clock: shared.clock.clone(),
            partitions: config.log.partitions,
        };
        tasks.spawn(erasures.run(tasks.stop.clone()));
        Ok(Self { cell, attempts: attempts_cell, sink: Some(sink), reader: Some(reader), clickhouse })
    }
}

async fn open_table(layout: &'static Layout, folder: &Path) -> anyhow::Result<Arc<Mutex<Table>>> {
    let table = Table::open(layout, &folder.join(layout.name())).await;
    Ok(Arc::new(Mutex::new(table.with_context(|| format!("open the archive of {}", layout.name()))?)))
}
