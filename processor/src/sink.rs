//! One reader of all events and attempts: into the tail that queries see, into projections, and from time to time into
//! the archive.
//!
//! ```text
//! events ─► columns ─► tail ──────────────► readers
//!      │                └─► files ─► Delta commit ─► tail without them, in one step
//!      └─► sums, with their marks
//! attempts ─► columns ─► files ─► Delta commit
//!        └─► last attempts, with their marks
//! dead letters ─► projections
//! ```

mod cursor;
mod filer;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::select_all;
use metrics::{gauge, histogram};
use parking_lot::Mutex as PlainMutex;
use sendtrail_eventlog::{Clock, EventLog, Reader, Retention};
use sendtrail_schemas::archive::ArchiveCell;
use sendtrail_schemas::attempts::{AttemptColumns, LoggedAttempt};
use sendtrail_schemas::columns::EventColumns;
use sendtrail_schemas::event::Event;
use sendtrail_schemas::mail::{Attempt, DeadLetter};
use sendtrail_schemas::time::Millis;
use sendtrail_schemas::topic::{Topic, TopicPartition};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::archive::Table;
use crate::{Error, Projections};
use cursor::{Cursor, decode};
use filer::Filer;

/// Rows of one batch of the tail.
const BATCH_ROWS: usize = 8 * 1_024;
/// What helps when projections are older than the log reaches back.
const LOST_SUMS: &str = "stop the server and run 'sendtrail rebuild-projections'";
/// What helps when the archive is.
const LOST_FILES: &str =
    "the archive is not the one that was here before: stop the server and put its folder back from a backup";
/// How long to wait after a failure.
const BACKOFF: Duration = Duration::from_secs(1);

/// How the sink works.
#[derive(Clone, Debug)]
pub struct SinkOptions {
    /// How long an event may wait before queries see it.
    pub flush_every: Duration,
    /// How long before it is in a file.
    pub commit_every: Duration,
    /// Rows after which a file is written at once.
    pub commit_rows: usize,
    /// How long it reads on when it is to stop; the rest stays in the log for the next start.
    pub drain_within: Duration,
}

/// What a sink works with.
pub struct Sink {
    /// The log.
    pub log: Arc<dyn EventLog>,
    /// The archive of events.
    pub table: Arc<Mutex<Table>>,
    /// The archive of attempts.
    pub attempts: Arc<Mutex<Table>>,
    /// What readers see of events.
    pub cell: Arc<ArchiveCell>,
    /// What readers see of attempts.
    pub attempts_cell: Arc<ArchiveCell>,
    /// Sums, attempts, dead letters.
    pub projections: Projections,
    /// What may be trimmed.
    pub retention: Arc<Retention>,
    /// The partitions to read.
    pub partitions: Vec<u32>,
    /// What time it is.
    pub clock: Clock,
    /// How to work.
    pub options: SinkOptions,
}

/// A running sink.
pub struct SinkHandle {
    thread: std::thread::JoinHandle<()>,
    demands: mpsc::Sender<Demand>,
    failure: Arc<PlainMutex<Option<String>>>,
    shown: Shown,
}

/// The number after the last event of each partition that readers see, and when that was received.
type Shown = Arc<BTreeMap<u32, (AtomicU64, AtomicI64)>>;

impl SinkHandle {
    /// Readers see a partition's events before a number, and those that were received before a time. The epoch: it has shown none since
    /// its start.
    pub fn shown(&self, partition: u32) -> (u64, Millis) {
        let Some((next, at)) = self.shown.get(&partition) else { return (0, Millis(0)) };
        (next.load(Ordering::Acquire), Millis(at.load(Ordering::Acquire)))
    }

    /// Why it does not get on, if it does not.
    pub fn failure(&self) -> Option<String> {
        let ended = || self.thread.is_finished().then(|| "the sink has ended".to_owned());
        self.failure.lock().clone().or_else(ended)
    }

    /// Waits until readers see a partition's events before a number; false: the sink has ended before.
    pub async fn seen(&self, partition: u32, next: u64) -> bool {
        let (done, wait) = oneshot::channel();
        self.demands.send(Demand { partition, next, done }).await.is_ok() && wait.await.is_ok()
    }

    /// Waits until everything that it read is in the archive, and the sink has ended.
    pub fn join(self) {
        // A panic in it was logged by the panic hook.
        let _ = self.thread.join();
    }
}

