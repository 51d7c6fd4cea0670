//! Messages accepted for sending, what they hold, and what became of records and webhooks.

use crate::Error;
use crate::ids::DestinationId;
use crate::record::{Recipient, SourcePosition};

/// One record of `sendtrail.mail`: a message and the recipients it goes to.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Mail {
    /// Format of this record; see [`crate::codec`].
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// The account, sixteen bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub account_id: Vec<u8>,
    /// The number of the record in its partition: 0, 1, 2, … without holes.
    #[prost(uint64, tag = "3")]
    pub seq: u64,
    /// When it was accepted, milliseconds since the epoch.
    #[prost(int64, tag = "4")]
    pub accepted_at: i64,
    /// Groups the recipients of a call.
    #[prost(string, tag = "5")]
    pub send_id: String,
    /// The From, as given.
    #[prost(string, tag = "6")]
    pub from: String,
    /// Reply-To, as given.
    #[prost(string, optional, tag = "7")]
    pub reply_to: Option<String>,
    /// The subject.
    #[prost(string, tag = "8")]
    pub subject: String,
    /// The message itself, or where it is.
    #[prost(message, optional, tag = "9")]
    pub content: Option<Content>,
    /// Whom it goes to.
    #[prost(message, repeated, tag = "10")]
    pub recipients: Vec<Recipient>,
    /// Our own mail to a contact: its outcome is nobody's event.
    #[prost(bool, tag = "11")]
    pub system: bool,
    /// The configuration set it goes through.
    #[prost(string, optional, tag = "12")]
    pub configuration_set_name: Option<String>,
}

/// A message's content, in the record or beside it (a claim check).
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Content {
    /// Which.
    #[prost(oneof = "Body", tags = "1, 2")]
    pub body: Option<Body>,
}

/// Where a message's content is.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum Body {
    /// In the record; at most 64 KB encoded.
    #[prost(message, tag = "1")]
    Inline(MailContent),
    /// In the blob store, durable before the record was.
    #[prost(message, tag = "2")]
    Blob(BlobRef),
}

/// Names a blob by its content.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct BlobRef {
    /// The UTC day on which it was stored, days since the epoch: blobs are dropped by the day.
    #[prost(int32, tag = "1")]
    pub day: i32,
    /// SHA-256 of its bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub sha256: Vec<u8>,
    /// Its length in bytes.
    #[prost(uint64, tag = "3")]
    pub length: u64,
}

/// What a message says.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct MailContent {
    /// The HTML body.
    #[prost(string, optional, tag = "1")]
    pub html: Option<String>,
    /// The text body.
    #[prost(string, optional, tag = "2")]
    pub text: Option<String>,
    /// Attached files.
    #[prost(message, repeated, tag = "3")]
    pub attachments: Vec<Attachment>,
}

/// Bytes of a message's content when encoded.
pub fn encoded_len(content: &MailContent) -> usize {
    prost::Message::encoded_len(content)
}

/// A message's content as the blob store keeps it.
pub fn encode(content: &MailContent) -> Vec<u8> {
    prost::Message::encode_to_vec(content)
}

/// Reads what the blob store kept.
///
/// # Errors
/// [`Error::Malformed`].
pub fn decode(bytes: &[u8]) -> Result<MailContent, Error> {
    prost::Message::decode(bytes).map_err(|cause| Error::Malformed(format!("mail content: {cause}")))
}

/// An attached file.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Attachment {
    /// Its name.
    #[prost(string, tag = "1")]
    pub filename: String,
    /// Its media type.
    #[prost(string, tag = "2")]
    pub content_type: String,
    /// Its bytes.
    #[prost(bytes = "vec", tag = "3")]
    pub content: Vec<u8>,
    /// Shown in the body rather than beside it.
    #[prost(bool, tag = "4")]
    pub inline: bool,
    /// What the body calls it (`cid:…`).
    #[prost(string, optional, tag = "5")]
    pub content_id: Option<String>,
}

/// One record of `sendtrail.attempts`: how one webhook attempt ended.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Attempt {
    /// Format of this record; see [`crate::codec`].
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// The account, sixteen bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub account_id: Vec<u8>,
    /// The event's number in this partition.
    #[prost(uint64, tag = "3")]
    pub event_seq: u64,
    /// The destination, sixteen bytes.
    #[prost(bytes = "vec", tag = "4")]
    pub destination_id: Vec<u8>,
    /// Counts from 1.
    #[prost(uint32, tag = "5")]
    pub number: u32,
    /// When it began by the wall clock, milliseconds since the epoch.
    #[prost(int64, tag = "6")]
    pub started_at: i64,
    /// When it ended by the wall clock, milliseconds since the epoch.
    #[prost(int64, tag = "7")]
    pub finished_at: i64,
    /// The receiver's status code, if it gave one.
    #[prost(uint32, optional, tag = "8")]
    pub status_code: Option<u32>,
    /// What went wrong before there was a status code.
    #[prost(string, optional, tag = "9")]
    pub error: Option<String>,
    /// How it stands now.
    #[prost(enumeration = "DeliveryStatus", tag = "10")]
    pub status: i32,
    /// When the next attempt is due; unset: there is none.
    #[prost(int64, optional, tag = "11")]
    pub next_due_at: Option<i64>,
    /// When the first attempt began: schedules may count from it.
    #[prost(int64, tag = "12")]
    pub first_started_at: i64,
    /// What the receiver answered, its first 4 KiB, unless it was delivered.
    #[prost(bytes = "vec", tag = "13")]
    pub response: Vec<u8>,
    /// What kind of failure it was; see [`FailureClass`].
    #[prost(enumeration = "FailureClass", tag = "14")]
    pub failure: i32,
    /// When the event was received, milliseconds since the epoch.
    #[prost(int64, tag = "15")]
    pub event_received_at: i64,
    /// The event's type.
    #[prost(enumeration = "crate::kind::EventType", tag = "16")]
    pub event_type: i32,
    /// How many attempts of the schedule were spent by then, this one included.
    #[prost(uint32, tag = "17")]
    pub spent: u32,
    /// What it was for.
    #[prost(enumeration = "Trigger", tag = "18")]
    pub trigger: i32,
}

