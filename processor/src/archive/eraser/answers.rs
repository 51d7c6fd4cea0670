//! Attempts without what receivers answered.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch};
use arrow::compute::nullif;
use arrow::datatypes::Int64Type;
use parquet::arrow::ProjectionMask;
use sendtrail_schemas::archive::ArchivedFile;

use super::super::layout::Layout;
use super::super::merge::{open, read_file};
use super::super::parquet_file::{SortedFile, path};
use super::super::upkeep::fresh_name;
use crate::Error;

/// Columns of an attempt that hold what somebody else wrote.
const ANSWERS: [&str; 2] = ["error", "response"];

/// Files that were written anew.
#[derive(Default)]
pub struct Cleared {
    pub old: Vec<Arc<ArchivedFile>>,
    pub new: Vec<ArchivedFile>,
    pub rows: u64,
}

pub fn rewrite(
    layout: &'static Layout,
    root: &Path,
    files: &[Arc<ArchivedFile>],
    accounts: &HashSet<String>,
    events: &HashSet<(u32, u64)>,
) -> Result<Cleared, Error> {
    let mut cleared = Cleared::default();
    let may_hold = |file: &&Arc<ArchivedFile>| {
        accounts.iter().any(|account| file.accounts.0 <= *account && *account <= file.accounts.1)
    };
    for file in files.iter().filter(may_hold) {
        let reader = open(root, file)?;
        let columns = ["partition", "event_seq"].into_iter().chain(ANSWERS);
        let narrow = ProjectionMask::columns(reader.parquet_schema(), columns);
        let mut rows = 0;
        for batch in reader.with_projection(narrow).build()? {
            rows += chosen(&batch?, events)?.true_count() as u64;
        }
        if rows == 0 {
            continue;
        }
        let to = path(layout, file.day, &format!("{}-erased", fresh_name()));
        let mut into = SortedFile::create(layout, root, to, file.day, file.rows as usize)?;
        for batch in read_file(layout, root, file)? {
            let batch = batch?;
            let clear = chosen(&batch, events)?;
            let mut columns = batch.columns().to_vec();
            for name in ANSWERS {
                let at = batch.schema().index_of(name)?;
                columns[at] = nullif(&columns[at], &clear)?;
            }
            into.write(&RecordBatch::try_new(batch.schema(), columns)?)?;
        }
        cleared.new.push(into.finish()?);
        cleared.old.push(file.clone());
        cleared.rows += rows;
    }
    Ok(cleared)
}

/// Which attempts are of those events and hold an answer.
fn chosen(batch: &RecordBatch, events: &HashSet<(u32, u64)>) -> Result<BooleanArray, Error> {
    let numbers = |name: &str| {
        let column = batch.column_by_name(name).and_then(|column| column.as_primitive_opt::<Int64Type>());
        column.ok_or_else(|| Error::Missing(format!("a file of attempts has no column {name}")))
    };
    let (partitions, seqs) = (numbers("partition")?, numbers("event_seq")?);
    let answered = |row| {
        let mut columns = ANSWERS.iter().filter_map(|name| batch.column_by_name(name));
        columns.any(|column| column.is_valid(row))
    };
    let is_chosen = |row| {
        let place = (partitions.value(row) as u32, seqs.value(row) as u64);
        Some(events.contains(&place) && answered(row))
    };
    Ok((0..batch.num_rows()).map(is_chosen).collect())
}
