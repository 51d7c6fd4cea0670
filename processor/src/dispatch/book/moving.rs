//! A book as a whole, on its way elsewhere.

use fjall::{Keyspace, PersistMode, Readable};
use prost::Message;

use super::{Book, Entry, Marks};
use crate::Error;

/// Rows that are removed together.
const TOGETHER: usize = 1_000;

impl Book {
    /// What a book consists of but for its marks. ◆ Places in this list are written down.
    fn keyspaces(&self) -> [&Keyspace; 7] {
        [&self.rows, &self.timers, &self.backlog, &self.replays, &self.order, &self.standings, &self.reached]
    }

    /// Everything that the book has at one moment, and the marks of then.
    ///
    /// # Errors
    /// [`Error::Store`], and those of `give`.
    pub fn export(&self, mut give: impl FnMut(Entry) -> Result<(), Error>) -> Result<Marks, Error> {
        let moment = self.database.snapshot();
        for (keyspace, rows) in (0..).zip(self.keyspaces()) {
            for row in moment.prefix(rows, self.partition) {
                let (key, value) = row.into_inner()?;
                give(Entry { keyspace, key: key[2..].to_vec(), value: value.to_vec() })?;
            }
        }
        let marks = moment.get(&self.marks, self.partition)?;
        Ok(marks.and_then(|value| Marks::decode(&value[..]).ok()).unwrap_or_default())
    }

    /// Empties it. Until a checkpoint it has no marks, also after a crash.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn clear(&self) -> Result<(), Error> {
        self.marks.remove(self.partition)?;
        self.database.persist(PersistMode::SyncAll)?;
        for keyspace in self.keyspaces() {
            let keys: Vec<_> = keyspace.prefix(self.partition).map(fjall::Guard::key).collect::<Result<_, _>>()?;
            for some in keys.chunks(TOGETHER) {
                let mut batch = self.database.batch();
                some.iter().for_each(|key| batch.remove(keyspace, key.clone()));
                batch.commit()?;
            }
        }
        Ok(())
    }

    /// Adds what another had.
    ///
    /// # Errors
    /// [`Error::Store`]; [`Error::Snapshot`] when it is of a book with more in it than this program knows.
    pub fn import(&self, entries: &[Entry]) -> Result<(), Error> {
        let mut batch = self.database.batch();
        for entry in entries {
            let keyspace = self.keyspaces().get(entry.keyspace as usize).copied();
            let unknown = || Error::Snapshot(format!("a book has something unknown, number {}", entry.keyspace));
            let key = [&self.partition[..], &entry.key[..]].concat();
            batch.insert(keyspace.ok_or_else(unknown)?, key, entry.value.clone());
        }
        Ok(batch.commit()?)
    }
}

/// Everything that the book of a partition has.
#[cfg(test)]
pub type Dump = Vec<Vec<(Vec<u8>, Vec<u8>)>>;

#[cfg(test)]
impl Book {
    fn all(&self) -> impl Iterator<Item = &Keyspace> {
        self.keyspaces().into_iter().chain([&self.marks])
    }

    /// After so many commits everything until then reaches the device.
    pub fn flush_after(&self, commits: usize) {
        self.flush.lock().0 = commits + 1;
        self.has_committed();
    }

    pub(super) fn has_committed(&self) {
        let mut flush = self.flush.lock();
        if flush.0 > 0 {
            flush.0 -= 1;
            if flush.0 == 0 {
                flush.1 = self.dump();
            }
        }
    }

    /// What the device has.
    pub fn on_device(&self) -> Dump {
        self.flush.lock().1.clone()
    }

    /// What it has.
    pub fn dump(&self) -> Dump {
        let pair = |row: fjall::Guard| row.into_inner().map(|(key, value)| (key.to_vec(), value.to_vec())).unwrap();
        self.all().map(|keyspace| keyspace.prefix(self.partition).map(pair).collect()).collect()
    }

    /// Puts what it had in the place of what it has.
    pub fn restore(&self, dump: &Dump) {
        let none = vec![Vec::new(); self.all().count()];
        let dump = if dump.is_empty() { &none } else { dump };
        for (keyspace, rows) in self.all().zip(dump) {
            let keys: Vec<_> = keyspace.prefix(self.partition).map(|row| row.key().unwrap()).collect();
            keys.into_iter().for_each(|key| keyspace.remove(key).unwrap());
            rows.iter().for_each(|(key, value)| keyspace.insert(key, value).unwrap());
        }
    }

    /// Whether anything of a delivery is in it.
    pub fn has_deliveries(&self) -> bool {
        self.dump()[..5].iter().any(|rows| !rows.is_empty())
    }
}
