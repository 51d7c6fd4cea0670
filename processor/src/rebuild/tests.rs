//! Rebuilds from real tables.

use std::collections::BTreeMap;
use std::path::Path;

use sendtrail_schemas::attempts::AttemptColumns;
use sendtrail_schemas::columns::EventColumns;
use sendtrail_schemas::event::Event;
use sendtrail_schemas::ids::{AccountId, DestinationId};
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::mail::{Attempt, DeliveryStatus};
use sendtrail_schemas::rollup::{Apart, HourRows};
use sendtrail_schemas::time::HOUR;
use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::archive::{ATTEMPTS, EVENTS, write_files};
use crate::{DeliveryQuery, LastAttempt, Store};

const ACCOUNT: Uuid = Uuid::from_u128(1);
const DESTINATION: Uuid = Uuid::from_u128(2);

/// Of five hours and four domains; every third one goes to the destination.
fn events() -> Vec<Event> {
    let event = |seq: u64| Event {
        version: 1,
        account_id: ACCOUNT.as_bytes().to_vec(),
        seq,
        received_at: 10 * HOUR + seq as i64,
        occurred_at: (seq * 7 % 5) as i64 * HOUR + 5,
        kind: [EventType::Send, EventType::Delivery][(seq % 2) as usize] as i32,
        event_id: format!("e{seq}"),
        message_id: format!("m{seq}"),
        recipient: format!("a@{}.example", seq % 4),
        destination_ids: if seq.is_multiple_of(3) { vec![DESTINATION.as_bytes().to_vec()] } else { Vec::new() },
        ..Event::default()
    };
    (0..60).map(event).collect()
}

/// Of four deliveries, the last of each in the second half. In the archive those of a file stand the other way round.
fn attempts() -> Vec<LoggedAttempt> {
    use DeliveryStatus::{Delivered, Failed, GaveUp};
    let attempts = [
        (0, 1, Failed),
        (3, 1, Delivered),
        (6, 1, GaveUp),
        (9, 1, Failed),
        (9, 2, GaveUp),
        (0, 2, Delivered),
        (3, 2, Failed),
        (6, 2, Delivered),
    ];
    let logged = |(offset, (event_seq, number, status)): (usize, (u64, u32, DeliveryStatus))| {
        let started_at = 12 * HOUR - offset as i64 * 1_000;
        let attempt = Attempt {
            version: 1,
            account_id: ACCOUNT.as_bytes().to_vec(),
            event_seq,
            destination_id: DESTINATION.as_bytes().to_vec(),
            number,
            started_at,
            finished_at: started_at + 10,
            status_code: Some(500 + offset as u32),
            status: status as i32,
            next_due_at: (status == Failed).then_some(13 * HOUR),
            first_started_at: started_at,
            event_received_at: 10 * HOUR + event_seq as i64,
            event_type: EventType::Send as i32,
            ..Attempt::default()
        };
        LoggedAttempt { partition: 0, offset: offset as u64, attempt }
    };
    attempts.into_iter().enumerate().map(logged).collect()
}

/// Tables of two files each, which are read in the order of their names.
async fn tables(folder: &Path, names: [&str; 2]) -> (Table, Table) {
    let mut filed = Table::open(&EVENTS, &folder.join("events")).await.unwrap();
    let mut tried = Table::open(&ATTEMPTS, &folder.join("attempts")).await.unwrap();
    let (events, attempts) = (events(), attempts());
    let halves = events.chunks(events.len() / 2).zip(attempts.chunks(attempts.len() / 2));
    for (name, (events, attempts)) in names.into_iter().zip(halves) {
        let mut columns = EventColumns::default();
        events.iter().for_each(|event| columns.push(event));
        let files = write_files(&EVENTS, filed.root(), name, &[columns.finish().unwrap()]).unwrap();
        let numbers = (events[0].seq, events[events.len() - 1].seq);
        filed.append(&files, &BTreeMap::from([(0, numbers)])).await.unwrap();
        let mut columns = AttemptColumns::default();
        attempts.iter().for_each(|attempt| columns.push(attempt));
        let files = write_files(&ATTEMPTS, tried.root(), name, &[columns.finish().unwrap()]).unwrap();
        let numbers = (attempts[0].offset, attempts[attempts.len() - 1].offset);
        tried.append(&files, &BTreeMap::from([(0, numbers)])).await.unwrap();
    }
    assert_eq!((filed.files().len(), tried.files().len()), (2, 2));
    (filed, tried)
}

