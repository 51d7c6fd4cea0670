//! Commitments of erased rows, for some seals at once: an archive may have more of them than there is memory.

use std::collections::BTreeMap;

use sendtrail_schemas::secret::unhex;

use super::{Fault, Report};
use crate::Error;
use crate::envelope::PublicKey;
use crate::folder::SealFolder;
use crate::leaves::{Erased, Range};
use crate::seal::{ErasedRow, Erasure};

/// The tombstones whose rows a commit rewrote.
pub(super) struct Tombstones<'a> {
    folder: &'a SealFolder,
    keys: Vec<PublicKey>,
    /// Those that hold, by number, and between which numbers of each partition their rows are.
    all: Vec<(u64, Vec<Range>)>,
    /// The ranges of each seal, and how many rows of them were erased.
    seals: Vec<(&'a [Range], u64)>,
    /// How many commitments to have in memory, if a single seal has not more.
    most: u64,
    /// The seals whose commitments are in memory.
    loaded: std::ops::Range<usize>,
    erased: Erased,
}

impl<'a> Tombstones<'a> {
    /// Looks at each, and tells of those that do not hold. `committed`: the last one that a commit names; those after it came to
    /// nothing, or what they were written for is not over yet.
    pub(super) fn read(
        report: &mut Report,
        folder: &'a SealFolder,
        committed: u64,
        seals: &[&'a [Range]],
        most: u64,
    ) -> Result<Self, Error> {
        let mut tombstones = Self {
            folder,
            keys: report.keys.clone(),
            all: Vec::new(),
            seals: seals.iter().map(|ranges| (*ranges, 0)).collect(),
            most,
            loaded: 0..0,
            erased: Erased::new(),
        };
        let numbers = match folder.erasure_numbers() {
            Err(Error::Malformed(why)) => {
                report.add(Fault::Seal(why));
                return Ok(tombstones);
            }
            other => other?,
        };
        report.void = numbers.iter().filter(|number| **number > committed).count() as u64;
        let mut by_first: Vec<(Range, usize)> = Vec::new();
        for (at, ranges) in seals.iter().enumerate() {
            by_first.extend(ranges.iter().map(|range| (*range, at)));
        }
        by_first.sort_unstable_by_key(|(range, _)| (range.partition, range.first));
        for tombstone in folder.erasures(committed)? {
            let (number, envelope) = match tombstone {
                Err(Error::Malformed(why)) => {
                    report.add(Fault::Seal(why));
                    continue;
                }
                other => other?,
            };
            match envelope.open::<Erasure>(Erasure::FORMAT, &tombstones.keys) {
                Ok(erasure) => {
                    for row in &erasure.rows {
                        let (partition, seq) = (row.partition, row.seq);
                        let after = by_first.partition_point(|(of, _)| (of.partition, of.first) <= (partition, seq));
                        let within = after.checked_sub(1).map(|before| by_first[before]);
                        if let Some((_, at)) = within.filter(|(of, _)| of.partition == partition && seq <= of.last) {
                            tombstones.seals[at].1 += 1;
                        }
                    }
                    tombstones.all.push((number, bounds(&erasure.rows)));
                }
                Err(error) => report.add(Fault::Seal(format!("tombstone {number}: {error}"))),
            }
        }
        Ok(tombstones)
    }

    /// All commitments of a seal's rows, by its place among the seals, and perhaps some of others.
    pub(super) fn of(&mut self, at: usize) -> Result<&Erased, Error> {
        if !self.loaded.contains(&at) {
            self.load(at)?;
        }
        Ok(&self.erased)
    }

    /// Reads what there is of a seal, and of as many after it as there is room for.
    fn load(&mut self, from: usize) -> Result<(), Error> {
        // What is there goes first.
        self.erased = Erased::new();
        let (mut to, mut rows) = (from, 0u64);
        while let Some(&(_, more)) = self.seals.get(to)
            && (to == from || rows + more <= self.most)
        {
            (to, rows) = (to + 1, rows + more);
        }
        self.loaded = from..to;
        let wanted = union(self.seals[from..to].iter().flat_map(|(ranges, _)| ranges.iter().copied()).collect());
        let touches = |of: &Range| {
            let meets =
                |range: &Range| range.partition == of.partition && range.first <= of.last && of.first <= range.last;
            wanted.iter().any(meets)
        };
        let is_wanted = |row: &&ErasedRow| {
            let after = wanted.partition_point(|range| (range.partition, range.first) <= (row.partition, row.seq));
            let within = after.checked_sub(1).map(|before| wanted[before]);
            within.is_some_and(|range| range.partition == row.partition && row.seq <= range.last)
        };
        for (number, _) in self.all.iter().filter(|(_, bounds)| bounds.iter().any(touches)) {
            let erasure: Erasure = self.folder.erasure(*number)?.open(Erasure::FORMAT, &self.keys)?;
            let of = |row: &ErasedRow| unhex(&row.commitment).map(|commitment| ((row.partition, row.seq), commitment));
            self.erased.extend(erasure.rows.iter().filter(is_wanted).filter_map(of));
        }
        Ok(())
    }
}

/// The first and the last number of each partition.
fn bounds(rows: &[ErasedRow]) -> Vec<Range> {
    let mut bounds: BTreeMap<u32, Range> = BTreeMap::new();
    for row in rows {
        let (partition, seq) = (row.partition, row.seq);
        let range = bounds.entry(partition).or_insert(Range { partition, first: seq, last: seq });
        (range.first, range.last) = (range.first.min(seq), range.last.max(seq));
    }
    bounds.into_values().collect()
}

/// Ranges in order that do not overlap, also where seals are about the same rows.
fn union(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable_by_key(|range| (range.partition, range.first));
    let mut union: Vec<Range> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match union.last_mut() {
            Some(last) if last.partition == range.partition && range.first <= last.last => {
                last.last = last.last.max(range.last);
            }
            _ => union.push(range),
        }
    }
    union
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use sendtrail_schemas::secret::hex;
    use tempfile::TempDir;