/// What made an attempt.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum Trigger {
    /// The event, or the schedule.
    Schedule = 0,
    /// Whether a destination that fails all the time takes anything; no attempt of the schedule.
    Probe = 1,
    /// A replay.
    Replay = 2,
}

impl Trigger {
    /// `schedule`, `probe` or `replay`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Schedule => "schedule",
            Self::Probe => "probe",
            Self::Replay => "replay",
        }
    }

    /// Reads a name.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Schedule, Self::Probe, Self::Replay].into_iter().find(|trigger| trigger.name() == text)
    }
}

/// Why an attempt failed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum FailureClass {
    /// It did not.
    None = 0,
    /// The receiver answered with a status that is none of success.
    Status = 1,
    /// It did not answer in time.
    Timeout = 2,
    /// Its name does not resolve.
    Dns = 3,
    /// It takes no connection, or broke it.
    Connection = 4,
    /// Its certificate or its TLS is not good.
    Tls = 5,
    /// Its address, port or scheme is not one that may be posted to.
    Refused = 6,
    /// The destination was disabled or deleted.
    Unavailable = 7,
    /// The receiver said that it is gone for good.
    Gone = 8,
    /// Its secret cannot be opened.
    Secret = 9,
}

impl FailureClass {
    /// Every class.
    pub const ALL: [Self; 10] = [
        Self::None,
        Self::Status,
        Self::Timeout,
        Self::Dns,
        Self::Connection,
        Self::Tls,
        Self::Refused,
        Self::Unavailable,
        Self::Gone,
        Self::Secret,
    ];

    /// As in answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Status => "status",
            Self::Timeout => "timeout",
            Self::Dns => "dns",
            Self::Connection => "connection",
            Self::Tls => "tls",
            Self::Refused => "refused",
            Self::Unavailable => "unavailable",
            Self::Gone => "gone",
            Self::Secret => "secret",
        }
    }

    /// Reads a name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.name() == text)
    }
}

impl Attempt {
    /// The destination.
    ///
    /// # Errors
    /// [`Error::Malformed`] when the record does not name one.
    pub fn destination(&self) -> Result<DestinationId, Error> {
        DestinationId::from_slice(&self.destination_id)
    }
}

/// How the delivery of one event to one destination stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum DeliveryStatus {
    /// No attempt yet.
    Pending = 0,
    /// Attempted; another attempt is due.
    Failed = 1,
    /// Answered with 2xx.
    Delivered = 2,
    /// No attempt is left.
    GaveUp = 3,
}

impl DeliveryStatus {
    /// `pending`, `failed`, `delivered` or `gave_up`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Failed => "failed",
            Self::Delivered => "delivered",
            Self::GaveUp => "gave_up",
        }
    }

    /// Reads a name.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Pending, Self::Failed, Self::Delivered, Self::GaveUp].into_iter().find(|status| status.name() == text)
    }
}

/// One record of `sendtrail.dead-letter`: a record that could not be applied.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct DeadLetter {
    /// Format of this record; see [`crate::codec`].
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// The number of the record in its partition: 0, 1, 2, … without holes.
    #[prost(uint64, tag = "2")]
    pub seq: u64,
    /// The topic it stood on.
    #[prost(string, tag = "3")]
    pub topic: String,
    /// The partition it stood in.
    #[prost(uint32, tag = "4")]
    pub partition: u32,
    /// Its offset.
    #[prost(uint64, tag = "5")]
    pub offset: u64,
    /// The sequencer's time when it was passed over, milliseconds since the epoch.
    #[prost(int64, tag = "6")]
    pub at: i64,
    /// Why.
    #[prost(string, tag = "7")]
    pub reason: String,
    /// The record, as it was.
    #[prost(bytes = "vec", tag = "8")]
    pub payload: Vec<u8>,
    /// Of a message of a source that could not be read: where it stood there. Then the payload is that message.
    #[prost(message, optional, tag = "9")]
    pub source: Option<SourcePosition>,
    /// Its account, sixteen bytes, if that was known.
    #[prost(bytes = "vec", tag = "10")]
    pub account_id: Vec<u8>,
}
