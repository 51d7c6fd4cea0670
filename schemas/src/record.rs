//! Intake records: whatever may change an account, in the order in which it does.

use crate::account::{ApiKey, ConfigSet, Identity, IdentityStatus, IdentityType, Mode, Policy, Suppression};
use crate::destination::{Destination, Header, Replay};
use crate::event::{EventFact, Tags};
use crate::ids::AccountId;
use crate::mail::Content;

/// One record of `sendtrail.intake`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Record {
    /// Format of this record; see [`crate::codec`].
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// The account, sixteen bytes; empty for a record that concerns the partition.
    #[prost(bytes = "vec", tag = "2")]
    pub account_id: Vec<u8>,
    /// Milliseconds since the epoch; honoured only on a log created as simulated.
    #[prost(int64, optional, tag = "3")]
    pub simulated_time: Option<i64>,
    /// Who waits for the decision.
    #[prost(message, optional, tag = "4")]
    pub reply_to: Option<ReplyTo>,
    /// Where it was read, if not at our own door. Such a record is of version [`crate::codec::SOURCED`].
    #[prost(message, optional, tag = "5")]
    pub source: Option<SourcePosition>,
    /// Who asks for a change, if that is to be told.
    #[prost(message, optional, tag = "6")]
    pub actor: Option<Actor>,
    /// What is asked or told.
    #[prost(oneof = "Body", tags = "10, 11, 12, 13, 14, 15, 16")]
    pub body: Option<Body>,
}

impl Record {
    /// The account; `None` for a record that concerns the partition.
    pub fn account(&self) -> Option<AccountId> {
        AccountId::from_slice(&self.account_id).ok()
    }
}

impl Body {
    /// The format of a record that holds it, unless it was read from a source; see [`crate::codec`].
    pub fn version(&self) -> u32 {
        match self {
            Self::Command(Command { change: Some(change) }) => change.version(),
            _ => crate::codec::VERSION,
        }
    }
}

/// The place of a record in a topic that we read from, and its number among those of that place that came here.
///
/// A partition applies the number after its mark and nothing else: what is told again is a copy, what leaves some out is
/// told again by whoever reads the source.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct SourcePosition {
    /// The source: a topic's name, or `name/topic` for a source with a name of its own.
    #[prost(string, tag = "1")]
    pub source: String,
    /// The topic's partition.
    #[prost(uint32, tag = "2")]
    pub partition: u32,
    /// 1, 2, 3, … of this source's partition in this intake partition, without holes. 0 of a record that only tells what
    /// is settled.
    #[prost(uint64, tag = "3")]
    pub number: u64,
    /// The offset there.
    #[prost(uint64, tag = "4")]
    pub offset: u64,
    /// Which of the records that the message became, from 1.
    #[prost(uint32, tag = "5")]
    pub index: u32,
    /// Whatever stood before this offset is in the log, in whichever intake partition.
    #[prost(uint64, tag = "6")]
    pub settled: u64,
}

/// Who asks for a change.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Actor {
    /// The key, sixteen bytes; empty: the administrator.
    #[prost(bytes = "vec", tag = "1")]
    pub key_id: Vec<u8>,
    /// Where the request came from, if that is known.
    #[prost(string, tag = "2")]
    pub address: String,
}

/// The address of a waiting request.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct ReplyTo {
    /// The ingest instance.
    #[prost(fixed64, tag = "1")]
    pub instance: u64,
    /// The request within it.
    #[prost(uint64, tag = "2")]
    pub request: u64,
}

/// What a record asks or tells.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Body {
    /// A delivery event, streamed in or reported by our own delivery.
    #[prost(message, tag = "10")]
    Fact(EventFact),
    /// A call to send.
    #[prost(message, tag = "11")]
    Send(SendRequest),
    /// A change of configuration.
    #[prost(message, tag = "12")]
    Command(Command),
    /// An earlier record that must not be applied.
    #[prost(message, tag = "13")]
    Skip(Skip),
    /// What the partition's logic reads besides its records.
    #[prost(message, tag = "14")]
    Settings(Settings),
    /// Nothing but the time that the record carries.
    #[prost(message, tag = "15")]
    Tick(Tick),
    /// A message of a source that could not be read: a dead letter.
    #[prost(message, tag = "16")]
    Unreadable(Unreadable),
}

