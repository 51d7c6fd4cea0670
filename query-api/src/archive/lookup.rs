//! Which files may hold a message or a recipient: their bloom filters, remembered.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::bloom_filter::Sbbf;
use quick_cache::sync::Cache;
use quick_cache::{Weighter, sync::GuardResult};
use sendtrail_schemas::address;
use sendtrail_schemas::archive::ArchivedFile;

use super::provider::Chosen;
use crate::Error;

/// What is looked for.
pub struct Wanted {
    /// A message.
    pub message_id: Option<String>,
    /// A recipient, compared without case.
    pub recipient: Option<String>,
}

impl Wanted {
    /// Whether nothing in particular is looked for.
    pub fn is_anything(&self) -> bool {
        self.message_id.is_none() && self.recipient.is_none()
    }
}

/// The filters of a file, a row group each.
struct Filters {
    groups: Vec<Group>,
    bytes: u64,
}

struct Group {
    message_id: Option<Sbbf>,
    recipient: Option<Sbbf>,
    recipient_folded: Option<Sbbf>,
}

impl Group {
    /// A missing filter excludes nothing.
    fn may_hold(&self, wanted: &Wanted, folded: Option<&str>) -> bool {
        let has = |filter: &Option<Sbbf>, value: &str| filter.as_ref().is_none_or(|filter| filter.check(value));
        wanted.message_id.as_ref().is_none_or(|id| has(&self.message_id, id))
            && folded.is_none_or(|folded| has(&self.recipient, folded) || has(&self.recipient_folded, folded))
    }
}

#[derive(Clone)]
struct Bytes;

impl Weighter<PathBuf, Arc<Filters>> for Bytes {
    fn weight(&self, _: &PathBuf, filters: &Arc<Filters>) -> u64 {
        filters.bytes.max(1)
    }
}

/// Remembers the filters of files; files never change, so what is remembered stays true.
pub struct LookUp {
    cache: Cache<PathBuf, Arc<Filters>, Bytes>,
}

impl LookUp {
    /// Remembers at most so many bytes.
    pub fn new(bytes: usize) -> Self {
        Self { cache: Cache::with_weighter(1_000, bytes as u64, Bytes) }
    }

    /// The files that may hold what is wanted, and which of their row groups. Blocks.
    ///
    /// # Errors
    /// [`Error::Parquet`], [`Error::Port`].
    pub fn choose(&self, root: &Path, files: Vec<Arc<ArchivedFile>>, wanted: &Wanted) -> Result<Vec<Chosen>, Error> {
        let folded = wanted.recipient.as_deref().map(address::fold);
        let mut chosen = Vec::new();
        for file in files {
            let filters = self.filters(&root.join(&file.path))?;
            let groups: Vec<bool> =
                filters.groups.iter().map(|group| group.may_hold(wanted, folded.as_deref())).collect();
            if groups.contains(&true) {
                chosen.push(Chosen { file, groups: Some(groups) });
            }
        }
        Ok(chosen)
    }

    fn filters(&self, path: &PathBuf) -> Result<Arc<Filters>, Error> {
        match self.cache.get_value_or_guard(path, None) {
            GuardResult::Value(filters) => Ok(filters),
            GuardResult::Guard(guard) => {
                let filters = Arc::new(read(path)?);
                // Another may have been quicker.
                let _ = guard.insert(filters.clone());
                Ok(filters)
            }
            GuardResult::Timeout => Ok(Arc::new(read(path)?)),
        }
    }
}

fn read(path: &Path) -> Result<Filters, Error> {
    let file = File::open(path).map_err(|cause| Error::Port(format!("open {}: {cause}", path.display())))?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file)?;
    let columns = reader.parquet_schema().columns();
    let place = |name: &str| columns.iter().position(|column| column.path().parts() == [name]);
    let places = (place("message_id"), place("recipient"), place("recipient_folded"));
    let mut bytes = 0;
    let mut groups = Vec::with_capacity(reader.metadata().num_row_groups());
    for group in 0..reader.metadata().num_row_groups() {
        let mut filter = |column: Option<usize>| match column {
            Some(column) => {
                let length = reader.metadata().row_group(group).column(column).bloom_filter_length();
                bytes += length.unwrap_or(0).max(0) as u64;
                reader.get_row_group_column_bloom_filter(group, column)
            }
            None => Ok(None),
        };
        groups.push(Group {
            message_id: filter(places.0)?,
            recipient: filter(places.1)?,
            recipient_folded: filter(places.2)?,
        });
    }
    Ok(Filters { groups, bytes })
}
