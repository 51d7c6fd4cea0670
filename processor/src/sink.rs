//! One reader of all events: into the tail that queries see, into hourly sums, and from time to time into the archive.
//!
//! ```text
//! events ─► columns ─► tail ──────────────► readers
//!      │                └─► files ─► Delta commit ─► tail without them, in one step
//!      └─► sums, with their marks
//! attempts, dead letters ─► projections
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use futures::FutureExt;
use futures::future::select_all;
use metrics::{counter, gauge, histogram};
use parking_lot::Mutex as PlainMutex;
use sendtrail_eventlog::{EventLog, Reader, Retention};
use sendtrail_schemas::archive::{ArchiveCell, ArchiveView};
use sendtrail_schemas::codec::{self, Wire};
use sendtrail_schemas::columns::EventColumns;
use sendtrail_schemas::event::Event;
use sendtrail_schemas::mail::{Attempt, DeadLetter};
use sendtrail_schemas::topic::{Topic, TopicPartition};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::archive::{Table, fresh_name, read_file, write_files};
use crate::{Error, Projections};

/// Bytes of a partition read at once, so that all partitions get their turn.
const READ_BYTES: usize = 1 << 20;
/// Rows of one batch of the tail.
const BATCH_ROWS: usize = 8 * 1_024;
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
}

/// What a sink works with.
pub struct Sink {
    /// The log.
    pub log: Arc<dyn EventLog>,
    /// The archive.
    pub table: Arc<Mutex<Table>>,
    /// What readers see of it.
    pub cell: Arc<ArchiveCell>,
    /// Sums, attempts, dead letters.
    pub projections: Projections,
    /// What may be trimmed.
    pub retention: Arc<Retention>,
    /// The partitions to read.
    pub partitions: Vec<u32>,
    /// How to work.
    pub options: SinkOptions,
}

/// A running sink.
pub struct SinkHandle {
    thread: std::thread::JoinHandle<()>,
    demands: mpsc::Sender<Demand>,
    failure: Arc<PlainMutex<Option<String>>>,
}

impl SinkHandle {
    /// Why it does not get on, if it does not.
    pub fn failure(&self) -> Option<String> {
        self.failure.lock().clone()
    }

    /// Waits until readers see a partition's events before a number.
    pub async fn seen(&self, partition: u32, next: u64) {
        let (done, wait) = oneshot::channel();
        if self.demands.send(Demand { partition, next, done }).await.is_ok() {
            // A sink that ends shows nothing new.
            let _ = wait.await;
        }
    }

    /// Waits until everything in the log is in the archive, and the sink has ended.
    pub fn join(self) {
        // A panic in it was logged by the panic hook.
        let _ = self.thread.join();
    }
}

impl Sink {
    /// Starts the sink on a thread of its own. It ends when `stop` is cancelled and all events are in files.
    ///
    /// # Errors
    /// [`Error::Io`] when no thread can be started; [`Error::Missing`] when the log no longer has what is needed.
    pub async fn start(self, stop: CancellationToken) -> Result<SinkHandle, Error> {
        let failure = Arc::new(PlainMutex::new(None));
        let (demands, asked) = mpsc::channel(1_024);
        let mut running = Running::new(self, failure.clone(), asked).await?;
        let handle = Handle::current();
        let thread = std::thread::Builder::new()
            .name("sink".into())
            .spawn(move || running.run(&handle, &stop))
            .map_err(|cause| Error::Io { what: "start the sink".into(), cause })?;
        Ok(SinkHandle { thread, demands, failure })
    }
}

/// A reader who waits to see events.
struct Demand {
    partition: u32,
    next: u64,
    done: oneshot::Sender<()>,
}

/// Events on their way into files.
#[derive(Default)]
struct Chunk {
    batches: Vec<RecordBatch>,
    rows: usize,
    /// The first and the last of each partition.
    events: BTreeMap<u32, (u64, u64)>,
    since: Option<Instant>,
}

