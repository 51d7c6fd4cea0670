//! Every account as the edge sees it: who a key belongs to and how the account stands.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::RwLock;
use prost::Message;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::account::{AccountConfig, ApiKey, KeyForm, KeyScope};
use crate::destination::ReplayState;
use crate::ids::{AccountId, KeyId};

/// SHA-256 of a key. Keys carry over 300 random bits, so a plain hash cannot be searched.
pub fn hash_key(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// Compares hashes in constant time.
pub fn same_hash(one: &[u8], other: &[u8]) -> bool {
    one.ct_eq(other).into()
}

/// Bytes of configurations that are kept ready to use, about.
const READY_BYTES: u64 = 64 << 20;
/// What one takes beside what its encoding says, about.
const READY_EACH: u64 = 1 << 10;

/// The account views of this process. Written by whoever follows the log, read by every request.
///
/// There may be millions, of which few are asked for: all are kept encoded, some hundred bytes each, and those that are asked for
/// also decoded.
pub struct Directory {
    inner: RwLock<Inner>,
    ready: Cache<AccountId, Ready, Weight>,
}

#[derive(Default)]
struct Inner {
    accounts: BTreeMap<AccountId, Encoded>,
    keys: HashMap<[u8; 32], (AccountId, KeyId)>,
    /// Accounts with a replay that runs, and with any.
    replaying: HashSet<AccountId>,
    replayed: HashSet<AccountId>,
}

struct Encoded {
    version: u64,
    bytes: Arc<[u8]>,
}

/// A configuration, and what it was decoded from: as long as that is what is kept, it is the truth.
#[derive(Clone)]
struct Ready {
    of: Arc<[u8]>,
    config: Arc<AccountConfig>,
}

/// Parts of what is kept ready.
const SHARDS: usize = 2;

#[derive(Clone)]
struct Weight;

impl Weighter<AccountId, Ready> for Weight {
    fn weight(&self, _: &AccountId, ready: &Ready) -> u64 {
        // Lengths are bytes in one form, and vectors in the other.
        READY_EACH + 8 * ready.of.len() as u64
    }
}

impl Default for Directory {
    fn default() -> Self {
        let few = OptionsBuilder::new()
            // What is larger than a part of it is not kept at all.
            .shards(SHARDS)
            .estimated_items_capacity((READY_BYTES / READY_EACH) as usize)
            .weight_capacity(READY_BYTES)
            .build();
        // Each of these is given.
        let ready = few.map_or_else(
            |_| Cache::with_weighter(1, READY_BYTES, Weight),
            |options| Cache::with_options(options, Weight, DefaultHashBuilder::default(), DefaultLifecycle::default()),
        );
        Self { inner: RwLock::default(), ready }
    }
}

/// A key that was not revoked.
#[derive(Clone, Debug)]
pub struct KeyOwner {
    /// Its account.
    pub account: Arc<AccountConfig>,
    /// Which of the account's keys.
    pub key: KeyId,
    /// Its form.
    pub form: KeyForm,
}

impl KeyOwner {
    /// The key.
    pub fn api_key(&self) -> Option<&ApiKey> {
        self.account.keys.iter().find(|key| key.key_id == self.key.bytes())
    }

    /// Whether the key may be used for something.
    pub fn may(&self, scope: KeyScope) -> bool {
        self.api_key().is_some_and(|key| key.may(scope))
    }
}

impl Directory {
    /// Publishes a view; an older one than is known is dropped, so that views may arrive in any order.
    pub fn publish(&self, config: &AccountConfig) {
        self.publish_encoded(config, config.encode_to_vec());
    }

    /// The same with what it is encoded.
    pub fn publish_encoded(&self, config: &AccountConfig, encoded: impl Into<Arc<[u8]>>) {
        let (account, encoded) = (config.id(), encoded.into());
        let mut inner = self.inner.write();
        if inner.accounts.get(&account).is_some_and(|known| known.version > config.version) {
            return;
        }
        for key in &config.keys {
            let (Ok(hash), Some(id)) = (<[u8; 32]>::try_from(key.hash.as_slice()), key.id()) else { continue };
            if key.revoked_at.is_some() {
                inner.keys.remove(&hash);
            } else {
                inner.keys.insert(hash, (account, id));
            }
        }
        if config.replays.iter().any(|replay| replay.state() == ReplayState::Running) {
            inner.replaying.insert(account);
        } else {
            inner.replaying.remove(&account);
        }
        if !config.replays.is_empty() {
            inner.replayed.insert(account);
        }
        inner.accounts.insert(account, Encoded { version: config.version, bytes: encoded });
    }

    /// Accounts with a replay that runs.
    pub fn replaying(&self) -> Vec<AccountId> {
        self.inner.read().replaying.iter().copied().collect()
    }

    /// Accounts with replays, also such as are over.
    pub fn replayed(&self) -> Vec<AccountId> {
        self.inner.read().replayed.iter().copied().collect()
    }

    fn encoded(&self, id: AccountId) -> Option<Arc<[u8]>> {
        self.inner.read().accounts.get(&id).map(|known| known.bytes.clone())
    }

    /// An account.
    pub fn account(&self, id: AccountId) -> Option<Arc<AccountConfig>> {
        let of = self.encoded(id)?;
        if let Some(ready) = self.ready.get(&id).filter(|ready| Arc::ptr_eq(&ready.of, &of)) {
            return Some(ready.config);
        }
        let config = decode(&of)?;
        self.ready.insert(id, Ready { of, config: config.clone() });
        Some(config)
    }

    /// An account that is not about to be asked for again.
    pub fn look(&self, id: AccountId) -> Option<Arc<AccountConfig>> {
        decode(&self.encoded(id)?)
    }

    /// Whose key this is; `None` for a revoked or unknown one.
    pub fn authenticate(&self, key: &str) -> Option<KeyOwner> {
        let hash = hash_key(key);
        let (account, id) = *self.inner.read().keys.get(&hash)?;
        let account = self.account(account)?;
        let key = account.keys.iter().find(|key| key.key_id == id.bytes())?;
        if key.revoked_at.is_some() || !same_hash(&key.hash, &hash) {
            return None;
        }
        let form = key.form();
        Some(KeyOwner { account, key: id, form })
    }

    /// Accounts in the order of their identifiers, after `after`.
    pub fn list(&self, after: Option<AccountId>, limit: usize) -> Vec<Arc<AccountConfig>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let of: Vec<Arc<[u8]>> = {
            let inner = self.inner.read();
            let some = inner.accounts.range((from, Bound::Unbounded)).take(limit);
            some.map(|(_, known)| known.bytes.clone()).collect()
        };
        of.iter().filter_map(|bytes| decode(bytes)).collect()
    }

    /// Every account's identifier, in their order.
    pub fn ids(&self) -> Vec<AccountId> {
        self.inner.read().accounts.keys().copied().collect()
    }

    /// How many accounts there are.
    pub fn len(&self) -> usize {
        self.inner.read().accounts.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What was encoded here can be decoded.
fn decode(bytes: &[u8]) -> Option<Arc<AccountConfig>> {
    AccountConfig::decode(bytes).ok().map(Arc::new)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::account::ApiKey;

    fn config(version: u64, revoked: bool) -> AccountConfig {
        AccountConfig {
            account_id: Uuid::from_u128(1).as_bytes().to_vec(),
            version,
            keys: vec![ApiKey {
                key_id: Uuid::from_u128(2).as_bytes().to_vec(),
                hash: hash_key("pk_live_x").to_vec(),
                revoked_at: revoked.then_some(1),
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    #[test]
    fn a_revoked_key_stays_revoked_whatever_arrives_late() {
        let directory = Directory::default();
        directory.publish(&config(1, false));
        assert!(directory.authenticate("pk_live_x").is_some());
        assert!(directory.authenticate("pk_live_y").is_none());
        directory.publish(&config(2, true));
        directory.publish(&config(1, false));
        assert!(directory.authenticate("pk_live_x").is_none());
    }

    #[test]
    fn also_a_large_account_is_kept_ready() {
        let directory = Directory::default();
        let large = AccountConfig { name: "x".repeat(1 << 20), ..config(1, false) };
        directory.publish(&large);
        let [one, other] = [0, 1].map(|_| directory.account(large.id()).unwrap());
        assert!(Arc::ptr_eq(&one, &other), "it is decoded whenever somebody asks");
    }

    proptest! {
        /// Whatever was kept ready, an account is what was published last of its newest version, for every way to ask.
        #[test]
        fn it_is_a_map_of_the_newest(
            steps in proptest::collection::vec((0u128..4, 0u64..6, any::<u16>(), any::<bool>()), 1..80),
        ) {
            let directory = Directory::default();
            let mut model = BTreeMap::<AccountId, AccountConfig>::new();
            for (id, version, name, reads) in steps {
                let id = AccountId(Uuid::from_u128(id));
                if reads {
                    let found = directory.account(id);
                    prop_assert_eq!(found.as_deref(), model.get(&id));
                    continue;
                }
                let config = AccountConfig {
                    account_id: id.bytes().to_vec(),
                    version,
                    name: name.to_string(),
                    ..AccountConfig::default()
                };
                directory.publish(&config);
                if model.get(&id).is_none_or(|known| known.version <= version) {
                    model.insert(id, config);
                }
            }
            for (id, config) in &model {
                for found in [directory.account(*id), directory.look(*id)] {
                    prop_assert_eq!(found.as_deref(), Some(config));
                }
                let after: Vec<_> = directory.list(Some(*id), 2).iter().map(|config| config.id()).collect();
                let wanted: Vec<_> = model.keys().filter(|other| *other > id).take(2).copied().collect();
                prop_assert_eq!(after, wanted);
            }
            prop_assert_eq!(directory.ids(), model.keys().copied().collect::<Vec<_>>());
            prop_assert_eq!(directory.len(), model.len());
        }
    }
}
