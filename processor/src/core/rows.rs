//! Rows of the state that are looked up one by one: what was seen, what is suppressed, what was answered.
//!
//! A row's value begins with the hour after which it means nothing, so that a store may drop it without reading on.
//! Expiry is judged here, by the log's time: whether a store has dropped a row or not changes no decision.

use prost::Message;
use sendtrail_schemas::Error;
use sendtrail_schemas::account::Suppression;
use sendtrail_schemas::event::{EventFact, Tags};
use sendtrail_schemas::ids::{AccountId, hash128};
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::record::Decision;
use sendtrail_schemas::time::{DAY, HOUR, Millis};
use sendtrail_schemas::{address, record::Idempotency};

/// How long a once-only fact, a first open and a Send's profile are remembered, milliseconds from their receipt.
pub const ONCE_HORIZON: i64 = 15 * DAY;
/// How long an `Idempotency-Key` is honoured, milliseconds.
pub const IDEMPOTENCY_HORIZON: i64 = DAY;

/// What a row tells.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum RowKind {
    /// What is known of one message to one recipient.
    Seen = b'S',
    /// A repeatable fact.
    Fact = b'F',
    /// A suppressed address.
    Suppressed = b'X',
    /// An answer to an `Idempotency-Key`.
    Answered = b'I',
}

/// Names a row.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RowKey {
    /// Whose row.
    pub account: AccountId,
    /// What it tells.
    pub kind: RowKind,
    /// Of what.
    pub hash: u128,
}

impl RowKey {
    /// One message to one recipient; addresses compare without case.
    pub fn seen(account: AccountId, message_id: &str, recipient: &str) -> Self {
        let hash = hash128(&[message_id.as_bytes(), address::fold(recipient).as_bytes()]);
        Self { account, kind: RowKind::Seen, hash }
    }

    /// A repeatable fact; `None` when it has neither an identifier nor a time of its own, and is always new.
    pub fn fact(account: AccountId, fact: &EventFact) -> Option<Self> {
        let kind = fact.kind.to_le_bytes();
        let recipient = address::fold(&fact.recipient);
        let mut own = Vec::new();
        let tag: &[u8] = if let Some(id) = &fact.event_id {
            own.extend_from_slice(id.as_bytes());
            b"id"
        } else if let Some(nanos) = fact.occurred_at_nanos {
            own.extend_from_slice(&nanos.to_le_bytes());
            if let Some(block) = &fact.block {
                block.encode(&mut own);
            }
            b"at"
        } else {
            own.extend_from_slice(fact.lent_identity.as_ref()?);
            b"lent"
        };
        let hash = hash128(&[&kind, fact.message_id.as_bytes(), recipient.as_bytes(), tag, &own]);
        Some(Self { account, kind: RowKind::Fact, hash })
    }

    /// That a call's mail was sent, or failed; `None` for types that are told of each recipient anyway.
    pub fn call(account: AccountId, kind: EventType, send_id: &str) -> Option<Self> {
        let class: &[u8] = match kind {
            EventType::Send => b"sent",
            EventType::Reject | EventType::RenderingFailure => b"failed",
            _ => return None,
        };
        Some(Self { account, kind: RowKind::Fact, hash: hash128(&[b"call", class, send_id.as_bytes()]) })
    }

    /// A suppressed address.
    pub fn suppressed(account: AccountId, email: &str) -> Self {
        Self { account, kind: RowKind::Suppressed, hash: hash128(&[address::fold(email).as_bytes()]) }
    }

    /// An answer to an `Idempotency-Key`.
    pub fn answered(account: AccountId, key: &Idempotency) -> Self {
        Self { account, kind: RowKind::Answered, hash: hash128(&[key.route.as_bytes(), key.key.as_bytes()]) }
    }

