//! A delivery worker on a real log and store, with a transport that remembers what it was handed.

use parking_lot::Mutex;
use sendtrail_eventlog::embedded::{EmbeddedLog, Options};
use sendtrail_eventlog::objects::Place;
use sendtrail_schemas::time::Millis;
use tempfile::TempDir;

use super::*;

/// Notes From, recipient and text of each message, and reports it as delivered at once.
#[derive(Default)]
struct Notes(Mutex<Vec<(String, String, String)>>);

#[async_trait]
impl Transport for Notes {
    async fn deliver(&self, mail: &Mail, content: &MailContent, to: &Recipient) -> Vec<Report> {
        let text = content.text.clone().unwrap_or_default();
        self.0.lock().push((mail.from.clone(), to.address.clone(), text));
        let fact = EventFact {
            kind: EventType::Delivery as i32,
            message_id: to.message_id.clone(),
            recipient: to.address.clone(),
            ..EventFact::default()
        };
        vec![Report { after: 0, fact }]
    }
}

fn message(seq: u64, system: bool) -> Mail {
    let content = MailContent { text: Some(format!("text {seq}")), ..MailContent::default() };
    Mail {
        version: codec::VERSION,
        account_id: vec![7; 16],
        seq,
        accepted_at: Millis::wall().0,
        from: if system { "postmaster@system.example".into() } else { "news@acme.example".into() },
        content: Some(mail::Content { body: Some(mail::Body::Inline(content)) }),
        recipients: vec![Recipient { address: format!("to{seq}@b.example"), message_id: format!("m{seq}"), kind: 0 }],
        system,
        ..Mail::default()
    }
}

/// What a worker works on, in a folder.
struct Site {
    log: Arc<EmbeddedLog>,
    store: Store,
    blobs: Blobs,
}

impl Site {
    fn of(folder: &std::path::Path) -> Self {
        let options = Options { partitions: 1, ..Options::default() };
        Self {
            log: Arc::new(EmbeddedLog::open(&folder.join("log"), options).unwrap()),
            store: Store::open(&folder.join("state"), 1, 1 << 20).unwrap(),
            blobs: Blobs::open(Place::from(folder).join("blobs")).unwrap(),
        }
    }

