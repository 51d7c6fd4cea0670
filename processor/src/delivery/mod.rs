//! Delivery: hands accepted messages to a transport; what becomes of them re-enters by the front door.

mod simulator;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use fjall::{Keyspace, KeyspaceCreateOptions, PersistMode};
use metrics::counter;
use sendtrail_eventlog::failpoint::reach;
use sendtrail_eventlog::{Batch, Blobs, Clock, Error as LogError, EventLog, Reader, Retention, read};
use sendtrail_schemas::block::{Block, Reject};
use sendtrail_schemas::codec;
use sendtrail_schemas::event::EventFact;
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::mail::{self, Mail, MailContent};
use sendtrail_schemas::record::{Body, Recipient, Record};

use sendtrail_schemas::topic::{Topic, TopicPartition};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use simulator::{Mix, Simulator};

use crate::{Error, Store, blocking, first_kept};

/// Bytes of mail read at once.
const READ_BYTES: usize = 1 << 20;
/// Outcomes that may be on their way; beyond, no more mail is taken.
const PENDING: usize = 100_000;
/// How long to wait after a failure.
const BACKOFF: Duration = Duration::from_secs(1);

/// What becomes of a message to one recipient.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// How long after the message was accepted, milliseconds.
    pub after: i64,
    /// What happened.
    pub fact: EventFact,
}

/// Whoever takes messages to their recipients.
///
/// At least once: after a crash a message may be handed over again, with the same identifier. Outcomes must name what
/// may happen more than once (opens, clicks) by an `event_id`, so that they are counted once.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Takes one message to one recipient.
    async fn deliver(&self, mail: &Mail, content: &MailContent, to: &Recipient) -> Vec<Report>;
}

/// The delivery of one partition's mail.
pub struct Delivery {
    /// Which.
    pub partition: u32,
    /// The log.
    pub log: Arc<dyn EventLog>,
    /// Where the mark is kept.
    pub store: Store,
    /// Large bodies.
    pub blobs: Blobs,
    /// What time it is.
    pub clock: Clock,
    /// What may be trimmed.
    pub retention: Arc<Retention>,
    /// Takes messages.
    pub transport: Arc<dyn Transport>,
    /// How often the mark is made durable.
    pub checkpoint_every: Duration,
}

impl Delivery {
    /// Runs until `stop` is cancelled. Outcomes that are not due by then are found again after the next start.
    pub async fn run(self, stop: CancellationToken) {
        let of = Arc::new(self);
        while !stop.is_cancelled() {
            let ended = match Running::begin(of.clone()).await {
                Ok(mut running) => running.run(&stop).await,
                Err(error) => Err(error),
            };
            if let Err(error) = ended {
                tracing::error!(partition = of.partition, %error, "delivery goes back to its mark");
                tokio::select! {
                    () = tokio::time::sleep(BACKOFF) => {}
                    () = stop.cancelled() => {}
                }
            }
        }
    }

    fn of(&self, topic: Topic) -> TopicPartition {
        TopicPartition::new(topic, self.partition)
    }

    /// What becomes of one record of mail.
    async fn deliver(&self, mail: &Mail) -> Vec<Report> {
        let content = match self.content(mail).await {
            Ok(content) => content,
            Err(error) => {
                tracing::error!(send_id = mail.send_id, %error, "the content of a message is lost");
                return mail.recipients.iter().map(lost).collect();
            }
        };
        let mut reports = Vec::new();
        for to in &mail.recipients {
            reports.extend(self.transport.deliver(mail, &content, to).await);
        }
        counter!("sendtrail_messages_delivered_total").increment(mail.recipients.len() as u64);
        // Nobody is told of our own mail to contacts.
        if mail.system { Vec::new() } else { reports }
    }

    async fn content(&self, mail: &Mail) -> Result<MailContent, Error> {
        match mail.content.as_ref().and_then(|content| content.body.clone()) {
            Some(mail::Body::Inline(content)) => Ok(content),
            Some(mail::Body::Blob(blob)) => {
                let blobs = self.blobs.clone();
                let bytes = blocking("read a blob", move || blobs.get(&blob)).await?;
                Ok(mail::decode(&bytes)?)
            }
            None => Ok(MailContent::default()),
        }
    }
}

fn lost(to: &Recipient) -> Report {
    let fact = EventFact {
        kind: EventType::Reject as i32,
        message_id: to.message_id.clone(),
        recipient: to.address.clone(),
        block: Some(Block::Reject(Reject { reason: Some("the message's content was lost".into()) })),
        ..EventFact::default()
    };
    Report { after: 0, fact }
}

/// An outcome that is not due yet: when, which mail, which of its outcomes.
type Due = Reverse<(i64, u64, usize)>;

/// The outcomes of one mail.
struct Pending {
    account: Vec<u8>,
    reports: Vec<Report>,
    /// How many are not told yet.
    left: usize,
}

struct Running {
    of: Arc<Delivery>,
    marks: Keyspace,
    next: u64,
    end: watch::Receiver<u64>,
    heap: BinaryHeap<Due>,
    pending: BTreeMap<u64, Pending>,
    waiting: usize,
    checkpointed: (Instant, u64),
}

