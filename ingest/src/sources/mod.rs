//! Events that others write to Kafka, read from there into the intake: each once, whatever crashes in between.
//!
//! ```text
//! topic ─► thread: reads, understands ─► numbered for each intake partition ─► log
//!   └─ from where everything before is in the log, as the log itself says
//! ```
//!
//! Each record carries its number among those that this partition of the source gave to that partition of the intake. The
//! processor applies the next number only, so that it matters to nobody whether a record is told twice, or whether one
//! was lost on its way to the log: it is told again, with the same number. The consumer group only shows how far we are.

mod numbering;
mod reading;
mod rule;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt, try_join_all};
use futures::stream::FuturesOrdered;
use metrics::{Gauge, counter, gauge};
use parking_lot::Mutex;
use sendtrail_eventlog::Batch;
use sendtrail_eventlog::kafka::SourceOptions;
use sendtrail_schemas::codec;
use sendtrail_schemas::record::{Body, Record, SourcePosition, Tick};
use sendtrail_schemas::topic::{Topic, TopicPartition};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::admission::Kind;
use crate::{Error, Ingest};
use numbering::{Numbering, Place};
use reading::{Chunk, Reading};
use rule::Item;
pub use rule::{Owner, Rule};

/// How far sources have come, as whoever keeps the state knows it.
#[async_trait]
pub trait SourceMarks: Send + Sync + 'static {
    /// The marks of a source, with everything that is in the log when this is called.
    ///
    /// # Errors
    /// [`Error::Port`].
    async fn marks(&self, source: &str) -> Result<Marks, Error>;
}

/// How far a source has come in each intake partition.
#[derive(Clone, Debug, Default)]
pub struct Marks {
    /// Up to where everything is in the log; never newer than the numbers.
    pub settled: Vec<SourcePosition>,
    /// The last number in each intake partition, which comes first.
    pub numbers: Vec<(u32, SourcePosition)>,
}

/// Where a source begins that was never read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// With the oldest message there is.
    #[default]
    Earliest,
    /// With those that come from now on.
    Latest,
}

/// A topic that is read into the intake.
#[derive(Clone, Debug)]
pub struct Source {
    /// What it is known by: never to be changed, for the log goes by it.
    pub name: String,
    /// Where it is.
    pub options: SourceOptions,
    /// How it is read.
    pub rule: Arc<Rule>,
    /// Where it begins.
    pub start: Start,
    /// Whether it goes on where messages are gone before they were read.
    pub accept_loss: bool,
    /// How it does.
    pub status: Status,
}

/// Why a source does not get on, if it does not: because of the topic, or of our own log.
#[derive(Clone, Debug, Default)]
pub struct Status(Arc<Mutex<Troubles>>);

#[derive(Debug, Default)]
struct Troubles {
    topic: Option<String>,
    log: Option<String>,
    /// Partitions of which it is told how far there is to go.
    lags: BTreeSet<u32>,
}

/// What a source's getting on depends on.
#[derive(Clone, Copy, Debug)]
enum Part {
    Topic,
    Log,
}

/// Chunks on their way to the log at once.
const IN_FLIGHT: usize = 4;
/// How long until it is tried again after a failure.
const BACKOFF: Duration = Duration::from_secs(2);
/// How soon the log is told how far a source at rest has come.
const REST: Duration = Duration::from_secs(10);
/// How long it may be held back without saying so.
const PATIENCE: Duration = Duration::from_secs(5);
/// How soon admission is asked for again.
const ASK_AGAIN: Duration = Duration::from_millis(20);
/// Bytes of one batch.
const BATCH_BYTES: usize = 1 << 20;

impl Status {
    /// Why.
    pub fn failure(&self) -> Option<String> {
        let troubles = self.0.lock();
        troubles.topic.as_ref().or(troubles.log.as_ref()).cloned()
    }

    /// It is not read here any more, perhaps elsewhere.
    fn end(&self, source: &str) {
        let told = std::mem::take(&mut *self.0.lock());
        for partition in told.lags {
            lag(source, partition).set(0.0);
        }
        gauge!("sendtrail_source_failing", "source" => source.to_owned()).set(0.0);
    }

    fn tell_lag(&self, source: &str, partition: u32, messages: u64) {
        self.0.lock().lags.insert(partition);
        lag(source, partition).set(messages as f64);
    }

