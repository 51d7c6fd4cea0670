//! What the archive holds at one moment: files, and the tail of events that are in none yet.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::RecordBatch;
use parking_lot::RwLock;

use crate::ids::AccountId;
use crate::time::{Day, Millis};

/// A Parquet file of the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchivedFile {
    /// Relative to the archive's folder.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// Its rows.
    pub rows: u64,
    /// The UTC day of receipt of all its rows.
    pub day: Day,
    /// The least and greatest account, as hyphenated text.
    pub accounts: (String, String),
    /// The earliest and latest `occurred_at`.
    pub occurred: (Millis, Millis),
}

impl ArchivedFile {
    /// Whether it may hold an account's events of a span of `occurred_at` (to exclusive).
    pub fn may_hold(&self, account: Option<AccountId>, from: Option<Millis>, to: Option<Millis>) -> bool {
        let account = account.map(|account| account.to_string());
        account.is_none_or(|account| self.accounts.0 <= account && account <= self.accounts.1)
            && from.is_none_or(|from| self.occurred.1 >= from)
            && to.is_none_or(|to| self.occurred.0 < to)
    }
}

/// Rows that are in no file yet.
#[derive(Clone, Debug)]
pub struct TailBatch {
    /// The rows, in the table's columns.
    pub rows: RecordBatch,
    /// The first and the last number of each partition in it; none is missing between them.
    pub numbers: Arc<BTreeMap<u32, (u64, u64)>>,
}

/// Files and tail together: each event is in exactly one of them.
#[derive(Clone, Debug, Default)]
pub struct ArchiveView {
    /// The archive's folder.
    pub root: PathBuf,
    /// The version of the Delta table that lists the files.
    pub version: u64,
    /// The files.
    pub files: Arc<Vec<Arc<ArchivedFile>>>,
    /// The number after the last row of each partition that is in a file.
    pub filed: Arc<BTreeMap<u32, u64>>,
    /// Rows that are in no file yet, in the order in which they came.
    pub tail: Vec<TailBatch>,
}

impl ArchiveView {
    /// The number after the last row of each partition.
    pub fn ends(&self) -> BTreeMap<u32, u64> {
        let mut ends = (*self.filed).clone();
        for (partition, (_, last)) in self.tail.iter().flat_map(|batch| &*batch.numbers) {
            ends.insert(*partition, last + 1);
        }
        ends
    }
}

/// Where the newest view is. A reader takes it once, so that a file and the tail it came from are never both in it.
#[derive(Default)]
pub struct ArchiveCell(RwLock<Arc<ArchiveView>>);

impl ArchiveCell {
    /// The newest view.
    pub fn load(&self) -> Arc<ArchiveView> {
        self.0.read().clone()
    }

    /// Replaces it by what `change` makes of it, files and tail in one step.
    pub fn update(&self, change: impl FnOnce(&ArchiveView) -> ArchiveView) {
        let mut view = self.0.write();
        *view = Arc::new(change(&view));
    }
}
