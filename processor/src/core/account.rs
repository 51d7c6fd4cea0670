//! An account's state in memory: configuration, usage, windows and the profiles its Sends share.

use std::collections::HashMap;
use std::sync::Arc;

use prost::Message;
use sendtrail_schemas::Error;
use sendtrail_schemas::account::{AccountConfig, ConfigSet, Identity, IdentityType};
use sendtrail_schemas::address;
use sendtrail_schemas::ids::{AccountId, hash128};
use sendtrail_schemas::reputation::{Counts, Reputation, Scope, WINDOW_HOURS, WindowView};
use sendtrail_schemas::time::{Hour, Millis};

use super::quota::Usage;
use super::rows::{ONCE_HORIZON, Profile};
use super::window::{Counted, Window};

/// Profiles kept in an account's table; further ones are written out in each row.
pub const MAX_PROFILES: usize = 1_024;

/// A window and whether its row is out of date.
#[derive(Clone, Debug, Default)]
pub struct Tracked {
    /// The window.
    pub window: Window,
    pub(super) dirty: bool,
}

impl Tracked {
    fn count(&mut self, t: Millis, hour: Hour, what: Counted) {
        self.window.slide(t.hour());
        self.window.count(hour, what);
        self.dirty = true;
    }
}

/// An account's state.
///
/// `sets` and `identities` stand in the order of the configuration's lists.
#[derive(Clone, Debug)]
pub struct Account {
    /// Configuration and standing.
    pub config: Arc<AccountConfig>,
    /// Quotas.
    pub usage: Usage,
    /// All that the account sends.
    pub window: Tracked,
    /// What the policy judges, once the account was resumed.
    pub judged: Option<Tracked>,
    /// What each configuration set sends.
    pub sets: Vec<Tracked>,
    /// What each identity sends.
    pub identities: Vec<Tracked>,
    /// What Sends share.
    pub profiles: Profiles,
    /// Whether any row is out of date.
    pub(super) touched: bool,
    config_dirty: bool,
    usage_dirty: bool,
    removed: Vec<AccountRowKey>,
}

impl Account {
    /// A new account.
    pub fn new(config: AccountConfig) -> Self {
        let sets = config.config_sets.iter().map(|_| Tracked::default()).collect();
        let identities = config.identities.iter().map(|_| Tracked::default()).collect();
        Self {
            config: Arc::new(config),
            usage: Usage::default(),
            window: Tracked::default(),
            judged: None,
            sets,
            identities,
            profiles: Profiles::default(),
            touched: false,
            config_dirty: false,
            usage_dirty: false,
            removed: Vec::new(),
        }
    }

    /// Puts a new configuration set where the sorted list wants it, its window at zero.
    pub fn insert_set(&mut self, at: usize, set: ConfigSet) {
        self.config_mut().config_sets.insert(at, set);
        self.sets.insert(at, Tracked { dirty: true, ..Tracked::default() });
    }

    /// Takes a configuration set away, with its window.
    pub fn remove_set(&mut self, at: usize) -> ConfigSet {
        let set = self.config_mut().config_sets.remove(at);
        self.sets.remove(at);
        if let Some(id) = set.id() {
            self.removed.push(row_key(self.config.id(), Part::Set, id.0.as_u128()));
        }
        set
    }

    /// Moves a renamed configuration set to where the sorted list wants it.
    pub fn move_set(&mut self, from: usize, set: ConfigSet) {
        let tracked = self.sets.remove(from);
        let sets = &mut self.config_mut().config_sets;
        sets.remove(from);
        let to = sets.partition_point(|other| other.name < set.name);
        sets.insert(to, set);
        self.sets.insert(to, tracked);
    }

    /// Puts a new identity where the sorted list wants it, its window at zero.
    pub fn insert_identity(&mut self, at: usize, identity: Identity) {
        self.config_mut().identities.insert(at, identity);
        self.identities.insert(at, Tracked { dirty: true, ..Tracked::default() });
    }

    /// Takes an identity away, with its window.
    pub fn remove_identity(&mut self, at: usize) {
        let identity = self.config_mut().identities.remove(at);
        self.identities.remove(at);
        self.removed.push(row_key(self.config.id(), Part::Identity, identity_name(identity.kind, &identity.value)));
    }

