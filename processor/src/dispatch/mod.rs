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

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use metrics::{counter, histogram};
use prost::Message;
use sendtrail_eventlog::{Batch, EventLog, Reader, Retention};
use sendtrail_schemas::account::{Destination, Dialect};
use sendtrail_schemas::codec;
use sendtrail_schemas::directory::Directory;
use sendtrail_schemas::event::Event;
use sendtrail_schemas::ids::{AccountId, DestinationId, delivery_id};
use sendtrail_schemas::mail::{Attempt, DeliveryStatus};
use sendtrail_schemas::record::{Body, Change, Command, DestinationName, DestinationPatch, Record};
use sendtrail_schemas::secret::Vault;
use sendtrail_schemas::time::Millis;
use sendtrail_schemas::topic::{Topic, TopicPartition};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

pub use client::{Answer, Poster, Reach, is_public};

use crate::core::envelope::render;
use crate::core::retry::{Ended, Next, next, timeout_millis};
use crate::core::signature::{Signed, headers};
use crate::{Error, Store};
use book::{Book, DeliveryKey, Marks, Waiting};
use lane::{Job, Lane};

/// Bytes of events read at once.
const READ_BYTES: usize = 512 << 10;
/// Attempts recorded together.
const RECORD_TOGETHER: usize = 256;
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

/// What an attempt came to.
struct Outcome {
    job: Job,
    destination: DestinationId,
    started_at: i64,
    finished_at: i64,
    answer: Answer,
    /// How the destination is spoken to; `None` when it is gone.
    spoken: Option<(Dialect, Vec<u32>)>,
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

/// What an attempt came to; a panic in one sends the dispatcher back to its marks.
fn ended(joined: Result<Outcome, JoinError>) -> Result<Outcome, Error> {
    joined.map_err(|cause| Error::Io { what: "attempt a webhook".into(), cause: cause.into() })
}

struct Running {
    of: Arc<Dispatcher>,
    book: Book,
    next_event: u64,
    next_attempt: u64,
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
        running.fold_attempts()?;
        for destination in running.book.destinations()? {
            running.lane(destination).has_backlog = true;
        }
        Ok(running)
    }

