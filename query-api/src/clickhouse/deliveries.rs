//! How webhook deliveries stand, as ClickHouse knows it: seconds behind the attempts.

use std::collections::HashMap;

use async_trait::async_trait;
use clickhouse::Row;
use sendtrail_schemas::ids::{AccountId, DestinationId};
use sendtrail_schemas::mail::DeliveryStatus;
use sendtrail_schemas::time::Millis;
use serde::Deserialize;

use super::ClickHouseAnalytics;
use crate::{Deliveries, DeliveryOf, DeliveryState, Error};

/// Deliveries that are asked for at once.
const TOGETHER: usize = 1_000;
/// How far clocks may be apart, milliseconds.
const CLOCKS: i64 = 60_000;

#[derive(Row, Deserialize)]
struct Last {
    event_seq: u64,
    #[serde(with = "clickhouse::serde::uuid")]
    destination_id: uuid::Uuid,
    last_status: String,
    attempts: u32,
    last_code: Option<u16>,
    ended_at: i64,
}

/// The last attempt of each delivery. The time by which the first event was received keeps it to the days since.
const LAST: &str = "SELECT event_seq, destination_id, argMax(toString(status), offset) AS last_status, \
    argMax(`number`, offset) AS attempts, argMax(tuple(status_code), offset).1 AS last_code, \
    toUnixTimestamp64Milli(argMax(finished_at, offset)) AS ended_at FROM deliveries \
    WHERE account_id = {account:UUID} AND `partition` = {partition:UInt32} AND has({numbers:Array(UInt64)}, event_seq) \
    AND finished_at >= fromUnixTimestamp64Milli({since:Int64}, 'UTC') GROUP BY event_seq, destination_id";

#[async_trait]
impl Deliveries for ClickHouseAnalytics {
    async fn states(
        &self,
        account: AccountId,
        wanted: &[DeliveryOf],
    ) -> Result<Option<HashMap<DeliveryOf, DeliveryState>>, Error> {
        let mut found = HashMap::new();
        // All of an account's events are in one partition; a long list would not fit into an address.
        for wanted in wanted.chunk_by(|one, other| one.partition == other.partition).flat_map(|of| of.chunks(TOGETHER))
        {
            let Some(partition) = wanted.first().map(|of| of.partition) else { continue };
            let numbers: Vec<u64> = wanted.iter().map(|of| of.seq).collect();
            let by_key: HashMap<_, _> = wanted.iter().map(|of| ((of.seq, of.destination), *of)).collect();
            // Clocks of servers and brokers may differ somewhat.
            let since = wanted.iter().map(|of| of.received_at).min().map_or(0, |first| first.plus(-CLOCKS).0);
            let query = self.query(LAST, account).param("partition", partition).param("numbers", numbers);
            for row in query.param("since", since).fetch_all::<Last>().await? {
                let Some(of) = by_key.get(&(row.event_seq, DestinationId(row.destination_id))) else { continue };
                let state = DeliveryState {
                    status: DeliveryStatus::parse(&row.last_status).unwrap_or(DeliveryStatus::Pending),
                    attempts: row.attempts,
                    last_status_code: row.last_code.map(u32::from),
                    finished_at: Millis(row.ended_at),
                };
                found.insert(*of, state);
            }
        }
        Ok(Some(found))
    }
}
