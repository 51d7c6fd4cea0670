//! Seals the days of the archive that are over: see `docs/AUDIT.md`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use metrics::counter;
use parquet::arrow::ProjectionMask;
use roaring::RoaringTreemap;
use sendtrail_audit::{
    Dataset, FORMAT, Leaves, MAX_ROWS, PublicKey, Range, SALT_LENGTH, Salts, Seal, SealFolder, SealKey, SealedFile,
    Source, Subject, hash_file,
};
use sendtrail_eventlog::Clock;
use sendtrail_eventlog::failpoint::reach;
use sendtrail_schemas::archive::ArchivedFile;
use sendtrail_schemas::secret::hex;
use sendtrail_schemas::time::{Day, Millis};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::layout::Layout;
use super::merge::{open, read_file};
use super::table::Table;
use crate::{Error, blocking};

/// The version of the columns that a seal names.
const SCHEMA_VERSION: u32 = 1;

/// Makes salts.
pub type Random = fn(&mut [u8]);

/// The sealer of one table.
pub struct Sealer {
    /// The table.
    pub table: Arc<Mutex<Table>>,
    /// Signs.
    pub key: Arc<SealKey>,
    /// What day it is.
    pub clock: Clock,
    /// How long after its end a day is sealed, milliseconds.
    pub after: i64,
    /// How often to look.
    pub every: Duration,
    /// Where salts come from.
    pub random: Random,
}

/// The seals that are there.
struct Chain {
    last: Option<(u64, String)>,
    by_day: BTreeMap<Day, Vec<Range>>,
}

impl Sealer {
    /// Runs until `stop` is cancelled; a seal under way is finished first.
    pub async fn run(self, stop: CancellationToken) {
        // Told from the start, so that the first failure is seen.
        for name in ["sendtrail_archive_seals_total", "sendtrail_archive_seal_failures_total"] {
            counter!(name).absolute(0);
        }
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(self.every) => {}
            }
            match self.seal_due().await {
                Ok(0) => {}
                Ok(seals) => tracing::info!(seals, "sealed the archive of days that are over"),
                Err(error) => {
                    counter!("sendtrail_archive_seal_failures_total").increment(1);
                    tracing::error!(%error, "the archive cannot be sealed");
                }
            }
        }
    }

    /// Seals what is due; how many seals that took.
    ///
    /// # Errors
    /// [`Error::Audit`]: the seals that are there cannot be gone on from; [`Error::Missing`]: numbers are missing in a day;
    /// [`Error::Io`], [`Error::Parquet`].
    pub async fn seal_due(&self) -> Result<usize, Error> {
        let upkeep = self.table.lock().await.upkeep();
        let _alone = upkeep.lock().await;
        let (layout, root, files, version) = {
            let table = self.table.lock().await;
            (table.layout(), table.root().to_owned(), table.files(), table.version())
        };
        let now = self.clock.now();
        let over = now.plus(-self.after).day();
        let mut days: BTreeMap<Day, Vec<Arc<ArchivedFile>>> = BTreeMap::new();
        for file in files.into_iter().filter(|file| file.day < over) {
            days.entry(file.day).or_default().push(file);
        }
        let (key, random) = (self.key.clone(), self.random);
        let work = Work { layout, root, version, key, random, now };
        blocking("seal the archive", move || work.seal(&days)).await
    }
}

/// One look at everything.
struct Work {
    layout: &'static Layout,
    root: PathBuf,
    version: u64,
    key: Arc<SealKey>,
    random: Random,
    now: Millis,
}

impl Work {
    fn seal(&self, days: &BTreeMap<Day, Vec<Arc<ArchivedFile>>>) -> Result<usize, Error> {
        let folder = SealFolder::of(&self.root);
        let mut chain = read_chain(&folder, &self.key.public())?;
        let mut seals = 0;
        for (day, files) in days {
            let known = chain.by_day.get(day).map(Vec::as_slice).unwrap_or_default();
            let rows: u64 = files.iter().map(|file| file.rows).sum();
            if known.iter().map(Range::rows).sum::<u64>() == rows {
                continue;
            }
            for ranges in portions(unsealed(self.layout.dataset, &self.root, files, known)?) {
                let (number, previous) = match chain.last.take() {
                    Some((number, hash)) => (number + 1, Some(hash)),
                    None => (1, None),
                };
                let hash = self.write(&folder, number, previous, *day, files, ranges)?;
                counter!("sendtrail_archive_seals_total").increment(1);
                chain.last = Some((number, hash));
                seals += 1;
            }
        }
        Ok(seals)
    }