/// A message of a source that could not be read.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Unreadable {
    /// Why.
    #[prost(string, tag = "1")]
    pub reason: String,
    /// The message, as it was.
    #[prost(bytes = "vec", tag = "2")]
    pub payload: Vec<u8>,
}

/// A call to send, checked for form but not yet decided.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SendRequest {
    /// Groups the recipients of the call.
    #[prost(string, tag = "1")]
    pub send_id: String,
    /// The From, as given.
    #[prost(string, tag = "2")]
    pub from: String,
    /// The From's address, lower-cased.
    #[prost(string, tag = "3")]
    pub from_address: String,
    /// To, cc and bcc, each with its own message id.
    #[prost(message, repeated, tag = "4")]
    pub recipients: Vec<Recipient>,
    /// The subject.
    #[prost(string, tag = "5")]
    pub subject: String,
    /// The configuration set.
    #[prost(string, optional, tag = "6")]
    pub configuration_set_name: Option<String>,
    /// The partner's own customer.
    #[prost(string, optional, tag = "7")]
    pub customer_id: Option<String>,
    /// `transactional` or `marketing`.
    #[prost(string, tag = "8")]
    pub category: String,
    /// Tags.
    #[prost(btree_map = "string, string", tag = "9")]
    pub tags: Tags,
    /// A JSON object as text.
    #[prost(string, optional, tag = "10")]
    pub metadata: Option<String>,
    /// Reply-To, as given.
    #[prost(string, optional, tag = "11")]
    pub reply_to: Option<String>,
    /// The message itself, or where it is.
    #[prost(message, optional, tag = "12")]
    pub content: Option<Content>,
    /// Makes the call safe to repeat.
    #[prost(message, optional, tag = "13")]
    pub idempotency: Option<Idempotency>,
}

/// One recipient of a call.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Recipient {
    /// As given.
    #[prost(string, tag = "1")]
    pub address: String,
    /// The identifier of the message to this recipient.
    #[prost(string, tag = "2")]
    pub message_id: String,
    /// Where it stood.
    #[prost(enumeration = "RecipientKind", tag = "3")]
    pub kind: i32,
}

/// Where a recipient stood.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum RecipientKind {
    /// In To.
    To = 0,
    /// In Cc.
    Cc = 1,
    /// In Bcc: never in a header.
    Bcc = 2,
}

/// An `Idempotency-Key`, honoured for 24 hours per account and route.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Idempotency {
    /// The route: keys of different routes are different keys.
    #[prost(string, tag = "1")]
    pub route: String,
    /// The key, as given.
    #[prost(string, tag = "2")]
    pub key: String,
    /// SHA-256 of the request's body.
    #[prost(bytes = "vec", tag = "3")]
    pub body_hash: Vec<u8>,
}

/// A change of configuration. Identifiers and secrets are made before the record, so that it can be replayed.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Command {
    /// Which.
    #[prost(
        oneof = "Change",
        tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29"
    )]
    pub change: Option<Change>,
}

