//! The topics and how accounts map to partitions.

use std::fmt;

use crate::ids::AccountId;

/// A stream of records with one purpose. Names are the same on disk and on Kafka.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Topic {
    /// Whatever may change an account: sends, delivery events, commands, settings. Keyed by account.
    Intake,
    /// Canonical facts, each with its dense `seq`. Partition = intake partition.
    Events,
    /// Messages accepted for sending. Partition = intake partition.
    Mail,
    /// Outcomes of webhook attempts. Partition = intake partition.
    Attempts,
    /// Records that could not be applied, with their offset and the reason.
    DeadLetter,
}

impl Topic {
    /// Every topic, in the order of their codes.
    pub const ALL: [Self; 5] = [Self::Intake, Self::Events, Self::Mail, Self::Attempts, Self::DeadLetter];

    /// The name, as on Kafka.
    pub fn name(self) -> &'static str {
        match self {
            Self::Intake => "sendtrail.intake",
            Self::Events => "sendtrail.events",
            Self::Mail => "sendtrail.mail",
            Self::Attempts => "sendtrail.attempts",
            Self::DeadLetter => "sendtrail.dead-letter",
        }
    }

    /// A number for keys and frames; never reused.
    pub fn code(self) -> u8 {
        match self {
            Self::Intake => 0,
            Self::Events => 1,
            Self::Mail => 2,
            Self::Attempts => 3,
            Self::DeadLetter => 4,
        }
    }

    /// Whether its records are a dense sequence that their writer numbers, so that they may be written again.
    pub fn is_numbered(self) -> bool {
        match self {
            Self::Events | Self::Mail | Self::DeadLetter => true,
            Self::Intake | Self::Attempts => false,
        }
    }

    /// The topic of a code, if this program knows it.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One partition of one topic.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TopicPartition {
    /// The topic.
    pub topic: Topic,
    /// The partition, from 0.
    pub partition: u32,
}

impl TopicPartition {
    /// A partition of a topic.
    pub fn new(topic: Topic, partition: u32) -> Self {
        Self { topic, partition }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

/// The intake partition of an account: murmur2 of the identifier's hyphenated lower-case text, as the standard
/// Kafka producers compute it for a string key, modulo the number of partitions.
///
/// # Panics
/// When `partitions` is 0.
pub fn partition_of(account: AccountId, partitions: u32) -> u32 {
    let mut text = [0u8; uuid::fmt::Hyphenated::LENGTH];
    let text = account.0.hyphenated().encode_lower(&mut text);
    (murmur2::murmur2(text.as_bytes(), murmur2::KAFKA_SEED) & 0x7fff_ffff) % partitions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_stable() {
        for topic in Topic::ALL {
            assert_eq!(Topic::from_code(topic.code()), Some(topic));
        }
        assert_eq!(Topic::from_code(5), None);
    }

    #[test]
    fn the_hash_is_kafkas() {
        // Values of org.apache.kafka.common.utils.Utils.murmur2, from Kafka's own UtilsTest.
        let cases: [(&[u8], i32); 4] =
            [(b"21", -973932308), (b"foobar", -790332482), (b"a-little-bit-long-string", -985981536), (b"", 275646681)];
        for (text, expected) in cases {
            assert_eq!(murmur2::murmur2(text, murmur2::KAFKA_SEED) as i32, expected);
        }
    }
}
