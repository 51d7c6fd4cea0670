//! Random histories through a real log and a real store, folded once more.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use proptest::prelude::*;
use sendtrail_eventlog::embedded::{EmbeddedLog, Options};
use sendtrail_eventlog::{Batch, EventLog, LocalReplies, Pulse, Reader, Retention};
use sendtrail_schemas::account::Mode;
use sendtrail_schemas::codec;
use sendtrail_schemas::event::EventFact;
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::record::{
    AccountFields, Body, Change, Command, EraseRecipient, Record, Settings as LogicSettings, Tick,
};
use sendtrail_schemas::time::HOUR;
use sendtrail_schemas::topic::{Topic, TopicPartition};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::archiver::Progress;
use super::*;
use crate::core::overlay::Overlay;
use crate::core::rows::{FactSeen, Row, RowKey, RowKind};
use crate::core::step::usual_settings;
use crate::store::Writes;
use crate::{Partition, Store, Views};

const INTAKE: TopicPartition = TopicPartition { topic: Topic::Intake, partition: 0 };
const ACCOUNTS: u128 = 3;
const START: i64 = 20_000 * DAY;

#[derive(Clone, Debug)]
enum Op {
    Fact {
        account: u128,
        kind: EventType,
        message: u8,
        wait: i64,
    },
    Erase {
        account: u128,
        address: u8,
    },
    /// Bytes that are no record.
    Poison,
    /// A record that makes the logic panic.
    Panic,
    /// The partition applies what there is, and begins anew the next time.
    Apply,
    Archive,
    Base,
}

fn op() -> impl Strategy<Value = Op> {
    let kind = prop_oneof![
        3 => Just(EventType::Send), 2 => Just(EventType::Bounce), 1 => Just(EventType::Complaint), 1 => Just(EventType::Open),
    ];
    let wait = prop_oneof![4 => 0..HOUR, 1 => 0..3 * DAY, 1 => 14 * DAY..20 * DAY];
    let fact = (0..ACCOUNTS, kind, 0u8..20, wait).prop_map(|(account, kind, message, wait)| Op::Fact {
        account,
        kind,
        message,
        wait,
    });
    prop_oneof![
        30 => fact,
        1 => (0..ACCOUNTS, 0u8..3).prop_map(|(account, address)| Op::Erase { account, address }),
        1 => Just(Op::Poison),
        1 => Just(Op::Panic),
        4 => Just(Op::Apply),
        4 => Just(Op::Archive),
        2 => Just(Op::Base),
    ]
}

/// A partition of one server.
struct Site {
    folder: TempDir,
    log: Arc<EmbeddedLog>,
    store: Store,
    retention: Arc<Retention>,
    archive: Arc<IntakeArchive>,
    now: i64,
}

impl Site {
    async fn open() -> Self {
        let folder = TempDir::new().unwrap();
        let options = Options { partitions: 1, segment_bytes: 2_000, simulated: true, ..Options::default() };
        let log = Arc::new(EmbeddedLog::open(&folder.path().join("log"), options).unwrap());
        let store = Store::open(&folder.path().join("state"), 1, 1 << 20).unwrap();
        let clock = Clock::simulated(Millis(START));
        let archive = IntakeArchive::in_folder(&folder.path().join("intake"), 30, Duration::ZERO, clock).unwrap();
        let archive = Arc::new(IntakeArchive { segment_bytes: 1_000, ..archive });
        let retention = Arc::new(Retention::new(log.clone(), true));
        let site = Self { folder, log, store, retention, archive, now: START };
        // The first record says that time is simulated.
        site.apply().await;
        for account in 0..ACCOUNTS {
            let fields = AccountFields {
                name: Some("Acme".into()),
                contact_email: Some("ops@acme.com".into()),
                mode: Some(Mode::Production as i32),
                ..AccountFields::default()
            };
            site.put(account, Body::Command(Command { change: Some(Change::CreateAccount(fields)) })).await;
        }
        site
    }

