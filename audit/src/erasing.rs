//! What the erasure of rows takes of sealed days: commitments first, salts last.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use arrow::array::RecordBatch;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::commitments::Commitments;
use crate::dataset::Dataset;
use crate::encoding::Columns;
use crate::envelope::SealKey;
use crate::folder::SealFolder;
use crate::leaves::{Range, commit};
use crate::places::Places;
use crate::salts::{Salts, SubjectKey};
use crate::seal::{Erasure, FORMAT, Seal, Subject};

/// Which row of a batch is to be erased.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chosen {
    /// Not this one.
    No,
    /// Not this one, and its recipient is somebody of whom others are: their salt must stay.
    Keeps,
    /// This one.
    Yes,
}

/// The sealed days that an erasure touches.
pub struct Sealed {
    dataset: Dataset,
    folder: SealFolder,
    /// The ranges of each seal, by partition and first number.
    ranges: BTreeMap<(u32, u64), (Range, u64)>,
    personal: HashMap<u64, Vec<String>>,
    salts: HashMap<u64, Salts>,
    /// Rows that have a tombstone already.
    erased: Places,
    last_tombstone: u64,
    commitments: Commitments,
    /// Whose salts go, and whose must stay, by seal.
    going: BTreeSet<(u64, SubjectKey)>,
    staying: HashSet<(u64, SubjectKey)>,
}

/// Salts that are to go once the rows are bare: it stands beside the tombstone until they are gone.
#[derive(Serialize, Deserialize)]
struct Going {
    salts: BTreeSet<(u64, SubjectKey)>,
}

impl Sealed {
    /// Reads the seals of some days, `2026-05-01`, and every tombstone. Seals of before may be signed by a key of before.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Malformed`], [`Error::Signature`].
    pub fn read(dataset: Dataset, folder: SealFolder, key: &SealKey, days: &HashSet<String>) -> Result<Self, Error> {
        let mut sealed = Self {
            dataset,
            ranges: BTreeMap::new(),
            personal: HashMap::new(),
            salts: HashMap::new(),
            erased: Places::default(),
            last_tombstone: 0,
            commitments: Commitments::default(),
            going: BTreeSet::new(),
            staying: HashSet::new(),
            folder,
        };
        for (number, envelope) in sealed.folder.seals()? {
            let seal: Seal = envelope.open(FORMAT, &[envelope.key().unwrap_or(key.public())])?;
            let Subject::Day { day, ranges, .. } = &seal.subject else { continue };
            if days.contains(day) {
                let by_first = ranges.iter().map(|range| ((range.partition, range.first), (*range, number)));
                sealed.ranges.extend(by_first);
                sealed.personal.insert(number, seal.personal);
            }
        }
        let folder = sealed.folder.clone();
        for tombstone in folder.erasures(u64::MAX)? {
            let (number, envelope) = tombstone?;
            let erasure: Erasure = envelope.open(Erasure::FORMAT, &[envelope.key().unwrap_or(key.public())])?;
            let rows = erasure.rows.iter().map(|row| (row.partition, row.seq));
            let of_days: Vec<_> = rows.filter(|(partition, seq)| sealed.seal(*partition, *seq).is_some()).collect();
            sealed.erased.extend(of_days);
            sealed.last_tombstone = sealed.last_tombstone.max(number);
        }
        Ok(sealed)
    }

    fn seal(&self, partition: u32, seq: u64) -> Option<u64> {
        let (_, (range, number)) = self.ranges.range(..=(partition, seq)).next_back()?;
        (range.partition == partition && seq <= range.last).then_some(*number)
    }

