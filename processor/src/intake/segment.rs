//! A segment of archived intake: one file of records as they stood in the log. ◆ Once written, these are read by every later
//! program.
//!
//! ```text
//! MAGIC, then by zstd: offset u64 · received_at i64 · length u32 · record, all little-endian, one after the other
//! name: intake-<first offset>-<offset after the last>-<half a SHA-256 of the file>
//! ```

use std::io::Write;

use bytes::Bytes;
use sendtrail_eventlog::Record;

use crate::Error;
use crate::snapshots::checksum;

/// What a segment begins with; the last byte is the format's version.
const MAGIC: &[u8; 8] = b"STINTK\0\x01";
/// Level of compression: speed matters more than size.
const LEVEL: i32 = 1;
/// Bytes before a record.
const HEAD: usize = 20;

/// Which records a file has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// Offset of the first.
    pub first: u64,
    /// Offset after the last.
    pub next: u64,
    sum: String,
}

impl Name {
    /// Reads a file's name; none: it is something else's.
    pub fn read(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix("intake-")?.split('-');
        let (first, next) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        Some(Self { first, next, sum: parts.next()?.to_owned() })
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "intake-{:020}-{:020}-{}", self.first, self.next, self.sum)
    }
}

/// Records on their way into a file.
pub struct Writer {
    bytes: zstd::stream::write::Encoder<'static, Vec<u8>>,
    raw: usize,
    first: u64,
    next: u64,
}

impl Writer {
    /// Of a file whose first record has this offset.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn new(first: u64) -> Result<Self, Error> {
        let bytes = zstd::stream::write::Encoder::new(MAGIC.to_vec(), LEVEL).map_err(io)?;
        Ok(Self { bytes, raw: 0, first, next: first })
    }

    /// Adds a record.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Intake`] when it is not the one that comes next.
    pub fn push(&mut self, record: &Record) -> Result<(), Error> {
        if record.offset != self.next {
            return Err(Error::Intake(format!("after record {} comes {}", self.next, record.offset)));
        }
        let mut head = [0u8; HEAD];
        head[..8].copy_from_slice(&record.offset.to_le_bytes());
        head[8..16].copy_from_slice(&record.received_at.to_le_bytes());
        head[16..].copy_from_slice(&(record.value.len() as u32).to_le_bytes());
        self.bytes.write_all(&head).and_then(|()| self.bytes.write_all(&record.value)).map_err(io)?;
        self.raw += HEAD + record.value.len();
        self.next = record.offset + 1;
        Ok(())
    }

    /// Offset after the last record.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Bytes of its records, before compression.
    pub fn raw_bytes(&self) -> usize {
        self.raw
    }

    /// The file's bytes and its name.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(self) -> Result<(Name, Vec<u8>), Error> {
        let bytes = self.bytes.finish().map_err(io)?;
        Ok((Name { first: self.first, next: self.next, sum: checksum(&bytes) }, bytes))
    }
}

/// The records of a file.
///
/// # Errors
/// [`Error::Intake`] when it is not what was written under that name.
pub fn read(name: &Name, bytes: &[u8]) -> Result<Vec<Record>, Error> {
    let damaged = || Error::Intake(format!("{name} is not what was written"));
    if checksum(bytes) != name.sum {
        return Err(damaged());
    }
    let packed = bytes.strip_prefix(MAGIC).ok_or_else(damaged)?;
    let mut rest = Bytes::from(zstd::stream::decode_all(packed).map_err(|_| damaged())?);
    let mut records = Vec::new();
    while let Some((head, _)) = rest.split_first_chunk::<HEAD>() {
        let offset = u64::from_le_bytes(head[..8].try_into().map_err(|_| damaged())?);
        let received_at = i64::from_le_bytes(head[8..16].try_into().map_err(|_| damaged())?);
        let length = u32::from_le_bytes(head[16..].try_into().map_err(|_| damaged())?) as usize;
        if rest.len() < HEAD + length || offset != name.first + records.len() as u64 {
            return Err(damaged());
        }
        let value = rest.split_to(HEAD + length).slice(HEAD..);
        records.push(Record { offset, received_at, value });
    }
    let is_whole = rest.is_empty() && name.first + records.len() as u64 == name.next;
    if is_whole { Ok(records) } else { Err(damaged()) }
}

fn io(cause: std::io::Error) -> Error {
    Error::Io { what: "compress intake".into(), cause }
}
