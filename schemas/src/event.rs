//! Facts as they come in and events as they go out.

use std::collections::BTreeMap;

use crate::block::Block;
use crate::ids::{AccountId, ConfigSetId, DestinationId};
use crate::kind::EventType;
use crate::time::Millis;

/// Tags: names and values, ordered so that equal tags are equal bytes.
pub type Tags = BTreeMap<String, String>;

/// A delivery event as its sender told it, checked but not yet judged.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct EventFact {
    /// What happened.
    #[prost(enumeration = "EventType", tag = "1")]
    pub kind: i32,
    /// Which message.
    #[prost(string, tag = "2")]
    pub message_id: String,
    /// To whom; as given.
    #[prost(string, tag = "3")]
    pub recipient: String,
    /// When, in nanoseconds since the epoch as given: what tells two clicks apart. Unset: at its receipt.
    #[prost(int64, optional, tag = "4")]
    pub occurred_at_nanos: Option<i64>,
    /// The sender's identifier of the event.
    #[prost(string, optional, tag = "5")]
    pub event_id: Option<String>,
    /// The From of the message: "Name <a@b>" or an address.
    #[prost(string, optional, tag = "6")]
    pub from: Option<String>,
    /// Its subject.
    #[prost(string, optional, tag = "7")]
    pub subject: Option<String>,
    /// The configuration set it was sent through.
    #[prost(string, optional, tag = "8")]
    pub configuration_set_name: Option<String>,
    /// The partner's own customer.
    #[prost(string, optional, tag = "9")]
    pub customer_id: Option<String>,
    /// `transactional` or `marketing`.
    #[prost(string, optional, tag = "10")]
    pub category: Option<String>,
    /// Tags; empty means not given.
    #[prost(btree_map = "string, string", tag = "11")]
    pub tags: Tags,
    /// A JSON object as text.
    #[prost(string, optional, tag = "12")]
    pub metadata: Option<String>,
    /// The call that sent the message.
    #[prost(string, optional, tag = "13")]
    pub send_id: Option<String>,
    /// Identity lent by an `Idempotency-Key` to an event that has neither `event_id` nor `occurred_at`.
    #[prost(bytes = "vec", optional, tag = "14")]
    pub lent_identity: Option<Vec<u8>>,
    /// The block of its type.
    #[prost(oneof = "Block", tags = "40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, 52, 53")]
    pub block: Option<Block>,
}

impl EventFact {
    /// Whether this is a bounce for good, the only kind that counts and suppresses.
    pub fn is_permanent_bounce(&self) -> bool {
        self.kind() == EventType::Bounce && is_permanent(self.block.as_ref())
    }
}

/// A canonical event: one fact, judged once, identified by `(partition, seq)`.
///
/// Whoever adds events up adds up the flags `unique`, `counted` and `history`; nobody judges again.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Event {
    /// Format of this record; see [`crate::codec`].
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// The account, sixteen bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub account_id: Vec<u8>,
    /// The partition.
    #[prost(uint32, tag = "3")]
    pub partition: u32,
    /// The number of the event in its partition: 0, 1, 2, … without holes.
    #[prost(uint64, tag = "4")]
    pub seq: u64,
    /// The offset of the intake record that gave rise to it.
    #[prost(uint64, tag = "5")]
    pub offset: u64,
    /// The sequencer's time, milliseconds since the epoch; never runs back within a partition.
    #[prost(int64, tag = "6")]
    pub received_at: i64,
    /// What happened.
    #[prost(enumeration = "EventType", tag = "7")]
    pub kind: i32,
    /// The sender's identifier of the event, or one made from its place.
    #[prost(string, tag = "8")]
    pub event_id: String,
    /// When it happened, milliseconds since the epoch.
    #[prost(int64, tag = "9")]
    pub occurred_at: i64,
    /// What was given as `occurred_at` when that lay too far ahead to be believed.
    #[prost(int64, optional, tag = "10")]
    pub original_occurred_at: Option<i64>,
    /// Which message; empty for a change of standing.
    #[prost(string, tag = "11")]
    pub message_id: String,
    /// The call that sent it.
    #[prost(string, optional, tag = "12")]
    pub send_id: Option<String>,
    /// To whom; as given.
    #[prost(string, tag = "13")]
    pub recipient: String,
    /// The From of the message.
    #[prost(string, optional, tag = "14")]
    pub from: Option<String>,
    /// Its subject.
    #[prost(string, optional, tag = "15")]
    pub subject: Option<String>,
    /// The configuration set it was sent through.
    #[prost(string, optional, tag = "16")]
    pub configuration_set_name: Option<String>,
    /// The partner's own customer.
    #[prost(string, optional, tag = "17")]
    pub customer_id: Option<String>,
    /// `transactional` or `marketing`.
    #[prost(string, optional, tag = "18")]
    pub category: Option<String>,
    /// Tags, the set's included.
    #[prost(btree_map = "string, string", tag = "19")]
    pub tags: Tags,
    /// A JSON object as text.
    #[prost(string, optional, tag = "20")]
    pub metadata: Option<String>,
    /// The first open (click) of a message and recipient within 15 days.
    #[prost(bool, tag = "21")]
    pub unique: bool,
    /// Whether a window counted it.
    #[prost(bool, tag = "22")]
    pub counted: bool,
    /// Too old for any window when it came.
    #[prost(bool, tag = "23")]
    pub history: bool,
    /// When the message was sent, if that is known; milliseconds since the epoch.
    #[prost(int64, optional, tag = "24")]
    pub sent_at: Option<i64>,
    /// The destinations it goes to, sixteen bytes each.
    #[prost(bytes = "vec", repeated, tag = "25")]
    pub destination_ids: Vec<Vec<u8>>,
    /// The configuration set, when it existed; sixteen bytes.
    #[prost(bytes = "vec", optional, tag = "26")]
    pub config_set_id: Option<Vec<u8>>,
    /// The block of its type.
    #[prost(oneof = "Block", tags = "40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, 52, 53")]
    pub block: Option<Block>,
}

impl Event {
    /// The account; nil for a record that no program of ours wrote.
    pub fn account(&self) -> AccountId {
        AccountId::from_slice(&self.account_id).unwrap_or(AccountId(uuid::Uuid::nil()))
    }

    /// The destinations it goes to.
    pub fn destinations(&self) -> impl Iterator<Item = DestinationId> + '_ {
        self.destination_ids.iter().filter_map(|id| DestinationId::from_slice(id).ok())
    }

    /// The configuration set, when it existed.
    pub fn config_set(&self) -> Option<ConfigSetId> {
        self.config_set_id.as_deref().and_then(|id| ConfigSetId::from_slice(id).ok())
    }

    /// When it happened.
    pub fn occurred(&self) -> Millis {
        Millis(self.occurred_at)
    }

    /// When it was sequenced.
    pub fn received(&self) -> Millis {
        Millis(self.received_at)
    }

    /// Whether this is a bounce for good.
    pub fn is_permanent_bounce(&self) -> bool {
        self.kind() == EventType::Bounce && is_permanent(self.block.as_ref())
    }
}

fn is_permanent(block: Option<&Block>) -> bool {
    match block {
        Some(Block::Bounce(bounce)) => {
            bounce.bounce_type.as_deref().is_some_and(|kind| kind.eq_ignore_ascii_case("Permanent"))
        }
        _ => false,
    }
}
