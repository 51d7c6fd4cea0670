//! What is kept beside the archive to answer quickly: hourly sums, the last attempt of each delivery, dead letters.
//!
//! All are written together with the marks up to which they are, so that an event is added up once. Sums and attempts
//! can be made anew from the archive; dead letters cannot.

mod deliveries;
mod erasures;
mod reader;
mod rebuilding;

use std::collections::HashMap;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use foldhash::fast::RandomState;
use prost::Message;
use sendtrail_eventlog::failpoint::reach;
use sendtrail_schemas::event::Event;
use sendtrail_schemas::ids::{AccountId, DestinationId};
use sendtrail_schemas::mail::{Attempt, DeadLetter, DeliveryStatus};
use sendtrail_schemas::rollup::{MAX_ROWS, Rollup, Sums, dims, dims_hash, sums};
use sendtrail_schemas::time::Hour;
use sendtrail_schemas::topic::{Topic, TopicPartition};

use crate::Error;
use deliveries::{DeliveryKey, delivery_key, read_key_of_before};

pub use deliveries::{DeliveryQuery, LastAttempt};
pub use erasures::{ErasureJobs, Job, Store as KeptIn};
pub use reader::{Letters, ProjectionReader};

/// Rows of hours kept in memory for the next events of the same hours.
const CACHED_ROWS: usize = 200_000;
/// The keyspaces of deliveries, whose rows expire.
pub(crate) const DELIVERIES: &str = "proj.deliveries";
/// See [`DELIVERIES`]: those that were tried and are not delivered.
pub(crate) const TROUBLED: &str = "proj.troubled";
/// What was kept of deliveries by the order of events.
const BEFORE: &str = "proj.attempts";
/// The name of an hour's own row, before those of its dimensions.
const HEAD: u128 = 0;

/// See the module.
pub struct Projections {
    database: Database,
    rollups: Keyspace,
    deliveries: Keyspace,
    troubled: Keyspace,
    dead_letters: Keyspace,
    marks: Keyspace,
    erasures: ErasureJobs,
    hours: HashMap<(AccountId, Hour), HourState, RandomState>,
    /// Those that were added to since the last flush.
    dirty_hours: Vec<(AccountId, Hour)>,
    cached: usize,
    passed: HashMap<TopicPartition, u64>,
    pending_deliveries: HashMap<DeliveryKey, LastAttempt, RandomState>,
    pending_letters: Vec<([u8; 10], Vec<u8>)>,
    pending_erasures: Vec<Job>,
}

/// The rows of an hour that are being added to.
#[derive(Default)]
struct HourState {
    rows: HashMap<u128, (Rollup, bool), RandomState>,
    overflowing: bool,
    dirty: bool,
}

