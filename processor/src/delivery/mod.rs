//! Delivery: hands accepted messages to a transport; what becomes of them re-enters by the front door.

mod marks;
mod simulator;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use fjall::{Keyspace, PersistMode};
use futures::{StreamExt, stream};
use metrics::counter;
use parking_lot::Mutex;
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

pub use marks::oldest_waiting;
pub use simulator::{Mix, Simulator};

use crate::{Error, Store, blocking};

/// Bytes of mail read at once.
const READ_BYTES: usize = 1 << 20;
/// Outcomes that may be on their way; beyond, no more mail is taken.
const PENDING: usize = 100_000;
/// Bodies that are read ahead; the largest have 32 MB.
const AHEAD: usize = 4;
/// How long mail is handed over until outcomes are looked after meanwhile.
const MOMENT: Duration = Duration::from_millis(500);
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
    /// What is told of bodies that cannot be read.
    pub waits: Waits,
}

/// Why partitions wait with their mail, for whoever judges the server's health.
#[derive(Clone, Default)]
pub struct Waits(Arc<Mutex<BTreeMap<u32, String>>>);

impl Waits {
    /// The first of them.
    pub fn failure(&self) -> Option<String> {
        self.0.lock().iter().next().map(|(partition, why)| format!("partition {partition}: {why}"))
    }

    fn set(&self, partition: u32, why: Option<String>) {
        match why {
            Some(why) => self.0.lock().insert(partition, why),
            None => self.0.lock().remove(&partition),
        };
    }
}

impl Delivery {
    /// Runs until `stop` is cancelled. Outcomes that are not due by then are found again after the next start.
    pub async fn run(self, stop: CancellationToken) {
        let of = Arc::new(self);
        while !stop.is_cancelled() {
            match Running::begin(of.clone()).await {
                // What was handed over and is not told yet is known here only: it is not left before the end.
                Ok(mut running) => running.run(&stop).await,
                Err(error) => {
                    tracing::error!(partition = of.partition, %error, "delivery cannot begin");
                    of.waits.set(of.partition, Some("how far mail was handed over cannot be read".into()));
                    tokio::select! {
                        () = tokio::time::sleep(BACKOFF) => {}
                        () = stop.cancelled() => {}
                    }
                }
            }
        }
    }

    fn of(&self, topic: Topic) -> TopicPartition {
        TopicPartition::new(topic, self.partition)
    }

    /// What becomes of one record of mail, if it has its content.
    async fn deliver(&self, mail: &Mail, content: Option<&MailContent>) -> Vec<Report> {
        let Some(content) = content else { return mail.recipients.iter().map(|to| lost(mail, to)).collect() };
        let mut reports = Vec::new();
        for to in &mail.recipients {
            reports.extend(self.transport.deliver(mail, content, to).await);
        }
        counter!("sendtrail_messages_delivered_total").increment(mail.recipients.len() as u64);
        // Nobody is told of our own mail to contacts.
        if mail.system { Vec::new() } else { reports }
    }

