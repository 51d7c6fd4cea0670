//! What a snapshot is made of: files of rows, and a manifest that names them. ◆ Once written, these are read by every
//! later program.

use prost::Message;
use sendtrail_schemas::secret::hex;
use sha2::{Digest, Sha256};

use crate::Error;
use crate::core::overlay::{Progress, StoreKey};

/// What a file of rows begins with; the last byte is the format's version.
const MAGIC: &[u8; 8] = b"STROWS\0\x01";
/// The format of manifests.
const VERSION: u32 = 1;
/// What stands for the length of a row that is no more.
const GONE: u32 = u32::MAX;
/// Level of compression: speed matters more than size.
const LEVEL: i32 = 1;

/// The state of a partition at one offset: the rows of its files, where later ones take the place of earlier ones.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Manifest {
    /// The format's version.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// Where the partition stands.
    #[prost(message, required, tag = "2")]
    pub progress: Progress,
    /// In this order.
    #[prost(message, repeated, tag = "3")]
    pub files: Vec<RowFile>,
    /// How many of them, from the first, hold the whole state of some earlier offset.
    #[prost(uint32, tag = "4")]
    pub whole: u32,
    /// What tells the log that it is of from others; empty when that is not known, and before this was written.
    #[prost(string, tag = "5")]
    pub log: String,
}

/// A file of rows.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct RowFile {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// How many rows.
    #[prost(uint64, tag = "2")]
    pub rows: u64,
    /// Its SHA-256.
    #[prost(bytes = "vec", tag = "3")]
    pub sha256: Vec<u8>,
}

/// A row on its way: its key, and its value if it is not gone.
pub type StoredRow = (StoreKey, Option<Vec<u8>>);

impl Manifest {
    /// A manifest.
    pub fn new(progress: Progress, files: Vec<RowFile>, whole: u32, log: String) -> Self {
        Self { version: VERSION, progress, files, whole, log }
    }

    /// Its name: by offset, so that the newest is the greatest; by logic, the log's mark and checksum, so that two are never
    /// one.
    pub fn name(&self) -> String {
        let logic = self.progress.settings.as_ref().map_or(0, |settings| settings.logic_version);
        let mark = mark(&self.log).map_or_else(String::new, |mark| format!("{mark}-"));
        format!("manifest-{:020}-{logic}-{mark}{}", self.progress.next_offset, checksum(&self.encode_to_vec()))
    }

    /// Reads one of a name.
    ///
    /// # Errors
    /// [`Error::Snapshot`] when it is not what was written under that name.
    pub fn read(name: &str, bytes: &[u8]) -> Result<Self, Error> {
        if name.rsplit('-').next() != Some(&checksum(bytes)) {
            return Err(Error::Snapshot(format!("{name} is not what was written")));
        }
        let read = Self::decode(bytes).map_err(|cause| Error::Snapshot(format!("{name}: {cause}")))?;
        if read.version != VERSION {
            return Err(Error::Snapshot(format!(
                "{name} is of version {}, which this program does not know",
                read.version
            )));
        }
        Ok(read)
    }

    /// The offset in a name.
    pub fn offset(name: &str) -> Option<u64> {
        name.strip_prefix("manifest-")?.split('-').next()?.parse().ok()
    }

    /// Rows of the files that hold a whole state, and of those after.
    pub fn rows(&self) -> (u64, u64) {
        let (whole, after) = self.files.split_at((self.whole as usize).min(self.files.len()));
        let sum = |files: &[RowFile]| files.iter().map(|file| file.rows).sum();
        (sum(whole), sum(after))
    }
}

/// The first half of a SHA-256, in hexadecimal.
pub fn checksum(bytes: &[u8]) -> String {
    hex(Sha256::digest(bytes).get(..16).unwrap_or_default())
}

/// What names of manifests and of files of rows have of a log; none: it cannot be told from others.
pub fn mark(log: &str) -> Option<String> {
    (!log.is_empty()).then(|| hex(Sha256::digest(log.as_bytes()).get(..8).unwrap_or_default()))
}

