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
}

impl BookSnapshots {
    /// At a place.
    ///
    /// # Errors
    /// [`Error::Archive`] when it cannot be made or read.
    pub fn open(place: &Place, every: Duration) -> Result<Self, Error> {
        Ok(Self { objects: place.open()?, every })
    }

    /// Whether a place has any.
    ///
    /// # Errors
    /// [`Error::Archive`].
    pub async fn are_at(place: &Place) -> Result<bool, Error> {
        let named = |path: Path| path.filename().and_then(marks).is_some();
        let mut listed = place.open()?.list(None).map_ok(|object| named(object.location));
        while let Some(is_one) = listed.try_next().await? {
            if is_one {
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

    /// Brings a book to where another server left it, if that is further; whether it was.
    ///
    /// # Errors
    /// [`Error::Archive`], [`Error::Store`]; [`Error::Snapshot`] when there are some, none of which is what was written, and
    /// nothing is here to go on from.
    pub async fn restore(&self, book: &Book, partition: u32) -> Result<bool, Error> {
        let here = book.marks()?;
        let mut damaged = None;
        for (marks, path) in self.list(partition).await?.into_iter().filter(|(marks, _)| *marks > here) {
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

    /// Writes what a book has now; its bytes.
    ///
    /// # Errors
    /// [`Error::Archive`], [`Error::Store`].
    pub async fn take(&self, book: Book, partition: u32) -> Result<usize, Error> {
        let (name, bytes) = blocking("gather a book", move || gather(&book)).await?;
        let size = bytes.len();
        self.objects.put(&folder(partition).join(name), bytes.into()).await?;
        metrics::counter!("sendtrail_snapshot_bytes_total").increment(size as u64);
        for (_, path) in self.list(partition).await?.into_iter().skip(KEPT) {
            self.objects.delete(&path).await?;
        }
        Ok(size)
    }
}

fn folder(partition: u32) -> Path {
    Path::from(format!("partition-{partition:05}"))
}

/// The marks in a name.
fn marks(name: &str) -> Option<Marks> {
    let mut parts = name.strip_prefix("book-")?.split('-');
    let (event, attempt) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    // Others may be on their way.
    parts.next().filter(|checksum| checksum.len() == 32)?;
    Some(Marks { event, attempt })
}

/// The first half of a SHA-256, in hexadecimal.
fn checksum(bytes: &[u8]) -> String {
    hex(Sha256::digest(bytes).get(..16).unwrap_or_default())
}

/// A book as a file: its name, by marks, so that the newest is the greatest, and by checksum.
fn gather(book: &Book) -> Result<(String, Vec<u8>), Error> {
    let io = |cause| Error::Io { what: "compress a book".into(), cause };
    let mut file = zstd::stream::write::Encoder::new(MAGIC.to_vec(), LEVEL).map_err(io)?;
    let marks = book.export(|entry| file.write_all(&entry.encode_length_delimited_to_vec()).map_err(io))?;
    let bytes = file.finish().map_err(io)?;
    Ok((format!("book-{:020}-{:020}-{}", marks.event, marks.attempt, checksum(&bytes)), bytes))
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
mod tests {
    use fjall::Database;
    use sendtrail_schemas::ids::{DestinationId, ReplayId};
    use tempfile::TempDir;
    use uuid::Uuid;

    use super::super::book::{DeliveryKey, Reached, Standing, Waiting, Waits};
    use super::*;

    struct Server {
        _folder: TempDir,
        book: Book,
    }

    fn server() -> Server {
        let folder = TempDir::new().unwrap();
        let database = Database::builder(folder.path()).open().unwrap();
        Server { book: Book::open(&database, 3).unwrap(), _folder: folder }
    }

    fn fill(book: &Book, events: std::ops::Range<u64>) {
        for seq in events {
            let key = DeliveryKey { seq, destination: DestinationId(Uuid::from_u128(u128::from(seq % 3))) };
            let waits = [Waits::Timer, Waits::Backlog, Waits::Held, Waits::Replay][seq as usize % 4];
            let body = vec![seq as u8; 700].into();
            let waiting = Waiting {
                body,
                due_at: seq as i64,
                waits: waits as i32,
                in_order_of: 1 + seq % 2,
                ..Waiting::default()
            };
            book.put(key, &waiting).unwrap();
        }
    }

    #[tokio::test]
    async fn another_server_has_what_the_first_had() {
        let folder = TempDir::new().unwrap();
        let snapshots = BookSnapshots::open(&folder.path().into(), Duration::ZERO).unwrap();
        assert!(!BookSnapshots::are_at(&folder.path().into()).await.unwrap());
        let (one, other) = (server(), server());
        assert!(!snapshots.restore(&other.book, 3).await.unwrap(), "there is none");
        fill(&one.book, 0..2_500);
        let mut standing = Standing { account_id: vec![1], ..Standing::default() };
        standing.breaker.failures = 4;
        one.book.put_standing(DestinationId(Uuid::from_u128(1)), &standing).unwrap();
        let reached = Reached { cursor: "there".into(), counts: None, is_done: false };
        one.book.put_reached(ReplayId(Uuid::from_u128(5)), &reached).unwrap();
        one.book.checkpoint(Marks { event: 2_500, attempt: 9 }).unwrap();
        snapshots.take(one.book.clone(), 3).await.unwrap();
        assert!(BookSnapshots::are_at(&folder.path().into()).await.unwrap());

        // What is here of some time ago is given up.
        fill(&other.book, 7_000..7_100);
        other.book.checkpoint(Marks { event: 2_500, attempt: 8 }).unwrap();
        assert!(snapshots.restore(&other.book, 3).await.unwrap());
        assert_eq!(other.book.dump(), one.book.dump());
        assert!(!snapshots.restore(&other.book, 3).await.unwrap(), "it is as far");
        assert!(!snapshots.restore(&server().book, 2).await.unwrap(), "of another partition");
        // Nor is one that is further.
        other.book.checkpoint(Marks { event: 2_600, attempt: 9 }).unwrap();
        assert!(!snapshots.restore(&other.book, 3).await.unwrap());
    }

    #[tokio::test]
    async fn a_damaged_one_is_passed_over_and_two_are_kept() {
        let folder = TempDir::new().unwrap();
        let snapshots = BookSnapshots::open(&folder.path().into(), Duration::ZERO).unwrap();
        let one = server();
        for round in 1..=4u64 {
            fill(&one.book, round * 10..round * 10 + 5);
            one.book.checkpoint(Marks { event: round * 10 + 5, attempt: round }).unwrap();
            snapshots.take(one.book.clone(), 3).await.unwrap();
        }
        let mut files: Vec<_> = std::fs::read_dir(folder.path().join("partition-00003"))
            .unwrap()
            .map(|file| file.unwrap().path())
            .collect();
        files.sort();
        assert_eq!(files.len(), KEPT);
        let damage = |file: &std::path::Path| {
            let mut bytes = std::fs::read(file).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(file, bytes).unwrap();
        };
        damage(&files[1]);
        let other = server();
        assert!(snapshots.restore(&other.book, 3).await.unwrap());
        assert_eq!(other.book.marks().unwrap(), Marks { event: 35, attempt: 3 });
        damage(&files[0]);
        let nothing = server();
        let refused = snapshots.restore(&nothing.book, 3).await.unwrap_err();
        assert!(refused.to_string().contains("not what was written"), "{refused}");
        assert!(!nothing.book.has_deliveries());
        // Who has a book goes on with it.
        assert!(!snapshots.restore(&other.book, 3).await.unwrap());
    }

    #[tokio::test]
    async fn one_is_taken_when_there_is_something_new() {
        let folder = TempDir::new().unwrap();
        let snapshots = Arc::new(BookSnapshots::open(&folder.path().into(), Duration::ZERO).unwrap());
        let one = server();
        let mut keeper = Keeper::begin(snapshots.clone(), &one.book, 3).await.unwrap();
        for (reached, more, is_taken) in [
            ((0, 0), false, true),
            ((0, 0), false, false),
            ((0, 1), false, true),
            ((0, 1), true, true),
            ((0, 1), false, false),
        ] {
            keeper.next_at = Instant::now();
            keeper.look(&one.book, reached, more).await;
            assert_eq!(keeper.writing.is_some(), is_taken, "{reached:?} {more}");
            keeper.collect(true).await;
        }
        one.book.checkpoint(Marks { event: 7, attempt: 7 }).unwrap();
        keeper.finish(&one.book, (7, 7)).await;
        let other = server();
        assert!(snapshots.restore(&other.book, 3).await.unwrap());
        assert_eq!(other.book.marks().unwrap(), Marks { event: 7, attempt: 7 });
    }
}
