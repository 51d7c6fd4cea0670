//! The state at rest: an LSM that takes a checkpoint of a partition whole or not at all.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use fjall::compaction::filter::{CompactionFilter, CompactionFilterResult, Context, Factory, ItemAccessor, Verdict};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode, Readable, Snapshot, UserValue};
use prost::Message;
use sendtrail_schemas::account::AccountConfig;
use sendtrail_schemas::exchange::Seen;
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::time::Millis;

use crate::Error;
use crate::core::account::{Account, AccountRowKey, config_key, other_keys, profile_key, read_config};
use crate::core::effects::SuppressionChange;
use crate::core::overlay::{Overlay, Progress, StoreKey};
use crate::core::rows::{Row, RowKey, RowKind, is_expired};
use crate::projections::{DELIVERIES, TROUBLED};

const ROWS: &str = "state.rows";
/// Rows are looked up more often than written, mostly in vain: small tables in memory and filters on disk tell so soonest.
const MEMTABLE: u64 = 16 << 20;
/// Bytes of journals, beside the one that is being written: a start puts all of it into memory again.
const JOURNALS: u64 = 128 << 20;

/// Rows of an account of one kind that are looked up one by one.
const ONE_BY_ONE: usize = 8;

/// Rows that are written or removed together where nobody waits for them.
const TOGETHER: usize = 10_000;

/// The LSM. Keys begin with the partition, two bytes.
#[derive(Clone)]
pub struct Store {
    database: Database,
    partitions: Keyspace,
    accounts: Keyspace,
    rows: Keyspace,
    hours: Arc<Hours>,
}

/// The log's hour in each partition: what was forgotten by then may be dropped.
struct Hours(Vec<AtomicU32>);

/// What a checkpoint writes.
#[derive(Default)]
pub struct Writes {
    rows: Vec<(StoreKey, Option<Vec<u8>>)>,
    progress: Progress,
}

impl Writes {
    /// Everything that is out of date in an overlay. The checkpoint before must be committed.
    pub fn take(overlay: &mut Overlay) -> Self {
        let mut rows = Vec::new();
        overlay.checkpoint(|key, value| rows.push((key, value)));
        // In the order of keys, as the store keeps them: neighbours are found where the last one was. What is removed and
        // made again in one checkpoint stays in this order.
        rows.sort_by_key(|(key, _)| *key);
        Self { rows, progress: overlay.progress.clone() }
    }

    /// The offset from which a restart steps again.
    pub fn next_offset(&self) -> u64 {
        self.progress.next_offset
    }

    /// The keys of its rows.
    pub fn keys(&self) -> impl Iterator<Item = StoreKey> + '_ {
        self.rows.iter().map(|(key, _)| *key)
    }

    /// How many rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

