//! A rebuild of projections, and how one that was broken off is known: a mark is there from before anything is forgotten
//! until everything is there again.

use fjall::{Database, PersistMode};
use sendtrail_eventlog::failpoint::reach;
use sendtrail_schemas::topic::{Topic, TopicPartition};

use super::{Projections, mark_key};
use crate::Error;

/// Its mark, among those of partitions: it is longer than these.
const REBUILDING: &[u8] = b"rebuilding";
/// What is said of a rebuild that was broken off.
const BROKEN_OFF: &str =
    "a rebuild of the sums was broken off, and some are missing: run 'sendtrail rebuild-projections' again, to its end";

impl Projections {
    /// Opens the projections in a database.
    ///
    /// # Errors
    /// [`Error::Store`]; [`Error::Missing`] when a rebuild was broken off: what is there is neither nothing nor all of it.
    pub fn open(database: &Database) -> Result<Self, Error> {
        let projections = Self::open_to_rebuild(database)?;
        match projections.marks.get(REBUILDING)? {
            Some(_) => Err(Error::Missing(BROKEN_OFF.into())),
            None => Ok(projections),
        }
    }

    /// Forgets every sum and every delivery, and the marks of both. Until [`end_rebuild`](Self::end_rebuild) they are opened
    /// for a rebuild alone, also after a crash.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn begin_rebuild(&mut self, partitions: u32) -> Result<(), Error> {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncAll));
        batch.insert(&self.marks, REBUILDING, b"under way");
        for partition in 0..partitions {
            for topic in [Topic::Events, Topic::Attempts] {
                batch.remove(&self.marks, mark_key(TopicPartition::new(topic, partition)));
            }
        }
        reach("projections.before");
        batch.commit()?;
        reach("projections.durable");
        self.rollups.clear()?;
        self.deliveries.clear()?;
        self.troubled.clear()?;
        // What was added before, by a rebuild that failed perhaps, must not be added to.
        self.hours.clear();
        self.dirty_hours.clear();
        self.cached = 0;
        self.pending_deliveries.clear();
        self.passed.retain(|of, _| of.topic == Topic::DeadLetter);
        Ok(())
    }

    /// Sets the marks up to which everything is there now, and ends the rebuild, in one step. Durable when this returns.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn end_rebuild(&mut self, marks: &[(TopicPartition, u64)]) -> Result<(), Error> {
        // Attempts have set marks of their own: these are the ones that count.
        self.flush(true)?;
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncAll));
        for (of, next) in marks {
            batch.insert(&self.marks, mark_key(*of), next.to_be_bytes());
        }
        batch.remove(&self.marks, REBUILDING);
        reach("projections.before");
        batch.commit()?;
        reach("projections.durable");
        Ok(())
    }
}
