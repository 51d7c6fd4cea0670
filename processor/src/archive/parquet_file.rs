//! Our own Parquet files: sorted by account and time, zstd 1, bloom filters on what is looked up.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::TimestampMicrosecondType;
use parquet::arrow::ArrowWriter;
use sendtrail_schemas::archive::ArchivedFile;
use sendtrail_schemas::time::{DAY, Day, HOUR, Millis};

use super::gather::gather;
use super::layout::{ACCOUNT, FILED_BY, Layout, TIME};
use crate::Error;
use sendtrail_eventlog::objects::sync_with_parents;

/// Rows handed to the writer at once: each handing-over costs as much as some thousand rows.
const CHUNK_ROWS: usize = 64 * 1_024;
/// Rows handed over at once when there are large ones among them: a column of them has less than 2 GiB of text.
const LARGE_CHUNK_ROWS: usize = 8 * 1_024;
/// Bytes of all rows up to which no column can be too large.
const SMALL_BYTES: usize = 1 << 30;
/// Rows dated further back than this, milliseconds, go to files of their own, so that those of the others stay narrow.
const LATE: i64 = 48 * HOUR;
/// Where a row of several batches is, and what it is sorted by.
struct Place {
    account: u32,
    occurred_at: i64,
    batch: u32,
    row: u32,
}

/// Writes rows into files under `root`, one for each day of receipt (and one more for late ones), durable when this
/// returns. `name` must be new for each call.
///
/// # Errors
/// [`Error::Parquet`], [`Error::Io`]: the files may be there but nobody knows them.
pub fn write_files(
    layout: &'static Layout,
    root: &Path,
    name: &str,
    batches: &[RecordBatch],
) -> Result<Vec<ArchivedFile>, Error> {
    let mut files: BTreeMap<(Day, bool), Vec<Place>> = BTreeMap::new();
    let mut accounts: BTreeMap<&str, u32> = BTreeMap::new();
    for batch in batches {
        let mut last = None;
        for account in batch.column(ACCOUNT).as_string::<i32>() {
            // Events of an account come in runs.
            if account != last {
                accounts.extend(account.map(|account| (account, 0)));
                last = account;
            }
        }
    }
    accounts.values_mut().enumerate().for_each(|(rank, account)| *account = rank as u32);
    for (number, batch) in batches.iter().enumerate() {
        let account = batch.column(ACCOUNT).as_string::<i32>();
        let occurred = batch.column(TIME).as_primitive::<TimestampMicrosecondType>();
        let received = batch.column(FILED_BY).as_primitive::<TimestampMicrosecondType>();
        let mut last = ("", 0);
        for row in 0..batch.num_rows() {
            let (occurred_at, received_at) = (occurred.value(row), received.value(row));
            let day = received_at.div_euclid(DAY * 1_000) as Day;
            let late = received_at - occurred_at > LATE * 1_000;
            if account.value(row) != last.0 {
                last = (account.value(row), accounts.get(account.value(row)).copied().unwrap_or_default());
            }
            let place = Place { account: last.1, occurred_at, batch: number as u32, row: row as u32 };
            files.entry((day, late)).or_default().push(place);
        }
    }
    let bytes: usize = batches.iter().map(RecordBatch::get_array_memory_size).sum();
    let chunk_rows = if bytes < SMALL_BYTES { CHUNK_ROWS } else { LARGE_CHUNK_ROWS };
    let references: Vec<&RecordBatch> = batches.iter().collect();
    let mut written = Vec::with_capacity(files.len());
    for ((day, late), mut places) in files {
        places.sort_unstable_by_key(|place| (place.account, place.occurred_at, place.batch, place.row));
        let path = path(layout, day, &format!("{name}{}", if late { "-late" } else { "" }));
        let mut file = SortedFile::create(layout, root, path, day, places.len())?;
        for chunk in places.chunks(chunk_rows) {
            let indices: Vec<_> = chunk.iter().map(|place| (place.batch as usize, place.row as usize)).collect();
            file.write(&gather(&references, &indices)?)?;
        }
        written.push(file.finish()?);
    }
    Ok(written)
}

/// Where a file goes: Delta tools read the day from the folder's name.
pub fn path(layout: &Layout, day: Day, name: &str) -> String {
    format!("dt={}/{}-{name}.parquet", Millis::of_day(day).day_text(), layout.name())
}

/// A file that is being written, its rows in order.
pub struct SortedFile<'a> {
    root: &'a Path,
    path: String,
    day: Day,
    writer: ArrowWriter<File>,
    rows: u64,
    accounts: Option<(String, String)>,
    occurred: (i64, i64),
}

impl<'a> SortedFile<'a> {
    /// Begins a file for about so many rows.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Parquet`].
    pub fn create(layout: &'static Layout, root: &'a Path, path: String, day: Day, rows: usize) -> Result<Self, Error> {
        let full = root.join(&path);
        let io = |cause| Error::Io { what: format!("create {}", full.display()), cause };
        if let Some(folder) = full.parent() {
            std::fs::create_dir_all(folder).map_err(io)?;
        }
        let io = |cause| Error::Io { what: format!("create {}", full.display()), cause };
        let file = File::create(&full).map_err(io)?;
        let writer = ArrowWriter::try_new(file, (layout.schema)(), Some(layout.properties(rows)))?;
        Ok(Self { root, path, day, writer, rows: 0, accounts: None, occurred: (i64::MAX, i64::MIN) })
    }

    /// Adds rows that come after all before.
    ///
    /// # Errors
    /// [`Error::Parquet`].
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), Error> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let account = batch.column(ACCOUNT).as_string::<i32>();
        let (first, last) = (account.value(0), account.value(batch.num_rows() - 1));
        match &mut self.accounts {
            Some((_, greatest)) => last.clone_into(greatest),
            None => self.accounts = Some((first.to_owned(), last.to_owned())),
        }
        for time in batch.column(TIME).as_primitive::<TimestampMicrosecondType>().values() {
            self.occurred = (self.occurred.0.min(*time), self.occurred.1.max(*time));
        }
        self.rows += batch.num_rows() as u64;
        Ok(self.writer.write(batch)?)
    }

    /// Ends the file, durable when this returns.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Parquet`].
    pub fn finish(self) -> Result<ArchivedFile, Error> {
        self.writer.close()?;
        let full = self.root.join(&self.path);
        let io = |cause| Error::Io { what: format!("sync {}", full.display()), cause };
        sync_with_parents(&full, self.root).map_err(io)?;
        let io = |cause| Error::Io { what: format!("look at {}", full.display()), cause };
        let bytes = std::fs::metadata(&full).map_err(io)?.len();
        let millis = |micros: i64| Millis(micros.div_euclid(1_000));
        Ok(ArchivedFile {
            path: self.path,
            bytes,
            rows: self.rows,
            day: self.day,
            accounts: self.accounts.unwrap_or_default(),
            occurred: (millis(self.occurred.0), millis(self.occurred.1)),
        })
    }
}
