//! Deliveries that wait, on the device: what was tried and failed, what found no room in memory, what must not come before
//! another, and what is made once more.
//!
//! Each has a row, and a place that says what it waits for: a timer while it is not due, the backlog of its destination
//! when it is, nothing while another of its message comes before it. So one destination that takes nothing never stands
//! before the others'. Rows are written as attempts end; a checkpoint makes them durable together with the marks, and never
//! a mark before the rows that it stands for.

use std::collections::BTreeSet;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable};
use prost::Message;
use sendtrail_schemas::destination::{Dialect, Envelope, ReplayCounts};
use sendtrail_schemas::ids::{DestinationId, ReplayId};
use sendtrail_schemas::kind::EventType;

use crate::Error;
use crate::core::webhook::breaker::Breaker;

/// Names a delivery within a partition.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DeliveryKey {
    /// The event.
    pub seq: u64,
    /// The destination.
    pub destination: DestinationId,
}

/// What a delivery waits for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum Waits {
    /// Until it is due.
    Timer = 0,
    /// For its destination.
    Backlog = 1,
    /// For another delivery of its message.
    Held = 2,
    /// For its destination, behind what is new.
    Replay = 3,
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
    /// What it waits for.
    #[prost(enumeration = "Waits", tag = "7")]
    pub waits: i32,
    /// The dialect that the body is in; a patch of the destination's holds for later events.
    #[prost(enumeration = "Dialect", tag = "8")]
    pub dialect: i32,
    /// What is around the event in the body.
    #[prost(enumeration = "Envelope", tag = "9")]
    pub envelope: i32,
    /// Never signed.
    #[prost(bool, tag = "10")]
    pub unsigned: bool,
    /// One attempt and no more.
    #[prost(bool, tag = "11")]
    pub once: bool,
    /// Attempts of the schedule that are spent.
    #[prost(uint32, tag = "12")]
    pub spent: u32,
    /// When the event was received, milliseconds since the epoch.
    #[prost(int64, tag = "13")]
    pub event_received_at: i64,
    /// The event's type.
    #[prost(enumeration = "EventType", tag = "14")]
    pub event_type: i32,
    /// The message and recipient whose events come in order; 0: in any.
    #[prost(fixed64, tag = "15")]
    pub in_order_of: u64,
    /// The replay that it belongs to, sixteen bytes; empty: none.
    #[prost(bytes = "vec", tag = "16")]
    pub replay_id: Vec<u8>,
    /// Of a replay: attempts before this offset are not its.
    #[prost(uint64, tag = "17")]
    pub since_attempt: u64,
}

impl Waiting {
    /// What it waits for once it is due.
    pub fn when_due(&self) -> Waits {
        if self.replay_id.is_empty() { Waits::Backlog } else { Waits::Replay }
    }
}

/// Rows that are removed together.
const TOGETHER: usize = 1_000;

/// Where a delivery stands in a backlog: when it was due, and its event.
pub type Place = (i64, u64);

/// An account, sixteen bytes, a destination of it, and whether what waits for it is new or a replay.
pub type Owned = (Vec<u8>, DestinationId, Waits);

/// How far the dispatcher of a partition is. Who is further is greater.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, prost::Message)]
pub struct Marks {
    /// The first event whose deliveries may be neither done nor in the book.
    #[prost(uint64, tag = "1")]
    pub event: u64,
    /// The first attempt that may not be in the book.
    #[prost(uint64, tag = "2")]
    pub attempt: u64,
}

/// What is known of a destination that fails.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Standing {
    /// Its failures.
    #[prost(message, required, tag = "1")]
    pub breaker: Breaker,
    /// The account, sixteen bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub account_id: Vec<u8>,
    /// The number after the last attempt that is in it.
    #[prost(uint64, tag = "3")]
    pub next_attempt: u64,
}

/// How far a replay is, as far as its deliveries are in the book.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Reached {
    /// Where to go on.
    #[prost(string, tag = "1")]
    pub cursor: String,
    /// What was read by then.
    #[prost(message, optional, tag = "2")]
    pub counts: Option<ReplayCounts>,
    /// Everything was.
    #[prost(bool, tag = "3")]
    pub is_done: bool,
}

