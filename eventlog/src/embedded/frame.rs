//! How a batch lies in a segment.
//!
//! ```text
//! magic 4 | payload length 4 | crc 4 | topic 1 | zero 1 | partition 2 | count 4 | base offset 8 | stamp 8 | group 4 | payload
//! ```
//!
//! Little endian; the CRC-32 covers all that follows it. `group` is where the frame's group commit begins in the
//! segment: everything before it was durable when the frame was written, which tells a torn tail from corruption.

use bytes::{Buf, BufMut};
use sendtrail_schemas::topic::{Topic, TopicPartition};

/// Bytes before the payload.
pub const HEADER: usize = 40;
/// How a frame begins.
pub const MAGIC: [u8; 4] = *b"STf1";
/// The largest payload, so that a broken length is not believed.
pub const MAX_PAYLOAD: usize = 256 << 20;

/// What a frame says of its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Whose records.
    pub of: TopicPartition,
    /// How many.
    pub count: u32,
    /// Offset of the first.
    pub base_offset: u64,
    /// When they were appended, milliseconds since the epoch.
    pub stamp: i64,
    /// Where the frame's group commit begins.
    pub group: u32,
    /// Bytes of the payload.
    pub length: u32,
}

impl Frame {
    /// Writes the frame.
    pub fn write(&self, payload: &[u8], into: &mut Vec<u8>) {
        into.reserve(HEADER + payload.len());
        into.put_slice(&MAGIC);
        into.put_u32_le(payload.len() as u32);
        let crc_at = into.len();
        into.put_u32_le(0);
        into.put_u8(self.of.topic.code());
        into.put_u8(0);
        into.put_u16_le(self.of.partition as u16);
        into.put_u32_le(self.count);
        into.put_u64_le(self.base_offset);
        into.put_i64_le(self.stamp);
        into.put_u32_le(self.group);
        into.put_slice(payload);
        let crc = crc32fast::hash(&into[crc_at + 4..]);
        into[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads a header; `None` when there is none, and the checksum beside it.
    pub fn read(mut header: &[u8]) -> Option<(Self, u32)> {
        if header.len() < HEADER || !header.starts_with(&MAGIC) {
            return None;
        }
        header.advance(4);
        let length = header.get_u32_le();
        let crc = header.get_u32_le();
        let topic = Topic::from_code(header.get_u8())?;
        header.advance(1);
        let partition = u32::from(header.get_u16_le());
        let count = header.get_u32_le();
        let base_offset = header.get_u64_le();
        let stamp = header.get_i64_le();
        let group = header.get_u32_le();
        let of = TopicPartition { topic, partition };
        ((length as usize) <= MAX_PAYLOAD).then_some((Self { of, count, base_offset, stamp, group, length }, crc))
    }

    /// Bytes of the whole frame.
    pub fn size(&self) -> u64 {
        HEADER as u64 + u64::from(self.length)
    }

    /// Whether the checksum covers these bytes, header and payload.
    pub fn is_intact(crc: u32, frame: &[u8]) -> bool {
        frame.get(12..).is_some_and(|covered| crc32fast::hash(covered) == crc)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes_and_notices_every_flipped_bit() {
        let frame = Frame {
            of: TopicPartition::new(Topic::Events, 300),
            count: 2,
            base_offset: 77,
            stamp: -5,
            group: 16,
            length: 5,
        };
        let mut bytes = Vec::new();
        frame.write(b"hello", &mut bytes);
        let (read, crc) = Frame::read(&bytes).unwrap();
        assert_eq!(read, frame);
        assert!(Frame::is_intact(crc, &bytes));
        for bit in 0..bytes.len() * 8 {
            let mut bent = bytes.clone();
            bent[bit / 8] ^= 1 << (bit % 8);
            let intact = Frame::read(&bent).is_some_and(|(read, crc)| {
                bent.get(..read.size() as usize).is_some_and(|whole| Frame::is_intact(crc, whole))
            });
            assert!(!intact, "bit {bit}");
        }
    }
}
