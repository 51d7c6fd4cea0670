//! Retention on a real archive, with rows that come when their day is cleared already.

use std::path::Path;

use fjall::Database;
use sendtrail_audit::SealKey;
use sendtrail_eventlog::embedded::{EmbeddedLog, Options};
use sendtrail_schemas::account::AccountConfig;
use sendtrail_schemas::columns::{EventColumns, read_events};
use sendtrail_schemas::event::Event;
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::time::DAY;
use tempfile::TempDir;
use tokio::sync::Mutex;
use uuid::Uuid;

use super::*;
use crate::Projections;
use crate::archive::{ATTEMPTS, EVENTS, Layout, Table, Upkeep, UpkeepOptions, read_file, write_files};

const FIRST: Day = 20_000;

fn event(seq: u64, account: u8, day: Day) -> Event {
    let at = i64::from(day) * DAY + seq as i64;
    Event {
        version: 1,
        account_id: vec![account; 16],
        seq,
        received_at: at,
        occurred_at: at,
        kind: EventType::Delivery as i32,
        event_id: format!("e{seq}"),
        message_id: format!("m{seq}"),
        recipient: format!("person{seq}@example.com"),
        ..Event::default()
    }
}

async fn eraser(layout: &'static Layout, folder: &Path) -> Eraser {
    let table = Table::open(layout, &folder.join(layout.name())).await.unwrap();
    Eraser { table: Arc::new(Mutex::new(table)), cell: Arc::default(), key: Arc::new(SealKey::new(&[3; 32])) }
}

struct Site {
    erasures: Erasures,
    next: u64,
    folder: TempDir,
}

impl Site {
    async fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let projections = Projections::open(&Database::builder(folder.path().join("state")).open().unwrap()).unwrap();
        let options = Options { partitions: 1, ..Options::default() };
        let erasures = Erasures {
            jobs: projections.erasures(),
            eraser: eraser(&EVENTS, folder.path()).await,
            answers: eraser(&ATTEMPTS, folder.path()).await,
            letters: projections.reader(),
            clickhouse: None,
            log: Arc::new(EmbeddedLog::open(&folder.path().join("log"), options).unwrap()),
            directory: Arc::default(),
            clock: Clock::simulated(Millis::of_day(FIRST + 30)),
            partitions: 1,
        };
        Self { erasures, next: 0, folder }
    }

    /// An account that keeps fifteen days.
    fn account(&self, account: u8, legal_hold: bool) {
        self.erasures.directory.publish(&AccountConfig {
            account_id: vec![account; 16],
            legal_hold,
            retention_days: 15,
            ..AccountConfig::default()
        });
    }

    /// A file with a row of each account, received on a day.
    async fn file(&mut self, day: Day, accounts: &[u8]) {
        let first = self.next;
        let mut columns = EventColumns::default();
        for account in accounts {
            columns.push(&event(self.next, *account, day));
            self.next += 1;
        }
        let Eraser { table, cell, .. } = &self.erasures.eraser;
        let mut table = table.lock().await;
        let name = format!("f{first}");
        let files = write_files(&EVENTS, table.root(), &name, &[columns.finish().unwrap()]).unwrap();
        table.append(&files, &BTreeMap::from([(0, (first, self.next - 1))])).await.unwrap();
        let (version, files) = (table.version(), Arc::new(table.files()));
        cell.update(|view| ArchiveView { version, files, ..view.clone() });
    }

    async fn merge(&self) {
        let Eraser { table, cell, .. } = &self.erasures.eraser;
        let (table, cell, clock) = (table.clone(), cell.clone(), self.erasures.clock.clone());
        let options = UpkeepOptions { every: Duration::from_secs(1), vacuum_after: Duration::from_secs(60) };
        assert!(Upkeep { table, cell, clock, options }.compact().await.unwrap() > 0);
    }

    /// Clears what is too old; the numbers of rows that still name somebody.
    async fn retain(&self) -> Vec<u64> {
        self.erasures.retain(&CancellationToken::new()).await.unwrap();
        let mut named = Vec::new();
        for file in self.erasures.eraser.table.lock().await.files() {
            for batch in read_file(&EVENTS, &self.folder.path().join(EVENTS.name()), &file).unwrap() {
                let events = read_events(&batch.unwrap()).unwrap();
                named.extend(events.iter().filter(|event| !event.recipient.is_empty()).map(|event| event.seq));
            }
        }
        named.sort_unstable();
        named
    }
}

/// A partition that stood still is behind by more than accounts keep: what it files then is of days that were cleared.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_come_after_their_day_was_cleared_are_cleared_by_the_next_look() {
    let mut site = Site::new().await;
    [1, 2].into_iter().for_each(|account| site.account(account, false));
    for day in [FIRST, FIRST + 2, FIRST + 30] {
        site.file(day, &[1, 2]).await;
    }
    assert_eq!(site.retain().await, [4, 5]);
    site.file(FIRST, &[1, 2]).await;
    // Of a day that had no rows at all.
    site.file(FIRST + 1, &[1, 2]).await;
    // Who was cleared, and who came later, are in one file by then.
    site.merge().await;
    assert_eq!(site.retain().await, [4, 5]);
    assert_eq!(site.erasures.jobs.cleared_rows(FIRST).unwrap(), Some(4));
    let marks = site.erasures.jobs.all_kept_from(KeptIn::Archive).unwrap();
    assert_eq!(marks.into_values().collect::<Vec<_>>(), [FIRST + 3; 2], "none is taken back");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_come_late_during_a_hold_are_cleared_after_it() {
    let mut site = Site::new().await;
    [1, 2].into_iter().for_each(|account| site.account(account, false));
    site.file(FIRST, &[1, 2]).await;
    site.file(FIRST + 1, &[1, 2]).await;
    assert!(site.retain().await.is_empty());
    site.account(2, true);
    site.file(FIRST, &[1, 2]).await;
    assert_eq!(site.retain().await, [5], "the other's");
    assert_eq!(site.retain().await, [5]);
    site.account(2, false);
    assert!(site.retain().await.is_empty());
}

#[test]
fn marks_go_back_for_whoever_was_not_looked_at_and_for_nobody_else() {
    let [one, two, three, four] = [1, 2, 3, 4].map(|n| AccountId(Uuid::from_u128(n)));
    let marks = BTreeMap::from([(one, 5), (two, 9), (three, 9), (four, 2)]);
    let moved = |grown| moved_by(&marks, &[one, two], 5, grown).into_iter().collect::<BTreeMap<_, _>>();
    assert_eq!(moved(false), BTreeMap::from([(one, 6), (two, 9)]));
    assert_eq!(moved(true), BTreeMap::from([(one, 6), (two, 9), (three, 5)]));
    assert_eq!(moved_by(&BTreeMap::new(), &[one], 5, true), [(one, 6)]);
}