impl Store {
    /// Opens the store of a folder, or makes one. `cache_bytes` bounds the blocks kept in memory.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn open(folder: &Path, partitions: u32, cache_bytes: u64) -> Result<Self, Error> {
        let hours = Arc::new(Hours((0..partitions).map(|_| AtomicU32::new(0)).collect()));
        let of_rows = hours.clone();
        let database = Database::builder(folder)
            .cache_size(cache_bytes)
            .max_journaling_size(JOURNALS)
            .with_compaction_filter_factories(Arc::new(move |name| {
                let factory: Arc<dyn Factory> = Arc::new(Expiry(of_rows.clone()));
                [ROWS, DELIVERIES, TROUBLED].contains(&name).then_some(factory)
            }))
            .open()?;
        let keyspace = |name: &str| database.keyspace(name, KeyspaceCreateOptions::default);
        Ok(Self {
            partitions: keyspace("state.partitions")?,
            accounts: keyspace("state.accounts")?,
            rows: database.keyspace(ROWS, || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE))?,
            hours,
            database,
        })
    }

    /// The database, for keyspaces that are not state.
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// Where a partition stands; nothing of it was ever written when this is `None`.
    ///
    /// # Errors
    /// [`Error::Store`]; [`Error::Schema`] when the row is not what it should be.
    pub fn progress(&self, partition: u32) -> Result<Option<Progress>, Error> {
        read_progress(self.partitions.get(prefix(partition))?)
    }

    /// An account, whole. Its rows are looked up one by one where they are few: going through them would look into every file
    /// of the store, and filters tell of none of these what is in it.
    ///
    /// # Errors
    /// [`Error::Store`]; [`Error::Schema`] when a row is not what it should be.
    pub fn account(&self, partition: u32, id: AccountId) -> Result<Option<Account>, Error> {
        let mut rows: Vec<(AccountRowKey, UserValue)> = Vec::new();
        let look =
            |key: AccountRowKey| Ok::<_, Error>(self.accounts.get(full_key(partition, &key))?.map(|row| (key, row)));
        let Some((_, config)) = look(config_key(id))? else { return Ok(None) };
        let config = read_config(&config)?;
        let all = |config| read_account(config, self.accounts.prefix([&prefix(partition)[..], id.bytes()].concat()));
        if config.config_sets.len() + config.identities.len() > ONE_BY_ONE {
            return all(Some(config));
        }
        for key in other_keys(&config) {
            rows.extend(look(key)?);
        }
        for number in 1.. {
            // They are numbered without gaps.
            let Some(row) = look(profile_key(id, number))? else { break };
            if number as usize > ONE_BY_ONE {
                return all(Some(config));
            }
            rows.push(row);
        }
        Ok(Account::restore_with(Some(config), rows.iter().map(|(key, value)| (&key[..], &value[..])))?)
    }

    /// A row.
    ///
    /// # Errors
    /// [`Error::Store`]; [`Error::Schema`] when the row is not what it should be.
    pub fn row(&self, partition: u32, key: &RowKey) -> Result<Option<Row>, Error> {
        let value = self.rows.get(full_key(partition, &key.bytes()))?;
        Ok(value.map(|value| Row::decode(key.kind, &value)).transpose()?)
    }

    /// Whether a write has failed, after which nothing more is written: what is on the device is in doubt, and only opening
    /// the store anew tells.
    pub fn is_broken(&self) -> bool {
        matches!(self.database.persist(PersistMode::Buffer), Err(fjall::Error::Poisoned))
    }

    /// Everything as it is now, whatever is written meanwhile.
    pub fn view(&self) -> StoreView {
        StoreView { snapshot: self.database.snapshot(), of: self.clone() }
    }

    /// Forgets a partition. Until its progress is set again it has no state, also after a crash.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn empty(&self, partition: u32) -> Result<(), Error> {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncAll));
        batch.remove(&self.partitions, prefix(partition));
        batch.commit()?;
        for keyspace in [&self.accounts, &self.rows] {
            let mut keys = keyspace.prefix(prefix(partition)).map(|row| row.key()).peekable();
            while keys.peek().is_some() {
                let mut batch = self.database.batch();
                for key in keys.by_ref().take(TOGETHER) {
                    batch.remove(keyspace, key?);
                }
                batch.commit()?;
            }
        }
        Ok(())
    }

    /// Writes rows of a partition that has no state yet.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn put(&self, partition: u32, rows: Vec<(StoreKey, Option<Vec<u8>>)>) -> Result<(), Error> {
        let mut rows = rows.into_iter().peekable();
        while rows.peek().is_some() {
            let mut batch = self.database.batch();
            for (key, value) in rows.by_ref().take(TOGETHER) {
                self.write(&mut batch, partition, key, value);
            }
            batch.commit()?;
        }
        Ok(())
    }

    /// Gives a partition the state that its rows are, durable when this returns.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn set_progress(&self, partition: u32, progress: &Progress) -> Result<(), Error> {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncAll));
        batch.insert(&self.partitions, prefix(partition), progress.encode_to_vec());
        Ok(batch.commit()?)
    }

    fn write(&self, batch: &mut OwnedWriteBatch, partition: u32, key: StoreKey, value: Option<Vec<u8>>) {
        let (keyspace, key) = match key {
            StoreKey::Account(key) => (&self.accounts, full_key(partition, &key)),
            StoreKey::Row(key) => (&self.rows, full_key(partition, &key)),
        };
        match value {
            Some(value) => batch.insert(keyspace, key, value),
            None => batch.remove(keyspace, key),
        }
    }

    /// Writes a checkpoint, durable when this returns.
    ///
    /// # Errors
    /// [`Error::Store`]: nothing of it is there after a restart.
    pub fn commit(&self, partition: u32, writes: Writes) -> Result<(), Error> {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncAll));
        for (key, value) in writes.rows {
            self.write(&mut batch, partition, key, value);
        }
        batch.insert(&self.partitions, prefix(partition), writes.progress.encode_to_vec());
        batch.commit()?;
        if let Some(hour) = self.hours.0.get(partition as usize) {
            hour.store(Millis(writes.progress.last_t).hour().max(0) as u32, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// The store at one moment.
pub struct StoreView {
    snapshot: Snapshot,
    of: Store,
}

impl StoreView {
    /// Where a partition stood.
    ///
    /// # Errors
    /// [`Error::Store`]; [`Error::Schema`] when the row is not what it should be.
    pub fn progress(&self, partition: u32) -> Result<Option<Progress>, Error> {
        read_progress(self.snapshot.get(&self.of.partitions, prefix(partition))?)
    }

    /// A row.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn value(&self, partition: u32, key: &StoreKey) -> Result<Option<UserValue>, Error> {
        let (keyspace, key) = match key {
            StoreKey::Account(key) => (&self.of.accounts, full_key(partition, key)),
            StoreKey::Row(key) => (&self.of.rows, full_key(partition, key)),
        };
        Ok(self.snapshot.get(keyspace, key)?)
    }

    /// The accounts of a partition, then their suppressed addresses, as others see them. Looks at every row: they are not in
    /// the order of accounts.
    ///
    /// # Errors
    /// [`Error::Store`]; [`Error::Schema`] when a row is not what it should be.
    pub fn seen(&self, partition: u32) -> impl Iterator<Item = Result<Seen, Error>> + '_ {
        let mut next = Some(prefix(partition).to_vec());
        let accounts = std::iter::from_fn(move || {
            let (key, value) = match self.snapshot.range(&self.of.accounts, next.take()?..).next()?.into_inner() {
                Ok(first) => first,
                Err(error) => return Some(Err(error.into())),
            };
            let account = key.strip_prefix(&prefix(partition))?.first_chunk::<16>()?;
            // The first key after all of this account's.
            next = Some([&prefix(partition)[..], account, &[u8::MAX; 18]].concat());
            // Of all rows of an account its configuration comes first.
            let is_config = key.get(2..) == Some(&config_key(AccountId(uuid::Uuid::from_bytes(*account)))[..]);
            let config = is_config.then(|| read_config(&value)).transpose();
            Some(config.map(|config| config.map(|config| Seen::Account(Box::new(config)))).map_err(Error::from))
        });
        let accounts = accounts.filter_map(Result::transpose);
        accounts.chain(self.rows(partition).filter_map(|row| match row {
            Ok((StoreKey::Row(key), value)) => suppressed(&key, &value).transpose(),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        }))
    }

    /// All rows of a partition.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn rows(&self, partition: u32) -> impl Iterator<Item = Result<(StoreKey, UserValue), Error>> + '_ {
        let rows = |keyspace, of: fn([u8; 33]) -> StoreKey| {
            let rows = self.snapshot.prefix(keyspace, prefix(partition));
            rows.map(move |row| {
                let (key, value) = row.into_inner()?;
                let malformed = || sendtrail_schemas::Error::Malformed("a key of the state store".into());
                let key = key.get(2..).and_then(|key| key.try_into().ok()).ok_or_else(malformed)?;
                Ok((of(key), value))
            })
        };
        rows(&self.of.accounts, StoreKey::Account).chain(rows(&self.of.rows, StoreKey::Row))
    }
}

