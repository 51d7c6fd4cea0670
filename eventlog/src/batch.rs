//! Records on their way to the log and back: one buffer a batch, however many records.

use bytes::{Buf, BufMut, Bytes};
use prost::Message;

/// Records that enter the log together.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    payload: Vec<u8>,
    count: u32,
    first_number: Option<u64>,
}

impl Batch {
    /// A batch whose records get the next offsets.
    pub fn new() -> Self {
        Self::default()
    }

    /// A batch of a dense sequence, whose first record has this number.
    pub fn numbered(first: u64) -> Self {
        Self { first_number: Some(first), ..Self::default() }
    }

    /// The same with room for so many bytes, so that it need not grow.
    #[must_use]
    pub fn with_room(mut self, bytes: usize) -> Self {
        self.payload.reserve(bytes);
        self
    }

    /// Adds a record.
    pub fn push(&mut self, record: &impl Message) {
        let begin = self.payload.len();
        self.payload.put_u32_le(0);
        // A vector takes whatever is encoded.
        let _ = record.encode(&mut self.payload);
        let length = (self.payload.len() - begin - 4) as u32;
        self.payload[begin..begin + 4].copy_from_slice(&length.to_le_bytes());
        self.count += 1;
    }

    /// Adds a record that is bytes already.
    pub fn push_bytes(&mut self, record: &[u8]) {
        self.payload.reserve(record.len() + 4);
        self.payload.put_u32_le(record.len() as u32);
        self.payload.put_slice(record);
        self.count += 1;
    }

    /// How many records.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of all records.
    pub fn bytes(&self) -> usize {
        self.payload.len()
    }

    /// The number of the first record, in a dense sequence.
    pub fn first_number(&self) -> Option<u64> {
        self.first_number
    }

    /// The number after the last record, in a dense sequence.
    pub fn next_number(&self) -> Option<u64> {
        self.first_number.map(|first| first + u64::from(self.count))
    }

    /// The records, one after the other.
    pub(crate) fn payloads(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.payload[..];
        std::iter::from_fn(move || {
            let (length, after) = rest.split_first_chunk::<4>()?;
            let (record, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize)?;
            rest = after;
            Some(record)
        })
    }

    /// The payload without its first `drop` records.
    pub(crate) fn freeze(self, drop: u32) -> (Bytes, u32) {
        let mut payload = Bytes::from(self.payload);
        for _ in 0..drop.min(self.count) {
            let length = payload.get_u32_le() as usize;
            payload.advance(length.min(payload.len()));
        }
        (payload, self.count - drop.min(self.count))
    }
}

/// A record as the log returns it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its place in its partition.
    pub offset: u64,
    /// When it was appended, milliseconds since the epoch, by the sequencer's clock.
    pub received_at: i64,
    /// The record.
    pub value: Bytes,
}

/// Records that entered the log together, as the log returns them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredBatch {
    /// Offset of the first record.
    pub base_offset: u64,
    /// How many records.
    pub count: u32,
    /// When it was appended, milliseconds since the epoch.
    pub received_at: i64,
    pub(crate) payload: Bytes,
}

impl StoredBatch {
    /// The offset after the last record.
    pub fn next_offset(&self) -> u64 {
        self.base_offset + u64::from(self.count)
    }

    /// Bytes of all records.
    pub fn bytes(&self) -> usize {
        self.payload.len()
    }

    /// The records from an offset on, without copying.
    pub fn records(&self, from: u64) -> impl Iterator<Item = Record> + '_ {
        let mut rest = self.payload.clone();
        let records = (0..self.count).map_while(move |at| {
            let length = rest.try_get_u32_le().ok()? as usize;
            let value = (length <= rest.len()).then(|| rest.split_to(length))?;
            Some(Record { offset: self.base_offset + u64::from(at), received_at: self.received_at, value })
        });
        records.skip_while(move |record| record.offset < from)
    }
}
