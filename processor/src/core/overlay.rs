//! What steps read and change: rows and accounts on top of a store, thrown away whole when a step panics.
//!
//! The overlay holds everything that was changed since the last checkpoint, and much of what was read, in two
//! generations: an entry that is used moves to the young one, and the old one is dropped when the young one is full.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;

use foldhash::fast::RandomState;
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::record::{Settings, SourcePosition};
use sendtrail_schemas::time::Millis;

use super::account::{Account, AccountRowKey};
use super::rows::{Row, RowKey};

/// The partition's own row: where it stands.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Progress {
    /// The intake offset that comes next.
    #[prost(uint64, tag = "1")]
    pub next_offset: u64,
    /// The number of the next event.
    #[prost(uint64, tag = "2")]
    pub next_event: u64,
    /// The number of the next mail.
    #[prost(uint64, tag = "3")]
    pub next_mail: u64,
    /// The number of the next dead letter.
    #[prost(uint64, tag = "4")]
    pub next_dead_letter: u64,
    /// The time of the last record, milliseconds since the epoch.
    #[prost(int64, tag = "5")]
    pub last_t: i64,
    /// What the logic reads besides records.
    #[prost(message, optional, tag = "6")]
    pub settings: Option<Settings>,
    /// The last record of each partition of a source that came here; see [`super::source`].
    #[prost(message, repeated, tag = "7")]
    pub sources: Vec<SourcePosition>,
}

/// What a step wants to read. Whoever calls it loads these first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys {
    /// The account, whole.
    pub account: Option<AccountId>,
    /// The message and recipient of a fact.
    pub seen: Option<RowKey>,
    /// A repeatable fact.
    pub fact: Option<RowKey>,
    /// The answer to an `Idempotency-Key`.
    pub answered: Option<RowKey>,
    /// Addresses, in the order of the record.
    pub suppressed: Vec<RowKey>,
    /// Whether the call of a fact was heard of, for those who are told once a call.
    pub call: Option<RowKey>,
}

impl Keys {
    /// Every row.
    pub fn rows(&self) -> impl Iterator<Item = &RowKey> {
        self.seen.iter().chain(&self.fact).chain(&self.answered).chain(&self.suppressed).chain(&self.call)
    }
}

/// Rows and accounts on top of a store.
#[derive(Default)]
pub struct Overlay {
    /// Where the partition stands.
    pub progress: Progress,
    /// The partition's number.
    pub partition: u32,
    accounts: Generations<AccountId, Box<Account>>,
    rows: Generations<RowKey, Row>,
}

/// Rows kept in one generation.
const ROWS: usize = 400_000;
/// Accounts kept in one generation.
const ACCOUNTS: usize = 50_000;

impl Overlay {
    /// An overlay over a store in which the partition stands at `progress`.
    pub fn new(partition: u32, progress: Progress) -> Self {
        Self { progress, partition, ..Self::default() }
    }

    /// The log's time after a record stamped `received_at`, which never runs back.
    pub fn advance(&mut self, received_at: Millis, simulated: Option<i64>) -> Millis {
        let honoured = self.progress.settings.as_ref().is_some_and(|settings| settings.simulated);
        let stamp = if honoured { simulated.unwrap_or(self.progress.last_t) } else { received_at.0 };
        self.progress.last_t = self.progress.last_t.max(stamp);
        Millis(self.progress.last_t)
    }

    /// Loads an account, unless it is here: what `load` finds in the store, or nothing.
    ///
    /// # Errors
    /// Those of `load`.
    pub fn load_account<E>(
        &mut self,
        id: AccountId,
        load: impl FnOnce() -> Result<Option<Account>, E>,
    ) -> Result<(), E> {
        self.accounts.load(id, || Ok(load()?.map(Box::new)))
    }

    /// Loads a row, unless it is here: what `load` finds in the store, or nothing.
    ///
    /// # Errors
    /// Those of `load`.
    pub fn load_row<E>(&mut self, key: RowKey, load: impl FnOnce() -> Result<Option<Row>, E>) -> Result<(), E> {
        self.rows.load(key, load)
    }

    /// An account.
    pub fn account(&mut self, id: AccountId) -> Option<&Account> {
        self.accounts.slot(&id)?.value.as_deref()
    }

    /// Takes an account out, to be changed; [`Self::put_account`] brings it back.
    pub fn take_account(&mut self, id: AccountId) -> Option<Box<Account>> {
        self.accounts.slot(&id)?.value.take()
    }

    /// Brings an account back, or puts a new one.
    pub fn put_account(&mut self, id: AccountId, account: Box<Account>) {
        if account.touched {
            self.accounts.put(id, Some(account));
        } else if let Some(slot) = self.accounts.slot(&id) {
            slot.value = Some(account);
        }
    }

