//! What servers tell one another beside the log: views of accounts, questions, replies.
//!
//! None of it is in the sequence. Views are kept by Kafka as the last word on each key; questions and replies are only
//! good for as long as somebody waits.

use std::sync::Arc;

use crate::Error;
use crate::account::{AccountConfig, IdentityType, Suppression};
use crate::address;
use crate::ids::{AccountId, ConfigSetId};
use crate::record::{Decision, ReplyTo, SourcePosition};
use crate::reputation::{Reputation, Scope, WindowView};
use crate::time::Day;

/// What the owner of a partition, or the sink of its events, makes known to everyone.
#[derive(Clone, PartialEq, prost::Message)]
pub struct View {
    /// The format's version.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// Since when its writer owns the partition: the offset of the [`Seen::Reign`] that it began with. What has a lower one
    /// than another that stands before it comes from an owner who did not know that he was none any more.
    #[prost(uint64, tag = "2")]
    pub reign: u64,
    /// What it tells.
    #[prost(oneof = "Seen", tags = "10, 11, 12, 13, 14")]
    pub seen: Option<Seen>,
}

/// What a view tells.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Seen {
    /// Somebody owns the partition from here on.
    #[prost(message, tag = "10")]
    Reign(Reign),
    /// An account, of the version that it names.
    #[prost(message, boxed, tag = "11")]
    Account(Box<AccountConfig>),
    /// Whether an address is suppressed.
    #[prost(message, tag = "12")]
    Suppression(SuppressionView),
    /// How far the partition is.
    #[prost(message, tag = "13")]
    Progress(ProgressView),
    /// How far ClickHouse is with its events.
    #[prost(message, tag = "14")]
    ClickHouse(ClickHouseView),
}

/// See [`Seen::Reign`].
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Reign {
    /// Which process: random.
    #[prost(fixed64, tag = "1")]
    pub instance: u64,
}

/// An address of an account's suppression list.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SuppressionView {
    /// Whose list.
    #[prost(bytes = "vec", tag = "1")]
    pub account_id: Vec<u8>,
    /// The address.
    #[prost(string, tag = "2")]
    pub email: String,
    /// Why it is suppressed; none: it is not.
    #[prost(message, optional, tag = "3")]
    pub row: Option<Suppression>,
}

/// How far a partition is. Comes after the views that it covers.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ProgressView {
    /// The offset after the last intake record whose outputs are durable.
    #[prost(uint64, tag = "1")]
    pub applied: u64,
    /// The number after the last event that came of them.
    #[prost(uint64, tag = "2")]
    pub next_event: u64,
    /// The partition's time, milliseconds since the epoch.
    #[prost(int64, tag = "3")]
    pub last_t: i64,
    /// Why nothing more will be applied, if so.
    #[prost(string, optional, tag = "4")]
    pub halted: Option<String>,
}

/// How far ClickHouse is with a partition's events.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ClickHouseView {
    /// The number after the last event that it has.
    #[prost(uint64, tag = "1")]
    pub next_event: u64,
    /// The first UTC day of receipt since when it has every event; none: it is being filled, or does not answer.
    #[prost(sint32, optional, tag = "2")]
    pub whole_since: Option<Day>,
}

impl Seen {
    /// What the last word of is kept.
    pub fn key(&self) -> Vec<u8> {
        match self {
            Self::Reign(_) => b"reign".to_vec(),
            Self::Account(config) => [b"a", &config.account_id[..]].concat(),
            Self::Suppression(view) => [b"s", &view.account_id[..], address::fold(&view.email).as_bytes()].concat(),
            Self::Progress(_) => b"progress".to_vec(),
            Self::ClickHouse(_) => b"clickhouse".to_vec(),
        }
    }
}

/// A question about an account or a source, put to the owner of a partition.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Question {
    /// The format's version.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// Who asks.
    #[prost(message, required, tag = "2")]
    pub reply_to: ReplyTo,
    /// About which account.
    #[prost(bytes = "vec", tag = "3")]
    pub account_id: Vec<u8>,
    /// Answered once everything before this offset of intake is applied.
    #[prost(uint64, tag = "4")]
    pub after: u64,
    /// Or about which source.
    #[prost(string, optional, tag = "5")]
    pub source: Option<String>,
}

/// What somebody waits for.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Reply {
    /// The format's version.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// Who.
    #[prost(message, required, tag = "2")]
    pub to: ReplyTo,
    /// What.
    #[prost(oneof = "Answer", tags = "10, 11, 12, 13")]
    pub answer: Option<Answer>,
}

/// What is replied.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Answer {
    /// What was decided about a record.
    #[prost(message, tag = "10")]
    Decision(Decision),
    /// How an account stands.
    #[prost(message, boxed, tag = "11")]
    Reputation(Box<ReputationView>),
    /// There is no such account.
    #[prost(bool, tag = "12")]
    NoAccount(bool),
    /// How far a source has come.
    #[prost(message, tag = "13")]
    Source(SourceView),
}

/// How far a source has come in an intake partition.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SourceView {
    /// The last number from each of its partitions.
    #[prost(message, repeated, tag = "1")]
    pub marks: Vec<SourcePosition>,
}

