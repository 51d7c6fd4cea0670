//! A table of the archive against its seals.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::path::Path;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use sendtrail_schemas::secret::{hex, unhex};
use sha2::{Digest, Sha256};

use super::{Fault, Options, Report, chain, each_batch};
use crate::Error;
use crate::folder::SealFolder;
use crate::leaves::{Erased, Flaw, Leaves, Range, Source};
use crate::salts::Salts;
use crate::seal::{Erasure, Seal, Subject};

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
