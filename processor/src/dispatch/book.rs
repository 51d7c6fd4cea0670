//! Deliveries that wait, on the device: what was tried and failed, what found no room in memory, what must not come before
//! another, and what is made once more.
//!
//! Each has a row, and a place that says what it waits for: a timer while it is not due, the backlog of its destination
//! when it is, nothing while another of its message comes before it. So one destination that takes nothing never stands
//! before the others'. Rows are written as attempts end; a checkpoint makes them durable together with the marks, and never
//! a mark before the rows that it stands for.

mod moving;
mod records;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use prost::Message;
use sendtrail_schemas::ids::{DestinationId, ReplayId};

use crate::Error;

#[cfg(test)]
pub use moving::Dump;
pub use records::{DeliveryKey, Entry, Marks, Owned, Place, Reached, Standing, Waiting, Waits};

/// What waits for long belongs on the device.
const MEMTABLE: u64 = 8 << 20;

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
        let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE);
        let keyspace = |name: &str| database.keyspace(name, options);
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

    /// Forgets a delivery that is done; where another of its message waits for its destination now, if one does.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn remove(&self, key: DeliveryKey) -> Result<Option<Place>, Error> {
        match self.get(key)? {
            Some(waiting) => self.remove_row(key, &waiting),
            None => Ok(None),
        }
    }

    /// The same of one that was looked up.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn remove_row(&self, key: DeliveryKey, waiting: &Waiting) -> Result<Option<Place>, Error> {
        let mut batch = self.database.batch();
        batch.remove(&self.rows, self.row_key(key));
        if let Some((keyspace, place)) = self.place(key, waiting) {
            batch.remove(keyspace, place);
        }
        if waiting.in_order_of != 0 {
            batch.remove(&self.order, self.of_destination(key.destination, (waiting.in_order_of, key.seq)));
        }
        // In the same breath: nobody would let it go later.
        let mut others = self.in_order(key.destination, waiting.in_order_of);
        let next = others.find(|seq| seq.as_ref().ok() != Some(&key.seq)).transpose()?;
        let next = next.map(|seq| DeliveryKey { seq, ..key });
        let mut let_go = None;
        if let Some(next) = next
            && let Some(held) = self.get(next)?
            && held.waits() == Waits::Held
        {
            let waiting = Waiting { waits: Waits::Backlog as i32, ..held };
            batch.insert(&self.rows, self.row_key(next), waiting.encode_to_vec());
            batch.insert(&self.backlog, self.backlog_key((waiting.due_at, next.seq), next.destination), []);
            let_go = Some((waiting.due_at, next.seq));
        }
        batch.commit()?;
        self.has_committed();
        Ok(let_go)
    }

    /// Forgets deliveries that nothing waits for, as they were noted.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn remove_all(&self, over: &[(DeliveryKey, Waiting)]) -> Result<(), Error> {
        if over.is_empty() {
            return Ok(());
        }
        let mut batch = self.database.batch();
        for (key, waiting) in over {
            batch.remove(&self.rows, self.row_key(*key));
            if let Some((keyspace, place)) = self.place(*key, waiting) {
                batch.remove(keyspace, place);
            }
        }
        batch.commit()?;
        self.has_committed();
        Ok(())
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
    /// now, from which place on, and when the next is due. Nothing is due before `from`.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn ripen(&self, from: i64, now: i64, limit: usize) -> Result<(BTreeMap<Owned, Place>, Option<i64>), Error> {
        let mut destinations = BTreeMap::new();
        // What was removed stands before the first for a while, and is not passed over again each time.
        let nothing = DeliveryKey { seq: 0, destination: DestinationId(uuid::Uuid::nil()) };
        let everything = DeliveryKey { seq: u64::MAX, destination: DestinationId(uuid::Uuid::max()) };
        let bounds = self.timer_key(from, nothing)..=self.timer_key(i64::MAX, everything);
        for (count, timer) in self.timers.range(bounds).enumerate() {
            let key = timer.key()?;
            let Some((due_at, delivery)) = read_timer(&key) else { continue };
            if due_at > now || count >= limit {
                return Ok((destinations, Some(due_at)));
            }
            if let Some(waiting) = self.get(delivery)? {
                let waits = waiting.when_due();
                let place = (waiting.due_at, delivery.seq);
                let first =
                    destinations.entry((waiting.account_id.clone(), delivery.destination, waits)).or_insert(place);
                *first = place.min(*first);
                self.put(delivery, &Waiting { waits: waits as i32, ..waiting })?;
            }
        }
        Ok((destinations, None))
    }

    /// Deliveries that wait for a destination, the earliest first, from a place on, but for some.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn waiting_for(
        &self,
        destination: DestinationId,
        waits: Waits,
        from: Place,
        but: &BTreeSet<Place>,
        limit: usize,
    ) -> Result<Vec<(DeliveryKey, Waiting)>, Error> {
        let keyspace = if waits == Waits::Replay { &self.replays } else { &self.backlog };
        let bounds = self.backlog_key(from, destination)..=self.of_destination(destination, (u64::MAX, u64::MAX));
        let mut found = Vec::new();
        for row in keyspace.range(bounds) {
            if found.len() >= limit {
                break;
            }
            let row = row.key()?;
            let (Some(due_at), Some(seq)) = (number_at(&row, 18), number_at(&row, 26)) else { continue };
            if but.contains(&(due_at as i64, seq)) {
                continue;
            }
            let key = DeliveryKey { seq, destination };
            found.extend(self.get(key)?.map(|waiting| (key, waiting)));
        }
        Ok(found)
    }

    /// Whose and which destinations have deliveries that wait for them, whether they are new or replays, and from which
    /// place on.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn destinations(&self) -> Result<Vec<(Owned, Place)>, Error> {
        let mut found = Vec::new();
        for (keyspace, waits) in [(&self.backlog, Waits::Backlog), (&self.replays, Waits::Replay)] {
            let mut start = self.partition.to_vec();
            while let Some(row) = keyspace.range(start.clone()..).next() {
                let key = row.key()?;
                let Some(destination) = key.get(2..18).filter(|_| key.starts_with(&self.partition)) else { break };
                let destination = DestinationId::from_slice(destination)?;
                let first = self.waiting_for(destination, waits, (0, 0), &BTreeSet::new(), 1)?.pop();
                found.extend(
                    first.map(|(key, waiting)| ((waiting.account_id, destination, waits), (waiting.due_at, key.seq))),
                );
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
