//! Files, table and upkeep on a real folder.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arrow::array::RecordBatch;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use sendtrail_eventlog::Clock;
use sendtrail_schemas::archive::{ArchiveCell, ArchivedFile};
use sendtrail_schemas::columns::{EventColumns, read_events};
use sendtrail_schemas::event::Event;
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::time::{DAY, HOUR, Millis};
use tempfile::TempDir;
use tokio::sync::Mutex;
use uuid::Uuid;

use super::gather::gather;
use super::*;
use crate::Error;

const TODAY: i64 = 20_000;

fn event(seq: u64, account: u128, received_at: i64, occurred_at: i64) -> Event {
    Event {
        version: 1,
        account_id: Uuid::from_u128(account).as_bytes().to_vec(),
        seq,
        received_at,
        occurred_at,
        kind: EventType::Delivery as i32,
        event_id: format!("e{seq}"),
        message_id: format!("m{seq}"),
        recipient: format!("r{seq}@example.com"),
        ..Event::default()
    }
}

fn batch(events: &[Event]) -> RecordBatch {
    let mut columns = EventColumns::default();
    events.iter().for_each(|event| columns.push(event));
    columns.finish().unwrap()
}

fn read(root: &std::path::Path, file: &ArchivedFile) -> Vec<Event> {
    let open = std::fs::File::open(root.join(&file.path)).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(open).unwrap().build().unwrap();
    reader.flat_map(|batch| read_events(&batch.unwrap()).unwrap()).collect()
}

fn is_sorted(events: &[Event]) -> bool {
    events.is_sorted_by_key(|event| (event.account().to_string(), event.occurred_at))
}

#[test]
fn files_are_sorted_and_apart_by_day_and_lateness() {
    let folder = TempDir::new().unwrap();
    let noon = TODAY * DAY + 12 * HOUR;
    let events: Vec<Event> = (0..20_000u64)
        .map(|n| {
            let received = if n % 2 == 0 { noon } else { noon + DAY };
            let occurred = if n % 7 == 0 { received - 3 * DAY } else { received - (n as i64 * 7919 % HOUR) };
            event(n, u128::from(n % 13), received, occurred)
        })
        .collect();
    let batches: Vec<RecordBatch> = events.chunks(777).map(batch).collect();
    let files = write_files(&EVENTS, folder.path(), "x", &batches).unwrap();
    let names: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(
        names,
        [
            "dt=2024-10-04/events-x.parquet",
            "dt=2024-10-04/events-x-late.parquet",
            "dt=2024-10-05/events-x.parquet",
            "dt=2024-10-05/events-x-late.parquet"
        ]
    );
    let mut seen = BTreeSet::new();
    for file in &files {
        let events = read(folder.path(), file);
        assert!(is_sorted(&events));
        assert_eq!(events.len() as u64, file.rows);
        let times = events.iter().map(|event| event.occurred_at);
        assert_eq!((times.clone().min().unwrap(), times.max().unwrap()), (file.occurred.0.0, file.occurred.1.0));
        assert_eq!(file.accounts.0, Uuid::from_u128(0).to_string());
        assert_eq!(file.accounts.1, Uuid::from_u128(12).to_string());
        seen.extend(events.into_iter().map(|event| event.seq));
    }
    assert!(seen.into_iter().eq(0..20_000));
}

