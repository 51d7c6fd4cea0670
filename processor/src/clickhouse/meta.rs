//! What the tables in a database are, and how they are made and brought up to date.

use std::collections::BTreeMap;

use clickhouse::Client;
use sendtrail_schemas::clickhouse::is_code;
use sendtrail_schemas::clickhouse::tables::{ALL, EXPIRING, META, MIGRATIONS, VERSION};
use uuid::Uuid;

use crate::Error;

/// Days beyond retention before rows are dropped, so that nobody still reads them.
const SPARE_DAYS: u32 = 2;

/// What a database notes of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// The version of its tables.
    pub version: u32,
    /// What tells it from another, and from itself made anew.
    pub database_id: Uuid,
    /// Lanes into each table; fixed when they are made.
    pub lanes: u32,
    /// Days that rows are kept; 0: for good.
    pub retention_days: u32,
}

/// What a migration did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migrated {
    /// The version there was; `None`: no tables.
    pub from: Option<u32>,
    /// What there is now.
    pub meta: Meta,
}

/// What a database notes of itself.
///
/// # Errors
/// [`Error::Missing`] when it has no tables, or those of another version, with what to do; [`Error::ClickHouse`].
pub async fn read_meta(client: &Client) -> Result<Meta, Error> {
    let noted = notes(client).await?;
    let Some(meta) = parse(&noted) else {
        return Err(Error::Missing("the ClickHouse database has no tables yet: run 'sendtrail migrate'".into()));
    };
    check(meta.version)?;
    if meta.version < VERSION {
        let version = meta.version;
        return Err(Error::Missing(format!(
            "the ClickHouse tables are of version {version}, this program needs {VERSION}: run 'sendtrail migrate'"
        )));
    }
    Ok(meta)
}

fn check(version: u32) -> Result<(), Error> {
    if version <= VERSION {
        return Ok(());
    }
    Err(Error::Missing(format!(
        "the ClickHouse tables are of version {version}, newer than this program knows ({VERSION}): upgrade it"
    )))
}

type Notes = BTreeMap<String, String>;

fn parse(notes: &Notes) -> Option<Meta> {
    Some(Meta {
        version: notes.get("version")?.parse().ok()?,
        database_id: notes.get("database_id")?.parse().ok()?,
        lanes: notes.get("lanes")?.parse().ok().filter(|lanes| *lanes > 0)?,
        retention_days: notes.get("retention_days")?.parse().ok()?,
    })
}

/// Everything that is noted; nothing when there is no table or no database.
async fn notes(client: &Client) -> Result<Notes, Error> {
    let sql = "SELECT name, argMax(value, at) AS value FROM sendtrail_meta GROUP BY name";
    match client.query(sql).fetch_all::<(String, String)>().await {
        Ok(rows) => Ok(rows.into_iter().collect()),
        // UNKNOWN_TABLE, UNKNOWN_DATABASE.
        Err(clickhouse::error::Error::BadResponse(told)) if is_code(&told, &[60, 81]) => Ok(Notes::new()),
        Err(error) => Err(error.into()),
    }
}

/// How tables are to be.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// What to tell a database by that has no tables yet: never used before.
    pub database_id: Uuid,
    /// Lanes, of a database that has no tables yet.
    pub lanes: u32,
    /// Days that rows are kept; 0: for good.
    pub retention_days: u32,
    /// Whether to drop what there is first, with everything in it: the archive fills it again.
    pub recreate: bool,
}

/// Makes the tables, or brings them up to date.
///
/// # Errors
/// [`Error::Missing`] when they are newer than this program; [`Error::ClickHouse`]: run it again then.
pub async fn migrate(client: &Client, wanted: &Wanted) -> Result<Migrated, Error> {
    if let Some(database) = client.database() {
        // Only where it is missing: not everybody may create one.
        let anywhere = client.clone().with_database("default");
        let counted = anywhere.query("SELECT count() FROM system.databases WHERE name = ?").bind(database);
        if counted.fetch_one::<u64>().await? == 0 {
            let name = clickhouse::sql::Identifier(database);
            anywhere.query("CREATE DATABASE IF NOT EXISTS ?").bind(name).execute().await?;
        }
    }
    let run = async |sql: &str| client.query_raw(sql).execute().await;
    let mut before = parse(&notes(client).await?);
    check(before.as_ref().map_or(0, |meta| meta.version))?;
    if wanted.recreate {
        // What it is goes first: whatever stops half-way is made anew by the next migration.
        let drops = ALL.iter().map(|(what, name)| format!("DROP {what} IF EXISTS {name} SYNC"));
        for drop in std::iter::once("DROP TABLE IF EXISTS sendtrail_meta SYNC".to_owned()).chain(drops) {
            client.query_raw(&drop).with_setting("max_table_size_to_drop", "0").execute().await?;
        }
        before = None;
    }
    run(META).await?;
    let from = before.as_ref().map(|meta| meta.version);
    for statement in MIGRATIONS[from.unwrap_or(0) as usize..].concat() {
        run(statement).await?;
    }
    for (table, time) in EXPIRING {
        if wanted.retention_days > 0 {
            let days = wanted.retention_days + SPARE_DAYS;
            run(&format!("ALTER TABLE {table} MODIFY TTL toDate({time}) + INTERVAL {days} DAY")).await?;
        } else if before.as_ref().is_some_and(|meta| meta.retention_days > 0) {
            run(&format!("ALTER TABLE {table} REMOVE TTL")).await?;
        }
    }
    let meta = match before {
        Some(meta) => Meta { version: VERSION, retention_days: wanted.retention_days, ..meta },
        None => Meta {
            version: VERSION,
            database_id: wanted.database_id,
            lanes: wanted.lanes,
            retention_days: wanted.retention_days,
        },
    };
    let noted = [
        ("database_id", meta.database_id.to_string()),
        ("lanes", meta.lanes.to_string()),
        ("retention_days", meta.retention_days.to_string()),
        // Last: what is not finished is done again.
        ("version", meta.version.to_string()),
    ];
    for (name, value) in noted {
        let note = client.query("INSERT INTO sendtrail_meta (name, value) VALUES (?, ?)").bind(name).bind(value);
        note.execute().await?;
    }
    Ok(Migrated { from, meta })
}