    async fn put(&self, account: u128, body: Body) {
        let account_id = AccountId(Uuid::from_u128(account + 1)).bytes().to_vec();
        let version = body.version();
        let simulated_time = Some(self.now);
        let record = Record { version, account_id, simulated_time, body: Some(body), ..Record::default() };
        self.put_bytes(&codec::encode(&record)).await;
    }

    async fn put_bytes(&self, bytes: &[u8]) {
        let mut batch = Batch::new();
        batch.push_bytes(bytes);
        self.log.append(INTAKE, batch).await.unwrap();
    }

    fn fact(message: &str, kind: EventType) -> Body {
        let recipient = format!("r{}@b.co", message.len() % 3);
        Body::Fact(EventFact { kind: kind as i32, message_id: message.into(), recipient, ..EventFact::default() })
    }

    async fn do_one(&mut self, op: Op) {
        match op {
            Op::Fact { account, kind, message, wait } => {
                self.now += wait;
                self.put(account, Self::fact(&format!("{:1$}", message, usize::from(message % 3) + 1), kind)).await;
            }
            Op::Erase { account, address } => {
                let erase = EraseRecipient {
                    recipient: format!("r{address}@b.co"),
                    erasure_id: Uuid::from_u128(u128::from(self.end())).as_bytes().to_vec(),
                };
                self.put(account, Body::Command(Command { change: Some(Change::EraseRecipient(erase)) })).await;
            }
            Op::Poison => self.put_bytes(b"\xff\xff").await,
            Op::Panic => self.put(0, Self::fact("panic", EventType::Send)).await,
            Op::Apply => self.apply().await,
            Op::Archive => self.archiver().once(&mut Progress::default(), true).await.unwrap(),
            // Never before anything is archived, but for what the log let go.
            Op::Base if self.archive.kept(0).await.unwrap().segments.is_empty() => {}
            Op::Base => drop(self.archiver().base().await.unwrap()),
        }
    }

    fn archiver(&self) -> Archiver {
        let (archive, log, store) = (self.archive.clone(), self.log.clone(), self.store.clone());
        Archiver { archive, partition: 0, log, store, retention: self.retention.clone() }
    }

    fn state(&self) -> u64 {
        self.store.progress(0).unwrap().map_or(0, |progress| progress.next_offset)
    }

    fn end(&self) -> u64 {
        *self.log.end(INTAKE).borrow()
    }

    /// Applies everything, from the checkpoint again after each panic.
    async fn apply(&self) {
        while self.state() < self.end() || self.state() == 0 {
            let stop = CancellationToken::new();
            stop.cancel();
            let partition = Partition {
                number: 0,
                log: self.log.clone(),
                store: self.store.clone(),
                views: Views::open(&self.store, Arc::default()).unwrap(),
                replies: Arc::new(LocalReplies::new(1)),
                announce: None,
                snapshots: None,
                pulse: Arc::new(Pulse::default()),
                retention: self.retention.clone(),
                clock: self.archive.clock.clone(),
                settings: LogicSettings { simulated: true, ..usual_settings() },
                checkpoint_every: Duration::from_millis(20),
                drains: true,
            };
            let running = partition.start(stop).unwrap();
            tokio::task::spawn_blocking(|| running.join()).await.unwrap();
        }
    }

    async fn rebuild(&self, log: bool) -> (Result<RebuiltState, Error>, Store, TempDir) {
        let folder = TempDir::new().unwrap();
        let scratch = Store::open(folder.path(), 1, 1 << 20).unwrap();
        let log = log.then(|| self.log.clone() as Arc<dyn EventLog>);
        (rebuild_state(&self.archive, log, &self.store, &scratch, 0).await, scratch, folder)
    }

