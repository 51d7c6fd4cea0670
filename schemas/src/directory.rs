//! Every account as the edge sees it: who a key belongs to and how the account stands.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::RwLock;
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

/// The account views of this process. Written by whoever follows the log, read by every request.
#[derive(Default)]
pub struct Directory {
    inner: RwLock<Inner>,
}

#[derive(Default)]
struct Inner {
    accounts: HashMap<AccountId, Arc<AccountConfig>>,
    keys: HashMap<[u8; 32], (AccountId, KeyId)>,
    /// Accounts with a replay that runs, and with any.
    replaying: HashSet<AccountId>,
    replayed: HashSet<AccountId>,
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
    pub fn publish(&self, config: Arc<AccountConfig>) {
        let account = config.id();
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
        inner.accounts.insert(account, config);
    }

    /// Accounts with a replay that runs.
    pub fn replaying(&self) -> Vec<AccountId> {
        self.inner.read().replaying.iter().copied().collect()
    }

    /// Accounts with replays, also such as are over.
    pub fn replayed(&self) -> Vec<AccountId> {
        self.inner.read().replayed.iter().copied().collect()
    }

    /// An account.
    pub fn account(&self, id: AccountId) -> Option<Arc<AccountConfig>> {
        self.inner.read().accounts.get(&id).cloned()
    }

    /// Whose key this is; `None` for a revoked or unknown one.
    pub fn authenticate(&self, key: &str) -> Option<KeyOwner> {
        let hash = hash_key(key);
        let inner = self.inner.read();
        let (account, id) = inner.keys.get(&hash)?;
        let account = inner.accounts.get(account)?.clone();
        let key = account.keys.iter().find(|key| key.key_id == id.bytes())?;
        if key.revoked_at.is_some() || !same_hash(&key.hash, &hash) {
            return None;
        }
        let (key, form) = (*id, key.form());
        Some(KeyOwner { account, key, form })
    }

    /// Accounts in the order of their identifiers, after `after`.
    pub fn list(&self, after: Option<AccountId>, limit: usize) -> Vec<Arc<AccountConfig>> {
        let inner = self.inner.read();
        let mut ids: Vec<AccountId> =
            inner.accounts.keys().copied().filter(|id| after.is_none_or(|after| *id > after)).collect();
        ids.sort_unstable();
        ids.into_iter().take(limit).filter_map(|id| inner.accounts.get(&id).cloned()).collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::ApiKey;
    use uuid::Uuid;

    fn config(version: u64, revoked: bool) -> Arc<AccountConfig> {
        Arc::new(AccountConfig {
            account_id: Uuid::from_u128(1).as_bytes().to_vec(),
            version,
            keys: vec![ApiKey {
                key_id: Uuid::from_u128(2).as_bytes().to_vec(),
                hash: hash_key("pk_live_x").to_vec(),
                revoked_at: revoked.then_some(1),
                ..Default::default()
            }],
            ..Default::default()
        })
    }

    #[test]
    fn a_revoked_key_stays_revoked_whatever_arrives_late() {
        let directory = Directory::default();
        directory.publish(config(1, false));
        assert!(directory.authenticate("pk_live_x").is_some());
        assert!(directory.authenticate("pk_live_y").is_none());
        directory.publish(config(2, true));
        directory.publish(config(1, false));
        assert!(directory.authenticate("pk_live_x").is_none());
    }
}