/// A row of a book on its way elsewhere.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Entry {
    /// Which keyspace; see [`Book::keyspaces`].
    #[prost(uint32, tag = "1")]
    pub keyspace: u32,
    /// Its key, without the partition.
    #[prost(bytes = "vec", tag = "2")]
    pub key: Vec<u8>,
    /// Its value.
    #[prost(bytes = "vec", tag = "3")]
    pub value: Vec<u8>,
}

/// The book of one partition.
#[derive(Clone)]
pub struct Book {
    database: Database,
    rows: Keyspace,
    timers: Keyspace,
    backlog: Keyspace,
    replays: Keyspace,
    order: Keyspace,
    standings: Keyspace,
    reached: Keyspace,
    marks: Keyspace,
    partition: [u8; 2],
    #[cfg(test)]
    flush: std::sync::Arc<parking_lot::Mutex<(usize, Dump)>>,
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
            replays: keyspace("dispatch.replays")?,
            order: keyspace("dispatch.order")?,
            standings: keyspace("dispatch.standings")?,
            reached: keyspace("dispatch.reached")?,
            marks: keyspace("dispatch.marks")?,
            partition: (partition as u16).to_be_bytes(),
            #[cfg(test)]
            flush: std::sync::Arc::default(),
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

    /// A destination, then two numbers.
    fn of_destination(&self, destination: DestinationId, (one, two): (u64, u64)) -> [u8; 34] {
        let mut bytes = [0u8; 34];
        bytes[..2].copy_from_slice(&self.partition);
        bytes[2..18].copy_from_slice(destination.bytes());
        bytes[18..26].copy_from_slice(&one.to_be_bytes());
        bytes[26..].copy_from_slice(&two.to_be_bytes());
        bytes
    }

    fn backlog_key(&self, place: Place, destination: DestinationId) -> [u8; 34] {
        self.of_destination(destination, (place.0.max(0) as u64, place.1))
    }

    /// The keyspace and key that name a delivery, if it waits for what may come by itself.
    fn place(&self, key: DeliveryKey, waiting: &Waiting) -> Option<(&Keyspace, [u8; 34])> {
        let in_backlog = || self.backlog_key((waiting.due_at, key.seq), key.destination);
        match waiting.waits() {
            Waits::Timer => Some((&self.timers, self.timer_key(waiting.due_at, key))),
            Waits::Backlog => Some((&self.backlog, in_backlog())),
            Waits::Replay => Some((&self.replays, in_backlog())),
            Waits::Held => None,
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
        let before = self.get(key)?;
        if let Some((keyspace, place)) = before.as_ref().and_then(|before| self.place(key, before)) {
            batch.remove(keyspace, place);
        }
        batch.insert(&self.rows, self.row_key(key), waiting.encode_to_vec());
        if let Some((keyspace, place)) = self.place(key, waiting) {
            batch.insert(keyspace, place, []);
        }
        if before.is_none() && waiting.in_order_of != 0 {
            batch.insert(&self.order, self.of_destination(key.destination, (waiting.in_order_of, key.seq)), []);
        }
        batch.commit()?;
        self.has_committed();
        Ok(())
    }

    /// A delivery that waits.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn get(&self, key: DeliveryKey) -> Result<Option<Waiting>, Error> {
        let value = self.rows.get(self.row_key(key))?;
        Ok(value.and_then(|value| Waiting::decode(&value[..]).ok()))
    }