impl Projections {
    /// Opens the projections in a database, whole or not, for a rebuild.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn open_to_rebuild(database: &Database) -> Result<Self, Error> {
        let keyspace = |name: &str| database.keyspace(name, KeyspaceCreateOptions::default);
        let mut projections = Self {
            database: database.clone(),
            rollups: keyspace("proj.rollups")?,
            deliveries: keyspace(DELIVERIES)?,
            troubled: keyspace(TROUBLED)?,
            dead_letters: keyspace("proj.dead-letters")?,
            marks: keyspace("proj.marks")?,
            erasures: ErasureJobs {
                database: database.clone(),
                jobs: keyspace("proj.erasures")?,
                kept: keyspace("proj.kept-from")?,
            },
            hours: HashMap::default(),
            dirty_hours: Vec::new(),
            cached: 0,
            passed: HashMap::new(),
            pending_deliveries: HashMap::default(),
            pending_letters: Vec::new(),
            pending_erasures: Vec::new(),
        };
        projections.take_over(&keyspace(BEFORE)?)?;
        Ok(projections)
    }

    /// Brings what an earlier program kept of deliveries into the order of now.
    fn take_over(&mut self, before: &Keyspace) -> Result<(), Error> {
        for row in before.iter() {
            let (key, value) = row.into_inner()?;
            let (Some((partition, seq, destination)), Some(last)) =
                (read_key_of_before(&key), LastAttempt::read(&value))
            else {
                continue;
            };
            self.note_delivery(delivery_key(partition, seq, destination), last);
        }
        if !self.pending_deliveries.is_empty() {
            self.flush(true)?;
            before.clear()?;
        }
        Ok(())
    }

    /// A reader.
    pub fn reader(&self) -> ProjectionReader {
        ProjectionReader {
            database: self.database.clone(),
            rollups: self.rollups.clone(),
            deliveries: self.deliveries.clone(),
            troubled: self.troubled.clone(),
            dead_letters: self.dead_letters.clone(),
        }
    }

    /// The number of the first record of a partition that is not in the projections yet.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn mark(&self, of: TopicPartition) -> Result<u64, Error> {
        let value = self.marks.get(mark_key(of))?;
        Ok(value.and_then(|value| value[..].try_into().ok()).map_or(0, u64::from_be_bytes))
    }

    /// Adds an event up; one before the mark is passed over by the caller.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn add_event(&mut self, event: &Event) -> Result<(), Error> {
        self.add_pending(event)?;
        self.add_erasure(event)?;
        // Last: whatever fails is tried again, and only a sum is not the same after twice.
        self.add_sums(event)?;
        self.passed.insert(TopicPartition::new(Topic::Events, event.partition), event.seq + 1);
        Ok(())
    }

    /// Keeps that an event is to be delivered, unless an attempt at it is known already.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn add_pending(&mut self, event: &Event) -> Result<(), Error> {
        for destination in event.destinations() {
            let key = delivery_key(event.partition, event.seq, destination);
            if !self.pending_deliveries.contains_key(&key) && self.deliveries.get(key)?.is_none() {
                let pending =
                    LastAttempt { created_at: event.received_at, event_type: event.kind, ..LastAttempt::default() };
                self.pending_deliveries.insert(key, pending);
            }
        }
        Ok(())
    }

    /// Keeps that a recipient is to be erased, unless that is known already.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn add_erasure(&mut self, event: &Event) -> Result<(), Error> {
        if let Some(job) = Job::of(event)
            && self.erasures.jobs.get(job.key())?.is_none()
        {
            self.pending_erasures.push(job);
        }
        Ok(())
    }

    /// What is to be erased.
    pub fn erasures(&self) -> ErasureJobs {
        self.erasures.clone()
    }

    /// Adds an event up without moving a mark.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn add_sums(&mut self, event: &Event) -> Result<(), Error> {
        let Some(added) = sums(event) else { return Ok(()) };
        let key = (event.account(), event.occurred().hour());
        if !self.hours.contains_key(&key) {
            let state = load_hour(&self.rollups, key)?;
            self.cached += state.rows.len();
            self.hours.insert(key, state);
        }
        let Some(hour) = self.hours.get_mut(&key) else { return Ok(()) };
        if !std::mem::replace(&mut hour.dirty, true) {
            self.dirty_hours.push(key);
        }
        if hour.overflowing {
            return Ok(());
        }
        let hash = dims_hash(event);
        if let Some((row, dirty)) = hour.rows.get_mut(&hash) {
            row.sums.add(&added);
            *dirty = true;
        } else if hour.rows.len() < MAX_ROWS {
            hour.rows.insert(hash, (Rollup { dims: dims(event), sums: added }, true));
            self.cached += 1;
        } else {
            hour.overflowing = true;
            self.cached -= hour.rows.len();
            hour.rows = HashMap::default();
        }
        Ok(())
    }

    /// Keeps the last attempt of a delivery.
    pub fn add_attempt(&mut self, partition: u32, offset: u64, attempt: &Attempt) {
        self.passed.insert(TopicPartition::new(Topic::Attempts, partition), offset + 1);
        let Ok(destination) = DestinationId::from_slice(&attempt.destination_id) else { return };
        let last = LastAttempt {
            status: attempt.status,
            attempts: attempt.number,
            status_code: attempt.status_code,
            finished_at: attempt.finished_at,
            // Attempts of before do not tell: none was before its event.
            created_at: if attempt.event_received_at > 0 {
                attempt.event_received_at
            } else {
                attempt.first_started_at
            },
            event_type: attempt.event_type,
            next_due_at: attempt.next_due_at,
            offset,
        };
        self.note_delivery(delivery_key(partition, attempt.event_seq, destination), last);
    }

    fn note_delivery(&mut self, key: DeliveryKey, last: LastAttempt) {
        self.pending_deliveries.insert(key, last);
    }

    /// Keeps a dead letter.
    pub fn add_dead_letter(&mut self, letter: &DeadLetter) {
        self.passed.insert(TopicPartition::new(Topic::DeadLetter, letter.partition), letter.seq + 1);
        self.pending_letters.push((letter_key(letter.partition, letter.seq), letter.encode_to_vec()));
    }

    /// Writes what was added and the marks, together. Durable when this returns if `durably`, else visible at least.
    ///
    /// # Errors
    /// [`Error::Store`]: nothing of it is there after a restart.
    pub fn flush(&mut self, durably: bool) -> Result<(), Error> {
        if self.passed.is_empty() && !durably {
            return Ok(());
        }
        let mut batch = self.database.batch().durability(durably.then_some(PersistMode::SyncAll));
        for (account, hour) in std::mem::take(&mut self.dirty_hours) {
            let Some(state) = self.hours.get_mut(&(account, hour)) else { continue };
            state.dirty = false;
            if state.overflowing {
                batch.insert(&self.rollups, hour_key(account, hour, HEAD), b"overflowing");
            }
            for (hash, (row, dirty)) in &mut state.rows {
                if std::mem::take(dirty) {
                    batch.insert(&self.rollups, hour_key(account, hour, *hash), row.encode_to_vec());
                }
            }
        }
        for (key, last) in self.pending_deliveries.drain() {
            let value = last.value();
            match last.status() {
                DeliveryStatus::Failed | DeliveryStatus::GaveUp => batch.insert(&self.troubled, key, &value[..]),
                // Most are delivered at once, and were never in trouble.
                DeliveryStatus::Delivered if last.attempts > 1 => batch.remove(&self.troubled, key),
                DeliveryStatus::Delivered | DeliveryStatus::Pending => {}
            }
            batch.insert(&self.deliveries, key, value);
        }
        for (key, value) in self.pending_letters.drain(..) {
            batch.insert(&self.dead_letters, key, value);
        }
        for job in self.pending_erasures.drain(..) {
            batch.insert(&self.erasures.jobs, job.key(), job.encode_to_vec());
        }
        for (of, next) in &self.passed {
            batch.insert(&self.marks, mark_key(*of), next.to_be_bytes());
        }
        reach("projections.before");
        batch.commit()?;
        reach("projections.durable");
        self.passed.clear();
        if self.cached > CACHED_ROWS {
            self.hours.clear();
            self.cached = 0;
        }
        Ok(())
    }
}