    fn write(
        &self,
        folder: &SealFolder,
        number: u64,
        previous: Option<String>,
        day: Day,
        files: &[Arc<ArchivedFile>],
        ranges: Vec<Range>,
    ) -> Result<String, Error> {
        let dataset = self.layout.dataset;
        let personal = dataset.personal();
        let mut leaves = Leaves::new(dataset, &ranges, &personal);
        let mut salts = Salts::default();
        let mut make = || {
            let mut salt = [0; SALT_LENGTH];
            (self.random)(&mut salt);
            salt
        };
        let mut sealed = Vec::with_capacity(files.len());
        for file in files {
            for batch in read_file(self.layout, &self.root, file)? {
                let taken = leaves.take(&batch?, &mut Source::Made(&mut salts, &mut make))?;
                if let Some(((partition, seq), flaw)) = taken.flaws.first() {
                    let place = format!("partition {partition}, {} {seq}", dataset.number());
                    return Err(Error::Missing(format!("{place} in the archive: {flaw:?}")));
                }
            }
            let (sha256, bytes) = hash_file(&self.root.join(&file.path))?;
            sealed.push(SealedFile { path: file.path.clone(), rows: file.rows, bytes, sha256 });
        }
        if let Some(Range { partition, first, last }) = leaves.missing().first() {
            let why = format!("partition {partition} of the archive has no rows {first} to {last}");
            return Err(Error::Missing(why));
        }
        let prefixes = leaves.prefixes();
        let seal = Seal {
            number,
            previous,
            sealed_at: self.now.to_string(),
            subject: Subject::Day {
                dataset: dataset.name().to_owned(),
                day: Millis::of_day(day).day_text(),
                delta_version: self.version,
                ranges,
            },
            schema_version: SCHEMA_VERSION,
            personal,
            rows: leaves.len() as u64,
            leaves_sha256: Some(sha256(&prefixes)),
            root: Some(hex(&leaves.root())),
            files: sealed,
        };
        let envelope = self.key.sign(FORMAT, &seal)?;
        folder.write(number, &envelope, &prefixes, &salts)?;
        reach("seal.written");
        Ok(hex(&envelope.hash()?))
    }
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    hex(&Sha256::digest(bytes))
}

/// What is sealed already. A chain that does not hold is not gone on from: somebody has to look at it.
fn read_chain(folder: &SealFolder, key: &PublicKey) -> Result<Chain, Error> {
    let mut chain = Chain { last: None, by_day: BTreeMap::new() };
    for (number, envelope) in folder.seals()? {
        // Seals of before are signed by a key of before.
        let signed_by = envelope.key().unwrap_or(*key);
        let seal: Seal = envelope.open(FORMAT, &[signed_by])?;
        let follows = chain.last.as_ref().map_or((1, None), |(number, hash)| (number + 1, Some(hash)));
        if (number, seal.previous.as_ref()) != follows {
            return Err(Error::Missing(format!("seal {number} does not follow the one before it")));
        }
        if let Subject::Day { day, ranges, .. } = &seal.subject {
            chain.by_day.entry(Millis::parse_day(day)?.day()).or_default().extend(ranges);
        }
        chain.last = Some((number, hex(&envelope.hash()?)));
    }
    Ok(chain)
}

/// The numbers in files that no seal is about.
fn unsealed(dataset: Dataset, root: &Path, files: &[Arc<ArchivedFile>], known: &[Range]) -> Result<Vec<Range>, Error> {
    let mut numbers: BTreeMap<u32, RoaringTreemap> = BTreeMap::new();
    for file in files {
        let builder = open(root, file)?;
        let columns = ProjectionMask::columns(builder.parquet_schema(), ["partition", dataset.number()]);
        for batch in builder.with_projection(columns).build()? {
            let batch = batch?;
            for (partition, number) in (0..batch.num_rows()).map(dataset.places(&batch)?) {
                if !numbers.entry(partition).or_default().insert(number) {
                    let place = format!("partition {partition}, {} {number}", dataset.number());
                    return Err(Error::Missing(format!("{place} is in the archive twice")));
                }
            }
        }
    }
    for range in known {
        numbers.entry(range.partition).or_default().remove_range(range.first..=range.last);
    }
    let mut ranges: Vec<Range> = Vec::new();
    for (partition, numbers) in numbers {
        for number in numbers {
            match ranges.last_mut() {
                Some(range) if (range.partition, range.last + 1) == (partition, number) => range.last = number,
                _ => ranges.push(Range { partition, first: number, last: number }),
            }
        }
    }
    if dataset.is_dense() {
        // A partition's numbers of a day have no holes, nor have those that came after it was sealed.
        let sealed_between = |one: &Range, other: &Range| {
            known.iter().any(|range| range.partition == one.partition && (one.last..other.first).contains(&range.first))
        };
        for pair in ranges.windows(2).filter(|pair| pair[0].partition == pair[1].partition) {
            if !sealed_between(&pair[0], &pair[1]) {
                let Range { partition, last, .. } = pair[0];
                let (first, next) = (last + 1, pair[1].first - 1);
                return Err(Error::Missing(format!(
                    "partition {partition} of the archive has no rows {first} to {next}"
                )));
            }
        }
    }
    Ok(ranges)
}

/// Ranges dealt out so that none has too many rows.
fn portions(ranges: Vec<Range>) -> Vec<Vec<Range>> {
    let mut portions = vec![Vec::new()];
    let mut room = MAX_ROWS;
    for mut range in ranges {
        loop {
            if room == 0 {
                portions.push(Vec::new());
                room = MAX_ROWS;
            }
            let take = range.rows().min(room);
            room -= take;
            let part = Range { last: range.first + take - 1, ..range };
            if let Some(portion) = portions.last_mut() {
                portion.push(part);
            }
            if part.last == range.last {
                break;
            }
            range.first = part.last + 1;
        }
    }
    portions.retain(|portion| !portion.is_empty());
    portions
}

#[cfg(test)]
mod tests;
