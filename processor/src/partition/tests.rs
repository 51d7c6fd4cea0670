//! A partition on a real log and a real store.

mod state;
mod versions;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use futures::future::BoxFuture;
use sendtrail_eventlog::embedded::{EmbeddedLog, Options};
use sendtrail_eventlog::{Batch, LocalReplies};
use sendtrail_schemas::account::Mode;
use sendtrail_schemas::directory::Directory;
use sendtrail_schemas::event::{Event, EventFact};
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::mail::DeadLetter;
use sendtrail_schemas::record::{AccountFields, Change, Command, Outcome, SourcePosition, Unreadable};
use sendtrail_schemas::time::Millis;
use tempfile::TempDir;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::*;
use crate::core::step::usual_settings;
use crate::said::ViewOf;

const ACCOUNT: AccountId = AccountId(Uuid::from_u128(0xacc));
/// Longer than a slow machine needs, also when its disk stalls.
const WITHIN: Duration = Duration::from_secs(120);

/// Lets a test stand in for a fault of the logic.
pub(super) fn panic_if_asked(record: &Record) {
    if let Some(Body::Fact(fact)) = &record.body {
        assert!(fact.message_id != "panic", "asked to");
    }
}

/// Other servers. What is made known of accounts is durable when a test says so.
#[derive(Default)]
struct Others {
    hold: AtomicBool,
    held: Mutex<Vec<oneshot::Sender<Result<(), LogError>>>>,
}

impl Announce for Others {
    fn announce(&self, _: u32, seen: Seen) -> BoxFuture<'static, Result<(), LogError>> {
        if !self.hold.load(Ordering::Acquire) || !matches!(seen, Seen::Account(_)) {
            return Box::pin(async { Ok(()) });
        }
        let (say, told) = oneshot::channel();
        self.held.lock().push(say);
        Box::pin(async move { told.await.unwrap_or_else(|_| Err(LogError::Failed("closed".into()))) })
    }
}