    /// The key in a store: hash, account, kind. The hash is first because it tells keys apart soonest, and rows are
    /// never read in order.
    pub fn bytes(&self) -> [u8; 33] {
        let mut bytes = [0u8; 33];
        bytes[..16].copy_from_slice(&self.hash.to_be_bytes());
        bytes[16..32].copy_from_slice(self.account.bytes());
        bytes[32] = self.kind as u8;
        bytes
    }

    /// The account and the kind in the key of a store.
    pub fn account_and_kind(bytes: &[u8; 33]) -> (&[u8], u8) {
        (&bytes[16..32], bytes[32])
    }
}

/// A row.
#[derive(Clone, PartialEq, Debug)]
pub enum Row {
    /// See [`Seen`].
    Seen(Box<Seen>),
    /// When the first copy of a repeatable fact was received.
    Fact(FactSeen),
    /// See [`Suppression`].
    Suppressed(Box<Suppression>),
    /// See [`Answer`].
    Answered(Box<Answer>),
}

/// What is known of one message to one recipient: when the first copy of each fact was received.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Seen {
    /// The Send.
    #[prost(int64, optional, tag = "1")]
    pub send: Option<i64>,
    /// The Delivery.
    #[prost(int64, optional, tag = "2")]
    pub delivery: Option<i64>,
    /// The permanent Bounce.
    #[prost(int64, optional, tag = "3")]
    pub bounce: Option<i64>,
    /// The Complaint.
    #[prost(int64, optional, tag = "4")]
    pub complaint: Option<i64>,
    /// The Reject.
    #[prost(int64, optional, tag = "5")]
    pub reject: Option<i64>,
    /// The RenderingFailure.
    #[prost(int64, optional, tag = "6")]
    pub rendering_failure: Option<i64>,
    /// The first Open.
    #[prost(int64, optional, tag = "7")]
    pub open: Option<i64>,
    /// The first Click.
    #[prost(int64, optional, tag = "8")]
    pub click: Option<i64>,
    /// What later events take from the Send.
    #[prost(message, optional, tag = "9")]
    pub sent: Option<Sent>,
}

/// What later events of a message take from its Send.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Sent {
    /// When it happened, milliseconds since the epoch.
    #[prost(int64, tag = "1")]
    pub occurred_at: i64,
    /// How often the account had been resumed.
    #[prost(uint32, tag = "2")]
    pub epoch: u32,
    /// Number of the profile in the account's table, from 1; 0: none, or written out in `own`.
    #[prost(uint32, tag = "3")]
    pub profile: u32,
    /// The profile itself, when the table was full.
    #[prost(message, optional, boxed, tag = "4")]
    pub own: Option<Box<Profile>>,
    /// The subject.
    #[prost(string, optional, tag = "5")]
    pub subject: Option<String>,
    /// A JSON object as text.
    #[prost(string, optional, tag = "6")]
    pub metadata: Option<String>,
    /// The call.
    #[prost(string, optional, tag = "7")]
    pub send_id: Option<String>,
}

/// What many Sends share.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Profile {
    /// The configuration set.
    #[prost(string, optional, tag = "1")]
    pub configuration_set_name: Option<String>,
    /// The From.
    #[prost(string, optional, tag = "2")]
    pub from: Option<String>,
    /// The partner's own customer.
    #[prost(string, optional, tag = "3")]
    pub customer_id: Option<String>,
    /// `transactional` or `marketing`.
    #[prost(string, optional, tag = "4")]
    pub category: Option<String>,
    /// Its own tags; the set's are joined to each event anew.
    #[prost(btree_map = "string, string", tag = "5")]
    pub tags: Tags,
    /// The configuration set, when it existed; sixteen bytes. It is the same one under another name.
    #[prost(bytes = "vec", optional, tag = "6")]
    pub config_set_id: Option<Vec<u8>>,
}

