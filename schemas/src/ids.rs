//! Identifiers. Each kind is its own type, so that one cannot be passed for another.

use std::fmt;
use std::str::FromStr;

use bytes::BufMut;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::Error;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// The sixteen bytes, most significant first, as records and keys hold them.
            pub fn bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// Reads the sixteen bytes of a record or a key.
            ///
            /// # Errors
            /// [`Error::Malformed`] unless there are exactly sixteen.
            pub fn from_slice(bytes: &[u8]) -> Result<Self, Error> {
                Uuid::from_slice(bytes)
                    .map(Self)
                    .map_err(|_| Error::Malformed(concat!(stringify!($name), " is not 16 bytes").into()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0.hyphenated())
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> {
                Uuid::parse_str(text)
                    .map(Self)
                    .map_err(|_| Error::Malformed(format!("{text:?} is not a UUID")))
            }
        }
    };
}

uuid_id!(
    /// An account (S2's partner): the unit of isolation and of ordering.
    AccountId
);
uuid_id!(
    /// An API key; not the key itself.
    KeyId
);
uuid_id!(
    /// A configuration set.
    ConfigSetId
);
uuid_id!(
    /// A webhook destination.
    DestinationId
);
uuid_id!(
    /// A replay of events to webhooks.
    ReplayId
);

/// The identifier an event gets when its sender gave none: the event's place in the log, so that it sorts
/// like the log and is the same after every replay.
pub fn event_id(partition: u32, seq: u64) -> String {
    format!("ev_{partition:04x}_{seq:016x}")
}

/// The identifier of the delivery of one event to one destination; the same over retries, restarts and replays.
///
/// A UUID of version 8 (RFC 9562 §5.8) over the event's identity and the destination's.
pub fn delivery_id(account: AccountId, partition: u32, seq: u64, destination: DestinationId) -> Uuid {
    let mut bytes = [0u8; 44];
    bytes[..16].copy_from_slice(account.bytes());
    bytes[16..20].copy_from_slice(&partition.to_be_bytes());
    bytes[20..28].copy_from_slice(&seq.to_be_bytes());
    bytes[28..].copy_from_slice(destination.bytes());
    uuid::Builder::from_custom_bytes(hash128(&[&bytes]).to_be_bytes()).into_uuid()
}

/// A 128-bit XXH3 over length-delimited parts: a name for rows, not a defence against an adversary, who could
/// only make two facts of his own account collide.
pub fn hash128(parts: &[&[u8]]) -> u128 {
    // In one piece: a hasher that is fed part by part allocates.
    let length = parts.iter().map(|part| part.len() + 4).sum();
    let mut small = [0u8; 256];
    let mut large = Vec::new();
    let whole = match small.get_mut(..length) {
        Some(small) => small,
        None => {
            large.resize(length, 0);
            &mut large[..]
        }
    };
    let mut rest = &mut whole[..];
    for part in parts {
        rest.put_slice(&(part.len() as u32).to_le_bytes());
        rest.put_slice(part);
    }
    twox_hash::XxHash3_128::oneshot(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_hashed_as_if_fed_one_by_one() {
        for length in [0, 1, 100, 243, 244, 245, 1_000] {
            let part = vec![7u8; length];
            let mut hasher = twox_hash::XxHash3_128::with_seed(0);
            for part in [&part[..], b"x"] {
                hasher.write(&(part.len() as u32).to_le_bytes());
                hasher.write(part);
            }
            assert_eq!(hash128(&[&part, b"x"]), hasher.finish_128(), "{length}");
        }
    }

    #[test]
    fn parts_are_delimited() {
        assert_ne!(hash128(&[b"ab", b"c"]), hash128(&[b"a", b"bc"]));
    }

    #[test]
    fn event_ids_sort_like_the_log() {
        assert!(event_id(0, 9) < event_id(0, 10));
        assert!(event_id(0, u64::MAX) < event_id(1, 0));
    }

    #[test]
    fn delivery_ids_are_stable() {
        let id = delivery_id(AccountId(Uuid::nil()), 1, 2, DestinationId(Uuid::nil()));
        assert_eq!(id, delivery_id(AccountId(Uuid::nil()), 1, 2, DestinationId(Uuid::nil())));
        assert_eq!(id.get_version_num(), 8);
    }
}