/// The mark in a name, if there is one: the last part but one of five.
pub fn mark_in(name: &str) -> Option<&str> {
    let parts: Vec<&str> = name.split('-').collect();
    match parts[..] {
        [_, _, _, mark, _] => Some(mark),
        _ => None,
    }
}

/// Rows as the bytes of a file.
pub struct Writer {
    bytes: zstd::stream::write::Encoder<'static, Vec<u8>>,
    raw: usize,
    rows: u64,
}

impl Writer {
    /// Of an empty file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn new() -> Result<Self, Error> {
        let bytes = zstd::stream::write::Encoder::new(MAGIC.to_vec(), LEVEL).map_err(io)?;
        Ok(Self { bytes, raw: 0, rows: 0 })
    }

    /// Adds a row.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn push(&mut self, key: &StoreKey, value: Option<&[u8]>) -> Result<(), Error> {
        use std::io::Write;
        let (kind, key): (u8, &[u8; 33]) = match key {
            StoreKey::Account(key) => (0, key),
            StoreKey::Row(key) => (1, key),
        };
        let mut head = [0u8; 38];
        head[0] = kind;
        head[1..34].copy_from_slice(key);
        head[34..].copy_from_slice(&value.map_or(GONE, |value| value.len() as u32).to_le_bytes());
        let value = value.unwrap_or_default();
        self.bytes.write_all(&head).and_then(|()| self.bytes.write_all(value)).map_err(io)?;
        self.raw += head.len() + value.len();
        self.rows += 1;
        Ok(())
    }

    /// Bytes of its rows, before compression.
    pub fn raw_bytes(&self) -> usize {
        self.raw
    }

    /// The file's bytes, and what a manifest says of it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(self, name: String) -> Result<(Vec<u8>, RowFile), Error> {
        let bytes = self.bytes.finish().map_err(io)?;
        let sha256 = Sha256::digest(&bytes).to_vec();
        Ok((bytes, RowFile { name, rows: self.rows, sha256 }))
    }
}

/// Whether a file's bytes are what was written.
///
/// # Errors
/// [`Error::Snapshot`] when they are not.
pub fn check(file: &RowFile, bytes: &[u8]) -> Result<(), Error> {
    let is_sound = bytes.starts_with(MAGIC) && Sha256::digest(bytes)[..] == file.sha256[..];
    if is_sound { Ok(()) } else { Err(Error::Snapshot(format!("{} is not what was written", file.name))) }
}

/// The rows of a file that was checked.
///
/// # Errors
/// [`Error::Snapshot`] when it ends in the middle of a row.
pub fn rows(file: &RowFile, bytes: &[u8]) -> Result<Vec<StoredRow>, Error> {
    let damaged = || Error::Snapshot(format!("{} cannot be read", file.name));
    let raw = zstd::stream::decode_all(bytes.get(MAGIC.len()..).ok_or_else(damaged)?).map_err(|_| damaged())?;
    let mut rows = Vec::with_capacity(file.rows as usize);
    let mut rest = &raw[..];
    while let Some((head, after)) = rest.split_first_chunk::<38>() {
        let key: [u8; 33] = head[1..34].try_into().map_err(|_| damaged())?;
        let key = match head[0] {
            0 => StoreKey::Account(key),
            1 => StoreKey::Row(key),
            _ => return Err(damaged()),
        };
        let length = u32::from_le_bytes(head[34..].try_into().map_err(|_| damaged())?);
        if length == GONE {
            rows.push((key, None));
            rest = after;
            continue;
        }
        let (value, after) = after.split_at_checked(length as usize).ok_or_else(damaged)?;
        rows.push((key, Some(value.to_vec())));
        rest = after;
    }
    if rest.is_empty() && rows.len() as u64 == file.rows { Ok(rows) } else { Err(damaged()) }
}

fn io(cause: std::io::Error) -> Error {
    Error::Io { what: "compress a snapshot".into(), cause }
}
