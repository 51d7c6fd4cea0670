//! Goes on from where ClickHouse is, after it was restored from an older backup.

use std::path::Path;
use std::time::Duration;

use clickhouse::Client;
use sendtrail_eventlog::objects::Place;

use super::claims::{Claim, Claims, Ranges};
use super::meta::read_meta;
use super::rows::{ATTEMPTS, EVENTS, Feed};
use super::{Marks, within};
use crate::Error;
use crate::archive::Table;

/// How long a question may take.
const TIMEOUT: Duration = Duration::from_secs(600);

/// What a repair found of a partition of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repaired {
    /// The table.
    pub table: &'static str,
    /// The partition.
    pub partition: u32,
    /// The number after the last row that ClickHouse has.
    pub there: u64,
    /// The number after the last row that the archive's files have: rows up to it are inserted when the server starts.
    pub archived: u64,
}

/// Makes the sink go on from where the tables are. They must be whole as far as they go; the sink then inserts what they
/// lack, each row once, however often this is done. The server must be stopped.
///
/// # Errors
/// [`Error::Missing`]: a table has holes, or rows twice, or more than the archive, so that it must be made anew.
/// [`Error::ClickHouse`], [`Error::Archive`].
pub async fn repair(client: &Client, claims: &Path, archive: &Path) -> Result<Vec<Repaired>, Error> {
    let meta = within(TIMEOUT, read_meta(client)).await?;
    let store = Place::from(claims).open()?;
    let mut found = Vec::new();
    for feed in [&EVENTS, &ATTEMPTS] {
        let there = rows(client, feed, meta.retention_days > 0).await?;
        let table = Table::find(feed.layout, &archive.join(feed.layout.name())).await?;
        for (partition, (_, next)) in &there {
            let archived = match &table {
                Some(table) => table.mark(*partition).await?,
                None => 0,
            };
            if *next > archived {
                return Err(Error::Missing(format!(
                    "partition {partition} of the table {} has rows up to {next}, the archive up to {archived}: stop the \
                     server in order first, so that everything is archived",
                    feed.table
                )));
            }
            found.push(Repaired { table: feed.table, partition: *partition, there: *next, archived });
        }
        for lane in 0..meta.lanes {
            let claims = Claims::new(store.clone(), meta.database_id, feed.table, lane);
            let of_lane = |take: fn(&(u64, u64)) -> u64| -> Marks {
                let mine = there.iter().filter(|(partition, _)| *partition % meta.lanes == lane);
                mine.map(|(partition, bounds)| (*partition, take(bounds))).collect()
            };
            let number = claims.last().await?.map_or(0, |(last, _)| last.number + 1);
            let claim = Claim { number, ranges: Ranges::new(), before: of_lane(|of| of.1), first: of_lane(|of| of.0) };
            claims.make(&claim).await?;
            claims.done(&claim).await?;
        }
    }
    Ok(found)
}

/// The first number and the one after the last of each partition of a table that is whole.
async fn rows(
    client: &Client,
    feed: &Feed,
    expires: bool,
) -> Result<std::collections::BTreeMap<u32, (u64, u64)>, Error> {
    let (table, number) = (feed.table, feed.number());
    let sql = format!(
        "SELECT toUInt32(partition), toUInt64(min(`{number}`)), toUInt64(max(`{number}`)) + 1, count(), uniqExact(`{number}`) \
         FROM {table} GROUP BY partition"
    );
    let found = client.query(&sql).fetch_all::<(u32, u64, u64, u64, u64)>();
    let sql =
        format!("SELECT partition, min(first), max(last) + 1, sum(rows) FROM {table}_progress GROUP BY partition");
    let noted = client.query(&sql).fetch_all::<(u32, u64, u64, u64)>();
    let found = within(TIMEOUT, found).await?;
    let mut noted = within(TIMEOUT, noted).await?;
    noted.retain(|(.., rows)| *rows > 0);
    let mut there = std::collections::BTreeMap::new();
    for (partition, first, next, rows, distinct) in found {
        // What is too old is gone from the table, and not from what was noted.
        let is_noted = |(of, begins, ends, noted): &(u32, u64, u64, u64)| {
            *of == partition && *ends == next && (expires || (*begins, *noted) == (first, rows))
        };
        if rows != next - first || distinct != rows || !noted.iter().any(is_noted) {
            return Err(Error::Missing(format!(
                "partition {partition} of the table {table} is not whole: {rows} rows, {distinct} different ones, numbered from \
                 {first} to {next}, and what follows from them says otherwise. Make it anew by 'sendtrail migrate --recreate'"
            )));
        }
        there.insert(partition, (first, next));
    }
    if there.len() != noted.len() && !expires {
        let why =
            format!("the table {table} lacks rows that its sums have: make it anew by 'sendtrail migrate --recreate'");
        return Err(Error::Missing(why));
    }
    Ok(there)
}