    /// Counts one event of an hour in the account's windows, those of its set and of its From's identities. `judge`
    /// says whether the policy's own window, if there is one, counts it too. Whether it is in what the policy judges at `t`:
    /// one of the next hour is not, yet.
    pub fn count(&mut self, set: Option<usize>, from: &str, t: Millis, hour: Hour, what: Counted, judge: bool) -> bool {
        self.touched = true;
        self.window.count(t, hour, what);
        if let Some(judged) = self.judged.as_mut().filter(|_| judge) {
            judged.count(t, hour, what);
        }
        if let Some(tracked) = set.and_then(|set| self.sets.get_mut(set)) {
            tracked.count(t, hour, what);
        }
        if !self.identities.is_empty() {
            let address = address::fold(address::bare(from));
            let domain = address.rsplit_once('@').map_or("", |(_, domain)| domain);
            for (kind, value) in [(IdentityType::EmailAddress, &*address), (IdentityType::Domain, domain)] {
                if let Ok(at) = self.config.identity_position(kind, value) {
                    self.identities[at].count(t, hour, what);
                }
            }
        }
        judge && hour <= t.hour()
    }

    /// What the policy judges at `t`.
    pub fn judged_counts(&mut self, t: Millis) -> Counts {
        // Sliding is a change, and must be written like one: a restart in between would leave other bytes.
        self.touched = true;
        let tracked = self.judged.as_mut().unwrap_or(&mut self.window);
        tracked.dirty = true;
        tracked.window.slide(t.hour());
        tracked.window.sum()
    }

    /// Start of what the policy judges at `t`: the window's, or the last resume.
    pub fn judged_since(&self, t: Millis) -> Millis {
        let start = Millis::of_hour(t.hour() - WINDOW_HOURS + 1);
        start.max(Millis(self.config.resumed_at.unwrap_or(i64::MIN)))
    }

    /// Begins what the policy judges anew.
    pub fn restart_judging(&mut self) {
        self.touched = true;
        self.judged = Some(Tracked { dirty: true, ..Tracked::default() });
    }

    /// The configuration, to be changed.
    pub fn config_mut(&mut self) -> &mut AccountConfig {
        (self.config_dirty, self.touched) = (true, true);
        Arc::make_mut(&mut self.config)
    }

    /// The usage, to be changed.
    pub fn usage_mut(&mut self) -> &mut Usage {
        (self.usage_dirty, self.touched) = (true, true);
        &mut self.usage
    }

    /// Bytes in memory, about.
    pub(super) fn bytes(&self) -> usize {
        /// Of an account with nothing, its configuration included; of a set, an identity or a profile without its window.
        const BARE: usize = 2_048;
        const PART: usize = 512;
        let parts = self.sets.len() + self.identities.len() + self.profiles.entries.len() + self.config.webhooks.len();
        BARE + parts * PART + self.windows().map(|tracked| tracked.window.bytes()).sum::<usize>()
    }

    /// Every window.
    pub(super) fn windows(&self) -> impl Iterator<Item = &Tracked> {
        [&self.window].into_iter().chain(&self.judged).chain(&self.sets).chain(&self.identities)
    }

    /// What readers see.
    pub fn reputation(&self) -> Reputation {
        let sets = self.config.config_sets.iter().zip(&self.sets);
        let sets = sets.filter_map(|(set, tracked)| Some((Scope::ConfigSet(set.id()?), tracked.window.view())));
        let identities = self.config.identities.iter().zip(&self.identities);
        let identities = identities
            .map(|(identity, tracked)| (Scope::Identity(identity.kind, identity.value.clone()), tracked.window.view()));
        Reputation {
            config: self.config.clone(),
            window: self.window.window.view(),
            scopes: sets.chain(identities).collect(),
            usage_day: self.usage.day,
            sent_today: self.usage.sent,
            sandbox_sent_today: self.usage.sandbox_sent,
        }
    }
}

/// What Sends share, numbered from 1. Bounded; an entry is given up once no row can still name it.
#[derive(Clone, Debug, Default)]
pub struct Profiles {
    entries: Vec<Entry>,
    numbers: HashMap<Arc<Profile>, u32>,
    /// No entry can be given up before this hour.
    full_until: Hour,
    dirty: Vec<u32>,
}

#[derive(Clone, Debug)]
struct Entry {
    profile: Arc<Profile>,
    last_used: Hour,
}

/// Hours after which no row can name a profile: the horizon of its Send, and the hour in which it was used.
const KEPT_HOURS: i32 = (ONCE_HORIZON / sendtrail_schemas::time::HOUR) as i32 + 1;

