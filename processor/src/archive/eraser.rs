//! Clears what is personal in rows of the archive: see "Salts and erasure" in `docs/AUDIT.md`.
//!
//! Tombstones first, then the files, last the salts: a crash between two of them is made good by the same erasure again.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use sendtrail_audit::{Chosen, Columns, Places, SealFolder, SealKey, Sealed};
use sendtrail_eventlog::failpoint::reach;
use sendtrail_schemas::archive::{ArchiveCell, ArchivedFile};
use sendtrail_schemas::time::{DAY, Day, Millis};
use tokio::sync::{Mutex, OwnedMutexGuard};

mod answers;

use super::layout::Layout;
use super::merge::{open, read_file};
use super::parquet_file::{SortedFile, path};
use super::table::Table;
use super::upkeep::{begin_to_age, fresh_name, publish};
use crate::{Error, blocking};

/// Rows of a tombstone, of which each is written and read whole: an erasure of more has several.
const TOMBSTONE_ROWS: u64 = if cfg!(test) { 16 } else { 100_000 };

/// Rows of one account that are to lose what is personal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Whose rows, as hyphenated text.
    pub account: String,
    /// Which of them.
    pub who: Who,
}

/// Which rows of an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// Those of a recipient, in lower case, up to a number of the account's partition.
    Recipient {
        /// The address.
        folded: String,
        /// The last number.
        through: u64,
    },
    /// Everybody's, received on days from one on and before another.
    Received {
        /// The first day.
        from: Day,
        /// The day after the last.
        to: Day,
    },
}

/// What an erasure found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// How many rows of each target there were to clear.
    pub rows: Vec<u64>,
    /// Their places: partition and number.
    pub places: Places,
}

/// The eraser of one table; see the module.
pub struct Eraser {
    /// The table.
    pub table: Arc<Mutex<Table>>,
    /// What readers see.
    pub cell: Arc<ArchiveCell>,
    /// Signs tombstones.
    pub key: Arc<SealKey>,
}

/// Rows that were found and written anew without what is personal, which nobody lists yet. Meanwhile nobody merges files of
/// the table, and nobody seals them.
pub struct Erasing {
    /// What was found.
    pub found: Found,
    old: Vec<Arc<ArchivedFile>>,
    new: Vec<ArchivedFile>,
    sealed: Sealed,
    _alone: OwnedMutexGuard<()>,
}

impl Eraser {
    /// Finds the events of some targets.
    ///
    /// # Errors
    /// [`Error::Audit`], [`Error::Io`], [`Error::Parquet`].
    pub async fn begin(&self, targets: Vec<Target>) -> Result<Erasing, Error> {
        self.rewrite(move |open| Work::new(open.layout, open.root, targets).rewrite(&open.files, &open.key)).await
    }

    /// Clears what receivers answered to posts of some events of some accounts, by partition and number: nobody knows what they
    /// wrote. The table is one of attempts. How many rows that were.
    ///
    /// # Errors
    /// [`Error::Audit`], [`Error::Io`], [`Error::Parquet`], [`Error::Delta`]: do it again.
    pub async fn clear_answers(
        &self,
        accounts: HashSet<String>,
        events: Places,
        now: Millis,
        reason: String,
    ) -> Result<u64, Error> {
        if events.is_empty() {
            return Ok(0);
        }
        let erasing = self.rewrite(move |open| answers::rewrite(&open, &accounts, &events)).await?;
        Ok(self.end(erasing, now, reason).await?.rows.iter().sum())
    }

