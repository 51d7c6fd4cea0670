//! Deliveries that wait, on the device: what was tried and failed, and what found no room in memory.
//!
//! Each has a row, and one place that names it: a timer while it is not due, the backlog of its destination when it is.
//! So one destination that takes nothing never stands before the others'. Rows are written as attempts end; a
//! checkpoint makes them durable together with the marks, and never a mark before the rows that it stands for.

use std::collections::BTreeSet;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use prost::Message;
use sendtrail_schemas::account::Dialect;
use sendtrail_schemas::ids::DestinationId;

use crate::Error;

/// Names a delivery within a partition.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DeliveryKey {
    /// The event.
    pub seq: u64,
    /// The destination.
    pub destination: DestinationId,
}

/// A delivery that waits.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Waiting {
    /// The account, sixteen bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub account_id: Vec<u8>,
    /// The event's name in the dialect.
    #[prost(string, tag = "2")]
    pub event_name: String,
    /// The body.
    #[prost(bytes = "bytes", tag = "3")]
    pub body: bytes::Bytes,
    /// How many attempts there were.
    #[prost(uint32, tag = "4")]
    pub attempts: u32,
    /// When the first began, by the wall clock; 0 before it.
    #[prost(int64, tag = "5")]
    pub first_started_at: i64,
    /// When the next is due, by the wall clock.
    #[prost(int64, tag = "6")]
    pub due_at: i64,
    /// Whether it is due, and named by its destination's backlog.
    #[prost(bool, tag = "7")]
    pub is_due: bool,
    /// The dialect that the body is in; a patch of the destination's holds for later events.
    #[prost(enumeration = "Dialect", tag = "8")]
    pub dialect: i32,
}

/// Where a delivery stands in a backlog: when it was due, and its event.
pub type Place = (i64, u64);

/// How far the dispatcher of a partition is.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Marks {
    /// The first event whose deliveries may be neither done nor in the book.
    #[prost(uint64, tag = "1")]
    pub event: u64,
    /// The first attempt that may not be in the book.
    #[prost(uint64, tag = "2")]
    pub attempt: u64,
}

/// The book of one partition.
#[derive(Clone)]
pub struct Book {
    database: Database,
    rows: Keyspace,
    timers: Keyspace,
    backlog: Keyspace,
    marks: Keyspace,
    partition: [u8; 2],
}

impl Book {
    /// Opens the book of a partition.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn open(database: &Database, partition: u32) -> Result<Self, Error> {
        let keyspace = |name: &str| database.keyspace(name, KeyspaceCreateOptions::default);
        Ok(Self {
            database: database.clone(),
            rows: keyspace("dispatch.rows")?,
            timers: keyspace("dispatch.timers")?,
            backlog: keyspace("dispatch.backlog")?,
            marks: keyspace("dispatch.marks")?,
            partition: (partition as u16).to_be_bytes(),
        })
    }

    fn row_key(&self, key: DeliveryKey) -> [u8; 26] {
        let mut bytes = [0u8; 26];
        bytes[..2].copy_from_slice(&self.partition);
        bytes[2..10].copy_from_slice(&key.seq.to_be_bytes());
        bytes[10..].copy_from_slice(key.destination.bytes());
        bytes
    }

    fn timer_key(&self, due_at: i64, key: DeliveryKey) -> [u8; 34] {
        let mut bytes = [0u8; 34];
        bytes[..2].copy_from_slice(&self.partition);
        bytes[2..10].copy_from_slice(&(due_at.max(0) as u64).to_be_bytes());
        bytes[10..18].copy_from_slice(&key.seq.to_be_bytes());
        bytes[18..].copy_from_slice(key.destination.bytes());
        bytes
    }

    fn backlog_key(&self, place: Place, destination: DestinationId) -> [u8; 34] {
        let mut bytes = [0u8; 34];
        bytes[..2].copy_from_slice(&self.partition);
        bytes[2..18].copy_from_slice(destination.bytes());
        bytes[18..26].copy_from_slice(&(place.0.max(0) as u64).to_be_bytes());
        bytes[26..].copy_from_slice(&place.1.to_be_bytes());
        bytes
    }

    /// The keyspace and key that name a delivery.
    fn place(&self, key: DeliveryKey, waiting: &Waiting) -> (&Keyspace, [u8; 34]) {
        if waiting.is_due {
            (&self.backlog, self.backlog_key((waiting.due_at, key.seq), key.destination))
        } else {
            (&self.timers, self.timer_key(waiting.due_at, key))
        }
    }

    /// How far the dispatcher is.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn marks(&self) -> Result<Marks, Error> {
        let value = self.marks.get(self.partition)?;
        Ok(value.and_then(|value| Marks::decode(&value[..]).ok()).unwrap_or_default())
    }

    /// Notes a delivery that waits, in place of what was noted of it before.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn put(&self, key: DeliveryKey, waiting: &Waiting) -> Result<(), Error> {
        let mut batch = self.database.batch();
        if let Some(before) = self.get(key)? {
            let (keyspace, place) = self.place(key, &before);
            batch.remove(keyspace, place);
        }
        batch.insert(&self.rows, self.row_key(key), waiting.encode_to_vec());
        let (keyspace, place) = self.place(key, waiting);
        batch.insert(keyspace, place, []);
        Ok(batch.commit()?)
    }

    /// A delivery that waits.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn get(&self, key: DeliveryKey) -> Result<Option<Waiting>, Error> {
        let value = self.rows.get(self.row_key(key))?;
        Ok(value.and_then(|value| Waiting::decode(&value[..]).ok()))
    }

    /// Forgets a delivery that is done.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn remove(&self, key: DeliveryKey) -> Result<(), Error> {
        let Some(waiting) = self.get(key)? else { return Ok(()) };
        let mut batch = self.database.batch();
        batch.remove(&self.rows, self.row_key(key));
        let (keyspace, place) = self.place(key, &waiting);
        batch.remove(keyspace, place);
        Ok(batch.commit()?)
    }

    /// Moves what is due by `now` into the backlogs of its destinations, at most `limit` of it: which destinations have
    /// more now, and when the next is due.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn ripen(&self, now: i64, limit: usize) -> Result<(BTreeSet<DestinationId>, Option<i64>), Error> {
        let mut destinations = BTreeSet::new();
        for (count, timer) in self.timers.prefix(self.partition).enumerate() {
            let (key, _) = timer.into_inner()?;
            let Some((due_at, delivery)) = read_timer(&key) else { continue };
            if due_at > now || count >= limit {
                return Ok((destinations, Some(due_at)));
            }
            if let Some(waiting) = self.get(delivery)? {
                self.put(delivery, &Waiting { is_due: true, ..waiting })?;
            }
            destinations.insert(delivery.destination);
        }
        Ok((destinations, None))
    }

    /// Due deliveries of a destination after a place, the earliest first.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn backlog(
        &self,
        destination: DestinationId,
        after: Option<Place>,
        limit: usize,
    ) -> Result<Vec<(DeliveryKey, Waiting)>, Error> {
        let start = match after {
            Some((due_at, seq)) => self.backlog_key((due_at, seq + 1), destination),
            None => self.backlog_key((0, 0), destination),
        };
        let end = self.backlog_key((i64::MAX, u64::MAX), destination);
        let mut found = Vec::new();
        for row in self.backlog.range(start..=end).take(limit) {
            let (key, _) = row.into_inner()?;
            let Some(seq) = key.get(26..).and_then(|seq| seq.try_into().ok()).map(u64::from_be_bytes) else { continue };
            let key = DeliveryKey { seq, destination };
            found.extend(self.get(key)?.map(|waiting| (key, waiting)));
        }
        Ok(found)
    }

    /// Destinations that have a backlog.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn destinations(&self) -> Result<BTreeSet<DestinationId>, Error> {
        let mut destinations = BTreeSet::new();
        let mut start = self.partition.to_vec();
        loop {
            let Some(row) = self.backlog.range(start.clone()..).next() else { return Ok(destinations) };
            let (key, _) = row.into_inner()?;
            let Some(destination) = key.get(2..18).filter(|_| key.starts_with(&self.partition)) else {
                return Ok(destinations);
            };
            let destination = DestinationId::from_slice(destination)?;
            destinations.insert(destination);
            start = self.backlog_key((i64::MAX, u64::MAX), destination).to_vec();
            start.push(0);
        }
    }

    /// Makes marks durable, and all that was written before.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn checkpoint(&self, marks: Marks) -> Result<(), Error> {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncAll));
        batch.insert(&self.marks, self.partition, marks.encode_to_vec());
        Ok(batch.commit()?)
    }
}