/// A suppressed address as others see it, if this is the row of one.
fn suppressed(key: &[u8; 33], value: &[u8]) -> Result<Option<Seen>, Error> {
    let (account, kind) = RowKey::account_and_kind(key);
    if kind != RowKind::Suppressed as u8 {
        return Ok(None);
    }
    match (AccountId::from_slice(account)?, Row::decode(RowKind::Suppressed, value)?) {
        (account, Row::Suppressed(row)) => Ok(Some(SuppressionChange::Put(*row).seen(account))),
        _ => Ok(None),
    }
}

fn read_account(
    config: Option<AccountConfig>,
    rows: impl Iterator<Item = fjall::Guard>,
) -> Result<Option<Account>, Error> {
    let rows = rows.map(|row| row.into_inner()).collect::<Result<Vec<_>, _>>()?;
    let rows = rows.iter().filter_map(|(key, value)| Some((key.get(2..)?, &value[..])));
    Ok(Account::restore_with(config, rows)?)
}

fn read_progress(value: Option<UserValue>) -> Result<Option<Progress>, Error> {
    let malformed = |cause| sendtrail_schemas::Error::Malformed(format!("progress row: {cause}"));
    Ok(value.map(|value| Progress::decode(&value[..]).map_err(malformed)).transpose()?)
}

fn prefix(partition: u32) -> [u8; 2] {
    (partition as u16).to_be_bytes()
}

fn full_key(partition: u32, key: &[u8; 33]) -> [u8; 35] {
    let mut full = [0u8; 35];
    full[..2].copy_from_slice(&prefix(partition));
    full[2..].copy_from_slice(key);
    full
}

/// Drops rows that mean nothing any more when their files are merged.
struct Expiry(Arc<Hours>);

impl Factory for Expiry {
    fn name(&self) -> &str {
        "expiry"
    }

    fn make_filter(&self, _: &Context) -> Box<dyn CompactionFilter> {
        Box::new(ExpiryFilter(self.0.0.iter().map(|hour| hour.load(Ordering::Relaxed)).collect()))
    }
}

struct ExpiryFilter(Vec<u32>);

impl CompactionFilter for ExpiryFilter {
    fn filter_item(&mut self, item: ItemAccessor<'_>, _: &Context) -> CompactionFilterResult {
        let partition = item.key().first_chunk::<2>().map(|bytes| usize::from(u16::from_be_bytes(*bytes)));
        let Some(hour) = partition.and_then(|partition| self.0.get(partition)) else { return Ok(Verdict::Keep) };
        Ok(if is_expired(&item.value()?, *hour) { Verdict::Remove } else { Verdict::Keep })
    }
}

#[cfg(test)]
mod tests;