    fn tell(&self, source: &str, part: Part, failure: Option<String>) {
        let mut troubles = self.0.lock();
        let told = match part {
            Part::Topic => &mut troubles.topic,
            Part::Log => &mut troubles.log,
        };
        if *told != failure {
            match &failure {
                Some(why) => tracing::error!(source, %why, "a source does not get on"),
                None => tracing::info!(source, "the source is read"),
            }
            *told = failure;
        }
        let failing = troubles.topic.is_some() || troubles.log.is_some();
        gauge!("sendtrail_source_failing", "source" => source.to_owned()).set(f64::from(u8::from(failing)));
    }
}

fn lag(source: &str, partition: u32) -> Gauge {
    let labels = [("source", source.to_owned()), ("partition", partition.to_string())];
    gauge!("sendtrail_source_lag_messages", &labels)
}

impl Source {
    /// Reads until it is told to stop; what was read by then is in the log.
    pub async fn run(self, ingest: Ingest, marks: Arc<dyn SourceMarks>, stop: CancellationToken) {
        self.status.0.lock().topic = Some("it has not begun yet".into());
        // Told from the start, so that the first failure is seen.
        counter!("sendtrail_source_failures_total", "source" => self.name.clone()).absolute(0);
        loop {
            let ended = self.session(&ingest, &*marks, &stop).await;
            if stop.is_cancelled() {
                return self.status.end(&self.name);
            }
            if let Err(error) = ended {
                counter!("sendtrail_source_failures_total", "source" => self.name.clone()).increment(1);
                self.status.tell(&self.name, Part::Topic, Some(error.to_string()));
            }
            tokio::select! {
                () = tokio::time::sleep(BACKOFF) => {}
                () = stop.cancelled() => return self.status.end(&self.name),
            }
        }
    }

    /// From what the log has until something goes wrong.
    async fn session(&self, ingest: &Ingest, marks: &dyn SourceMarks, stop: &CancellationToken) -> Result<(), Error> {
        let known = tokio::select! {
            known = marks.marks(&self.name) => known?,
            () = stop.cancelled() => return Ok(()),
        };
        let numbering = Numbering::new(&known);
        let told = numbering.all_settled().clone();
        let source = self.clone();
        let begin = move || Reading::begin(&source, numbering);
        let begun = tokio::task::spawn_blocking(begin).await;
        let (reading, numbering) = begun.map_err(|cause| Error::Port(cause.to_string()))??;
        let (chunks, coming) = mpsc::channel(2);
        let settled = reading.settled();
        let thread = std::thread::Builder::new().name("source".into()).spawn(move || reading.run(&chunks));
        let thread = thread.map_err(|cause| Error::Port(format!("start a thread: {cause}")))?;
        self.status.tell(&self.name, Part::Topic, None);
        let feed = Feed { source: self, ingest, numbering, told, on_way: FuturesOrdered::new(), settled };
        let ended = feed.run(coming, stop).await;
        // It tells nothing any more that would be taken for what comes after. Its panic was logged by the panic hook.
        let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        ended
    }
}

/// Offsets up to which a chunk goes, by partition of the source.
type Reached = BTreeMap<u32, u64>;

/// What was read, on its way to the log.
struct Feed<'a> {
    source: &'a Source,
    ingest: &'a Ingest,
    numbering: Numbering,
    /// What the log was told last of how far it has come.
    told: Reached,
    on_way: FuturesOrdered<BoxFuture<'static, Result<Reached, sendtrail_eventlog::Error>>>,
    /// For the reading thread, which tells the group.
    settled: Arc<Mutex<Reached>>,
}

