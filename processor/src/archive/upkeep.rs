//! Keeps the archive small in number of files: merges what is alike, deletes what nobody lists any more.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use metrics::{counter, gauge};
use sendtrail_eventlog::Clock;
use sendtrail_eventlog::failpoint::reach;
use sendtrail_schemas::archive::{ArchiveCell, ArchiveView, ArchivedFile};
use sendtrail_schemas::time::Day;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::layout::Layout;
use super::merge::merge;
use super::parquet_file::{SortedFile, path};
use super::table::Table;
use crate::{Error, blocking};

/// Files of one size that are merged together.
const FAN_IN: usize = 8;
/// The largest merge.
const MAX_FAN_IN: usize = 16;
/// Rows of a file that is merged no more.
const FULL_ROWS: u64 = 4_000_000;
/// Rows of the smallest size.
const SMALL_ROWS: u64 = 4_096;

/// How the archive is kept.
#[derive(Clone, Debug)]
pub struct UpkeepOptions {
    /// How often to look whether there is something to merge.
    pub every: Duration,
    /// How long a file that is listed no more stays for readers who still know it.
    pub vacuum_after: Duration,
}

/// The upkeep of one archive.
pub struct Upkeep {
    /// The table.
    pub table: Arc<Mutex<Table>>,
    /// What readers see.
    pub cell: Arc<ArchiveCell>,
    /// What day it is.
    pub clock: Clock,
    /// How to keep it.
    pub options: UpkeepOptions,
}

impl Upkeep {
    /// Runs until `stop` is cancelled; a merge under way is finished first.
    pub async fn run(self, stop: CancellationToken) {
        let mut vacuumed = None::<tokio::time::Instant>;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(self.options.every) => {}
            }
            match self.compact().await {
                Ok(_) => {}
                // The files are still there, and so is the reason to merge them.
                Err(error) => tracing::warn!(%error, "a merge of archive files failed"),
            }
            if vacuumed.is_none_or(|at| at.elapsed() > self.options.vacuum_after / 10) {
                vacuumed = Some(tokio::time::Instant::now());
                if let Err(error) = self.vacuum().await {
                    tracing::warn!(%error, "old archive files could not be deleted");
                }
            }
        }
    }

    /// Merges as long as there is something to merge; how many merges there were.
    ///
    /// # Errors
    /// [`Error`], with everything as before the merge that failed.
    pub async fn compact(&self) -> Result<usize, Error> {
        let mut merges = 0;
        loop {
            let upkeep = self.table.lock().await.upkeep();
            let _alone = upkeep.lock().await;
            let (layout, root, files) = {
                let table = self.table.lock().await;
                (table.layout(), table.root().to_owned(), table.files())
            };
            let of = layout.name();
            // Told from the start, so that the first merge is seen.
            counter!("sendtrail_archive_merges_total", "table" => of).absolute(0);
            counter!("sendtrail_archive_merged_rows_total", "table" => of).absolute(0);
            gauge!("sendtrail_archive_files", "table" => of).set(files.len() as f64);
            gauge!("sendtrail_archive_bytes", "table" => of)
                .set(files.iter().map(|file| file.bytes).sum::<u64>() as f64);
            gauge!("sendtrail_archive_rows", "table" => of).set(files.iter().map(|file| file.rows).sum::<u64>() as f64);
            let Some(chosen) = choose(&files, self.clock.now().day()) else { return Ok(merges) };
            let merged = {
                let chosen = chosen.clone();
                blocking("merge", move || merge_into_one(layout, &root, &chosen)).await?
            };
            counter!("sendtrail_archive_merges_total", "table" => of).increment(1);
            counter!("sendtrail_archive_merged_rows_total", "table" => of).increment(merged.rows);
            tracing::debug!(files = chosen.len(), rows = merged.rows, path = merged.path, "merged archive files");
            let mut table = self.table.lock().await;
            reach("merge.written");
            table.replace(&chosen, merged).await?;
            reach("merge.committed");
            publish(&self.cell, &table);
            chosen.iter().for_each(|file| begin_to_age(&table.root().join(&file.path)));
            merges += 1;
        }
    }

    /// Deletes files that the table does not list and that nobody can still be reading.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub async fn vacuum(&self) -> Result<usize, Error> {
        let (root, known) = {
            let mut table = self.table.lock().await;
            // What is not understood is not cleaned up.
            table.refresh().await?;
            let known: HashSet<PathBuf> = table.files().iter().map(|file| table.root().join(&file.path)).collect();
            (table.root().to_owned(), known)
        };
        let age = self.options.vacuum_after;
        let deleted = blocking("vacuum", move || delete_unknown(&root, &known, age)).await?;
        counter!("sendtrail_archive_vacuumed_files_total").increment(deleted as u64);
        Ok(deleted)
    }
}