    /// Has files written anew, after what was begun before has been ended.
    async fn rewrite(
        &self,
        work: impl FnOnce(Open) -> Result<Rewritten, Error> + Send + 'static,
    ) -> Result<Erasing, Error> {
        let upkeep = self.table.lock().await.upkeep();
        let alone = upkeep.lock_owned().await;
        let (open, committed) = {
            let mut table = self.table.lock().await;
            // A commit whose outcome was never learnt may have named a tombstone that would be taken for one of nothing.
            table.refresh().await?;
            let (layout, root, files, key) = (table.layout(), table.root().to_owned(), table.files(), self.key.clone());
            (Open { layout, root, files, key }, table.last_tombstone().await?)
        };
        let work = move || {
            Sealed::settle(&SealFolder::of(&open.root), committed)?;
            work(open)
        };
        let (found, old, new, sealed) = blocking("find what is to be erased", work).await?;
        Ok(Erasing { found, old, new, sealed, _alone: alone })
    }

    /// Puts the files without them in place, in one commit; then nobody can say any more what was in them.
    ///
    /// # Errors
    /// [`Error::Audit`], [`Error::Io`], [`Error::Delta`]: begin anew.
    pub async fn end(&self, erasing: Erasing, now: Millis, reason: String) -> Result<Found, Error> {
        let Erasing { found, old, new, sealed, _alone } = erasing;
        if old.is_empty() {
            return Ok(found);
        }
        let key = self.key.clone();
        let bury = move || sealed.bury(&key, now.to_string(), reason, TOMBSTONE_ROWS);
        let tombstone = blocking("write tombstones", bury).await?;
        reach("erase.buried");
        let (root, committed) = {
            let mut table = self.table.lock().await;
            table.rewrite(&old, new, tombstone).await?;
            reach("erase.committed");
            publish(&self.cell, &table);
            (table.root().to_owned(), table.last_tombstone().await?)
        };
        old.iter().for_each(|file| begin_to_age(&root.join(&file.path)));
        blocking("forget salts", move || Sealed::settle(&SealFolder::of(&root), committed)).await?;
        Ok(found)
    }
}

/// A table, while nobody else rewrites it.
struct Open {
    layout: &'static Layout,
    root: PathBuf,
    files: Vec<Arc<ArchivedFile>>,
    key: Arc<SealKey>,
}

struct Work {
    layout: &'static Layout,
    root: PathBuf,
    targets: Vec<Target>,
    /// The targets of each account.
    accounts: HashMap<String, OfAccount>,
}

#[derive(Default)]
struct OfAccount {
    /// By address, in lower case: which, and up to which number, the least first.
    recipients: HashMap<String, Vec<(u64, usize)>>,
    /// By days of receipt.
    days: Vec<(Day, Day, usize)>,
}

/// What was found, the files that held it, those without it, and what it takes of sealed days.
type Rewritten = (Found, Vec<Arc<ArchivedFile>>, Vec<ArchivedFile>, Sealed);

impl Work {
    fn new(layout: &'static Layout, root: PathBuf, targets: Vec<Target>) -> Self {
        let mut accounts: HashMap<String, OfAccount> = HashMap::new();
        for (at, target) in targets.iter().enumerate() {
            let of = accounts.entry(target.account.clone()).or_default();
            match &target.who {
                Who::Recipient { folded, through } => {
                    let throughs = of.recipients.entry(folded.clone()).or_default();
                    throughs.push((*through, at));
                    throughs.sort_unstable();
                }
                Who::Received { from, to } => of.days.push((*from, *to, at)),
            }
        }
        Self { layout, root, targets, accounts }
    }

    /// Writes files anew that hold rows to clear. Nobody lists the new ones yet.
    fn rewrite(&self, files: &[Arc<ArchivedFile>], key: &SealKey) -> Result<Rewritten, Error> {
        let (mut old, mut kept) = (Vec::new(), Vec::new());
        for file in files.iter().filter(|file| self.targets.iter().any(|target| target.may_be_in(file))) {
            match self.holds(file)? {
                Holds::Cleared => old.push(file.clone()),
                Holds::Kept => kept.push(file),
                Holds::Nothing => {}
            }
        }
        let days: HashSet<String> = old.iter().map(|file| Millis::of_day(file.day).day_text()).collect();
        let mut sealed = Sealed::read(self.layout.dataset, SealFolder::of(&self.root), key, &days)?;
        let mut found = Found { rows: vec![0; self.targets.len()], places: Places::default() };
        let mut new = Vec::with_capacity(old.len());
        for file in &old {
            new.push(self.without(file, &mut sealed, &mut found)?);
        }
        for file in kept {
            let reader = open(&self.root, file)?;
            let narrow = ProjectionMask::columns(reader.parquet_schema(), TELLING);
            for batch in reader.with_projection(narrow).build()? {
                let batch = batch?;
                let choose = self.choose(&batch)?;
                sealed.take(&batch, |row| match choose(row) {
                    Choice::Keeps => Chosen::Keeps,
                    _ => Chosen::No,
                })?;
            }
        }
        Ok((found, old, new, sealed))
    }

