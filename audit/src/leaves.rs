//! The leaves of a tree, from rows in whatever order files have them.

use std::collections::HashMap;

use arrow::array::RecordBatch;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::Error;
use crate::dataset::Dataset;
use crate::encoding::Columns;
use crate::merkle::{Hash, Tree, leaf, root};
use crate::salts::{SALT_LENGTH, Salts};

/// Bytes of a leaf that the side file keeps, to tell which row it is that changed.
pub(crate) const PREFIX: usize = 8;

/// Rows of one seal, which bounds the memory that it takes: about 100 bytes a row. A day of more has several.
pub const MAX_ROWS: u64 = 8_000_000;

/// Numbers of a partition, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// The partition.
    pub partition: u32,
    /// The first.
    pub first: u64,
    /// The last.
    pub last: u64,
}

impl Range {
    /// How many numbers.
    pub fn rows(&self) -> u64 {
        (self.last - self.first).saturating_add(1)
    }

    /// How many numbers ranges have that are in order, do not overlap, and have no more rows than a seal may have.
    pub fn count(ranges: &[Self]) -> Option<u64> {
        let mut rows = 0u64;
        for (at, range) in ranges.iter().enumerate() {
            let before = at.checked_sub(1).map(|before| ranges[before]);
            let follows = before.is_none_or(|before| (before.partition, before.last) < (range.partition, range.first));
            if range.first > range.last || !follows {
                return None;
            }
            rows = rows.saturating_add(range.rows());
        }
        (rows <= MAX_ROWS).then_some(rows)
    }
}

/// Commitments of rows that were erased, by partition and number.
pub type Erased = HashMap<(u32, u64), Hash>;

/// Where the salts of rows come from.
pub enum Source<'a> {
    /// They are made.
    Made(&'a mut Salts, &'a mut dyn FnMut() -> [u8; SALT_LENGTH]),
    /// They are there, but for what was erased.
    Kept(&'a Salts, &'a Erased),
}

/// What is wrong with a row, so that it has no leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// It is there twice.
    Twice,
    /// Its salt is gone, and nothing says that it was erased.
    NoSalt,
    /// It was erased, and yet holds something personal.
    NotErased,
}

/// Rows of a batch: which of them were of the ranges, and what was wrong.
#[derive(Debug, Default)]
pub struct Taken {
    /// Rows of none of the ranges: partition and number.
    pub outside: Vec<(u32, u64)>,
    /// Rows that are wrong.
    pub flaws: Vec<((u32, u64), Flaw)>,
}

/// The leaves of ranges.
pub struct Leaves {
    dataset: Dataset,
    /// Each range, and the place of its first leaf; in the order of partition and number.
    ranges: Vec<(Range, usize)>,
    hashes: Vec<Hash>,
    there: Vec<bool>,
    personal: Vec<String>,
    plain_bytes: Vec<u8>,
    personal_bytes: Vec<u8>,
}

impl Leaves {
    /// Of ranges that do not overlap, with these columns hashed apart.
    pub fn new(dataset: Dataset, ranges: &[Range], personal: &[String]) -> Self {
        let mut ranges = ranges.to_vec();
        ranges.sort_unstable_by_key(|range| (range.partition, range.first));
        let mut rows = 0;
        let mut placed = Vec::with_capacity(ranges.len());
        for range in ranges {
            placed.push((range, rows));
            rows += range.rows() as usize;
        }
        Self {
            dataset,
            ranges: placed,
            hashes: vec![Hash::default(); rows],
            there: vec![false; rows],
            personal: personal.to_vec(),
            plain_bytes: Vec::new(),
            personal_bytes: Vec::new(),
        }
    }

    fn place(&self, partition: u32, seq: u64) -> Option<usize> {
        let after = self.ranges.partition_point(|(range, _)| (range.partition, range.first) <= (partition, seq));
        let (range, place) = self.ranges.get(after.checked_sub(1)?)?;
        (range.partition == partition && seq <= range.last).then(|| place + (seq - range.first) as usize)
    }

    fn name(&self, place: usize) -> (u32, u64) {
        let after = self.ranges.partition_point(|(_, first)| *first <= place);
        let (range, first) = self.ranges[after - 1];
        (range.partition, range.first + (place - first) as u64)
    }

