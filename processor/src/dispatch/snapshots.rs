//! Books in an object store, so that another server may go on with what waits: retries, failures, replays.
//!
//! A book goes as a whole, and seldom: what came after its marks is folded again. What was attempted since is in the log.
//! ◆ Once written, these are read by every later program.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use prost::Message;
use sendtrail_eventlog::objects::Place;
use sendtrail_schemas::secret::hex;
use sha2::{Digest, Sha256};
use tokio::task::JoinHandle;

use super::book::{Book, Entry, Marks};
use crate::snapshots::mark_in;
use crate::{Error, blocking};

/// What a file begins with; the last byte is the format's version.
const MAGIC: &[u8; 8] = b"STBOOK\0\x01";
/// Level of compression: speed matters more than size.
const LEVEL: i32 = 1;
/// Books of a partition that are kept.
const KEPT: usize = 2;
/// How many times as long as one takes is waited until the next.
const SELDOM: u32 = 20;
/// How long the end of a server may wait for what is being written, and then for what is left.
const LAST: Duration = Duration::from_secs(10);
/// Entries that are restored together.
const TOGETHER: usize = 1_000;

/// See the module.
pub struct BookSnapshots {
    objects: Arc<dyn ObjectStore>,
    /// How often one is taken of each partition, at most.
    pub every: Duration,
    /// What tells the log that the books are of from others; empty: not known.
    log: String,
}

impl BookSnapshots {
    /// At a place.
    ///
    /// # Errors
    /// [`Error::Archive`] when it cannot be made or read.
    pub fn open(place: &Place, every: Duration) -> Result<Self, Error> {
        Ok(Self { objects: place.open()?, every, log: String::new() })
    }

    /// Those of a log, by what tells it from others: no other's book is restored, should there be one at the same place.
    #[must_use]
    pub fn of(self, log: Option<String>) -> Self {
        Self { log: log.unwrap_or_default(), ..self }
    }

