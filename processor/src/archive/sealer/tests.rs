//! Sealed archives, and what is found when somebody changes them.

use std::collections::BTreeSet;
use std::fs;

use proptest::prelude::*;
use sendtrail_audit::{Fault, Options, Report, verify_table};
use sendtrail_schemas::block::{Block, Bounce};
use sendtrail_schemas::columns::{EventColumns, read_events};
use sendtrail_schemas::event::Event;
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::time::DAY;
use tempfile::TempDir;

use super::*;
use crate::archive::{EVENTS, Upkeep, UpkeepOptions, write_files};

const FIRST: i64 = 20_000;

#[test]
fn portions_are_bounded_and_whole() {
    let range = |partition, first, last| Range { partition, first, last };
    let given = vec![range(0, 5, 5), range(1, 10, 10 + 2 * MAX_ROWS), range(3, 0, 0)];
    let portions = portions(given);
    let sizes: Vec<u64> = portions.iter().map(|portion| portion.iter().map(Range::rows).sum()).collect();
    assert_eq!(sizes, [MAX_ROWS, MAX_ROWS, 3]);
    assert_eq!(portions[1], [range(1, 9 + MAX_ROWS, 8 + 2 * MAX_ROWS)]);
    assert_eq!(portions[2], [range(1, 9 + 2 * MAX_ROWS, 10 + 2 * MAX_ROWS), range(3, 0, 0)]);
}

fn event(partition: u32, seq: u64, day: i64) -> Event {
    let bounce = Bounce { diagnostic_code: Some(format!("550 {seq}")), ..Bounce::default() };
    Event {
        version: 1,
        account_id: vec![partition as u8; 16],
        partition,
        seq,
        received_at: day * DAY + seq as i64 % 1_000,
        occurred_at: day * DAY - seq as i64 % 7 * 1_000,
        kind: EventType::Bounce as i32,
        event_id: format!("{partition}-{seq}"),
        recipient: if seq.is_multiple_of(5) { String::new() } else { format!("R{}@example.com", seq % 3) },
        block: seq.is_multiple_of(2).then_some(Block::Bounce(bounce)),
        ..Event::default()
    }
}

/// A table, how far its partitions are, and its sealer.
struct Archive {
    folder: TempDir,
    sealer: Sealer,
    next: [u64; 2],
    files: u32,
}

impl Archive {
    async fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let table = Arc::new(Mutex::new(Table::open(&EVENTS, folder.path()).await.unwrap()));
        let sealer = Sealer {
            table,
            key: Arc::new(SealKey::new(&[3; 32])),
            clock: Clock::simulated(Millis(FIRST * DAY)),
            after: 0,
            every: Duration::from_secs(1),
            random: |bytes| bytes.iter_mut().enumerate().for_each(|(at, byte)| *byte = at as u8 ^ 0x5a),
        };
        Self { folder, sealer, next: [0, 0], files: 0 }
    }

    /// Files so many more rows of a day.
    async fn add(&mut self, day: i64, counts: [u64; 2]) {
        let mut events = Vec::new();
        let mut numbers = BTreeMap::new();
        for (partition, count) in counts.into_iter().enumerate().filter(|(_, count)| *count > 0) {
            let first = self.next[partition];
            events.extend((first..first + count).map(|seq| event(partition as u32, seq, day)));
            self.next[partition] += count;
            numbers.insert(partition as u32, (first, first + count - 1));
        }
        if events.is_empty() {
            return;
        }
        self.files += 1;
        let files = write_files(&EVENTS, self.folder.path(), &format!("f{}", self.files), &[batch(&events)]).unwrap();
        self.sealer.table.lock().await.append(&files, &numbers).await.unwrap();
    }

    async fn seal(&self, today: i64) -> usize {
        self.sealer.clock.reached(Millis(today * DAY));
        self.sealer.seal_due().await.unwrap()
    }

    async fn merge(&self) -> usize {
        let (table, clock) = (self.sealer.table.clone(), self.sealer.clock.clone());
        let options = UpkeepOptions { every: Duration::from_secs(1), vacuum_after: Duration::from_secs(60) };
        Upkeep { table, cell: Arc::default(), clock, options }.compact().await.unwrap()
    }

    async fn paths(&self) -> Vec<String> {
        self.sealer.table.lock().await.files().iter().map(|file| file.path.clone()).collect()
    }

    async fn verify(&self) -> Report {
        let options = Options { keys: vec![self.sealer.key.public()], seen: None };
        verify_table(Dataset::Events, self.folder.path(), &self.paths().await, 0, &options).unwrap()
    }

    /// Has a file hold other rows.
    fn rewrite(&self, path: &str, change: impl FnOnce(&mut Vec<Event>)) {
        let file = self.folder.path().join(path);
        let open =
            parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(fs::File::open(&file).unwrap());
        let mut events: Vec<Event> =
            open.unwrap().build().unwrap().flat_map(|batch| read_events(&batch.unwrap()).unwrap()).collect();
        change(&mut events);
        let aside = TempDir::new().unwrap();
        let written = write_files(&EVENTS, aside.path(), "aside", &[batch(&events)]).unwrap();
        fs::copy(aside.path().join(&written[0].path), file).unwrap();
    }
}

