use arrow::array::AsArray;
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use sendtrail_schemas::archive::{ArchiveCell, ArchiveView, TailBatch};
use sendtrail_schemas::columns::EventColumns;
use sendtrail_schemas::event::Event;
use sendtrail_schemas::reputation::Reputation;
use sendtrail_schemas::rollup::Dims;
use sendtrail_schemas::time::HOUR;
use uuid::Uuid;

use super::*;
use crate::Answered;

const ACCOUNT: AccountId = AccountId(Uuid::from_u128(1));

struct Nobody;

#[async_trait]
impl SuppressionPages for Nobody {
    async fn page(
        &self,
        _: AccountId,
        _: Option<String>,
        _: usize,
    ) -> Result<(Vec<Suppression>, Option<String>), Error> {
        Ok((Vec::new(), None))
    }
}

#[async_trait]
impl Accounts for Nobody {
    async fn settle(&self, _: AccountId, _: Duration) -> Option<Millis> {
        None
    }

    async fn settle_wholly(&self, _: AccountId, _: Duration) -> bool {
        true
    }

    async fn reputation(&self, _: AccountId) -> Result<Answered<Option<Reputation>>, Error> {
        Ok(Answered { value: None, as_of: None, is_makeshift: false })
    }
}

/// Has 700 deliveries of hour 1; hour 3 overflows, and of hours 6 to 11 there is too much.
struct Kept;

#[async_trait]
impl Rollups for Kept {
    async fn rows(&self, _: AccountId, from: Hour, to: Hour, _: &Apart) -> Result<Vec<HourRows>, Error> {
        if from < 12 && to > 6 {
            return Err(Error::Excess("too much".into()));
        }
        let sums = Sums { deliveries: 700, ..Sums::default() };
        let all = [HourRows::Exact(1, vec![Rollup { dims: Dims::default(), sums }]), HourRows::Overflowing(3)];
        Ok(all.into_iter().filter(|of| (from..to).contains(&of.hour())).collect())
    }
}

/// Hours that overflow, and those of which there is too much, are counted from events, and no others.
#[tokio::test]
async fn sums_that_are_not_kept_are_counted() {
    let mut columns = EventColumns::default();
    for hour in [1, 3, 3, 6, 8, 8, 8, 13] {
        columns.push(&Event {
            account_id: ACCOUNT.bytes().to_vec(),
            occurred_at: hour * HOUR + 5,
            kind: EventType::Delivery as i32,
            ..Event::default()
        });
    }
    let tail = vec![TailBatch { rows: columns.finish().unwrap(), numbers: Arc::default() }];
    let cell = Arc::new(ArchiveCell::default());
    cell.update(|view| ArchiveView { tail, ..view.clone() });
    let rows = Rows {
        events: Arc::new(DataFusionAnalytics::new(cell, 1 << 20, 2)),
        attempts: Arc::new(ArchivedAttempts::new(Arc::default(), 2)),
        sums: Arc::new(Kept),
        suppressions: Arc::new(Nobody),
        directory: Arc::default(),
        accounts: Arc::new(Nobody),
        partitions: 1,
    };
    let batches: Vec<RecordBatch> = rows.stats(ACCOUNT, 0, 18).try_collect().await.unwrap();
    let mut counted = BTreeMap::new();
    for batch in &batches {
        let hours = batch.column_by_name("hour").unwrap().as_primitive::<TimestampMicrosecondType>();
        let deliveries = batch.column_by_name("deliveries").unwrap().as_primitive::<Int64Type>();
        for (hour, count) in hours.values().iter().zip(deliveries.values().iter()) {
            assert!(counted.insert(Millis(hour / 1_000).hour(), *count).is_none());
        }
    }
    assert_eq!(counted, BTreeMap::from([(1, 700), (3, 2), (6, 1), (8, 3)]));
}
