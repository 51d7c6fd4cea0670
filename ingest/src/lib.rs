//! The write side: everything that a request may change goes from here into the log.

pub mod admission;
pub mod auth;
mod body;
mod intake;
pub mod mime;
mod routes;
pub mod sources;
mod submit;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use sendtrail_eventlog::{Blobs, Clock, EventLog, Pulse, Replies};
use sendtrail_schemas::account::{AccountConfig, Suppression};
use sendtrail_schemas::destination::Destination;
use sendtrail_schemas::directory::Directory;
use sendtrail_schemas::ids::{AccountId, KeyId};
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::mail::DeadLetter;
use sendtrail_schemas::secret::Vault;
use sendtrail_schemas::time::Hour;

pub use intake::Format;
pub use routes::{admin_routes, inbound_routes, partner_routes, sendcomms_routes, style, zmailer_routes};
pub use submit::SIMULATED_TIME;

/// What can go wrong at the door, besides what is the client's.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log failed.
    #[error("the log: {0}")]
    Log(#[from] sendtrail_eventlog::Error),
    /// A topic that is read from failed.
    #[error(transparent)]
    Topic(sendtrail_eventlog::Error),
    /// Something behind a port failed.
    #[error("{0}")]
    Port(String),
}

/// What posts to webhooks.
#[async_trait]
pub trait Samples: Send + Sync + 'static {
    /// Posts a made-up event of a type to a destination, signed, once; `None` when the destination has no name for such.
    async fn post(&self, account: &AccountConfig, to: &Destination, kind: EventType) -> Option<Sampled>;

    /// Why a URL may not be posted to, if that can be told from it alone.
    fn refusal(&self, url: &url::Url) -> Option<String>;
}

/// What came of a sample.
#[derive(Clone, Debug)]
pub struct Sampled {
    /// The event's name in the destination's dialect.
    pub event_name: String,
    /// The receiver's status code.
    pub status_code: Option<u16>,
    /// What went wrong before there was one.
    pub error: Option<String>,
    /// What kind of failure it is; `none` for a success.
    pub failure: &'static str,
    /// How long the receiver took.
    pub latency: Duration,
    /// What it said, its first 4 KiB.
    pub response: String,
}

/// Suppression lists, as whoever keeps them shows them.
pub trait Suppressions: Send + Sync + 'static {
    /// Addresses after `after` (lower-cased), in the order of addresses, with a reason or a part of the address if
    /// given, at most `limit`.
    ///
    /// # Errors
    /// [`Error::Port`].
    fn list(&self, account: AccountId, query: &SuppressionQuery) -> Result<Vec<Suppression>, Error>;

    /// One address.
    ///
    /// # Errors
    /// [`Error::Port`].
    fn get(&self, account: AccountId, email: &str) -> Result<Option<Suppression>, Error>;
}

/// What to list.
#[derive(Clone, Debug, Default)]
pub struct SuppressionQuery {
    /// After this address, lower-cased.
    pub after: Option<String>,
    /// `BOUNCE`, `COMPLAINT`, `UNSUBSCRIBE` or `MANUAL`.
    pub reason: Option<String>,
    /// A part of the address, lower-cased.
    pub search: Option<String>,
    /// At most so many.
    pub limit: usize,
}

/// Dead letters, as whoever keeps them shows them.
#[async_trait]
pub trait DeadLetters: Send + Sync + 'static {
    /// From a place on, in the order of partitions and numbers, at most `limit`, whose records have at most `bytes`
    /// together, but one if there is any.
    ///
    /// # Errors
    /// [`Error::Port`].
    async fn list(&self, from: (u32, u64), limit: usize, bytes: usize) -> Result<LetterPage, Error>;

    /// One of them.
    ///
    /// # Errors
    /// [`Error::Port`].
    async fn get(&self, partition: u32, seq: u64) -> Result<Option<DeadLetter>, Error>;
}

/// Some dead letters.
#[derive(Clone, Debug, Default)]
pub struct LetterPage {
    /// They.
    pub letters: Vec<DeadLetter>,
    /// The partition and number of the one after them; `None` when there are no more.
    pub next: Option<(u32, u64)>,
}

/// What the door goes by; see `config.default.toml`.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How far behind a partition may be before `/events` is refused.
    pub max_lag: Duration,
    /// How long a send or a command waits for its decision.
    pub decision_timeout: Duration,
    /// How long a body may take to arrive.
    pub body_timeout: Duration,
    /// Bytes of a body, unpacked.
    pub max_body_bytes: usize,
    /// Events of one request.
    pub max_events: usize,
    /// The domain in the DNS records that identities are asked for.
    pub mail_domain: String,
    /// The DKIM selector in them.
    pub dkim_selector: String,
    /// Requests a second of one account, on all surfaces together; 0: any number.
    pub requests_per_second: u32,
    /// Content larger than this goes to the blob store.
    pub inline_bytes: usize,
}

/// The write side of one process.
#[derive(Clone)]
pub struct Ingest {
    inner: Arc<Inner>,
}

struct Inner {
    parts: Parts,
    guard: admission::Guard,
    requests: admission::Guard,
    used_keys: Mutex<HashSet<(KeyId, Hour)>>,
    closing: AtomicBool,
}

/// What the write side is made of.
pub struct Parts {
    /// The log.
    pub log: Arc<dyn EventLog>,
    /// Where decisions come from.
    pub replies: Arc<dyn Replies>,
    /// Every account.
    pub directory: Arc<Directory>,
    /// How far processors are, by partition.
    pub pulses: Vec<Arc<Pulse>>,
    /// Large bodies.
    pub blobs: Blobs,
    /// Seals secrets.
    pub vault: Vault,
    /// What time it is.
    pub clock: Clock,
    /// Suppression lists.
    pub suppressions: Arc<dyn Suppressions>,
    /// Dead letters.
    pub dead_letters: Arc<dyn DeadLetters>,
    /// Posts samples to webhooks.
    pub samples: Arc<dyn Samples>,
    /// How the messages of sources are read, by the sources' names.
    pub sources: HashMap<String, Arc<sources::Rule>>,
    /// SHA-256 of the administrator's key.
    pub admin_key_hash: [u8; 32],
    /// What the door goes by.
    pub limits: Limits,
}

impl Ingest {
    /// A write side.
    pub fn new(parts: Parts) -> Self {
        let inner = Inner {
            parts,
            guard: admission::Guard::default(),
            requests: admission::Guard::default(),
            used_keys: Mutex::default(),
            closing: AtomicBool::new(false),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Lets nothing more in: the server stops.
    pub fn close(&self) {
        self.inner.closing.store(true, Ordering::Release);
    }

    fn parts(&self) -> &Parts {
        &self.inner.parts
    }

    fn limits(&self) -> &Limits {
        &self.inner.parts.limits
    }

    /// How many partitions there are.
    fn partitions(&self) -> u32 {
        self.parts().pulses.len() as u32
    }

    /// The partition of an account.
    fn partition(&self, account: AccountId) -> u32 {
        sendtrail_schemas::topic::partition_of(account, self.partitions())
    }
}