    /// Forgets a delivery that is done; whether another of its message waits for its destination now.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn remove(&self, key: DeliveryKey) -> Result<bool, Error> {
        let Some(waiting) = self.get(key)? else { return Ok(false) };
        let mut batch = self.database.batch();
        batch.remove(&self.rows, self.row_key(key));
        if let Some((keyspace, place)) = self.place(key, &waiting) {
            batch.remove(keyspace, place);
        }
        if waiting.in_order_of != 0 {
            batch.remove(&self.order, self.of_destination(key.destination, (waiting.in_order_of, key.seq)));
        }
        // In the same breath: nobody would let it go later.
        let mut others = self.in_order(key.destination, waiting.in_order_of);
        let next = others.find(|seq| seq.as_ref().ok() != Some(&key.seq)).transpose()?;
        let next = next.map(|seq| DeliveryKey { seq, ..key });
        let mut is_let_go = false;
        if let Some(next) = next
            && let Some(held) = self.get(next)?
            && held.waits() == Waits::Held
        {
            let waiting = Waiting { waits: Waits::Backlog as i32, ..held };
            batch.insert(&self.rows, self.row_key(next), waiting.encode_to_vec());
            batch.insert(&self.backlog, self.backlog_key((waiting.due_at, next.seq), next.destination), []);
            is_let_go = true;
        }
        batch.commit()?;
        self.has_committed();
        Ok(is_let_go)
    }

    /// The first event of a message whose delivery to a destination is not done.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn first_in_order(&self, destination: DestinationId, of: u64) -> Result<Option<u64>, Error> {
        self.in_order(destination, of).next().transpose()
    }

    /// The events of a message whose deliveries to a destination are not done, in their order.
    fn in_order(&self, destination: DestinationId, of: u64) -> impl Iterator<Item = Result<u64, Error>> {
        let bounds = self.of_destination(destination, (of, 0))..=self.of_destination(destination, (of, u64::MAX));
        let rows = (of != 0).then(|| self.order.range(bounds));
        rows.into_iter().flatten().filter_map(|row| match row.key() {
            Ok(key) => number_at(&key, 26).map(Ok),
            Err(error) => Some(Err(error.into())),
        })
    }

    /// Moves what is due by `now` into the backlogs of its destinations, at most `limit` of it: whose and which have more
    /// now, and when the next is due.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn ripen(&self, now: i64, limit: usize) -> Result<(BTreeSet<Owned>, Option<i64>), Error> {
        let mut destinations = BTreeSet::new();
        for (count, timer) in self.timers.prefix(self.partition).enumerate() {
            let key = timer.key()?;
            let Some((due_at, delivery)) = read_timer(&key) else { continue };
            if due_at > now || count >= limit {
                return Ok((destinations, Some(due_at)));
            }
            if let Some(waiting) = self.get(delivery)? {
                let waits = waiting.when_due();
                destinations.insert((waiting.account_id.clone(), delivery.destination, waits));
                self.put(delivery, &Waiting { waits: waits as i32, ..waiting })?;
            }
        }
        Ok((destinations, None))
    }

    /// Deliveries that wait for a destination, the earliest first.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn waiting_for(
        &self,
        destination: DestinationId,
        waits: Waits,
        limit: usize,
    ) -> Result<Vec<(DeliveryKey, Waiting)>, Error> {
        let keyspace = if waits == Waits::Replay { &self.replays } else { &self.backlog };
        let bounds = self.of_destination(destination, (0, 0))..=self.of_destination(destination, (u64::MAX, u64::MAX));
        let mut found = Vec::new();
        for row in keyspace.range(bounds).take(limit) {
            let Some(seq) = number_at(&row.key()?, 26) else { continue };
            let key = DeliveryKey { seq, destination };
            found.extend(self.get(key)?.map(|waiting| (key, waiting)));
        }
        Ok(found)
    }

    /// Whose and which destinations have deliveries that wait for them, and whether they are new or replays.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn destinations(&self) -> Result<Vec<Owned>, Error> {
        let mut found = Vec::new();
        for (keyspace, waits) in [(&self.backlog, Waits::Backlog), (&self.replays, Waits::Replay)] {
            let mut start = self.partition.to_vec();
            while let Some(row) = keyspace.range(start.clone()..).next() {
                let key = row.key()?;
                let Some(destination) = key.get(2..18).filter(|_| key.starts_with(&self.partition)) else { break };
                let destination = DestinationId::from_slice(destination)?;
                let first = self.waiting_for(destination, waits, 1)?.pop();
                found.extend(first.map(|(_, waiting)| (waiting.account_id, destination, waits)));
                start = self.of_destination(destination, (u64::MAX, u64::MAX)).to_vec();
                start.push(0);
            }
        }
        Ok(found)
    }

    fn standing_key(&self, destination: DestinationId) -> [u8; 18] {
        let mut bytes = [0u8; 18];
        bytes[..2].copy_from_slice(&self.partition);
        bytes[2..].copy_from_slice(destination.bytes());
        bytes
    }

    /// Notes how a destination that fails stands; one that does not has no row.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn put_standing(&self, destination: DestinationId, standing: &Standing) -> Result<(), Error> {
        let key = self.standing_key(destination);
        match standing.breaker.is_closed() {
            true => self.standings.remove(key)?,
            false => self.standings.insert(key, standing.encode_to_vec())?,
        }
        self.has_committed();
        Ok(())
    }

    /// Every destination that fails.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn standings(&self) -> Result<Vec<(DestinationId, Standing)>, Error> {
        let mut found = Vec::new();
        for row in self.standings.prefix(self.partition) {
            let (key, value) = row.into_inner()?;
            let (Some(id), Ok(standing)) = (key.get(2..), Standing::decode(&value[..])) else { continue };
            found.push((DestinationId::from_slice(id)?, standing));
        }
        Ok(found)
    }

    fn reached_key(&self, replay: ReplayId) -> [u8; 18] {
        let mut bytes = [0u8; 18];
        bytes[..2].copy_from_slice(&self.partition);
        bytes[2..].copy_from_slice(replay.bytes());
        bytes
    }

    /// Notes how far a replay is.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn put_reached(&self, replay: ReplayId, reached: &Reached) -> Result<(), Error> {
        self.reached.insert(self.reached_key(replay), reached.encode_to_vec())?;
        self.has_committed();
        Ok(())
    }

    /// How far a replay is.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn reached(&self, replay: ReplayId) -> Result<Reached, Error> {
        let value = self.reached.get(self.reached_key(replay))?;
        Ok(value.and_then(|value| Reached::decode(&value[..]).ok()).unwrap_or_default())
    }

    /// Forgets how far replays were that nobody knows any more.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn keep_reached(&self, known: impl Fn(ReplayId) -> bool) -> Result<(), Error> {
        for row in self.reached.prefix(self.partition) {
            let key = row.key()?;
            let id = key.get(2..).and_then(|id| ReplayId::from_slice(id).ok());
            if !id.is_some_and(&known) {
                self.reached.remove(key)?;
            }
        }
        Ok(())
    }

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

    /// Makes marks durable, and all that was written before.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn checkpoint(&self, marks: Marks) -> Result<(), Error> {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncAll));
        batch.insert(&self.marks, self.partition, marks.encode_to_vec());
        batch.commit()?;
        self.has_committed();
        Ok(())
    }

    /// Tests look at what the device may have at any moment.
    #[cfg(not(test))]
    fn has_committed(&self) {}
}