    /// Applies attempts that were recorded after the marks.
    fn fold_attempts(&mut self) -> Result<(), Error> {
        let of = self.of.of(Topic::Attempts);
        loop {
            let batches = self.of.log.read(of, self.next_attempt, READ_BYTES)?;
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
            let folded = self.fold_events()?;
            self.ripen()?;
            self.start_attempts()?;
            if self.checkpointed.elapsed() >= self.of.checkpoint_every {
                self.checkpoint()?;
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
    fn fold_events(&mut self) -> Result<bool, Error> {
        self.end.borrow_and_update();
        let of = self.of.of(Topic::Events);
        let from = self.next_event;
        let batches = self.of.log.read(of, from, READ_BYTES)?;
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

    /// Records what has ended, without waiting for more.
    async fn take_outcomes(&mut self) -> Result<(), Error> {
        match self.under_way.try_join_next() {
            Some(first) => self.record(vec![ended(first)?]).await,
            None => Ok(()),
        }
    }

    /// Makes attempts durable, then acts on them.
    async fn record(&mut self, mut outcomes: Vec<Outcome>) -> Result<(), Error> {
        while outcomes.len() < RECORD_TOGETHER
            && let Some(outcome) = self.under_way.try_join_next()
        {
            outcomes.push(ended(outcome)?);
        }
        let mut batch = Batch::new();
        let mut decided = Vec::with_capacity(outcomes.len());
        for outcome in outcomes {
            let (attempt, next) = judge(&outcome);
            batch.push(&attempt);
            decided.push((outcome, attempt, next));
        }
        let count = batch.len() as u64;
        let first = self.of.log.append(self.of.of(Topic::Attempts), batch).await?;
        self.next_attempt = first + count;
        for (outcome, attempt, next) in decided {
            self.settle(outcome, &attempt, next)?;
        }
        Ok(())
    }

    fn settle(&mut self, outcome: Outcome, attempt: &Attempt, next: Next) -> Result<(), Error> {
        let Outcome { job, destination, .. } = outcome;
        let lane = self.lane(destination);
        lane.under_way -= 1;
        lane.done(&job);
        let status = attempt.status().name();
        counter!("sendtrail_webhook_attempts_total", "status" => status).increment(1);
        histogram!("sendtrail_webhook_attempt_seconds").record((attempt.finished_at - attempt.started_at) as f64 / 1e3);
        match next {
            Next::Retry(due_at) => {
                let waiting = Waiting {
                    attempts: attempt.number,
                    first_started_at: attempt.first_started_at,
                    due_at,
                    is_due: false,
                    ..job.waiting
                };
                self.book.put(job.key, &waiting)?;
                self.next_due = Some(self.next_due.map_or(due_at, |due| due.min(due_at)));
            }
            _ if job.booked => self.book.remove(job.key)?,
            _ => {}
        }
        if next == Next::Disable {
            self.disable(AccountId::from_slice(&attempt.account_id)?, destination);
        }
        if !job.booked
            && let std::collections::btree_map::Entry::Occupied(mut count) = self.unbooked.entry(job.key.seq)
        {
            count.get_mut().0 -= 1;
            if count.get().0 == 0 {
                count.remove();
            }
        }
        Ok(())
    }

    /// A receiver that is gone for good is sent nothing more.
    fn disable(&self, account: AccountId, destination: DestinationId) {
        let config = self.of.directory.account(account);
        let Some(set) = config.as_ref().and_then(|config| config.destination(destination)).map(|(set, _)| set) else {
            return;
        };
        let name =
            DestinationName { config_set_id: set.config_set_id.clone(), destination_id: destination.bytes().to_vec() };
        let patch = DestinationPatch { destination: Some(name), enabled: Some(false), ..DestinationPatch::default() };
        let mut batch = Batch::new();
        batch.push(&Record {
            version: codec::VERSION,
            account_id: account.bytes().to_vec(),
            body: Some(Body::Command(Command { change: Some(Change::PatchDestination(patch)) })),
            ..Record::default()
        });
        let appended = self.of.log.append(self.of.of(Topic::Intake), batch);
        // If it is lost, the next 410 asks again.
        tokio::spawn(async move { drop(appended.await) });
    }

    fn checkpoint(&mut self) -> Result<(), Error> {
        let end = (self.next_event, self.next_attempt);
        // Who folds these events again must find the attempts at them.
        let (event, attempt) = self.unbooked.first_key_value().map_or(end, |(seq, (_, attempt))| (*seq, *attempt));
        let marks = Marks { event, attempt };
        if marks != self.marked {
            self.book.checkpoint(marks)?;
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
        self.checkpoint()
    }
}

/// What an attempt is recorded as, and what follows.
fn judge(outcome: &Outcome) -> (Attempt, Next) {
    let waiting = &outcome.job.waiting;
    let number = waiting.attempts + 1;
    let first_started_at = if waiting.attempts == 0 { outcome.started_at } else { waiting.first_started_at };
    let next = match &outcome.spoken {
        None => Next::GiveUp,
        Some((dialect, own)) => next(
            *dialect,
            own,
            Ended {
                number,
                first_started_at,
                finished_at: outcome.finished_at,
                status_code: outcome.answer.status.as_ref().ok().copied(),
                retry_after: outcome.answer.retry_after,
            },
        ),
    };
    let (status, next_due_at) = match next {
        Next::Delivered => (DeliveryStatus::Delivered, None),
        Next::Retry(due_at) => (DeliveryStatus::Failed, Some(due_at)),
        Next::GiveUp | Next::Disable => (DeliveryStatus::GaveUp, None),
    };
    let attempt = Attempt {
        version: codec::VERSION,
        account_id: waiting.account_id.clone(),
        event_seq: outcome.job.key.seq,
        destination_id: outcome.destination.bytes().to_vec(),
        number,
        started_at: outcome.started_at,
        finished_at: outcome.finished_at,
        status_code: outcome.answer.status.as_ref().ok().map(|code| u32::from(*code)),
        error: outcome.answer.status.as_ref().err().cloned(),
        status: status as i32,
        next_due_at,
        first_started_at,
    };
    (attempt, next)
}
