//! Intake, kept after the log has let it go, so that the state can be folded once more from its beginning.
//!
//! ```text
//! log ─► segments of records, a file each ─────────────┐
//! store ─► now and then all rows of a partition (base) ─┴─► rebuild: oldest base, the records after it ─► the same state
//! ```
//!
//! A segment is what the log has at its offsets, and a base is the state at its offset, whoever wrote it: two writers cannot
//! harm each other. Only what nobody needs any longer is deleted.

mod archiver;
mod rebuild;
mod segment;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::time::Duration;

use object_store::ObjectMeta;
use sendtrail_eventlog::Clock;
use sendtrail_eventlog::objects::Place;
use sendtrail_schemas::time::{DAY, Millis};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::snapshots::{Manifest, UNNAMED};
use crate::{Error, Snapshots};
use segment::Name;

pub use archiver::Archiver;
pub use rebuild::{RebuiltState, Verdict, rebuild as rebuild_state, replace as replace_state};

/// Bytes of records in one segment, before compression.
const SEGMENT_BYTES: usize = 32 << 20;

/// See the module.
pub struct IntakeArchive {
    objects: Snapshots,
    /// How long anything is kept, milliseconds.
    keep: i64,
    /// After how long a record is in a segment.
    every: Duration,
    segment_bytes: usize,
    clock: Clock,
    /// One file is made at a time, so that only one is in memory.
    turn: Semaphore,
}

/// What there is of a partition.
struct Kept {
    listed: Vec<ObjectMeta>,
    /// By their first offsets.
    segments: Vec<Name>,
    /// Offsets and names, the newest first.
    bases: Vec<(u64, String)>,
}

impl Kept {
    /// The offset up to which records are kept; none: there is no segment.
    fn end(&self) -> Option<u64> {
        self.segments.iter().map(|segment| segment.next).max()
    }

    /// When the first segment was written, if nothing came before it: then no base is needed for it.
    fn beginning(&self) -> Option<Millis> {
        let first = self.segments.first().filter(|segment| segment.first == 0)?.to_string();
        let meta = self.listed.iter().find(|meta| meta.location.filename() == Some(&first))?;
        Some(Millis(meta.last_modified.timestamp_millis()))
    }
}

impl IntakeArchive {
    /// At a place. Nothing is kept longer than `days`; a record is in a file after `every`.
    ///
    /// # Errors
    /// [`Error::Archive`] when it cannot be made or read.
    pub fn open(place: &Place, days: u32, every: Duration, clock: Clock) -> Result<Self, Error> {
        let objects = Snapshots::open(place, every)?;
        let (keep, turn) = (i64::from(days) * DAY, Semaphore::new(1));
        Ok(Self { objects, keep, every, segment_bytes: SEGMENT_BYTES, clock, turn })
    }

    /// The turn to make a file.
    async fn turn(&self) -> Result<SemaphorePermit<'_>, Error> {
        self.turn.acquire().await.map_err(|cause| Error::Intake(cause.to_string()))
    }

    async fn kept(&self, partition: u32) -> Result<Kept, Error> {
        let listed = self.objects.list(partition).await?;
        let bases = Snapshots::manifests(&listed);
        let names = listed.iter().filter_map(|meta| meta.location.filename());
        let mut segments: Vec<Name> = names.filter_map(Name::read).collect();
        segments.sort_unstable();
        Ok(Kept { listed, segments, bases })
    }

    /// Deletes the bases of a partition that are beyond an offset: they are of a state that was not what its intake gives.
    ///
    /// # Errors
    /// [`Error::Archive`].
    pub async fn forget_bases(&self, partition: u32, beyond: u64) -> Result<(), Error> {
        self.objects.forget(partition, beyond).await
    }

    /// Deletes what is older than may be kept, as far as there is something newer to begin from.
    async fn prune(&self, partition: u32) -> Result<(), Error> {
        let kept = self.kept(partition).await?;
        let mut oldest = None;
        let (mut named, mut all_are_known) = (HashSet::new(), true);
        for (offset, name) in &kept.bases {
            let base = match self.objects.manifest(partition, name).await {
                Ok(base) => base,
                // A damaged one, or one of a later program, is of no use to begin from; it goes when those around it go. Which rows
                // it names is not known.
                Err(Error::Snapshot(_)) => {
                    all_are_known = false;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if oldest.is_some() && self.clock.now().0 - base.progress.last_t > self.keep {
                break;
            }
            named.extend(base.files.into_iter().map(|file| file.name));
            oldest = Some(*offset);
        }
        let Some(offset) = oldest else { return Ok(()) };
        let begins_anew = kept.beginning().is_some_and(|at| Millis::wall().0 - at.0 <= self.keep);
        let unnamed = Millis::wall().0 - UNNAMED;
        for meta in &kept.listed {
            let Some(name) = meta.location.filename() else { continue };
            let is_over = match (Name::read(name), Manifest::offset(name)) {
                (Some(segment), _) => segment.next <= offset && !begins_anew,
                (None, Some(of)) => of < offset,
                // Rows of a base; somebody may be about to name them.
                (None, None) => {
                    all_are_known && !named.contains(name) && meta.last_modified.timestamp_millis() < unnamed
                }
            };
            if is_over {
                self.objects.delete(meta).await?;
            }
        }
        Ok(())
    }
}
