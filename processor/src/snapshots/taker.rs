//! When a snapshot is taken, and of what.

use std::sync::Arc;
use std::time::Duration;

use metrics::{gauge, histogram};
use sendtrail_schemas::time::Millis;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::format::Manifest;
use super::{Snapshots, Until};
use crate::core::overlay::StoreKey;
use crate::store::StoreView;
use crate::{Error, Store};

/// How long the end of a server may wait for what is being written, and then for what is left.
const LAST: Duration = Duration::from_secs(10);

/// Takes the snapshots of one partition, for as long as this process owns it.
pub struct Taker {
    snapshots: Arc<Snapshots>,
    store: Store,
    partition: u32,
    handle: Handle,
    /// The offset that the store is at.
    next: u64,
    /// Keys that changed since the last one, or since the one that is being written; none: there were too many.
    changed: Option<Vec<StoreKey>>,
    /// The last one; none: what changed since is not known.
    last: Option<Manifest>,
    taken: Instant,
    writing: Option<JoinHandle<Written>>,
}

/// A snapshot that was written, or the keys that are still to be written.
type Written = Result<Manifest, (Error, Option<(Manifest, Vec<StoreKey>)>)>;

impl Taker {
    /// Begins where the store is.
    pub async fn begin(snapshots: Arc<Snapshots>, store: Store, partition: u32, until: &Until) -> Self {
        let next = store.progress(partition).ok().flatten().map_or(0, |progress| progress.next_offset);
        // What is at the same offset is the same.
        let last = match until.read(snapshots.at(partition, next)).await {
            Ok(last) => last,
            Err(error) => {
                tracing::warn!(partition, %error, "a snapshot is made anew");
                None
            }
        };
        let (handle, taken) = (Handle::current(), Instant::now());
        Self { snapshots, store, partition, handle, next, changed: Some(Vec::new()), last, taken, writing: None }
    }

    /// Notes what a checkpoint changed, up to an offset, once the store has it, and takes a snapshot when it is time.
    pub fn note(&mut self, keys: impl IntoIterator<Item = StoreKey>, next: u64) {
        self.next = next;
        if let Some(changed) = self.changed.as_mut().filter(|_| self.last.is_some() || self.writing.is_some()) {
            changed.extend(keys);
            if changed.len() > self.snapshots.limits.remembered {
                self.changed = None;
            }
        }
        self.look();
    }

    /// Takes a snapshot when it is time and there is something new.
    pub fn look(&mut self) {
        if self.writing.as_ref().is_some_and(JoinHandle::is_finished) {
            self.collect();
        }
        if self.writing.is_none() && self.taken.elapsed() >= self.snapshots.every && self.is_behind() {
            self.take();
        }
    }

    fn is_behind(&self) -> bool {
        self.last.as_ref().is_none_or(|last| last.progress.next_offset < self.next)
    }

    /// Begins to write one of what the store has now.
    fn take(&mut self) {
        self.taken = Instant::now();
        let changed = self.changed.replace(Vec::new());
        let limits = &self.snapshots.limits;
        let before = self.last.clone().zip(changed).filter(|(last, keys)| {
            let (whole, after) = last.rows();
            after + keys.len() as u64 <= whole + limits.slack && last.files.len() < limits.files
        });
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
                let (last, earlier) = before.unzip();
                self.last = last;
                // Those of the one that failed, and those since.
                self.changed = earlier.zip(self.changed.take()).map(|(earlier, later)| [earlier, later].concat());
            }
            Err(error) => {
                tracing::error!(partition = self.partition, %error, "a snapshot could not be written");
                self.last = None;
            }
        }
        if self.changed.is_none() {
            // Not everything that changed is known: the next one is of all rows.
            self.last = None;
        }
        if self.last.is_none() {
            self.changed = Some(Vec::new());
        }
    }

    /// Writes what is left, so that whoever comes next begins here; not for long. Blocks.
    pub fn finish(&mut self) {
        if self.wait() && self.is_behind() {
            self.take();
            self.wait();
        }
    }

    /// Waits for what is being written, but not for long; whether it ended.
    fn wait(&mut self) -> bool {
        let begun = Instant::now();
        while self.writing.as_ref().is_some_and(|writing| !writing.is_finished()) {
            if begun.elapsed() > LAST {
                tracing::warn!(
                    partition = self.partition,
                    "a snapshot is not written in time; the next server begins earlier"
                );
                return false;
            }
            std::thread::sleep(LAST / 1_000);
        }
        self.collect();
        true
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
            if let Err(error) = snapshots.tidy(partition, &manifest).await {
                tracing::warn!(partition, %error, "old snapshots could not be deleted");
            }
            Ok(manifest)
        }
        Err(error) => Err((error, before)),
    }
}