fn read_timer(key: &[u8]) -> Option<(i64, DeliveryKey)> {
    let number = |range: std::ops::Range<usize>| Some(u64::from_be_bytes(key.get(range)?.try_into().ok()?));
    let destination = DestinationId::from_slice(key.get(18..)?).ok()?;
    Some((number(2..10)? as i64, DeliveryKey { seq: number(10..18)?, destination }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;
    use uuid::Uuid;

    #[test]
    fn a_delivery_has_one_timer_at_a_time() {
        let folder = TempDir::new().unwrap();
        let database = Database::builder(folder.path()).open().unwrap();
        let (book, other) = (Book::open(&database, 0).unwrap(), Book::open(&database, 1).unwrap());
        let key = |seq| DeliveryKey { seq, destination: DestinationId(Uuid::from_u128(9)) };
        let waiting = |due_at| Waiting { due_at, event_name: "Open".into(), ..Waiting::default() };
        book.put(key(1), &waiting(100)).unwrap();
        book.put(key(2), &waiting(50)).unwrap();
        book.put(key(1), &waiting(20)).unwrap();
        other.put(key(7), &waiting(1)).unwrap();
        let of = DestinationId(Uuid::from_u128(9));
        assert_eq!(book.ripen(10, 10).unwrap(), (BTreeSet::new(), Some(20)));
        assert_eq!(book.ripen(60, 1).unwrap(), (BTreeSet::from([of]), Some(50)));
        assert_eq!(book.backlog(of, None, 10).unwrap(), [(key(1), Waiting { is_due: true, ..waiting(20) })]);
        assert_eq!(book.ripen(60, 10).unwrap(), (BTreeSet::from([of]), None));
        let keys = |after| book.backlog(of, after, 10).unwrap().into_iter().map(|(key, _)| key.seq).collect::<Vec<_>>();
        assert_eq!((keys(None), keys(Some((20, 1))), keys(Some((50, 2)))), (vec![1, 2], vec![2], vec![]));
        assert_eq!(
            (book.destinations().unwrap(), other.destinations().unwrap()),
            (BTreeSet::from([of]), BTreeSet::new())
        );
        book.remove(key(1)).unwrap();
        book.remove(key(1)).unwrap();
        // Tried again and failed: back to the timers.
        book.put(key(2), &waiting(90)).unwrap();
        assert_eq!(keys(None), [0u64; 0]);
        assert_eq!(book.ripen(60, 10).unwrap(), (BTreeSet::new(), Some(90)));
        assert_eq!(book.get(key(2)).unwrap(), Some(waiting(90)));
        book.checkpoint(Marks { event: 3, attempt: 4 }).unwrap();
        assert_eq!((book.marks().unwrap().event, other.marks().unwrap().event), (3, 0));
    }
}
