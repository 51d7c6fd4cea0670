//! The log in a local folder: checksummed segments, one write and one fsync for all that was appended meanwhile.
//!
//! All topics and partitions share the segments, so that a group commit costs one fsync however many of them it
//! touches. A segment is deleted once every partition's readers have passed it.

mod committer;
mod frame;
mod index;
mod segment;

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use parking_lot::{Condvar, Mutex, RwLock};
use sendtrail_schemas::topic::{Topic, TopicPartition};
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

use crate::batch::{Batch, StoredBatch};
use crate::{Error, EventLog, Status};
use committer::Committer;
use frame::MAX_PAYLOAD;
use index::Index;
use segment::{Segment, list};

pub(crate) use segment::{io, sync_folder};

/// How the log is kept. `partitions` and `simulated` are fixed when it is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// Partitions of every topic, at least 1.
    pub partitions: u32,
    /// Whether records carry their own time.
    pub simulated: bool,
    /// Bytes after which a new segment is begun.
    pub segment_bytes: u64,
    /// Time after which one is begun, so that what everybody has read does not stay for want of more.
    pub segment_age: Duration,
    /// Bytes of the newest batches kept in memory for readers close behind.
    pub cache_bytes: usize,
    /// Bytes that may wait to be written; intake beyond is refused.
    pub queue_bytes: u64,
    /// Bytes that may be kept; the status tells how close it is.
    pub disk_budget: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            partitions: 4,
            simulated: false,
            segment_bytes: 64 << 20,
            segment_age: Duration::from_secs(24 * 3_600),
            cache_bytes: 64 << 20,
            queue_bytes: 64 << 20,
            disk_budget: 20 << 30,
        }
    }
}

/// What is fixed when a log is made, in `log.json`.
#[derive(Serialize, Deserialize, PartialEq, Eq, Debug)]
struct Made {
    format: u32,
    partitions: u32,
    simulated: bool,
}

const FORMAT: u32 = 1;
/// How long the lock of a folder is waited for.
const LET_GO_WITHIN: Duration = Duration::from_secs(1);

/// See the module.
pub struct EmbeddedLog {
    shared: Arc<Shared>,
    committer: Mutex<Option<std::thread::JoinHandle<()>>>,
    assignments: watch::Sender<Vec<u32>>,
    _lock: File,
}

struct Shared {
    options: Options,
    queue: Mutex<Queue>,
    work: Condvar,
    index: RwLock<Index>,
    ends: HashMap<TopicPartition, watch::Sender<u64>>,
}

#[derive(Default)]
struct Queue {
    pending: Vec<Pending>,
    bytes: u64,
    closed: bool,
    failed: Option<String>,
}

struct Pending {
    to: TopicPartition,
    batch: Batch,
    done: oneshot::Sender<Result<u64, Error>>,
}

impl EmbeddedLog {
    /// Opens the log of a folder, or makes one.
    ///
    /// # Errors
    /// [`Error::Settings`] when it was made with other settings or is in use; [`Error::Corrupt`] when what was durable
    /// does not read back.
    pub fn open(folder: &Path, options: Options) -> Result<Self, Error> {
        fs::create_dir_all(folder).map_err(io(format!("create {}", folder.display())))?;
        let lock = lock(folder)?;
        check_made(folder, &options)?;
        let (index, last) = recover(folder)?;
        let ends = Topic::ALL
            .into_iter()
            .flat_map(|topic| (0..options.partitions).map(move |partition| TopicPartition { topic, partition }))
            .map(|of| (of, watch::Sender::new(index.next(of))))
            .collect();
        let (assignments, _) = watch::channel((0..options.partitions).collect());
        let shared = Arc::new(Shared {
            options,
            queue: Mutex::default(),
            work: Condvar::new(),
            index: RwLock::new(index),
            ends,
        });
        let committer = Committer::new(shared.clone(), folder.to_owned(), last);
        let committer = std::thread::Builder::new()
            .name("log".into())
            .spawn(move || committer.run())
            .map_err(io("start the log's thread"))?;
        Ok(Self { shared, committer: Mutex::new(Some(committer)), assignments, _lock: lock })
    }

    /// Writes what is queued and refuses more.
    pub fn close(&self) {
        self.shared.queue.lock().closed = true;
        self.shared.work.notify_all();
        if let Some(committer) = self.committer.lock().take() {
            // It ends by itself; a panic in it was logged by the panic hook.
            let _ = committer.join();
        }
    }
}

impl Drop for EmbeddedLog {
    fn drop(&mut self) {
        self.close();
    }
}

impl EventLog for EmbeddedLog {
    fn append(&self, to: TopicPartition, batch: Batch) -> BoxFuture<'static, Result<u64, Error>> {
        // Queued here and now, so that the order of calls is the order of the log.
        let queued = self.shared.enqueue(to, batch);
        Box::pin(async move {
            let closed = || Error::Failed("the log is closed".into());
            queued?.await.unwrap_or_else(|_| Err(closed()))
        })
    }

    fn read(&self, of: TopicPartition, from: u64, max_bytes: usize) -> Result<Vec<StoredBatch>, Error> {
        let planned = self.shared.index.read().plan(of, from, max_bytes)?;
        planned.fetch()
    }

    fn end(&self, of: TopicPartition) -> watch::Receiver<u64> {
        match self.shared.ends.get(&of) {
            Some(end) => end.subscribe(),
            // A partition that does not exist never grows.
            None => watch::channel(0).1,
        }
    }

    fn trim(&self, of: TopicPartition, before: u64) {
        let dropped = self.shared.index.write().trim(of, before);
        delete(&dropped);
    }

    fn status(&self) -> Status {
        let (queued_bytes, failed) = {
            let queue = self.shared.queue.lock();
            (queue.bytes, queue.failed.clone())
        };
        let disk_bytes = self.shared.index.read().bytes();
        Status { queued_bytes, disk_bytes, disk_budget: self.shared.options.disk_budget, failed }
    }

    fn assignments(&self) -> watch::Receiver<Vec<u32>> {
        self.assignments.subscribe()
    }
}