    /// Whether a place has any that are not another log's.
    ///
    /// # Errors
    /// [`Error::Archive`].
    pub async fn are_at(place: &Place, log: Option<String>) -> Result<bool, Error> {
        let log = log.unwrap_or_default();
        let is_ours = |name: &str| marks(name).is_some() && !is_anothers(name, &log);
        let mut listed = place.open()?.list(None);
        while let Some(object) = listed.try_next().await? {
            if object.location.filename().is_some_and(is_ours) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Names of books with their marks, the newest first.
    async fn list(&self, partition: u32) -> Result<Vec<(Marks, Path)>, Error> {
        let listed: Vec<_> = self.objects.list(Some(&folder(partition))).try_collect().await?;
        let named = |path: Path| Some((marks(path.filename()?)?, path));
        let mut found: Vec<_> = listed.into_iter().filter_map(|meta| named(meta.location)).collect();
        found.sort_by_key(|(marks, _)| std::cmp::Reverse(*marks));
        Ok(found)
    }

    /// Brings a book to where another server left it, if that is further; whether it was. Another log's is passed over.
    ///
    /// # Errors
    /// [`Error::Archive`], [`Error::Store`]; [`Error::Snapshot`] when there are some, none of which is what was written, and
    /// nothing is here to go on from.
    pub async fn restore(&self, book: &Book, partition: u32) -> Result<bool, Error> {
        let here = book.marks()?;
        let mut damaged = None;
        for (marks, path) in self.list(partition).await?.into_iter().filter(|(marks, _)| *marks > here) {
            if self.is_anothers(&path) {
                let ours = &self.log;
                tracing::error!(partition, %path, %ours, "a book is of another log: each needs a place of its own");
                continue;
            }
            let bytes = self.objects.get(&path).await?.bytes().await?;
            let to = book.clone();
            match blocking("restore a book", move || put(&to, marks, path.filename().unwrap_or_default(), &bytes)).await
            {
                Ok(entries) => {
                    metrics::counter!("sendtrail_snapshot_restores_total").increment(1);
                    tracing::info!(partition, marks.event, marks.attempt, entries, "the book goes on from a snapshot");
                    return Ok(true);
                }
                Err(error @ Error::Snapshot(_)) => {
                    tracing::error!(partition, %error, "a book cannot be used; the one before is looked at");
                    damaged = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        match damaged {
            Some(error) if here == Marks::default() => Err(error),
            _ => Ok(false),
        }
    }

    /// Whether a book is of another log.
    fn is_anothers(&self, path: &Path) -> bool {
        path.filename().is_some_and(|name| is_anothers(name, &self.log))
    }

    /// Writes what a book has now, and deletes what there is beyond those that are kept, but another log's; its bytes.
    ///
    /// # Errors
    /// [`Error::Archive`], [`Error::Store`].
    pub async fn take(&self, book: Book, partition: u32) -> Result<usize, Error> {
        let log = self.log.clone();
        let (name, bytes) = blocking("gather a book", move || gather(&book, &log)).await?;
        let size = bytes.len();
        self.objects.put(&folder(partition).join(name), bytes.into()).await?;
        metrics::counter!("sendtrail_snapshot_bytes_total").increment(size as u64);
        let mut listed = self.list(partition).await?;
        listed.retain(|(_, path)| !self.is_anothers(path));
        for (_, path) in listed.iter().skip(KEPT) {
            self.objects.delete(path).await?;
        }
        Ok(size)
    }
}

fn folder(partition: u32) -> Path {
    Path::from(format!("partition-{partition:05}"))
}

/// The marks in a name.
fn marks(name: &str) -> Option<Marks> {
    let parts: Vec<&str> = name.strip_prefix("book-")?.split('-').collect();
    let ([event, attempt, checksum] | [event, attempt, _, checksum]) = parts[..] else { return None };
    // Others may be on their way.
    (checksum.len() == 32).then_some(Marks { event: event.parse().ok()?, attempt: attempt.parse().ok()? })
}

/// What names have of a log: as long as a checksum, which is what earlier programs look for there.
fn mark(log: &str) -> String {
    checksum(log.as_bytes())
}

/// Whether a book is of another log, by its name. One that does not say whose it is was written by an earlier program.
fn is_anothers(name: &str, log: &str) -> bool {
    !log.is_empty() && mark_in(name).is_some_and(|its| its != mark(log))
}

/// The first half of a SHA-256, in hexadecimal.
fn checksum(bytes: &[u8]) -> String {
    hex(Sha256::digest(bytes).get(..16).unwrap_or_default())
}

/// A book as a file: its name, by marks, so that the newest is the greatest, by log, and by checksum.
fn gather(book: &Book, log: &str) -> Result<(String, Vec<u8>), Error> {
    let io = |cause| Error::Io { what: "compress a book".into(), cause };
    let mut file = zstd::stream::write::Encoder::new(MAGIC.to_vec(), LEVEL).map_err(io)?;
    let marks = book.export(|entry| file.write_all(&entry.encode_length_delimited_to_vec()).map_err(io))?;
    let bytes = file.finish().map_err(io)?;
    let mark = if log.is_empty() { String::new() } else { format!("{}-", mark(log)) };
    Ok((format!("book-{:020}-{:020}-{mark}{}", marks.event, marks.attempt, checksum(&bytes)), bytes))
}

/// Puts what a file has in the place of what a book has; how many entries.
fn put(book: &Book, marks: Marks, name: &str, bytes: &[u8]) -> Result<usize, Error> {
    let bad = |why: &str| Error::Snapshot(format!("{name}: {why}"));
    if name.rsplit('-').next() != Some(&checksum(bytes)) {
        return Err(bad("it is not what was written"));
    }
    let packed = bytes.strip_prefix(MAGIC).ok_or_else(|| bad("this program does not know its format"))?;
    let mut file =
        std::io::BufReader::new(zstd::stream::read::Decoder::new(packed).map_err(|_| bad("not compressed"))?);
    book.clear()?;
    let (mut entries, mut count) = (Vec::with_capacity(TOGETHER), 0);
    while let Some(entry) = next(&mut file).map_err(|cause| bad(&cause.to_string()))? {
        entries.push(entry);
        count += 1;
        if entries.len() == TOGETHER {
            book.import(&std::mem::take(&mut entries))?;
        }
    }
    book.import(&entries)?;
    // Last comes what makes it a book.
    book.checkpoint(marks)?;
    Ok(count)
}

/// The next entry of a stream.
fn next(file: &mut impl std::io::BufRead) -> std::io::Result<Option<Entry>> {
    if file.fill_buf()?.is_empty() {
        return Ok(None);
    }
    let mut head = [0u8; 10];
    for at in 0..head.len() {
        file.read_exact(&mut head[at..=at])?;
        if head[at] & 0x80 == 0 {
            break;
        }
    }
    let length = prost::decode_length_delimiter(&head[..]).map_err(std::io::Error::other)?;
    let mut bytes = vec![0; length];
    file.read_exact(&mut bytes)?;
    Entry::decode(&bytes[..]).map(Some).map_err(std::io::Error::other)
}

/// Takes the snapshots of one partition's book.
pub(super) struct Keeper {
    snapshots: Arc<BookSnapshots>,
    partition: u32,
    /// How far the dispatcher was at the last one, and how much there was to say besides.
    last: Option<(u64, u64)>,
    more: bool,
    next_at: Instant,
    writing: Option<(Instant, JoinHandle<Result<usize, Error>>)>,
}

impl Keeper {
    /// Begins where another server ended, if that is further than the book.
    ///
    /// # Errors
    /// Those of [`BookSnapshots::restore`], if the book has nothing to go on from.
    pub async fn begin(snapshots: Arc<BookSnapshots>, book: &Book, partition: u32) -> Result<Self, Error> {
        match snapshots.restore(book, partition).await {
            Ok(_) => {}
            Err(error) if book.marks()? != Marks::default() => {
                tracing::warn!(partition, %error, "the book goes on from what is here");
            }
            Err(error) => return Err(error),
        }
        Ok(Self { snapshots, partition, last: None, more: false, next_at: Instant::now(), writing: None })
    }

    /// Takes one when it is time and there is something new; to be called after a checkpoint.
    pub async fn look(&mut self, book: &Book, reached: (u64, u64), more: bool) {
        self.more |= more;
        self.collect(false).await;
        if self.writing.is_none() && Instant::now() >= self.next_at && (self.more || self.last != Some(reached)) {
            self.take(book, reached);
        }
    }

    fn take(&mut self, book: &Book, reached: (u64, u64)) {
        (self.last, self.more) = (Some(reached), false);
        let (snapshots, book, partition) = (self.snapshots.clone(), book.clone(), self.partition);
        let task = tokio::spawn(async move { snapshots.take(book, partition).await });
        self.writing = Some((Instant::now(), task));
    }

    /// Takes what came of the last one, if it is over, or waits for it.
    async fn collect(&mut self, wait: bool) {
        let Some((begun, task)) = self.writing.take_if(|(_, task)| wait || task.is_finished()) else { return };
        let written = task.await.map_err(super::attempt::joining).flatten();
        // A large book goes more seldom.
        self.next_at = Instant::now() + self.snapshots.every.max(begun.elapsed() * SELDOM);
        match written {
            Ok(bytes) => {
                metrics::histogram!("sendtrail_snapshot_seconds").record(begun.elapsed().as_secs_f64());
                tracing::debug!(partition = self.partition, bytes, "the book is kept");
            }
            Err(error) => {
                tracing::warn!(partition = self.partition, %error, "the book could not be kept; it is tried again");
                self.more = true;
            }
        }
    }

    /// Writes what is left, so that whoever comes next begins here; not for long.
    pub async fn finish(&mut self, book: &Book, reached: (u64, u64)) {
        let rest = async {
            self.collect(true).await;
            if self.more || self.last != Some(reached) {
                self.take(book, reached);
                self.collect(true).await;
            }
        };
        if tokio::time::timeout(LAST, rest).await.is_err() {
            tracing::warn!("a book is not kept in time; whoever takes over begins earlier");
        }
    }
}

#[cfg(test)]
mod tests;
