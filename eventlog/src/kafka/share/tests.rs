use std::collections::BTreeSet;

use rdkafka::config::ClientConfig;
use sendtrail_schemas::topic::TopicPartition;

use super::super::tests::{numbered, open, options, soon, values};
use super::super::{KafkaLog, Options};
use super::*;
use crate::EventLog;

/// A server that shares the partitions of these two topics.
fn sharing(options: &Options, instance: &str) -> Options {
    let mut options = Options {
        parts: Vec::new(),
        topics: Vec::new(),
        shared: vec![Topic::Intake, Topic::Events],
        instance: instance.into(),
        ..options.clone()
    };
    options.properties.insert("session.timeout.ms".into(), "6000".into());
    options
}

fn given(log: &KafkaLog) -> BTreeSet<u32> {
    log.assignments().borrow().iter().copied().collect()
}

/// Waits for something that may take as long as a session.
async fn in_time(holds: impl Fn() -> bool) {
    soon(&holds).await;
    assert!(holds());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_partition_goes_to_another_server_once_it_is_finished_and_both_go_on_where_it_ends() {
    let Some(address) = sendtrail_test_servers::kafka() else { return };
    let options = options(address);
    let one = open(&sharing(&options, "one")).unwrap();
    in_time(|| given(&one).len() == 2).await;
    for partition in 0..2 {
        one.acquire(partition).await.unwrap();
        let events = TopicPartition::new(Topic::Events, partition);
        assert_eq!(one.append(events, numbered(0, 50)).await.unwrap(), 0);
    }
    // Kafka's tools see how far the state is.
    one.trim(TopicPartition::new(Topic::Intake, 1), 7);
    let group = group(&options);
    let auditor: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", address).set("group.id", &group).create().unwrap();
    let noted = || {
        let mut places = TopicPartitionList::new();
        places.add_partition(&options.topic(Topic::Intake), 1);
        let noted = auditor.committed_offsets(places, 6 * PATIENCE).unwrap();
        noted.elements()[0].offset()
    };
    in_time(|| tokio::task::block_in_place(noted) == Offset::Offset(7)).await;

    let other = open(&sharing(&options, "other")).unwrap();
    in_time(|| given(&one).len() == 1).await;
    let (kept, moved) = if given(&one).contains(&0) { (0, 1) } else { (1, 0) };
    let events = TopicPartition::new(Topic::Events, moved);
    // It is still worked on.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(given(&other).is_empty());
    assert!(other.acquire(moved).await.is_err(), "it is not given yet");
    one.append(events, numbered(50, 10)).await.unwrap();
    one.release(moved);
    in_time(|| given(&other) == BTreeSet::from([moved])).await;
    assert!(one.acquire(moved).await.is_err(), "it is another server's");

    // The next one sees where it ends; what it makes again is there once.
    other.acquire(moved).await.unwrap();
    assert_eq!(*other.end(events).borrow(), 60);
    other.append(events, numbered(40, 30)).await.unwrap();
    assert!(matches!(other.append(events, numbered(90, 1)).await, Err(Error::Gap { next: 70, .. })));
    // The one before sees nothing of it, and goes on with its own.
    assert_eq!(*one.end(events).borrow(), 60);
    one.append(TopicPartition::new(Topic::Events, kept), numbered(50, 5)).await.unwrap();

    // It comes back after the session of a server that is gone.
    other.release(moved);
    other.close();
    in_time(|| given(&one).len() == 2).await;
    one.acquire(moved).await.unwrap();
    assert_eq!(*one.end(events).borrow(), 70);
    one.append(events, numbered(60, 20)).await.unwrap();
    let found = values(&one, events, 0);
    assert_eq!(found.len(), 80);
    assert!(found.iter().enumerate().all(|(n, (offset, value))| *offset == n as u64 && *value == n.to_le_bytes()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_that_owns_everything_and_those_that_share_wait_for_one_another() {
    let Some(address) = sendtrail_test_servers::kafka() else { return };
    let sharing = sharing(&options(address), "sharing");
    let alone = Options {
        parts: vec![Part::Processor],
        topics: Topic::ALL.into(),
        shared: Vec::new(),
        instance: "alone".into(),
        ..sharing.clone()
    };
    let begin = |options: &Options| {
        let options = options.clone();
        std::thread::spawn(move || KafkaLog::open(options).unwrap())
    };
    for (first, second) in [(&sharing, &alone), (&alone, &sharing)] {
        let log = open(first).unwrap();
        let waiting = begin(second);
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(!waiting.is_finished());
        log.close();
        in_time(|| waiting.is_finished()).await;
        waiting.join().unwrap().close();
        // Until its session has ended.
        tokio::time::sleep(Duration::from_secs(7)).await;
    }
}