    /// Whether a file holds rows to clear, or later ones of the same recipients. Reads what tells that only.
    fn holds(&self, file: &ArchivedFile) -> Result<Holds, Error> {
        if self.targets.iter().any(|target| matches!(target.who, Who::Received { .. }) && target.may_be_in(file)) {
            // Of an account that keeps for a while only, most rows of the day are still to be cleared.
            return self.look(open(&self.root, file)?);
        }
        let reader = open(&self.root, file)?;
        let groups = self.groups(&reader)?;
        let narrow = ProjectionMask::columns(reader.parquet_schema(), TELLING);
        self.look(reader.with_row_groups(groups).with_projection(narrow))
    }

    fn look(&self, reader: ParquetRecordBatchReaderBuilder<std::fs::File>) -> Result<Holds, Error> {
        let mut holds = Holds::Nothing;
        for batch in reader.build()? {
            let batch = batch?;
            let choose = self.choose(&batch)?;
            for row in 0..batch.num_rows() {
                match choose(row) {
                    Choice::Target(_) => return Ok(Holds::Cleared),
                    Choice::Keeps => holds = Holds::Kept,
                    Choice::No => {}
                }
            }
        }
        Ok(holds)
    }

    /// Row groups whose bloom filters do not rule every recipient out.
    fn groups(&self, reader: &ParquetRecordBatchReaderBuilder<std::fs::File>) -> Result<Vec<usize>, Error> {
        let place = |name: &str| reader.parquet_schema().columns().iter().position(|column| column.name() == name);
        let places: Vec<usize> = ["recipient", "recipient_folded"].into_iter().filter_map(place).collect();
        let wanted: Vec<&str> = self.targets.iter().filter_map(Target::recipient).collect();
        let mut groups = Vec::new();
        for group in 0..reader.metadata().num_row_groups() {
            let mut may = places.is_empty();
            for &at in &places {
                let filter = reader.get_row_group_column_bloom_filter(group, at)?;
                may |= filter.is_none_or(|filter| wanted.iter().any(|name| filter.check(*name)));
            }
            if may {
                groups.push(group);
            }
        }
        Ok(groups)
    }

    /// The same file, with those rows cleared.
    fn without(&self, file: &ArchivedFile, sealed: &mut Sealed, found: &mut Found) -> Result<ArchivedFile, Error> {
        let late = if file.path.ends_with("-late.parquet") { "-late" } else { "" };
        let to = path(self.layout, file.day, &format!("{}-erased{late}", fresh_name()));
        let mut into = SortedFile::create(self.layout, &self.root, to, file.day, file.rows as usize)?;
        for batch in read_file(self.layout, &self.root, file)? {
            let batch = batch?;
            let columns = Columns::of(&batch.schema(), &self.layout.dataset.personal());
            let choose = self.choose(&batch)?;
            let choices: Vec<Choice> = (0..batch.num_rows())
                .map(|row| match choose(row) {
                    Choice::Target(_) if columns.is_bare(&batch, row) => Choice::No,
                    choice => choice,
                })
                .collect();
            sealed.take(&batch, |row| match choices.get(row) {
                Some(Choice::Target(_)) => Chosen::Yes,
                Some(Choice::Keeps) => Chosen::Keeps,
                _ => Chosen::No,
            })?;
            let places = self.layout.dataset.places(&batch)?;
            for (row, choice) in choices.iter().enumerate() {
                if let Choice::Target(target) = choice {
                    found.rows[*target] += 1;
                    found.places.insert(places(row));
                }
            }
            let clear: BooleanArray = choices.iter().map(|choice| Some(matches!(choice, Choice::Target(_)))).collect();
            into.write(&columns.bare(&batch, &clear)?)?;
        }
        let written = into.finish()?;
        if written.rows != file.rows {
            let why = format!("{} has {} rows, and {} without them", file.path, file.rows, written.rows);
            return Err(sendtrail_schemas::Error::Malformed(why).into());
        }
        Ok(written)
    }

