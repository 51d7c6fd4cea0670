//! An account's configuration and standing: part of the processor's state, and what every other role sees of it.

use crate::destination::{Destination, Replay};
use crate::event::Tags;
use crate::ids::{AccountId, ConfigSetId, DestinationId, KeyId};
use crate::time::Millis;

/// Whether an account is on probation (S2 "Sandbox vs Production").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum Mode {
    /// 200 recipients a day, one a second.
    Sandbox = 0,
    /// 50,000 recipients a day, 14 a second, unless the policy or the account says otherwise.
    Production = 1,
}

impl Mode {
    /// `sandbox` or `production`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sandbox => "sandbox",
            Self::Production => "production",
        }
    }

    /// Reads a name, in any case.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Sandbox, Self::Production].into_iter().find(|mode| mode.name().eq_ignore_ascii_case(text))
    }
}

/// How an account is judged.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum Status {
    /// Within its limits.
    Healthy = 0,
    /// Over a warning limit.
    AtRisk = 1,
    /// Over a limit, or paused by an administrator: no send is accepted.
    Paused = 2,
}

impl Status {
    /// `HEALTHY`, `AT_RISK` or `PAUSED`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Healthy => "HEALTHY",
            Self::AtRisk => "AT_RISK",
            Self::Paused => "PAUSED",
        }
    }
}

/// Limits that an account is judged by. Rates are parts per million of the sends in the window; a rate equal to its
/// limit does not breach it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Policy {
    /// `splashify` or `zmailer`: where the other fields come from when they are not given.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Sends in the window before anything is judged.
    #[prost(uint64, tag = "2")]
    pub minimum_sends: u64,
    /// Complaints in the window before complaints are judged.
    #[prost(uint64, tag = "3")]
    pub minimum_complaints: u64,
    /// Bounces above which the account is warned; unset: no warning.
    #[prost(uint32, optional, tag = "4")]
    pub warn_bounce_ppm: Option<u32>,
    /// Complaints above which the account is warned; unset: no warning.
    #[prost(uint32, optional, tag = "5")]
    pub warn_complaint_ppm: Option<u32>,
    /// Bounces above which the account is paused.
    #[prost(uint32, tag = "6")]
    pub pause_bounce_ppm: u32,
    /// Complaints above which the account is paused.
    #[prost(uint32, tag = "7")]
    pub pause_complaint_ppm: u32,
}

impl Policy {
    /// S2's limits: warned over 5 % or 0.1 %, paused over 10 % or 0.5 %, after 50 sends (S4's floor).
    pub fn splashify() -> Self {
        Self {
            name: "splashify".into(),
            minimum_sends: 50,
            minimum_complaints: 1,
            warn_bounce_ppm: Some(50_000),
            warn_complaint_ppm: Some(1_000),
            pause_bounce_ppm: 100_000,
            pause_complaint_ppm: 5_000,
        }
    }

    /// S4's limits: paused over 5 % or 0.1 % after 50 sends; no warning.
    pub fn zmailer() -> Self {
        Self {
            name: "zmailer".into(),
            minimum_sends: 50,
            minimum_complaints: 1,
            warn_bounce_ppm: None,
            warn_complaint_ppm: None,
            pause_bounce_ppm: 50_000,
            pause_complaint_ppm: 1_000,
        }
    }

    /// The policy of a name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "splashify" => Some(Self::splashify()),
            "zmailer" => Some(Self::zmailer()),
            _ => None,
        }
    }

    /// Recipients a day of a production account under this policy (S2: 50,000; S4: 1,000).
    pub fn daily_quota(&self) -> u64 {
        if self.name == "zmailer" { 1_000 } else { 50_000 }
    }
}

/// What fits a key's form on the wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum KeyForm {
    /// `pk_live_…`, S2's.
    PkLive = 0,
    /// `zm_live_…`, S4's.
    ZmLive = 1,
    /// `zm_test_…`, S4's: reaches the simulator only.
    ZmTest = 2,
    /// `sk_live_…`, S0's.
    SkLive = 3,
    /// `in_rcs_…`: the token in the path that callbacks of an RCS provider come to, and nothing else.
    InRcs = 4,
    /// `in_wa_…`: that of WhatsApp's callbacks.
    InWhatsapp = 5,
}

impl KeyForm {
    /// Every form.
    pub const ALL: [Self; 6] = [Self::PkLive, Self::ZmLive, Self::ZmTest, Self::SkLive, Self::InRcs, Self::InWhatsapp];