impl Others {
    /// What is held next.
    async fn next(&self) -> oneshot::Sender<Result<(), LogError>> {
        let next = async {
            loop {
                if let Some(held) = self.held.lock().pop() {
                    return held;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(WITHIN, next).await.expect("announced in time")
    }
}

struct House {
    log: Arc<EmbeddedLog>,
    directory: Arc<Directory>,
    replies: Arc<LocalReplies>,
    pulse: Arc<Pulse>,
    stop: CancellationToken,
    running: PartitionHandle,
}

impl House {
    fn open(log: &Path, state: &Path) -> Self {
        Self::begin(log, state, usual_settings(), true, CancellationToken::new())
    }

    fn begin(log: &Path, state: &Path, settings: Settings, drains: bool, stop: CancellationToken) -> Self {
        Self::among(log, state, settings, drains, stop, None)
    }

    fn among(
        log: &Path,
        state: &Path,
        settings: Settings,
        drains: bool,
        stop: CancellationToken,
        others: Option<Arc<Others>>,
    ) -> Self {
        let options = Options { partitions: 1, ..Options::default() };
        let log = Arc::new(EmbeddedLog::open(log, options).unwrap());
        let store = Store::open(state, 1, 1 << 20).unwrap();
        let directory = Arc::new(Directory::default());
        let replies = Arc::new(LocalReplies::new(1));
        let pulse = Arc::new(Pulse::default());
        let running = Partition {
            number: 0,
            log: log.clone(),
            store: store.clone(),
            views: Views::open(&store, directory.clone()).unwrap(),
            replies: replies.clone(),
            announce: others.map(|others| others as Arc<dyn Announce>),
            snapshots: None,
            pulse: pulse.clone(),
            retention: Arc::new(Retention::new(log.clone(), false)),
            clock: Clock::wall(),
            settings,
            checkpoint_every: Duration::from_millis(20),
            drains,
        }
        .start(stop.clone())
        .unwrap();
        Self { log, directory, replies, pulse, stop, running }
    }

    async fn close(self) {
        self.stop.cancel();
        tokio::task::spawn_blocking(|| self.running.join()).await.unwrap();
    }

    async fn put(&self, body: Body) -> u64 {
        self.put_bytes(&codec::encode(&Record {
            version: 1,
            account_id: ACCOUNT.bytes().to_vec(),
            body: Some(body),
            ..Record::default()
        }))
        .await
    }

    async fn put_bytes(&self, bytes: &[u8]) -> u64 {
        let mut batch = Batch::new();
        batch.push_bytes(bytes);
        self.log.append(TopicPartition::new(Topic::Intake, 0), batch).await.unwrap()
    }

    async fn fact(&self, message: &str) -> u64 {
        let fact = EventFact {
            kind: EventType::Send as i32,
            message_id: message.into(),
            recipient: "a@b.co".into(),
            ..EventFact::default()
        };
        self.put(Body::Fact(fact)).await
    }

    async fn create_account(&self) {
        let fields = AccountFields { mode: Some(Mode::Production as i32), ..AccountFields::default() };
        self.put(Body::Command(Command { change: Some(Change::CreateAccount(fields)) })).await;
    }

    async fn applied(&self, offset: u64) {
        let mut applied = self.pulse.applied();
        let wait = applied.wait_for(|next| *next > offset);
        tokio::time::timeout(WITHIN, wait).await.expect("applied in time").unwrap();
    }

    async fn halted(&self) -> String {
        let halted = async {
            loop {
                if let Some(why) = self.pulse.halted() {
                    return why;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(WITHIN, halted).await.unwrap()
    }

    fn all<W: codec::Wire>(&self, topic: Topic) -> Vec<W> {
        let batches = self.log.read(TopicPartition::new(topic, 0), 0, usize::MAX).unwrap();
        batches.iter().flat_map(|batch| batch.records(0)).map(|record| codec::decode(&record.value).unwrap()).collect()
    }

    /// What was decided before a halt is on its way still.
    async fn tells(&self, messages: &[&str]) {
        let told = async {
            while self.messages() != messages {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let in_time = tokio::time::timeout(WITHIN, told).await;
        assert!(in_time.is_ok(), "{:?}", self.messages());
    }

    fn messages(&self) -> Vec<String> {
        let events: Vec<Event> = self.all(Topic::Events);
        assert!(events.iter().enumerate().all(|(at, event)| event.seq == at as u64));
        events.into_iter().map(|event| event.message_id).collect()
    }

    /// Those that became records, in order.
    fn settings(&self) -> Vec<Settings> {
        let records: Vec<Record> = self.all(Topic::Intake);
        let told = records.into_iter().filter_map(|record| match record.body {
            Some(Body::Settings(settings)) => Some(settings),
            _ => None,
        });
        told.collect()
    }

    /// Asks that an account is made known again.
    async fn ask_for_view(&self) -> oneshot::Receiver<()> {
        let (done, wait) = oneshot::channel();
        let views = vec![ViewOf::Account(ACCOUNT)];
        self.running.inquiries.send(Inquiry::Announce { views, done }).await.ok().unwrap();
        wait
    }

    async fn sent(&self) -> u64 {
        let (answer, wait) = oneshot::channel();
        let after = *self.log.end(TopicPartition::new(Topic::Intake, 0)).borrow();
        self.running.inquiries.send(Inquiry::Reputation { account: ACCOUNT, after, answer }).await.ok().unwrap();
        let reputation = wait.await.unwrap().unwrap();
        reputation.window.at(Millis::wall()).sent
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn goes_on_from_the_checkpoint_and_from_nothing_alike() {
    let (log, state, other) = (TempDir::new().unwrap(), TempDir::new().unwrap(), TempDir::new().unwrap());
    let house = House::open(log.path(), state.path());
    house.create_account().await;
    house.fact("m1").await;
    let last = house.fact("m2").await;
    house.applied(last).await;
    assert!(house.directory.account(ACCOUNT).is_some());
    house.close().await;

    // From the checkpoint: a duplicate is known, a new one goes on.
    let house = House::open(log.path(), state.path());
    assert!(house.directory.account(ACCOUNT).is_some(), "views are there before anything is stepped");
    house.fact("m2").await;
    let last = house.fact("m3").await;
    house.applied(last).await;
    assert_eq!(house.messages(), ["m1", "m2", "m3"]);
    assert_eq!(house.sent().await, 3);
    house.close().await;

    // From nothing, as after a crash before the first checkpoint: the log drops what it has.
    let house = House::open(log.path(), other.path());
    house.fact("m3").await;
    let last = house.fact("m4").await;
    house.applied(last).await;
    assert_eq!(house.messages(), ["m1", "m2", "m3", "m4"]);
    assert_eq!(house.sent().await, 4);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_applied_becomes_a_dead_letter_and_the_rest_goes_on() {
    let (log, state, other) = (TempDir::new().unwrap(), TempDir::new().unwrap(), TempDir::new().unwrap());
    let house = House::open(log.path(), state.path());
    house.create_account().await;
    house.fact("m1").await;
    let rubbish = house.put_bytes(b"\xff\xff rubbish").await;
    house.fact("m2").await;
    let panics = house.fact("panic").await;
    house.fact("m3").await;
    let empty = house.put_bytes(&codec::encode(&Record { version: 1, ..Record::default() })).await;
    let last = house.fact("m4").await;
    house.applied(last).await;
    assert_eq!(house.messages(), ["m1", "m2", "m3", "m4"]);
    let check = |house: &House| {
        let letters: Vec<DeadLetter> = house.all(Topic::DeadLetter);
        assert_eq!(letters.iter().map(|letter| letter.offset).collect::<Vec<_>>(), [rubbish, panics, empty]);
        assert_eq!(letters[0].payload, b"\xff\xff rubbish");
        assert!(letters[1].reason.contains("asked to"), "{}", letters[1].reason);
        assert!(letters.iter().enumerate().all(|(at, letter)| letter.seq == at as u64));
    };
    check(&house);
    house.close().await;

    // A replay from nothing skips the same records at the same places.
    let house = House::open(log.path(), other.path());
    let last = house.fact("m5").await;
    house.applied(last).await;
    assert_eq!(house.messages(), ["m1", "m2", "m3", "m4", "m5"]);
    check(&house);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_a_source_are_applied_once_also_around_one_that_cannot_be() {
    let (log, state, other) = (TempDir::new().unwrap(), TempDir::new().unwrap(), TempDir::new().unwrap());
    let house = House::open(log.path(), state.path());
    house.create_account().await;
    let at = |number| SourcePosition {
        source: "mail".into(),
        partition: 2,
        number,
        offset: 10 + number,
        index: 1,
        settled: 5,
    };
    let put = async |house: &House, number, body| {
        let account_id = ACCOUNT.bytes().to_vec();
        let (version, source) = (codec::SOURCED, Some(at(number)));
        let record = Record { version, account_id, source, body: Some(body), ..Record::default() };
        house.put_bytes(&codec::encode(&record)).await
    };
    // Opens without identity: nothing but their numbers tells them apart.
    let open = |message: &str| {
        let (kind, recipient) = (EventType::Open as i32, "a@b.co".into());
        Body::Fact(EventFact { kind, message_id: message.into(), recipient, ..EventFact::default() })
    };
    let unreadable = || Body::Unreadable(Unreadable { reason: "why".into(), payload: b"what".to_vec() });
    for (number, body) in [(1, open("m1")), (1, open("m1")), (2, open("panic")), (4, open("m4")), (3, unreadable())] {
        put(&house, number, body).await;
    }
    for (number, body) in [(3, unreadable()), (4, open("m4")), (5, open("m5"))] {
        put(&house, number, body).await;
    }
    let last = house.fact("last").await;
    house.applied(last).await;
    let check = |house: &House| {
        assert_eq!(house.messages(), ["m1", "m4", "m5", "last"]);
        let letters: Vec<DeadLetter> = house.all(Topic::DeadLetter);
        assert_eq!(letters.len(), 2);
        assert!(letters[0].reason.contains("asked to") && letters[0].source.is_none());
        assert_eq!((letters[1].reason.as_str(), letters[1].payload.as_slice()), ("why", &b"what"[..]));
        assert_eq!((&letters[1].source, &letters[1].account_id), (&Some(at(3)), &ACCOUNT.bytes().to_vec()));
    };
    check(&house);
    house.close().await;
    for folder in [state.path(), other.path()] {
        // From the checkpoint, and from nothing.
        let house = House::open(log.path(), folder);
        let again = put(&house, 5, open("m5")).await;
        house.applied(again).await;
        check(&house);
        house.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_whose_record_panics_is_told_so() {
    let (log, state) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let house = House::open(log.path(), state.path());
    house.create_account().await;
    let mut waiting = house.replies.expect();
    let fact = EventFact { message_id: "panic".into(), ..EventFact::default() };
    let record = Record {
        version: 1,
        account_id: ACCOUNT.bytes().to_vec(),
        reply_to: Some(waiting.reply_to),
        body: Some(Body::Fact(fact)),
        ..Record::default()
    };
    house.put_bytes(&codec::encode(&record)).await;
    let decision = waiting.answer().await.unwrap();
    assert!(matches!(decision.outcome, Some(Outcome::Refused(refusal)) if refusal.code == "INTERNAL_ERROR"));
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_asked_to_be_made_known_is_done_once_it_is_durable() {
    let (log, state) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (others, stop) = (Arc::new(Others::default()), CancellationToken::new());
    let house = House::among(log.path(), state.path(), usual_settings(), true, stop, Some(others.clone()));
    house.create_account().await;
    let last = house.fact("m1").await;
    house.applied(last).await;
    others.hold.store(true, Ordering::Release);
    let mut asked = house.ask_for_view().await;
    let held = others.next().await;
    let early = tokio::time::timeout(Duration::from_millis(200), &mut asked).await;
    assert!(early.is_err(), "nobody has it yet");
    held.send(Ok(())).unwrap();
    tokio::time::timeout(WITHIN, asked).await.unwrap().unwrap();

    // The brokers do not take it: whoever asked learns that, and asks again.
    let asked = house.ask_for_view().await;
    let held = others.next().await;
    others.hold.store(false, Ordering::Release);
    held.send(Err(LogError::InDoubt("no answer".into()))).unwrap();
    assert!(tokio::time::timeout(WITHIN, asked).await.unwrap().is_err());
    let again = async { while house.ask_for_view().await.await.is_err() {} };
    tokio::time::timeout(WITHIN, again).await.unwrap();
    let last = house.fact("m2").await;
    house.applied(last).await;
    house.close().await;
}
