//! Archives of which rows are cleared, before and after they are sealed and merged.

mod doubt;
mod parts;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use sendtrail_audit::{Dataset, Fault, Options, Report, verify_table};
use sendtrail_eventlog::Clock;
use sendtrail_schemas::attempts::{AttemptColumns, LoggedAttempt, read_attempts};
use sendtrail_schemas::block::{Block, Bounce};
use sendtrail_schemas::columns::{EventColumns, read_events};
use sendtrail_schemas::event::{Event, Tags};
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::mail::Attempt;
use sendtrail_schemas::personal::strip;
use tempfile::TempDir;

use super::*;
use crate::archive::{ATTEMPTS, EVENTS, Sealer, Upkeep, UpkeepOptions, write_files};

const FIRST: i64 = 20_000;

fn event(seq: u64, day: i64) -> Event {
    let bounce = Bounce {
        bounce_type: Some("Permanent".into()),
        diagnostic_code: Some(format!("550 nobody {seq}")),
        ..Bounce::default()
    };
    Event {
        version: 1,
        account_id: vec![(seq % 2) as u8 + 1; 16],
        seq,
        received_at: day * DAY + seq as i64 % 1_000,
        occurred_at: day * DAY - seq as i64 % 7 * 1_000,
        kind: EventType::Bounce as i32,
        event_id: format!("e{seq}"),
        message_id: format!("m{seq}"),
        recipient: if seq.is_multiple_of(7) { String::new() } else { format!("Person{}@example.com", seq % 3) },
        subject: Some(format!("to {seq}")),
        tags: Tags::from([("n".into(), seq.to_string())]),
        block: seq.is_multiple_of(2).then_some(Block::Bounce(bounce)),
        ..Event::default()
    }
}

fn account(n: u8) -> String {
    sendtrail_schemas::ids::AccountId(uuid::Uuid::from_bytes([n; 16])).to_string()
}

fn recipient(n: u8, who: u64, through: u64) -> Target {
    Target { account: account(n), who: Who::Recipient { folded: format!("person{who}@example.com"), through } }
}

struct Archive {
    folder: TempDir,
    eraser: Eraser,
    sealer: Sealer,
    next: u64,
    files: u32,
    /// What its rows should be.
    model: BTreeMap<u64, Event>,
}