    /// `pk_live`, `zm_live`, `zm_test`, `sk_live`, `in_rcs` or `in_wa`.
    pub fn name(self) -> &'static str {
        match self {
            Self::PkLive => "pk_live",
            Self::ZmLive => "zm_live",
            Self::ZmTest => "zm_test",
            Self::SkLive => "sk_live",
            Self::InRcs => "in_rcs",
            Self::InWhatsapp => "in_wa",
        }
    }

    /// Whether it stands in the path of callbacks, and opens nothing else.
    pub fn is_inbound(self) -> bool {
        matches!(self, Self::InRcs | Self::InWhatsapp)
    }

    /// Reads a name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|form| form.name() == text)
    }
}

/// What a key may be used for. ◆
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum KeyScope {
    /// To look at what the account has.
    Read = 1,
    /// To send mail and to tell events.
    Send = 2,
    /// To change what the account has: sets, webhooks and their secrets, identities, suppressions, replays.
    Manage = 3,
}

impl KeyScope {
    /// Every scope.
    pub const ALL: [Self; 3] = [Self::Read, Self::Send, Self::Manage];

    /// `read`, `send` or `manage`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Send => "send",
            Self::Manage => "manage",
        }
    }

    /// Reads a name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.name() == text)
    }
}

/// An API key, of which only the hash is kept.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ApiKey {
    /// Sixteen bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub key_id: Vec<u8>,
    /// SHA-256 of the key.
    #[prost(bytes = "vec", tag = "2")]
    pub hash: Vec<u8>,
    /// What its owner calls it.
    #[prost(string, tag = "3")]
    pub name: String,
    /// Its form.
    #[prost(enumeration = "KeyForm", tag = "4")]
    pub form: i32,
    /// Its first twelve characters, to tell keys apart.
    #[prost(string, tag = "5")]
    pub prefix: String,
    /// Milliseconds since the epoch.
    #[prost(int64, tag = "6")]
    pub created_at: i64,
    /// When it was revoked.
    #[prost(int64, optional, tag = "7")]
    pub revoked_at: Option<i64>,
    /// When it was last used, to the hour.
    #[prost(int64, optional, tag = "8")]
    pub last_used_at: Option<i64>,
    /// The partner's customer whose callbacks come with it.
    #[prost(string, optional, tag = "9")]
    pub customer_id: Option<String>,
    /// What it may be used for; none: everything.
    #[prost(enumeration = "KeyScope", repeated, tag = "10")]
    pub scopes: Vec<i32>,
    /// From when on it is no longer good, milliseconds since the epoch.
    #[prost(int64, optional, tag = "11")]
    pub expires_at: Option<i64>,
}

impl ApiKey {
    /// Whether it may be used for something.
    pub fn may(&self, scope: KeyScope) -> bool {
        self.scopes.is_empty() || self.scopes.contains(&(scope as i32))
    }

    /// Whether it is good for less than everything, for ever.
    pub fn is_restricted(&self) -> bool {
        !self.scopes.is_empty() || self.expires_at.is_some()
    }

    /// Its identifier.
    pub fn id(&self) -> Option<KeyId> {
        KeyId::from_slice(&self.key_id).ok()
    }
}

/// What a sender has proved to control.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum IdentityType {
    /// Any address at the domain.
    Domain = 0,
    /// One address.
    EmailAddress = 1,
}

impl IdentityType {
    /// `DOMAIN` or `EMAIL_ADDRESS`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Domain => "DOMAIN",
            Self::EmailAddress => "EMAIL_ADDRESS",
        }
    }

    /// Reads a name, in any case.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Domain, Self::EmailAddress].into_iter().find(|kind| kind.name().eq_ignore_ascii_case(text))
    }
}

/// How far the proof has come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum IdentityStatus {
    /// Not proved yet.
    Pending = 0,
    /// Proved.
    Verified = 1,
    /// Not proved in seven days.
    Failed = 2,
}

impl IdentityStatus {
    /// `PENDING`, `VERIFIED` or `FAILED`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Verified => "VERIFIED",
            Self::Failed => "FAILED",
        }
    }

    /// Reads a name, in any case.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Pending, Self::Verified, Self::Failed]
            .into_iter()
            .find(|status| status.name().eq_ignore_ascii_case(text))
    }
}