/// Shows readers the table's files; the tail stays.
pub(super) fn publish(cell: &ArchiveCell, table: &Table) {
    cell.update(|view| ArchiveView { version: table.version(), files: Arc::new(table.files()), ..view.clone() });
}

/// Files of one day, by their size.
type BySize<'a> = BTreeMap<u32, Vec<&'a Arc<ArchivedFile>>>;

/// What to merge next: the smallest files first, and what is left of a day that is over.
fn choose(files: &[Arc<ArchivedFile>], today: Day) -> Option<Vec<Arc<ArchivedFile>>> {
    let mut alike: BTreeMap<(Day, bool), BySize<'_>> = BTreeMap::new();
    for file in files.iter().filter(|file| file.rows < FULL_ROWS / 2) {
        let late = file.path.ends_with("-late.parquet");
        alike.entry((file.day, late)).or_default().entry(size_class(file.rows)).or_default().push(file);
    }
    for ((day, _), classes) in &alike {
        if let Some(same) = classes.values().find(|same| same.len() >= FAN_IN) {
            return Some(up_to_full(same.iter().copied()));
        }
        let rest: Vec<_> = classes.values().flatten().copied().collect();
        if *day < today && rest.len() > 1 {
            let chosen = up_to_full(rest.into_iter());
            if chosen.len() > 1 {
                return Some(chosen);
            }
        }
    }
    None
}

fn size_class(rows: u64) -> u32 {
    (rows / SMALL_ROWS + 1).ilog2() / 3
}

fn up_to_full<'a>(files: impl Iterator<Item = &'a Arc<ArchivedFile>>) -> Vec<Arc<ArchivedFile>> {
    let mut rows = 0;
    files
        .take(MAX_FAN_IN)
        .take_while(|file| {
            rows += file.rows;
            rows <= FULL_ROWS
        })
        .cloned()
        .collect()
}

#[expect(clippy::disallowed_methods, reason = "a file's name is no decision")]
pub(crate) fn fresh_name() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

fn merge_into_one(layout: &'static Layout, root: &Path, files: &[Arc<ArchivedFile>]) -> Result<ArchivedFile, Error> {
    let Some(first) = files.first() else {
        return Err(sendtrail_schemas::Error::Malformed("nothing to merge".into()).into());
    };
    let late = if first.path.ends_with("-late.parquet") { "-late" } else { "" };
    let rows: u64 = files.iter().map(|file| file.rows).sum();
    let path = path(layout, first.day, &format!("{}-merged{late}", fresh_name()));
    let merged = merge(layout, root, files, SortedFile::create(layout, root, path, first.day, rows as usize)?)?;
    if merged.rows != rows {
        let why = format!("a merge of {rows} rows gave {}", merged.rows);
        return Err(sendtrail_schemas::Error::Malformed(why).into());
    }
    Ok(merged)
}

/// Has a file that is listed no more look as young as that: readers may know it still.
#[expect(clippy::disallowed_methods, reason = "a file's age is by the file system's clock")]
pub(super) fn begin_to_age(path: &Path) {
    if let Err(error) = File::open(path).and_then(|file| file.set_modified(SystemTime::now())) {
        tracing::warn!(path = %path.display(), %error, "a merged file may be deleted before its time");
    }
}

#[expect(clippy::disallowed_methods, reason = "a file's age is by the file system's clock")]
fn delete_unknown(root: &Path, known: &HashSet<PathBuf>, age: Duration) -> Result<usize, Error> {
    let io = |what: &Path| {
        let what = what.display().to_string();
        move |cause| Error::Io { what, cause }
    };
    let mut deleted = 0;
    for day in std::fs::read_dir(root).map_err(io(root))? {
        let day = day.map_err(io(root))?.path();
        if !day.file_name().is_some_and(|name| name.to_string_lossy().starts_with("dt=")) {
            continue;
        }
        for file in std::fs::read_dir(&day).map_err(io(&day))? {
            let file = file.map_err(io(&day))?;
            let path = file.path();
            let modified = file.metadata().and_then(|metadata| metadata.modified()).map_err(io(&path))?;
            let old = SystemTime::now().duration_since(modified).is_ok_and(|since| since > age);
            if old && !known.contains(&path) && path.extension().is_some_and(|suffix| suffix == "parquet") {
                std::fs::remove_file(&path).map_err(io(&path))?;
                deleted += 1;
            }
        }
    }
    Ok(deleted)
}
