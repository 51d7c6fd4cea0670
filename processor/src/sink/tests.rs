//! A sink on a real log and tables.

use sendtrail_eventlog::Batch;
use sendtrail_eventlog::embedded::{EmbeddedLog, Options};
use sendtrail_schemas::codec;
use sendtrail_schemas::kind::EventType;
use tempfile::TempDir;

use super::*;
use crate::Store;
use crate::archive::{ATTEMPTS, EVENTS};

/// Longer than a slow machine needs, also when its disk stalls.
const WITHIN: Duration = Duration::from_secs(120);

fn events(partition: u32, count: u64, version_of_last: u32) -> Batch {
    let mut batch = Batch::numbered(0);
    for seq in 0..count {
        batch.push(&Event {
            version: if seq + 1 == count { version_of_last } else { codec::VERSION },
            account_id: vec![partition as u8; 16],
            partition,
            seq,
            received_at: 1_000_000,
            occurred_at: 1_000_000,
            kind: EventType::Delivery as i32,
            event_id: format!("{partition}-{seq}"),
            ..Event::default()
        });
    }
    batch
}

#[tokio::test(flavor = "multi_thread")]
async fn one_partition_that_cannot_be_read_keeps_no_other() {
    let folder = TempDir::new().unwrap();
    let options = Options { partitions: 3, ..Options::default() };
    let log: Arc<dyn EventLog> = Arc::new(EmbeddedLog::open(&folder.path().join("log"), options).unwrap());
    // The first has an event at its end that a newer program wrote.
    for (partition, version) in [(0, 99), (1, codec::VERSION), (2, codec::VERSION)] {
        let to = TopicPartition::new(Topic::Events, partition);
        log.append(to, events(partition, 10, version)).await.unwrap();
    }
    let table = async |layout| {
        let table = Table::open(layout, &folder.path().join("archive").join(layout.name())).await.unwrap();
        Arc::new(Mutex::new(table))
    };
    let store = Store::open(&folder.path().join("state"), 3, 1 << 20).unwrap();
    let sink = Sink {
        log: log.clone(),
        table: table(&EVENTS).await,
        attempts: table(&ATTEMPTS).await,
        cell: Arc::default(),
        attempts_cell: Arc::default(),
        projections: Projections::open(store.database()).unwrap(),
        retention: Arc::new(Retention::new(log.clone(), false)),
        partitions: vec![0, 1, 2],
        clock: Clock::wall(),
        options: SinkOptions {
            flush_every: Duration::from_millis(10),
            commit_every: Duration::from_millis(100),
            commit_rows: 1_000,
            drain_within: Duration::from_secs(1),
        },
    };
    let filed = sink.cell.clone();
    let stop = CancellationToken::new();
    let handle = sink.start(stop.clone()).await.unwrap();
    for partition in [1, 2] {
        let seen = tokio::time::timeout(WITHIN, handle.seen(partition, 10)).await;
        assert!(seen.unwrap(), "partition {partition}");
    }
    // What comes before the event that cannot be read is there, too, and somebody is told.
    assert!(tokio::time::timeout(WITHIN, handle.seen(0, 9)).await.unwrap());
    let until = Instant::now() + WITHIN;
    let is_filed = || [(0, 9), (1, 10), (2, 10)].iter().all(|(of, next)| filed.load().filed.get(of) == Some(next));
    while !(handle.failure().is_some_and(|why| why.contains("99")) && is_filed()) {
        assert!(Instant::now() < until, "{:?} {:?}", handle.failure(), filed.load().filed);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // And each is there once, however often that one is tried.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(filed.load().files.iter().map(|file| file.rows).sum::<u64>(), 29);
    stop.cancel();
    tokio::task::spawn_blocking(move || handle.join()).await.unwrap();
}