    /// Takes rows.
    ///
    /// # Errors
    /// [`Error::Malformed`]: they lack a column that every row has.
    pub fn take(&mut self, batch: &RecordBatch, source: &mut Source<'_>) -> Result<Taken, Error> {
        let columns = Columns::of(&batch.schema(), &self.personal);
        let places = self.dataset.places(batch)?;
        let persons = self.dataset.persons(batch, &columns)?;
        let mut taken = Taken::default();
        for row in 0..batch.num_rows() {
            let of = places(row);
            let Some(place) = self.place(of.0, of.1) else {
                taken.outside.push(of);
                continue;
            };
            if std::mem::replace(&mut self.there[place], true) {
                taken.flaws.push((of, Flaw::Twice));
                continue;
            }
            self.plain_bytes.clear();
            self.personal_bytes.clear();
            columns.encode(batch, row, &mut self.plain_bytes, &mut self.personal_bytes)?;
            let commitment = match source {
                Source::Made(salts, make) => commit(salts.get_or_make(persons(row).key(), *make), &self.personal_bytes),
                Source::Kept(salts, erased) => match erased.get(&of) {
                    Some(commitment) => {
                        if !columns.is_bare(batch, row) {
                            taken.flaws.push((of, Flaw::NotErased));
                        }
                        *commitment
                    }
                    None => match salts.get(&persons(row).key()) {
                        Some(salt) => commit(salt, &self.personal_bytes),
                        None => {
                            taken.flaws.push((of, Flaw::NoSalt));
                            Hash::default()
                        }
                    },
                },
            };
            self.hashes[place] = leaf(&[&self.plain_bytes, &commitment]);
        }
        Ok(taken)
    }

    /// The numbers that no row had, as ranges.
    pub fn missing(&self) -> Vec<Range> {
        let mut missing: Vec<Range> = Vec::new();
        for place in (0..self.there.len()).filter(|&place| !self.there[place]) {
            let (partition, seq) = self.name(place);
            match missing.last_mut() {
                Some(range) if range.partition == partition && range.last + 1 == seq => range.last = seq,
                _ => missing.push(Range { partition, first: seq, last: seq }),
            }
        }
        missing
    }

    /// The first bytes of each leaf.
    pub fn prefixes(&self) -> Vec<u8> {
        self.hashes.iter().flat_map(|hash| hash[..PREFIX].iter().copied()).collect()
    }

    /// Rows that are there and whose leaves begin otherwise than a side file says.
    pub fn changed(&self, prefixes: &[u8]) -> Vec<(u32, u64)> {
        let differ = |&place: &usize| {
            self.there[place]
                && prefixes.get(place * PREFIX..(place + 1) * PREFIX) != Some(&self.hashes[place][..PREFIX])
        };
        (0..self.hashes.len()).filter(differ).map(|place| self.name(place)).collect()
    }

    /// How many rows the ranges have.
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Whether they have none.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// The root over all.
    pub fn root(self) -> Hash {
        root(self.hashes)
    }
}

/// What stands in a leaf for personal fields.
pub fn commit(salt: &[u8], personal: &[u8]) -> Hash {
    match Hmac::<Sha256>::new_from_slice(salt) {
        Ok(mut mac) => {
            mac.update(personal);
            mac.finalize().into_bytes().into()
        }
        Err(_) => unreachable!("HMAC takes keys of every length"),
    }
}

/// Hashes the rows of an export, file by file: everything in the clear.
#[derive(Debug, Default)]
pub struct ExportRows {
    tree: Tree,
    bytes: Vec<u8>,
}

impl ExportRows {
    /// After these rows.
    pub fn after(tree: Tree) -> Self {
        Self { tree, bytes: Vec::new() }
    }

    /// Adds rows.
    ///
    /// # Errors
    /// [`Error::Malformed`]: a column is of a type that has no encoding.
    pub fn take(&mut self, batch: &RecordBatch) -> Result<(), Error> {
        let columns = Columns::of(&batch.schema(), &[]);
        let mut nothing = Vec::new();
        for row in 0..batch.num_rows() {
            self.bytes.clear();
            nothing.clear();
            columns.encode(batch, row, &mut self.bytes, &mut nothing)?;
            self.tree.push(leaf(&[&self.bytes]));
        }
        Ok(())
    }

    /// The tree over all rows.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }
}