fn load_hour(rollups: &Keyspace, (account, hour): (AccountId, Hour)) -> Result<HourState, Error> {
    let mut state = HourState::default();
    for row in rollups.prefix(&hour_key(account, hour, HEAD)[..20]) {
        let (key, value) = row.into_inner()?;
        match hash_of(&key) {
            Some(HEAD) => state.overflowing = true,
            Some(hash) => drop(state.rows.insert(hash, (read_row(&value)?, false))),
            None => {}
        }
    }
    if state.overflowing {
        state.rows.clear();
    }
    Ok(state)
}

fn read_row(value: &[u8]) -> Result<Rollup, Error> {
    let malformed = |cause| sendtrail_schemas::Error::Malformed(format!("rollup row: {cause}"));
    Ok(Rollup::decode(value).map_err(malformed)?)
}

/// Account, hour (ordered), row.
fn hour_key(account: AccountId, hour: Hour, hash: u128) -> [u8; 36] {
    let mut key = [0u8; 36];
    key[..16].copy_from_slice(account.bytes());
    key[16..20].copy_from_slice(&((hour as u32) ^ (1 << 31)).to_be_bytes());
    key[20..].copy_from_slice(&hash.to_be_bytes());
    key
}

fn hour_of(key: &[u8]) -> Option<Hour> {
    let bytes = key.get(16..20)?.try_into().ok()?;
    Some((u32::from_be_bytes(bytes) ^ (1 << 31)) as Hour)
}

fn hash_of(key: &[u8]) -> Option<u128> {
    Some(u128::from_be_bytes(key.get(20..)?.try_into().ok()?))
}

fn letter_key(partition: u32, seq: u64) -> [u8; 10] {
    let mut key = [0u8; 10];
    key[..2].copy_from_slice(&(partition as u16).to_be_bytes());
    key[2..].copy_from_slice(&seq.to_be_bytes());
    key
}

fn mark_key(of: TopicPartition) -> [u8; 3] {
    let partition = (of.partition as u16).to_be_bytes();
    [of.topic.code(), partition[0], partition[1]]
}

