//! When a snapshot is taken, and of what.

use std::sync::Arc;

use metrics::{gauge, histogram};
use sendtrail_schemas::time::Millis;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Snapshots;
use super::format::Manifest;
use crate::core::overlay::StoreKey;
use crate::store::StoreView;
use crate::{Error, Store};

/// Keys that are remembered; beyond, the next snapshot is of all rows.
const REMEMBERED: usize = 4_000_000;
/// How many rows more than the whole state had may come after it.
const SLACK: u64 = 100_000;

/// Takes the snapshots of one partition, for as long as this process owns it.
pub struct Taker {
    snapshots: Arc<Snapshots>,
    store: Store,
    partition: u32,
    handle: Handle,
    /// Keys that changed since the last one.
    changed: Vec<StoreKey>,
    /// The last one; none: what changed since is not known.
    last: Option<Manifest>,
    taken: Instant,
    writing: Option<JoinHandle<Written>>,
}

/// A snapshot that was written, or the keys that are still to be written.
type Written = Result<Manifest, (Error, Option<(Manifest, Vec<StoreKey>)>)>;

impl Taker {
    /// Begins where the store is.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn begin(snapshots: Arc<Snapshots>, store: Store, partition: u32) -> Result<Self, Error> {
        let next = store.progress(partition)?.map_or(0, |progress| progress.next_offset);
        // What is at the same offset is the same.
        let last = match snapshots.at(partition, next).await {
            Ok(last) => last,
            Err(error) => {
                tracing::warn!(partition, %error, "a snapshot is made anew");
                None
            }
        };
        let handle = Handle::current();
        Ok(Self {
            snapshots,
            store,
            partition,
            handle,
            changed: Vec::new(),
            last,
            taken: Instant::now(),
            writing: None,
        })
    }

    /// Notes what a checkpoint changed, once the store has it, and takes a snapshot when it is time.
    pub fn note(&mut self, keys: impl IntoIterator<Item = StoreKey>) {
        if self.last.is_some() || self.writing.is_some() {
            self.changed.extend(keys);
        }
        if self.writing.as_ref().is_some_and(JoinHandle::is_finished) {
            self.collect();
        }
        if self.changed.len() > REMEMBERED {
            (self.changed, self.last) = (Vec::new(), None);
        }
        if self.writing.is_none() && self.taken.elapsed() >= self.snapshots.every {
            self.take();
        }
    }

    /// Begins to write one of what the store has now.
    fn take(&mut self) {
        self.taken = Instant::now();
        let before = self.last.clone().map(|last| (last, std::mem::take(&mut self.changed)));
        let before = before.filter(|(last, keys)| {
            let (whole, after) = last.rows();
            after + keys.len() as u64 <= whole + SLACK
        });
        self.changed = Vec::new();
        let work = write(self.snapshots.clone(), self.store.view(), self.partition, before);
        self.writing = Some(self.handle.spawn(work));
    }

    /// Takes what came of the last one.
    fn collect(&mut self) {
        let Some(writing) = self.writing.take() else { return };
        match self.handle.block_on(writing) {
            Ok(Ok(manifest)) => self.last = Some(manifest),
            Ok(Err((error, before))) => {
                tracing::warn!(partition = self.partition, %error, "a snapshot could not be written; it is tried again");
                let later = std::mem::take(&mut self.changed);
                self.last = before.map(|(last, keys)| {
                    self.changed = keys;
                    last
                });
                if self.last.is_some() {
                    self.changed.extend(later);
                }
            }
            Err(error) => {
                tracing::error!(partition = self.partition, %error, "a snapshot could not be written");
                (self.changed, self.last) = (Vec::new(), None);
            }
        }
    }

    /// Writes what is left, so that whoever comes next begins here. Blocks.
    pub fn finish(&mut self) {
        self.collect();
        let next = self.store.progress(self.partition).ok().flatten().map_or(0, |progress| progress.next_offset);
        if self.last.as_ref().is_none_or(|last| last.progress.next_offset < next) {
            self.take();
            self.collect();
        }
    }
}

async fn write(
    snapshots: Arc<Snapshots>,
    view: StoreView,
    partition: u32,
    before: Option<(Manifest, Vec<StoreKey>)>,
) -> Written {
    let begun = Instant::now();
    match snapshots.write(view, partition, before.clone()).await {
        Ok(manifest) => {
            histogram!("sendtrail_snapshot_seconds").record(begun.elapsed().as_secs_f64());
            let at = Millis::wall().0 as f64 / 1e3;
            gauge!("sendtrail_snapshot_timestamp_seconds", "partition" => partition.to_string()).set(at);
            tracing::debug!(
                partition,
                offset = manifest.progress.next_offset,
                files = manifest.files.len(),
                "snapshot"
            );
            if let Err(error) = snapshots.tidy(partition).await {
                tracing::warn!(partition, %error, "old snapshots could not be deleted");
            }
            Ok(manifest)
        }
        Err(error) => Err((error, before)),
    }
}