/// The changes that can be asked for.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Change {
    /// A new account.
    #[prost(message, tag = "1")]
    CreateAccount(AccountFields),
    /// Other values for an account.
    #[prost(message, tag = "2")]
    PatchAccount(AccountFields),
    /// A new key.
    #[prost(message, tag = "3")]
    CreateKey(ApiKey),
    /// A key that is no longer good; its sixteen bytes.
    #[prost(bytes, tag = "4")]
    RevokeKey(Vec<u8>),
    /// A key that was used; its sixteen bytes.
    #[prost(bytes, tag = "5")]
    KeyUsed(Vec<u8>),
    /// An administrator pauses the account.
    #[prost(message, tag = "6")]
    Pause(Pause),
    /// An administrator resumes it.
    #[prost(message, tag = "7")]
    Resume(Resume),
    /// A new identity, pending.
    #[prost(message, tag = "8")]
    CreateIdentity(Identity),
    /// A proof, or an administrator's word.
    #[prost(message, tag = "9")]
    SetIdentityStatus(SetIdentityStatus),
    /// An identity that is given up.
    #[prost(message, tag = "10")]
    DeleteIdentity(IdentityName),
    /// A new configuration set.
    #[prost(message, tag = "11")]
    CreateConfigSet(ConfigSet),
    /// Other values for one.
    #[prost(message, tag = "12")]
    PatchConfigSet(ConfigSetPatch),
    /// One that is given up; its sixteen bytes.
    #[prost(bytes, tag = "13")]
    DeleteConfigSet(Vec<u8>),
    /// A new destination of a set.
    #[prost(message, tag = "14")]
    CreateDestination(CreateDestination),
    /// Other values for one.
    #[prost(message, tag = "15")]
    PatchDestination(DestinationPatch),
    /// One that is given up.
    #[prost(message, tag = "16")]
    DeleteDestination(DestinationName),
    /// An address that must not be mailed.
    #[prost(message, tag = "17")]
    PutSuppression(Suppression),
    /// An address, as given, that may be mailed again.
    #[prost(string, tag = "18")]
    DeleteSuppression(String),
    /// An `Idempotency-Key` for a request whose effects are other records.
    #[prost(message, tag = "19")]
    Claim(Claim),
    /// Another secret for a destination, beside the one before for a while.
    #[prost(message, tag = "20")]
    RotateSecret(RotateSecret),
    /// The secret before no longer counts.
    #[prost(message, tag = "21")]
    SwitchSecret(DestinationName),
    /// How a destination is doing, from whoever posts to it.
    #[prost(message, tag = "22")]
    WebhookHealth(WebhookHealth),
    /// A new replay.
    #[prost(message, tag = "23")]
    StartReplay(Replay),
    /// How far one is, from whoever runs it.
    #[prost(message, tag = "24")]
    ReplayProgress(Replay),
    /// A replay that its owner ends; its sixteen bytes.
    #[prost(bytes, tag = "25")]
    CancelReplay(Vec<u8>),
    /// Something for the account-level webhook that is not about email.
    #[prost(message, tag = "26")]
    Lifecycle(crate::block::Lifecycle),
    /// From where the account may be used.
    #[prost(message, tag = "27")]
    SetNetworks(Networks),
    /// A recipient of whom nothing may be kept.
    #[prost(message, tag = "28")]
    EraseRecipient(EraseRecipient),
    /// An erasure that has reached every store, from whoever did it.
    #[prost(message, tag = "29")]
    EndErasure(EndErasure),
}

impl Change {
    /// The format of a record that holds it; see [`crate::codec`].
    pub fn version(&self) -> u32 {
        match self {
            Self::CreateDestination(_)
            | Self::PatchDestination(_)
            | Self::RotateSecret(_)
            | Self::SwitchSecret(_)
            | Self::WebhookHealth(_)
            | Self::StartReplay(_)
            | Self::ReplayProgress(_)
            | Self::CancelReplay(_)
            | Self::Lifecycle(_) => crate::codec::OF_WEBHOOKS,
            Self::CreateKey(key) if key.is_restricted() => crate::codec::OF_KEYS,
            Self::SetNetworks(_) => crate::codec::OF_NETWORKS,
            Self::EraseRecipient(_) | Self::EndErasure(_) => crate::codec::OF_ERASURES,
            Self::CreateAccount(fields) | Self::PatchAccount(fields) if fields.is_about_keeping() => {
                crate::codec::OF_ERASURES
            }
            _ => crate::codec::VERSION,
        }
    }
}

/// A recipient of whom nothing may be kept.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct EraseRecipient {
    /// The erasure, sixteen bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub erasure_id: Vec<u8>,
    /// The address, as given.
    #[prost(string, tag = "2")]
    pub recipient: String,
}

/// An erasure that has reached every store.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct EndErasure {
    /// Which; sixteen bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub erasure_id: Vec<u8>,
    /// Rows of the archive that it changed.
    #[prost(uint64, tag = "2")]
    pub rows: u64,
}