/// The sum of rows, whatever they are told apart by.
pub fn total<'a>(rows: impl IntoIterator<Item = &'a Rollup>) -> Sums {
    let mut sums = Sums::default();
    rows.into_iter().for_each(|row| sums.add(&row.sums));
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use sendtrail_schemas::kind::EventType;
    use sendtrail_schemas::rollup::{Apart, HourRows};
    use sendtrail_schemas::time::HOUR;
    use tempfile::TempDir;
    use uuid::Uuid;

    fn event(seq: u64, account: u128, hour: i64, to: &str) -> Event {
        Event {
            account_id: Uuid::from_u128(account).as_bytes().to_vec(),
            seq,
            kind: EventType::Send as i32,
            occurred_at: hour * HOUR + 5,
            recipient: format!("a@{to}"),
            from: Some("x@y.co".into()),
            ..Event::default()
        }
    }

    fn open(folder: &TempDir) -> Projections {
        Projections::open(&Database::builder(folder.path()).open().unwrap()).unwrap()
    }

    #[test]
    fn sums_survive_restarts_with_their_marks_and_accounts_are_apart() {
        let folder = TempDir::new().unwrap();
        let events = TopicPartition::new(Topic::Events, 0);
        let (one, two) = (AccountId(Uuid::from_u128(1)), AccountId(Uuid::from_u128(2)));
        let mut projections = open(&folder);
        for (seq, (account, hour, to)) in
            [(1, 5, "a.co"), (1, 5, "b.co"), (1, 5, "a.co"), (2, 5, "a.co"), (1, -1, "a.co")].into_iter().enumerate()
        {
            projections.add_event(&event(seq as u64, account, hour, to)).unwrap();
        }
        projections.flush(true).unwrap();
        drop(projections);
        let mut projections = open(&folder);
        assert_eq!(projections.mark(events).unwrap(), 5);
        projections.add_event(&event(5, 1, 5, "a.co")).unwrap();
        projections.flush(false).unwrap();
        let reader = projections.reader();
        let hours = reader.rollups(one, -1, 6, &Apart::ALL).unwrap();
        let sends: Vec<(Hour, u64)> = hours
            .iter()
            .map(|hour| match hour {
                HourRows::Exact(hour, rows) => (*hour, total(rows).sends),
                HourRows::Overflowing(hour) => (*hour, 0),
            })
            .collect();
        assert_eq!(sends, [(-1, 1), (5, 4)]);
        // What need not be told apart is one row.
        let rows = |apart: &Apart| {
            let hours = reader.rollups(one, -1, 6, apart).unwrap();
            let count = |hour: HourRows| match hour {
                HourRows::Exact(hour, rows) => (hour, rows.len(), total(&rows).sends),
                HourRows::Overflowing(hour) => (hour, 0, 0),
            };
            hours.into_iter().map(count).collect::<Vec<_>>()
        };
        assert_eq!(rows(&Apart::ALL), [(-1, 1, 1), (5, 2, 4)]);
        assert_eq!(rows(&Apart { recipient_domain: true, ..Apart::NONE }), [(-1, 1, 1), (5, 2, 4)]);
        assert_eq!(rows(&Apart::NONE), [(-1, 1, 1), (5, 1, 4)]);
        assert_eq!(reader.rollups(one, 0, 5, &Apart::ALL).unwrap(), []);
        assert_eq!(reader.rollups(two, -100, 100, &Apart::ALL).unwrap().len(), 1);
    }

    #[test]
    fn an_hour_with_too_many_rows_is_marked_and_stays_so() {
        let folder = TempDir::new().unwrap();
        let account = AccountId(Uuid::from_u128(1));
        let mut projections = open(&folder);
        for n in 0..=MAX_ROWS as u64 {
            projections.add_event(&event(n, 1, 7, &format!("d{n}.co"))).unwrap();
            if n == MAX_ROWS as u64 - 1 {
                projections.flush(false).unwrap();
                assert!(
                    matches!(&projections.reader().rollups(account, 7, 8, &Apart::ALL).unwrap()[..], [HourRows::Exact(7, rows)] if rows.len() == MAX_ROWS)
                );
            }
        }
        projections.flush(true).unwrap();
        assert_eq!(projections.reader().rollups(account, 7, 8, &Apart::ALL).unwrap(), [HourRows::Overflowing(7)]);
        drop(projections);
        let mut projections = open(&folder);
        projections.add_event(&event(20_000, 1, 7, "new.co")).unwrap();
        projections.flush(false).unwrap();
        assert_eq!(projections.reader().rollups(account, 7, 8, &Apart::ALL).unwrap(), [HourRows::Overflowing(7)]);
    }
}