    fn files(&self, prefix: &str) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.folder.path().join("intake/partition-00000")).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        let named = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(prefix);
        let mut files: Vec<PathBuf> = paths.filter(named).collect();
        files.sort();
        files
    }

    /// So many facts, days apart, each applied and archived, with bases as they are due.
    async fn days(&mut self, days: u8, step: i64) {
        let mut progress = Progress::default();
        for n in 0..days {
            self.now += step;
            let (kind, message) = (EventType::Send, format!("m{n}"));
            self.put(1, Self::fact(&message, kind)).await;
            self.apply().await;
            self.archiver().once(&mut progress, true).await.unwrap();
            self.archiver().base_if_due().await.unwrap();
            self.archive.prune(0).await.unwrap();
        }
    }

    /// As if everything had been written long ago.
    fn age(&self) {
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_millis((Millis::wall().0 - 40 * DAY) as u64);
        for file in self.files("") {
            std::fs::File::options().write(true).open(file).unwrap().set_modified(long_ago).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn what_is_folded_again_is_the_state(
        ops in prop::collection::vec(op(), 0..120),
        is_archived in any::<bool>(),
        has_log in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut site = Site::open().await;
            for op in ops {
                site.do_one(op).await;
            }
            site.apply().await;
            if is_archived || !has_log {
                site.do_one(Op::Archive).await;
            }
            let (rebuilt, scratch, _folder) = site.rebuild(has_log).await;
            let rebuilt = rebuilt.unwrap();
            prop_assert_eq!(&rebuilt.verdict, &Verdict::Equal);
            prop_assert_eq!(rebuilt.to, site.end());
            prop_assert!(rebuilt.damage.is_empty());
            // What is lost comes back from it.
            site.store.empty(0).unwrap();
            let views = Views::open(&site.store, Arc::default()).unwrap();
            replace_state(&site.store, &views, &scratch, 0).await.unwrap();
            prop_assert_eq!(site.rebuild(has_log).await.0.unwrap().verdict, Verdict::Equal);
            Ok(())
        })?;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_other_than_it_was_is_named() {
    let mut site = Site::open().await;
    site.days(3, HOUR).await;
    let key = RowKey { account: AccountId(Uuid::from_u128(2)), kind: RowKind::Fact, hash: 7 };
    let mut overlay = Overlay::new(0, site.store.progress(0).unwrap().unwrap());
    overlay.put_row(key, Some(Row::Fact(FactSeen { at: site.now, horizon_hours: 72 })));
    site.store.commit(0, Writes::take(&mut overlay)).unwrap();
    let found = site.rebuild(false).await.0.unwrap();
    let Verdict::Differs { rows, first } = found.verdict else { panic!("{found:?}") };
    assert_eq!(rows, 1);
    assert!(first.contains(&sendtrail_schemas::secret::hex(&key.bytes())), "{first}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_is_gone_is_folded_as_far_as_intake_is_archived() {
    let mut site = Site::open().await;
    site.days(3, HOUR).await;
    let end = site.end();
    site.put(1, Site::fact("later", EventType::Send)).await;
    site.store.empty(0).unwrap();
    let rebuilt = site.rebuild(false).await.0.unwrap();
    assert_eq!((rebuilt.verdict, rebuilt.to), (Verdict::Absent, end));
    assert_eq!(site.rebuild(true).await.0.unwrap().to, end + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_is_further_than_intake_is_said_to_be() {
    let mut site = Site::open().await;
    site.days(3, HOUR).await;
    site.put(1, Site::fact("later", EventType::Send)).await;
    site.apply().await;
    assert_eq!(site.rebuild(false).await.0.unwrap().verdict, Verdict::Behind { state: site.end() });
    assert_eq!(site.rebuild(true).await.0.unwrap().verdict, Verdict::Equal);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_or_missing_file_is_named_and_a_later_base_taken() {
    let mut site = Site::open().await;
    site.days(3, HOUR).await;
    site.do_one(Op::Base).await;
    site.days(3, HOUR).await;
    let first = site.files("intake-").remove(0);
    flip(&first);
    let rebuilt = site.rebuild(false).await.0.unwrap();
    assert_eq!(rebuilt.verdict, Verdict::Equal);
    assert!(rebuilt.from > 0);
    assert!(rebuilt.damage[0].contains("intake-00000000000000000000-"), "{:?}", rebuilt.damage);
    std::fs::remove_file(&first).unwrap();
    // What begins later needs no explanation: it may have been let go.
    assert_eq!(site.rebuild(false).await.0.unwrap().verdict, Verdict::Equal);
    let in_between = site.files("intake-").into_iter().nth_back(1).unwrap();
    std::fs::remove_file(&in_between).unwrap();
    let error = site.rebuild(false).await.0.unwrap_err().to_string();
    assert!(error.contains("are missing"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_base_is_passed_over() {
    let mut site = Site::open().await;
    site.days(3, HOUR).await;
    site.do_one(Op::Base).await;
    site.days(3, HOUR).await;
    site.do_one(Op::Base).await;
    std::fs::remove_file(site.files("intake-").remove(0)).unwrap();
    let rows = site.files("rows-").remove(0);
    let mut bytes = std::fs::read(&rows).unwrap();
    bytes[20] ^= 1;
    std::fs::write(&rows, &bytes).unwrap();
    let rebuilt = site.rebuild(false).await.0.unwrap();
    assert_eq!((rebuilt.verdict, rebuilt.damage.len()), (Verdict::Equal, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_keeps_what_is_not_archived() {
    let mut site = Site::open().await;
    let filler = "x".repeat(3_000);
    for n in 0..5 {
        site.put(1, Site::fact(&format!("{filler}{n}"), EventType::Send)).await;
    }
    site.apply().await;
    // What was applied may go, as far as the processor is concerned.
    site.retention.passed(Reader::Processor, INTAKE, site.end());
    assert!(site.log.read(INTAKE, 0, 1).is_ok());
    site.do_one(Op::Archive).await;
    assert!(site.log.read(INTAKE, 0, 1).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_log_let_go_is_passed_over_by_a_base() {
    let mut site = Site::open().await;
    let filler = "x".repeat(3_000);
    for n in 0..5 {
        site.put(1, Site::fact(&format!("{filler}{n}"), EventType::Send)).await;
    }
    site.apply().await;
    // As in a server that kept no intake so far.
    site.log.trim(INTAKE, site.end());
    site.days(2, HOUR).await;
    let rebuilt = site.rebuild(false).await.0.unwrap();
    assert_eq!(rebuilt.verdict, Verdict::Equal);
    assert!(rebuilt.from > 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_another_log_is_left_alone() {
    let mut site = Site::open().await;
    site.days(2, HOUR).await;
    let before = site.files("");
    let other = Site { archive: site.archive.clone(), ..Site::open().await };
    let error = other.archiver().once(&mut Progress::default(), true).await.unwrap_err().to_string();
    assert!(error.contains("another log"), "{error}");
    assert_eq!(site.files(""), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_kept_for_longer_than_it_may_be() {
    let mut site = Site::open().await;
    site.days(40, 2 * DAY).await;
    // The beginning was written just now, so everything is there.
    assert_eq!(site.rebuild(false).await.0.unwrap().from, 0);
    site.age();
    site.days(40, 2 * DAY).await;
    // Rows that nobody names stay an hour, for somebody may be about to.
    site.age();
    site.archive.prune(0).await.unwrap();
    let oldest = site.archive.kept(0).await.unwrap();
    let (_, name) = oldest.bases.last().unwrap();
    let base = site.archive.objects.manifest(0, name).await.unwrap();
    assert!(site.now - base.progress.last_t <= 30 * DAY);
    assert!(site.now - base.progress.last_t >= 20 * DAY, "there is far less than there may be");
    assert!(oldest.bases.len() <= 5, "{:?}", oldest.bases);
    assert!(oldest.segments.iter().all(|segment| segment.next > base.progress.next_offset));
    assert_eq!(site.files("rows-").len(), oldest.bases.len());
    let rebuilt = site.rebuild(false).await.0.unwrap();
    assert_eq!((rebuilt.verdict, rebuilt.from), (Verdict::Equal, base.progress.next_offset));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_stands_still_keeps_one_base() {
    let mut site = Site::open().await;
    site.days(2, DAY).await;
    site.age();
    site.now += 90 * DAY;
    site.archive.clock.reached(Millis(site.now));
    for _ in 0..3 {
        site.archiver().base_if_due().await.unwrap();
        site.archive.prune(0).await.unwrap();
    }
    let kept = site.archive.kept(0).await.unwrap();
    assert_eq!((kept.bases.len(), kept.segments.len()), (1, 0));
    assert_eq!(site.rebuild(false).await.0.unwrap().verdict, Verdict::Equal);
    // And goes on from there.
    site.put(1, Body::Tick(Tick {})).await;
    site.days(1, HOUR).await;
    assert_eq!(site.rebuild(false).await.0.unwrap().verdict, Verdict::Equal);
}

/// Has the last byte of a file be another.
fn flip(file: &PathBuf) {
    let mut bytes = std::fs::read(file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(file, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_base_that_cannot_be_read_are_left() {
    let mut site = Site::open().await;
    site.days(2, DAY).await;
    site.do_one(Op::Base).await;
    site.days(12, 2 * DAY).await;
    let (bases, rows) = (site.files("manifest-"), site.files("rows-"));
    assert!(bases.len() >= 3 && rows.len() == bases.len());
    flip(&bases[1]);
    site.age();
    site.archive.prune(0).await.unwrap();
    assert_eq!(site.files("rows-"), rows);
    // One without its rows is passed over like one that is damaged.
    std::fs::remove_file(site.files("intake-").remove(0)).unwrap();
    std::fs::remove_file(&rows[0]).unwrap();
    let rebuilt = site.rebuild(false).await.0.unwrap();
    assert_eq!((rebuilt.verdict, rebuilt.damage.len()), (Verdict::Equal, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_last_file_that_is_torn_is_written_once_more() {
    let mut site = Site::open().await;
    site.days(3, HOUR).await;
    let last = site.files("intake-").pop().unwrap();
    let whole = std::fs::read(&last).unwrap();
    std::fs::write(&last, &whole[..whole.len() / 2]).unwrap();
    site.do_one(Op::Archive).await;
    assert_eq!(std::fs::read(&last).unwrap(), whole);
    assert_eq!(site.rebuild(false).await.0.unwrap().verdict, Verdict::Equal);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_with_another_history_is_not_added_to_what_is_archived() {
    let mut site = Site::open().await;
    site.days(3, HOUR).await;
    let before = site.files("");
    let mut other = Site { archive: site.archive.clone(), ..Site::open().await };
    while other.end() < site.end() + 3 {
        other.do_one(Op::Fact { account: 2, kind: EventType::Open, message: 3, wait: 0 }).await;
    }
    let error = other.archiver().once(&mut Progress::default(), true).await.unwrap_err().to_string();
    assert!(error.contains("another log"), "{error}");
    assert_eq!(site.files(""), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_is_older_than_the_log_is_no_base() {
    let site = Site::open().await;
    let filler = "x".repeat(3_000);
    for n in 0..5 {
        site.put(1, Site::fact(&format!("{filler}{n}"), EventType::Send)).await;
    }
    site.log.trim(INTAKE, site.end());
    let error = site.archiver().once(&mut Progress::default(), false).await.unwrap_err().to_string();
    assert!(error.contains("the log begins at"), "{error}");
    assert!(!site.folder.path().join("intake/partition-00000").exists(), "nothing is written");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_kept_of_a_state_that_was_replaced_is_forgotten() {
    let mut site = Site::open().await;
    site.days(2, DAY).await;
    site.do_one(Op::Base).await;
    site.days(12, 2 * DAY).await;
    let bases = site.files("manifest-").len();
    let second = site.archive.kept(0).await.unwrap().bases[bases - 2].0;
    site.archive.forget_bases(0, second).await.unwrap();
    assert_eq!(site.files("manifest-").len(), 2);
    // And without any, one is due as soon as intake does not begin with the log.
    std::fs::remove_file(site.files("intake-").remove(0)).unwrap();
    site.archive.forget_bases(0, 0).await.unwrap();
    site.archiver().base_if_due().await.unwrap();
    assert_eq!(site.files("manifest-").len(), 1);
}
