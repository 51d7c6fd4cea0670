//! Webhook destinations: who is told of events, how, and how that goes.

mod bounces;

pub use bounces::Bounces;

use crate::ids::{DestinationId, ReplayId};
use crate::kind::EventType;
use crate::mail::DeliveryStatus;

/// How a webhook speaks: event names, envelope, headers, signature and schedule.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum Dialect {
    /// S2's, SES-shaped; the default of native destinations.
    Splashify = 0,
    /// Standard Webhooks.
    Standard = 1,
    /// S0's, as Svix sends.
    Securesmtp = 2,
    /// S1's.
    Nexuspromail = 3,
    /// S3's.
    Sendcomms = 4,
    /// S4's.
    Zmailer = 5,
}

impl Dialect {
    /// Every dialect.
    pub const ALL: [Self; 6] =
        [Self::Splashify, Self::Standard, Self::Securesmtp, Self::Nexuspromail, Self::Sendcomms, Self::Zmailer];

    /// As in requests and answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Splashify => "splashify",
            Self::Standard => "standard",
            Self::Securesmtp => "securesmtp",
            Self::Nexuspromail => "nexuspromail",
            Self::Sendcomms => "sendcomms",
            Self::Zmailer => "zmailer",
        }
    }

    /// Reads a name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dialect| dialect.name() == text)
    }

    /// What the dialect calls events of a type; `None`: such events are not sent to it. `permanent` is of bounces, which
    /// only S1 names by their kind.
    pub fn event_name(self, kind: EventType, permanent: bool) -> Option<&'static str> {
        use EventType::*;
        match self {
            Self::Splashify => (kind.is_streamable() && kind != Subscription).then(|| kind.name()),
            Self::Standard => {
                (kind.is_streamable() || kind.is_status() || kind.is_webhook_change()).then(|| kind.dotted())
            }
            Self::Securesmtp => matches!(kind, Send | Delivery | Open | Click | Bounce | Complaint | DeliveryDelay)
                .then(|| kind.dotted()),
            Self::Sendcomms => {
                matches!(kind, Send | Delivery | Bounce | Complaint | Open | Click).then(|| kind.dotted())
            }
            Self::Nexuspromail => Some(match kind {
                Delivery => "delivered",
                Open => "opened",
                Click => "clicked",
                Bounce if permanent => "bounced.hard",
                Bounce => "bounced.soft",
                Complaint => "complained",
                Subscription => "unsubscribed",
                _ => return None,
            }),
            Self::Zmailer => match kind {
                Send | Delivery | Bounce | Complaint => Some(kind.dotted()),
                Reject | RenderingFailure => Some("email.failed"),
                _ => None,
            },
        }
    }

    /// Whether the dialect has a name for the type; if not, the event is not sent.
    pub fn speaks_of(self, kind: EventType) -> bool {
        self.event_name(kind, true).is_some()
    }

    /// Whether events of this type are told once for all recipients of a call (S4: `email.sent`, `email.failed`).
    pub fn is_once_a_call(self, kind: EventType) -> bool {
        self == Self::Zmailer && matches!(kind, EventType::Send | EventType::Reject | EventType::RenderingFailure)
    }

    /// Whether one attempt may carry several signatures, so that a secret can be changed without a moment at which
    /// receivers must change it, too.
    pub fn carries_several_signatures(self) -> bool {
        matches!(self, Self::Standard | Self::Securesmtp)
    }
}

/// Where a destination was made, which says what it gets and who may see its secret.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum Surface {
    /// An event destination of a configuration set (S2): what is sent through the set.
    ConfigSet = 0,
    /// The account-level webhook (S2): every email event of the account, and lifecycle posts. One at most.
    Account = 1,
    /// Told of changes of the other destinations. One at most.
    Operational = 2,
    /// `/api/v1/webhooks` (S3): every email event of the account.
    Sendcomms = 3,
    /// `/webhooks` (S4): every email event of the account.
    Zmailer = 4,
}

