//! The check of a folder against its seals, offline.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::path::Path;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use sendtrail_schemas::secret::hex;
use sha2::{Digest, Sha256};

use crate::Error;
use crate::envelope::{Envelope, PublicKey};
use crate::folder::SealFolder;
use crate::leaves::{Erased, ExportRows, Flaw, Leaves, Range, Source};
use crate::salts::Salts;
use crate::seal::{Erasure, FORMAT, Seal, Subject, hash_file, unhex};

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
    /// Rows that are not sealed yet are not what comes after those that are: numbers that are missing, or there twice.
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

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSeals => f.write_str("there are no seals"),
            Self::SealsMissing(first, last) if first == last => write!(f, "seal {first} is missing"),
            Self::SealsMissing(first, last) => write!(f, "seals {first} to {last} are missing"),
            Self::Misplaced(partition, seq) => {
                write!(
                    f,
                    "partition {partition}, seq {seq}: the row stands on another day than the one it was sealed on"
                )
            }
            Self::Unsealed(Range { partition, first, last }, rows) => write!(
                f,
                "partition {partition}: there are {rows} rows that are not sealed yet, numbered from {first} to {last}: some are \
                 missing, or there twice"
            ),
            Self::Chain(number, why) => write!(f, "seal {number}: {why}"),
            Self::Seal(what) | Self::File(what) | Self::FileChanged(what) => f.write_str(what),
            Self::Missing(Range { partition, first, last }) if first == last => {
                write!(f, "partition {partition}, seq {first}: the row is missing")
            }
            Self::Missing(Range { partition, first, last }) => {
                write!(f, "partition {partition}, seq {first} to {last}: {} rows are missing", last - first + 1)
            }
            Self::Twice(partition, seq) => write!(f, "partition {partition}, seq {seq}: the row is there twice"),
            Self::Changed(partition, seq) => write!(f, "partition {partition}, seq {seq}: the row was changed"),
            Self::NoSalt(partition, seq) => {
                write!(
                    f,
                    "partition {partition}, seq {seq}: its recipient was changed, or its salt is gone without a tombstone"
                )
            }
            Self::NotErased(partition, seq) => {
                write!(f, "partition {partition}, seq {seq}: it was erased, and holds personal fields again")
            }
            Self::Root(number, why) => write!(f, "seal {number}: its rows are not as they were sealed; {why}"),
        }
    }
}

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct Report {
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

/// Checks the files of a table, by the path of each below its folder, against the seals beside them.
///
/// # Errors
/// [`Error::Io`]: the folder of seals cannot be read. All else is in the report.
pub fn verify_table(folder: &Path, files: &[String], options: &Options) -> Result<Report, Error> {
    let mut report = Report::default();
    let seals = SealFolder::of(folder);
    let envelopes = match seals.seals() {
        Ok(envelopes) => envelopes,
        Err(Error::Malformed(why)) => {
            report.add(Fault::Seal(why));
            return Ok(report);
        }
        Err(error) => return Err(error),
    };
    let chain = chain(&mut report, &envelopes, options);
    let erased = erased(&mut report, &seals)?;
    let mut by_day: BTreeMap<String, Vec<&String>> = BTreeMap::new();
    for file in files {
        let day = file.strip_prefix("dt=").and_then(|rest| rest.get(..10)).unwrap_or_default();
        by_day.entry(day.to_owned()).or_default().push(file);
    }
    let mut sealed: Vec<(Range, &str)> = Vec::new();
    for seal in &chain {
        let Subject::Day { day, ranges, .. } = &seal.subject else {
            report.add(Fault::Seal(format!("seal {} is not one of a day", seal.number)));
            continue;
        };
        if Range::count(ranges) != Some(seal.rows) {
            report.add(Fault::Seal(format!("seal {}: its ranges do not have {} rows", seal.number, seal.rows)));
            continue;
        }
        let before = report.fault_count;
        let files = by_day.get(day).map(Vec::as_slice).unwrap_or_default();
        check_rows(&mut report, folder, files, &seals, seal, ranges, &erased)?;
        sealed.extend(ranges.iter().map(|range| (*range, day.as_str())));
        if report.fault_count == before {
            report.seals += 1;
        }
    }
    sealed.sort_unstable_by_key(|(range, _)| (range.partition, range.first));
    for pair in sealed.windows(2) {
        let (one, other) = (pair[0].0, pair[1].0);
        if one.partition == other.partition && one.last >= other.first {
            report.add(Fault::Seal(format!(
                "partition {}, seq {}: two seals are about it",
                other.partition, other.first
            )));
        }
    }
    check_places(&mut report, folder, &by_day, &sealed);
    Ok(report)
}

/// Whether each row stands on the day that it was sealed on, and what is not sealed yet is what comes next, without a hole.
fn check_places(report: &mut Report, folder: &Path, by_day: &BTreeMap<String, Vec<&String>>, sealed: &[(Range, &str)]) {
    let mut unsealed: BTreeMap<u32, (Range, u64)> = BTreeMap::new();
    for (day, files) in by_day {
        for file in files {
            report.files += 1;
            let read = each_number(&folder.join(file), |partition, seq| {
                let after = sealed.partition_point(|(range, _)| (range.partition, range.first) <= (partition, seq));
                let within = after.checked_sub(1).map(|at| sealed[at]);
                match within.filter(|(range, _)| range.partition == partition && seq <= range.last) {
                    Some((_, of)) if of != day => report.add(Fault::Misplaced(partition, seq)),
                    Some(_) => {}
                    None => {
                        let one = Range { partition, first: seq, last: seq };
                        let (range, rows) = unsealed.entry(partition).or_insert((one, 0));
                        (range.first, range.last) = (range.first.min(seq), range.last.max(seq));
                        *rows += 1;
                    }
                }
            });
            // A file of a sealed day was told already.
            if let Err(error) = read
                && !report
                    .faults
                    .iter()
                    .any(|fault| matches!(fault, Fault::File(why) if why.starts_with(file.as_str())))
            {
                report.add(Fault::File(format!("{file} cannot be read: {error}")));
            }
        }
    }
    for (range, rows) in unsealed.into_values() {
        report.unsealed += rows;
        let begins = sealed.iter().rev().find(|(sealed, _)| sealed.partition == range.partition);
        let follows = begins.is_none_or(|(sealed, _)| range.first == sealed.last.saturating_add(1));
        if range.rows() != rows || !follows {
            report.add(Fault::Unsealed(range, rows));
        }
    }
}

/// The partition and the number of each row of a file.
fn each_number(path: &Path, mut take: impl FnMut(u32, u64)) -> Result<(), Error> {
    let broken = |cause| Error::Parquet { path: path.to_owned(), cause };
    let file = File::open(path).map_err(Error::io(format!("open {}", path.display())))?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).map_err(broken)?;
    let columns = ProjectionMask::columns(reader.parquet_schema(), ["partition", "seq"]);
    for batch in reader.with_projection(columns).build().map_err(broken)? {
        let batch = batch.map_err(|cause| broken(cause.into()))?;
        let numbers = |name: &str| {
            let column = batch.column_by_name(name).and_then(|column| column.as_primitive_opt::<Int64Type>());
            column.ok_or_else(|| Error::Malformed(format!("{} has no column {name}", path.display())))
        };
        for (partition, seq) in numbers("partition")?.values().iter().zip(numbers("seq")?.values()) {
            take(*partition as u32, *seq as u64);
        }
    }
    Ok(())
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

fn erased(report: &mut Report, folder: &SealFolder) -> Result<Erased, Error> {
    let mut erased = Erased::new();
    let envelopes = match folder.erasures() {
        Err(Error::Malformed(why)) => {
            report.add(Fault::Seal(why));
            Vec::new()
        }
        other => other?,
    };
    for (number, envelope) in envelopes {
        match envelope.open::<Erasure>(Erasure::FORMAT, &report.keys) {
            Ok(erasure) => erased.extend(
                erasure
                    .rows
                    .iter()
                    .filter_map(|row| unhex(&row.commitment).map(|commitment| ((row.partition, row.seq), commitment))),
            ),
            Err(error) => report.add(Fault::Seal(format!("tombstone {number}: {error}"))),
        }
    }
    Ok(erased)
}

/// Compares a seal's rows.
fn check_rows(
    report: &mut Report,
    folder: &Path,
    files: &[&String],
    seals: &SealFolder,
    seal: &Seal,
    ranges: &[Range],
    erased: &Erased,
) -> Result<(), Error> {
    let salts = seals.salts(seal.number).unwrap_or_else(|error| {
        report.add(Fault::Seal(format!("seal {}: its salts cannot be read: {error}", seal.number)));
        Salts::default()
    });
    let mut leaves = Leaves::new(ranges, &seal.personal);
    let before = report.fault_count;
    for file in files {
        let read = each_batch(&folder.join(file), |batch| {
            let taken = leaves.take(batch, &mut Source::Kept(&salts, erased))?;
            for ((partition, seq), flaw) in taken.flaws {
                report.add(match flaw {
                    Flaw::Twice => Fault::Twice(partition, seq),
                    Flaw::NoSalt => Fault::NoSalt(partition, seq),
                    Flaw::NotErased => Fault::NotErased(partition, seq),
                });
            }
            Ok(())
        });
        if let Err(error) = read {
            report.add(Fault::File(format!("{file} cannot be read: {error}")));
        }
    }
    report.rows += leaves.len() as u64;
    let of_seal = |(partition, seq): &(u32, u64)| {
        ranges.iter().any(|range| range.partition == *partition && (range.first..=range.last).contains(seq))
    };
    report.erased += erased.keys().filter(|row| of_seal(row)).count() as u64;
    let missing = leaves.missing();
    for range in &missing {
        report.add(Fault::Missing(*range));
    }
    let prefixes = seals
        .leaves(seal.number)
        .ok()
        .filter(|bytes| seal.leaves_sha256.as_deref().is_some_and(|wanted| hex(&Sha256::digest(bytes)) == wanted));
    let changed = prefixes.as_ref().map(|prefixes| leaves.changed(prefixes)).unwrap_or_default();
    let named = changed.len() + missing.len();
    let told: std::collections::HashSet<(u32, u64)> = report
        .faults
        .iter()
        .filter_map(|fault| match fault {
            Fault::NoSalt(partition, seq) => Some((*partition, *seq)),
            _ => None,
        })
        .collect();
    changed.into_iter().filter(|row| !told.contains(row)).for_each(|(partition, seq)| {
        report.add(Fault::Changed(partition, seq));
    });
    if seal.root.as_deref() != Some(&hex(&leaves.root())) && (named == 0 || report.fault_count == before) {
        let why = match prefixes {
            Some(_) => "its root is of other rows",
            None => "which ones cannot be told, since its side file is missing or changed",
        };
        report.add(Fault::Root(seal.number, why.into()));
    }
    Ok(())
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

/// Checks the files of an export against its seal.
///
/// # Errors
/// [`Error::Io`]: there is no seal to be read.
pub fn verify_export(folder: &Path, options: &Options) -> Result<Report, Error> {
    let mut report = Report::default();
    let path = folder.join("seal.json");
    let bytes = std::fs::read(&path).map_err(Error::io(format!("read {}", path.display())))?;
    let envelope: Envelope = match serde_json::from_slice(&bytes) {
        Ok(envelope) => envelope,
        Err(cause) => {
            report.add(Fault::Seal(format!("{}: {cause}", path.display())));
            return Ok(report);
        }
    };
    let Some(seal) = chain(&mut report, &[(1, envelope)], options).pop() else { return Ok(report) };
    if !matches!(seal.subject, Subject::Export { .. }) {
        report.add(Fault::Seal("seal.json is not the seal of an export".into()));
        return Ok(report);
    }
    report.subject = Some(seal.subject.clone());
    for entry in std::fs::read_dir(folder).map_err(Error::io(format!("list {}", folder.display())))? {
        let name = entry.map_err(Error::io(format!("list {}", folder.display())))?.file_name();
        let known = name == "seal.json" || name == "job.json" || seal.files.iter().any(|file| name == *file.path);
        if !known {
            report.add(Fault::FileChanged(format!("{} was not sealed", name.to_string_lossy())));
        }
    }
    let mut rows = ExportRows::default();
    for file in seal.files.iter().filter(|file| !is_plain(&file.path)) {
        report.add(Fault::Seal(format!("{:?} is no name of a file beside the seal", file.path)));
    }
    for file in seal.files.iter().filter(|file| is_plain(&file.path)) {
        report.files += 1;
        let path = folder.join(&file.path);
        match hash_file(&path) {
            Ok((hash, size)) if (&hash, size) == (&file.sha256, file.bytes) => {}
            Ok(_) => report.add(Fault::FileChanged(format!("{} is not the file that was sealed", file.path))),
            Err(error) => report.add(Fault::File(error.to_string())),
        }
        if seal.root.is_some()
            && let Err(error) = each_batch(&path, |batch| rows.take(batch))
        {
            report.add(Fault::File(format!("{} cannot be read: {error}", file.path)));
        }
    }
    report.rows = seal.rows;
    if let Some(wanted) = &seal.root {
        let count = rows.tree().len();
        if *wanted != hex(&rows.tree().root()) {
            report.add(Fault::Root(1, format!("it has {} rows, the files {count}", seal.rows)));
        }
    }
    if report.holds() {
        report.seals = 1;
    }
    Ok(report)
}

/// Whether a path is the name of a file beside the seal.
fn is_plain(path: &str) -> bool {
    let mut parts = Path::new(path).components();
    matches!((parts.next(), parts.next()), (Some(std::path::Component::Normal(name)), None) if name == path)
}