    /// Takes rows that are to be erased as they are, while they are.
    ///
    /// # Errors
    /// [`Error::Malformed`]: they lack a column that every row has, or a sealed row has neither salt nor tombstone; [`Error::Io`].
    pub fn take(&mut self, batch: &RecordBatch, chosen: impl Fn(usize) -> Chosen) -> Result<(), Error> {
        if self.ranges.is_empty() {
            return Ok(());
        }
        let places = self.dataset.places(batch)?;
        let apart = Columns::of(&batch.schema(), &self.dataset.personal());
        let persons = self.dataset.persons(batch, &apart)?;
        let mut columns: HashMap<u64, Columns> = HashMap::new();
        let (mut plain, mut personal) = (Vec::new(), Vec::new());
        for row in 0..batch.num_rows() {
            let chosen = chosen(row);
            let (partition, seq) = places(row);
            let Some(seal) = self.seal(partition, seq).filter(|_| chosen != Chosen::No) else { continue };
            let person = persons(row);
            let subject = person.key();
            if chosen == Chosen::Keeps {
                self.staying.insert((seal, subject));
                continue;
            }
            if !self.salts.contains_key(&seal) {
                self.salts.insert(seal, self.folder.salts(seal)?);
            }
            // Rows of nobody share a salt, also those that were never to be erased.
            if person.name.is_some() {
                self.going.insert((seal, subject));
            }
            if self.erased.contains((partition, seq)) {
                // An erasure that did not come to its end.
                continue;
            }
            let salt = self.salts.get(&seal).and_then(|salts| salts.get(&subject)).ok_or_else(|| {
                let number = self.dataset.number();
                Error::Malformed(format!("partition {partition}, {number} {seq}: it is sealed, and its salt is gone"))
            })?;
            let columns = columns.entry(seal).or_insert_with(|| {
                let names = self.personal.get(&seal).cloned();
                Columns::of(&batch.schema(), &names.unwrap_or_else(|| self.dataset.personal()))
            });
            plain.clear();
            personal.clear();
            columns.encode(batch, row, &mut plain, &mut personal)?;
            self.commitments.add(&self.folder, (partition, seq), &commit(salt, &personal))?;
        }
        Ok(())
    }

    /// Writes the tombstones, of so many rows each at most, and which salts are to go, durable when this returns; the number of the
    /// last one. `None`: nothing that is sealed is erased. The rows must now be made bare, in a commit that names the number.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Malformed`].
    pub fn bury(
        mut self,
        key: &SealKey,
        erased_at: String,
        reason: String,
        rows_each: u64,
    ) -> Result<Option<u64>, Error> {
        self.going.retain(|going| !self.staying.contains(going));
        let mut noted = self.commitments.noted()?;
        if self.going.is_empty() && noted.left() == 0 {
            return Ok(None);
        }
        let last = self.last_tombstone + noted.left().div_ceil(rows_each).max(1);
        self.folder.write_going(last, &as_json(&Going { salts: self.going })?)?;
        for number in self.last_tombstone + 1..=last {
            let rows = noted.take(rows_each)?;
            let erasure = Erasure { number, erased_at: erased_at.clone(), reason: reason.clone(), rows };
            self.folder.write_erasure(number, &key.sign(Erasure::FORMAT, &erasure)?)?;
        }
        Ok(Some(last))
    }

    /// Ends what was begun before. `committed` is the last tombstone whose rows are bare: its salts are deleted. Tombstones after
    /// it came to nothing, and so did whatever stands beside older ones: they are taken back, and rows and salts are as they were.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Malformed`].
    pub fn settle(folder: &SealFolder, committed: u64) -> Result<(), Error> {
        for (number, bytes) in folder.going()? {
            if number == committed {
                forget(folder, number, &bytes)?;
            }
            folder.remove_going(number)?;
        }
        for number in folder.erasure_numbers()?.into_iter().filter(|number| *number > committed) {
            folder.remove_erasure(number)?;
        }
        Ok(())
    }
}

/// Deletes the salts that go with a tombstone.
fn forget(folder: &SealFolder, number: u64, bytes: &[u8]) -> Result<(), Error> {
    let malformed = |cause| Error::Malformed(format!("the salts to go with tombstone {number}: {cause}"));
    let going: Going = serde_json::from_slice(bytes).map_err(malformed)?;
    let mut by_seal: BTreeMap<u64, Vec<SubjectKey>> = BTreeMap::new();
    for (seal, subject) in going.salts {
        by_seal.entry(seal).or_default().push(subject);
    }
    for (seal, subjects) in by_seal {
        let mut salts = folder.salts(seal)?;
        let before = salts.len();
        for subject in &subjects {
            salts.remove(subject);
        }
        if salts.len() < before {
            folder.replace_salts(seal, &salts)?;
        }
    }
    Ok(())
}

fn as_json(going: &Going) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(going).map_err(|cause| Error::Malformed(cause.to_string()))
}