impl Surface {
    /// As in answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::ConfigSet => "configuration_set",
            Self::Account => "account",
            Self::Operational => "operational",
            Self::Sendcomms => "sendcomms",
            Self::Zmailer => "zmailer",
        }
    }

    /// Whether an account has at most one such destination.
    pub fn is_single(self) -> bool {
        matches!(self, Self::Account | Self::Operational)
    }

    /// Whether events of a type are for destinations of this surface at all.
    pub fn is_for(self, kind: EventType) -> bool {
        match self {
            Self::Operational => kind.is_webhook_change(),
            Self::Account => !kind.is_webhook_change() && !kind.is_for_nobody(),
            Self::ConfigSet | Self::Sendcomms | Self::Zmailer => {
                !kind.is_webhook_change() && kind != EventType::Lifecycle && !kind.is_for_nobody()
            }
        }
    }
}

/// In which order a destination is told of events.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum Ordering {
    /// As they come, retries later.
    Unordered = 0,
    /// Of the events of one message and recipient, each only when the one before is delivered or given up.
    PerMessage = 1,
}

impl Ordering {
    /// `unordered` or `per_message`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unordered => "unordered",
            Self::PerMessage => "per_message",
        }
    }

    /// Reads a name.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Unordered, Self::PerMessage].into_iter().find(|ordering| ordering.name() == text)
    }
}

/// What is around an event.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum Envelope {
    /// The dialect's own.
    Dialect = 0,
    /// CloudEvents 1.0.2, structured mode; with the headers of Standard Webhooks.
    Cloudevents = 1,
}

impl Envelope {
    /// `dialect` or `cloudevents`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dialect => "dialect",
            Self::Cloudevents => "cloudevents",
        }
    }

    /// Reads a name.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Dialect, Self::Cloudevents].into_iter().find(|envelope| envelope.name() == text)
    }
}

/// How a destination is doing, as far as it was told: a single failure is none of these.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum Health {
    /// It takes what it gets.
    Working = 0,
    /// It fails all the time: deliveries wait, one is tried now and then.
    Failing = 1,
    /// It failed for five days, or said that it is gone: it gets nothing until its owner enables it.
    Disabled = 2,
}

impl Health {
    /// `working`, `failing` or `disabled`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Working => "working",
            Self::Failing => "failing",
            Self::Disabled => "disabled",
        }
    }
}

