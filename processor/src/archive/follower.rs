//! The archive as a server sees it that does not write it: files only, and as of when.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use sendtrail_schemas::archive::{ArchiveCell, ArchiveView};
use sendtrail_schemas::time::Millis;
use tokio_util::sync::CancellationToken;

use super::layout::Layout;
use super::table::Table;
use crate::Error;

/// How many looks at the partitions are remembered until the files have caught up with them.
const REMEMBERED: usize = 1_000;

/// What is known of how far partitions are: the number after the last event of each, and a time before which there are no others.
pub type Look = Box<dyn Fn() -> (Millis, BTreeMap<u32, u64>) + Send + Sync>;

/// Shows readers a table that another server writes into a folder that both see.
pub struct Follower {
    /// What it holds.
    pub layout: &'static Layout,
    /// Where it is.
    pub root: PathBuf,
    /// What readers see.
    pub cell: Arc<ArchiveCell>,
    /// Looks how far partitions are.
    pub look: Look,
    /// Everything that was known before this is in the files, milliseconds since the epoch; 0 when that is not known.
    pub as_of: Arc<AtomicI64>,
    /// How often to look.
    pub every: Duration,
}

/// A follower that has looked once.
pub struct Following {
    of: Follower,
    table: Option<Table>,
    /// When partitions were how far, until the files have caught up.
    looks: VecDeque<(Millis, BTreeMap<u32, u64>)>,
}

impl Follower {
    /// Looks for the first time. Until there is a table, readers see nothing.
    pub async fn begin(self) -> Following {
        let mut following = Following { of: self, table: None, looks: VecDeque::new() };
        following.turn().await;
        following
    }
}

impl Following {
    /// Runs until `stop` is cancelled.
    pub async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            tokio::select! {
                () = tokio::time::sleep(self.of.every) => self.turn().await,
                () = stop.cancelled() => {}
            }
        }
    }

    async fn turn(&mut self) {
        self.looks.push_back((self.of.look)());
        if self.looks.len() > REMEMBERED {
            self.looks.pop_front();
        }
        if let Err(error) = self.look().await {
            tracing::warn!(%error, folder = %self.of.root.display(), "the archive cannot be read");
            self.table = None;
        }
    }

    async fn look(&mut self) -> Result<(), Error> {
        let version = match &mut self.table {
            Some(table) => {
                let before = table.version();
                table.refresh().await?;
                before
            }
            None => {
                self.table = Table::find(self.of.layout, &self.of.root).await?;
                u64::MAX
            }
        };
        let Some(table) = &self.table else { return Ok(()) };
        let mut filed = BTreeMap::new();
        // Whoever is not in the list has no events.
        for &partition in self.looks.back().iter().flat_map(|(_, ends)| ends.keys()) {
            filed.insert(partition, table.mark(partition).await?);
        }
        let filed = Arc::new(filed);
        if table.version() != version {
            let (root, version, files) = (table.root().to_owned(), table.version(), Arc::new(table.files()));
            let filed = filed.clone();
            self.of.cell.update(|_| ArchiveView { root, version, files, filed, tail: Vec::new() });
        }
        // Only now: a reader must not see older files with a newer time.
        while let Some((at, ends)) = self.looks.front()
            && ends.iter().all(|(partition, end)| filed.get(partition).is_some_and(|filed| filed >= end))
        {
            self.of.as_of.store(at.0, Ordering::Release);
            self.looks.pop_front();
        }
        Ok(())
    }
}