/// A sending identity.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Identity {
    /// Domain or address.
    #[prost(enumeration = "IdentityType", tag = "1")]
    pub kind: i32,
    /// Lower-cased: identities compare without case.
    #[prost(string, tag = "2")]
    pub value: String,
    /// How far the proof has come.
    #[prost(enumeration = "IdentityStatus", tag = "3")]
    pub status: i32,
    /// Milliseconds since the epoch.
    #[prost(int64, tag = "4")]
    pub created_at: i64,
    /// When it was proved.
    #[prost(int64, optional, tag = "5")]
    pub verified_at: Option<i64>,
}

/// Which bounces and complaints write to the suppression list (S2 "Suppression options").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum SuppressionOptions {
    /// Both; the default.
    BounceAndComplaint = 0,
    /// Permanent bounces only.
    Bounce = 1,
    /// Complaints only.
    Complaint = 2,
    /// Neither.
    None = 3,
}

impl SuppressionOptions {
    /// `NONE`, `BOUNCE`, `COMPLAINT` or `BOUNCE_AND_COMPLAINT`.
    pub fn name(self) -> &'static str {
        match self {
            Self::BounceAndComplaint => "BOUNCE_AND_COMPLAINT",
            Self::Bounce => "BOUNCE",
            Self::Complaint => "COMPLAINT",
            Self::None => "NONE",
        }
    }

    /// Reads a name.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::BounceAndComplaint, Self::Bounce, Self::Complaint, Self::None].into_iter().find(|o| o.name() == text)
    }

    /// Whether permanent bounces suppress.
    pub fn bounces(self) -> bool {
        matches!(self, Self::BounceAndComplaint | Self::Bounce)
    }

    /// Whether complaints suppress.
    pub fn complaints(self) -> bool {
        matches!(self, Self::BounceAndComplaint | Self::Complaint)
    }
}

/// A configuration set: sends that share destinations and suppression options.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ConfigSet {
    /// Sixteen bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub config_set_id: Vec<u8>,
    /// Unique in the account, case-sensitive, 1 to 256 of `[A-Za-z0-9_-]`.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Free text.
    #[prost(string, optional, tag = "3")]
    pub description: Option<String>,
    /// The partner's own customer.
    #[prost(string, optional, tag = "4")]
    pub customer_id: Option<String>,
    /// Off: sends through this set are rejected.
    #[prost(bool, tag = "5")]
    pub sending_enabled: bool,
    /// Off: its sends, bounces and complaints stay out of every window.
    #[prost(bool, tag = "6")]
    pub reputation_tracking_enabled: bool,
    /// What writes to the suppression list.
    #[prost(enumeration = "SuppressionOptions", tag = "7")]
    pub suppression_options: i32,
    /// Joined to its events' tags; the event's win.
    #[prost(btree_map = "string, string", tag = "8")]
    pub tags: Tags,
    /// At most five.
    #[prost(message, repeated, tag = "9")]
    pub destinations: Vec<Destination>,
    /// Milliseconds since the epoch.
    #[prost(int64, tag = "10")]
    pub created_at: i64,
}

impl ConfigSet {
    /// Its identifier.
    pub fn id(&self) -> Option<ConfigSetId> {
        ConfigSetId::from_slice(&self.config_set_id).ok()
    }
}

/// What paused an account.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PauseEvidence {
    /// When, milliseconds since the epoch.
    #[prost(int64, tag = "1")]
    pub at: i64,
    /// `bounce_rate`, `complaint_rate` or `manual`.
    #[prost(string, tag = "2")]
    pub rule: String,
    /// Bounces or complaints that were judged.
    #[prost(uint64, tag = "3")]
    pub numerator: u64,
    /// Sends that were judged.
    #[prost(uint64, tag = "4")]
    pub denominator: u64,
    /// Start of the window, milliseconds since the epoch.
    #[prost(int64, tag = "5")]
    pub window_start: i64,
    /// The event that crossed the limit; empty for `manual`.
    #[prost(string, tag = "6")]
    pub event_id: String,
    /// What an administrator wrote, or a sentence that tells what happened.
    #[prost(string, tag = "7")]
    pub reason: String,
}

