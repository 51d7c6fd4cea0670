//! Attempts without what receivers answered.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::datatypes::Int64Type;
use parquet::arrow::ProjectionMask;
use sendtrail_audit::{Chosen, Columns, Places, SealFolder, Sealed};
use sendtrail_schemas::archive::ArchivedFile;
use sendtrail_schemas::attempts::PERSONAL;
use sendtrail_schemas::time::Millis;

use super::super::merge::{open, read_file};
use super::super::parquet_file::{SortedFile, path};
use super::super::upkeep::fresh_name;
use super::{Found, Open, Rewritten};
use crate::Error;

/// Writes files anew that hold answers to posts of some events. Nobody lists the new ones yet.
pub fn rewrite(of: &Open, accounts: &HashSet<String>, events: &Places) -> Result<Rewritten, Error> {
    let may_hold = |file: &&Arc<ArchivedFile>| {
        accounts.iter().any(|account| file.accounts.0 <= *account && *account <= file.accounts.1)
    };
    let mut old = Vec::new();
    for file in of.files.iter().filter(may_hold) {
        let reader = open(&of.root, file)?;
        let columns = ["partition", "event_seq"].into_iter().chain(PERSONAL);
        let narrow = ProjectionMask::columns(reader.parquet_schema(), columns);
        for batch in reader.with_projection(narrow).build()? {
            if chosen(of, &batch?, events)?.true_count() > 0 {
                old.push(file.clone());
                break;
            }
        }
    }
    let days: HashSet<String> = old.iter().map(|file| Millis::of_day(file.day).day_text()).collect();
    let mut sealed = Sealed::read(of.layout.dataset, SealFolder::of(&of.root), &of.key, &days)?;
    let mut found = Found { rows: vec![0], places: Places::default() };
    let mut new = Vec::with_capacity(old.len());
    for file in &old {
        let to = path(of.layout, file.day, &format!("{}-erased", fresh_name()));
        let mut into = SortedFile::create(of.layout, &of.root, to, file.day, file.rows as usize)?;
        for batch in read_file(of.layout, &of.root, file)? {
            let batch = batch?;
            let clear = chosen(of, &batch, events)?;
            sealed.take(&batch, |row| if clear.value(row) { Chosen::Yes } else { Chosen::No })?;
            let places = of.layout.dataset.places(&batch)?;
            found.places.extend((0..batch.num_rows()).filter(|&row| clear.value(row)).map(places));
            let columns = Columns::of(&batch.schema(), &of.layout.dataset.personal());
            into.write(&columns.bare(&batch, &clear)?)?;
        }
        new.push(into.finish()?);
    }
    found.rows[0] = found.places.len();
    Ok((found, old, new, sealed))
}

/// Which attempts are of those events and hold an answer.
fn chosen(of: &Open, batch: &RecordBatch, events: &Places) -> Result<BooleanArray, Error> {
    let columns = Columns::of(&batch.schema(), &of.layout.dataset.personal());
    let numbers = |name: &str| {
        let column = batch.column_by_name(name).and_then(|column| column.as_primitive_opt::<Int64Type>());
        column.ok_or_else(|| Error::Missing(format!("a file of attempts has no column {name}")))
    };
    let (partitions, seqs) = (numbers("partition")?, numbers("event_seq")?);
    let is_chosen = |row| {
        let event = (partitions.value(row) as u32, seqs.value(row) as u64);
        Some(events.contains(event) && !columns.is_bare(batch, row))
    };
    Ok((0..batch.num_rows()).map(is_chosen).collect())
}
