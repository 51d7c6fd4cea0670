//! How records become bytes: Protocol Buffers, with the format's version as the first field.
//!
//! Fields are only ever added, so that an old record stays readable. A version is raised when an older program must not
//! apply the record: it then halts the partition rather than lose what it cannot see.

use bytes::Bytes;
use prost::Message;

use crate::Error;
use crate::event::Event;
use crate::exchange::{Question, Reply, View};
use crate::mail::{Attempt, DeadLetter, Mail};
use crate::record::Record;

/// The format of nearly all that this program writes.
pub const VERSION: u32 = 1;
/// That of an intake record that was read from a source: a program that does not know sources would apply copies of it.
pub const SOURCED: u32 = 2;
/// That of intake records and events that an older program would take for something else: dialects, destinations and types
/// that it does not know.
pub const OF_WEBHOOKS: u32 = 3;
/// That of intake records of keys that are good for some things, or for some time: to an older program they are for everything,
/// for ever.
pub const OF_KEYS: u32 = 4;
/// That of intake records of the networks from which an account may be used: an older program would let everybody in.
pub const OF_NETWORKS: u32 = 5;
/// That of intake records and events of erasures, and of events of who changed what: an older program would go on to tell of
/// who was erased, and take changes for something else.
pub const OF_ERASURES: u32 = 6;

/// A message that stands on a topic.
pub trait Wire: Message + Default {
    /// What to call it in an error.
    const NAME: &'static str;
    /// The newest format that this program reads.
    const NEWEST: u32;

    /// The format's version that the record names.
    fn version(&self) -> u32;
}

macro_rules! wire {
    ($($kind:ty => $name:literal, $newest:expr;)*) => {
        $(impl Wire for $kind {
            const NAME: &'static str = $name;
            const NEWEST: u32 = $newest;
            fn version(&self) -> u32 {
                self.version
            }
        })*
    };
}

wire! {
    Record => "intake record", OF_ERASURES;
    Event => "event", OF_ERASURES;
    Mail => "mail", VERSION;
    Attempt => "attempt", VERSION;
    DeadLetter => "dead letter", VERSION;
    View => "view", VERSION;
    Question => "question", VERSION;
    Reply => "reply", VERSION;
}

/// A record as bytes.
pub fn encode<W: Wire>(record: &W) -> Bytes {
    Bytes::from(record.encode_to_vec())
}

/// Reads a record.
///
/// # Errors
/// [`Error::NewerVersion`] when a newer program wrote it: apply nothing more of this partition.
/// [`Error::Malformed`] when it is not a record at all: a dead letter.
pub fn decode<W: Wire>(bytes: &[u8]) -> Result<W, Error> {
    let record = W::decode(bytes).map_err(|cause| Error::Malformed(format!("{}: {cause}", W::NAME)))?;
    match record.version() {
        0 => Err(Error::Malformed(format!("{} without a version", W::NAME))),
        version if version > W::NEWEST => Err(Error::NewerVersion { what: W::NAME, version }),
        _ => Ok(record),
    }
}