impl Sink {
    /// Starts the sink on a thread of its own. It ends when `stop` is cancelled and all events are in files, or all that it could
    /// read in time.
    ///
    /// # Errors
    /// [`Error::Io`] when no thread can be started; [`Error::Missing`] when the log no longer has what is needed.
    pub async fn start(self, stop: CancellationToken) -> Result<SinkHandle, Error> {
        let failure = Arc::new(PlainMutex::new(None));
        let (demands, asked) = mpsc::channel(1_024);
        let shown: Shown = Arc::new(self.partitions.iter().map(|of| (*of, Default::default())).collect());
        let mut running = Running::new(self, failure.clone(), asked, shown.clone()).await?;
        let handle = Handle::current();
        let thread = std::thread::Builder::new()
            .name("sink".into())
            .spawn(move || running.run(&handle, &stop))
            .map_err(|cause| Error::Io { what: "start the sink".into(), cause })?;
        Ok(SinkHandle { thread, demands, failure, shown })
    }
}

/// A reader who waits to see events.
struct Demand {
    partition: u32,
    next: u64,
    done: oneshot::Sender<()>,
}

struct Running {
    sink: Sink,
    cursors: Vec<Cursor>,
    columns: EventColumns,
    events: Filer,
    attempt_columns: AttemptColumns,
    attempts: Filer,
    flushed: Instant,
    /// When the first event since was received.
    oldest: Option<i64>,
    failure: Arc<PlainMutex<Option<String>>>,
    shown: Shown,
    asked: mpsc::Receiver<Demand>,
    demands: Vec<Demand>,
    /// When it was told to stop.
    stopping: Option<Instant>,
    /// It has stopped to read before it had everything.
    cut_short: bool,
}

impl Running {
    async fn new(
        sink: Sink,
        failure: Arc<PlainMutex<Option<String>>>,
        asked: mpsc::Receiver<Demand>,
        shown: Shown,
    ) -> Result<Self, Error> {
        let (table, attempts) = (sink.table.lock().await, sink.attempts.lock().await);
        let mut cursors = Vec::new();
        let (mut filed_events, mut filed_attempts) = (BTreeMap::new(), BTreeMap::new());
        for &partition in &sink.partitions {
            let marks = (table.mark(partition).await?, attempts.mark(partition).await?);
            let cursor = Cursor::new(&*sink.log, &sink.projections, partition, marks)?;
            filed_events.insert(partition, cursor.archived);
            filed_attempts.insert(partition, cursor.archived_attempts);
            cursors.push(cursor);
        }
        let filed = (
            Filer::new(sink.table.clone(), sink.cell.clone(), filed_events),
            Filer::new(sink.attempts.clone(), sink.attempts_cell.clone(), filed_attempts),
        );
        filed.0.show(&table);
        filed.1.show(&attempts);
        drop((table, attempts));
        let running = Self {
            events: filed.0,
            attempts: filed.1,
            sink,
            cursors,
            columns: EventColumns::default(),
            attempt_columns: AttemptColumns::default(),
            flushed: Instant::now(),
            oldest: None,
            failure,
            shown,
            asked,
            demands: Vec::new(),
            stopping: None,
            cut_short: false,
        };
        running.pass();
        running.note_shown();
        Ok(running)
    }

    fn run(&mut self, handle: &Handle, stop: &CancellationToken) {
        loop {
            match self.turn(handle, stop) {
                Ok(true) => {
                    let unread = || self.cursors.iter().find_map(|cursor| cursor.failed.as_ref());
                    let trouble = self.events.trouble().or(self.attempts.trouble()).map(ToString::to_string);
                    let trouble = trouble.or_else(|| unread().map(|(_, error)| error.to_string()));
                    *self.failure.lock() = trouble;
                }
                Ok(false) => return,
                Err(error) => {
                    let why = error.to_string();
                    tracing::error!(%why, "the sink does not get on");
                    *self.failure.lock() = Some(why);
                    if error.is_final() || stop.is_cancelled() {
                        return;
                    }
                    std::thread::sleep(BACKOFF);
                }
            }
        }
    }

