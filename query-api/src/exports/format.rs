//! Files of an export, written as their rows come.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringBuilder, StructArray};
use arrow::csv;
use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use arrow::json::LineDelimitedWriter;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use serde_json::{Map, Value};

use super::job::Format;
use crate::Error;

/// Rows of a row group, which bounds what is kept in memory.
const GROUP_ROWS: usize = 64 * 1_024;

/// A file that is being written beside its place.
pub struct ExportFile {
    aside: PathBuf,
    path: PathBuf,
    kind: Kind,
}

enum Kind {
    Parquet(Box<ArrowWriter<File>>),
    Csv(Box<csv::Writer<BufWriter<File>>>),
    Ndjson(LineDelimitedWriter<BufWriter<File>>),
}

fn failed(cause: impl std::fmt::Display) -> Error {
    Error::Port(format!("a file of an export: {cause}"))
}

impl ExportFile {
    /// Begins a file for rows like these.
    ///
    /// # Errors
    /// [`Error::Port`], [`Error::Parquet`].
    pub fn begin(path: PathBuf, format: Format, schema: &Arc<Schema>) -> Result<Self, Error> {
        let aside = path.with_extension("writing");
        let file = File::create(&aside).map_err(failed)?;
        let kind = match format {
            Format::Parquet => {
                let properties = WriterProperties::builder()
                    .set_compression(Compression::ZSTD(ZstdLevel::try_new(1).unwrap_or_default()))
                    .set_max_row_group_row_count(Some(GROUP_ROWS))
                    .set_created_by(format!("sendtrail {}", env!("CARGO_PKG_VERSION")))
                    .build();
                Kind::Parquet(Box::new(ArrowWriter::try_new(file, schema.clone(), Some(properties))?))
            }
            Format::Csv => Kind::Csv(Box::new(csv::Writer::new(BufWriter::new(file)))),
            Format::Ndjson => Kind::Ndjson(LineDelimitedWriter::new(BufWriter::new(file))),
        };
        Ok(Self { aside, path, kind })
    }

    /// Adds rows.
    ///
    /// # Errors
    /// [`Error::Port`], [`Error::Parquet`].
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), Error> {
        match &mut self.kind {
            Kind::Parquet(writer) => Ok(writer.write(batch)?),
            Kind::Csv(writer) => writer.write(&flat(batch)?).map_err(failed),
            Kind::Ndjson(writer) => writer.write(batch).map_err(failed),
        }
    }

    /// Ends the file and puts it into its place, durable when this returns.
    ///
    /// # Errors
    /// [`Error::Port`], [`Error::Parquet`].
    pub fn finish(self) -> Result<(), Error> {
        let file = match self.kind {
            Kind::Parquet(writer) => writer.into_inner()?,
            Kind::Csv(writer) => writer.into_inner().into_inner().map_err(failed)?,
            Kind::Ndjson(mut writer) => {
                writer.finish().map_err(failed)?;
                writer.into_inner().into_inner().map_err(failed)?
            }
        };
        let settle = || {
            file.sync_all()?;
            std::fs::rename(&self.aside, &self.path)?;
            File::open(self.path.parent().unwrap_or(Path::new(".")))?.sync_all()
        };
        settle().map_err(failed)
    }
}

/// The same rows without structs, maps and lists: fields of a struct are columns of their own, the others are JSON.
fn flat(batch: &RecordBatch) -> Result<RecordBatch, Error> {
    let (mut fields, mut columns): (Vec<FieldRef>, Vec<ArrayRef>) = Default::default();
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        match field.data_type() {
            DataType::Struct(_) => {
                let array: &StructArray = column.as_struct();
                for (inner, values) in array.fields().iter().zip(array.columns()) {
                    let name = format!("{}.{}", field.name(), inner.name());
                    fields.push(Arc::new(Field::new(name, inner.data_type().clone(), true)));
                    // What is in a struct that is null is not there, whatever is stored.
                    let hidden = arrow::compute::is_null(column).map_err(failed)?;
                    columns.push(arrow::compute::nullif(values, &hidden).map_err(failed)?);
                }
            }
            DataType::Map(_, _) | DataType::List(_) => {
                fields.push(Arc::new(Field::new(field.name(), DataType::Utf8, true)));
                columns.push(Arc::new(as_json(column)));
            }
            _ => {
                fields.push(field.clone());
                columns.push(column.clone());
            }
        }
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(failed)
}

/// Maps of text to text, and lists of text, as JSON.
fn as_json(column: &ArrayRef) -> arrow::array::StringArray {
    let text = |values: &ArrayRef, at: usize| {
        let values = values.as_string_opt::<i32>().filter(|values| values.is_valid(at));
        values.map_or(Value::Null, |values| values.value(at).into())
    };
    let mut texts = StringBuilder::new();
    for row in 0..column.len() {
        if column.is_null(row) {
            texts.append_null();
        } else if let Some(maps) = column.as_map_opt() {
            let entries = maps.value(row);
            let pairs = (0..entries.len()).map(|at| {
                let key = text(entries.column(0), at).as_str().unwrap_or_default().to_owned();
                (key, text(entries.column(1), at))
            });
            texts.append_value(Value::Object(pairs.collect::<Map<_, _>>()).to_string());
        } else if let Some(lists) = column.as_list_opt::<i32>() {
            let list = lists.value(row);
            let values = (0..list.len()).map(|at| text(&list, at)).collect();
            texts.append_value(Value::Array(values).to_string());
        } else {
            texts.append_null();
        }
    }
    texts.finish()
}
