//! The state of partitions in an object store, so that another server may go on where one ended.
//!
//! ```text
//! checkpoint ─► keys that changed ─► from time to time: their rows, one file ─► manifest: files before + this one
//!                                    now and then: all rows, several files ───► manifest: these
//! start ─► newest manifest that is whole ─► store, then the log from there
//! ```
//!
//! A snapshot at an offset *is* the state at that offset, whoever wrote it, so that two writers cannot harm each other; only
//! what is deleted needs care. One that is damaged is passed over for the one before.

mod format;
mod taker;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use prost::Message;
use sendtrail_eventlog::failpoint::reach;
use sendtrail_eventlog::objects::Place;
use sendtrail_schemas::time::{HOUR, Millis};
use tokio_util::sync::CancellationToken;

use crate::archive::fresh_name;
use crate::core::overlay::StoreKey;
use crate::store::StoreView;
use crate::{Error, Store, Views, blocking};
pub(crate) use format::{Manifest, checksum, mark_in};
use format::{RowFile, Writer};

pub use taker::Taker;

/// What is much, and what is little.
#[derive(Clone, Debug)]
struct Limits {
    /// Bytes of rows in one file.
    file_bytes: usize,
    /// Records that are sooner stepped than a snapshot is read.
    near: u64,
    /// Keys that are remembered; beyond, the next snapshot is of all rows.
    remembered: usize,
    /// How many rows more than the whole state had may come after it, and how many files there may be.
    slack: u64,
    files: usize,
}

const LIMITS: Limits =
    Limits { file_bytes: 64 << 20, near: 100_000, remembered: 4_000_000, slack: 100_000, files: 300 };

/// Manifests that are kept.
const KEPT: usize = 2;
/// What nobody names is deleted when it is older, milliseconds: somebody may be about to name it.
pub(crate) const UNNAMED: i64 = HOUR;

/// Until when something may be read; what is written here is finished in any case.
pub struct Until {
    /// Until this; cancelled also here, when something was not read in time.
    stop: CancellationToken,
    /// How long each object may take: of a large state there are many, and as long as they come it goes on.
    patience: Duration,
}

impl Until {
    /// Until it is stopped, or an object is not read within a time.
    pub fn new(stop: &CancellationToken, patience: Duration) -> Self {
        Self { stop: stop.child_token(), patience }
    }

    /// However long it takes.
    pub fn never() -> Self {
        Self::new(&CancellationToken::new(), Duration::from_secs(10 * 365 * 86_400))
    }

    /// Whether that is past.
    fn is_over(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// What is read, if it comes in time.
    async fn read<T>(&self, reading: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Error::Snapshot("it is not to be read any longer".into())),
            read = reading => read,
            () = tokio::time::sleep(self.patience) => {
                // What hangs is waited for once, not again for whatever else would be read.
                self.stop.cancel();
                Err(Error::Snapshot("it is not read in time".into()))
            }
        }
    }
}

/// See the module.
pub struct Snapshots {
    objects: Arc<dyn ObjectStore>,
    /// How often one is taken of each partition.
    pub every: Duration,
    limits: Limits,
    /// What tells the log that the state is of from others; empty: not known.
    log: String,
}

impl Snapshots {
    /// At a place.
    ///
    /// # Errors
    /// [`Error::Archive`] when it cannot be made or read.
    pub fn open(place: &Place, every: Duration) -> Result<Self, Error> {
        Ok(Self { objects: place.open()?, every, limits: LIMITS, log: String::new() })
    }

    /// Those of a log, by what tells it from others: no other's state is restored, should there be one at the same place.
    #[must_use]
    pub fn of(self, log: Option<String>) -> Self {
        Self { log: log.unwrap_or_default(), ..self }
    }