fn batch(events: &[Event]) -> arrow::array::RecordBatch {
    let mut columns = EventColumns::default();
    events.iter().for_each(|event| columns.push(event));
    columns.finish().unwrap()
}

#[tokio::test]
async fn days_that_are_over_are_sealed_once_and_hold_also_after_merges() {
    let mut archive = Archive::new().await;
    archive.add(FIRST, [10, 5]).await;
    archive.add(FIRST, [7, 0]).await;
    archive.add(FIRST + 1, [3, 4]).await;
    assert_eq!(archive.seal(FIRST).await, 0, "no day is over");
    assert_eq!(archive.seal(FIRST + 1).await, 1);
    assert_eq!(archive.seal(FIRST + 1).await, 0, "it is sealed");
    let report = archive.verify().await;
    assert_eq!((report.holds(), report.seals, report.rows, report.unsealed), (true, 1, 22, 7), "{report:?}");
    // A row that came late to its day has a seal of its own.
    archive.sealer.clock.reached(Millis((FIRST + 1) * DAY));
    let late = Millis(FIRST * DAY);
    assert!(archive.sealer.clock.now() > late);
    archive.add(FIRST, [0, 2]).await;
    assert_eq!(archive.seal(FIRST + 1).await, 1);
    assert_eq!(archive.seal(FIRST + 2).await, 1);
    assert!(archive.merge().await > 0);
    let report = archive.verify().await;
    assert_eq!((report.holds(), report.seals, report.rows, report.unsealed), (true, 3, 31, 0), "{report:?}");
    let (number, _) = report.last.unwrap();
    assert_eq!((number, report.keys), (3, vec![archive.sealer.key.public()]));
}

