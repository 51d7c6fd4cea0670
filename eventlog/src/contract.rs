//! What every log must do. [`contract_suite!`](crate::contract_suite) makes a test of each function.

use std::sync::Arc;

use bytes::Bytes;
use sendtrail_schemas::topic::{Topic, TopicPartition};

use crate::{Batch, Error, EventLog, Record};

/// A log under test.
pub trait Subject {
    /// A log of at least two partitions that holds nothing.
    fn fresh() -> impl Future<Output = Self>;
    /// Opens it; whatever was opened before was dropped. None where it cannot be had: the test is skipped.
    fn open(&self) -> impl Future<Output = Option<Arc<dyn EventLog>>>;
}

const EVENTS: TopicPartition = TopicPartition { topic: Topic::Events, partition: 0 };
const ATTEMPTS: TopicPartition = TopicPartition { topic: Topic::Attempts, partition: 0 };
const INTAKE: TopicPartition = TopicPartition { topic: Topic::Intake, partition: 1 };

fn batch(values: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Batch {
    fill(Batch::new(), values)
}

fn fill(mut batch: Batch, values: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Batch {
    values.into_iter().for_each(|value| batch.push_bytes(value.as_ref()));
    batch
}

fn all(log: &dyn EventLog, of: TopicPartition, from: u64) -> Vec<Record> {
    let mut records: Vec<Record> = Vec::new();
    loop {
        let next = records.last().map_or(from, |record| record.offset + 1);
        let batches = log.read(of, next, 1 << 20).expect("reads");
        let before = records.len();
        batches.iter().for_each(|batch| records.extend(batch.records(next)));
        if records.len() == before {
            return records;
        }
    }
}

fn values(records: &[Record]) -> Vec<Bytes> {
    records.iter().map(|record| record.value.clone()).collect()
}

/// Offsets are 0, 1, 2, … in each partition, in the order of appends, and survive being opened again.
pub async fn numbers_without_holes(subject: impl Subject) {
    let Some(log) = subject.open().await else { return };
    assert_eq!(log.append(INTAKE, batch(["a", "b"])).await.expect("appends"), 0);
    assert_eq!(log.append(ATTEMPTS, batch(["x"])).await.expect("appends"), 0);
    assert_eq!(log.append(INTAKE, batch(["c"])).await.expect("appends"), 2);
    drop(log);
    let Some(log) = subject.open().await else { return };
    assert_eq!(log.append(INTAKE, batch(["d"])).await.expect("appends"), 3);
    let records = all(&*log, INTAKE, 0);
    assert_eq!(values(&records), ["a", "b", "c", "d"]);
    assert!(records.iter().enumerate().all(|(at, record)| record.offset == at as u64));
    assert_eq!(values(&all(&*log, ATTEMPTS, 0)), ["x"]);
    assert_eq!(*log.end(INTAKE).borrow(), 4);
}

/// Reading may begin anywhere, also within a batch, and at the end there is nothing.
pub async fn reads_from_any_offset(subject: impl Subject) {
    let Some(log) = subject.open().await else { return };
    for at in 0..10u8 {
        log.append(ATTEMPTS, batch((0..5u8).map(|n| [at, n]))).await.expect("appends");
    }
    let whole = all(&*log, ATTEMPTS, 0);
    for from in 0..=50 {
        assert_eq!(all(&*log, ATTEMPTS, from), whole[from as usize..]);
    }
    assert!(log.read(ATTEMPTS, 50, 1 << 20).expect("reads").is_empty());
    assert!(log.read(ATTEMPTS, 500, 1 << 20).expect("reads").is_empty());
    // However little is asked for, there is progress.
    assert_eq!(log.read(ATTEMPTS, 7, 1).expect("reads").len(), 1);
}

/// Stamps never run back.
pub async fn stamps_do_not_run_back(subject: impl Subject) {
    let mut last = 0;
    for _ in 0..3 {
        let Some(log) = subject.open().await else { return };
        for _ in 0..20 {
            log.append(INTAKE, batch(["x"])).await.expect("appends");
        }
        for record in all(&*log, INTAKE, 0) {
            assert!(record.received_at >= last || record.offset == 0);
            last = record.received_at;
        }
        last = 0;
    }
}

/// Appends from many tasks all get their own offsets, and each task's are in its order.
pub async fn many_writers(subject: impl Subject) {
    let Some(log) = subject.open().await else { return };
    let writers = (0..8u8).map(|writer| {
        let log = log.clone();
        tokio::spawn(async move {
            for n in 0..50u8 {
                log.append(INTAKE, batch([[writer, n]])).await.expect("appends");
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.expect("a writer ends");
    }
    let records = all(&*log, INTAKE, 0);
    assert_eq!(records.len(), 400);
    for writer in 0..8u8 {
        let own: Vec<u8> = records.iter().filter(|r| r.value[0] == writer).map(|r| r.value[1]).collect();
        assert!(own.iter().copied().eq(0..50u8));
    }
}

/// Batches of a dense sequence may be appended again: what the log has is dropped, a hole is refused.
pub async fn numbered_batches_are_kept_once(subject: impl Subject) {
    let Some(log) = subject.open().await else { return };
    log.append(EVENTS, fill(Batch::numbered(0), ["0", "1", "2"])).await.expect("appends");
    log.append(EVENTS, fill(Batch::numbered(1), ["1", "2", "3"])).await.expect("appends");
    log.append(EVENTS, fill(Batch::numbered(0), ["0", "1"])).await.expect("appends");
    drop(log);
    let Some(log) = subject.open().await else { return };
    log.append(EVENTS, fill(Batch::numbered(2), ["2", "3", "4"])).await.expect("appends");
    let gap = log.append(EVENTS, fill(Batch::numbered(6), ["6"])).await;
    assert!(matches!(gap, Err(Error::Gap { first: 6, next: 5, .. })), "{gap:?}");
    log.append(EVENTS, fill(Batch::numbered(5), ["5"])).await.expect("appends");
    assert_eq!(values(&all(&*log, EVENTS, 0)), ["0", "1", "2", "3", "4", "5"]);
}

/// Batches appended without waiting enter the log in the order of the calls.
pub async fn calls_are_ordered(subject: impl Subject) {
    let Some(log) = subject.open().await else { return };
    let appends: Vec<_> =
        (0..100u64).map(|n| log.append(EVENTS, fill(Batch::numbered(n), [n.to_le_bytes()]))).collect();
    for append in appends.into_iter().rev() {
        append.await.expect("appends");
    }
    let records = all(&*log, EVENTS, 0);
    assert!(records.iter().enumerate().all(|(at, record)| record.value[..] == (at as u64).to_le_bytes()));
    assert_eq!(records.len(), 100);
}

/// Whoever waits for the end is woken, and what he then reads is there.
pub async fn the_end_wakes_readers(subject: impl Subject) {
    let Some(log) = subject.open().await else { return };
    let mut end = log.end(INTAKE);
    let reader = {
        let log = log.clone();
        tokio::spawn(async move {
            end.wait_for(|end| *end >= 3).await.expect("the log lives");
            all(&*log, INTAKE, 0).len()
        })
    };
    for _ in 0..3 {
        log.append(INTAKE, batch(["x"])).await.expect("appends");
    }
    assert_eq!(reader.await.expect("the reader ends"), 3);
}

/// What was trimmed by every reader may be gone, the rest stays, and numbers go on from where they were.
pub async fn trimming_keeps_the_rest(subject: impl Subject) {
    let Some(log) = subject.open().await else { return };
    let large = vec![7u8; 100_000];
    for _ in 0..60 {
        log.append(INTAKE, batch([&large])).await.expect("appends");
    }
    log.trim(INTAKE, 50);
    assert_eq!(all(&*log, INTAKE, 50).len(), 10);
    log.trim(INTAKE, 60);
    drop(log);
    let Some(log) = subject.open().await else { return };
    assert_eq!(*log.end(INTAKE).borrow(), 60);
    assert_eq!(log.append(INTAKE, batch(["next"])).await.expect("appends"), 60);
    match log.read(INTAKE, 0, 1 << 20) {
        Ok(batches) => assert_eq!(batches[0].base_offset, 0),
        Err(error) => assert!(matches!(error, Error::Trimmed { from: 0, .. }), "{error}"),
    }
}

/// An empty record is a record; a batch may be large.
pub async fn sizes_do_not_matter(subject: impl Subject) {
    let Some(log) = subject.open().await else { return };
    let large = vec![1u8; 3 << 20];
    log.append(INTAKE, batch([&b""[..], &large, b"end"])).await.expect("appends");
    let records = all(&*log, INTAKE, 0);
    assert_eq!(records.iter().map(|r| r.value.len()).collect::<Vec<_>>(), [0, 3 << 20, 3]);
}

/// The partitions of this process are told.
pub async fn assignments_are_told(subject: impl Subject) {
    let Some(log) = subject.open().await else { return };
    let mut assignments = log.assignments();
    let assigned = assignments.wait_for(|partitions| partitions.len() >= 2).await.expect("the log lives");
    assert!(assigned.contains(&0) && assigned.contains(&1));
}

/// Makes a test of each function of this module for a [`Subject`].
#[macro_export]
macro_rules! contract_suite {
    ($subject:ty: $($name:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let subject = <$subject as $crate::contract::Subject>::fresh().await;
                $crate::contract::$name(subject).await;
            }
        )*
    };
    ($subject:ty) => {
        $crate::contract_suite!($subject:
            numbers_without_holes, reads_from_any_offset, stamps_do_not_run_back, many_writers,
            numbered_batches_are_kept_once, calls_are_ordered, the_end_wakes_readers, trimming_keeps_the_rest,
            sizes_do_not_matter, assignments_are_told,
        );
    };
}
