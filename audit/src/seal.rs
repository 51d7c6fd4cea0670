//! What a seal says, and what a tombstone says.

use std::fs::File;
use std::path::Path;

use sendtrail_schemas::secret::hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Error;
use crate::leaves::Range;

/// The type of a signed seal, and its version.
pub const FORMAT: &str = "application/vnd.sendtrail.seal.v1+json";

/// What is known of a file when it is sealed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedFile {
    /// Relative to the folder of the table or the export.
    pub path: String,
    /// Its rows.
    pub rows: u64,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of all of it, hex.
    pub sha256: String,
}

/// What a seal is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Subject {
    /// Rows of a day of a table: those of the ranges, in the order of partition and number.
    Day {
        /// The table: [`crate::Dataset::name`].
        dataset: String,
        /// The UTC day of receipt, `2026-05-01`.
        day: String,
        /// The version of the Delta table that was sealed.
        delta_version: u64,
        /// The numbers of its rows; none between first and last is missing.
        ranges: Vec<Range>,
    },
    /// The rows of an export, file by file, in their order.
    Export {
        /// What was exported.
        dataset: String,
        /// The export's identifier.
        export_id: String,
        /// The account whose it is; none for an operator's.
        account_id: Option<String>,
        /// What was asked for.
        request: serde_json::Value,
    },
}

/// What is signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// Its place in the chain, from 1; of an export, 1.
    pub number: u64,
    /// SHA-256 of the seal before it, hex; none of the first.
    pub previous: Option<String>,
    /// When it was made, RFC 3339.
    pub sealed_at: String,
    /// What of.
    pub subject: Subject,
    /// The version of the columns.
    pub schema_version: u32,
    /// Columns that are not hashed in the clear; see [`crate::Dataset::personal`].
    pub personal: Vec<String>,
    /// How many rows.
    pub rows: u64,
    /// The Merkle root over the rows, hex; none of files that are not Parquet.
    pub root: Option<String>,
    /// SHA-256 of the side file with the first eight bytes of each leaf, hex.
    pub leaves_sha256: Option<String>,
    /// The files as they were.
    pub files: Vec<SealedFile>,
}

/// A row of which nothing personal is left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErasedRow {
    /// Its partition.
    pub partition: u32,
    /// Its number there: the `seq` of an event, the `offset` of an attempt.
    pub seq: u64,
    /// What its personal fields and their salt were hashed to, hex.
    pub commitment: String,
}

/// A tombstone: what was erased on whose word, with which sealed rows still verify.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Erasure {
    /// Its number, from 1.
    pub number: u64,
    /// When, RFC 3339.
    pub erased_at: String,
    /// Why.
    pub reason: String,
    /// The rows of sealed days.
    pub rows: Vec<ErasedRow>,
}

impl Erasure {
    /// The type of a signed tombstone, and its version.
    pub const FORMAT: &'static str = "application/vnd.sendtrail.erasure.v1+json";
}

/// SHA-256 of a file, hex, and its size.
///
/// # Errors
/// [`Error::Io`].
pub fn hash_file(path: &Path) -> Result<(String, u64), Error> {
    let mut file = File::open(path).map_err(Error::io(format!("open {}", path.display())))?;
    let mut hash = Sha256::new();
    let bytes =
        std::io::copy(&mut file, &mut Writer(&mut hash)).map_err(Error::io(format!("read {}", path.display())))?;
    Ok((hex(&hash.finalize()), bytes))
}

struct Writer<'a>(&'a mut Sha256);

impl std::io::Write for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