/// A header of the owner's choosing.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Header {
    /// Lower-cased.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its value.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// A webhook: an event destination of a configuration set, or the account's own.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Destination {
    /// Sixteen bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub destination_id: Vec<u8>,
    /// What its owner calls it.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Where to post.
    #[prost(string, tag = "3")]
    pub webhook_url: String,
    /// The secret, sealed; see [`crate::secret`].
    #[prost(bytes = "vec", optional, tag = "4")]
    pub sealed_secret: Option<Vec<u8>>,
    /// The types it gets; empty means all.
    #[prost(enumeration = "EventType", repeated, tag = "5")]
    pub matching_event_types: Vec<i32>,
    /// How it is spoken to.
    #[prost(enumeration = "Dialect", tag = "6")]
    pub dialect: i32,
    /// Off: it gets nothing.
    #[prost(bool, tag = "7")]
    pub enabled: bool,
    /// Waits before the second and later attempts, in seconds, instead of the dialect's.
    #[prost(uint32, repeated, tag = "8")]
    pub retry_schedule_seconds: Vec<u32>,
    /// Milliseconds since the epoch.
    #[prost(int64, tag = "9")]
    pub created_at: i64,
    /// Where it was made.
    #[prost(enumeration = "Surface", tag = "10")]
    pub surface: i32,
    /// Free text.
    #[prost(string, optional, tag = "11")]
    pub description: Option<String>,
    /// Sent along with each attempt.
    #[prost(message, repeated, tag = "12")]
    pub headers: Vec<Header>,
    /// In which order it is told.
    #[prost(enumeration = "Ordering", tag = "13")]
    pub ordering: i32,
    /// Attempts at once; unset: as the settings say.
    #[prost(uint32, optional, tag = "14")]
    pub concurrency: Option<u32>,
    /// Attempts a second; unset: as many as there are.
    #[prost(uint32, optional, tag = "15")]
    pub rate_per_second: Option<u32>,
    /// What is around an event.
    #[prost(enumeration = "Envelope", tag = "16")]
    pub envelope: i32,
    /// The secret before, sealed, while it still counts.
    #[prost(bytes = "vec", optional, tag = "17")]
    pub previous_secret: Option<Vec<u8>>,
    /// Until when both sign, milliseconds since the epoch, for dialects that carry several signatures. The others sign
    /// with the one before until a switch is asked for.
    #[prost(int64, tag = "18")]
    pub previous_until: i64,
    /// How it is doing.
    #[prost(enumeration = "Health", tag = "19")]
    pub health: i32,
    /// Since when it fails, milliseconds since the epoch; 0: it does not.
    #[prost(int64, tag = "20")]
    pub failing_since: i64,
    /// Why it is not working, for people.
    #[prost(string, tag = "21")]
    pub health_reason: String,
    /// How often its owner has enabled it anew: what was known of its failures before means nothing.
    #[prost(uint32, tag = "22")]
    pub revival: u32,
    /// Secrets before the one before, which still sign too, where a dialect carries several signatures.
    #[prost(message, repeated, tag = "23")]
    pub older_secrets: Vec<OldSecret>,
    /// Which bounces it gets, where it gets bounces.
    #[prost(enumeration = "Bounces", tag = "24")]
    pub bounces: i32,
}

/// A secret that signs for some time yet.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct OldSecret {
    /// It, sealed.
    #[prost(bytes = "vec", tag = "1")]
    pub sealed: Vec<u8>,
    /// Until when, milliseconds since the epoch.
    #[prost(int64, tag = "2")]
    pub until: i64,
}

impl Destination {
    /// Its identifier.
    pub fn id(&self) -> Option<DestinationId> {
        DestinationId::from_slice(&self.destination_id).ok()
    }

    /// Whether an event of this type goes there. `permanent` is of bounces, as in [`Dialect::event_name`]. `first_of_call`:
    /// whether it is the first of its type for its call.
    pub fn takes(&self, kind: EventType, permanent: bool, first_of_call: bool) -> bool {
        self.enabled && self.wants(kind, permanent, first_of_call)
    }

    /// The same, were it enabled.
    pub fn wants(&self, kind: EventType, permanent: bool, first_of_call: bool) -> bool {
        let dialect = self.dialect();
        let named = kind == EventType::Lifecycle || dialect.speaks_of(kind);
        // Lifecycle posts are part of the account-level webhook whatever types of email events are chosen.
        let matches = kind == EventType::Lifecycle
            || self.matching_event_types.is_empty()
            || self.matching_event_types.contains(&(kind as i32));
        let matches = matches && (kind != EventType::Bounce || self.bounces().include(permanent));
        named && matches && self.surface().is_for(kind) && (first_of_call || !dialect.is_once_a_call(kind))
    }

    /// The sealed secrets that an attempt at `now` (milliseconds since the epoch) is signed with.
    pub fn signing_secrets(&self, now: i64) -> impl Iterator<Item = &[u8]> {
        let (current, previous) = (self.sealed_secret.as_deref(), self.previous_secret.as_deref());
        let both = self.dialect().carries_several_signatures();
        let chosen = match previous {
            None => [current, None],
            Some(_) if both && now >= self.previous_until => [current, None],
            Some(previous) if both => [current, Some(previous)],
            // A receiver that takes one signature only goes by the old secret until it says so.
            Some(previous) => [Some(previous), None],
        };
        let older = self.older_secrets.iter().filter(move |old| both && now < old.until);
        chosen.into_iter().flatten().chain(older.map(|old| old.sealed.as_slice()))
    }
}

