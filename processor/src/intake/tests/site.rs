//! A partition of one server, on a real log and a real store, and what may befall it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use proptest::prelude::*;
use sendtrail_eventlog::embedded::{EmbeddedLog, Options};
use sendtrail_eventlog::objects::Place;
use sendtrail_eventlog::{Batch, EventLog, LocalReplies, Pulse, Retention};
use sendtrail_schemas::account::Mode;
use sendtrail_schemas::codec;
use sendtrail_schemas::event::EventFact;
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::record::{
    AccountFields, Body, Change, Command, EraseRecipient, Record, Settings as LogicSettings,
};
use sendtrail_schemas::time::HOUR;
use sendtrail_schemas::topic::{Topic, TopicPartition};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::core::step::usual_settings;
use crate::intake::archiver::Progress;
use crate::intake::*;
use crate::{Partition, Store, Views};

pub const INTAKE: TopicPartition = TopicPartition { topic: Topic::Intake, partition: 0 };
const ACCOUNTS: u128 = 3;
const START: i64 = 20_000 * DAY;

#[derive(Clone, Debug)]
pub enum Op {
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

pub fn op() -> impl Strategy<Value = Op> {
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
pub struct Site {
    pub folder: TempDir,
    pub log: Arc<EmbeddedLog>,
    pub store: Store,
    pub retention: Arc<Retention>,
    pub archive: Arc<IntakeArchive>,
    pub now: i64,
}

impl Site {
    pub async fn open() -> Self {
        let folder = TempDir::new().unwrap();
        let options = Options { partitions: 1, segment_bytes: 2_000, simulated: true, ..Options::default() };
        let log = Arc::new(EmbeddedLog::open(&folder.path().join("log"), options).unwrap());
        let store = Store::open(&folder.path().join("state"), 1, 1 << 20).unwrap();
        let clock = Clock::simulated(Millis(START));
        let archive =
            IntakeArchive::open(&Place::from(folder.path()).join("intake"), 30, Duration::ZERO, clock).unwrap();
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

    pub async fn put(&self, account: u128, body: Body) {
        let account_id = AccountId(Uuid::from_u128(account + 1)).bytes().to_vec();
        let version = body.version();
        let simulated_time = Some(self.now);
        let record = Record { version, account_id, simulated_time, body: Some(body), ..Record::default() };
        self.put_bytes(&codec::encode(&record)).await;
    }

    pub async fn put_bytes(&self, bytes: &[u8]) {
        let mut batch = Batch::new();
        batch.push_bytes(bytes);
        self.log.append(INTAKE, batch).await.unwrap();
    }

    pub fn fact(message: &str, kind: EventType) -> Body {
        let recipient = format!("r{}@b.co", message.len() % 3);
        Body::Fact(EventFact { kind: kind as i32, message_id: message.into(), recipient, ..EventFact::default() })
    }

    pub async fn do_one(&mut self, op: Op) {
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

    pub fn archiver(&self) -> Archiver {
        let (archive, log, store) = (self.archive.clone(), self.log.clone(), self.store.clone());
        Archiver { archive, partition: 0, log, store, retention: self.retention.clone() }
    }

    pub fn state(&self) -> u64 {
        self.store.progress(0).unwrap().map_or(0, |progress| progress.next_offset)
    }

    pub fn end(&self) -> u64 {
        *self.log.end(INTAKE).borrow()
    }

    /// Applies everything, from the checkpoint again after each panic.
    pub async fn apply(&self) {
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

    pub async fn rebuild(&self, log: bool) -> (Result<RebuiltState, Error>, Store, TempDir) {
        let folder = TempDir::new().unwrap();
        let scratch = Store::open(folder.path(), 1, 1 << 20).unwrap();
        let log = log.then(|| self.log.clone() as Arc<dyn EventLog>);
        (rebuild_state(&self.archive, log, &self.store, &scratch, 0).await, scratch, folder)
    }

    pub fn files(&self, prefix: &str) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.folder.path().join("intake/partition-00000")).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        let named = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(prefix);
        let mut files: Vec<PathBuf> = paths.filter(named).collect();
        files.sort();
        files
    }

    /// So many facts, days apart, each applied and archived, with bases as they are due.
    pub async fn days(&mut self, days: u8, step: i64) {
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
    pub fn age(&self) {
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_millis((Millis::wall().0 - 40 * DAY) as u64);
        for file in self.files("") {
            std::fs::File::options().write(true).open(file).unwrap().set_modified(long_ago).unwrap();
        }
    }
}
