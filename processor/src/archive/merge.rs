//! A merge of sorted files that keeps their order.

use std::cmp::Ordering;
use std::fs::File;
use std::path::Path;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{SchemaRef, TimestampMicrosecondType};
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use sendtrail_schemas::archive::ArchivedFile;

use super::gather::gather;
use super::layout::{ACCOUNT, Layout, TIME};
use super::parquet_file::SortedFile;
use crate::Error;

/// Rows read from a file at once: of the largest, a column still has less than 2 GiB of text.
const READ_ROWS: usize = 8 * 1_024;

/// Where the merge stands in one file.
struct Cursor {
    reader: ParquetRecordBatchReader,
    batch: RecordBatch,
    row: usize,
}

impl Cursor {
    fn open(layout: &Layout, root: &Path, file: &ArchivedFile) -> Result<Option<Self>, Error> {
        let reader = read_all(root, file)?;
        let schema = (layout.schema)();
        let mut cursor = Self { reader, batch: RecordBatch::new_empty(schema), row: 0 };
        Ok(cursor.refill()?.then_some(cursor))
    }

    /// Reads on; whether there was anything.
    fn refill(&mut self) -> Result<bool, Error> {
        for batch in self.reader.by_ref() {
            let batch = conform(&batch?, self.batch.schema())?;
            if batch.num_rows() > 0 {
                (self.batch, self.row) = (batch, 0);
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn key(&self, row: usize) -> (&str, i64) {
        let account = self.batch.column(ACCOUNT).as_string::<i32>();
        let occurred = self.batch.column(TIME).as_primitive::<TimestampMicrosecondType>();
        (account.value(row), occurred.value(row))
    }
}

/// A file, to be read by whoever says what of it.
///
/// # Errors
/// [`Error::Io`], [`Error::Parquet`].
pub fn open(root: &Path, file: &ArchivedFile) -> Result<ParquetRecordBatchReaderBuilder<File>, Error> {
    let path = root.join(&file.path);
    let io = |cause| Error::Io { what: format!("open {}", path.display()), cause };
    let open = File::open(&path).map_err(io)?;
    Ok(ParquetRecordBatchReaderBuilder::try_new(open)?)
}

/// All of a file.
fn read_all(root: &Path, file: &ArchivedFile) -> Result<ParquetRecordBatchReader, Error> {
    Ok(open(root, file)?.with_batch_size(READ_ROWS).build()?)
}

/// The rows of a file, in order.
///
/// # Errors
/// [`Error::Io`], [`Error::Parquet`].
pub fn read_file(
    layout: &'static Layout,
    root: &Path,
    file: &ArchivedFile,
) -> Result<impl Iterator<Item = Result<RecordBatch, Error>> + use<>, Error> {
    Ok(read_all(root, file)?.map(|batch| conform(&batch?, (layout.schema)())))
}

/// A batch of an older file in today's columns: those it lacks are null.
pub fn conform(batch: &RecordBatch, schema: SchemaRef) -> Result<RecordBatch, Error> {
    let column = |field: &arrow::datatypes::FieldRef| match batch.column_by_name(field.name()) {
        Some(column) => column.clone(),
        None => arrow::array::new_null_array(field.data_type(), batch.num_rows()),
    };
    Ok(RecordBatch::try_new(schema.clone(), schema.fields().iter().map(column).collect())?)
}

/// Merges files of one day into `into`, in order.
///
/// # Errors
/// [`Error::Parquet`], [`Error::Io`], [`Error::Arrow`].
pub fn merge(
    layout: &Layout,
    root: &Path,
    files: &[std::sync::Arc<ArchivedFile>],
    mut into: SortedFile<'_>,
) -> Result<ArchivedFile, Error> {
    let mut cursors = Vec::with_capacity(files.len());
    for file in files {
        cursors.extend(Cursor::open(layout, root, file)?);
    }
    let mut indices: Vec<(usize, usize)> = Vec::with_capacity(READ_ROWS);
    while !cursors.is_empty() {
        let (least, limit) = least_two(&cursors);
        // Rows up to the next cursor's are taken in one go: files of one day seldom interleave row by row.
        let cursor = &cursors[least];
        let limit = limit.map(|at| cursors[at].key(cursors[at].row));
        let mut row = cursor.row;
        while row < cursor.batch.num_rows() && limit.is_none_or(|limit| cursor.key(row) <= limit) {
            indices.push((least, row));
            row += 1;
        }
        let exhausted = row == cursor.batch.num_rows();
        cursors[least].row = row;
        if exhausted || indices.len() >= READ_ROWS {
            flush(&cursors, &mut indices, &mut into)?;
        }
        if exhausted && !cursors[least].refill()? {
            cursors.remove(least);
        }
    }
    into.finish()
}

/// The cursor with the least row, and the one with the next.
fn least_two(cursors: &[Cursor]) -> (usize, Option<usize>) {
    let compare = |one: usize, other: usize| -> Ordering {
        cursors[one].key(cursors[one].row).cmp(&cursors[other].key(cursors[other].row)).then(one.cmp(&other))
    };
    let (mut least, mut next) = (0, None);
    for at in 1..cursors.len() {
        if compare(at, least).is_lt() {
            next = Some(least);
            least = at;
        } else if next.is_none_or(|next| compare(at, next).is_lt()) {
            next = Some(at);
        }
    }
    (least, next)
}

fn flush(cursors: &[Cursor], indices: &mut Vec<(usize, usize)>, into: &mut SortedFile<'_>) -> Result<(), Error> {
    if !indices.is_empty() {
        let batches: Vec<&RecordBatch> = cursors.iter().map(|cursor| &cursor.batch).collect();
        into.write(&gather(&batches, indices)?)?;
        indices.clear();
    }
    Ok(())
}
