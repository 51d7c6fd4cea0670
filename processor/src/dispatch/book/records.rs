//! What the book's rows hold.

use sendtrail_schemas::destination::{Dialect, Envelope, ReplayCounts};
use sendtrail_schemas::ids::DestinationId;
use sendtrail_schemas::kind::EventType;

use crate::core::webhook::breaker::Breaker;

/// Names a delivery within a partition.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DeliveryKey {
    /// The event.
    pub seq: u64,
    /// The destination.
    pub destination: DestinationId,
}

/// What a delivery waits for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum Waits {
    /// Until it is due.
    Timer = 0,
    /// For its destination.
    Backlog = 1,
    /// For another delivery of its message.
    Held = 2,
    /// For its destination, behind what is new.
    Replay = 3,
}

/// A delivery that waits.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Waiting {
    /// The account, sixteen bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub account_id: Vec<u8>,
    /// The event's name in the dialect.
    #[prost(string, tag = "2")]
    pub event_name: String,
    /// The body.
    #[prost(bytes = "bytes", tag = "3")]
    pub body: bytes::Bytes,
    /// How many attempts there were.
    #[prost(uint32, tag = "4")]
    pub attempts: u32,
    /// When the first began, by the wall clock; 0 before it.
    #[prost(int64, tag = "5")]
    pub first_started_at: i64,
    /// When the next is due, by the wall clock.
    #[prost(int64, tag = "6")]
    pub due_at: i64,
    /// What it waits for.
    #[prost(enumeration = "Waits", tag = "7")]
    pub waits: i32,
    /// The dialect that the body is in; a patch of the destination's holds for later events.
    #[prost(enumeration = "Dialect", tag = "8")]
    pub dialect: i32,
    /// What is around the event in the body.
    #[prost(enumeration = "Envelope", tag = "9")]
    pub envelope: i32,
    /// Never signed.
    #[prost(bool, tag = "10")]
    pub unsigned: bool,
    /// One attempt and no more.
    #[prost(bool, tag = "11")]
    pub once: bool,
    /// Attempts of the schedule that are spent.
    #[prost(uint32, tag = "12")]
    pub spent: u32,
    /// When the event was received, milliseconds since the epoch.
    #[prost(int64, tag = "13")]
    pub event_received_at: i64,
    /// The event's type.
    #[prost(enumeration = "EventType", tag = "14")]
    pub event_type: i32,
    /// The message and recipient whose events come in order; 0: in any.
    #[prost(fixed64, tag = "15")]
    pub in_order_of: u64,
    /// The replay that it belongs to, sixteen bytes; empty: none.
    #[prost(bytes = "vec", tag = "16")]
    pub replay_id: Vec<u8>,
    /// Of a replay: attempts before this offset are not its.
    #[prost(uint64, tag = "17")]
    pub since_attempt: u64,
}

impl Waiting {
    /// What it waits for once it is due.
    pub fn when_due(&self) -> Waits {
        if self.replay_id.is_empty() { Waits::Backlog } else { Waits::Replay }
    }
}

/// Where a delivery stands in a backlog: when it was due, and its event.
pub type Place = (i64, u64);

/// An account, sixteen bytes, a destination of it, and whether what waits for it is new or a replay.
pub type Owned = (Vec<u8>, DestinationId, Waits);

/// How far the dispatcher of a partition is. Who is further is greater.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, prost::Message)]
pub struct Marks {
    /// The first event whose deliveries may be neither done nor in the book.
    #[prost(uint64, tag = "1")]
    pub event: u64,
    /// The first attempt that may not be in the book.
    #[prost(uint64, tag = "2")]
    pub attempt: u64,
}

/// What is known of a destination that fails.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Standing {
    /// Its failures.
    #[prost(message, required, tag = "1")]
    pub breaker: Breaker,
    /// The account, sixteen bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub account_id: Vec<u8>,
    /// The number after the last attempt that is in it.
    #[prost(uint64, tag = "3")]
    pub next_attempt: u64,
}

/// How far a replay is, as far as its deliveries are in the book.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Reached {
    /// Where to go on.
    #[prost(string, tag = "1")]
    pub cursor: String,
    /// What was read by then.
    #[prost(message, optional, tag = "2")]
    pub counts: Option<ReplayCounts>,
    /// Everything was.
    #[prost(bool, tag = "3")]
    pub is_done: bool,
}

/// A row of a book on its way elsewhere.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Entry {
    /// Which keyspace; see [`Book::keyspaces`].
    #[prost(uint32, tag = "1")]
    pub keyspace: u32,
    /// Its key, without the partition.
    #[prost(bytes = "vec", tag = "2")]
    pub key: Vec<u8>,
    /// Its value.
    #[prost(bytes = "vec", tag = "3")]
    pub value: Vec<u8>,
}
