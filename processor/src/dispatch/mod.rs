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

mod attempt;
mod book;
mod client;
mod desk;
mod health;
mod lane;
mod outcome;
mod replay;
mod sample;
#[cfg(test)]
mod simulation;
mod snapshots;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;
use sendtrail_eventlog::{EventLog, Pulse, Reader, Retention, read};
use sendtrail_schemas::codec;
use sendtrail_schemas::event::Event;
use sendtrail_schemas::ids::{AccountId, DestinationId};
use sendtrail_schemas::mail::Attempt;
use sendtrail_schemas::time::Millis;
use sendtrail_schemas::topic::{Topic, TopicPartition};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use crate::core::webhook::breaker::Patience;
pub use attempt::Sender;
pub use client::{Answer, Failed, Poster, PosterOptions, Reach, is_public};
pub use replay::{History, HistoryPage, Redelivery};
pub use snapshots::BookSnapshots;

use crate::{Error, Store, blocking, first_kept};
use attempt::{Outcome, joining, waiting};
use book::{Book, DeliveryKey, Marks};
use desk::Desk;
use outcome::{Recording, recorded};
use replay::Replays;
use snapshots::Keeper;

/// Bytes of events read at once.
const READ_BYTES: usize = 512 << 10;
/// How long attempts under way may take when the server stops; what takes longer is made again.
const GRACE: Duration = Duration::from_secs(3);
/// How long a delivery may wait in memory only, milliseconds: the marks wait for it.
const IN_MEMORY_ONLY: i64 = 5_000;
/// How long to wait after a failure.
const BACKOFF: Duration = Duration::from_secs(1);

/// The dispatcher of one partition.
pub struct Dispatcher {
    /// Which.
    pub partition: u32,
    /// How many there are.
    pub partitions: u32,
    /// The log.
    pub log: Arc<dyn EventLog>,
    /// Where waiting deliveries are kept.
    pub store: Store,
    /// How far the partition is: the directory knows what came before.
    pub pulse: Arc<Pulse>,
    /// Posts to destinations.
    pub sender: Sender,
    /// Attempts at once, of all partitions.
    pub turns: Arc<Semaphore>,
    /// How much is borne of destinations that fail.
    pub patience: Patience,
    /// Where events are kept that are to be told once more.
    pub history: Arc<dyn History>,
    /// Where books are kept for whoever takes over, if anywhere.
    pub snapshots: Option<Arc<BookSnapshots>>,
    /// What may be trimmed.
    pub retention: Arc<Retention>,
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
                of.pulse.webhooks_wait(Some("the dispatcher does not get on; the log says why".into()));
                tokio::select! {
                    () = tokio::time::sleep(BACKOFF) => {}
                    () = stop.cancelled() => {}
                }
            }
        }
        of.pulse.webhooks_wait(None);
    }

    fn of(&self, topic: Topic) -> TopicPartition {
        TopicPartition::new(topic, self.partition)
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
    desk: Desk,
    replays: Replays,
    next_event: u64,
    next_attempt: u64,
    /// The directory knows what came before this offset of intake.
    applied: watch::Receiver<u64>,
    /// Destinations whose health is another than their accounts know, and when that was told last.
    untold: BTreeMap<(AccountId, DestinationId), Option<Instant>>,
    /// It has not been through with what there is yet.
    is_new: bool,
    end: watch::Receiver<u64>,
    /// Ended when this is dropped: at a stop, or when the dispatcher goes back to its marks.
    under_way: JoinSet<Outcome>,
    /// What has ended and is being made durable.
    recording: Option<Recording>,
    /// Somebody waits for a turn that other partitions have.
    crowded: bool,
    checkpointed: Instant,
    /// What the last checkpoint said.
    marked: Marks,
    keeper: Option<Keeper>,
}