/// A [`Reputation`] on its way.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReputationView {
    /// How the account is set up and stands.
    #[prost(message, required, tag = "1")]
    pub config: AccountConfig,
    /// Its window.
    #[prost(message, required, tag = "2")]
    pub window: WindowView,
    /// The windows of its sets and identities.
    #[prost(message, repeated, tag = "3")]
    pub scopes: Vec<ScopeView>,
    /// The day that the next two fields speak of.
    #[prost(sint32, tag = "4")]
    pub usage_day: Day,
    /// Recipients accepted on that day.
    #[prost(uint64, tag = "5")]
    pub sent_today: u64,
    /// Of these, those accepted while in the sandbox.
    #[prost(uint64, tag = "6")]
    pub sandbox_sent_today: u64,
}

/// One of an account's further windows.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ScopeView {
    /// Of this configuration set.
    #[prost(bytes = "vec", optional, tag = "1")]
    pub config_set_id: Option<Vec<u8>>,
    /// Or of an identity of this kind and value.
    #[prost(enumeration = "IdentityType", tag = "2")]
    pub identity_type: i32,
    /// See the one before.
    #[prost(string, tag = "3")]
    pub identity_value: String,
    /// The window.
    #[prost(message, required, tag = "4")]
    pub window: WindowView,
}

impl From<Reputation> for ReputationView {
    fn from(reputation: Reputation) -> Self {
        let scope = |(scope, window)| match scope {
            Scope::ConfigSet(id) => {
                ScopeView { config_set_id: Some(id.bytes().to_vec()), window, ..ScopeView::default() }
            }
            Scope::Identity(identity_type, identity_value) => {
                ScopeView { config_set_id: None, identity_type, identity_value, window }
            }
        };
        Self {
            config: Arc::unwrap_or_clone(reputation.config),
            window: reputation.window,
            scopes: reputation.scopes.into_iter().map(scope).collect(),
            usage_day: reputation.usage_day,
            sent_today: reputation.sent_today,
            sandbox_sent_today: reputation.sandbox_sent_today,
        }
    }
}

impl TryFrom<ReputationView> for Reputation {
    type Error = Error;

    fn try_from(view: ReputationView) -> Result<Self, Error> {
        let scope = |scope: ScopeView| {
            let of = match scope.config_set_id {
                Some(id) => Scope::ConfigSet(ConfigSetId::from_slice(&id)?),
                None => Scope::Identity(scope.identity_type, scope.identity_value),
            };
            Ok::<_, Error>((of, scope.window))
        };
        Ok(Self {
            config: Arc::new(view.config),
            window: view.window,
            scopes: view.scopes.into_iter().map(scope).collect::<Result<_, _>>()?,
            usage_day: view.usage_day,
            sent_today: view.sent_today,
            sandbox_sent_today: view.sandbox_sent_today,
        })
    }
}

impl Question {
    /// About which account.
    ///
    /// # Errors
    /// [`Error::Malformed`].
    pub fn account(&self) -> Result<AccountId, Error> {
        AccountId::from_slice(&self.account_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;
    use crate::reputation::{Bucket, Counts};
    use uuid::Uuid;

    #[test]
    fn a_reputation_arrives_as_it_was() {
        let window =
            |sent| WindowView { buckets: vec![Bucket { hour: 7, counts: Counts { sent, bounced: 2, complained: 1 } }] };
        let sent = Reputation {
            config: Arc::new(AccountConfig { account_id: vec![1; 16], version: 9, ..AccountConfig::default() }),
            window: window(10),
            scopes: vec![
                (Scope::ConfigSet(ConfigSetId(Uuid::from_u128(5))), window(11)),
                (Scope::Identity(IdentityType::EmailAddress as i32, "a@b.example".into()), window(12)),
            ],
            usage_day: 20_000,
            sent_today: 3,
            sandbox_sent_today: 2,
        };
        let reply = Reply {
            version: codec::VERSION,
            to: ReplyTo { instance: 1, request: 2 },
            answer: Some(Answer::Reputation(Box::new(sent.clone().into()))),
        };
        let Some(Answer::Reputation(view)) = codec::decode::<Reply>(&codec::encode(&reply)).unwrap().answer else {
            panic!()
        };
        let arrived = Reputation::try_from(*view).unwrap();
        assert_eq!(format!("{arrived:?}"), format!("{sent:?}"));
    }

    #[test]
    fn each_key_is_one_things() {
        let suppression = |account: u8, email: &str| {
            let view = SuppressionView { account_id: vec![account; 16], email: email.into(), row: None };
            Seen::Suppression(view).key()
        };
        assert_eq!(suppression(1, "A@B.example"), suppression(1, "a@b.example"));
        assert_ne!(suppression(1, "a@b.example"), suppression(2, "a@b.example"));
        let account = AccountConfig { account_id: vec![1; 16], ..AccountConfig::default() };
        let account = Seen::Account(Box::new(account));
        assert_ne!(account.key(), suppression(1, ""));
    }
}
