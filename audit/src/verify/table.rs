//! A table of the archive against its seals.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::path::Path;

use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use roaring::RoaringTreemap;
use sendtrail_schemas::secret::hex;
use sha2::{Digest, Sha256};

use super::tombstones::Tombstones;
use super::{Fault, Options, Report, chain, each_batch};
use crate::Error;
use crate::dataset::Dataset;
use crate::folder::SealFolder;
use crate::leaves::{Erased, Flaw, Leaves, MAX_ROWS, Range, Source};
use crate::salts::Salts;
use crate::seal::{Seal, Subject};

/// Checks the files of a table, by the path of each below its folder, against the seals beside them. `committed` is the last
/// tombstone that a commit of the table names: later ones say nothing of its rows.
///
/// # Errors
/// [`Error::Io`]: the folder of seals cannot be read. All else is in the report.
pub fn verify_table(
    dataset: Dataset,
    folder: &Path,
    files: &[String],
    committed: u64,
    options: &Options,
) -> Result<Report, Error> {
    let mut report = Report { number: dataset.number(), ..Report::default() };
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
    let ranges: Vec<&[Range]> =
        chain.iter().map(|seal| of_day(dataset, seal).map(|(_, ranges)| ranges).unwrap_or_default()).collect();
    let mut tombstones = Tombstones::read(&mut report, &seals, committed, &ranges, MAX_ROWS)?;
    let mut by_day: BTreeMap<String, Vec<&String>> = BTreeMap::new();
    for file in files {
        let day = file.strip_prefix("dt=").and_then(|rest| rest.get(..10)).unwrap_or_default();
        by_day.entry(day.to_owned()).or_default().push(file);
    }
    let mut sealed: Vec<(Range, &str)> = Vec::new();
    for (at, seal) in chain.iter().enumerate() {
        let (day, ranges) = match of_day(dataset, seal) {
            Ok(of) => of,
            Err(why) => {
                report.add(Fault::Seal(why));
                continue;
            }
        };
        let before = report.fault_count;
        let files = by_day.get(day).map(Vec::as_slice).unwrap_or_default();
        let rows = Rows { dataset, folder, files, seals: &seals, erased: tombstones.of(at)? };
        rows.check(&mut report, seal, ranges)?;
        report.through = report.through.take().max(Some(day.to_owned()));
        sealed.extend(ranges.iter().map(|range| (*range, day)));
        if report.fault_count == before {
            report.seals += 1;
        }
    }
    sealed.sort_unstable_by_key(|(range, _)| (range.partition, range.first));
    for pair in sealed.windows(2) {
        let (one, other) = (pair[0].0, pair[1].0);
        if one.partition == other.partition && one.last >= other.first {
            let (partition, number) = (other.partition, dataset.number());
            report.add(Fault::Seal(format!("partition {partition}, {number} {}: two seals are about it", other.first)));
        }
    }
    check_places(&mut report, dataset, folder, &by_day, &sealed);
    Ok(report)
}

/// Whether each row stands on the day that it was sealed on, none that is not sealed yet is there twice, and where numbers have no
/// holes, these are what comes next.
fn check_places(
    report: &mut Report,
    dataset: Dataset,
    folder: &Path,
    by_day: &BTreeMap<String, Vec<&String>>,
    sealed: &[(Range, &str)],
) {
    let mut unsealed: BTreeMap<u32, RoaringTreemap> = BTreeMap::new();
    for (day, files) in by_day {
        for file in files {
            report.files += 1;
            let read = each_place(dataset, &folder.join(file), |partition, number| {
                let after = sealed.partition_point(|(range, _)| (range.partition, range.first) <= (partition, number));
                let within = after.checked_sub(1).map(|at| sealed[at]);
                match within.filter(|(range, _)| range.partition == partition && number <= range.last) {
                    Some((_, of)) if of != day => report.add(Fault::Misplaced(partition, number)),
                    Some(_) => {}
                    None if !unsealed.entry(partition).or_default().insert(number) => {
                        report.add(Fault::Twice(partition, number));
                    }
                    None => {}
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
    for (partition, numbers) in unsealed {
        let (Some(first), Some(last)) = (numbers.min(), numbers.max()) else { continue };
        report.unsealed += numbers.len();
        let range = Range { partition, first, last };
        let begins = sealed.iter().rev().find(|(sealed, _)| sealed.partition == partition);
        let follows = begins.is_none_or(|(sealed, _)| first == sealed.last.saturating_add(1));
        if dataset.is_dense() && (range.rows() != numbers.len() || !follows) {
            report.add(Fault::Unsealed(range, numbers.len()));
        }
    }
}

/// The partition and the number of each row of a file.
fn each_place(dataset: Dataset, path: &Path, mut take: impl FnMut(u32, u64)) -> Result<(), Error> {
    let broken = |cause| Error::Parquet { path: path.to_owned(), cause };
    let file = File::open(path).map_err(Error::io(format!("open {}", path.display())))?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).map_err(broken)?;
    let columns = ProjectionMask::columns(reader.parquet_schema(), ["partition", dataset.number()]);
    for batch in reader.with_projection(columns).build().map_err(broken)? {
        let batch = batch.map_err(|cause| broken(cause.into()))?;
        let places = dataset.places(&batch)?;
        (0..batch.num_rows()).map(places).for_each(|(partition, number)| take(partition, number));
    }
    Ok(())
}

/// The day that a seal is of, and the rows of it; or what is wrong with the seal.
fn of_day(dataset: Dataset, seal: &Seal) -> Result<(&str, &[Range]), String> {
    let Subject::Day { day, ranges, dataset: of, .. } = &seal.subject else {
        return Err(format!("seal {} is not one of a day", seal.number));
    };
    if of != dataset.name() {
        return Err(format!("seal {} is one of {of}, and not of {}", seal.number, dataset.name()));
    }
    if Range::count(ranges) != Some(seal.rows) {
        return Err(format!("seal {}: its ranges do not have {} rows", seal.number, seal.rows));
    }
    Ok((day.as_str(), ranges.as_slice()))
}

/// The files of a day, and what is known of its rows.
struct Rows<'a> {
    dataset: Dataset,
    folder: &'a Path,
    files: &'a [&'a String],
    seals: &'a SealFolder,
    erased: &'a Erased,
}

impl Rows<'_> {
    /// Compares those of a seal.
    fn check(&self, report: &mut Report, seal: &Seal, ranges: &[Range]) -> Result<(), Error> {
        let salts = self.seals.salts(seal.number).unwrap_or_else(|error| {
            report.add(Fault::Seal(format!("seal {}: its salts cannot be read: {error}", seal.number)));
            Salts::default()
        });
        let mut leaves = Leaves::new(self.dataset, ranges, &seal.personal);
        let before = report.fault_count;
        for file in self.files {
            let read = each_batch(&self.folder.join(file), |batch| {
                let taken = leaves.take(batch, &mut Source::Kept(&salts, self.erased))?;
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
        report.erased += self.erased.keys().filter(|row| of_seal(row)).count() as u64;
        let missing = leaves.missing();
        for range in &missing {
            report.add(Fault::Missing(*range));
        }
        let prefixes =
            self.seals.leaves(seal.number).ok().filter(|bytes| {
                seal.leaves_sha256.as_deref().is_some_and(|wanted| hex(&Sha256::digest(bytes)) == wanted)
            });
        let changed = prefixes.as_ref().map(|prefixes| leaves.changed(prefixes)).unwrap_or_default();
        let named = changed.len() + missing.len();
        let told: HashSet<(u32, u64)> = report
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
}