/// An account as its owner and the administrator have set it up, with its standing.
///
/// Lists are sorted (keys by creation, identities by kind and value, sets by name), so that look-ups search by halves.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct AccountConfig {
    /// Sixteen bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub account_id: Vec<u8>,
    /// Offset of the last intake record that changed this: its version.
    #[prost(uint64, tag = "2")]
    pub version: u64,
    /// What the administrator calls it.
    #[prost(string, tag = "3")]
    pub name: String,
    /// Who is mailed when the account is at risk or paused.
    #[prost(string, tag = "4")]
    pub contact_email: String,
    /// Probation or not.
    #[prost(enumeration = "Mode", tag = "5")]
    pub mode: i32,
    /// Suspended: its keys are refused (401 KEY_INACTIVE).
    #[prost(bool, tag = "6")]
    pub suspended: bool,
    /// How it is judged.
    #[prost(message, optional, tag = "7")]
    pub policy: Option<Policy>,
    /// Recipients a UTC day; unset: as mode and policy say.
    #[prost(uint64, optional, tag = "8")]
    pub daily_send_quota: Option<u64>,
    /// Recipients a second; unset: as the mode says.
    #[prost(uint32, optional, tag = "9")]
    pub peak_send_rate_per_second: Option<u32>,
    /// Milliseconds since the epoch.
    #[prost(int64, tag = "10")]
    pub created_at: i64,
    /// Its keys, revoked ones too.
    #[prost(message, repeated, tag = "11")]
    pub keys: Vec<ApiKey>,
    /// Its identities, sorted by kind and value.
    #[prost(message, repeated, tag = "12")]
    pub identities: Vec<Identity>,
    /// Its configuration sets, sorted by name; at most 100.
    #[prost(message, repeated, tag = "13")]
    pub config_sets: Vec<ConfigSet>,
    /// How it stands.
    #[prost(enumeration = "Status", tag = "14")]
    pub status: i32,
    /// What paused it, while it is paused.
    #[prost(message, optional, tag = "15")]
    pub paused: Option<PauseEvidence>,
    /// The last resume, milliseconds since the epoch: start of what the policy judges.
    #[prost(int64, optional, tag = "16")]
    pub resumed_at: Option<i64>,
    /// How often it was resumed.
    #[prost(uint32, tag = "17")]
    pub epoch: u32,
    /// Webhooks that belong to no set, in the order in which they were made; at most 100.
    #[prost(message, repeated, tag = "18")]
    pub webhooks: Vec<Destination>,
    /// Replays of events, the newest last; at most 20.
    #[prost(message, repeated, tag = "19")]
    pub replays: Vec<Replay>,
    /// From where its keys may be used, as [`crate::networks`] writes them; none: from everywhere.
    #[prost(string, repeated, tag = "20")]
    pub networks: Vec<String>,
    /// Recipients who are erased, the newest last; those of long ago are forgotten. At most [`MAX_ERASURES`].
    #[prost(message, repeated, tag = "21")]
    pub erasures: Vec<Erasure>,
    /// Whether nothing may be erased.
    #[prost(bool, tag = "22")]
    pub legal_hold: bool,
    /// Days after the receipt of an event after which its personal fields are erased; 0: never.
    #[prost(uint32, tag = "23")]
    pub retention_days: u32,
}

/// Erasures of an account that are remembered at once: those under way, and of 15 days.
pub const MAX_ERASURES: usize = 1_000;

/// A recipient who is erased, of whom nothing is known here but a hash.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Erasure {
    /// Sixteen bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub erasure_id: Vec<u8>,
    /// [`crate::ids::hash128`] of the address in lower case, sixteen bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub address_hash: Vec<u8>,
    /// When it was asked for, milliseconds since the epoch.
    #[prost(int64, tag = "3")]
    pub requested_at: i64,
    /// When it had reached every store.
    #[prost(int64, optional, tag = "4")]
    pub erased_at: Option<i64>,
    /// Rows of the archive that it changed.
    #[prost(uint64, tag = "5")]
    pub rows: u64,
}

impl Erasure {
    /// What it remembers of an address.
    pub fn hash(address: &str) -> [u8; 16] {
        crate::ids::hash128(&[b"erased", crate::address::fold(address).as_bytes()]).to_be_bytes()
    }
}

impl AccountConfig {
    /// Its identifier; nil for a row that no program of ours wrote.
    pub fn id(&self) -> AccountId {
        AccountId::from_slice(&self.account_id).unwrap_or(AccountId(uuid::Uuid::nil()))
    }

    /// Why no send is accepted, if it is paused, as who sends is told.
    pub fn why_paused(&self) -> Option<String> {
        let why = self.paused.as_ref().map_or("", |evidence| evidence.reason.as_str());
        (self.status() == Status::Paused).then(|| format!("sending is paused: {why}"))
    }

