//! What steps read and change: rows and accounts on top of a store, thrown away whole when a step panics.
//!
//! The overlay holds everything that was changed since the last checkpoint, and much of what was read, in two
//! generations: an entry that is used moves to the young one, and the old one is dropped when the young one is full. Accounts fill
//! it by their bytes: one that sends everywhere in every hour is as large as thousands of those that hardly do.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::convert::Infallible;
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
const ROWS: usize = 200_000;
/// Bytes of accounts kept in one generation, about.
const ACCOUNT_BYTES: usize = 24 << 20;

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
        self.accounts.load(id, || Ok(load()?.map(Box::new))).map(|_| ())
    }

    /// Loads a row, unless it is here: what `load` finds in the store, or nothing.
    ///
    /// # Errors
    /// Those of `load`.
    pub fn load_row<E>(&mut self, key: RowKey, load: impl FnOnce() -> Result<Option<Row>, E>) -> Result<(), E> {
        self.rows.load(key, load).map(|_| ())
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
        self.accounts.rotate(ACCOUNT_BYTES);
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

/// How much room something takes in a generation.
trait Weighed {
    /// Of one that is known not to be there.
    const ABSENT: u32;

    fn weight(&self) -> u32;
}

impl Weighed for Row {
    const ABSENT: u32 = 1;

    /// They are all about as large.
    fn weight(&self) -> u32 {
        1
    }
}

impl Weighed for Box<Account> {
    const ABSENT: u32 = 64;

    fn weight(&self) -> u32 {
        self.bytes().try_into().unwrap_or(u32::MAX)
    }
}

struct Slot<V> {
    value: Option<V>,
    dirty: bool,
    /// When it was loaded or last written; what is not there weighs, too.
    weight: u32,
}

impl<V: Weighed> Slot<V> {
    fn holding(value: Option<V>) -> Self {
        Self { weight: value.as_ref().map_or(V::ABSENT, V::weight), value, dirty: false }
    }
}

/// Seeded at random against crafted keys; nothing depends on the order of entries.
struct Generations<K, V> {
    young: HashMap<K, Slot<V>, RandomState>,
    old: HashMap<K, Slot<V>, RandomState>,
    /// What the young one weighs.
    weight: usize,
    dirty: Vec<K>,
}

impl<K, V> Default for Generations<K, V> {
    fn default() -> Self {
        Self { young: HashMap::default(), old: HashMap::default(), weight: 0, dirty: Vec::new() }
    }
}

impl<K: Copy + Eq + Hash, V: Weighed> Generations<K, V> {
    fn slot(&mut self, key: &K) -> Option<&mut Slot<V>> {
        match self.young.entry(*key) {
            Entry::Occupied(slot) => Some(slot.into_mut()),
            Entry::Vacant(empty) => {
                let slot = self.old.remove(key)?;
                self.weight += slot.weight as usize;
                Some(empty.insert(slot))
            }
        }
    }

    fn load<E>(&mut self, key: K, load: impl FnOnce() -> Result<Option<V>, E>) -> Result<&mut Slot<V>, E> {
        Ok(match self.young.entry(key) {
            Entry::Occupied(slot) => slot.into_mut(),
            Entry::Vacant(empty) => {
                let slot = match self.old.remove(&key) {
                    Some(slot) => slot,
                    None => Slot::holding(load()?),
                };
                self.weight += slot.weight as usize;
                empty.insert(slot)
            }
        })
    }

    fn edit<R>(&mut self, key: &K, edit: impl FnOnce(&mut Option<V>) -> (bool, R)) -> R {
        let Ok(slot) = self.load(*key, || Ok::<_, Infallible>(None));
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
        if self.weight >= room {
            let entries = self.young.len();
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
            // Keeps the room that it will need again, but not that of a burst.
            self.young.shrink_to(2 * entries);
            self.weight = 0;
        }
    }

    fn take_dirty(&mut self, mut give: impl FnMut(&K, &mut Option<V>)) {
        for key in std::mem::take(&mut self.dirty) {
            let (slot, is_young) = match self.young.get_mut(&key) {
                Some(slot) => (Some(slot), true),
                None => (self.old.get_mut(&key), false),
            };
            let Some(slot) = slot else { continue };
            slot.dirty = false;
            give(&key, &mut slot.value);
            let weighed = std::mem::replace(&mut slot.weight, slot.value.as_ref().map_or(V::ABSENT, V::weight));
            if is_young {
                self.weight = self.weight - weighed as usize + slot.weight as usize;
            }
        }
    }

    fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    struct Thing(u32);

    impl Weighed for Thing {
        const ABSENT: u32 = 2;

        fn weight(&self) -> u32 {
            self.0
        }
    }

    #[derive(Clone, Debug)]
    enum Act {
        Put(u8, u32),
        Remove(u8),
        Read(u8),
        Checkpoint,
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            4 => (any::<u8>(), 1u32..50).prop_map(|(key, weight)| Act::Put(key, weight)),
            1 => any::<u8>().prop_map(Act::Remove),
            4 => any::<u8>().prop_map(Act::Read),
            1 => Just(Act::Checkpoint),
        ]
    }

    proptest! {
        /// Whatever is forgotten can be loaded from what was written, and what is kept is bounded by its weight.
        #[test]
        fn over_a_store_they_are_a_map_of_bounded_weight(acts in prop::collection::vec(act(), 1..400)) {
            const ROOM: usize = 200;
            let mut store: HashMap<u8, Thing> = HashMap::new();
            let mut all: HashMap<u8, Thing> = HashMap::new();
            let mut kept: Generations<u8, Thing> = Generations::default();
            for act in acts {
                match act {
                    Act::Put(key, weight) => {
                        kept.put(key, Some(Thing(weight)));
                        all.insert(key, Thing(weight));
                    }
                    Act::Remove(key) => {
                        kept.put(key, None);
                        all.remove(&key);
                    }
                    Act::Read(key) => {
                        kept.load(key, || Ok::<_, Infallible>(store.get(&key).cloned())).unwrap();
                        prop_assert_eq!(kept.slot(&key).and_then(|slot| slot.value.as_ref()), all.get(&key));
                    }
                    Act::Checkpoint => {
                        kept.rotate(ROOM);
                        kept.take_dirty(|key, value| {
                            match value {
                                Some(value) => store.insert(*key, value.clone()),
                                None => store.remove(key),
                            };
                        });
                        prop_assert_eq!(&store, &all);
                        let young: usize = kept.young.values().map(|slot| slot.weight as usize).sum();
                        prop_assert_eq!(young, kept.weight);
                        let exact = |slot: &Slot<Thing>| slot.weight == slot.value.as_ref().map_or(Thing::ABSENT, Thing::weight);
                        prop_assert!(kept.young.values().chain(kept.old.values()).all(exact));
                        // Everything was written: what is full goes at the next checkpoint, and what is old with it.
                        kept.rotate(ROOM);
                        prop_assert!(kept.weight < ROOM);
                    }
                }
            }
        }
    }
}
