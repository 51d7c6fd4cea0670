//! The check of a folder against its seals, offline.

mod export;
mod table;
mod tombstones;

use std::fs::File;
use std::path::Path;

use arrow::array::RecordBatch;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use sendtrail_schemas::secret::hex;

pub use export::verify_export;
pub use table::verify_table;

use crate::Error;
use crate::envelope::{Envelope, PublicKey};
use crate::leaves::Range;
use crate::seal::{FORMAT, Seal, Subject};

/// Faults that are told one by one; of more, only how many.
const TOLD: usize = 1_000;

/// What somebody who checks knows from elsewhere.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The keys that may have signed, of now and of before. Without any, the one that the first seal names is taken, and
    /// that proves only that nothing was changed by somebody without it.
    pub keys: Vec<PublicKey>,
    /// A seal that was seen before: its number and hash (hex). Without one, seals that were cut off the end are not missed.
    pub seen: Option<(u64, String)>,
}

/// Something that is not as it was sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// There is no seal at all.
    NoSeals,
    /// Seals are missing: the first and the last number.
    SealsMissing(u64, u64),
    /// A row stands on another day than the one that it was sealed on.
    Misplaced(u32, u64),
    /// Rows that are not sealed yet are not what comes after those that are: numbers are missing.
    Unsealed(Range, u64),
    /// A seal does not follow from the one before it, or is not the one that was seen.
    Chain(u64, String),
    /// A seal or tombstone cannot be read, or its signature does not hold.
    Seal(String),
    /// A file cannot be read.
    File(String),
    /// A file of an export is not as it was.
    FileChanged(String),
    /// Rows are missing.
    Missing(Range),
    /// A row is there twice.
    Twice(u32, u64),
    /// A row is not as it was.
    Changed(u32, u64),
    /// A row's salt is gone, and nothing says that it was erased.
    NoSalt(u32, u64),
    /// A row was erased, and yet holds something personal.
    NotErased(u32, u64),
    /// Rows of a seal are not as they were, and it cannot be told which.
    Root(u64, String),
}

impl Fault {
    /// In words. `number`: the column that rows are named by, besides their partition.
    pub fn told(&self, number: &str) -> String {
        let at = |partition: &u32, row: &u64| format!("partition {partition}, {number} {row}");
        match self {
            Self::NoSeals => "there are no seals".into(),
            Self::SealsMissing(first, last) if first == last => format!("seal {first} is missing"),
            Self::SealsMissing(first, last) => format!("seals {first} to {last} are missing"),
            Self::Misplaced(partition, row) => {
                let at = at(partition, row);
                format!("{at}: the row stands on another day than the one it was sealed on")
            }
            Self::Unsealed(Range { partition, first, last }, rows) => format!(
                "partition {partition}: there are {rows} rows that are not sealed yet, numbered from {first} to {last}: some are \
                 missing"
            ),
            Self::Chain(number, why) => format!("seal {number}: {why}"),
            Self::Seal(what) | Self::File(what) | Self::FileChanged(what) => what.clone(),
            Self::Missing(Range { partition, first, last }) if first == last => {
                format!("{}: the row is missing", at(partition, first))
            }
            Self::Missing(Range { partition, first, last }) => {
                format!("{} to {last}: {} rows are missing", at(partition, first), last - first + 1)
            }
            Self::Twice(partition, row) => format!("{}: the row is there twice", at(partition, row)),
            Self::Changed(partition, row) => format!("{}: the row was changed", at(partition, row)),
            Self::NoSalt(partition, row) => {
                let at = at(partition, row);
                format!("{at}: whom it is of was changed, or its salt is gone without a tombstone")
            }
            Self::NotErased(partition, row) => {
                format!("{}: it was erased, and holds personal fields again", at(partition, row))
            }
            Self::Root(number, why) => format!("seal {number}: its rows are not as they were sealed; {why}"),
        }
    }
}

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The column that rows are named by in the faults, besides their partition.
    pub number: &'static str,
    /// Seals that hold.
    pub seals: u64,
    /// Rows that were compared.
    pub rows: u64,
    /// Of these, erased ones.
    pub erased: u64,
    /// Files that were read.
    pub files: u64,
    /// Rows of the table that no seal is about, as it should be of the last days.
    pub unsealed: u64,
    /// Tombstones whose rows no commit rewrote.
    pub void: u64,
    /// The last day that is sealed, `2026-05-01`.
    pub through: Option<String>,
    /// The last seal: its number and hash, to be noted by whoever checks again later.
    pub last: Option<(u64, String)>,
    /// What it is, if it is an export.
    pub subject: Option<Subject>,
    /// The keys that signatures were checked with.
    pub keys: Vec<PublicKey>,
    /// What is wrong, the first of it.
    pub faults: Vec<Fault>,
    /// How much is wrong.
    pub fault_count: u64,
}

impl Report {
    fn add(&mut self, fault: Fault) {
        self.fault_count += 1;
        if self.faults.len() < TOLD {
            self.faults.push(fault);
        }
    }

    /// Whether everything is as it was sealed.
    pub fn holds(&self) -> bool {
        self.fault_count == 0
    }
}

/// The seals, as far as their signatures and their order hold.
fn chain(report: &mut Report, envelopes: &[(u64, Envelope)], options: &Options) -> Vec<Seal> {
    let Some((_, first)) = envelopes.first() else {
        report.add(Fault::NoSeals);
        return Vec::new();
    };
    report.keys = if options.keys.is_empty() { first.key().into_iter().collect() } else { options.keys.clone() };
    let mut seals = Vec::new();
    let (mut next, mut previous) = (1, None);
    for (number, envelope) in envelopes {
        let gap = next != *number;
        if next < *number {
            report.add(Fault::SealsMissing(next, number - 1));
        }
        next = number + 1;
        let hash = envelope.hash().map(|hash| hex(&hash));
        match (envelope.open::<Seal>(FORMAT, &report.keys), hash) {
            (Ok(seal), Ok(hash)) => {
                if seal.number != *number {
                    report.add(Fault::Chain(*number, format!("it is the one of number {}", seal.number)));
                } else if !gap && seal.previous != previous {
                    report.add(Fault::Chain(*number, "it does not follow the seal before it".into()));
                }
                if options.seen.as_ref().is_some_and(|(seen, was)| seen == number && *was != hash) {
                    report.add(Fault::Chain(*number, "it is not the one that was seen before".into()));
                }
                report.last = Some((*number, hash.clone()));
                previous = Some(hash);
                seals.push(seal);
            }
            (Err(error), _) | (_, Err(error)) => {
                report.add(Fault::Seal(format!("seal {number}: {error}")));
                previous = None;
            }
        }
    }
    if let Some((seen, _)) = options.seen.as_ref().filter(|(seen, _)| next <= *seen) {
        report.add(Fault::SealsMissing(next, *seen));
    }
    seals
}

/// Reads a file, some thousand rows at once.
///
/// # Errors
/// [`Error::Io`], [`Error::Parquet`], and those of `take`.
pub(crate) fn each_batch(path: &Path, mut take: impl FnMut(&RecordBatch) -> Result<(), Error>) -> Result<(), Error> {
    let broken = |cause| Error::Parquet { path: path.to_owned(), cause };
    let file = File::open(path).map_err(Error::io(format!("open {}", path.display())))?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).map_err(broken)?;
    for batch in reader.with_batch_size(8_192).build().map_err(broken)? {
        take(&batch.map_err(|cause| broken(cause.into()))?)?;
    }
    Ok(())
}