/// The table after a commit, locked until readers see it: nobody may show its files before the tail is cut.
type Committed = Result<OwnedMutexGuard<Table>, Error>;

struct Running {
    sink: Sink,
    cursors: Vec<Cursor>,
    columns: EventColumns,
    chunk: Chunk,
    /// The chunk that is being written, and how that ends.
    writing: Option<(Arc<Chunk>, oneshot::Receiver<Committed>)>,
    flushed: Instant,
    failure: Arc<PlainMutex<Option<String>>>,
    asked: mpsc::Receiver<Demand>,
    demands: Vec<Demand>,
}

/// Where the sink stands in one partition.
struct Cursor {
    partition: u32,
    /// The next event to read, the first that is in no file, the first that is in no sum.
    next: u64,
    archived: u64,
    summed: u64,
    attempts: u64,
    letters: u64,
    ends: [watch::Receiver<u64>; 3],
}

const TOPICS: [Topic; 3] = [Topic::Events, Topic::Attempts, Topic::DeadLetter];

impl Running {
    async fn new(
        sink: Sink,
        failure: Arc<PlainMutex<Option<String>>>,
        asked: mpsc::Receiver<Demand>,
    ) -> Result<Self, Error> {
        let table = sink.table.lock().await;
        let mut cursors = Vec::new();
        for &partition in &sink.partitions {
            let of = |topic| TopicPartition::new(topic, partition);
            let archived = table.mark(partition).await?;
            let summed = sink.projections.mark(of(Topic::Events))?;
            cursors.push(Cursor {
                partition,
                next: archived.min(summed),
                archived,
                summed,
                attempts: sink.projections.mark(of(Topic::Attempts))?,
                letters: sink.projections.mark(of(Topic::DeadLetter))?,
                ends: TOPICS.map(|topic| sink.log.end(of(topic))),
            });
            sink.retention.passed(Reader::Archive, of(Topic::Events), archived.min(summed));
        }
        sink.cell.update(|_| ArchiveView {
            root: table.root().to_owned(),
            version: table.version(),
            files: Arc::new(table.files()),
            tail: Vec::new(),
        });
        drop(table);
        Ok(Self {
            sink,
            cursors,
            columns: EventColumns::default(),
            chunk: Chunk::default(),
            writing: None,
            flushed: Instant::now(),
            failure,
            asked,
            demands: Vec::new(),
        })
    }

    fn run(&mut self, handle: &Handle, stop: &CancellationToken) {
        loop {
            match self.turn(handle, stop) {
                Ok(true) => *self.failure.lock() = None,
                Ok(false) => return,
                Err(error) => {
                    let why = error.to_string();
                    tracing::error!(%why, "the sink does not get on");
                    *self.failure.lock() = Some(why);
                    if matches!(error, Error::Missing(_)) || stop.is_cancelled() {
                        handle.block_on(stop.cancelled());
                        return;
                    }
                    std::thread::sleep(BACKOFF);
                }
            }
        }
    }

    /// Reads what there is and passes it on; whether to go on.
    fn turn(&mut self, handle: &Handle, stop: &CancellationToken) -> Result<bool, Error> {
        let mut read = 0;
        // Room for one chunk beside the one that is being written; beyond, the log keeps it.
        if self.chunk.rows < 2 * self.sink.options.commit_rows {
            for at in 0..self.cursors.len() {
                read += self.read(at)?;
            }
        }
        self.meet_demands()?;
        if self.columns.len() >= BATCH_ROWS || self.flushed.elapsed() >= self.sink.options.flush_every {
            self.flush()?;
        }
        self.collect()?;
        let stopping = stop.is_cancelled();
        let due = self.chunk.rows >= self.sink.options.commit_rows
            || self.chunk.since.is_some_and(|since| since.elapsed() >= self.sink.options.commit_every)
            || (stopping && read == 0 && self.chunk.rows + self.columns.len() > 0);
        if due && self.writing.is_none() {
            self.flush()?;
            self.write(handle);
        }
        if read == 0 {
            if stopping && self.writing.is_none() && self.chunk.rows == 0 && self.columns.is_empty() {
                self.sink.projections.flush(true)?;
                return Ok(false);
            }
            self.wait(handle);
        }
        Ok(true)
    }

