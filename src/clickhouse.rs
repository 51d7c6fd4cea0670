//! ClickHouse as the settings name it.

use std::time::Duration;

use clickhouse::{Client, Compression};
use sendtrail_processor::clickhouse::{ClickHouseOptions, Wanted};
use sendtrail_query_api::ClickHouseBounds;

use crate::config::{ClickHouse, Config};

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
pub fn options(config: &ClickHouse) -> ClickHouseOptions {
    ClickHouseOptions {
        batch_rows: config.batch_rows,
        flush_every: Duration::from_millis(config.flush_ms),
        timeout: Duration::from_millis(config.insert_timeout_ms),
    }
}

/// What queries may use.
pub fn bounds(config: &Config) -> ClickHouseBounds {
    ClickHouseBounds {
        // It gives up before we do: whoever does not answer at all is told from what takes too long.
        time: Duration::from_millis(config.query.timeout_ms).mul_f64(0.9),
        memory: config.clickhouse.max_query_memory_bytes,
        rows: config.clickhouse.max_query_rows,
    }
}

/// How its tables are to be.
#[expect(clippy::disallowed_methods, reason = "a name for a database, which no decision depends on")]
pub fn wanted(config: &Config, recreate: bool) -> Wanted {
    Wanted {
        database_id: uuid::Uuid::new_v4(),
        lanes: config.clickhouse.lanes,
        // ClickHouse goes by the clock: simulated days would be over before they come.
        retention_days: if config.log.simulated { 0 } else { config.clickhouse.retention_days },
        recreate,
    }
}
