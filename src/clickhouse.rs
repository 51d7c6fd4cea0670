//! ClickHouse as the settings name it: the sink into it, and what queries ask first.

use std::sync::Arc;
use std::time::Duration;

use clickhouse::{Client, Compression};
use sendtrail_eventlog::Clock;
use sendtrail_processor::clickhouse::{ClickHouseOptions, ClickHouseSink, Wanted};
use sendtrail_query_api::{ClickHouseAnalytics, ClickHouseBounds, DataFusionAnalytics, Preferred, Replica, Source};
use sendtrail_schemas::archive::ArchiveCell;

use crate::config::{ClickHouse, Config, Fallback};
use crate::roles::Role;

/// A client of it; `None` when there is none.
pub fn client(config: &ClickHouse) -> Option<Client> {
    if config.url.is_empty() {
        return None;
    }
    let client = Client::default()
        .with_url(&config.url)
        .with_database(&config.database)
        .with_user(&config.user)
        .with_compression(Compression::None);
    Some(if config.password.is_empty() { client } else { client.with_password(&config.password) })
}

/// How the sink inserts.
fn options(config: &ClickHouse) -> ClickHouseOptions {
    ClickHouseOptions {
        batch_rows: config.batch_rows,
        flush_every: Duration::from_millis(config.flush_ms),
        timeout: Duration::from_millis(config.insert_timeout_ms),
    }
}

/// What queries may use.
fn bounds(config: &Config) -> ClickHouseBounds {
    ClickHouseBounds {
        // It gives up before we do: whoever does not answer at all is told from what takes too long.
        time: Duration::from_millis(config.query.timeout_ms).mul_f64(0.9),
        memory: config.clickhouse.max_query_memory_bytes,
        rows: config.clickhouse.max_query_rows,
        retention_days: retention_days(config),
    }
}

/// Simulated time is not what ClickHouse goes by.
fn retention_days(config: &Config) -> u32 {
    if config.log.simulated { 0 } else { config.clickhouse.retention_days }
}

/// How its tables are to be.
#[expect(clippy::disallowed_methods, reason = "a name for a database, which no decision depends on")]
pub fn wanted(config: &Config, recreate: bool) -> Wanted {
    Wanted {
        database_id: uuid::Uuid::new_v4(),
        lanes: config.clickhouse.lanes,
        // ClickHouse goes by the clock: simulated days would be over before they come.
        retention_days: retention_days(config),
        recreate,
    }
}

/// What there is to read of the archive.
pub struct Cells {
    /// Of events.
    pub events: Arc<ArchiveCell>,
    /// Of attempts.
    pub attempts: Arc<ArchiveCell>,
}

/// The sink into it, if there is one.
pub fn sink(config: &Config, cells: &Cells, clock: &Clock) -> Option<ClickHouseSink> {
    Some(ClickHouseSink {
        client: client(&config.clickhouse)?,
        events: cells.events.clone(),
        attempts: cells.attempts.clone(),
        claims: config.data.dir.join("clickhouse-claims"),
        clock: clock.clone(),
        options: options(&config.clickhouse),
    })
}

/// Whether nothing else answers: by the settings, or because this server sees no archive.
pub fn is_needed(config: &Config) -> bool {
    let sees_archive = config.server.roles.has(Role::Sinks) || !config.archive.dir.as_os_str().is_empty();
    config.clickhouse.fallback == Fallback::Refuse || !sees_archive
}

/// What queries ask first, if there is one, and the same for what only it knows.
pub fn preferred(
    config: &Config,
    archive: &Arc<DataFusionAnalytics>,
    replica: Arc<dyn Replica>,
) -> Option<(Preferred, Arc<ClickHouseAnalytics>)> {
    let client = client(&config.clickhouse)?;
    let analytics = Arc::new(ClickHouseAnalytics::new(client, archive.clone(), replica.clone(), bounds(config)));
    let source = Source { rollups: analytics.clone(), analytics: analytics.clone() };
    Some((Preferred { source, replica, fall_back: !is_needed(config) }, analytics))
}