/// How far a replay is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum ReplayState {
    /// It goes on.
    Running = 0,
    /// All of it was handed over.
    Done = 1,
    /// Its owner ended it.
    Cancelled = 2,
    /// It could not go on.
    Failed = 3,
}

impl ReplayState {
    /// `running`, `done`, `cancelled` or `failed`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        }
    }
}

/// Which deliveries are made once more.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ReplayQuery {
    /// Events that happened at or after, milliseconds since the epoch.
    #[prost(int64, tag = "1")]
    pub from: i64,
    /// And before.
    #[prost(int64, tag = "2")]
    pub to: i64,
    /// Of these types; empty: all.
    #[prost(enumeration = "EventType", repeated, tag = "3")]
    pub event_types: Vec<i32>,
    /// To these, sixteen bytes each; empty: to all that the event went to.
    #[prost(bytes = "vec", repeated, tag = "4")]
    pub destination_ids: Vec<Vec<u8>>,
    /// Deliveries that stand so; empty: however they stand.
    #[prost(enumeration = "DeliveryStatus", repeated, tag = "5")]
    pub statuses: Vec<i32>,
    /// This event only, by its number in its partition.
    #[prost(uint64, optional, tag = "6")]
    pub seq: Option<u64>,
    /// Numbered below this in their partition: what came after the replay was asked for is only delivered as new.
    #[prost(uint64, optional, tag = "7")]
    pub below: Option<u64>,
}

/// How much a replay has come to.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct ReplayCounts {
    /// Events looked at that match.
    #[prost(uint64, tag = "1")]
    pub events: u64,
    /// Deliveries handed over.
    #[prost(uint64, tag = "2")]
    pub deliveries: u64,
}

/// A replay of events to webhooks.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Replay {
    /// Sixteen bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub replay_id: Vec<u8>,
    /// Of what.
    #[prost(message, optional, tag = "2")]
    pub query: Option<ReplayQuery>,
    /// Deliveries a second at most; 0: as fast as they are taken.
    #[prost(uint32, tag = "3")]
    pub rate_per_second: u32,
    /// How far it is.
    #[prost(enumeration = "ReplayState", tag = "4")]
    pub state: i32,
    /// Milliseconds since the epoch.
    #[prost(int64, tag = "5")]
    pub created_at: i64,
    /// When it ended.
    #[prost(int64, optional, tag = "6")]
    pub finished_at: Option<i64>,
    /// What it has come to.
    #[prost(message, optional, tag = "7")]
    pub counts: Option<ReplayCounts>,
    /// Where it goes on, in the form of whoever reads; empty: at the beginning.
    #[prost(string, tag = "8")]
    pub cursor: String,
    /// Why it failed.
    #[prost(string, tag = "9")]
    pub error: String,
}