/// Networks, as [`crate::networks`] writes them; none: everywhere.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Networks {
    /// They.
    #[prost(string, repeated, tag = "1")]
    pub networks: Vec<String>,
}

/// What an administrator gives for an account; in a patch, what is unset stays.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct AccountFields {
    /// What the administrator calls it.
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    /// Who is mailed about its standing.
    #[prost(string, optional, tag = "2")]
    pub contact_email: Option<String>,
    /// Probation or not.
    #[prost(enumeration = "Mode", optional, tag = "3")]
    pub mode: Option<i32>,
    /// How it is judged.
    #[prost(message, optional, tag = "4")]
    pub policy: Option<Policy>,
    /// Recipients a UTC day.
    #[prost(uint64, optional, tag = "5")]
    pub daily_send_quota: Option<u64>,
    /// Recipients a second.
    #[prost(uint32, optional, tag = "6")]
    pub peak_send_rate_per_second: Option<u32>,
    /// Whether its keys are refused.
    #[prost(bool, optional, tag = "7")]
    pub suspended: Option<bool>,
    /// Whether nothing may be erased.
    #[prost(bool, optional, tag = "8")]
    pub legal_hold: Option<bool>,
    /// Days after which personal fields are erased; 0: never.
    #[prost(uint32, optional, tag = "9")]
    pub retention_days: Option<u32>,
}

impl AccountFields {
    /// Whether an older program would keep or erase what it must not.
    fn is_about_keeping(&self) -> bool {
        self.legal_hold.is_some() || self.retention_days.is_some()
    }
}

/// An administrator pauses an account.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Pause {
    /// Why.
    #[prost(string, tag = "1")]
    pub reason: String,
}

/// An administrator resumes an account.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Resume {
    /// Why.
    #[prost(string, tag = "1")]
    pub reason: String,
    /// The mode it goes on in; unset: the one it had.
    #[prost(enumeration = "Mode", optional, tag = "2")]
    pub mode: Option<i32>,
}

/// An identity by its name.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct IdentityName {
    /// Domain or address.
    #[prost(enumeration = "IdentityType", tag = "1")]
    pub kind: i32,
    /// Lower-cased.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// A status for an identity.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SetIdentityStatus {
    /// Which identity.
    #[prost(message, optional, tag = "1")]
    pub identity: Option<IdentityName>,
    /// Its new status.
    #[prost(enumeration = "IdentityStatus", tag = "2")]
    pub status: i32,
}

/// Other values for a configuration set; what is unset stays.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ConfigSetPatch {
    /// Sixteen bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub config_set_id: Vec<u8>,
    /// Its name.
    #[prost(string, optional, tag = "2")]
    pub name: Option<String>,
    /// Free text; empty removes it.
    #[prost(string, optional, tag = "3")]
    pub description: Option<String>,
    /// The partner's own customer; empty removes it.
    #[prost(string, optional, tag = "4")]
    pub customer_id: Option<String>,
    /// Whether it sends.
    #[prost(bool, optional, tag = "5")]
    pub sending_enabled: Option<bool>,
    /// Whether it counts.
    #[prost(bool, optional, tag = "6")]
    pub reputation_tracking_enabled: Option<bool>,
    /// What writes to the suppression list.
    #[prost(enumeration = "crate::account::SuppressionOptions", optional, tag = "7")]
    pub suppression_options: Option<i32>,
    /// Whether `tags` is given.
    #[prost(bool, tag = "8")]
    pub has_tags: bool,
    /// Its tags.
    #[prost(btree_map = "string, string", tag = "9")]
    pub tags: Tags,
}

/// A new destination of a set, or of the account.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct CreateDestination {
    /// The set, sixteen bytes; empty: the account.
    #[prost(bytes = "vec", tag = "1")]
    pub config_set_id: Vec<u8>,
    /// The destination.
    #[prost(message, optional, tag = "2")]
    pub destination: Option<Destination>,
}

/// A destination by its name.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct DestinationName {
    /// The set, sixteen bytes; empty: whichever it is of, or the account.
    #[prost(bytes = "vec", tag = "1")]
    pub config_set_id: Vec<u8>,
    /// The destination, sixteen bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub destination_id: Vec<u8>,
}