impl Shared {
    fn enqueue(&self, to: TopicPartition, batch: Batch) -> Result<oneshot::Receiver<Result<u64, Error>>, Error> {
        if !self.ends.contains_key(&to) {
            return Err(Error::Settings(format!(
                "{to} does not exist: there are {} partitions",
                self.options.partitions
            )));
        }
        let (done, wait) = oneshot::channel();
        let bytes = batch.bytes() as u64;
        if batch.bytes() > MAX_PAYLOAD {
            return Err(Error::Write(format!("a batch of {bytes} bytes is more than a frame holds")));
        }
        let mut queue = self.queue.lock();
        if let Some(why) = &queue.failed {
            return Err(Error::Failed(why.clone()));
        }
        if queue.closed {
            return Err(Error::Failed("the log is closed".into()));
        }
        if to.topic == Topic::Intake && queue.bytes > 0 && queue.bytes + bytes > self.options.queue_bytes {
            return Err(Error::Full);
        }
        queue.bytes += bytes;
        queue.pending.push(Pending { to, batch, done });
        drop(queue);
        self.work.notify_one();
        Ok(wait)
    }
}

fn delete(segments: &[PathBuf]) {
    for path in segments {
        // A segment that stays by accident is read again at the next start, and dropped again.
        if let Err(cause) = fs::remove_file(path) {
            tracing::warn!(segment = %path.display(), %cause, "a trimmed segment could not be deleted");
        }
    }
}

/// Locks the log of a folder, as long as the file is held.
///
/// # Errors
/// [`Error::Settings`] when another process holds it.
pub fn lock(folder: &Path) -> Result<File, Error> {
    let path = folder.join("LOCK");
    let file = File::create(&path).map_err(io(format!("create {}", path.display())))?;
    let until = Instant::now() + LET_GO_WITHIN;
    // A process that whoever had it has just begun to start has a copy until it runs its own program.
    while let Err(error) = file.try_lock() {
        if Instant::now() >= until {
            return Err(Error::Settings(format!("{} is in use by another process: {error}", folder.display())));
        }
        std::thread::sleep(LET_GO_WITHIN / 20);
    }
    Ok(file)
}

fn check_made(folder: &Path, options: &Options) -> Result<(), Error> {
    let path = folder.join("log.json");
    let wanted = Made { format: FORMAT, partitions: options.partitions, simulated: options.simulated };
    if let Ok(text) = fs::read_to_string(&path) {
        let malformed = |cause| Error::Settings(format!("{}: {cause}", path.display()));
        let made: Made = serde_json::from_str(&text).map_err(malformed)?;
        if made == wanted {
            return Ok(());
        }
        return Err(Error::Settings(format!(
            "{} was made as {made:?} and is to be opened as {wanted:?}; neither the number of partitions nor the kind \
             of time can change, for accounts and windows depend on them",
            folder.display()
        )));
    }
    if !list(folder)?.is_empty() {
        return Err(Error::Settings(format!("{} has segments but no log.json", folder.display())));
    }
    if options.partitions == 0 || options.partitions > u32::from(u16::MAX) {
        return Err(Error::Settings("a log has 1 to 65535 partitions".into()));
    }
    write_durably(&path, serde_json::to_string_pretty(&wanted).unwrap_or_default().as_bytes())
}

/// Writes a small file whole or not at all.
fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let temporary = path.with_extension("tmp");
    let write = || {
        fs::write(&temporary, bytes)?;
        File::open(&temporary)?.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(io(format!("write {}", path.display())))?;
    path.parent().map_or(Ok(()), sync_folder)
}

/// The index of what is there, and the segment to go on with.
fn recover(folder: &Path) -> Result<(Index, Option<Segment>), Error> {
    let mut index = Index::default();
    let mut last = None;
    let found = list(folder)?;
    let count = found.len();
    for (at, (number, path)) in found.into_iter().enumerate() {
        let is_last = at + 1 == count;
        let Some((mut segment, marks)) = Segment::open(number, path.clone())? else {
            if is_last && !segment::holds_frames(&path)? {
                // The crash came before the first frame could be written.
                remove(&path)?;
                break;
            }
            let why = "the header does not read back".into();
            return Err(Error::Corrupt { file: path.display().to_string(), at: 0, why });
        };
        let frames = if is_last { segment.recover()? } else { segment.frames()? };
        index.add_segment(number, segment.reader()?, segment.path.clone(), segment.length(), marks);
        frames.into_iter().for_each(|placed| index.add(number, placed, None, 0));
        last = Some(segment);
    }
    Ok((index, last))
}

fn remove(path: &PathBuf) -> Result<(), Error> {
    fs::remove_file(path).map_err(io(format!("remove {}", path.display())))
}

#[cfg(test)]
mod tests;