    /// How it is judged.
    pub fn policy(&self) -> Policy {
        self.policy.clone().unwrap_or_else(Policy::splashify)
    }

    /// Recipients a UTC day.
    pub fn daily_quota(&self) -> u64 {
        self.daily_send_quota.unwrap_or_else(|| match self.mode() {
            Mode::Sandbox => 200,
            Mode::Production => self.policy.as_ref().map_or(50_000, Policy::daily_quota),
        })
    }

    /// Recipients a second.
    pub fn peak_rate(&self) -> u32 {
        self.peak_send_rate_per_second.unwrap_or(match self.mode() {
            Mode::Sandbox => 1,
            Mode::Production => 14,
        })
    }

    /// A configuration set by its name.
    pub fn config_set(&self, name: &str) -> Option<&ConfigSet> {
        let at = self.config_sets.binary_search_by(|set| set.name.as_str().cmp(name)).ok()?;
        self.config_sets.get(at)
    }

    /// The place of a configuration set: the one of an identifier when that is known, else the one of a name.
    pub fn config_set_position(&self, name: Option<&str>, id: Option<ConfigSetId>) -> Option<usize> {
        let named = name.and_then(|name| self.config_sets.binary_search_by(|set| set.name.as_str().cmp(name)).ok());
        let Some(id) = id else { return named };
        let is = |set: &ConfigSet| set.config_set_id == id.bytes();
        // It seldom has another name by now.
        named.filter(|at| self.config_sets.get(*at).is_some_and(is)).or_else(|| self.config_sets.iter().position(is))
    }

    /// A configuration set by its identifier.
    pub fn config_set_by_id(&self, id: ConfigSetId) -> Option<&ConfigSet> {
        self.config_sets.iter().find(|set| set.config_set_id == id.bytes())
    }

    /// Every destination: those of the sets, then the account's own.
    pub fn destinations(&self) -> impl Iterator<Item = &Destination> {
        self.config_sets.iter().flat_map(|set| &set.destinations).chain(&self.webhooks)
    }

    /// A destination by its identifier, of a set or the account's own.
    pub fn destination(&self, id: DestinationId) -> Option<&Destination> {
        self.destinations().find(|dest| dest.destination_id == id.bytes())
    }

    /// The only destination of a surface that has one at most.
    pub fn webhook_of(&self, surface: crate::destination::Surface) -> Option<&Destination> {
        self.webhooks.iter().find(|dest| dest.surface() == surface)
    }

    /// The set of a destination; `None` for the account's own.
    pub fn set_of(&self, id: DestinationId) -> Option<&ConfigSet> {
        self.config_sets.iter().find(|set| set.destinations.iter().any(|dest| dest.destination_id == id.bytes()))
    }

    /// Where an identity is, or would be, in the sorted list. `value` is lower-cased.
    pub fn identity_position(&self, kind: IdentityType, value: &str) -> Result<usize, usize> {
        self.identities.binary_search_by(|identity| (identity.kind, identity.value.as_str()).cmp(&(kind as i32, value)))
    }

    /// An identity by kind and lower-cased value.
    pub fn identity(&self, kind: IdentityType, value: &str) -> Option<&Identity> {
        self.identities.get(self.identity_position(kind, value).ok()?)
    }

    /// Whether an address (lower-cased) may stand in a From: it, or its domain, is verified.
    pub fn may_send_from(&self, address: &str) -> bool {
        let verified = |identity: Option<&Identity>| identity.is_some_and(|i| i.status() == IdentityStatus::Verified);
        let domain = address.rsplit_once('@').map_or("", |(_, domain)| domain);
        verified(self.identity(IdentityType::EmailAddress, address))
            || verified(self.identity(IdentityType::Domain, domain))
    }

    /// When it was created.
    pub fn created(&self) -> Millis {
        Millis(self.created_at)
    }
}

/// An address that must not be mailed.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Suppression {
    /// As given when it was added.
    #[prost(string, tag = "1")]
    pub email: String,
    /// `BOUNCE`, `COMPLAINT`, `UNSUBSCRIBE` or `MANUAL`.
    #[prost(string, tag = "2")]
    pub reason: String,
    /// Free text.
    #[prost(string, optional, tag = "3")]
    pub details: Option<String>,
    /// Milliseconds since the epoch.
    #[prost(int64, tag = "4")]
    pub created_at: i64,
    /// The event that added it.
    #[prost(string, optional, tag = "5")]
    pub event_id: Option<String>,
}