    /// Which target each row of a batch is of.
    fn choose<'a>(&'a self, batch: &'a RecordBatch) -> Result<impl Fn(usize) -> Choice + use<'a>, Error> {
        let text = |name: &str| batch.column_by_name(name).and_then(|column| column.as_string_opt::<i32>());
        let missing = |name: &str| Error::Missing(format!("a file of the archive has no column {name}"));
        let accounts = text("account_id").ok_or_else(|| missing("account_id"))?;
        let (recipients, folded) = (text("recipient"), text("recipient_folded"));
        let seqs = batch.column_by_name("seq").and_then(|column| column.as_primitive_opt::<Int64Type>());
        let seqs = seqs.ok_or_else(|| missing("seq"))?;
        let received = batch.column_by_name("received_at");
        let received = received.and_then(|column| column.as_primitive_opt::<TimestampMicrosecondType>());
        let received = received.ok_or_else(|| missing("received_at"))?;
        // Whole rows are looked at where everybody's are to be cleared: of those that are bare already nothing is left.
        let columns = Columns::of(&batch.schema(), &self.layout.dataset.personal());
        Ok(move |row: usize| {
            let value = |column: Option<&'a arrow::array::StringArray>| {
                column.filter(|column| column.is_valid(row)).map(|column| column.value(row))
            };
            let name = value(folded).or_else(|| value(recipients));
            let Some(of) = self.accounts.get(accounts.value(row)) else { return Choice::No };
            let throughs = name.and_then(|name| of.recipients.get(name));
            let reached = |(through, _): &&(u64, usize)| seqs.value(row) as u64 <= *through;
            if let Some((_, at)) = throughs.and_then(|throughs| throughs.iter().find(reached)) {
                return Choice::Target(*at);
            }
            let day = received.value(row).div_euclid(DAY * 1_000) as Day;
            let by_day = of.days.iter().find(|(from, to, _)| (*from..*to).contains(&day));
            match by_day.filter(|_| !columns.is_bare(batch, row)) {
                Some((.., at)) => Choice::Target(*at),
                None if throughs.is_some() => Choice::Keeps,
                None => Choice::No,
            }
        })
    }
}

/// Columns that tell whose a row is.
const TELLING: [&str; 6] = ["account_id", "recipient", "recipient_folded", "partition", "seq", "received_at"];

/// What a file holds of targets.
enum Holds {
    Nothing,
    /// Rows of the same recipients that came later.
    Kept,
    /// Rows to clear.
    Cleared,
}

/// What is to become of a row.
enum Choice {
    No,
    /// It is of somebody of whom others are cleared, and came later.
    Keeps,
    /// It is cleared.
    Target(usize),
}

impl Target {
    fn recipient(&self) -> Option<&str> {
        match &self.who {
            Who::Recipient { folded, .. } => Some(folded),
            Who::Received { .. } => None,
        }
    }

    fn may_be_in(&self, file: &ArchivedFile) -> bool {
        let days = match &self.who {
            Who::Received { from, to } => (*from..*to).contains(&file.day),
            Who::Recipient { .. } => true,
        };
        days && file.accounts.0 <= self.account && self.account <= file.accounts.1
    }
}

#[cfg(test)]
mod tests;
