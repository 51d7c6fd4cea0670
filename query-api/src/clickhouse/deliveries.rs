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
        let mut partitions: HashMap<u32, Vec<&DeliveryOf>> = HashMap::new();
        wanted.iter().for_each(|of| partitions.entry(of.partition).or_default().push(of));
        for (partition, wanted) in partitions {
            let numbers: Vec<u64> = wanted.iter().map(|of| of.seq).collect();
            // Clocks of servers and brokers may differ somewhat.
            let since = wanted.iter().map(|of| of.received_at).min().map_or(0, |first| first.plus(-CLOCKS).0);
            let query = self.query(LAST, account).param("partition", partition).param("numbers", numbers);
            for row in query.param("since", since).fetch_all::<Last>().await? {
                let destination = DestinationId(row.destination_id);
                let of = |of: &&DeliveryOf| of.seq == row.event_seq && of.destination == destination;
                let Some(of) = wanted.iter().copied().find(of) else { continue };
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

/// How far clocks may be apart, milliseconds.
const CLOCKS: i64 = 60_000;