/// All that readers see, and the marks.
#[derive(PartialEq, Debug)]
struct Shown {
    sums: Vec<HourRows>,
    /// All, those that failed, those that were given up.
    deliveries: [Vec<(u64, LastAttempt)>; 3],
    marks: [u64; 2],
}

fn shown(projections: &Projections) -> Shown {
    let reader = projections.reader();
    let deliveries = |status| {
        let query = DeliveryQuery { destination: DestinationId(DESTINATION), status, before: None, limit: 100 };
        reader.deliveries(0, &query).unwrap().0
    };
    Shown {
        sums: reader.rollups(AccountId(ACCOUNT), 0, 100, &Apart::ALL).unwrap(),
        deliveries: [None, Some(DeliveryStatus::Failed), Some(DeliveryStatus::GaveUp)].map(deliveries),
        marks: [Topic::Events, Topic::Attempts].map(|of| projections.mark(TopicPartition::new(of, 0)).unwrap()),
    }
}

fn store(folder: &Path) -> Store {
    Store::open(&folder.join("state"), 1, 1 << 20).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_order_of_files_they_are_those_of_the_log() {
    let folder = TempDir::new().unwrap();
    let live = store(folder.path());
    let mut projections = Projections::open(live.database()).unwrap();
    events().iter().for_each(|event| projections.add_event(event).unwrap());
    for logged in attempts() {
        projections.flush(false).unwrap();
        projections.add_attempt(0, logged.offset, &logged.attempt);
    }
    projections.flush(true).unwrap();
    let wanted = shown(&projections);
    assert_eq!((wanted.sums.len(), wanted.deliveries.each_ref().map(Vec::len)), (5, [20, 1, 1]));
    assert_eq!(wanted.marks, [60, 8]);
    for names in [["a", "b"], ["b", "a"]] {
        let folder = folder.path().join(names[0]);
        let (events, attempts) = tables(&folder, names).await;
        let store = store(&folder);
        let mut projections = Projections::open(store.database()).unwrap();
        rebuild_projections(&events, &attempts, &mut projections, 1).await.unwrap();
        assert_eq!(shown(&projections), wanted, "{names:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_broken_off_is_refused_until_it_is_made_again() {
    let folder = TempDir::new().unwrap();
    let (events, attempts) = tables(folder.path(), ["a", "b"]).await;
    let first = store(folder.path());
    let mut projections = Projections::open(first.database()).unwrap();
    let rebuilt = rebuild_projections(&events, &attempts, &mut projections, 1).await.unwrap();
    let wanted = shown(&projections);
    drop((projections, first));
    for (table, at) in [(&events, 0), (&events, 1), (&attempts, 0), (&attempts, 1)] {
        let file = table.root().join(&table.files()[at].path);
        let aside = file.with_extension("aside");
        std::fs::rename(&file, &aside).unwrap();
        // What is read before it is added up, durably.
        let there = store(folder.path());
        let mut projections = Projections::open(there.database()).unwrap();
        assert!(rebuild_projections(&events, &attempts, &mut projections, 1).await.is_err(), "{}", file.display());
        std::fs::rename(&aside, &file).unwrap();
        drop((projections, there));

        let there = store(folder.path());
        let refused = Projections::open(there.database()).err().unwrap().to_string();
        assert!(refused.contains("'sendtrail rebuild-projections'"), "{refused}");
        let mut projections = Projections::open_to_rebuild(there.database()).unwrap();
        assert_eq!(rebuild_projections(&events, &attempts, &mut projections, 1).await.unwrap(), rebuilt);
        assert_eq!(shown(&projections), wanted, "{}", file.display());
        // Once more in the same process: nothing is added to what that one has in memory.
        rebuild_projections(&events, &attempts, &mut projections, 1).await.unwrap();
        assert_eq!(shown(&projections), wanted, "{}", file.display());
        drop((projections, there));
        assert_eq!(shown(&Projections::open(store(folder.path()).database()).unwrap()), wanted);
    }
}