impl Replay {
    /// Its identifier.
    pub fn id(&self) -> Option<ReplayId> {
        ReplayId::from_slice(&self.replay_id).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destination(dialect: Dialect, surface: Surface) -> Destination {
        Destination { enabled: true, dialect: dialect as i32, surface: surface as i32, ..Destination::default() }
    }

    #[test]
    fn dialects_speak_of_what_their_seeds_name() {
        use EventType::*;
        let names = |dialect: Dialect| {
            let of = |kind: EventType| Some((kind, dialect.event_name(kind, true)?));
            EventType::ALL.into_iter().filter_map(of).collect::<Vec<_>>()
        };
        assert_eq!(
            names(Dialect::Nexuspromail),
            [
                (Delivery, "delivered"),
                (Bounce, "bounced.hard"),
                (Complaint, "complained"),
                (Open, "opened"),
                (Click, "clicked"),
                (Subscription, "unsubscribed")
            ]
        );
        assert_eq!(Dialect::Nexuspromail.event_name(Bounce, false), Some("bounced.soft"));
        assert_eq!(
            names(Dialect::Zmailer),
            [
                (Send, "email.sent"),
                (Delivery, "email.delivered"),
                (Bounce, "email.bounced"),
                (Complaint, "email.complained"),
                (Reject, "email.failed"),
                (RenderingFailure, "email.failed")
            ]
        );
        let kinds = |dialect| names(dialect).into_iter().map(|(kind, _)| kind).collect::<Vec<_>>();
        assert_eq!(kinds(Dialect::Securesmtp), [Send, Delivery, Bounce, Complaint, Open, Click, DeliveryDelay]);
        assert_eq!(kinds(Dialect::Sendcomms), [Send, Delivery, Bounce, Complaint, Open, Click]);
        assert_eq!(
            kinds(Dialect::Splashify),
            [Send, Delivery, Bounce, Complaint, Open, Click, Reject, RenderingFailure, DeliveryDelay, Reply]
        );
        assert!(!kinds(Dialect::Standard).contains(&Lifecycle));
        for dialect in Dialect::ALL {
            assert_eq!(Dialect::parse(dialect.name()), Some(dialect));
        }
    }

    #[test]
    fn lifecycle_is_for_the_account_alone_and_changes_of_webhooks_for_the_operator() {
        let surfaces =
            [Surface::ConfigSet, Surface::Account, Surface::Operational, Surface::Sendcomms, Surface::Zmailer];
        for surface in surfaces {
            let takes = |kind| destination(Dialect::Standard, surface).takes(kind, true, true);
            assert_eq!(takes(EventType::Lifecycle), surface == Surface::Account);
            assert_eq!(takes(EventType::WebhookFailing), surface == Surface::Operational);
            assert_eq!(takes(EventType::Bounce), surface != Surface::Operational);
        }
        let some = Destination {
            matching_event_types: vec![EventType::Bounce as i32],
            ..destination(Dialect::Splashify, Surface::Account)
        };
        assert!(some.takes(EventType::Lifecycle, false, true) && !some.takes(EventType::Open, false, true));
        // A type that was not asked for does not come by what is said of its kinds, nor any other go.
        let hard = |kind: EventType| Destination {
            matching_event_types: vec![kind as i32],
            bounces: Bounces::Hard as i32,
            ..destination(Dialect::Splashify, Surface::Account)
        };
        assert!(hard(EventType::Bounce).takes(EventType::Bounce, true, true));
        assert!(!hard(EventType::Bounce).takes(EventType::Bounce, false, true));
        assert!(!hard(EventType::Open).takes(EventType::Bounce, true, true));
        assert!(hard(EventType::Open).takes(EventType::Open, false, true));
        let zmailer = destination(Dialect::Zmailer, Surface::Zmailer);
        assert!(zmailer.takes(EventType::Send, false, true) && !zmailer.takes(EventType::Send, false, false));
        assert!(zmailer.takes(EventType::Delivery, false, false));
    }

    #[test]
    fn a_rotated_secret_signs_as_the_dialect_can_bear() {
        let rotated = |dialect| Destination {
            sealed_secret: Some(b"new".to_vec()),
            previous_secret: Some(b"old".to_vec()),
            previous_until: 100,
            ..destination(dialect, Surface::ConfigSet)
        };
        let secrets = |dialect, now| rotated(dialect).signing_secrets(now).map(<[u8]>::to_vec).collect::<Vec<_>>();
        for dialect in [Dialect::Standard, Dialect::Securesmtp] {
            assert_eq!(secrets(dialect, 99), [b"new".to_vec(), b"old".to_vec()]);
            assert_eq!(secrets(dialect, 100), [b"new".to_vec()]);
        }
        for dialect in [Dialect::Splashify, Dialect::Nexuspromail, Dialect::Sendcomms, Dialect::Zmailer] {
            assert_eq!((secrets(dialect, 99), secrets(dialect, 100)), (vec![b"old".to_vec()], vec![b"old".to_vec()]));
        }
    }
}
