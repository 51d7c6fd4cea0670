//! A delivery worker on a real log and store, with a transport that remembers what it was handed.

use parking_lot::Mutex;
use sendtrail_eventlog::embedded::{EmbeddedLog, Options};
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

async fn until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..500 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}: not within five seconds");
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_mail_is_handed_over_and_its_outcome_is_nobodys_event() {
    let folder = TempDir::new().unwrap();
    let log = Arc::new(
        EmbeddedLog::open(&folder.path().join("log"), Options { partitions: 1, ..Options::default() }).unwrap(),
    );
    let store = Store::open(&folder.path().join("state"), 1, 1 << 20).unwrap();
    let mut batch = Batch::numbered(0);
    (0..4).for_each(|seq| batch.push(&message(seq, seq == 1)));
    log.append(TopicPartition::new(Topic::Mail, 0), batch).await.unwrap();
    let intake = TopicPartition::new(Topic::Intake, 0);
    let notes = Arc::new(Notes::default());
    for round in 0..2 {
        let delivery = Delivery {
            partition: 0,
            log: log.clone(),
            store: store.clone(),
            blobs: Blobs::open(&folder.path().join("blobs")).unwrap(),
            clock: Clock::wall(),
            retention: Arc::new(Retention::new(log.clone(), false)),
            transport: notes.clone(),
            checkpoint_every: Duration::from_millis(10),
        };
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