impl Running {
    async fn begin(of: Arc<Dispatcher>) -> Result<Self, Error> {
        let book = Book::open(of.store.database(), of.partition)?;
        let keeper = match &of.snapshots {
            Some(snapshots) => Some(Keeper::begin(snapshots.clone(), &book, of.partition).await?),
            None => None,
        };
        let mut marks = book.marks()?;
        if marks == Marks::default() {
            // A new partition, or a folder that was lost: what the log still has goes out, perhaps again.
            let (log, events, attempts) = (of.log.clone(), of.of(Topic::Events), of.of(Topic::Attempts));
            let first = move || Ok::<_, Error>((first_kept(&*log, events)?, first_kept(&*log, attempts)?));
            (marks.event, marks.attempt) = blocking("look for events", first).await?;
        }
        let mut running = Self {
            next_event: marks.event,
            next_attempt: marks.attempt,
            applied: of.pulse.applied(),
            replays: Replays::new(),
            is_new: true,
            untold: BTreeMap::new(),
            end: of.log.end(of.of(Topic::Events)),
            under_way: JoinSet::new(),
            recording: None,
            crowded: false,
            checkpointed: Instant::now(),
            marked: marks,
            keeper,
            desk: Desk::open(book, of.patience)?,
            of,
        };
        running.fold_attempts().await?;
        running.find_lost_replays()?;
        for (destination, standing) in running.desk.book.standings()? {
            running.untold.insert((AccountId::from_slice(&standing.account_id)?, destination), None);
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
                self.desk.fold(codec::decode::<Attempt>(&record.value)?, record.offset, self.next_event)?;
            }
        }
    }

    async fn run(&mut self, stop: &CancellationToken) -> Result<(), Error> {
        loop {
            let folded = self.fold_events().await?;
            self.desk.ripen(Millis::wall().0)?;
            self.start_attempts()?;
            self.tell_health();
            if self.checkpointed.elapsed() >= self.of.checkpoint_every {
                self.measure();
                self.desk.spill(Millis::wall().0 - IN_MEMORY_ONLY)?;
                self.checkpoint(false).await?;
            }
            if stop.is_cancelled() {
                return self.finish().await;
            }
            if folded {
                // More may be there; outcomes and pages are taken as they are.
                self.take_outcomes()?;
                self.go_on_with_replays().await?;
                tokio::task::yield_now().await;
                continue;
            }
            if std::mem::take(&mut self.is_new) {
                self.of.pulse.webhooks_wait(None);
            }
            self.wait(stop).await?;
        }
    }

    async fn wait(&mut self, stop: &CancellationToken) -> Result<(), Error> {
        enum Woken {
            Ended(Box<Outcome>),
            Recorded(u64),
            Page(replay::Page),
            Look,
            Other,
        }
        let until = self.desk.wake_at().map_or(1_000, |at| at - Millis::wall().0).clamp(1, 1_000);
        let (turns, look_at) = (self.of.turns.clone(), self.replays.look_at());
        let woken = tokio::select! {
            first = recorded(&mut self.recording) => Woken::Recorded(first?),
            Some(outcome) = self.under_way.join_next(), if self.recording.is_none() =>
                Woken::Ended(Box::new(outcome.map_err(joining)?)),
            page = self.replays.page() => Woken::Page(page),
            () = tokio::time::sleep_until(look_at) => Woken::Look,
            _ = self.end.changed() => Woken::Other,
            _ = self.applied.changed() => Woken::Other,
            _ = turns.acquire(), if self.crowded => Woken::Other,
            () = tokio::time::sleep(Duration::from_millis(until as u64)) => Woken::Other,
            () = stop.cancelled() => Woken::Other,
        };
        match woken {
            Woken::Ended(outcome) => self.record(*outcome),
            Woken::Recorded(first) => {
                self.settle_recorded(first)?;
                self.take_outcomes()
            }
            Woken::Page(page) => self.take_page(page).await,
            Woken::Look => self.look_for_replays(),
            Woken::Other => Ok(()),
        }
    }

    /// Reads on in the events; whether there was anything.
    async fn fold_events(&mut self) -> Result<bool, Error> {
        self.end.borrow_and_update();
        self.applied.borrow_and_update();
        let of = self.of.of(Topic::Events);
        let from = self.next_event;
        let batches = read(&self.of.log, of, from, READ_BYTES).await?;
        let Some(last) = batches.last() else {
            self.desk.caught_up();
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
        let directory = &self.of.sender.directory;
        self.desk.take_in(event.account(), key, self.next_attempt, || {
            let config = directory.account(event.account());
            let to = config.as_ref().and_then(|config| config.destination(destination));
            waiting(event, to, Millis::wall().0)
        })
    }

    fn start_attempts(&mut self) -> Result<(), Error> {
        self.crowded = false;
        let now = Millis::wall().0;
        while self.desk.is_waiting() {
            let Ok(turn) = self.of.turns.clone().try_acquire_owned() else {
                self.crowded = true;
                return Ok(());
            };
            let sender = &self.of.sender;
            let next = self.desk.next(now, |account, destination| sender.limits(account, destination))?;
            let Some((destination, job)) = next else { return Ok(()) };
            let of = self.of.clone();
            self.under_way.spawn(async move {
                let outcome = of.sender.attempt(of.partition, destination, job).await;
                drop(turn);
                outcome
            });
        }
        Ok(())
    }

    async fn checkpoint(&mut self, anyway: bool) -> Result<(), Error> {
        let marks = self.desk.marks(self.next_event, self.next_attempt);
        if marks != self.marked || anyway {
            let book = self.desk.book.clone();
            // It waits for the device.
            blocking("note the dispatcher's marks", move || book.checkpoint(marks)).await?;
            self.marked = marks;
        }
        self.checkpointed = Instant::now();
        let reached = (self.next_event, self.next_attempt);
        if let Some(keeper) = &mut self.keeper {
            keeper.look(&self.desk.book, reached, anyway).await;
        }
        let retention = &self.of.retention;
        retention.passed(Reader::Dispatcher, self.of.of(Topic::Events), marks.event);
        retention.passed(Reader::Dispatcher, self.of.of(Topic::Attempts), marks.attempt);
        Ok(())
    }

    /// Waits a little for attempts under way and makes the marks durable.
    async fn finish(&mut self) -> Result<(), Error> {
        let deadline = tokio::time::Instant::now() + GRACE;
        loop {
            if self.recording.is_some() {
                let first = recorded(&mut self.recording).await?;
                self.settle_recorded(first)?;
            }
            let Ok(Some(outcome)) = tokio::time::timeout_at(deadline, self.under_way.join_next()).await else { break };
            self.record(outcome.map_err(joining)?)?;
        }
        // What hangs still is tried again after the start.
        self.under_way.shutdown().await;
        self.checkpoint(false).await?;
        if let Some(keeper) = &mut self.keeper {
            keeper.finish(&self.desk.book, (self.next_event, self.next_attempt)).await;
        }
        Ok(())
    }
}
