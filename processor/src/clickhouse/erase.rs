//! Clears what is personal in rows that ClickHouse has.

use std::time::Duration;

use clickhouse::Client;
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::personal::PERSONAL;

use super::within;
use crate::Error;

/// How long ClickHouse may take to write the parts anew.
const TIMEOUT: Duration = Duration::from_secs(1_800);

/// Rows of an account.
#[derive(Clone, Debug)]
pub enum Rows {
    /// Those of a recipient, in lower case, of a partition, up to a number.
    Recipient {
        /// The address.
        folded: String,
        /// The partition.
        partition: u32,
        /// The last number.
        through: u64,
    },
    /// Everybody's, received before a time, milliseconds since the epoch.
    ReceivedBefore(i64),
}

/// Clears rows of events, and what receivers answered to posts of them. Doing it again changes nothing.
///
/// # Errors
/// [`Error::ClickHouse`]: do it again.
pub async fn clear(client: &Client, account: AccountId, rows: &Rows) -> Result<(), Error> {
    let (condition, name) = match rows {
        Rows::Recipient { folded, partition, through } => (
            format!(
                "`account_id` = toUUID('{account}') AND `recipient_key` = ? AND `partition` = {partition} AND `seq` <= {through}"
            ),
            Some(folded.as_str()),
        ),
        Rows::ReceivedBefore(millis) => (
            format!(
                "`account_id` = toUUID('{account}') AND `received_at` < fromUnixTimestamp64Milli({millis}, 'UTC') AND NOT ({})",
                bare()
            ),
            None,
        ),
    };
    let query = |sql: &str| {
        let query = client.query(sql);
        match name {
            Some(name) => query.bind(name),
            None => query,
        }
    };
    let there = query(&format!("SELECT count() FROM events WHERE {condition}")).fetch_one::<u64>();
    if within(TIMEOUT, there).await? == 0 {
        return Ok(());
    }
    // Deliveries first: which they are of, nobody knows afterwards.
    let answers = format!(
        "ALTER TABLE deliveries UPDATE `response` = NULL, `error` = NULL WHERE `account_id` = toUUID('{account}') \
         AND (`partition`, `event_seq`) IN (SELECT `partition`, `seq` FROM events WHERE {condition}) SETTINGS mutations_sync = 2"
    );
    within(TIMEOUT, query(&answers).execute()).await?;
    let events = format!("ALTER TABLE events UPDATE {} WHERE {condition} SETTINGS mutations_sync = 2", changes());
    within(TIMEOUT, query(&events).execute()).await
}

/// Columns outside of blocks, and what they are without anything personal.
const COLUMNS: [(&str, &str); 7] = [
    ("recipient", "''"),
    ("recipient_folded", "NULL"),
    ("recipient_domain", "NULL"),
    ("subject", "NULL"),
    ("customer_id", "NULL"),
    ("tags", "CAST(map(), 'Map(LowCardinality(String), String)')"),
    ("metadata", "NULL"),
];

/// The block without what is personal in it.
fn block() -> String {
    let quoted = |names: Vec<&str>| names.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
    let blocks = quoted(PERSONAL.iter().filter_map(|name| name.strip_suffix(".*")).collect());
    let kept = quoted(PERSONAL.iter().filter_map(|name| name.strip_prefix('!')).collect());
    format!(
        "mapFilter((k, v) -> NOT has([{blocks}], toString(`block_type`)) \
         OR has([{kept}], concat(toString(`block_type`), '.', toString(k))), `block`)"
    )
}

fn changes() -> String {
    let columns = COLUMNS.iter().map(|(name, value)| format!("`{name}` = {value}"));
    columns.chain([format!("`block` = {}", block())]).collect::<Vec<_>>().join(", ")
}

/// Whether nothing personal is in a row.
fn bare() -> String {
    format!(
        "`recipient` = '' AND `subject` IS NULL AND `customer_id` IS NULL AND empty(`tags`) AND `metadata` IS NULL AND `block` = {}",
        block()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_personal_column_is_cleared() {
        for name in PERSONAL.iter().filter(|name| !name.contains('.')) {
            assert!(COLUMNS.iter().any(|(column, _)| column == name), "{name}");
        }
        assert!(block().contains("'bounce'") && block().contains("'bounce.bounceType'"));
    }
}