impl Profiles {
    /// The number of a profile used at `t`; the profile itself when the table has no room.
    pub fn number(&mut self, profile: Profile, t: Millis) -> Result<u32, Box<Profile>> {
        let hour = t.hour();
        if let Some(&number) = self.numbers.get(&profile) {
            let entry = &mut self.entries[number as usize - 1];
            if entry.last_used < hour {
                entry.last_used = hour;
                self.dirty.push(number);
            }
            return Ok(number);
        }
        let number = if self.entries.len() < MAX_PROFILES {
            self.entries.len() as u32 + 1
        } else {
            match self.free(hour) {
                Some(number) => number,
                None => return Err(Box::new(profile)),
            }
        };
        self.put(number, Arc::new(profile), hour);
        self.dirty.push(number);
        Ok(number)
    }

    /// The profile of a number.
    pub fn get(&self, number: u32) -> Option<&Arc<Profile>> {
        let at = (number as usize).checked_sub(1)?;
        self.entries.get(at).map(|entry| &entry.profile)
    }

    fn put(&mut self, number: u32, profile: Arc<Profile>, last_used: Hour) {
        let at = number as usize - 1;
        let entry = Entry { profile: profile.clone(), last_used };
        if at < self.entries.len() {
            let old = std::mem::replace(&mut self.entries[at], entry);
            self.numbers.remove(&old.profile);
        } else {
            // Rows are restored in the order of their numbers, so there is never a gap.
            self.entries.push(entry);
        }
        self.numbers.insert(profile, number);
    }

    fn free(&mut self, hour: Hour) -> Option<u32> {
        if hour < self.full_until {
            return None;
        }
        let (at, oldest) = self.entries.iter().enumerate().min_by_key(|(_, entry)| entry.last_used)?;
        if oldest.last_used + KEPT_HOURS < hour {
            return Some(at as u32 + 1);
        }
        self.full_until = oldest.last_used + KEPT_HOURS + 1;
        None
    }
}

/// What a row of an account holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
enum Part {
    Config = b'c',
    Usage = b'u',
    Window = b'w',
    Judged = b'j',
    Set = b's',
    Identity = b'i',
    Profile = b'p',
}

#[derive(Clone, PartialEq, prost::Message)]
struct WindowRow {
    #[prost(sint32, tag = "1")]
    last: Hour,
    #[prost(message, required, tag = "2")]
    view: WindowView,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ProfileRow {
    #[prost(sint32, tag = "1")]
    last_used: Hour,
    #[prost(message, required, tag = "2")]
    profile: Profile,
}

/// The key of a row of an account in a store: account, part, name.
pub type AccountRowKey = [u8; 33];

fn row_key(account: AccountId, part: Part, name: u128) -> AccountRowKey {
    let mut key = [0u8; 33];
    key[..16].copy_from_slice(account.bytes());
    key[16] = part as u8;
    key[17..].copy_from_slice(&name.to_be_bytes());
    key
}

/// The key of an account's configuration: without it there is no account.
pub fn config_key(account: AccountId) -> AccountRowKey {
    row_key(account, Part::Config, 0)
}

/// The key of an account's profile of a number, from 1.
pub fn profile_key(account: AccountId, number: u32) -> AccountRowKey {
    row_key(account, Part::Profile, u128::from(number))
}

/// The keys of all other rows that an account of this configuration may have.
pub fn other_keys(config: &AccountConfig) -> impl Iterator<Item = AccountRowKey> + '_ {
    let account = config.id();
    let key = move |part, name| row_key(account, part, name);
    let judged = (config.epoch > 0).then(|| key(Part::Judged, 0));
    let sets = config.config_sets.iter().filter_map(move |set| Some(key(Part::Set, set.id()?.0.as_u128())));
    let identities = config.identities.iter();
    let identities = identities.map(move |of| key(Part::Identity, identity_name(of.kind, &of.value)));
    [key(Part::Usage, 0), key(Part::Window, 0)].into_iter().chain(judged).chain(sets).chain(identities)
}

fn identity_name(kind: i32, value: &str) -> u128 {
    hash128(&[&kind.to_le_bytes(), value.as_bytes()])
}

fn malformed(cause: prost::DecodeError) -> Error {
    Error::Malformed(format!("account row: {cause}"))
}

/// A configuration from its row.
///
/// # Errors
/// [`Error::Malformed`].
pub fn read_config(value: &[u8]) -> Result<AccountConfig, Error> {
    AccountConfig::decode(value).map_err(malformed)
}

