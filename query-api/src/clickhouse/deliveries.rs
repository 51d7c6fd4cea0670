//! How webhook deliveries stand, as ClickHouse knows it: seconds behind the attempts.

use std::collections::HashMap;

use async_trait::async_trait;
use clickhouse::Row;
use sendtrail_schemas::ids::{AccountId, DestinationId};
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::mail::DeliveryStatus;
use sendtrail_schemas::time::Millis;
use serde::Deserialize;

use super::ClickHouseAnalytics;
use crate::{Deliveries, DeliveriesQuery, DeliveryOf, DeliveryPage, DeliveryRow, DeliveryState, Error};

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

impl Listed {
    fn read(self) -> DeliveryRow {
        DeliveryRow {
            partition: self.partition,
            seq: self.event_seq,
            status: DeliveryStatus::parse(&self.last_status).unwrap_or(DeliveryStatus::Pending),
            attempts: self.attempts,
            last_status_code: self.last_code.map(u32::from),
            created_at: Millis(self.created_at),
            event_type: self.kind.and_then(|kind| EventType::parse(&kind)).unwrap_or(EventType::Unspecified),
            finished_at: Some(Millis(self.ended_at)),
            next_due_at: self.due_at.map(Millis),
        }
    }
}

/// The last attempt of each delivery. The time by which the first event was received keeps it to the days since.
const LAST: &str = "SELECT event_seq, destination_id, argMax(toString(status), offset) AS last_status, \
    argMax(`number`, offset) AS attempts, argMax(tuple(status_code), offset).1 AS last_code, \
    toUnixTimestamp64Milli(argMax(finished_at, offset)) AS ended_at FROM deliveries \
    WHERE account_id = {account:UUID} AND `partition` = {partition:UInt32} AND has({numbers:Array(UInt64)}, event_seq) \
    AND finished_at >= fromUnixTimestamp64Milli({since:Int64}, 'UTC') GROUP BY event_seq, destination_id";

#[derive(Row, Deserialize)]
struct Listed {
    partition: u32,
    event_seq: u64,
    last_status: String,
    attempts: u32,
    last_code: Option<u16>,
    ended_at: i64,
    due_at: Option<i64>,
    created_at: i64,
    kind: Option<String>,
}

/// The last attempt of each delivery of a destination, of the newest events first.
const LISTED: &str = "SELECT `partition`, event_seq, argMax(toString(status), offset) AS last_status, \
    argMax(`number`, offset) AS attempts, argMax(tuple(status_code), offset).1 AS last_code, \
    toUnixTimestamp64Milli(argMax(finished_at, offset)) AS ended_at, \
    argMax(tuple(toUnixTimestamp64Milli(next_due_at)), offset).1 AS due_at, \
    toUnixTimestamp64Milli(min(ifNull(event_received_at, first_started_at))) AS created_at, \
    CAST(any(event_type), 'Nullable(String)') AS kind FROM deliveries \
    WHERE account_id = {account:UUID} AND destination_id = {destination:UUID} AND event_seq < {before:UInt64} \
    GROUP BY `partition`, event_seq HAVING {status:String} IN ('', last_status) \
    ORDER BY event_seq DESC LIMIT {limit:UInt64}";

#[async_trait]
impl Deliveries for ClickHouseAnalytics {
    async fn page(&self, account: AccountId, query: &DeliveriesQuery) -> Result<Option<DeliveryPage>, Error> {
        let asked = self
            .query(LISTED, account)
            .param("destination", query.destination.to_string())
            .param("before", query.before.unwrap_or(u64::MAX))
            .param("status", query.status.map_or("", DeliveryStatus::name))
            .param("limit", query.limit as u64 + 1);
        let mut rows: Vec<DeliveryRow> = asked.fetch_all::<Listed>().await?.into_iter().map(Listed::read).collect();
        let next = (rows.len() > query.limit).then(|| rows.get(query.limit - 1).map(|row| row.seq)).flatten();
        rows.truncate(query.limit);
        Ok(Some(DeliveryPage { rows, next }))
    }

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