/// Other values for a destination; what is unset stays.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct DestinationPatch {
    /// Which.
    #[prost(message, optional, tag = "1")]
    pub destination: Option<DestinationName>,
    /// Its name.
    #[prost(string, optional, tag = "2")]
    pub name: Option<String>,
    /// Where to post.
    #[prost(string, optional, tag = "3")]
    pub webhook_url: Option<String>,
    /// The secret, sealed; switches at once.
    #[prost(bytes = "vec", optional, tag = "4")]
    pub sealed_secret: Option<Vec<u8>>,
    /// Whether `matching_event_types` is given.
    #[prost(bool, tag = "5")]
    pub has_matching_event_types: bool,
    /// The types it gets.
    #[prost(enumeration = "crate::kind::EventType", repeated, tag = "6")]
    pub matching_event_types: Vec<i32>,
    /// How it is spoken to.
    #[prost(enumeration = "crate::destination::Dialect", optional, tag = "7")]
    pub dialect: Option<i32>,
    /// Whether it gets anything.
    #[prost(bool, optional, tag = "8")]
    pub enabled: Option<bool>,
    /// Whether `retry_schedule_seconds` is given.
    #[prost(bool, tag = "9")]
    pub has_retry_schedule: bool,
    /// Waits before the second and later attempts.
    #[prost(uint32, repeated, tag = "10")]
    pub retry_schedule_seconds: Vec<u32>,
    /// Free text; empty removes it.
    #[prost(string, optional, tag = "11")]
    pub description: Option<String>,
    /// Whether `headers` is given.
    #[prost(bool, tag = "12")]
    pub has_headers: bool,
    /// Sent along with each attempt.
    #[prost(message, repeated, tag = "13")]
    pub headers: Vec<Header>,
    /// In which order it is told.
    #[prost(enumeration = "crate::destination::Ordering", optional, tag = "14")]
    pub ordering: Option<i32>,
    /// Attempts at once; 0: as the settings say.
    #[prost(uint32, optional, tag = "15")]
    pub concurrency: Option<u32>,
    /// Attempts a second; 0: as many as there are.
    #[prost(uint32, optional, tag = "16")]
    pub rate_per_second: Option<u32>,
    /// What is around an event.
    #[prost(enumeration = "crate::destination::Envelope", optional, tag = "17")]
    pub envelope: Option<i32>,
    /// Which bounces it gets; given with `matching_event_types`, and only then.
    #[prost(enumeration = "crate::destination::Bounces", tag = "18")]
    pub bounces: i32,
}

/// Another secret for a destination.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct RotateSecret {
    /// Which.
    #[prost(message, optional, tag = "1")]
    pub destination: Option<DestinationName>,
    /// The new secret, sealed.
    #[prost(bytes = "vec", tag = "2")]
    pub sealed_secret: Vec<u8>,
    /// How long the one before still signs, milliseconds.
    #[prost(int64, tag = "3")]
    pub overlap: i64,
    /// The same secrets sealed anew, and nothing else: the one that counts must be this still.
    #[prost(bytes = "vec", optional, tag = "4")]
    pub resealed: Option<Vec<u8>>,
    /// The one before, sealed anew.
    #[prost(bytes = "vec", optional, tag = "5")]
    pub resealed_previous: Option<Vec<u8>>,
    /// Those before, sealed anew, in their order.
    #[prost(bytes = "vec", repeated, tag = "6")]
    pub resealed_older: Vec<Vec<u8>>,
}

/// How a destination is doing.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct WebhookHealth {
    /// Which; sixteen bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub destination_id: Vec<u8>,
    /// How.
    #[prost(enumeration = "crate::destination::Health", tag = "2")]
    pub health: i32,
    /// Since when it fails, milliseconds since the epoch.
    #[prost(int64, tag = "3")]
    pub failing_since: i64,
    /// Attempts that failed one after the other.
    #[prost(uint32, tag = "4")]
    pub failed_attempts: u32,
    /// For people.
    #[prost(string, tag = "5")]
    pub reason: String,
    /// What its owner had enabled when this was seen; of another time it says nothing.
    #[prost(uint32, tag = "6")]
    pub revival: u32,
}