    fn delivery(&self, notes: &Arc<Notes>, waits: &Waits) -> Delivery {
        Delivery {
            partition: 0,
            log: self.log.clone(),
            store: self.store.clone(),
            blobs: self.blobs.clone(),
            clock: Clock::wall(),
            retention: Arc::new(Retention::new(self.log.clone(), false)),
            transport: notes.clone(),
            checkpoint_every: Duration::from_millis(10),
            waits: waits.clone(),
        }
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    // Longer than a slow machine needs, also when its disk stalls.
    for _ in 0..12_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}: not within two minutes");
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_mail_is_handed_over_and_its_outcome_is_nobodys_event() {
    let folder = TempDir::new().unwrap();
    let site = Site::of(folder.path());
    let log = &site.log;
    let mut batch = Batch::numbered(0);
    (0..4).for_each(|seq| batch.push(&message(seq, seq == 1)));
    log.append(TopicPartition::new(Topic::Mail, 0), batch).await.unwrap();
    let intake = TopicPartition::new(Topic::Intake, 0);
    let notes = Arc::new(Notes::default());
    for round in 0..2 {
        let delivery = site.delivery(&notes, &Waits::default());
        let stop = CancellationToken::new();
        let task = tokio::spawn(delivery.run(stop.clone()));
        until("every outcome is told", || *log.end(intake).borrow() == 3).await;
        // Time for a checkpoint, or, the second time, for what must not happen.
        tokio::time::sleep(Duration::from_millis(100)).await;
        stop.cancel();
        task.await.unwrap();
        assert_eq!(notes.0.lock().len(), 4, "round {round}: each once, also after a restart");
    }
    let own = notes.0.lock()[1].clone();
    assert_eq!(own, ("postmaster@system.example".into(), "to1@b.example".into(), "text 1".into()));
    let told = log.read(intake, 0, 1 << 20).unwrap();
    let told: Vec<String> = told
        .iter()
        .flat_map(|batch| batch.records(0))
        .map(|record| match codec::decode::<Record>(&record.value).unwrap().body {
            Some(Body::Fact(fact)) => fact.message_id,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(told, ["m0", "m2", "m3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_day_of_the_first_message_that_waits_is_known() {
    let folder = TempDir::new().unwrap();
    let site = Site::of(folder.path());
    let log: Arc<dyn EventLog> = site.log.clone();
    let oldest = async || oldest_waiting(&log, &site.store, 1).await.unwrap();
    assert_eq!(oldest().await, None);
    let mut batch = Batch::numbered(0);
    for (seq, day) in [(0, 20), (1, 21), (2, 25)] {
        batch.push(&Mail { accepted_at: Millis::of_day(day).0, ..message(seq, false) });
    }
    log.append(TopicPartition::new(Topic::Mail, 0), batch).await.unwrap();
    assert_eq!(oldest().await, Some(20));
    let mark = |next: u64| marks::open(&site.store).unwrap().insert([0, 0], next.to_be_bytes()).unwrap();
    mark(2);
    assert_eq!(oldest().await, Some(25));
    mark(3);
    assert_eq!(oldest().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_decoded_waits_and_nothing_before_it_is_handed_over_twice() {
    let folder = TempDir::new().unwrap();
    let site = Site::of(folder.path());
    let (notes, waits) = (Arc::new(Notes::default()), Waits::default());
    let mut batch = Batch::numbered(0);
    (0..3).for_each(|seq| batch.push(&message(seq, false)));
    // As a newer program writes it, before this one is taken away.
    batch.push(&Mail { version: 99, ..message(3, false) });
    site.log.append(TopicPartition::new(Topic::Mail, 0), batch).await.unwrap();
    let stop = CancellationToken::new();
    let task = tokio::spawn(site.delivery(&notes, &waits).run(stop.clone()));
    until("somebody is told", || waits.failure().is_some_and(|why| why.contains("mail cannot be read"))).await;
    // Two more tries.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    stop.cancel();
    task.await.unwrap();
    assert_eq!(notes.0.lock().len(), 3, "each once");
    assert_eq!(*site.log.end(TopicPartition::new(Topic::Intake, 0)).borrow(), 3, "and told");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_cannot_be_read_is_waited_for_and_one_that_is_gone_is_told() {
    let folder = TempDir::new().unwrap();
    let site = Site::of(folder.path());
    let (log, blobs) = (&site.log, &site.blobs);
    let (notes, waits) = (Arc::new(Notes::default()), Waits::default());
    let text = |n: u64| mail::encode(&MailContent { text: Some(format!("text {n}")), ..MailContent::default() });
    let mut batch = Batch::numbered(0);
    for n in 0..3 {
        let blob = blobs.put(n as i32, text(n)).await.unwrap();
        let content = Some(mail::Content { body: Some(mail::Body::Blob(blob)) });
        batch.push(&Mail { content, ..message(n, false) });
    }
    let day = |n: u64| folder.path().join("blobs").join(n.to_string());
    // A file is where the folder of the second should be, as of a disk that is not there; the third is gone.
    std::fs::rename(day(1), day(9)).unwrap();
    std::fs::write(day(1), b"").unwrap();
    std::fs::remove_dir_all(day(2)).unwrap();
    log.append(TopicPartition::new(Topic::Mail, 0), batch).await.unwrap();
    let delivery = site.delivery(&notes, &waits);
    let stop = CancellationToken::new();
    let task = tokio::spawn(delivery.run(stop.clone()));
    let told = || {
        let told = log.read(TopicPartition::new(Topic::Intake, 0), 0, 1 << 20).unwrap();
        let records = told.iter().flat_map(|batch| batch.records(0));
        let fact = |record: sendtrail_eventlog::Record| match codec::decode::<Record>(&record.value).unwrap().body {
            Some(Body::Fact(fact)) => (fact.message_id.clone(), fact.kind()),
            other => panic!("{other:?}"),
        };
        records.map(fact).collect::<Vec<_>>()
    };
    until("somebody is told why mail waits", || waits.failure().is_some_and(|why| why.contains("partition 0"))).await;
    until("what came before is told", || told().len() == 1).await;
    // Two more tries.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(told(), [("m0".to_owned(), EventType::Delivery)]);
    assert_eq!(notes.0.lock().len(), 1, "and not handed over again");
    std::fs::remove_file(day(1)).unwrap();
    std::fs::rename(day(9), day(1)).unwrap();
    until("all are told", || told().iter().any(|(message, _)| message == "m2")).await;
    stop.cancel();
    task.await.unwrap();
    let kinds = [EventType::Delivery, EventType::Delivery, EventType::Reject];
    let expected: Vec<_> = (0..).zip(kinds).map(|(n, kind)| (format!("m{n}"), kind)).collect();
    assert_eq!(told(), expected);
    assert_eq!((notes.0.lock().len(), waits.failure()), (2, None), "each once, and nothing waits");
}