impl Archive {
    async fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let table = Arc::new(Mutex::new(Table::open(&EVENTS, folder.path()).await.unwrap()));
        let key = Arc::new(SealKey::new(&[3; 32]));
        let sealer = Sealer {
            table: table.clone(),
            key: key.clone(),
            clock: Clock::simulated(Millis(FIRST * DAY)),
            after: 0,
            every: Duration::from_secs(1),
            random: |bytes| bytes.iter_mut().enumerate().for_each(|(at, byte)| *byte = at as u8 ^ 0x5a),
        };
        let eraser = Eraser { table, cell: Arc::default(), key };
        Self { folder, eraser, sealer, next: 0, files: 0, model: BTreeMap::new() }
    }

    async fn add(&mut self, day: i64, count: u64) {
        let mut columns = EventColumns::default();
        for seq in self.next..self.next + count {
            let event = event(seq, day);
            columns.push(&event);
            self.model.insert(seq, event);
        }
        self.files += 1;
        let name = format!("f{}", self.files);
        let files = write_files(&EVENTS, self.folder.path(), &name, &[columns.finish().unwrap()]).unwrap();
        let numbers = BTreeMap::from([(0, (self.next, self.next + count - 1))]);
        self.next += count;
        self.eraser.table.lock().await.append(&files, &numbers).await.unwrap();
    }

    async fn seal(&self, today: i64) {
        self.sealer.clock.reached(Millis(today * DAY));
        self.sealer.seal_due().await.unwrap();
    }

    async fn merge(&self) {
        let (table, clock) = (self.eraser.table.clone(), self.sealer.clock.clone());
        let options = UpkeepOptions { every: Duration::from_secs(1), vacuum_after: Duration::from_secs(60) };
        Upkeep { table, cell: Arc::default(), clock, options }.compact().await.unwrap();
    }

    /// Erases, and does the same to the model; how many rows of each target.
    async fn erase(&mut self, targets: Vec<Target>) -> Vec<u64> {
        let mut rows = vec![0; targets.len()];
        for event in self.model.values_mut() {
            let is_of = |target: &Target| {
                let mine = event.account().to_string() == target.account;
                mine && match &target.who {
                    Who::Recipient { folded, through } => {
                        event.recipient.to_lowercase() == *folded && event.seq <= *through
                    }
                    Who::Received { from, to } => (*from..*to).contains(&event.received().day()),
                }
            };
            let before = event.clone();
            if let Some(at) = targets.iter().position(is_of) {
                strip(event);
                rows[at] += u64::from(*event != before);
            }
        }
        let erasing = self.eraser.begin(targets).await.unwrap();
        assert_eq!(erasing.found.rows, rows);
        let found = self.eraser.end(erasing, Millis(FIRST * DAY), "test".into()).await.unwrap();
        assert_eq!(found.places.len(), rows.iter().sum::<u64>());
        rows
    }

    async fn report(&self) -> Report {
        let table = self.eraser.table.lock().await;
        let paths: Vec<String> = table.files().iter().map(|file| file.path.clone()).collect();
        let options = Options { keys: vec![self.sealer.key.public()], seen: None };
        let committed = table.last_tombstone().await.unwrap();
        verify_table(Dataset::Events, self.folder.path(), &paths, committed, &options).unwrap()
    }

    async fn check(&self) {
        let mut report = self.report().await;
        report.faults.retain(|fault| *fault != Fault::NoSeals);
        assert_eq!(report.faults, []);
        let mut rows = BTreeMap::new();
        for file in self.eraser.table.lock().await.files() {
            for batch in read_file(&EVENTS, self.folder.path(), &file).unwrap() {
                for event in read_events(&batch.unwrap()).unwrap() {
                    assert!(rows.insert(event.seq, event).is_none());
                }
            }
        }
        // The version of the record is no column.
        rows.values_mut().for_each(|event| event.version = 1);
        assert_eq!(rows, self.model);
    }

    fn salts(&self) -> usize {
        let of = |number| SealFolder::of(self.folder.path()).salts(number).map_or(0, |salts| salts.len());
        (1..20).map(of).sum()
    }
}

#[tokio::test]
async fn a_recipient_of_sealed_and_open_days_is_gone_and_the_seals_hold() {
    let mut archive = Archive::new().await;
    archive.add(FIRST, 40).await;
    archive.add(FIRST, 10).await;
    archive.seal(FIRST + 1).await;
    archive.add(FIRST + 1, 20).await;
    let before = archive.salts();
    // Of account 2: the odd numbers.
    let rows = archive.erase(vec![recipient(2, 1, 69)]).await;
    assert!(rows[0] > 5, "{rows:?}");
    archive.check().await;
    assert_eq!(archive.salts(), before - 1, "one recipient's salt, of one sealed day");
    let sealed_rows = archive.report().await.erased;
    assert!(sealed_rows > 0 && sealed_rows < rows[0]);
    archive.merge().await;
    archive.seal(FIRST + 2).await;
    archive.check().await;
    assert_eq!(archive.erase(vec![recipient(2, 1, 69)]).await, [0], "again, there is nothing");
    archive.check().await;
    for entry in walk(archive.folder.path()) {
        let is_going = entry.to_string_lossy().ends_with("going.json");
        assert!(!is_going, "{}", entry.display());
    }
}

/// A crash after the tombstone and before the commit leaves a tombstone of rows that are not bare.
#[tokio::test]
async fn a_tombstone_that_came_to_nothing_is_taken_back_and_no_salt_goes_with_it() {
    let mut archive = Archive::new().await;
    archive.add(FIRST, 40).await;
    archive.seal(FIRST + 1).await;
    archive.add(FIRST + 1, 20).await;
    let before = archive.salts();
    let begun = archive.eraser.begin(vec![recipient(2, 1, 39)]).await.unwrap();
    let number = begun.sealed.bury(&archive.eraser.key, "2026-05-01T00:00:00Z".into(), "x".into(), 100).unwrap();
    assert_eq!(number, Some(1));
    drop(begun._alone);
    // Somebody else's erasure, of a day that is not sealed: the first one's salts must stay.
    let other = Target {
        account: account(1),
        who: Who::Recipient { folded: "person0@example.com".into(), through: archive.next },
    };
    let only_open = archive.eraser.begin(vec![other.clone()]).await.unwrap();
    drop(only_open);
    archive.check().await;
    assert_eq!(archive.salts(), before);
    assert!(archive.erase(vec![other]).await[0] > 0);
    archive.check().await;
    // And the first one again.
    assert!(archive.erase(vec![recipient(2, 1, 39)]).await[0] > 0);
    archive.check().await;
    assert_eq!(archive.salts(), before - 2);
}