/// An `Idempotency-Key` for a request whose effects are other records, with the answer it will get.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Claim {
    /// The key.
    #[prost(message, optional, tag = "1")]
    pub idempotency: Option<Idempotency>,
    /// The answer's body.
    #[prost(bytes = "vec", tag = "2")]
    pub response: Vec<u8>,
}

/// An earlier record of the partition that must not be applied, so that every replay leaves it out too.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Skip {
    /// Its offset.
    #[prost(uint64, tag = "1")]
    pub offset: u64,
    /// Why: it could not be decoded, or made the logic panic.
    #[prost(string, tag = "2")]
    pub reason: String,
}

/// What the partition's logic reads besides its records. Part of the state; changes by a record only.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Settings {
    /// Which logic decides. An older one stays until every snapshot has passed it.
    #[prost(uint32, tag = "1")]
    pub logic_version: u32,
    /// The log was created as simulated: `simulated_time` is honoured.
    #[prost(bool, tag = "2")]
    pub simulated: bool,
    /// Horizon of repeatable facts, hours.
    #[prost(uint32, tag = "3")]
    pub repeatable_horizon_hours: u32,
    /// The From of our own mail to contacts.
    #[prost(string, tag = "4")]
    pub system_sender: String,
}

/// Nothing but a time.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Tick {}

/// What a waiting request is told.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Decision {
    /// Offset of the record that was decided: the version of the view that shows it.
    #[prost(uint64, tag = "1")]
    pub offset: u64,
    /// Whether this is the answer given to an earlier request with the same `Idempotency-Key`.
    #[prost(bool, tag = "2")]
    pub replayed: bool,
    /// What was decided.
    #[prost(oneof = "Outcome", tags = "10, 11, 12, 13")]
    pub outcome: Option<Outcome>,
}

/// What was decided.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum Outcome {
    /// A send was taken.
    #[prost(message, tag = "10")]
    Sent(SendOutcome),
    /// A change was made.
    #[prost(message, tag = "11")]
    Done(Done),
    /// The request was refused whole.
    #[prost(message, tag = "12")]
    Refused(Refusal),
    /// The answer that a claim holds.
    #[prost(bytes, tag = "13")]
    Claimed(Vec<u8>),
}

/// A send that was taken.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SendOutcome {
    /// Groups the recipients of the call.
    #[prost(string, tag = "1")]
    pub send_id: String,
    /// One a recipient, in the order of the request.
    #[prost(message, repeated, tag = "2")]
    pub results: Vec<SendResult>,
}

/// What became of one recipient.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SendResult {
    /// As given.
    #[prost(string, tag = "1")]
    pub recipient: String,
    /// The identifier of the message to this recipient.
    #[prost(string, tag = "2")]
    pub message_id: String,
    /// Why it was rejected; unset: it is queued.
    #[prost(string, optional, tag = "3")]
    pub rejected: Option<String>,
}

/// A change was made.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Done {
    /// Whether anything is other than before.
    #[prost(bool, tag = "1")]
    pub changed: bool,
}

/// A request was refused whole.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Refusal {
    /// The name of a [`crate::problem::Code`].
    #[prost(string, tag = "1")]
    pub code: String,
    /// For people.
    #[prost(string, tag = "2")]
    pub message: String,
    /// When it may be tried again, whole seconds.
    #[prost(uint64, optional, tag = "3")]
    pub retry_after_seconds: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::KeyScope;
    use crate::codec::{OF_KEYS, VERSION};

    #[test]
    fn a_key_that_is_not_for_everything_is_no_record_of_an_older_program() {
        let version = |key: ApiKey| Body::Command(Command { change: Some(Change::CreateKey(key)) }).version();
        assert_eq!(version(ApiKey::default()), VERSION);
        assert_eq!(version(ApiKey { scopes: vec![KeyScope::Read as i32], ..ApiKey::default() }), OF_KEYS);
        assert_eq!(version(ApiKey { expires_at: Some(1), ..ApiKey::default() }), OF_KEYS);
    }
}
