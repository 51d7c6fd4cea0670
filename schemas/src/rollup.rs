//! Hourly sums of events, exact for every grouping of `/stats`.

mod apart;

use crate::address;
use crate::block::Block;
use crate::event::{Event, Tags};
use crate::ids::hash128;
use crate::kind::EventType;
use crate::time::Hour;

pub use apart::{Added, Apart, TagsApart};

/// Rows of one hour of one account beyond which the hour is scanned instead.
pub const MAX_ROWS: usize = 10_000;

/// What rows are told apart by.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Message)]
pub struct Dims {
    /// The configuration set's name.
    #[prost(string, optional, tag = "1")]
    pub configuration_set_name: Option<String>,
    /// The From's domain, lower-cased.
    #[prost(string, optional, tag = "2")]
    pub from_domain: Option<String>,
    /// The recipient's domain, lower-cased.
    #[prost(string, optional, tag = "3")]
    pub recipient_domain: Option<String>,
    /// The tags, all of them.
    #[prost(btree_map = "string, string", tag = "4")]
    pub tags: Tags,
    /// The configuration set, when it existed; sixteen bytes. It is the same one under another name.
    #[prost(bytes = "vec", optional, tag = "5")]
    pub config_set_id: Option<Vec<u8>>,
}

/// What is summed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Sums {
    /// Sends.
    #[prost(uint64, tag = "1")]
    pub sends: u64,
    /// Deliveries.
    #[prost(uint64, tag = "2")]
    pub deliveries: u64,
    /// Bounces for good.
    #[prost(uint64, tag = "3")]
    pub permanent_bounces: u64,
    /// All other bounces.
    #[prost(uint64, tag = "4")]
    pub transient_bounces: u64,
    /// Complaints.
    #[prost(uint64, tag = "5")]
    pub complaints: u64,
    /// Rejects.
    #[prost(uint64, tag = "6")]
    pub rejects: u64,
    /// Opens.
    #[prost(uint64, tag = "7")]
    pub opens: u64,
    /// First opens of a message and recipient.
    #[prost(uint64, tag = "8")]
    pub unique_opens: u64,
    /// Clicks.
    #[prost(uint64, tag = "9")]
    pub clicks: u64,
    /// First clicks of a message and recipient.
    #[prost(uint64, tag = "10")]
    pub unique_clicks: u64,
    /// Delays.
    #[prost(uint64, tag = "11")]
    pub delays: u64,
    /// Rendering failures.
    #[prost(uint64, tag = "12")]
    pub rendering_failures: u64,
    /// Replies.
    #[prost(uint64, tag = "13")]
    pub replies: u64,
}

impl Sums {
    /// What its counts are called, wherever they are columns.
    pub const NAMES: [&str; 13] = [
        "sends",
        "deliveries",
        "permanent_bounces",
        "transient_bounces",
        "complaints",
        "rejects",
        "opens",
        "unique_opens",
        "clicks",
        "unique_clicks",
        "delays",
        "rendering_failures",
        "replies",
    ];

    /// Its counts, in the order of [`Self::NAMES`].
    pub fn counts(&self) -> [u64; 13] {
        [
            self.sends,
            self.deliveries,
            self.permanent_bounces,
            self.transient_bounces,
            self.complaints,
            self.rejects,
            self.opens,
            self.unique_opens,
            self.clicks,
            self.unique_clicks,
            self.delays,
            self.rendering_failures,
            self.replies,
        ]
    }

    /// What one event adds. Nothing for subscriptions and changes of standing.
    pub fn of(kind: EventType, permanent: bool, unique: bool) -> Self {
        let mut sums = Self::default();
        let unique = u64::from(unique);
        match kind {
            EventType::Send => sums.sends = 1,
            EventType::Delivery => sums.deliveries = 1,
            EventType::Bounce if permanent => sums.permanent_bounces = 1,
            EventType::Bounce => sums.transient_bounces = 1,
            EventType::Complaint => sums.complaints = 1,
            EventType::Reject => sums.rejects = 1,
            EventType::Open => (sums.opens, sums.unique_opens) = (1, unique),
            EventType::Click => (sums.clicks, sums.unique_clicks) = (1, unique),
            EventType::DeliveryDelay => sums.delays = 1,
            EventType::RenderingFailure => sums.rendering_failures = 1,
            EventType::Reply => sums.replies = 1,
            _ => {}
        }
        sums
    }

    /// Adds other sums.
    pub fn add(&mut self, other: &Self) {
        self.sends += other.sends;
        self.deliveries += other.deliveries;
        self.permanent_bounces += other.permanent_bounces;
        self.transient_bounces += other.transient_bounces;
        self.complaints += other.complaints;
        self.rejects += other.rejects;
        self.opens += other.opens;
        self.unique_opens += other.unique_opens;
        self.clicks += other.clicks;
        self.unique_clicks += other.unique_clicks;
        self.delays += other.delays;
        self.rendering_failures += other.rendering_failures;
        self.replies += other.replies;
    }
}

/// One row.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Rollup {
    /// What it is told apart by.
    #[prost(message, required, tag = "1")]
    pub dims: Dims,
    /// What is summed.
    #[prost(message, required, tag = "2")]
    pub sums: Sums,
}

/// The rows of one hour of an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HourRows {
    /// All of them.
    Exact(Hour, Vec<Rollup>),
    /// More than [`MAX_ROWS`]: scan the events of this hour.
    Overflowing(Hour),
}

impl HourRows {
    /// Which hour.
    pub fn hour(&self) -> Hour {
        match self {
            Self::Exact(hour, _) | Self::Overflowing(hour) => *hour,
        }
    }
}

/// What an event is told apart by, as a hash that needs no copy.
pub fn dims_hash(event: &Event) -> u128 {
    let mut parts: Vec<&[u8]> = Vec::with_capacity(4 + 2 * event.tags.len());
    let from = address::domain(event.from.as_deref().unwrap_or_default());
    let to = address::domain(&event.recipient);
    parts.push(event.configuration_set_name.as_deref().unwrap_or("\0").as_bytes());
    parts.push(event.config_set_id.as_deref().unwrap_or_default());
    parts.push(from.as_bytes());
    parts.push(to.as_bytes());
    for (key, value) in &event.tags {
        parts.push(key.as_bytes());
        parts.push(value.as_bytes());
    }
    hash128(&parts)
}

/// What an event is told apart by.
pub fn dims(event: &Event) -> Dims {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Dims {
        configuration_set_name: event.configuration_set_name.clone(),
        from_domain: some(&address::domain(event.from.as_deref().unwrap_or_default())),
        recipient_domain: some(&address::domain(&event.recipient)),
        tags: event.tags.clone(),
        config_set_id: event.config_set_id.clone(),
    }
}

/// What an event adds; `None` when it adds nothing.
pub fn sums(event: &Event) -> Option<Sums> {
    let permanent = matches!(event.block, Some(Block::Bounce(_))) && event.is_permanent_bounce();
    let sums = Sums::of(event.kind(), permanent, event.unique);
    (sums != Sums::default()).then_some(sums)
}