fn walk(folder: &std::path::Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { all.extend(walk(&path)) } else { all.push(path) }
    }
    all
}

#[tokio::test]
async fn later_rows_of_the_same_sealed_day_keep_their_salt() {
    let mut archive = Archive::new().await;
    archive.add(FIRST, 40).await;
    archive.add(FIRST, 40).await;
    archive.seal(FIRST + 1).await;
    let before = archive.salts();
    assert!(archive.erase(vec![recipient(1, 2, 39)]).await[0] > 0);
    archive.check().await;
    assert_eq!(archive.salts(), before);
    assert!(archive.erase(vec![recipient(1, 2, 79)]).await[0] > 0);
    archive.check().await;
    assert_eq!(archive.salts(), before - 1);
}

#[tokio::test]
async fn days_beyond_retention_lose_everybody() {
    let mut archive = Archive::new().await;
    archive.add(FIRST, 50).await;
    archive.seal(FIRST + 1).await;
    archive.add(FIRST + 1, 50).await;
    let days = |from, to| Target { account: account(1), who: Who::Received { from, to } };
    let rows = archive.erase(vec![days(Day::MIN, FIRST as Day + 1)]).await;
    assert_eq!(rows, [25]);
    archive.check().await;
    archive.seal(FIRST + 2).await;
    archive.check().await;
    assert_eq!(archive.erase(vec![days(Day::MIN, FIRST as Day + 1)]).await, [0]);
    assert_eq!(archive.erase(vec![days(FIRST as Day + 1, FIRST as Day + 2)]).await, [25]);
    archive.check().await;
}

/// Two attempts at each of ten events: an error, and an answer to the second.
fn attempts(day: i64) -> arrow::array::RecordBatch {
    let mut columns = AttemptColumns::default();
    for offset in 0..20u64 {
        let attempt = Attempt {
            version: 1,
            account_id: vec![1; 16],
            destination_id: vec![2; 16],
            event_seq: offset / 2,
            number: offset as u32 % 2 + 1,
            error: (offset % 2 == 0).then(|| "refused jane@example.com".into()),
            response: if offset % 4 == 1 { b"no jane@example.com".to_vec() } else { Vec::new() },
            started_at: day * DAY,
            // One of them ends on the next day, before others of this one were noted.
            finished_at: if offset == 12 { (day + 1) * DAY } else { day * DAY + 1 },
            ..Attempt::default()
        };
        // What is no attempt leaves a hole.
        columns.push(&LoggedAttempt { partition: 0, offset: if offset > 4 { offset + 3 } else { offset }, attempt });
    }
    columns.finish().unwrap()
}