    /// A row.
    pub fn row(&mut self, key: &RowKey) -> Option<&Row> {
        self.rows.slot(key)?.value.as_ref()
    }

    /// A row, if it is here, also when it is known not to be.
    pub fn held_row(&mut self, key: &RowKey) -> Option<Option<&Row>> {
        Some(self.rows.slot(key)?.value.as_ref())
    }

    /// Lets `edit` change a row, or make or remove it, and say whether it did.
    pub fn edit_row<R>(&mut self, key: &RowKey, edit: impl FnOnce(&mut Option<Row>) -> (bool, R)) -> R {
        self.rows.edit(key, edit)
    }

    /// Puts a row, or takes it away.
    pub fn put_row(&mut self, key: RowKey, row: Option<Row>) {
        self.rows.put(key, row);
    }

    /// Begins a checkpoint: hands out every row that is out of date. The one before must be durable, for rows that it
    /// holds may now be forgotten.
    pub fn checkpoint(&mut self, mut put: impl FnMut(StoreKey, Option<Vec<u8>>)) {
        self.accounts.rotate(ACCOUNTS);
        self.rows.rotate(ROWS);
        self.accounts.take_dirty(|_, account| {
            if let Some(account) = account {
                account.take_dirty(|key, value| put(StoreKey::Account(key), value));
            }
        });
        self.rows.take_dirty(|key, row| put(StoreKey::Row(key.bytes()), row.as_ref().map(Row::encode)));
    }

    /// How many rows and accounts are held.
    pub fn held(&self) -> (usize, usize) {
        (self.rows.len(), self.accounts.len())
    }
}

/// Where a row of the state goes in a store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum StoreKey {
    /// A row of an account: all of one account are loaded at once.
    Account(AccountRowKey),
    /// A row that is looked up by itself.
    Row([u8; 33]),
}

struct Slot<V> {
    value: Option<V>,
    dirty: bool,
}

/// Seeded at random against crafted keys; nothing depends on the order of entries.
struct Generations<K, V> {
    young: HashMap<K, Slot<V>, RandomState>,
    old: HashMap<K, Slot<V>, RandomState>,
    dirty: Vec<K>,
}

impl<K, V> Default for Generations<K, V> {
    fn default() -> Self {
        Self { young: HashMap::default(), old: HashMap::default(), dirty: Vec::new() }
    }
}

impl<K: Copy + Eq + Hash, V> Generations<K, V> {
    fn slot(&mut self, key: &K) -> Option<&mut Slot<V>> {
        match self.young.entry(*key) {
            Entry::Occupied(slot) => Some(slot.into_mut()),
            Entry::Vacant(empty) => Some(empty.insert(self.old.remove(key)?)),
        }
    }

    fn load<E>(&mut self, key: K, load: impl FnOnce() -> Result<Option<V>, E>) -> Result<(), E> {
        if let Entry::Vacant(empty) = self.young.entry(key) {
            empty.insert(match self.old.remove(&key) {
                Some(slot) => slot,
                None => Slot { value: load()?, dirty: false },
            });
        }
        Ok(())
    }

    /// The slot of a key; an empty one when there is none.
    fn filled(&mut self, key: K) -> &mut Slot<V> {
        match self.young.entry(key) {
            Entry::Occupied(slot) => slot.into_mut(),
            Entry::Vacant(empty) => empty.insert(self.old.remove(&key).unwrap_or(Slot { value: None, dirty: false })),
        }
    }

    fn edit<R>(&mut self, key: &K, edit: impl FnOnce(&mut Option<V>) -> (bool, R)) -> R {
        let slot = self.filled(*key);
        let (changed, result) = edit(&mut slot.value);
        if changed && !std::mem::replace(&mut slot.dirty, true) {
            self.dirty.push(*key);
        }
        result
    }

    fn put(&mut self, key: K, value: Option<V>) {
        self.edit(&key, |kept| {
            *kept = value;
            (true, ())
        });
    }

    fn rotate(&mut self, room: usize) {
        if self.young.len() >= room {
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
            // Keeps the room that it will need again, but not that of a burst.
            self.young.shrink_to(2 * room);
        }
    }

    fn take_dirty(&mut self, mut give: impl FnMut(&K, &mut Option<V>)) {
        for key in std::mem::take(&mut self.dirty) {
            let slot = match self.young.get_mut(&key) {
                Some(slot) => Some(slot),
                None => self.old.get_mut(&key),
            };
            if let Some(slot) = slot {
                slot.dirty = false;
                give(&key, &mut slot.value);
            }
        }
    }

    fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}
