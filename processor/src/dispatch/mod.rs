//! Webhooks: a fold over events and attempts, with timers that survive.
//!
//! ```text
//! events ─► lane of the destination ─► POST ─► attempts (durable) ─► done, or into the book until it is due again
//!              ▲                                                       │
//!              └────────────────────── backlog ◄──────────────────────┘
//! ```
//!
//! Each destination has a lane of its own, bounded in memory; what finds no room waits in the book. At least once: an
//! attempt whose record is lost in a crash is made again, with the same delivery id.

mod book;
mod client;
mod lane;
mod outcome;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;
use sendtrail_eventlog::{EventLog, Pulse, Reader, Retention, read};
use sendtrail_schemas::account::{Destination, Dialect};
use sendtrail_schemas::codec;
use sendtrail_schemas::directory::Directory;
use sendtrail_schemas::event::Event;
use sendtrail_schemas::ids::{AccountId, DestinationId, delivery_id};
use sendtrail_schemas::mail::Attempt;
use sendtrail_schemas::secret::Vault;
use sendtrail_schemas::time::Millis;
use sendtrail_schemas::topic::{Topic, TopicPartition};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use client::{Answer, Poster, Reach, is_public};

use crate::core::envelope::render;
use crate::core::retry::timeout_millis;
use crate::core::signature::{Signed, headers};
use crate::{Error, Store, blocking};
use book::{Book, DeliveryKey, Marks, Waiting};
use lane::{Job, Lane};
use outcome::{Outcome, ended};

/// Bytes of events read at once.
const READ_BYTES: usize = 512 << 10;
/// Timers looked at together.
const RIPEN_TOGETHER: usize = 1_024;
/// How long attempts under way may take when the server stops; what takes longer is made again.
const GRACE: Duration = Duration::from_secs(3);
/// How long to wait after a failure.
const BACKOFF: Duration = Duration::from_secs(1);

/// The dispatcher of one partition.
pub struct Dispatcher {
    /// Which.
    pub partition: u32,
    /// The log.
    pub log: Arc<dyn EventLog>,
    /// Where waiting deliveries are kept.
    pub store: Store,
    /// Where destinations are looked up when an attempt begins.
    pub directory: Arc<Directory>,
    /// How far the partition is: the directory knows what came before.
    pub pulse: Arc<Pulse>,
    /// Opens their secrets.
    pub vault: Vault,
    /// Posts.
    pub poster: Poster,
    /// What may be trimmed.
    pub retention: Arc<Retention>,
    /// Attempts to one destination at once.
    pub concurrency: usize,
    /// How often the marks are made durable.
    pub checkpoint_every: Duration,
}