impl Profile {
    /// Whether there is nothing to take.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Within the horizon of once-only facts at `t`.
pub fn remembered(first: Option<i64>, t: Millis) -> bool {
    first.is_some_and(|first| t.0 < first + ONCE_HORIZON)
}

impl Seen {
    /// Where the first receipt of a once-only fact, or of an open or a click, is kept; `None` for other types and for
    /// bounces that are not permanent.
    pub fn first(&mut self, kind: EventType) -> Option<&mut Option<i64>> {
        Some(match kind {
            EventType::Send => &mut self.send,
            EventType::Delivery => &mut self.delivery,
            EventType::Bounce => &mut self.bounce,
            EventType::Complaint => &mut self.complaint,
            EventType::Reject => &mut self.reject,
            EventType::RenderingFailure => &mut self.rendering_failure,
            EventType::Open => &mut self.open,
            EventType::Click => &mut self.click,
            _ => return None,
        })
    }

    /// The Send, while it is remembered.
    pub fn sent_at(&self, t: Millis) -> Option<&Sent> {
        self.sent.as_ref().filter(|_| remembered(self.send, t))
    }

    /// When the last of them was first seen.
    pub fn last(&self) -> i64 {
        [
            self.send,
            self.delivery,
            self.bounce,
            self.complaint,
            self.reject,
            self.rendering_failure,
            self.open,
            self.click,
        ]
        .into_iter()
        .flatten()
        .max()
        .unwrap_or_default()
    }
}

/// A repeatable fact.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct FactSeen {
    /// When the first copy was received, milliseconds since the epoch.
    #[prost(int64, tag = "1")]
    pub at: i64,
    /// How long it is remembered, hours.
    #[prost(uint32, tag = "2")]
    pub horizon_hours: u32,
    /// Of a call: the types of events by which it was heard of, one bit each; none where an earlier logic did not note them.
    #[prost(uint32, tag = "3")]
    pub kinds: u32,
}

impl FactSeen {
    /// Whether it is still remembered at `t`.
    pub fn remembered(&self, t: Millis) -> bool {
        t.0 < self.at + i64::from(self.horizon_hours) * HOUR
    }
}

/// An answer to an `Idempotency-Key`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Answer {
    /// When it was given, milliseconds since the epoch.
    #[prost(int64, tag = "1")]
    pub at: i64,
    /// SHA-256 of the body that was answered.
    #[prost(bytes = "vec", tag = "2")]
    pub body_hash: Vec<u8>,
    /// The answer.
    #[prost(message, optional, tag = "3")]
    pub decision: Option<Decision>,
}

const NEVER: u32 = u32::MAX;

impl Row {
    /// The value in a store.
    pub fn encode(&self) -> Vec<u8> {
        let mut value = self.expires_after_hour().to_be_bytes().to_vec();
        // A vector takes whatever is encoded.
        let _ = match self {
            Self::Seen(row) => row.encode(&mut value),
            Self::Fact(row) => row.encode(&mut value),
            Self::Suppressed(row) => row.encode(&mut value),
            Self::Answered(row) => row.encode(&mut value),
        };
        value
    }

    /// Reads the value of a key.
    ///
    /// # Errors
    /// [`Error::Malformed`] when it is not a row of this kind.
    pub fn decode(kind: RowKind, value: &[u8]) -> Result<Self, Error> {
        let malformed = |cause: &dyn std::fmt::Display| Error::Malformed(format!("{kind:?} row: {cause}"));
        let body = value.get(4..).ok_or_else(|| malformed(&"too short"))?;
        Ok(match kind {
            RowKind::Seen => Self::Seen(Box::new(Seen::decode(body).map_err(|e| malformed(&e))?)),
            RowKind::Fact => Self::Fact(FactSeen::decode(body).map_err(|e| malformed(&e))?),
            RowKind::Suppressed => Self::Suppressed(Box::new(Suppression::decode(body).map_err(|e| malformed(&e))?)),
            RowKind::Answered => Self::Answered(Box::new(Answer::decode(body).map_err(|e| malformed(&e))?)),
        })
    }