impl Running {
    async fn begin(of: Arc<Delivery>) -> Result<Self, Error> {
        let marks = of.store.database().keyspace("delivery.marks", KeyspaceCreateOptions::default)?;
        let value = marks.get((of.partition as u16).to_be_bytes())?;
        let next = match value.and_then(|value| value[..].try_into().ok()).map(u64::from_be_bytes) {
            Some(next) => next,
            // A new partition, or a folder that was lost: what the log still has goes out, perhaps again.
            None => {
                let (log, mail) = (of.log.clone(), of.of(Topic::Mail));
                blocking("look for mail", move || first_kept(&*log, mail)).await?
            }
        };
        // A partition without mail must not keep the log from being trimmed.
        of.retention.passed(Reader::Delivery, of.of(Topic::Mail), next);
        Ok(Self {
            marks,
            next,
            end: of.log.end(of.of(Topic::Mail)),
            heap: BinaryHeap::new(),
            pending: BTreeMap::new(),
            waiting: 0,
            checkpointed: (Instant::now(), next),
            of,
        })
    }

    async fn run(&mut self, stop: &CancellationToken) -> Result<(), Error> {
        loop {
            let taken = self.take().await?;
            self.report().await?;
            if self.checkpointed.0.elapsed() >= self.of.checkpoint_every || stop.is_cancelled() {
                self.checkpoint().await?;
            }
            if stop.is_cancelled() {
                return Ok(());
            }
            if !taken {
                let nap = if self.heap.is_empty() { 500 } else { 10 };
                tokio::select! {
                    _ = self.end.changed(), if self.waiting < PENDING => {}
                    () = tokio::time::sleep(Duration::from_millis(nap)) => {}
                    () = stop.cancelled() => {}
                }
            }
        }
    }

    /// Hands a piece of mail over; whether there was any.
    async fn take(&mut self) -> Result<bool, Error> {
        self.end.borrow_and_update();
        if self.waiting >= PENDING {
            return Ok(false);
        }
        let from = self.next;
        let batches = read(&self.of.log, self.of.of(Topic::Mail), from, READ_BYTES).await?;
        for record in batches.iter().flat_map(|batch| batch.records(from)) {
            let mail: Mail = codec::decode(&record.value)?;
            let reports = self.of.deliver(&mail).await;
            self.next = record.offset + 1;
            if reports.is_empty() {
                continue;
            }
            for (at, report) in reports.iter().enumerate() {
                self.heap.push(Reverse((mail.accepted_at + report.after, record.offset, at)));
            }
            self.waiting += reports.len();
            let pending = Pending { account: mail.account_id, left: reports.len(), reports };
            self.pending.insert(record.offset, pending);
        }
        Ok(!batches.is_empty())
    }

    /// Puts what is due into intake.
    async fn report(&mut self) -> Result<(), Error> {
        let now = self.of.clock.now().0;
        let mut batch = Batch::new();
        let mut told = Vec::new();
        while let Some(Reverse((due, mail, at))) = self.heap.peek().copied()
            && due <= now
            && batch.len() < 1_000
        {
            self.heap.pop();
            told.push((due, mail, at));
            let Some(pending) = self.pending.get(&mail) else { continue };
            let Some(report) = pending.reports.get(at) else { continue };
            let mut fact = report.fact.clone();
            fact.occurred_at_nanos = Some(due * 1_000_000);
            batch.push(&Record {
                version: codec::VERSION,
                account_id: pending.account.clone(),
                simulated_time: self.of.clock.is_simulated().then_some(now),
                body: Some(Body::Fact(fact)),
                ..Record::default()
            });
        }
        if batch.is_empty() {
            return Ok(());
        }
        match self.of.log.append(self.of.of(Topic::Intake), batch).await {
            Ok(_) => {}
            Err(LogError::Full | LogError::Write(_) | LogError::InDoubt(_)) => {
                // Said again shortly, and counted once: nobody must be mailed again for it.
                self.heap.extend(told.into_iter().map(Reverse));
                tokio::time::sleep(Duration::from_millis(50)).await;
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
        for (_, mail, _) in told {
            self.waiting -= 1;
            if let Some(pending) = self.pending.get_mut(&mail) {
                pending.left -= 1;
                if pending.left == 0 {
                    self.pending.remove(&mail);
                }
            }
        }
        Ok(())
    }

    async fn checkpoint(&mut self) -> Result<(), Error> {
        let mark = self.pending.first_key_value().map_or(self.next, |(mail, _)| *mail);
        if mark > self.checkpointed.1 {
            let mut batch = self.of.store.database().batch().durability(Some(PersistMode::SyncAll));
            batch.insert(&self.marks, (self.of.partition as u16).to_be_bytes(), mark.to_be_bytes());
            reach("mail.handed");
            // It waits for the device.
            blocking("note delivery's mark", move || batch.commit()).await?;
            self.of.retention.passed(Reader::Delivery, self.of.of(Topic::Mail), mark);
        }
        self.checkpointed = (Instant::now(), mark);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
