//! Rows on their way into the files of one table: gathered, written beside the reading that goes on, committed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use metrics::{counter, histogram};
use sendtrail_eventlog::failpoint::reach;
use sendtrail_schemas::archive::{ArchiveCell, ArchiveView, TailBatch};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, OwnedMutexGuard, oneshot};

use crate::archive::{Table, fresh_name, write_files};
use crate::{Error, blocking};

/// How long a table is left alone after a failure; the other's rows are filed meanwhile.
const BACKOFF: Duration = Duration::from_secs(1);

/// The table after a commit, locked until readers see it: nobody may show its files before the tail is cut.
type Committed = Result<OwnedMutexGuard<Table>, Error>;

/// See the module.
pub struct Filer {
    table: Arc<Mutex<Table>>,
    cell: Arc<ArchiveCell>,
    chunk: Chunk,
    /// The numbers of the next batch.
    noted: BTreeMap<u32, (u64, u64)>,
    /// The chunk that could not be written. It stays what it is: it may be in the table all the same.
    again: Option<Arc<Chunk>>,
    /// The chunk that is being written, and how that ends.
    writing: Option<(Arc<Chunk>, oneshot::Receiver<Committed>)>,
    /// The number after the last row of each partition that is in a file.
    filed: Arc<BTreeMap<u32, u64>>,
    /// Why the last chunk could not be written, and when to try again.
    trouble: Option<(Error, Instant)>,
}

/// Rows that are written together.
#[derive(Default)]
pub struct Chunk {
    batches: Vec<TailBatch>,
    rows: usize,
    /// The first and the last number of each partition.
    numbers: BTreeMap<u32, (u64, u64)>,
    since: Option<Instant>,
}

impl Filer {
    /// For a table in which each partition is up to a number, and what readers see of it.
    pub fn new(table: Arc<Mutex<Table>>, cell: Arc<ArchiveCell>, filed: BTreeMap<u32, u64>) -> Self {
        Self {
            table,
            cell,
            chunk: Chunk::default(),
            noted: BTreeMap::new(),
            again: None,
            writing: None,
            filed: Arc::new(filed),
            trouble: None,
        }
    }

    /// The number after the last row of a partition that is in a file.
    pub fn filed(&self, partition: u32) -> u64 {
        self.filed.get(&partition).copied().unwrap_or_default()
    }

    /// Notes that something was read, which must be written in time.
    pub fn touch(&mut self) {
        self.chunk.since.get_or_insert_with(Instant::now);
    }

    /// Notes the number of a row that the next batch will hold.
    pub fn note(&mut self, partition: u32, number: u64) {
        self.noted.entry(partition).or_insert((number, 0)).1 = number;
    }

    /// Adds the rows whose numbers were noted, and shows them to readers.
    pub fn add(&mut self, rows: RecordBatch) {
        self.chunk.rows += rows.num_rows();
        let numbers = std::mem::take(&mut self.noted);
        extend(&mut self.chunk.numbers, &numbers);
        self.chunk.batches.push(TailBatch { rows, numbers: Arc::new(numbers) });
        let tail = self.tail();
        self.cell.update(|view| ArchiveView { tail, ..view.clone() });
    }

    /// Shows readers a table's files and what is in none yet, in one step.
    pub fn show(&self, table: &Table) {
        let (root, version, files) = (table.root().to_owned(), table.version(), Arc::new(table.files()));
        let (filed, tail) = (self.filed.clone(), self.tail());
        self.cell.update(|_| ArchiveView { root, version, files, filed, tail });
    }

    /// Rows that are not being written yet.
    pub fn rows(&self) -> usize {
        self.chunk.rows + self.again.as_ref().map_or(0, |chunk| chunk.rows)
    }

    /// Whether nothing is gathered and nothing is being written.
    pub fn is_idle(&self) -> bool {
        self.rows() == 0 && self.writing.is_none()
    }

    /// Whether a chunk is being written.
    pub fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    /// How many rows are in no file yet.
    pub fn tail_rows(&self) -> usize {
        self.rows() + self.writing.as_ref().map_or(0, |(chunk, _)| chunk.rows)
    }

    fn tail(&self) -> Vec<TailBatch> {
        // One that could not be written is taken up before another is begun.
        let before = self.writing.iter().map(|(chunk, _)| chunk).chain(&self.again).flat_map(|chunk| &chunk.batches);
        before.chain(&self.chunk.batches).cloned().collect()
    }

