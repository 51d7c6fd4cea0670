//! What other roles see of accounts: written as soon as a change is certain, ahead of checkpoints.
//!
//! A change is certain once its record is in the log, for stepping it again gives the same. Views are kept beside the
//! state, never read by it.

use std::sync::Arc;

use fjall::{Keyspace, KeyspaceCreateOptions};
use prost::Message;
use sendtrail_schemas::account::{AccountConfig, Suppression};
use sendtrail_schemas::address;
use sendtrail_schemas::directory::Directory;
use sendtrail_schemas::exchange::{Seen, SuppressionView};
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::topic::partition_of;

use crate::core::effects::SuppressionChange;
use crate::store::StoreView;
use crate::{Error, Store};

/// Where they are kept: those of this server's own partitions, and what others made known.
const OWN: [&str; 2] = ["view.accounts", "view.suppressions"];
const OTHERS: [&str; 2] = ["others.accounts", "others.suppressions"];

/// Account views and suppression lists.
#[derive(Clone)]
pub struct Views {
    accounts: Keyspace,
    suppressions: Keyspace,
    directory: Arc<Directory>,
}

impl Views {
    /// Opens the views beside a store and publishes every account to the directory.
    ///
    /// # Errors
    /// [`Error::Store`]; [`Error::Schema`] when a view is not what it should be.
    pub fn open(store: &Store, directory: Arc<Directory>) -> Result<Self, Error> {
        Self::open_in(OWN, store, directory)
    }

    fn open_in(names: [&str; 2], store: &Store, directory: Arc<Directory>) -> Result<Self, Error> {
        let keyspace = |name: &str| store.database().keyspace(name, KeyspaceCreateOptions::default);
        let [accounts, suppressions] = names.map(keyspace);
        let views = Self { accounts: accounts?, suppressions: suppressions?, directory };
        for row in views.accounts.iter() {
            let (_, value) = row.into_inner()?;
            let malformed = |cause| sendtrail_schemas::Error::Malformed(format!("account view: {cause}"));
            let config = AccountConfig::decode(&value[..]).map_err(malformed)?;
            views.directory.publish_encoded(&config, &value[..]);
        }
        Ok(views)
    }

    /// The same for what other servers make known: nothing is there from before, and what this server's own partitions
    /// made is left alone.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn of_others(store: &Store, directory: Arc<Directory>) -> Result<Self, Error> {
        for name in OTHERS {
            store.database().keyspace(name, KeyspaceCreateOptions::default)?.clear()?;
        }
        Self::open_in(OTHERS, store, directory)
    }

    /// Takes what the owner of a partition made known.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn take(&self, seen: Seen) -> Result<(), Error> {
        match seen {
            // They are read again at each start.
            Seen::Account(config) => self.directory.publish(&config),
            Seen::Suppression(SuppressionView { account_id, email, row }) => {
                let change = row.map_or(SuppressionChange::Delete(email), SuppressionChange::Put);
                self.note(AccountId::from_slice(&account_id)?, &change)?;
            }
            Seen::Reign(_) | Seen::Progress(_) | Seen::ClickHouse(_) => {}
        }
        Ok(())
    }

    /// The accounts of a partition and their suppressed addresses.
    ///
    /// # Errors
    /// [`Error::Store`]; [`Error::Schema`] when a row is not what it should be.
    pub fn of_partition(&self, partition: u32, partitions: u32) -> impl Iterator<Item = Result<Seen, Error>> + '_ {
        let accounts = self.directory.ids().into_iter();
        let accounts = accounts.filter(move |account| partition_of(*account, partitions) == partition);
        accounts.filter_map(|account| self.directory.look(account)).flat_map(|config| {
            let account = config.id();
            let rows = self.suppressions.prefix(account.bytes()).map(move |row| {
                let row = read_suppression(&row.value()?)?;
                Ok(SuppressionChange::Put(row).seen(account))
            });
            std::iter::once(Ok(Seen::Account(Box::new(Arc::unwrap_or_clone(config))))).chain(rows)
        })
    }

    /// Takes what the state of a partition says in place of what is here.
    ///
    /// # Errors
    /// [`Error::Store`]; [`Error::Schema`] when a row is not what it should be.
    pub fn rebuild(&self, state: &StoreView, partition: u32) -> Result<(), Error> {
        // Accounts come first.
        for seen in state.seen(partition) {
            match seen? {
                Seen::Account(config) => {
                    // What is no longer on its list is not in the state either.
                    for row in self.suppressions.prefix(&config.account_id) {
                        self.suppressions.remove(row.key()?)?;
                    }
                    self.publish(&config)?;
                }
                seen => self.take(seen)?,
            }
        }
        Ok(())
    }

    /// The directory that these views feed.
    pub fn directory(&self) -> &Arc<Directory> {
        &self.directory
    }

    /// Publishes an account.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn publish(&self, config: &AccountConfig) -> Result<(), Error> {
        let encoded = config.encode_to_vec();
        self.accounts.insert(config.account_id.as_slice(), &encoded[..])?;
        self.directory.publish_encoded(config, encoded);
        Ok(())
    }

    /// Notes a change of a suppression list.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn note(&self, account: AccountId, change: &SuppressionChange) -> Result<(), Error> {
        match change {
            SuppressionChange::Put(row) => {
                self.suppressions.insert(suppression_key(account, &row.email), row.encode_to_vec())?;
            }
            SuppressionChange::Delete(email) => self.suppressions.remove(suppression_key(account, email))?,
        }
        Ok(())
    }

    /// Suppressed addresses after `after` (lower-cased), in the order of addresses, as far as `keep` wants them.
    ///
    /// # Errors
    /// [`Error::Store`]; [`Error::Schema`] when a row is not what it should be.
    pub fn suppressions(
        &self,
        account: AccountId,
        after: Option<&str>,
        limit: usize,
        keep: impl Fn(&Suppression) -> bool,
    ) -> Result<Vec<Suppression>, Error> {
        let mut start = account.bytes().to_vec();
        if let Some(after) = after {
            start.extend_from_slice(after.as_bytes());
            start.push(0);
        }
        let mut found = Vec::new();
        for row in self.suppressions.range(start..) {
            let (key, value) = row.into_inner()?;
            if !key.starts_with(account.bytes()) || found.len() >= limit {
                break;
            }
            let row = read_suppression(&value)?;
            if keep(&row) {
                found.push(row);
            }
        }
        Ok(found)
    }

    /// A suppressed address.
    ///
    /// # Errors
    /// [`Error::Store`]; [`Error::Schema`] when the row is not what it should be.
    pub fn suppression(&self, account: AccountId, email: &str) -> Result<Option<Suppression>, Error> {
        let value = self.suppressions.get(suppression_key(account, email))?;
        value.map(|value| read_suppression(&value)).transpose()
    }
}

fn suppression_key(account: AccountId, email: &str) -> Vec<u8> {
    let mut key = account.bytes().to_vec();
    key.extend_from_slice(address::fold(email).as_bytes());
    key
}

fn read_suppression(value: &[u8]) -> Result<Suppression, Error> {
    let malformed = |cause| sendtrail_schemas::Error::Malformed(format!("suppression row: {cause}"));
    Ok(Suppression::decode(value).map_err(malformed)?)
}
