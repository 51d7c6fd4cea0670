//! Rows by their numbers, from what readers see of the archive.

use std::path::Path;

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::Int64Type;
use arrow::error::ArrowError;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowPredicateFn, RowFilter};
use parquet::file::statistics::Statistics;
use sendtrail_schemas::archive::{ArchiveView, ArchivedFile};
use sendtrail_schemas::clickhouse;

use super::claims::Ranges;
use crate::Error;
use crate::archive::{self, Layout, conform, open};

/// A table of ClickHouse and where its rows come from.
#[derive(Clone, Copy)]
pub struct Feed {
    /// Its name.
    pub table: &'static str,
    /// The archive's table.
    pub layout: &'static Layout,
    /// The column of the archive that numbers the rows of a partition.
    number: &'static str,
    /// Makes rows of it.
    convert: fn(&RecordBatch) -> Result<RecordBatch, ArrowError>,
}

/// Events.
pub static EVENTS: Feed =
    Feed { table: "events", layout: &archive::EVENTS, number: "seq", convert: clickhouse::to_rows };

/// Attempts at webhooks.
pub static ATTEMPTS: Feed =
    Feed { table: "deliveries", layout: &archive::ATTEMPTS, number: "offset", convert: |rows| Ok(rows.clone()) };

const PARTITION: &str = "partition";

impl Feed {
    /// The column that numbers the rows of a partition.
    pub fn number(&self) -> &'static str {
        self.number
    }

    /// The rows of some ranges, in ClickHouse's columns; `None` when they are more than so many bytes. Blocks.
    ///
    /// # Errors
    /// [`Error::Missing`] when the view lacks some of them; [`Error::Parquet`], [`Error::Io`].
    pub fn fetch(&self, view: &ArchiveView, ranges: &Ranges, bytes: usize) -> Result<Option<RecordBatch>, Error> {
        let too_large =
            |found: &[RecordBatch]| found.iter().map(RecordBatch::get_array_memory_size).sum::<usize>() > bytes;
        let mut found = Vec::new();
        if ranges.iter().any(|(partition, (from, _))| *from < view.filed.get(partition).copied().unwrap_or(0)) {
            for file in view.files.iter() {
                self.read(&view.root, file, ranges, &mut found)?;
                if too_large(&found) {
                    return Ok(None);
                }
            }
        }
        for batch in &view.tail {
            let within = |(partition, (first, last)): (&u32, &(u64, u64))| {
                ranges.get(partition).is_some_and(|(from, to)| from <= first && last < to)
            };
            let touches = |(partition, (first, last)): (&u32, &(u64, u64))| {
                ranges.get(partition).is_some_and(|(from, to)| from <= last && first < to)
            };
            if batch.numbers.iter().all(within) {
                found.push(batch.rows.clone());
            } else if batch.numbers.iter().any(touches) {
                let wanted = self.wanted(&batch.rows, ranges)?;
                found.push(filter_record_batch(&batch.rows, &wanted)?);
            }
        }
        let there: u64 = found.iter().map(|rows| rows.num_rows() as u64).sum();
        let asked: u64 = ranges.values().map(|(from, to)| to - from).sum();
        if there != asked {
            let what = self.layout.name();
            return Err(Error::Missing(format!("the archive has {there} of {asked} {what} numbered {ranges:?}")));
        }
        if too_large(&found) {
            return Ok(None);
        }
        Ok(Some((self.convert)(&concat_batches(&(self.layout.schema)(), &found)?)?))
    }

    /// Which rows are in some ranges.
    fn wanted(&self, rows: &RecordBatch, ranges: &Ranges) -> Result<BooleanArray, ArrowError> {
        let is_wanted = |(partition, number): (u32, u64)| {
            Some(ranges.get(&partition).is_some_and(|(from, to)| (*from..*to).contains(&number)))
        };
        Ok(self.places(rows)?.map(is_wanted).collect())
    }

    /// The partition and the number of each row.
    fn places<'a>(&self, rows: &'a RecordBatch) -> Result<impl Iterator<Item = (u32, u64)> + use<'a>, ArrowError> {
        let column = |name: &str| {
            let column = rows.column_by_name(name).and_then(|column| column.as_primitive_opt::<Int64Type>());
            column.ok_or_else(|| ArrowError::SchemaError(format!("no column {name:?}")))
        };
        let (partitions, numbers) = (column(PARTITION)?.values(), column(self.number)?.values());
        Ok(partitions.iter().zip(numbers).map(|(partition, number)| (*partition as u32, *number as u64)))
    }

    /// Adds the rows of a file that are in some ranges; its other columns are read for those only.
    fn read(
        &self,
        root: &Path,
        file: &ArchivedFile,
        ranges: &Ranges,
        found: &mut Vec<RecordBatch>,
    ) -> Result<(), Error> {
        let reader = open(root, file)?;
        let schema = reader.parquet_schema();
        let place = |name: &str| schema.columns().iter().position(|column| column.name() == name);
        let places = [place(PARTITION), place(self.number)];
        let may_hold = |group: &usize| {
            let bounds =
                places.map(|at| match at.and_then(|at| reader.metadata().row_group(*group).column(at).statistics()) {
                    Some(Statistics::Int64(of)) => (of.min_opt().copied(), of.max_opt().copied()),
                    _ => (None, None),
                });
            let meets = |(least, greatest): (Option<i64>, Option<i64>), from: u64, last: u64| {
                least.is_none_or(|least| least as u64 <= last)
                    && greatest.is_none_or(|greatest| greatest as u64 >= from)
            };
            ranges.iter().any(|(partition, (from, to))| {
                let partition = u64::from(*partition);
                meets(bounds[0], partition, partition) && meets(bounds[1], *from, to.saturating_sub(1))
            })
        };
        let groups: Vec<usize> = (0..reader.metadata().num_row_groups()).filter(may_hold).collect();
        if groups.is_empty() {
            return Ok(());
        }
        let narrow = ProjectionMask::columns(schema, [PARTITION, self.number]);
        let (feed, ranges) = (*self, ranges.clone());
        let predicate = ArrowPredicateFn::new(narrow, move |rows| feed.wanted(&rows, &ranges));
        let rows = reader.with_row_groups(groups).with_row_filter(RowFilter::new(vec![Box::new(predicate)])).build()?;
        for batch in rows {
            found.push(conform(&batch?, (self.layout.schema)())?);
        }
        Ok(())
    }

    /// The least number of each partition that a view has, or will have: of attempts, what came before was never archived.
    /// Blocks.
    ///
    /// # Errors
    /// [`Error::Parquet`], [`Error::Io`].
    pub fn first(&self, view: &ArchiveView) -> Result<super::Marks, Error> {
        let mut first = super::Marks::new();
        let mut note = |partition: u32, number: u64| {
            let least = first.entry(partition).or_insert(number);
            *least = number.min(*least);
        };
        for file in view.files.iter() {
            let reader = open(&view.root, file)?;
            let narrow = ProjectionMask::columns(reader.parquet_schema(), [PARTITION, self.number]);
            for batch in reader.with_projection(narrow).build()? {
                self.places(&batch?)?.for_each(|(partition, number)| note(partition, number));
            }
        }
        for (partition, (least, _)) in view.tail.iter().flat_map(|batch| &*batch.numbers) {
            note(*partition, *least);
        }
        for (partition, next) in view.filed.iter() {
            first.entry(*partition).or_insert(*next);
        }
        Ok(first)
    }
}