    /// Why the last chunk could not be written.
    pub fn trouble(&self) -> Option<&Error> {
        self.trouble.as_ref().map(|(error, _)| error)
    }

    /// The same, when it is no use to try again.
    pub fn end(&mut self, stopping: bool) -> Result<(), Error> {
        match self.trouble.take_if(|(error, _)| stopping || error.is_final()) {
            Some((error, _)) => Err(error),
            None => Ok(()),
        }
    }

    /// Whether what is gathered may be written now: nothing is being written, and the last failure is some time ago.
    pub fn is_ready(&self) -> bool {
        self.writing.is_none() && self.trouble.as_ref().is_none_or(|(_, until)| Instant::now() >= *until)
    }

    /// Whether what is gathered should be written now.
    pub fn is_due(&self, rows: usize, after: Duration) -> bool {
        self.again.is_some()
            || self.chunk.rows >= rows
            || self.chunk.since.is_some_and(|since| since.elapsed() >= after)
    }

    /// Begins to write what could not be written before, or else what is gathered.
    pub fn write(&mut self, handle: &Handle) {
        let chunk = self.again.take().unwrap_or_else(|| Arc::new(std::mem::take(&mut self.chunk)));
        let (done, wait) = oneshot::channel();
        let (table, writing) = (self.table.clone(), chunk.clone());
        handle.spawn(async move {
            // Whoever waits knows what to do with either outcome.
            let _ = done.send(commit(table, writing).await);
        });
        self.writing = Some((chunk, wait));
    }

    /// Ends the writing of a chunk that has ended, and shows readers the table with it; whether there was one. What could
    /// not be written is written again, before what came since, and [`trouble`](Self::trouble) says why.
    pub fn collect(&mut self) -> bool {
        let Some((chunk, wait)) = self.writing.as_mut() else { return false };
        let outcome = match wait.try_recv() {
            Err(oneshot::error::TryRecvError::Empty) => return false,
            Err(oneshot::error::TryRecvError::Closed) => Err(Error::Missing("the archive's writer ended".into())),
            Ok(outcome) => outcome,
        };
        let chunk = chunk.clone();
        self.writing = None;
        match outcome {
            Ok(table) => {
                Arc::make_mut(&mut self.filed)
                    .extend(chunk.numbers.iter().map(|(partition, (_, last))| (*partition, last + 1)));
                self.trouble = None;
                self.show(&table);
                true
            }
            Err(error) => {
                tracing::error!(%error, "rows could not be filed; they are kept, and tried again");
                self.again = Some(chunk);
                self.trouble = Some((error, Instant::now() + BACKOFF));
                false
            }
        }
    }
}

/// Adds numbers that come right after.
fn extend(numbers: &mut BTreeMap<u32, (u64, u64)>, next: &BTreeMap<u32, (u64, u64)>) {
    for (partition, (first, last)) in next {
        numbers.entry(*partition).or_insert((*first, *last)).1 = *last;
    }
}

/// Writes a chunk into files and commits them.
async fn commit(table: Arc<Mutex<Table>>, chunk: Arc<Chunk>) -> Committed {
    let begun = Instant::now();
    let (layout, root) = {
        let table = table.lock().await;
        (table.layout(), table.root().to_owned())
    };
    let files = if chunk.rows == 0 {
        Vec::new()
    } else {
        let writing = chunk.clone();
        let write = move || {
            let batches: Vec<_> = writing.batches.iter().map(|batch| batch.rows.clone()).collect();
            write_files(layout, &root, &fresh_name(), &batches)
        };
        blocking("write archive files", write).await?
    };
    let mut table = table.lock_owned().await;
    if files.is_empty() {
        return Ok(table);
    }
    reach("archive.written");
    table.append(&files, &chunk.numbers).await?;
    reach("archive.committed");
    counter!("sendtrail_archived_rows_total", "table" => layout.name()).increment(chunk.rows as u64);
    histogram!("sendtrail_archive_commit_seconds", "table" => layout.name()).record(begun.elapsed().as_secs_f64());
    tracing::debug!(of = layout.name(), rows = chunk.rows, files = files.len(), version = table.version(), "archived");
    Ok(table)
}