    fn read(&mut self, at: usize) -> Result<usize, Error> {
        let cursor = &mut self.cursors[at];
        let (log, partition) = (self.sink.log.clone(), cursor.partition);
        let mut count = 0;
        for (offset, event) in decode::<Event>(&*log, Topic::Events, partition, cursor.next)? {
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
                self.chunk.events.entry(partition).or_insert((event.seq, 0)).1 = event.seq;
                cursor.archived = event.seq + 1;
            }
            // Last, so that what failed is read again.
            cursor.next = event.seq + 1;
            count += 1;
        }
        for (offset, attempt) in decode::<Attempt>(&*log, Topic::Attempts, partition, cursor.attempts)? {
            self.sink.projections.add_attempt(partition, offset, &attempt);
            cursor.attempts = offset + 1;
            count += 1;
        }
        for (offset, letter) in decode::<DeadLetter>(&*log, Topic::DeadLetter, partition, cursor.letters)? {
            self.sink.projections.add_dead_letter(&letter);
            cursor.letters = offset + 1;
            count += 1;
        }
        if count > 0 {
            self.chunk.since.get_or_insert_with(Instant::now);
        }
        Ok(count)
    }

    /// Lets readers see what was read.
    fn flush(&mut self) -> Result<(), Error> {
        self.flushed = Instant::now();
        if !self.columns.is_empty() {
            let batch = self.columns.finish()?;
            self.chunk.rows += batch.num_rows();
            self.chunk.batches.push(batch);
            self.show_tail();
        }
        self.sink.projections.flush(false)
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
            self.flush()?;
            for demand in met {
                let _ = demand.done.send(());
            }
        }
        Ok(())
    }

    fn tail(&self) -> Vec<RecordBatch> {
        let writing = self.writing.iter().flat_map(|(chunk, _)| &chunk.batches);
        writing.chain(&self.chunk.batches).cloned().collect()
    }

    fn show_tail(&self) {
        let tail = self.tail();
        gauge!("sendtrail_tail_rows").set(tail.iter().map(RecordBatch::num_rows).sum::<usize>() as f64);
        self.sink.cell.update(|view| ArchiveView { tail, ..view.clone() });
    }

    /// Begins to write the chunk beside the reading that goes on.
    fn write(&mut self, handle: &Handle) {
        let chunk = Arc::new(std::mem::take(&mut self.chunk));
        let (done, wait) = oneshot::channel();
        let (table, writing) = (self.sink.table.clone(), chunk.clone());
        handle.spawn(async move {
            // Whoever waits knows what to do with either outcome.
            let _ = done.send(commit(table, writing).await);
        });
        self.writing = Some((chunk, wait));
    }

    /// Ends the writing of a chunk, if it has ended.
    fn collect(&mut self) -> Result<(), Error> {
        let Some((chunk, wait)) = &mut self.writing else { return Ok(()) };
        let outcome = match wait.try_recv() {
            Err(oneshot::error::TryRecvError::Empty) => return Ok(()),
            Err(oneshot::error::TryRecvError::Closed) => Err(Error::Missing("the archive's writer ended".into())),
            Ok(outcome) => outcome,
        };
        let chunk = chunk.clone();
        self.writing = None;
        match outcome {
            Ok(table) => {
                let tail = self.tail();
                let (version, files) = (table.version(), Arc::new(table.files()));
                self.sink.cell.update(|view| ArchiveView { version, files, tail, ..view.clone() });
            }
            Err(error) => {
                // Back in front of what was read since.
                let rest = std::mem::take(&mut self.chunk);
                let mut events = chunk.events.clone();
                for (partition, (first, last)) in rest.events {
                    events.entry(partition).or_insert((first, last)).1 = last;
                }
                let batches = chunk.batches.iter().cloned().chain(rest.batches).collect();
                self.chunk = Chunk { batches, rows: chunk.rows + rest.rows, events, since: chunk.since };
                return Err(error);
            }
        }
        // The sums of what may now be trimmed must be durable too.
        self.sink.projections.flush(true)?;
        let passed = |reader, topic, partition, next| {
            self.sink.retention.passed(reader, TopicPartition::new(topic, partition), next);
        };
        for (partition, (_, last)) in &chunk.events {
            passed(Reader::Archive, Topic::Events, *partition, last + 1);
        }
        for cursor in &self.cursors {
            passed(Reader::Projections, Topic::Attempts, cursor.partition, cursor.attempts);
            passed(Reader::DeadLetters, Topic::DeadLetter, cursor.partition, cursor.letters);
        }
        Ok(())
    }

    /// Until there is something to read, or to flush.
    fn wait(&mut self, handle: &Handle) {
        let nap = if self.columns.is_empty() && self.writing.is_none() {
            Duration::from_millis(200)
        } else {
            Duration::from_millis(20)
        };
        let full = self.chunk.rows >= 2 * self.sink.options.commit_rows;
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

/// The records of a piece of a partition, with their offsets.
fn decode<W: Wire>(log: &dyn EventLog, topic: Topic, partition: u32, from: u64) -> Result<Vec<(u64, W)>, Error> {
    let batches = match log.read(TopicPartition::new(topic, partition), from, READ_BYTES) {
        Ok(batches) => batches,
        Err(error @ sendtrail_eventlog::Error::Trimmed { .. }) => {
            let how = "stop the server and run 'sendtrail rebuild-projections'";
            return Err(Error::Missing(format!("{error}; {how}")));
        }
        Err(error) => return Err(error.into()),
    };
    let mut records = Vec::new();
    for record in batches.iter().flat_map(|batch| batch.records(from)) {
        records.push((record.offset, codec::decode(&record.value)?));
    }
    Ok(records)
}

/// Writes a chunk into files and commits them.
async fn commit(table: Arc<Mutex<Table>>, chunk: Arc<Chunk>) -> Committed {
    let begun = Instant::now();
    let root = table.lock().await.root().to_owned();
    let files = if chunk.rows == 0 {
        Vec::new()
    } else {
        let writing = chunk.clone();
        let written = tokio::task::spawn_blocking(move || write_files(&root, &fresh_name(), &writing.batches)).await;
        written
            .map_err(|cause| Error::Io { what: "write archive files".into(), cause: std::io::Error::other(cause) })??
    };
    let mut table = table.lock_owned().await;
    if files.is_empty() {
        return Ok(table);
    }
    table.append(&files, &chunk.events).await?;
    counter!("sendtrail_archived_events_total").increment(chunk.rows as u64);
    histogram!("sendtrail_archive_commit_seconds").record(begun.elapsed().as_secs_f64());
    tracing::debug!(rows = chunk.rows, files = files.len(), version = table.version(), "archived");
    Ok(table)
}

/// Makes the sums anew from the archive. For a server that is stopped: afterwards the sums are those of the files, and
/// the log has the rest.
///
/// # Errors
/// [`Error`]; run it again then.
pub async fn rebuild_projections(table: &Table, projections: &mut Projections, partitions: u32) -> Result<u64, Error> {
    projections.clear_rollups(partitions)?;
    let mut rows = 0;
    for file in table.files() {
        for batch in read_file(table.root(), &file)? {
            for event in sendtrail_schemas::columns::read_events(&batch?)? {
                projections.add_sums(&event)?;
                rows += 1;
            }
        }
        projections.flush(true)?;
    }
    for partition in 0..partitions {
        projections.set_event_mark(partition, table.mark(partition).await?);
    }
    projections.flush(true)?;
    Ok(rows)
}