    /// Reads what there is and passes it on; whether to go on.
    fn turn(&mut self, handle: &Handle, stop: &CancellationToken) -> Result<bool, Error> {
        if stop.is_cancelled() {
            self.stopping.get_or_insert_with(Instant::now);
        }
        let mut read = 0;
        if self.stopping.is_none_or(|since| since.elapsed() < self.sink.options.drain_within) {
            for at in 0..self.cursors.len() {
                read += self.try_read(at)?;
            }
        } else if !std::mem::replace(&mut self.cut_short, true) {
            let left = |cursor: &Cursor| cursor.ends[0].borrow().saturating_sub(cursor.next);
            let events: u64 = self.cursors.iter().map(left).sum();
            tracing::warn!(events, "the sink is behind and stops; these events are filed after the next start");
        }
        self.meet_demands()?;
        let gathered = self.columns.len().max(self.attempt_columns.len());
        if gathered >= BATCH_ROWS || self.flushed.elapsed() >= self.sink.options.flush_every {
            self.flush()?;
        }
        self.collect()?;
        let stopping = self.stopping.is_some();
        self.events.end(stopping)?;
        self.attempts.end(stopping)?;
        let (rows, after) = (self.sink.options.commit_rows, self.sink.options.commit_every);
        let last = stopping && read == 0;
        if self.events.is_ready()
            && (self.events.is_due(rows, after) || (last && self.events.rows() + self.columns.len() > 0))
        {
            self.flush()?;
            self.events.write(handle);
        }
        if self.attempts.is_ready()
            && (self.attempts.is_due(rows, after) || (last && self.attempts.rows() + self.attempt_columns.len() > 0))
        {
            self.flush()?;
            self.attempts.write(handle);
        }
        if read == 0 {
            let gathered = self.columns.len() + self.attempt_columns.len();
            if stopping && gathered == 0 && self.events.is_idle() && self.attempts.is_idle() {
                self.sink.projections.flush(true)?;
                return Ok(false);
            }
            self.wait(handle);
        }
        Ok(true)
    }

    /// Whether there is a chunk beside the one that is being written: what comes after, the log keeps.
    fn is_full(&self, filer: &Filer) -> bool {
        filer.rows() >= 2 * self.sink.options.commit_rows
    }

    /// Reads a piece of a partition. What is wrong with one keeps none of the others, unless nothing can mend it.
    fn try_read(&mut self, at: usize) -> Result<usize, Error> {
        if self.cursors[at].failed.as_ref().is_some_and(|(again, _)| Instant::now() < *again) {
            return Ok(0);
        }
        let (mut events, mut attempts) = (0, 0);
        let outcome = self.read(at, &mut events, &mut attempts);
        if events > 0 {
            self.events.touch();
        }
        if attempts > 0 {
            self.attempts.touch();
        }
        let cursor = &mut self.cursors[at];
        cursor.failed = match outcome {
            Err(error) if error.is_final() => return Err(error),
            Err(error) => {
                tracing::error!(partition = cursor.partition, %error, "the sink cannot read a partition");
                Some((Instant::now() + BACKOFF, error))
            }
            Ok(()) => None,
        };
        Ok(events + attempts)
    }

    fn read(&mut self, at: usize, count: &mut usize, attempts: &mut usize) -> Result<(), Error> {
        let room = [&self.events, &self.attempts].map(|filer| !self.is_full(filer));
        let cursor = &mut self.cursors[at];
        let (log, partition) = (self.sink.log.clone(), cursor.partition);
        let lost = |archived| if archived { LOST_FILES } else { LOST_SUMS };
        let read =
            || decode::<Event>(&*log, Topic::Events, partition, cursor.next, lost(cursor.next == cursor.archived));
        let events = room[0].then(read).transpose()?;
        for event in events.into_iter().flatten() {
            let (offset, event) = event?;
            if event.seq != offset || event.seq != cursor.next {
                let why = format!("event {} of partition {partition} stands where {} should", event.seq, cursor.next);
                return Err(Error::Missing(why));
            }
            if event.seq >= cursor.summed {
                self.sink.projections.add_event(&event)?;
                cursor.summed = event.seq + 1;
            }
            if event.seq >= cursor.archived {
                self.columns.push(&event);
                self.oldest = self.oldest.or(Some(event.received_at));
                self.events.note(partition, event.seq);
                cursor.archived = event.seq + 1;
            }
            // Last, so that what failed is read again.
            cursor.next = event.seq + 1;
            cursor.received_at = event.received_at;
            *count += 1;
        }
        let (next, lost) = (cursor.next_attempt, lost(cursor.next_attempt == cursor.archived_attempts));
        let read = || decode::<Attempt>(&*log, Topic::Attempts, partition, next, lost);
        for attempt in room[1].then(read).transpose()?.into_iter().flatten() {
            let (offset, attempt) = attempt?;
            if offset >= cursor.noted_attempts {
                self.sink.projections.add_attempt(partition, offset, &attempt);
                cursor.noted_attempts = offset + 1;
            }
            if offset >= cursor.archived_attempts {
                self.attempt_columns.push(&LoggedAttempt { partition, offset, attempt });
                self.attempts.note(partition, offset);
                cursor.archived_attempts = offset + 1;
            }
            cursor.next_attempt = offset + 1;
            *attempts += 1;
        }
        for letter in decode::<DeadLetter>(&*log, Topic::DeadLetter, partition, cursor.letters, LOST_SUMS)? {
            let (offset, letter) = letter?;
            self.sink.projections.add_dead_letter(&letter);
            cursor.letters = offset + 1;
            *count += 1;
        }
        Ok(())
    }