#[tokio::test]
async fn a_chain_that_was_changed_is_found_and_not_gone_on_from() {
    let mut archive = Archive::new().await;
    for day in FIRST..FIRST + 3 {
        archive.add(day, [4, 4]).await;
    }
    assert_eq!(archive.seal(FIRST + 3).await, 3);
    let paths = archive.paths().await;
    let verify = |options: &Options| verify_table(Dataset::Events, archive.folder.path(), &paths, 0, options).unwrap();
    let seal = |number: u64| archive.folder.path().join(format!("_seals/{number:06}.seal.json"));
    let keys = || vec![archive.sealer.key.public()];
    let whole = verify(&Options { keys: keys(), seen: None });
    assert!(whole.holds() && whole.seals == 3, "{whole:?}");
    // The end was cut off: only who has seen it misses it.
    let last = fs::read(seal(3)).unwrap();
    fs::remove_file(seal(3)).unwrap();
    assert!(verify(&Options { keys: keys(), seen: None }).holds());
    assert_eq!(verify(&Options { keys: keys(), seen: whole.last.clone() }).faults, [Fault::SealsMissing(3, 3)]);
    fs::write(seal(3), &last).unwrap();
    let second = fs::read(seal(2)).unwrap();
    fs::remove_file(seal(2)).unwrap();
    // The rows that it was about come after none that are sealed, then.
    let faults = verify(&Options { keys: keys(), seen: None }).faults;
    assert_eq!(faults[0], Fault::SealsMissing(2, 2));
    let rows = |fault: &Fault| matches!(fault, Fault::Unsealed(range, 4) if range.first == 4);
    assert!(faults.len() == 3 && faults[1..].iter().all(rows), "{faults:?}");
    assert!(archive.sealer.seal_due().await.unwrap_err().to_string().contains("does not follow"));
    // One in another's place.
    fs::write(seal(2), &last).unwrap();
    assert!(matches!(verify(&Options { keys: keys(), seen: None }).faults[0], Fault::Chain(2, _)));
    // Signed by somebody else, all of them.
    fs::write(seal(2), &second).unwrap();
    let other = vec![SealKey::new(&[4; 32]).public()];
    assert_eq!(verify(&Options { keys: other, seen: None }).fault_count, 3);
    let seen = Some((2, "0".repeat(64)));
    assert!(matches!(verify(&Options { keys: keys(), seen }).faults[..], [Fault::Chain(2, _)]));
}

#[tokio::test]
async fn damaged_files_are_named() {
    let mut archive = Archive::new().await;
    archive.add(FIRST, [4, 4]).await;
    archive.seal(FIRST + 1).await;
    let path = archive.paths().await.remove(0);
    let file = archive.folder.path().join(&path);
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let faults = archive.verify().await.faults;
    assert!(matches!(&faults[0], Fault::File(why) if why.contains(&path)), "{faults:?}");
    assert_eq!(faults.len(), 3, "and the rows of both partitions: {faults:?}");
    fs::remove_file(&file).unwrap();
    assert!(matches!(&archive.verify().await.faults[0], Fault::File(why) if why.contains(&path)));
    fs::write(&file, &whole).unwrap();
    // Without the side file it is known that rows are others, but not which.
    fs::remove_file(archive.folder.path().join("_seals/000001.leaves")).unwrap();
    assert!(archive.verify().await.holds());
    archive.rewrite(&path, |events| events[0].message_id = "other".into());
    assert!(matches!(archive.verify().await.faults[..], [Fault::Root(1, _)]));
}

#[tokio::test]
async fn rows_that_are_planted_on_another_day_are_found() {
    let mut archive = Archive::new().await;
    archive.add(FIRST, [4, 4]).await;
    archive.add(FIRST + 1, [2, 0]).await;
    archive.add(FIRST + 2, [3, 0]).await;
    assert_eq!(archive.seal(FIRST + 2).await, 2);
    let whole = archive.verify().await;
    assert_eq!((whole.holds(), whole.unsealed), (true, 3), "{whole:?}");
    let paths = archive.paths().await;
    let kept: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(archive.folder.path().join(path)).unwrap()).collect();
    // A row of the first day once more, among those of today, and among those of a day that is sealed.
    for at in [1, 2] {
        archive.rewrite(&paths[at], |events| {
            let day = events[0].received_at;
            events.push(Event { received_at: day, occurred_at: day, ..event(1, 2, FIRST) });
        });
        let faults = archive.verify().await.faults;
        assert_eq!(faults, [Fault::Misplaced(1, 2)], "{at}");
        fs::write(archive.folder.path().join(&paths[at]), &kept[at]).unwrap();
    }
    // One of today's twice, one of a partition's that has none yet, and one that leaves a hole.
    for (partition, seq) in [(0, 7), (1, 9), (0, 12)] {
        archive.rewrite(&paths[2], |events| {
            let day = events[0].received_at;
            events.push(Event { received_at: day, occurred_at: day, ..event(partition, seq, FIRST) });
        });
        let faults = archive.verify().await.faults;
        match (partition, seq) {
            (0, 7) => assert_eq!(faults, [Fault::Twice(0, 7)]),
            _ => {
                let named = matches!(faults[..], [Fault::Unsealed(range, _)] if range.partition == partition);
                assert!(named, "{faults:?}");
            }
        }
        fs::write(archive.folder.path().join(&paths[2]), &kept[2]).unwrap();
    }
    // What is named like a seal and is none of ours.
    let seals = archive.folder.path().join("_seals");
    for name in ["1.seal.json", "9999999999999999.seal.json"] {
        fs::copy(seals.join("000001.seal.json"), seals.join(name)).unwrap();
        assert!(matches!(&archive.verify().await.faults[..], [Fault::Seal(why)] if why.contains(name)), "{name}");
        fs::remove_file(seals.join(name)).unwrap();
    }
    assert!(archive.verify().await.holds());
}