    use super::*;
    use crate::envelope::SealKey;

    fn range(partition: u32, first: u64, last: u64) -> Range {
        Range { partition, first, last }
    }

    #[test]
    fn each_seal_has_all_of_its_rows_and_few_are_in_memory_at_once() {
        let temporary = TempDir::new().unwrap();
        let (folder, key) = (SealFolder::of(temporary.path()), SealKey::new(&[3; 32]));
        let tombstones: [&[(u32, u64)]; 5] = [
            &[(0, 1), (0, 12), (1, 3)],
            &[(0, 2), (0, 3)],
            &[(0, 25), (1, 4)],
            // Of no seal; and one that another tombstone has, too: the later one counts.
            &[(0, 99), (0, 12)],
            &[(0, 11)],
        ];
        for (number, places) in (1u64..).zip(tombstones) {
            let row =
                |&(partition, seq): &(u32, u64)| ErasedRow { partition, seq, commitment: hex(&[number as u8; 32]) };
            let rows = places.iter().map(row).collect();
            let erasure = Erasure { number, erased_at: String::new(), reason: String::new(), rows };
            folder.write_erasure(number, &key.sign(Erasure::FORMAT, &erasure).unwrap()).unwrap();
        }
        // The last two are about the same rows.
        let days = [
            vec![range(0, 0, 9), range(1, 0, 3)],
            vec![range(0, 10, 19)],
            vec![range(1, 100, 200)],
            vec![range(0, 20, 29), range(1, 4, 4)],
            vec![range(0, 22, 25)],
        ];
        let seals: Vec<&[Range]> = days.iter().map(Vec::as_slice).collect();
        let mut report = Report { keys: vec![key.public()], ..Report::default() };
        let mut read = Tombstones::read(&mut report, &folder, 4, &seals, 3).unwrap();
        assert_eq!((report.void, report.fault_count), (1, 0));
        let rows: [&[((u32, u64), u8)]; 5] = [
            &[((0, 1), 1), ((0, 2), 2), ((0, 3), 2), ((1, 3), 1)],
            &[((0, 12), 4)],
            &[],
            &[((0, 25), 3), ((1, 4), 3)],
            &[((0, 25), 3)],
        ];
        for (at, expected) in rows.into_iter().enumerate() {
            let erased = read.of(at).unwrap();
            // The first has more than there is to be.
            assert!(erased.len() <= if at == 0 { 4 } else { 3 }, "{at}: {erased:?}");
            let of_seal = |(place, _): &(&(u32, u64), &[u8; 32])| {
                let within =
                    |range: &Range| range.partition == place.0 && (range.first..=range.last).contains(&place.1);
                seals[at].iter().any(within)
            };
            let own = erased.iter().filter(of_seal).map(|(place, commitment)| (*place, commitment[0]));
            assert_eq!(own.collect::<BTreeSet<_>>(), expected.iter().copied().collect(), "{at}");
        }
    }
}