impl Dispatcher {
    /// Runs until `stop` is cancelled; goes back to its marks after a failure.
    pub async fn run(self, stop: CancellationToken) {
        let of = Arc::new(self);
        while !stop.is_cancelled() {
            let ended = match Running::begin(of.clone()).await {
                Ok(mut running) => running.run(&stop).await,
                Err(error) => Err(error),
            };
            if let Err(error) = ended {
                tracing::error!(partition = of.partition, %error, "the dispatcher goes back to its marks");
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

    /// Makes one attempt.
    async fn attempt(&self, destination: DestinationId, job: Job) -> Outcome {
        let started_at = Millis::wall().0;
        let account = AccountId::from_slice(&job.waiting.account_id).ok();
        let config = account.and_then(|account| self.directory.account(account));
        let found = config.as_ref().and_then(|config| config.destination(destination)).map(|(_, found)| found);
        let Some(found) = found.filter(|found| found.enabled) else {
            let answer = Answer { status: Err("the destination was deleted or disabled".into()), retry_after: None };
            return Outcome { job, destination, started_at, finished_at: started_at, answer, spoken: None };
        };
        let dialect = job.waiting.dialect();
        let answer = match self.secret(found, destination) {
            Ok(secret) => {
                let signed = Signed {
                    delivery_id: &delivery_id(
                        account.unwrap_or(AccountId(uuid::Uuid::nil())),
                        self.partition,
                        job.key.seq,
                        destination,
                    )
                    .to_string(),
                    event_name: &job.waiting.event_name,
                    attempt: job.waiting.attempts + 1,
                    timestamp: started_at / 1_000,
                    body: &job.waiting.body,
                };
                let headers = headers(dialect, secret.as_deref(), &signed);
                let within = Duration::from_millis(timeout_millis(dialect) as u64);
                self.poster.post(&found.webhook_url, &headers, job.waiting.body.clone(), within).await
            }
            Err(error) => Answer { status: Err(error.to_string()), retry_after: None },
        };
        let spoken = Some((dialect, found.retry_schedule_seconds.clone()));
        Outcome { job, destination, started_at, finished_at: Millis::wall().0, answer, spoken }
    }

    fn secret(&self, destination: &Destination, id: DestinationId) -> Result<Option<Vec<u8>>, Error> {
        let sealed = destination.sealed_secret.as_deref();
        Ok(sealed.map(|sealed| self.vault.open(sealed, id.bytes())).transpose()?)
    }
}

/// Where an event goes, read without reading the rest of it.
#[derive(Clone, PartialEq, prost::Message)]
struct Destined {
    #[prost(bytes = "bytes", repeated, tag = "25")]
    destination_ids: Vec<Bytes>,
}

struct Running {
    of: Arc<Dispatcher>,
    book: Book,
    next_event: u64,
    next_attempt: u64,
    /// The directory knows what came before this offset of intake.
    applied: watch::Receiver<u64>,
    lanes: HashMap<DestinationId, Lane>,
    /// Lanes in which something may be started.
    ready: Vec<DestinationId>,
    /// Events that have deliveries in memory only: how many, and the attempt before which none of theirs is.
    unbooked: BTreeMap<u64, (usize, u64)>,
    /// Attempts recorded after the marks, until the events they belong to are folded again.
    known: HashMap<DeliveryKey, Attempt>,
    end: watch::Receiver<u64>,
    /// Ended when this is dropped: at a stop, or when the dispatcher goes back to its marks.
    under_way: JoinSet<Outcome>,
    next_due: Option<i64>,
    checkpointed: Instant,
    /// What the last checkpoint said.
    marked: Marks,
}

impl Running {
    async fn begin(of: Arc<Dispatcher>) -> Result<Self, Error> {
        let book = Book::open(of.store.database(), of.partition)?;
        let marks = book.marks()?;
        let mut running = Self {
            next_event: marks.event,
            next_attempt: marks.attempt,
            applied: of.pulse.applied(),
            lanes: HashMap::new(),
            ready: Vec::new(),
            unbooked: BTreeMap::new(),
            known: HashMap::new(),
            end: of.log.end(of.of(Topic::Events)),
            under_way: JoinSet::new(),
            next_due: Some(0),
            checkpointed: Instant::now(),
            marked: marks,
            book,
            of,
        };
        running.fold_attempts().await?;
        for destination in running.book.destinations()? {
            running.lane(destination).has_backlog = true;
        }
        Ok(running)
    }

    /// Applies attempts that were recorded after the marks.
    async fn fold_attempts(&mut self) -> Result<(), Error> {
        let of = self.of.of(Topic::Attempts);
        loop {
            let batches = read(&self.of.log, of, self.next_attempt, READ_BYTES).await?;
            if batches.is_empty() {
                return Ok(());
            }
            let from = self.next_attempt;
            for record in batches.iter().flat_map(|batch| batch.records(from)) {
                self.next_attempt = record.offset + 1;
                let attempt: Attempt = codec::decode(&record.value)?;
                let destination = DestinationId::from_slice(&attempt.destination_id)?;
                let key = DeliveryKey { seq: attempt.event_seq, destination };
                match (attempt.next_due_at, self.book.get(key)?) {
                    (Some(due_at), Some(waiting)) => self.book.put(
                        key,
                        &Waiting {
                            attempts: attempt.number,
                            first_started_at: attempt.first_started_at,
                            due_at,
                            is_due: false,
                            ..waiting
                        },
                    )?,
                    (None, Some(_)) => self.book.remove(key)?,
                    (_, None) => {}
                }
                self.known.insert(key, attempt);
            }
        }
    }

    async fn run(&mut self, stop: &CancellationToken) -> Result<(), Error> {
        loop {
            let folded = self.fold_events().await?;
            self.ripen()?;
            self.start_attempts()?;
            if self.checkpointed.elapsed() >= self.of.checkpoint_every {
                self.checkpoint().await?;
            }
            if stop.is_cancelled() {
                return self.finish().await;
            }
            if folded {
                // More may be there; outcomes are taken as they are.
                self.take_outcomes().await?;
                tokio::task::yield_now().await;
                continue;
            }
            self.wait(stop).await?;
        }
    }

    async fn wait(&mut self, stop: &CancellationToken) -> Result<(), Error> {
        let until_due = self.next_due.map_or(1_000, |due| due - Millis::wall().0).clamp(1, 1_000);
        let first = tokio::select! {
            Some(outcome) = self.under_way.join_next() => Some(ended(outcome)?),
            _ = self.end.changed() => None,
            _ = self.applied.changed() => None,
            () = tokio::time::sleep(Duration::from_millis(until_due as u64)) => None,
            () = stop.cancelled() => None,
        };
        match first {
            Some(outcome) => self.record(vec![outcome]).await,
            None => Ok(()),
        }
    }

    /// A lane in which something is about to change.
    fn lane(&mut self, destination: DestinationId) -> &mut Lane {
        let lane = self.lanes.entry(destination).or_default();
        if !lane.is_ready {
            lane.is_ready = true;
            self.ready.push(destination);
        }
        lane
    }

    /// Reads on in the events; whether there was anything.
    async fn fold_events(&mut self) -> Result<bool, Error> {
        self.end.borrow_and_update();
        self.applied.borrow_and_update();
        let of = self.of.of(Topic::Events);
        let from = self.next_event;
        let batches = read(&self.of.log, of, from, READ_BYTES).await?;
        let Some(last) = batches.last() else {
            self.known = HashMap::new();
            return Ok(false);
        };
        let next = last.next_offset();
        for record in batches.iter().flat_map(|batch| batch.records(from)) {
            let malformed = |cause| sendtrail_schemas::Error::Malformed(format!("event {}: {cause}", record.offset));
            let destined = Destined::decode(record.value.clone()).map_err(malformed)?;
            if destined.destination_ids.is_empty() {
                continue;
            }
            let event: Event = codec::decode(&record.value)?;
            // What was changed before it happened, its destinations among that, must be known; elsewhere it is told later.
            if event.offset >= *self.applied.borrow() && self.of.pulse.halted().is_none() {
                self.next_event = event.seq;
                return Ok(false);
            }
            for destination in event.destinations() {
                self.fold_delivery(&event, destination)?;
            }
        }
        self.next_event = next;
        Ok(true)
    }

    fn fold_delivery(&mut self, event: &Event, destination: DestinationId) -> Result<(), Error> {
        let key = DeliveryKey { seq: event.seq, destination };
        if self.book.get(key)?.is_some() {
            return Ok(());
        }
        let known = self.known.remove(&key);
        if known.as_ref().is_some_and(|attempt| attempt.next_due_at.is_none()) {
            return Ok(());
        }
        let config = self.of.directory.account(event.account());
        let dialect =
            config.as_ref().and_then(|config| config.destination(destination)).map(|(_, found)| found.dialect());
        // A destination that is gone gets an attempt that says so, in the default dialect.
        let dialect = dialect.unwrap_or(Dialect::Splashify);
        let Some(envelope) = render(dialect, event) else { return Ok(()) };
        let mut waiting = Waiting {
            account_id: event.account_id.clone(),
            dialect: dialect as i32,
            event_name: envelope.event_name.into(),
            body: envelope.body.into(),
            due_at: Millis::wall().0,
            ..Waiting::default()
        };
        if let Some(attempt) = known {
            waiting.attempts = attempt.number;
            waiting.first_started_at = attempt.first_started_at;
            waiting.due_at = attempt.next_due_at.unwrap_or_default();
            self.next_due = Some(self.next_due.map_or(waiting.due_at, |due| due.min(waiting.due_at)));
            return self.book.put(key, &waiting);
        }
        let lane = self.lane(destination);
        if lane.has_room() {
            lane.push(Job { key, waiting, booked: false });
            self.unbooked.entry(key.seq).or_insert((0, self.next_attempt)).0 += 1;
            return Ok(());
        }
        lane.has_backlog = true;
        self.book.put(key, &Waiting { is_due: true, ..waiting })
    }

    /// Lets timers that are due join their destinations' backlogs.
    fn ripen(&mut self) -> Result<(), Error> {
        let now = Millis::wall().0;
        if self.next_due.is_some_and(|due| due <= now) {
            let (destinations, next) = self.book.ripen(now, RIPEN_TOGETHER)?;
            self.next_due = next;
            for destination in destinations {
                self.lane(destination).has_backlog = true;
            }
        }
        Ok(())
    }

    fn start_attempts(&mut self) -> Result<(), Error> {
        for destination in std::mem::take(&mut self.ready) {
            let Some(lane) = self.lanes.get_mut(&destination) else { continue };
            lane.is_ready = false;
            lane.refill(&self.book, destination)?;
            while lane.under_way < self.of.concurrency
                && let Some(job) = lane.take()
            {
                lane.under_way += 1;
                let of = self.of.clone();
                self.under_way.spawn(async move { of.attempt(destination, job).await });
            }
            if lane.is_idle() {
                self.lanes.remove(&destination);
            }
        }
        Ok(())
    }

    async fn checkpoint(&mut self) -> Result<(), Error> {
        let end = (self.next_event, self.next_attempt);
        // Who folds these events again must find the attempts at them.
        let (event, attempt) = self.unbooked.first_key_value().map_or(end, |(seq, (_, attempt))| (*seq, *attempt));
        let marks = Marks { event, attempt };
        if marks != self.marked {
            let book = self.book.clone();
            // It waits for the device.
            blocking("note the dispatcher's marks", move || book.checkpoint(marks)).await?;
            self.marked = marks;
        }
        self.checkpointed = Instant::now();
        let retention = &self.of.retention;
        retention.passed(Reader::Dispatcher, self.of.of(Topic::Events), event);
        retention.passed(Reader::Dispatcher, self.of.of(Topic::Attempts), attempt);
        Ok(())
    }

    /// Waits a little for attempts under way and makes the marks durable.
    async fn finish(&mut self) -> Result<(), Error> {
        let deadline = tokio::time::Instant::now() + GRACE;
        while let Ok(Some(outcome)) = tokio::time::timeout_at(deadline, self.under_way.join_next()).await {
            self.record(vec![ended(outcome)?]).await?;
        }
        // What hangs still is tried again after the start.
        self.under_way.shutdown().await;
        self.checkpoint().await
    }
}
