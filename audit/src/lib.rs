//! Seals: what the archive and exports hold, signed, so that anybody can check offline that nobody changed it since.
//!
//! The format is specified in `docs/AUDIT.md`; nothing here reads a clock, a network or randomness.

mod commitments;
mod dataset;
mod encoding;
mod envelope;
mod erasing;
mod folder;
mod leaves;
mod merkle;
mod places;
mod salts;
mod seal;
mod verify;

use std::path::PathBuf;

pub use dataset::Dataset;
pub use encoding::Columns;
pub use envelope::{Envelope, PublicKey, SealKey};
pub use erasing::{Chosen, Sealed};
pub use folder::{SEALS, SealFolder, put_durably};
pub use leaves::{Erased, ExportRows, Flaw, Leaves, MAX_ROWS, Range, Source, Taken};
pub use merkle::{Hash, Tree, root};
pub use places::Places;
pub use salts::{SALT_LENGTH, Salts, SubjectKey, subject_key};
pub use seal::{ErasedRow, Erasure, FORMAT, Seal, SealedFile, Subject, hash_file};
pub use verify::{Fault, Options, Report, verify_export, verify_table};

/// What goes wrong here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("{what}: {cause}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        cause: std::io::Error,
    },
    /// A Parquet file cannot be read.
    #[error("{path}: {cause}")]
    Parquet {
        /// Which.
        path: PathBuf,
        /// Why.
        cause: parquet::errors::ParquetError,
    },
    /// Something is not in the form that `docs/AUDIT.md` gives it.
    #[error("{0}")]
    Malformed(String),
    /// A signature does not hold.
    #[error("{0}")]
    Signature(String),
}

impl Error {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |cause| Self::Io { what, cause }
    }
}