impl Feed<'_> {
    async fn run(
        mut self,
        mut coming: mpsc::Receiver<Result<Chunk, Error>>,
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        // A source that begins later than with its first message must not begin later still after a crash.
        self.tell().await?;
        let mut told = Instant::now();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(done) = self.on_way.next() => self.settle(done?),
                chunk = coming.recv(), if self.on_way.len() < IN_FLIGHT => match chunk {
                    Some(chunk) => if !self.give(chunk?, stop).await? { break },
                    None => return Err(Error::Port("the reading thread ended".into())),
                },
                () = tokio::time::sleep(REST) => {}
            }
            if told.elapsed() >= REST {
                self.tell().await?;
                told = Instant::now();
            }
        }
        while let Some(done) = self.on_way.next().await {
            self.settle(done?);
        }
        self.tell().await
    }

    /// Numbers a chunk and hands it to the log; `false` when it was told to stop before.
    async fn give(&mut self, chunk: Chunk, stop: &CancellationToken) -> Result<bool, Error> {
        let name = &self.source.name;
        let (mut events, mut unreadable) = (0, 0);
        let mut batches: BTreeMap<u32, Vec<Batch>> = BTreeMap::new();
        for Item { at, account, body } in chunk.items {
            let to = account.map_or_else(|| self.home(at.partition), |account| self.ingest.partition(account));
            let is_event = matches!(body, Body::Fact(_));
            let Some(mut record) = self.record(at, to, body) else { continue };
            record.account_id = account.map(|id| id.bytes().to_vec()).unwrap_or_default();
            *(if is_event { &mut events } else { &mut unreadable }) += 1;
            let batches = batches.entry(to).or_default();
            if batches.last().is_none_or(|batch| batch.bytes() >= BATCH_BYTES) {
                batches.push(Batch::new());
            }
            batches.last_mut().into_iter().for_each(|batch| batch.push(&record));
        }
        for to in batches.keys() {
            if !admitted(self.source, self.ingest, *to, stop).await {
                return Ok(false);
            }
        }
        counter!("sendtrail_source_messages_total", "source" => name.clone()).increment(chunk.messages);
        counter!("sendtrail_source_events_total", "source" => name.clone()).increment(events);
        counter!("sendtrail_source_unreadable_total", "source" => name.clone()).increment(unreadable);
        let log = &self.ingest.parts().log;
        // Handed over here and now, so that the order of the source is the order of the log.
        let appends: Vec<_> = batches
            .into_iter()
            .flat_map(|(to, batches)| batches.into_iter().map(move |batch| (to, batch)))
            .map(|(to, batch)| log.append(TopicPartition::new(Topic::Intake, to), batch))
            .collect();
        self.on_way.push_back(try_join_all(appends).map(|done| done.map(|_| chunk.reached)).boxed());
        Ok(true)
    }

    fn settle(&mut self, reached: Reached) {
        for (partition, offset) in reached {
            self.numbering.settle(partition, offset);
        }
        self.settled.lock().clone_from(self.numbering.all_settled());
    }

    /// The partition for what is of no account.
    fn home(&self, partition: u32) -> u32 {
        partition % self.ingest.parts().pulses.len().max(1) as u32
    }

    /// The record of a place; none when the log has it.
    fn record(&mut self, at: Place, to: u32, body: Body) -> Option<Record> {
        let number = self.numbering.next(at, to)?;
        Some(self.numbered(number, at, body))
    }

    fn numbered(&mut self, number: u64, at: Place, body: Body) -> Record {
        let settled = self.numbering.settled(at.partition).unwrap_or(0);
        self.told.insert(at.partition, settled);
        let source = SourcePosition {
            source: self.source.name.clone(),
            partition: at.partition,
            number,
            offset: at.offset,
            index: at.index,
            settled,
        };
        Record { version: codec::SOURCED, source: Some(source), body: Some(body), ..Record::default() }
    }

    /// Tells the log how far the source has come, as far as no record has. That takes no number: how often it is told is
    /// nothing that the source determines. All at once, for a source is new only as long as nothing of it was told.
    async fn tell(&mut self) -> Result<(), Error> {
        let mut batch = Batch::new();
        for (partition, offset) in self.numbering.all_settled().clone() {
            if self.told.get(&partition) != Some(&offset) {
                batch.push(&self.numbered(0, Place { partition, offset, index: 0 }, Body::Tick(Tick {})));
            }
        }
        if !batch.is_empty() {
            self.ingest.parts().log.append(TopicPartition::new(Topic::Intake, self.home(0)), batch).await?;
        }
        Ok(())
    }
}

/// Waits until a partition takes more; `false` when it was told to stop before.
async fn admitted(source: &Source, ingest: &Ingest, to: u32, stop: &CancellationToken) -> bool {
    let begun = Instant::now();
    loop {
        match ingest.admit(Kind::Source, to) {
            Ok(()) => {
                source.status.tell(&source.name, Part::Log, None);
                return true;
            }
            Err(_) if stop.is_cancelled() => return false,
            Err(problem) => {
                if begun.elapsed() > PATIENCE {
                    let why = format!("partition {to} takes nothing: {}", problem.message);
                    source.status.tell(&source.name, Part::Log, Some(why));
                }
                tokio::time::sleep(ASK_AGAIN).await;
            }
        }
    }
}
