//! An account's windows and usage as readers see them: sliding is theirs, so that a reply counts to now.

use std::sync::Arc;

use crate::account::AccountConfig;
use crate::ids::ConfigSetId;
use crate::time::{Day, Hour, Millis};

/// Hours in a window: the bucket of now and the 335 before it (14 days).
pub const WINDOW_HOURS: i32 = 336;

/// What a window counts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Counts {
    /// Sends.
    #[prost(uint64, tag = "1")]
    pub sent: u64,
    /// Permanent bounces.
    #[prost(uint64, tag = "2")]
    pub bounced: u64,
    /// Complaints.
    #[prost(uint64, tag = "3")]
    pub complained: u64,
}

impl Counts {
    /// Adds another count.
    pub fn add(&mut self, other: Self) {
        self.sent += other.sent;
        self.bounced += other.bounced;
        self.complained += other.complained;
    }

    /// Takes away a count that was added before.
    pub fn subtract(&mut self, other: Self) {
        self.sent -= other.sent;
        self.bounced -= other.bounced;
        self.complained -= other.complained;
    }

    /// Whether nothing is counted.
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    /// For display only: decisions compare integers.
    pub fn bounce_rate(&self) -> f64 {
        rate(self.bounced, self.sent)
    }

    /// For display only: decisions compare integers.
    pub fn complaint_rate(&self) -> f64 {
        rate(self.complained, self.sent)
    }
}

fn rate(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// One hour of a window.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Bucket {
    /// Hours since the epoch.
    #[prost(sint32, tag = "1")]
    pub hour: Hour,
    /// What was counted in it.
    #[prost(message, required, tag = "2")]
    pub counts: Counts,
}

/// A window's hours that are not empty.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct WindowView {
    /// In ascending order of hours.
    #[prost(message, repeated, tag = "1")]
    pub buckets: Vec<Bucket>,
}

impl WindowView {
    /// What the window holds when its last bucket is that of `now`.
    pub fn at(&self, now: Millis) -> Counts {
        let last = now.hour();
        let mut sum = Counts::default();
        for bucket in &self.buckets {
            if bucket.hour <= last && bucket.hour > last - WINDOW_HOURS {
                sum.add(bucket.counts);
            }
        }
        sum
    }
}

/// What a window besides the account's own covers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Scope {
    /// A configuration set.
    ConfigSet(ConfigSetId),
    /// A verified or pending identity: its kind's code and its value.
    Identity(i32, String),
}

/// An account's windows and usage at one moment.
#[derive(Clone, Debug)]
pub struct Reputation {
    /// How the account is set up and stands.
    pub config: Arc<AccountConfig>,
    /// All that the account sent in the window.
    pub window: WindowView,
    /// The windows of its sets and identities.
    pub scopes: Vec<(Scope, WindowView)>,
    /// The day that the next two fields speak of.
    pub usage_day: Day,
    /// Recipients accepted on that day.
    pub sent_today: u64,
    /// Of these, those accepted while in the sandbox.
    pub sandbox_sent_today: u64,
}