#[tokio::test]
async fn answers_to_posts_of_some_events_are_cleared_and_seals_of_attempts_hold() {
    let folder = TempDir::new().unwrap();
    let mut table = Table::open(&ATTEMPTS, folder.path()).await.unwrap();
    let files = write_files(&ATTEMPTS, folder.path(), "a", &[attempts(FIRST)]).unwrap();
    table.append(&files, &BTreeMap::from([(0, (0, 22))])).await.unwrap();
    let (table, key) = (Arc::new(Mutex::new(table)), Arc::new(SealKey::new(&[3; 32])));
    let sealer = Sealer {
        table: table.clone(),
        key: key.clone(),
        clock: Clock::simulated(Millis((FIRST + 1) * DAY)),
        after: 0,
        every: Duration::from_secs(1),
        random: |bytes| bytes.iter_mut().enumerate().for_each(|(at, byte)| *byte = at as u8 ^ 0x5a),
    };
    assert_eq!(sealer.seal_due().await.unwrap(), 1);
    let report = async || {
        let table = table.lock().await;
        let paths: Vec<String> = table.files().iter().map(|file| file.path.clone()).collect();
        let options = Options { keys: vec![key.public()], seen: None };
        let committed = table.last_tombstone().await.unwrap();
        verify_table(Dataset::Attempts, folder.path(), &paths, committed, &options).unwrap()
    };
    let before = report().await;
    assert_eq!((before.rows, before.unsealed, before.faults), (19, 1, vec![]));
    assert!(!verify_table(Dataset::Events, folder.path(), &[], 0, &Options::default()).unwrap().holds());
    let salts = || SealFolder::of(folder.path()).salts(1).unwrap().len();
    // Of ten deliveries, and one for what has nothing to hide.
    assert_eq!(salts(), 10 + 1);

    let eraser = Eraser { table: table.clone(), cell: Arc::default(), key: key.clone() };
    let clear = async |whose: u8, events: &[(u32, u64)]| {
        let (accounts, events) = (HashSet::from([account(whose)]), events.iter().copied().collect());
        eraser.clear_answers(accounts, events, Millis(FIRST * DAY), "test".into()).await.unwrap()
    };
    let events = [(0, 3), (0, 6), (1, 4)];
    assert_eq!(clear(9, &events).await, 0);
    // An error of each, and the answer of the one; the error of the other is of the day that is open.
    assert_eq!(clear(1, &events).await, 3);
    assert_eq!(clear(1, &events).await, 0);
    let after = report().await;
    assert_eq!((after.rows, after.erased, after.unsealed, after.faults), (19, 2, 1, vec![]));
    assert_eq!(salts(), 10 + 1 - 2);
    assert_eq!(sealer.seal_due().await.unwrap(), 0);
    sealer.clock.reached(Millis((FIRST + 2) * DAY));
    assert_eq!(sealer.seal_due().await.unwrap(), 1);
    let after = report().await;
    assert_eq!((after.seals, after.rows, after.unsealed, after.faults), (2, 20, 0, vec![]));

    let mut left = BTreeSet::new();
    let mut rows = 0;
    for file in eraser.cell.load().files.iter() {
        for batch in read_file(&ATTEMPTS, folder.path(), file).unwrap() {
            for logged in read_attempts(&batch.unwrap()).unwrap() {
                rows += 1;
                if logged.attempt.error.is_some() || !logged.attempt.response.is_empty() {
                    left.insert(logged.attempt.event_seq);
                }
            }
        }
    }
    assert_eq!((rows, left), (20, (0..10).filter(|seq| ![3, 6].contains(seq)).collect()));
}

#[derive(Clone, Debug)]
enum Op {
    Add(u64),
    NextDay,
    Seal,
    Merge,
    /// Some recipients at once, each up to a share of what is there.
    Erase(Vec<(u8, u64, u64)>),
    /// What was received this many days ago or before.
    Retain(u8, i64),
}

fn op() -> impl Strategy<Value = Op> {
    let who = (1u8..3, 0u64..3, 0u64..101);
    prop_oneof![
        4 => (1u64..30).prop_map(Op::Add),
        2 => Just(Op::NextDay),
        2 => Just(Op::Seal),
        1 => Just(Op::Merge),
        3 => prop::collection::vec(who, 1..4).prop_map(Op::Erase),
        1 => (1u8..3, 0i64..3).prop_map(|(account, days)| Op::Retain(account, days)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever is filed, sealed, merged and erased: the right rows are bare, the others as they were, and seals hold.
    #[test]
    fn equals_a_plain_model(ops in prop::collection::vec(op(), 1..25)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut archive = Archive::new().await;
            let mut day = FIRST;
            for op in ops {
                match op {
                    Op::Add(count) => archive.add(day, count).await,
                    Op::NextDay => day += 1,
                    Op::Seal => archive.seal(day).await,
                    Op::Merge => archive.merge().await,
                    Op::Erase(who) => {
                        let through = |share: u64| (archive.next * share / 100).saturating_sub(1);
                        let mut targets: Vec<Target> =
                            who.iter().map(|(n, who, share)| recipient(*n, *who, through(*share))).collect();
                        // The least of one recipient's is asked for first.
                        targets.sort_by_key(|target| match &target.who {
                            Who::Recipient { through, .. } => *through,
                            Who::Received { .. } => 0,
                        });
                        archive.erase(targets).await;
                    }
                    Op::Retain(n, days) => {
                        let who = Who::Received { from: Day::MIN, to: (day - days) as Day };
                        archive.erase(vec![Target { account: account(n), who }]).await;
                    }
                }
            }
            archive.check().await;
        });
    }
}
