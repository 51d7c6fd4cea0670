//! Erasures that have not reached every store yet. The only place, besides the log, where an address is kept that is to go.

use std::collections::BTreeMap;

use fjall::{Database, Keyspace, PersistMode};
use prost::Message;
use sendtrail_schemas::event::Event;
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::time::Day;
use uuid::Uuid;

use super::letter_key;
use crate::Error;

/// An erasure under way.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Job {
    /// The account, sixteen bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub account_id: Vec<u8>,
    /// The erasure, sixteen bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub erasure_id: Vec<u8>,
    /// Who, in lower case.
    #[prost(string, tag = "3")]
    pub folded: String,
    /// The account's partition.
    #[prost(uint32, tag = "4")]
    pub partition: u32,
    /// The number of the event that asks for it: it and whatever was before are cleared.
    #[prost(uint64, tag = "5")]
    pub seq: u64,
    /// Rows of the archive that were there to clear.
    #[prost(uint64, tag = "6")]
    pub rows: u64,
    /// Whether the archive is clear.
    #[prost(bool, tag = "7")]
    pub archived: bool,
}

impl Job {
    /// The erasure that an event asks for; of one that was cleared already, nothing is left to do.
    pub fn of(event: &Event) -> Option<Self> {
        if event.kind() != EventType::RecipientErased || event.recipient.is_empty() {
            return None;
        }
        Some(Self {
            account_id: event.account_id.clone(),
            erasure_id: Uuid::parse_str(&event.event_id).unwrap_or_default().into_bytes().to_vec(),
            folded: sendtrail_schemas::address::fold(&event.recipient).into_owned(),
            partition: event.partition,
            seq: event.seq,
            rows: 0,
            archived: false,
        })
    }

    /// Its key: partition and number.
    pub fn key(&self) -> [u8; 10] {
        letter_key(self.partition, self.seq)
    }
}

/// Erasures under way, and how far the retention of each account is.
#[derive(Clone)]
pub struct ErasureJobs {
    pub(super) database: Database,
    pub(super) jobs: Keyspace,
    pub(super) kept: Keyspace,
}

impl ErasureJobs {
    /// What is under way, in the order of partitions and numbers.
    ///
    /// # Errors
    /// [`Error::Store`]; [`Error::Schema`] when a row is not what it should be.
    pub fn all(&self) -> Result<Vec<Job>, Error> {
        let read = |row: fjall::Guard| {
            let malformed = |cause| sendtrail_schemas::Error::Malformed(format!("an erasure's row: {cause}"));
            Ok(Job::decode(&row.into_inner()?.1[..]).map_err(malformed)?)
        };
        self.jobs.iter().map(read).collect()
    }

    /// Keeps how far jobs are, durable when this returns.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn keep(&self, jobs: &[Job]) -> Result<(), Error> {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncAll));
        for job in jobs {
            batch.insert(&self.jobs, job.key(), job.encode_to_vec());
        }
        Ok(batch.commit()?)
    }

    /// Forgets one that has reached every store, durable when this returns.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn done(&self, job: &Job) -> Result<(), Error> {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncAll));
        batch.remove(&self.jobs, job.key());
        Ok(batch.commit()?)
    }

    /// The day before which nothing personal of an account is kept any more in a store.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn kept_from(&self, account: AccountId, store: Store) -> Result<Day, Error> {
        let value = self.kept.get(kept_key(account, store))?;
        Ok(value.and_then(|value| value[..].try_into().ok()).map_or(Day::MIN, Day::from_be_bytes))
    }

    /// The same of every account of which it was noted.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn all_kept_from(&self, store: Store) -> Result<BTreeMap<AccountId, Day>, Error> {
        let mut all = BTreeMap::new();
        for row in self.kept.iter() {
            let (key, value) = row.into_inner()?;
            let Some((_, account)) = key[..].split_last().filter(|(of, _)| **of == store as u8) else { continue };
            // Keys of days are shorter.
            let (Ok(account), Ok(day)) = (AccountId::from_slice(account), <[u8; 4]>::try_from(&value[..])) else {
                continue;
            };
            all.insert(account, Day::from_be_bytes(day));
        }
        Ok(all)
    }

    /// How many rows a day of the archive had when it was last cleared of what was to go; none if it never was.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn cleared_rows(&self, day: Day) -> Result<Option<u64>, Error> {
        let value = self.kept.get(day_key(day))?;
        Ok(value.and_then(|value| value[..].try_into().ok()).map(u64::from_be_bytes))
    }

    /// Notes that a day of the archive was cleared while it had so many rows, and what that means for accounts, in one step.
    /// Durable when this returns.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn note_cleared(&self, day: Day, rows: u64, kept_from: &[(AccountId, Day)]) -> Result<(), Error> {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncAll));
        batch.insert(&self.kept, day_key(day), rows.to_be_bytes());
        for (account, day) in kept_from {
            batch.insert(&self.kept, kept_key(*account, Store::Archive), day.to_be_bytes());
        }
        Ok(batch.commit()?)
    }

    /// Notes it, durable when this returns.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn note_kept_from(&self, accounts: &[AccountId], store: Store, day: Day) -> Result<(), Error> {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncAll));
        for account in accounts {
            batch.insert(&self.kept, kept_key(*account, store), day.to_be_bytes());
        }
        Ok(batch.commit()?)
    }
}

/// Where retention is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// The archive.
    Archive = b'a' as isize,
    /// Everything else.
    Rest = b'r' as isize,
}

fn kept_key(account: AccountId, store: Store) -> [u8; 17] {
    let mut key = [store as u8; 17];
    key[..16].copy_from_slice(account.bytes());
    key
}

fn day_key(day: Day) -> [u8; 5] {
    let mut key = [b'd'; 5];
    key[1..].copy_from_slice(&day.to_be_bytes());
    key
}