impl Account {
    /// The rows that are out of date, in the order of their parts; `None` removes one. All are up to date afterwards.
    pub fn take_dirty(&mut self, mut put: impl FnMut(AccountRowKey, Option<Vec<u8>>)) {
        let account = self.config.id();
        self.touched = false;
        // First, so that what was removed and made again is written.
        for key in std::mem::take(&mut self.removed) {
            put(key, None);
        }
        if std::mem::take(&mut self.config_dirty) {
            put(row_key(account, Part::Config, 0), Some(self.config.encode_to_vec()));
        }
        if std::mem::take(&mut self.usage_dirty) {
            put(row_key(account, Part::Usage, 0), Some(self.usage.encode_to_vec()));
        }
        let mut window = |tracked: &mut Tracked, part, name| {
            if std::mem::take(&mut tracked.dirty) {
                let row = WindowRow { last: tracked.window.last(), view: tracked.window.view() };
                put(row_key(account, part, name), Some(row.encode_to_vec()));
            }
        };
        window(&mut self.window, Part::Window, 0);
        if let Some(judged) = &mut self.judged {
            window(judged, Part::Judged, 0);
        }
        for (set, tracked) in self.config.config_sets.iter().zip(&mut self.sets) {
            if let Some(id) = set.id() {
                window(tracked, Part::Set, id.0.as_u128());
            }
        }
        for (identity, tracked) in self.config.identities.iter().zip(&mut self.identities) {
            window(tracked, Part::Identity, identity_name(identity.kind, &identity.value));
        }
        for number in std::mem::take(&mut self.profiles.dirty) {
            if let Some(entry) = self.profiles.entries.get(number as usize - 1) {
                let row = ProfileRow { last_used: entry.last_used, profile: (*entry.profile).clone() };
                put(row_key(account, Part::Profile, u128::from(number)), Some(row.encode_to_vec()));
            }
        }
    }

    /// An account from its rows, in any order; `None` without a configuration. Rows of sets and identities that no
    /// longer exist are passed over.
    ///
    /// # Errors
    /// [`Error::Malformed`] when a row is not what its key says.
    pub fn restore<'a>(rows: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> Result<Option<Self>, Error> {
        Self::restore_with(None, rows)
    }

    /// The same when the configuration was read before: its row may be there, and is not read again.
    ///
    /// # Errors
    /// [`Error::Malformed`] when a row is not what its key says.
    pub fn restore_with<'a>(
        mut config: Option<AccountConfig>,
        rows: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<Option<Self>, Error> {
        let mut usage = Usage::default();
        let mut windows: HashMap<(u8, u128), Window> = HashMap::new();
        let mut profiles: Vec<(u32, ProfileRow)> = Vec::new();
        for (key, value) in rows {
            let (Some(&part), Some(name)) = (key.get(16), key.get(17..).and_then(|n| n.try_into().ok())) else {
                return Err(Error::Malformed("account row: key too short".into()));
            };
            let name = u128::from_be_bytes(name);
            if part == Part::Config as u8 {
                if config.is_none() {
                    config = Some(read_config(value)?);
                }
            } else if part == Part::Usage as u8 {
                usage = Usage::decode(value).map_err(malformed)?;
            } else if part == Part::Profile as u8 {
                profiles.push((name as u32, ProfileRow::decode(value).map_err(malformed)?));
            } else {
                let row = WindowRow::decode(value).map_err(malformed)?;
                windows.insert((part, name), Window::restore(&row.view, row.last));
            }
        }
        let Some(config) = config else { return Ok(None) };
        let mut account = Self::new(config);
        account.usage = usage;
        let mut take = |part: Part, name| {
            let window = windows.remove(&(part as u8, name))?;
            Some(Tracked { window, dirty: false })
        };
        account.window = take(Part::Window, 0).unwrap_or_default();
        account.judged = (account.config.epoch > 0).then(|| take(Part::Judged, 0).unwrap_or_default());
        for (set, tracked) in account.config.config_sets.iter().zip(&mut account.sets) {
            *tracked = set.id().and_then(|id| take(Part::Set, id.0.as_u128())).unwrap_or_default();
        }
        for (identity, tracked) in account.config.identities.iter().zip(&mut account.identities) {
            *tracked = take(Part::Identity, identity_name(identity.kind, &identity.value)).unwrap_or_default();
        }
        profiles.sort_unstable_by_key(|(number, _)| *number);
        for (number, row) in profiles {
            account.profiles.put(number, Arc::new(row.profile), row.last_used);
        }
        Ok(Some(account))
    }
}