    fn expires_after_hour(&self) -> u32 {
        let after = |millis: i64| u32::try_from(Millis(millis).hour()).unwrap_or_default();
        match self {
            Self::Seen(row) => after(row.last() + ONCE_HORIZON),
            Self::Fact(row) => after(row.at + i64::from(row.horizon_hours) * HOUR),
            Self::Suppressed(_) => NEVER,
            Self::Answered(row) => after(row.at + IDEMPOTENCY_HORIZON),
        }
    }
}

/// Whether a store may drop a row's value: it means nothing after the hour it names. Reads the first four bytes only.
pub fn is_expired(value: &[u8], hour: u32) -> bool {
    value.first_chunk::<4>().is_some_and(|bytes| {
        let last = u32::from_be_bytes(*bytes);
        last != NEVER && last < hour
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn rows_read_back_and_name_their_expiry() {
        let account = AccountId(Uuid::from_u128(1));
        let seen = Seen { send: Some(10 * DAY), click: Some(11 * DAY), ..Default::default() };
        let rows = [
            (RowKind::Seen, Row::Seen(Box::new(seen)), Some(26 * 24)),
            (RowKind::Fact, Row::Fact(FactSeen { at: 10 * DAY, horizon_hours: 72, kinds: 0 }), Some(13 * 24)),
            (
                RowKind::Suppressed,
                Row::Suppressed(Box::new(Suppression { email: "a@b.co".into(), ..Default::default() })),
                None,
            ),
            (RowKind::Answered, Row::Answered(Box::new(Answer { at: 10 * DAY, ..Default::default() })), Some(11 * 24)),
        ];
        for (kind, row, last) in rows {
            let value = row.encode();
            assert_eq!(Row::decode(kind, &value).unwrap(), row);
            match last {
                Some(last) => assert!(!is_expired(&value, last) && is_expired(&value, last + 1)),
                None => assert!(!is_expired(&value, u32::MAX)),
            }
        }
        assert!(Row::decode(RowKind::Seen, b"abc").is_err());
        assert_eq!(RowKey::seen(account, "m", "A@B.co"), RowKey::seen(account, "m", "a@b.co"));
    }

    #[test]
    fn a_fact_is_told_apart_by_its_identifier_or_else_by_its_time_and_block() {
        let account = AccountId(Uuid::from_u128(1));
        let key = |fact: &EventFact| RowKey::fact(account, fact);
        let base = EventFact {
            kind: EventType::Open as i32,
            message_id: "m".into(),
            recipient: "a@b.co".into(),
            ..Default::default()
        };
        assert_eq!(key(&base), None);
        let timed = EventFact { occurred_at_nanos: Some(5), ..base.clone() };
        assert_ne!(key(&timed), key(&EventFact { occurred_at_nanos: Some(6), ..base.clone() }));
        assert_eq!(
            key(&timed),
            key(&EventFact { metadata: Some("{}".into()), subject: Some("x".into()), ..timed.clone() })
        );
        let open = sendtrail_schemas::block::Open { ip_address: Some("1.2.3.4".into()), ..Default::default() };
        let block = Some(sendtrail_schemas::block::Block::Open(open));
        assert_ne!(key(&timed), key(&EventFact { block: block.clone(), ..timed.clone() }));
        let named = EventFact { event_id: Some("e".into()), ..timed.clone() };
        assert_eq!(key(&named), key(&EventFact { occurred_at_nanos: None, block, ..named.clone() }));
        assert_ne!(key(&named), key(&EventFact { kind: EventType::Click as i32, ..named.clone() }));
        let lent = EventFact { lent_identity: Some(b"k0".to_vec()), ..base };
        assert!(key(&lent).is_some());
        assert_eq!(key(&EventFact { lent_identity: Some(b"x".to_vec()), ..timed.clone() }), key(&timed));
    }
}