#[test]
fn gathering_is_interleaving() {
    use sendtrail_schemas::block::{Block, Bounce, Click, StatusChange};
    let block = |n: u64| match n % 5 {
        0 => None,
        1 => Some(Block::Click(Click {
            link: n.is_multiple_of(2).then(|| format!("https://a/{n}")),
            ..Click::default()
        })),
        2 => Some(Block::Bounce(Bounce { status: Some("5.1.1".into()), ..Bounce::default() })),
        3 => Some(Block::StatusChange(StatusChange { numerator: n, ..StatusChange::default() })),
        _ => Some(Block::Bounce(Bounce::default())),
    };
    let events = |of: u64, blocks: bool| -> Vec<Event> {
        let event = |n| Event {
            block: if blocks { block(n) } else { None },
            tags: if n % 3 == 0 { [("k".into(), n.to_string())].into() } else { Default::default() },
            destination_ids: (0..n % 3).map(|_| vec![n as u8; 16]).collect(),
            ..event(n, u128::from(n % 7), TODAY * DAY, TODAY * DAY)
        };
        (of..of + 100).map(event).collect()
    };
    // One without any block: its columns of blocks are null throughout, the other's are not.
    let batches = [batch(&events(0, true)), batch(&events(100, false)), batch(&events(200, true))];
    let batches: Vec<&RecordBatch> = batches.iter().collect();
    let rows: Vec<(usize, usize)> = (0..1_000).map(|n| (n * 7 % 3, n * 31 % 100)).collect();
    let interleaved = arrow::compute::interleave_record_batch(&batches, &rows).unwrap();
    assert_eq!(gather(&batches, &rows).unwrap(), interleaved);
    assert_eq!(read_events(&gather(&batches[1..2], &[(0, 5)]).unwrap()).unwrap(), events(105, false)[..1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_go_on_where_the_table_ends_is_refused() {
    let folder = tempfile::TempDir::new().unwrap();
    let mut table = Table::open(&EVENTS, folder.path()).await.unwrap();
    append(&mut table, 0, 0, 10).await;
    for events in [(5, 12), (11, 12)] {
        let refused = table.append(&[], &BTreeMap::from([(0, events)])).await;
        assert!(matches!(refused, Err(Error::Missing(_))), "{events:?}");
    }
    // What is there already, when the commit was in doubt and the table was read again since, is not put there twice.
    let (files, version) = (table.files(), table.version());
    let again =
        write_files(&EVENTS, table.root(), "again", &[batch(&[event(0, 1, TODAY * DAY, TODAY * DAY)])]).unwrap();
    table.append(&again, &BTreeMap::from([(0, (0, 9))])).await.unwrap();
    assert_eq!((table.files(), table.version()), (files, version));
    append(&mut table, 0, 10, 3).await;
    assert_eq!(table.mark(0).await.unwrap(), 13);
}

async fn append(table: &mut Table, partition: u32, from: u64, count: u64) {
    let now = TODAY * DAY + HOUR;
    let events: Vec<Event> = (from..from + count)
        .map(|seq| Event { partition, ..event(seq, u128::from(seq % 5), now, now - (seq as i64 * 31 % 5000)) })
        .collect();
    let files = write_files(&EVENTS, table.root(), &format!("{partition}-{from}"), &[batch(&events)]).unwrap();
    table.append(&files, &BTreeMap::from([(partition, (from, from + count - 1))])).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_remembers_files_and_marks() {
    let folder = TempDir::new().unwrap();
    let mut table = Table::open(&EVENTS, folder.path()).await.unwrap();
    assert_eq!((table.mark(0).await.unwrap(), table.files().len()), (0, 0));
    append(&mut table, 0, 0, 100).await;
    append(&mut table, 3, 0, 50).await;
    append(&mut table, 0, 100, 10).await;
    let (files, version) = (table.files(), table.version());
    drop(table);
    let table = Table::open(&EVENTS, folder.path()).await.unwrap();
    assert_eq!(
        (table.mark(0).await.unwrap(), table.mark(3).await.unwrap(), table.mark(1).await.unwrap()),
        (110, 50, 0)
    );
    assert_eq!((table.files(), table.version()), (files, version));
}

#[tokio::test]
async fn a_file_that_is_said_to_be_of_another_day_is_refused() {
    let folder = TempDir::new().unwrap();
    let mut table = Table::open(&EVENTS, folder.path()).await.unwrap();
    append(&mut table, 0, 0, 5).await;
    let commit = folder.path().join(format!("_delta_log/{:020}.json", table.version()));
    let text = std::fs::read_to_string(&commit).unwrap();
    let day = Millis::of_day(TODAY as i32).day_text();
    let of = |day: &str| format!(r#""partitionValues":{{"dt":"{day}"}}"#);
    assert!(text.contains(&of(&day)), "{text}");
    std::fs::write(commit, text.replace(&of(&day), &of(&Millis::of_day(TODAY as i32 + 1).day_text()))).unwrap();
    let error = Table::find(&EVENTS, folder.path()).await.map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("another day"), "{error}");
}

#[tokio::test]
async fn a_table_that_needs_more_than_is_known_here_is_refused() {
    let features = |version: u32, features: &str| {
        format!(
            r#"{{"protocol":{{"minReaderVersion":{version},"minWriterVersion":7,"writerFeatures":{features}{}}}}}"#,
            if version == 3 { format!(r#","readerFeatures":{features}"#) } else { String::new() }
        )
    };
    for (protocol, named) in [
        (features(3, r#"["deletionVectors"]"#), Some("deletionVectors")),
        (features(2, r#"["columnMapping"]"#), Some("columnMapping")),
        (features(3, r#"["v2Checkpoint"]"#), None),
    ] {
        let folder = TempDir::new().unwrap();
        let mut table = Table::open(&EVENTS, folder.path()).await.unwrap();
        append(&mut table, 0, 0, 5).await;
        // As another program would, once it is told to delete by vectors.
        let next = folder.path().join(format!("_delta_log/{:020}.json", table.version() + 1));
        std::fs::write(next, protocol).unwrap();
        if named.is_some() {
            // Nor does whoever has it open write to it, however often.
            for _ in 0..2 {
                let files =
                    write_files(&EVENTS, table.root(), "more", &[batch(&[event(5, 1, TODAY * DAY, TODAY * DAY)])]);
                let refused = table.append(&files.unwrap(), &BTreeMap::from([(0, (5, 5))])).await;
                assert!(matches!(refused, Err(Error::Foreign(_))), "{refused:?}");
            }
            assert!(matches!(table.refresh().await, Err(Error::Foreign(_))));
        }
        match (Table::find(&EVENTS, folder.path()).await, named) {
            (Ok(Some(table)), None) => assert_eq!(table.files().len(), 1),
            (Err(error), Some(named)) => assert!(error.to_string().contains(named), "{error}"),
            (found, _) => panic!("{:?} {named:?}", found.map(|found| found.is_some())),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_events_are_committed_once_however_often() {
    let folder = TempDir::new().unwrap();
    let mut first = Table::open(&EVENTS, folder.path()).await.unwrap();
    let mut second = Table::open(&EVENTS, folder.path()).await.unwrap();
    append(&mut first, 0, 0, 10).await;
    // A writer that does not know of the commit is told by the table that its events are there already.
    append(&mut second, 0, 0, 10).await;
    assert_eq!(second.files(), first.files());
    let fresh = Table::open(&EVENTS, folder.path()).await.unwrap();
    assert_eq!(fresh.files().iter().map(|file| file.rows).sum::<u64>(), 10);
    assert_eq!(fresh.mark(0).await.unwrap(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_that_was_made_though_nobody_here_was_told_is_found_to_be_and_anothers_is_not() {
    let folder = TempDir::new().unwrap();
    let mut first = Table::open(&EVENTS, folder.path()).await.unwrap();
    append(&mut first, 0, 0, 10).await;
    append(&mut first, 0, 10, 10).await;
    let mut second = Table::open(&EVENTS, folder.path()).await.unwrap();
    let mut third = Table::open(&EVENTS, folder.path()).await.unwrap();
    let old = first.files();
    let merged = |name: &str| {
        let path = format!("dt=2024-10-04/events-{name}.parquet");
        let into = parquet_file::SortedFile::create(&EVENTS, folder.path(), path, TODAY as i32, 20).unwrap();
        merge::merge(&EVENTS, folder.path(), &old, into).unwrap()
    };
    let ours = merged("ours");
    first.replace(&old, ours.clone()).await.unwrap();
    // The same once more, by a writer that does not know of the commit: it fails, and what is there is looked up.
    second.replace(&old, ours).await.unwrap();
    assert_eq!((second.files(), second.version()), (first.files(), first.version()));
    let refused = third.replace(&old, merged("theirs")).await;
    assert!(matches!(refused, Err(Error::Delta(_))), "{refused:?}");
    assert_eq!((third.files(), third.version()), (first.files(), first.version()));
    // Whoever found it goes on from it.
    append(&mut second, 0, 20, 5).await;
    let merged = second.files();
    let path = "dt=2024-10-04/events-all.parquet".to_owned();
    let into = parquet_file::SortedFile::create(&EVENTS, folder.path(), path, TODAY as i32, 25).unwrap();
    let all = merge::merge(&EVENTS, folder.path(), &merged, into).unwrap();
    second.replace(&merged, all).await.unwrap();
    let fresh = Table::open(&EVENTS, folder.path()).await.unwrap();
    assert_eq!(fresh.files(), second.files());
    assert_eq!((fresh.files().len(), fresh.files()[0].rows, fresh.mark(0).await.unwrap()), (1, 25, 25));
}

#[tokio::test(flavor = "multi_thread")]
async fn merging_keeps_every_row_in_order_and_vacuum_what_is_listed() {
    let folder = TempDir::new().unwrap();
    let mut table = Table::open(&EVENTS, folder.path()).await.unwrap();
    for n in 0..20 {
        append(&mut table, 0, n * 500, 500).await;
    }
    let root = table.root().to_owned();
    let before = table.files();
    let cell = Arc::new(ArchiveCell::default());
    let upkeep = |table, vacuum_after| Upkeep {
        table,
        cell: cell.clone(),
        clock: Clock::simulated(Millis((TODAY + 1) * DAY)),
        options: UpkeepOptions { every: Duration::from_secs(1), vacuum_after },
    };
    let table = Arc::new(Mutex::new(table));
    assert!(upkeep(table.clone(), Duration::from_secs(3600)).compact().await.unwrap() > 0);
    let files = cell.load().files.clone();
    assert_eq!(files.len(), 1, "the day is over");
    let events = read(&root, &files[0]);
    assert!(is_sorted(&events));
    assert!(events.iter().map(|event| event.seq).collect::<BTreeSet<_>>().into_iter().eq(0..10_000));
    assert_eq!(upkeep(table.clone(), Duration::from_secs(3600)).vacuum().await.unwrap(), 0, "readers may know them");
    assert!(root.join(&before[0].path).exists());
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(upkeep(table.clone(), Duration::ZERO).vacuum().await.unwrap(), 20 + 1, "and the merge in between");
    assert!(root.join(&files[0].path).exists());
    drop(table);
    let table = Table::open(&EVENTS, folder.path()).await.unwrap();
    assert_eq!(table.files(), *files);
    assert_eq!(table.mark(0).await.unwrap(), 10_000);
}

/// The events' table as a program of before knew it: without the two blocks that came with webhooks.
static BEFORE: LazyLock<Layout> = LazyLock::new(|| EVENTS.with_schema(schema_of_before));

fn schema_of_before() -> arrow::datatypes::SchemaRef {
    let schema = (EVENTS.schema)();
    let known = schema.fields().iter().filter(|field| !["webhook", "lifecycle"].contains(&field.name().as_str()));
    Arc::new(arrow::datatypes::Schema::new(known.cloned().collect::<Vec<_>>()))
}

#[tokio::test]
async fn a_table_of_before_gets_its_columns_and_its_files_merge_with_those_of_now() {
    use sendtrail_schemas::block::{Block, WebhookChange};
    let folder = TempDir::new().unwrap();
    let noon = TODAY * DAY + 12 * HOUR;
    let mut table = Table::open(&BEFORE, folder.path()).await.unwrap();
    let old: Vec<Event> = (0..5).map(|n| event(n, 1, noon, noon + n as i64)).collect();
    let rows = merge::conform(&batch(&old), schema_of_before()).unwrap();
    let mut files = write_files(&BEFORE, table.root(), "a", &[rows]).unwrap();
    table.append(&files, &BTreeMap::from([(0, (0, 4))])).await.unwrap();
    drop(table);
    let mut table = Table::open(&EVENTS, folder.path()).await.unwrap();
    let change = WebhookChange { to: Some("failing".into()), ..WebhookChange::default() };
    let new = Event { block: Some(Block::WebhookChange(change)), ..event(5, 1, noon, noon) };
    files.extend(write_files(&EVENTS, table.root(), "b", &[batch(std::slice::from_ref(&new))]).unwrap());
    table.append(&files[1..], &BTreeMap::from([(0, (5, 5))])).await.unwrap();
    let all: Vec<Arc<ArchivedFile>> = table.files();
    let path = "dt=2024-10-04/events-m.parquet".to_owned();
    let into = parquet_file::SortedFile::create(&EVENTS, table.root(), path, TODAY as i32, 6).unwrap();
    let merged = merge::merge(&EVENTS, table.root(), &all, into).unwrap();
    table.replace(&all, merged.clone()).await.unwrap();
    let mut read = read(table.root(), &merged);
    read.sort_by_key(|event| event.seq);
    assert_eq!(read[5], new);
    assert_eq!(read[..5], old[..]);
    // It has them once, however often it is opened.
    let version = table.version();
    drop(table);
    assert_eq!(Table::open(&EVENTS, folder.path()).await.unwrap().version(), version);
}