/// What somebody does to a row.
#[derive(Clone, Copy, Debug)]
enum Change {
    Plain,
    Personal,
    Recipient,
    Away,
    Twice,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever is filed, sealed and merged when: it holds, every row of a day that is over is of a seal, and each row that
    /// somebody changes is named, and no other.
    #[test]
    fn what_is_changed_is_named(
        days in prop::collection::vec((0u64..20, 0u64..20, prop::bool::ANY, prop::bool::ANY, 0i64..2), 1..8),
        changes in prop::collection::vec((any::<prop::sample::Index>(),
            prop_oneof![Just(Change::Plain), Just(Change::Personal), Just(Change::Recipient), Just(Change::Away), Just(Change::Twice)]), 0..4),
    ) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let mut archive = Archive::new().await;
            let mut day = FIRST;
            for (one, other, seals, merges, step) in days {
                archive.add(day, [one, other]).await;
                day += step;
                if seals {
                    archive.seal(day).await;
                }
                if merges {
                    archive.merge().await;
                }
            }
            archive.seal(day + 1).await;
            let rows: u64 = archive.next.iter().sum();
            let report = archive.verify().await;
            prop_assert!(report.holds(), "{:?}", report.faults);
            prop_assert_eq!((report.rows, report.unsealed), (rows, 0));
            if rows == 0 {
                return Ok(());
            }
            let mut wanted: BTreeMap<(u32, u64), Change> = BTreeMap::new();
            for (index, change) in changes {
                let at = index.index(rows as usize) as u64;
                let row = if at < archive.next[0] { (0, at) } else { (1, at - archive.next[0]) };
                wanted.insert(row, change);
            }
            for path in archive.paths().await {
                archive.rewrite(&path, |events| {
                    let mut changed = Vec::new();
                    for mut event in events.drain(..) {
                        match wanted.get(&(event.partition, event.seq)) {
                            Some(Change::Plain) => event.message_id = "x".into(),
                            Some(Change::Personal) => event.subject = Some("x".into()),
                            Some(Change::Recipient) => event.recipient = "nobody@example.com".into(),
                            Some(Change::Away) => event.seq += 1_000_000,
                            Some(Change::Twice) => changed.push(event.clone()),
                            None => {}
                        }
                        changed.push(event);
                    }
                    *events = changed;
                });
            }
            let report = archive.verify().await;
            let mut named = BTreeSet::new();
            for fault in &report.faults {
                match *fault {
                    Fault::Changed(partition, seq) | Fault::Twice(partition, seq) | Fault::NoSalt(partition, seq) => {
                        prop_assert!(named.insert((partition, seq)), "twice: {:?}", report.faults);
                    }
                    Fault::Missing(range) => named.extend((range.first..=range.last).map(|seq| (range.partition, seq))),
                    // Rows that were taken away have become others, which nobody sealed.
                    Fault::Unsealed(range, _) => prop_assert!(range.last >= 1_000_000),
                    ref other => prop_assert!(false, "{other:?}"),
                }
            }
            prop_assert_eq!(named, wanted.into_keys().collect::<BTreeSet<_>>());
            Ok(())
        })?;
    }
}