    /// Lets readers see what was read.
    fn flush(&mut self) -> Result<(), Error> {
        self.flushed = Instant::now();
        if !self.columns.is_empty() {
            self.events.add(self.columns.finish()?);
            if let Some(received_at) = self.oldest.take().filter(|_| !self.sink.clock.is_simulated()) {
                let waited = (self.sink.clock.now().0 - received_at).max(0);
                histogram!("sendtrail_event_visible_seconds").record(waited as f64 / 1e3);
            }
            gauge!("sendtrail_tail_rows").set(self.events.tail_rows() as f64);
        }
        if !self.attempt_columns.is_empty() {
            self.attempts.add(self.attempt_columns.finish()?);
        }
        self.sink.projections.flush(false)?;
        self.note_shown();
        Ok(())
    }

    fn note_shown(&self) {
        for cursor in &self.cursors {
            if let Some((next, at)) = self.shown.get(&cursor.partition) {
                next.store(cursor.next, Ordering::Release);
                at.store(cursor.received_at, Ordering::Release);
            }
        }
    }

    /// Shows readers what they wait for, as soon as it was read.
    fn meet_demands(&mut self) -> Result<(), Error> {
        while let Ok(demand) = self.asked.try_recv() {
            self.demands.push(demand);
        }
        let read = |demand: &Demand| {
            let cursor = self.cursors.iter().find(|cursor| cursor.partition == demand.partition);
            cursor.is_none_or(|cursor| cursor.next >= demand.next)
        };
        let (met, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.demands).into_iter().partition(read);
        // Whoever gave up waiting is not asked for again.
        self.demands = waiting.into_iter().filter(|demand| !demand.done.is_closed()).collect();
        if !met.is_empty() {
            if let Err(error) = self.flush() {
                // They go on waiting: what they wait for is not shown.
                self.demands.extend(met);
                return Err(error);
            }
            for demand in met {
                let _ = demand.done.send(());
            }
        }
        Ok(())
    }

    /// Ends the writing of chunks that have ended.
    fn collect(&mut self) -> Result<(), Error> {
        let filed = self.events.collect() | self.attempts.collect();
        if filed {
            // Readers see no sums of events that they do not see.
            self.flush()?;
            // The projections of what may now be trimmed must be durable too.
            self.sink.projections.flush(true)?;
            self.pass();
        }
        Ok(())
    }

    /// Notes what may be trimmed: what is in files, and durably in projections.
    fn pass(&self) {
        for cursor in &self.cursors {
            let passed = |reader, topic, next| {
                self.sink.retention.passed(reader, TopicPartition::new(topic, cursor.partition), next);
            };
            passed(Reader::Archive, Topic::Events, self.events.filed(cursor.partition).min(cursor.summed));
            passed(Reader::Archive, Topic::Attempts, self.attempts.filed(cursor.partition).min(cursor.noted_attempts));
            passed(Reader::DeadLetters, Topic::DeadLetter, cursor.letters);
        }
    }

    /// Until there is something to read, or to flush.
    fn wait(&mut self, handle: &Handle) {
        let waiting = self.columns.len() + self.attempt_columns.len() > 0;
        let nap = if !waiting && !self.events.is_writing() && !self.attempts.is_writing() {
            Duration::from_millis(200)
        } else {
            Duration::from_millis(20)
        };
        let full = self.is_full(&self.events) || self.is_full(&self.attempts);
        let ends = self.cursors.iter_mut().flat_map(|cursor| &mut cursor.ends).map(|end| end.changed().boxed());
        let asked = handle.block_on(async {
            let woken = select_all(ends);
            tokio::select! {
                _ = woken, if !full => None,
                Some(asked) = self.asked.recv() => Some(asked),
                () = tokio::time::sleep(nap) => None,
            }
        });
        self.demands.extend(asked);
    }
}

#[cfg(test)]
mod tests;
