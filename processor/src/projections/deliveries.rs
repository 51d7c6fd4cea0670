//! How deliveries stand.

use prost::Message;
use sendtrail_schemas::ids::DestinationId;
use sendtrail_schemas::mail::DeliveryStatus;
use sendtrail_schemas::time::{DAY, Millis};

use super::ProjectionReader;
use crate::Error;

/// How long the last attempt of a delivery is shown, milliseconds (S2: "30 days").
const ATTEMPT_HORIZON: i64 = 30 * DAY;
/// Deliveries that are looked at for one page: of those that stand otherwise there may be many.
const LOOKED_AT: usize = 20_000;

/// How a delivery stands: its last attempt, or nothing yet but that it is to be made.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct LastAttempt {
    /// How it stands; the code of a [`sendtrail_schemas::mail::DeliveryStatus`].
    #[prost(int32, tag = "1")]
    pub status: i32,
    /// How many attempts there were.
    #[prost(uint32, tag = "2")]
    pub attempts: u32,
    /// The receiver's last status code.
    #[prost(uint32, optional, tag = "3")]
    pub status_code: Option<u32>,
    /// When it ended, milliseconds since the epoch.
    #[prost(int64, tag = "4")]
    pub finished_at: i64,
    /// When the event was received, milliseconds since the epoch.
    #[prost(int64, tag = "5")]
    pub created_at: i64,
    /// The event's type; the code of an [`sendtrail_schemas::kind::EventType`].
    #[prost(int32, tag = "6")]
    pub event_type: i32,
    /// When the next attempt is due, milliseconds since the epoch.
    #[prost(int64, optional, tag = "7")]
    pub next_due_at: Option<i64>,
    /// The number of the attempt among those of its partition.
    #[prost(uint64, tag = "8")]
    pub offset: u64,
}

impl LastAttempt {
    pub(super) fn status(&self) -> DeliveryStatus {
        DeliveryStatus::try_from(self.status).unwrap_or(DeliveryStatus::Pending)
    }

    /// As it is written: begins like a row of the state, so that the same filter drops it.
    pub(super) fn value(&self) -> Vec<u8> {
        let last = self.finished_at.max(self.created_at).max(self.next_due_at.unwrap_or(0));
        let expires = Millis(last + ATTEMPT_HORIZON).hour().max(0) as u32;
        let mut value = expires.to_be_bytes().to_vec();
        // A vector takes whatever is encoded.
        let _ = self.encode(&mut value);
        value
    }

    pub(super) fn read(value: &[u8]) -> Option<Self> {
        Self::decode(value.get(4..)?).ok()
    }
}

/// An event's number in its partition, and the last attempt at a delivery of it.
pub type Delivered = (u64, LastAttempt);

/// Which deliveries of a destination.
#[derive(Clone, Debug)]
pub struct DeliveryQuery {
    /// Where to.
    pub destination: DestinationId,
    /// That stand so.
    pub status: Option<DeliveryStatus>,
    /// Of events before this number.
    pub before: Option<u64>,
    /// At most so many.
    pub limit: usize,
}

/// Partition, destination, and the event's number so that the newest comes first.
pub(super) type DeliveryKey = [u8; 26];

pub(super) fn delivery_key(partition: u32, seq: u64, destination: DestinationId) -> DeliveryKey {
    let mut key = [0u8; 26];
    key[..2].copy_from_slice(&(partition as u16).to_be_bytes());
    key[2..18].copy_from_slice(destination.bytes());
    key[18..].copy_from_slice(&(!seq).to_be_bytes());
    key
}

pub(super) fn read_key_of_before(key: &[u8]) -> Option<(u32, u64, DestinationId)> {
    let partition = u16::from_be_bytes(key.get(..2)?.try_into().ok()?);
    let seq = u64::from_be_bytes(key.get(2..10)?.try_into().ok()?);
    Some((u32::from(partition), seq, DestinationId::from_slice(key.get(10..)?).ok()?))
}

impl ProjectionReader {
    /// How a delivery stands; `None` when it is not known.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn last_attempt(
        &self,
        partition: u32,
        seq: u64,
        destination: DestinationId,
    ) -> Result<Option<LastAttempt>, Error> {
        let value = self.deliveries.get(delivery_key(partition, seq, destination))?;
        Ok(value.and_then(|value| LastAttempt::read(&value)))
    }

    /// Deliveries to a destination, of the newest events first, by the events' numbers; and the number to go on before, if
    /// there may be more.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn deliveries(&self, partition: u32, query: &DeliveryQuery) -> Result<(Vec<Delivered>, Option<u64>), Error> {
        let troubled = matches!(query.status, Some(DeliveryStatus::Failed | DeliveryStatus::GaveUp));
        let keyspace = if troubled { &self.troubled } else { &self.deliveries };
        // Keys turn numbers round, so what comes after a key is before it.
        let start = match query.before {
            Some(0) => return Ok((Vec::new(), None)),
            Some(before) => delivery_key(partition, before - 1, query.destination),
            None => delivery_key(partition, u64::MAX, query.destination),
        };
        let end = delivery_key(partition, 0, query.destination);
        let mut found = Vec::new();
        for (count, row) in keyspace.range(start..=end).enumerate() {
            let (key, value) = row.into_inner()?;
            let Some(seq) = key.get(18..).and_then(|seq| seq.try_into().ok()).map(u64::from_be_bytes) else { continue };
            let seq = !seq;
            if count >= LOOKED_AT || found.len() >= query.limit {
                return Ok((found, Some(seq + 1)));
            }
            let Some(last) = LastAttempt::read(&value) else { continue };
            if query.status.is_none_or(|status| status == last.status()) {
                found.push((seq, last));
            }
        }
        Ok((found, None))
    }
}