    /// The content of a message; none if it is lost.
    ///
    /// # Errors
    /// It cannot be read now, and may be a moment later.
    async fn content(&self, mail: &Mail) -> Result<Option<MailContent>, Error> {
        match self.read_content(mail).await {
            Ok(content) => Ok(Some(content)),
            Err(error @ (Error::Log(LogError::NoBlob(_) | LogError::Corrupt { .. }) | Error::Schema(_))) => {
                tracing::error!(send_id = mail.send_id, %error, "the content of a message is lost");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn read_content(&self, mail: &Mail) -> Result<MailContent, Error> {
        match mail.content.as_ref().and_then(|content| content.body.clone()) {
            Some(mail::Body::Inline(content)) => Ok(content),
            Some(mail::Body::Blob(blob)) => Ok(mail::decode(&self.blobs.get(&blob).await?)?),
            None => Ok(MailContent::default()),
        }
    }
}

fn lost(mail: &Mail, to: &Recipient) -> Report {
    let fact = EventFact {
        kind: EventType::Reject as i32,
        message_id: to.message_id.clone(),
        send_id: Some(mail.send_id.clone()).filter(|id| !id.is_empty()),
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
    /// When mail that could not be taken is tried again.
    again: Option<Instant>,
    /// When outcomes that could not be told are tried again.
    tell_again: Option<Instant>,
    /// Whether it may be told of this partition that it waits.
    is_told: bool,
}

impl Running {
    async fn begin(of: Arc<Delivery>) -> Result<Self, Error> {
        let marks = marks::open(&of.store)?;
        let next = marks::next(&marks, &of.log, of.of(Topic::Mail)).await?;
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
            again: None,
            tell_again: None,
            is_told: true,
            of,
        })
    }

    async fn run(&mut self, stop: &CancellationToken) {
        loop {
            let taken = match self.take(stop).await {
                Ok(taken) => taken,
                Err(error) => {
                    self.wait(&error, "mail cannot be read");
                    false
                }
            };
            self.settle(stop.is_cancelled()).await;
            if stop.is_cancelled() {
                // It waits no more here.
                (self.again, self.tell_again) = (None, None);
                return self.go_on();
            }
            self.go_on();
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

    /// Takes no more mail for a moment.
    fn wait(&mut self, error: &Error, why: &str) {
        self.again = Some(self.told(error, why));
    }

    /// Has whoever asks know that something cannot be done; when to try again.
    fn told(&mut self, error: &Error, why: &str) -> Instant {
        tracing::error!(partition = self.of.partition, %error, "{why}");
        // Whoever asks how well the server is need not learn where things are.
        self.of.waits.set(self.of.partition, Some(format!("{why}; the log says what is wrong")));
        self.is_told = true;
        Instant::now() + BACKOFF
    }

    /// What could not be done is done, if it is.
    fn go_on(&mut self) {
        if self.again.is_none() && self.tell_again.is_none() && std::mem::take(&mut self.is_told) {
            self.of.waits.set(self.of.partition, None);
        }
    }

    /// Tells what is due, and notes how far everything is told, if it is time to or the `last` time.
    async fn settle(&mut self, last: bool) {
        if self.tell_again.is_some_and(|again| Instant::now() < again) && !last {
            return;
        }
        self.tell_again = match self.try_settle(last).await {
            Ok(()) => None,
            Err(error) => Some(self.told(&error, "what became of mail cannot be told")),
        };
    }

    async fn try_settle(&mut self, last: bool) -> Result<(), Error> {
        self.report().await?;
        if self.checkpointed.0.elapsed() >= self.of.checkpoint_every || last {
            self.checkpoint().await?;
        }
        Ok(())
    }

    /// Hands a piece of mail over, as far as its bodies can be read; whether there was any.
    async fn take(&mut self, stop: &CancellationToken) -> Result<bool, Error> {
        self.end.borrow_and_update();
        self.again.take_if(|again| Instant::now() >= *again);
        if self.again.is_some() || self.tell_again.is_some() || self.waiting >= PENDING {
            return Ok(false);
        }
        let (of, from) = (self.of.clone(), self.next);
        let batches = read(&of.log, of.of(Topic::Mail), from, READ_BYTES).await?;
        // Bodies may come from afar: some are read while others are handed over.
        let read = async |record: sendtrail_eventlog::Record| {
            let mail: Mail = codec::decode(&record.value)?;
            let content = of.content(&mail).await;
            Ok::<_, Error>((record.offset, mail, content))
        };
        let records: Vec<_> = batches.iter().flat_map(|batch| batch.records(from)).collect();
        let mut mails = pin!(stream::iter(records).map(read).buffered(AHEAD));
        let mut settled = Instant::now();
        loop {
            if settled.elapsed() >= MOMENT {
                self.settle(false).await;
                settled = Instant::now();
            }
            let next = tokio::select! {
                next = mails.next() => next,
                // A body that takes long does not keep outcomes from being told.
                () = tokio::time::sleep(MOMENT) => continue,
                () = stop.cancelled() => return Ok(false),
            };
            let Some(next) = next else { return Ok(!batches.is_empty()) };
            let (offset, mail, content) = next?;
            let content = match content {
                Ok(content) => content,
                // It keeps what comes after it waiting; what was handed over before is told all the same.
                Err(error) => {
                    counter!("sendtrail_unreadable_bodies_total").increment(1);
                    tracing::warn!(send_id = mail.send_id, "a message waits for its body");
                    self.wait(&error, "a message's body cannot be read");
                    return Ok(false);
                }
            };
            self.go_on();
            let reports = of.deliver(&mail, content.as_ref()).await;
            self.next = offset + 1;
            if reports.is_empty() {
                continue;
            }
            for (at, report) in reports.iter().enumerate() {
                self.heap.push(Reverse((mail.accepted_at + report.after, offset, at)));
            }
            self.waiting += reports.len();
            let pending = Pending { account: mail.account_id, left: reports.len(), reports };
            self.pending.insert(offset, pending);
        }
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
            // Said again shortly, and counted once: nobody must be mailed again for it.
            Err(error) => {
                self.heap.extend(told.into_iter().map(Reverse));
                if !matches!(error, LogError::Full | LogError::Write(_) | LogError::InDoubt(_)) {
                    return Err(error.into());
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
                return Ok(());
            }
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