fn number_at(key: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(at..at + 8)?.try_into().ok()?))
}

fn read_timer(key: &[u8]) -> Option<(i64, DeliveryKey)> {
    let destination = DestinationId::from_slice(key.get(18..)?).ok()?;
    Some((number_at(key, 2)? as i64, DeliveryKey { seq: number_at(key, 10)?, destination }))
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

    fn has_committed(&self) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::webhook::breaker::Patience;
    use sendtrail_schemas::destination::Health;
    use tempfile::TempDir;
    use uuid::Uuid;

    fn id(n: u128) -> DestinationId {
        DestinationId(Uuid::from_u128(n))
    }

    fn key(seq: u64) -> DeliveryKey {
        DeliveryKey { seq, destination: id(9) }
    }

    fn waiting(due_at: i64) -> Waiting {
        Waiting { account_id: vec![1], due_at, event_name: "Open".into(), ..Waiting::default() }
    }

    fn seqs(book: &Book, waits: Waits) -> Vec<u64> {
        book.waiting_for(id(9), waits, 10).unwrap().into_iter().map(|(key, _)| key.seq).collect()
    }

    #[test]
    fn a_delivery_has_one_timer_at_a_time() {
        let folder = TempDir::new().unwrap();
        let database = Database::builder(folder.path()).open().unwrap();
        let (book, other) = (Book::open(&database, 0).unwrap(), Book::open(&database, 1).unwrap());
        book.put(key(1), &waiting(100)).unwrap();
        book.put(key(2), &waiting(50)).unwrap();
        book.put(key(1), &waiting(20)).unwrap();
        other.put(key(7), &waiting(1)).unwrap();
        let of = BTreeSet::from([(vec![1], id(9), Waits::Backlog)]);
        assert_eq!(book.ripen(10, 10).unwrap(), (BTreeSet::new(), Some(20)));
        assert_eq!(book.ripen(60, 1).unwrap(), (of.clone(), Some(50)));
        assert_eq!(seqs(&book, Waits::Backlog), [1]);
        assert_eq!(book.ripen(60, 10).unwrap(), (of, None));
        assert_eq!(seqs(&book, Waits::Backlog), [1, 2]);
        let replay = Waiting { waits: Waits::Replay as i32, ..waiting(5) };
        book.put(key(3), &replay).unwrap();
        assert_eq!((seqs(&book, Waits::Backlog), seqs(&book, Waits::Replay)), (vec![1, 2], vec![3]));
        assert_eq!(book.destinations().unwrap(), [(vec![1], id(9), Waits::Backlog), (vec![1], id(9), Waits::Replay)]);
        assert_eq!(other.destinations().unwrap(), []);
        book.remove(key(1)).unwrap();
        book.remove(key(1)).unwrap();
        // Tried again and failed: back to the timers.
        book.put(key(2), &waiting(90)).unwrap();
        book.put(key(3), &waiting(95)).unwrap();
        assert_eq!((seqs(&book, Waits::Backlog), seqs(&book, Waits::Replay)), (vec![], vec![]));
        assert_eq!(book.ripen(60, 10).unwrap(), (BTreeSet::new(), Some(90)));
        assert_eq!(book.get(key(2)).unwrap(), Some(waiting(90)));
        book.checkpoint(Marks { event: 3, attempt: 4 }).unwrap();
        assert_eq!((book.marks().unwrap().event, other.marks().unwrap().event), (3, 0));
    }

    #[test]
    fn what_is_held_comes_when_the_one_before_is_done() {
        let folder = TempDir::new().unwrap();
        let book = Book::open(&Database::builder(folder.path()).open().unwrap(), 0).unwrap();
        let of = |message: u64, waits: Waits| Waiting { in_order_of: message, waits: waits as i32, ..waiting(10) };
        for seq in [1, 4, 6] {
            let waits = if book.first_in_order(id(9), 77).unwrap().is_some() { Waits::Held } else { Waits::Backlog };
            book.put(key(seq), &of(77, waits)).unwrap();
        }
        book.put(key(2), &of(78, Waits::Backlog)).unwrap();
        assert_eq!(seqs(&book, Waits::Backlog), [1, 2]);
        // It fails, and is tried again later: those behind it still wait.
        book.put(key(1), &of(77, Waits::Timer)).unwrap();
        assert_eq!((seqs(&book, Waits::Backlog), book.first_in_order(id(9), 77).unwrap()), (vec![2], Some(1)));
        assert!(book.remove(key(1)).unwrap());
        assert_eq!(seqs(&book, Waits::Backlog), [2, 4]);
        assert!(!book.remove(key(2)).unwrap());
        // The last one goes before the one before it: nothing is let go.
        assert!(!book.remove(key(6)).unwrap());
        assert!(!book.remove(key(4)).unwrap());
        assert_eq!((seqs(&book, Waits::Backlog), book.first_in_order(id(9), 77).unwrap()), (vec![], None));
    }

    #[test]
    fn only_destinations_that_fail_have_a_standing() {
        let folder = TempDir::new().unwrap();
        let book = Book::open(&Database::builder(folder.path()).open().unwrap(), 3).unwrap();
        let mut standing = Standing { account_id: vec![1], next_attempt: 8, ..Standing::default() };
        standing.breaker.note(&Patience::default(), false, 1_000);
        book.put_standing(id(9), &standing).unwrap();
        assert_eq!(book.standings().unwrap(), [(id(9), standing.clone())]);
        standing.breaker.note(&Patience::default(), true, 2_000);
        assert_eq!(standing.breaker.health(), Health::Working);
        book.put_standing(id(9), &standing).unwrap();
        assert_eq!(book.standings().unwrap(), []);
    }
}