    /// Brings the store, and the views, to the newest state of a partition that is far ahead of it, or at all ahead if what is
    /// there is too old; never beyond where the log ends. Whether there was one.
    ///
    /// # Errors
    /// [`Error::Archive`], [`Error::Store`], [`Error::Snapshot`] when it is not to be read any longer: the store has what it had,
    /// or no state, and rows that are to be [emptied](Store::empty). A snapshot that is damaged, or another log's, is no error: the
    /// one before is taken.
    pub async fn restore(
        &self,
        store: &Store,
        views: &Views,
        partition: u32,
        end: u64,
        is_old: bool,
        until: &Until,
    ) -> Result<bool, Error> {
        let near = if is_old { 0 } else { self.limits.near };
        let far = store.progress(partition)?.map_or(0, |known| known.next_offset + near);
        for (offset, name) in Self::manifests(&until.read(self.list(partition)).await?) {
            if offset > end {
                tracing::error!(partition, offset, end, "a snapshot is of another log");
                continue;
            }
            if offset <= far {
                break;
            }
            match self.read(store, views, partition, &name, until).await {
                Ok(manifest) => {
                    let (whole, after) = manifest.rows();
                    metrics::counter!("sendtrail_snapshot_restores_total").increment(1);
                    tracing::info!(partition, offset, rows = whole + after, "the state was restored from a snapshot");
                    return Ok(true);
                }
                Err(error) if until.is_over() => return Err(error),
                Err(error @ (Error::Snapshot(_) | Error::Archive(object_store::Error::NotFound { .. })))
                    if store.progress(partition)?.is_some() || far == 0 =>
                {
                    tracing::error!(partition, offset, %error, "a snapshot cannot be used; the one before is looked at");
                }
                // Tried again from the newest.
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    async fn read(
        &self,
        store: &Store,
        views: &Views,
        partition: u32,
        name: &str,
        until: &Until,
    ) -> Result<Manifest, Error> {
        let manifest = until.read(self.manifest(partition, name)).await?;
        self.check_log(name, &manifest)?;
        // All of it is looked at before what is there is given up.
        for file in &manifest.files {
            format::check(file, &until.read(self.get(partition, &file.name)).await?)?;
        }
        self.fill(store, partition, &manifest, until).await?;
        let (to, views, whole) = (store.clone(), views.clone(), manifest.clone());
        blocking("restore a partition", move || {
            // Last comes what makes it a state.
            views.rebuild(&to.view(), partition)?;
            to.set_progress(partition, &whole.progress)
        })
        .await?;
        Ok(manifest)
    }

    /// Puts the rows of a manifest in the place of what a store has of a partition, which has no state until its progress is set.
    ///
    /// # Errors
    /// Those of reading and writing; [`Error::Snapshot`] when a file is not what was written.
    pub(crate) async fn fill(
        &self,
        store: &Store,
        partition: u32,
        manifest: &Manifest,
        until: &Until,
    ) -> Result<(), Error> {
        let to = store.clone();
        blocking("empty a partition", move || to.empty(partition)).await?;
        for file in &manifest.files {
            let (to, file) = (store.clone(), file.clone());
            let bytes = until.read(self.get(partition, &file.name)).await?;
            blocking("restore a partition", move || {
                format::check(&file, &bytes)?;
                to.put(partition, format::rows(&file, &bytes)?)
            })
            .await?;
        }
        Ok(())
    }

    /// The newest manifest of an offset, if there is one that can be read and is not another log's.
    async fn at(&self, partition: u32, wanted: u64) -> Result<Option<Manifest>, Error> {
        let names = Self::manifests(&self.list(partition).await?);
        let is_it = |(offset, name): &(u64, String)| *offset == wanted && !self.is_anothers(name);
        let Some((_, name)) = names.into_iter().find(is_it) else { return Ok(None) };
        Ok(Some(self.manifest(partition, &name).await?))
    }

    /// Whether an object is of another log, by its name.
    fn is_anothers(&self, name: &str) -> bool {
        mark_in(name).zip(format::mark(&self.log)).is_some_and(|(its, ours)| its != ours)
    }

    /// Refuses the state of another log. One that does not say whose it is was written by an earlier program.
    fn check_log(&self, name: &str, manifest: &Manifest) -> Result<(), Error> {
        let (its, ours) = (&manifest.log, &self.log);
        if its.is_empty() || ours.is_empty() || its == ours {
            return Ok(());
        }
        let why = format!("is of another log, {its}; this one is {ours}: each needs a place of its own");
        Err(Error::Snapshot(format!("{name} {why}")))
    }

    pub(crate) async fn manifest(&self, partition: u32, name: &str) -> Result<Manifest, Error> {
        Manifest::read(name, &self.get(partition, name).await?)
    }

    pub(crate) async fn get(&self, partition: u32, name: &str) -> Result<Vec<u8>, Error> {
        Ok(self.objects.get(&path(partition, name)).await?.bytes().await?.to_vec())
    }

    pub(crate) async fn put(&self, partition: u32, name: &str, bytes: Vec<u8>) -> Result<(), Error> {
        self.objects.put(&path(partition, name), bytes.into()).await?;
        Ok(())
    }

    pub(crate) async fn list(&self, partition: u32) -> Result<Vec<ObjectMeta>, Error> {
        Ok(self.objects.list(Some(&folder(partition))).try_collect().await?)
    }

    /// Offsets and names of manifests, the newest first.
    pub(crate) fn manifests(listed: &[ObjectMeta]) -> Vec<(u64, String)> {
        let names = listed.iter().filter_map(|meta| meta.location.filename());
        let mut found: Vec<_> = names.filter_map(|name| Some((Manifest::offset(name)?, name.to_owned()))).collect();
        found.sort_unstable_by(|one, other| other.cmp(one));
        found
    }

    /// Deletes the manifests of a partition that are beyond an offset, but those of another log.
    ///
    /// # Errors
    /// [`Error::Archive`].
    pub async fn forget(&self, partition: u32, beyond: u64) -> Result<(), Error> {
        let mut listed = self.list(partition).await?;
        listed.retain(|meta| !meta.location.filename().is_some_and(|name| self.is_anothers(name)));
        let offset = |meta: &ObjectMeta| meta.location.filename().and_then(Manifest::offset);
        for meta in listed.iter().filter(|meta| offset(meta).is_some_and(|offset| offset > beyond)) {
            self.delete(meta).await?;
        }
        Ok(())
    }

    pub(crate) async fn delete(&self, object: &ObjectMeta) -> Result<(), Error> {
        Ok(self.objects.delete(&object.location).await?)
    }

    /// Writes a manifest of the files before and the rows of some keys, or of all rows there are.
    pub(crate) async fn write(
        &self,
        view: StoreView,
        partition: u32,
        before: Option<(Manifest, Vec<StoreKey>)>,
    ) -> Result<Manifest, Error> {
        let progress = view.progress(partition)?.unwrap_or_default();
        let mark = format::mark(&self.log).map_or_else(String::new, |mark| format!("-{mark}"));
        let prefix = format!("rows-{:020}-{}{mark}", progress.next_offset, fresh_name());
        let (mut files, whole, keys) = match before {
            Some((before, keys)) => (before.files, before.whole, Some(keys)),
            None => (Vec::new(), 0, None),
        };
        let is_whole = keys.is_none();
        let file_bytes = self.limits.file_bytes;
        // Files come as they are full, so that not all of a large state is in memory.
        let (hand_over, mut written) = tokio::sync::mpsc::channel::<(Vec<u8>, RowFile)>(1);
        let gather = blocking("gather a snapshot", move || {
            let mut count = 0;
            let mut file = Writer::new()?;
            let mut add = |key: &_, value: Option<&[u8]>| {
                file.push(key, value)?;
                if file.raw_bytes() >= file_bytes {
                    let full = std::mem::replace(&mut file, Writer::new()?);
                    count += 1;
                    give(&hand_over, full, &prefix, count)?;
                }
                Ok::<_, Error>(())
            };
            match keys {
                Some(mut keys) => {
                    keys.sort_unstable();
                    keys.dedup();
                    for key in keys {
                        add(&key, view.value(partition, &key)?.as_deref())?;
                    }
                }
                None => {
                    for row in view.rows(partition) {
                        let (key, value) = row?;
                        add(&key, Some(&value))?;
                    }
                }
            }
            if file.raw_bytes() > 0 { give(&hand_over, file, &prefix, count + 1) } else { Ok(()) }
        });
        let upload = async {
            let mut uploaded = Vec::new();
            while let Some((bytes, file)) = written.recv().await {
                metrics::counter!("sendtrail_snapshot_bytes_total").increment(bytes.len() as u64);
                self.put(partition, &file.name, bytes).await?;
                uploaded.push(file);
            }
            // Whoever gathers learns by this that nobody takes more.
            drop(written);
            Ok::<_, Error>(uploaded)
        };
        let (gathered, uploaded) = futures::join!(gather, upload);
        let uploaded = uploaded?;
        gathered?;
        files.extend(uploaded);
        let whole = if is_whole { files.len() as u32 } else { whole };
        let manifest = Manifest::new(progress, files, whole, self.log.clone());
        reach("snapshot.before");
        self.put(partition, &manifest.name(), manifest.encode_to_vec()).await?;
        reach("snapshot.written");
        Ok(manifest)
    }

    /// Deletes what neither the newest manifest nor the kept ones name.
    async fn tidy(&self, partition: u32, newest: &Manifest) -> Result<(), Error> {
        let mut listed = self.list(partition).await?;
        // What another log's snapshots are made of is not known here.
        listed.retain(|meta| !meta.location.filename().is_some_and(|name| self.is_anothers(name)));
        let manifests = Self::manifests(&listed);
        // Of this log's: others in the folder may be further.
        let offset = newest.progress.next_offset;
        let mut named: HashSet<String> = newest.files.iter().map(|file| file.name.clone()).collect();
        for (_, name) in manifests.iter().filter(|(of, _)| *of <= offset).take(KEPT) {
            let manifest = self.manifest(partition, name).await?;
            named.extend(manifest.files.into_iter().map(|file| file.name));
            named.insert(name.clone());
        }
        let before = Millis::wall().0 - UNNAMED;
        // One that is new and further is of whoever took over from this server, if it stood still: what that builds on stays.
        let is_new = |meta: &&ObjectMeta| meta.last_modified.timestamp_millis() >= before;
        for name in listed.iter().filter(is_new).filter_map(|meta| meta.location.filename()) {
            if Manifest::offset(name).is_some_and(|of| of > offset) {
                named.extend(self.manifest(partition, name).await?.files.into_iter().map(|file| file.name));
            }
        }
        let old = |meta: &&ObjectMeta| meta.last_modified.timestamp_millis() < before;
        for meta in listed.iter().filter(old) {
            if meta.location.filename().is_some_and(|name| !named.contains(name)) {
                self.delete(meta).await?;
            }
        }
        Ok(())
    }
}

/// Hands a file over that is full.
fn give(
    to: &tokio::sync::mpsc::Sender<(Vec<u8>, RowFile)>,
    file: Writer,
    prefix: &str,
    number: u32,
) -> Result<(), Error> {
    let file = file.finish(format!("{prefix}-{number:05}"))?;
    to.blocking_send(file).map_err(|_| Error::Snapshot("a file could not be written".into()))
}

fn folder(partition: u32) -> Path {
    Path::from(format!("partition-{partition:05}"))
}

fn path(partition: u32, name: &str) -> Path {
    folder(partition).join(name)
}

#[cfg(test)]
mod tests;
