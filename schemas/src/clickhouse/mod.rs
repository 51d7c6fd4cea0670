//! What ClickHouse is told, and how its rows become events again.
//!
//! Names are those of the archive, but for the blocks: a hundred columns that are nearly always empty halve the speed of
//! inserting, so a row has the name of its block (`block_type`) and its fields as text (`block['bounceType']`).

pub mod tables;

use std::sync::{Arc, OnceLock};

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, MapBuilder, MapFieldNames, RecordBatch, StringBuilder, StructArray,
};
use arrow::datatypes::{DataType, Int64Type, Schema, SchemaRef, TimestampMicrosecondType};
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;

use crate::Error;
use crate::block::{Block, FieldKind, FieldValue};
use crate::columns::{self, block_named};
use crate::event::Event;
use crate::time::Millis;

/// The format in which rows are inserted and read.
pub const FORMAT: &str = "ArrowStream";

/// Columns of [`columns::schema`] before the blocks.
fn plain_columns() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| {
        let is_block = |kind: &DataType| matches!(kind, DataType::Struct(_));
        columns::schema().fields().iter().take_while(|field| !is_block(field.data_type())).count()
    })
}

/// Events in columns, as the table `events` takes them.
///
/// # Errors
/// Arrow's, when columns and schema disagree: a fault of this module.
pub fn to_rows(events: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let rows = events.num_rows();
    let mut owner: Vec<Option<usize>> = vec![None; rows];
    let schema = events.schema();
    let blocks: Vec<(&str, &StructArray)> = (plain_columns()..events.num_columns())
        .filter_map(|at| Some((schema.field(at).name().as_str(), events.column(at).as_struct_opt()?)))
        .collect();
    for (number, (_, block)) in blocks.iter().enumerate() {
        if block.null_count() < rows {
            (0..rows).filter(|row| block.is_valid(*row)).for_each(|row| owner[row] = Some(number));
        }
    }
    let mut kinds = StringBuilder::new();
    let names = MapFieldNames { entry: "entries".into(), key: "key".into(), value: "value".into() };
    let mut fields = MapBuilder::new(Some(names), StringBuilder::new(), StringBuilder::new());
    for (row, owner) in owner.into_iter().enumerate() {
        let block = owner.and_then(|number| blocks.get(number));
        kinds.append_value(block.map_or("", |(name, _)| name));
        for (name, column) in block.iter().flat_map(|(_, block)| block.column_names().into_iter().zip(block.columns()))
        {
            if let Some(value) = text(column, row) {
                fields.keys().append_value(name);
                fields.values().append_value(value);
            }
        }
        fields.append(true)?;
    }
    let mut of: Vec<ArrayRef> = events.columns()[..plain_columns()].to_vec();
    of.push(Arc::new(kinds.finish()));
    of.push(Arc::new(fields.finish()));
    let mut described: Vec<_> = schema.fields()[..plain_columns()].to_vec();
    for (name, column) in ["block_type", "block"].into_iter().zip(&of[plain_columns()..]) {
        described.push(Arc::new(arrow::datatypes::Field::new(name, column.data_type().clone(), false)));
    }
    RecordBatch::try_new(Arc::new(Schema::new(described)), of)
}

/// A value of a block's field as text: times as the API shows them.
fn text(column: &ArrayRef, row: usize) -> Option<String> {
    if column.is_null(row) {
        return None;
    }
    match column.data_type() {
        DataType::Utf8 => Some(column.as_string_opt::<i32>()?.value(row).to_owned()),
        DataType::Int64 => Some(column.as_primitive_opt::<Int64Type>()?.value(row).to_string()),
        DataType::Boolean => Some(column.as_any().downcast_ref::<BooleanArray>()?.value(row).to_string()),
        _ => {
            let micros = column.as_primitive_opt::<TimestampMicrosecondType>()?.value(row);
            Some(Millis(micros.div_euclid(1_000)).to_string())
        }
    }
}

/// Text as a value of a block's field.
fn value(kind: FieldKind, text: &str) -> Option<FieldValue<'static>> {
    Some(match kind {
        FieldKind::Text => FieldValue::Text(text.to_owned().into()),
        FieldKind::Integer => FieldValue::Integer(text.parse().ok()?),
        FieldKind::Flag => FieldValue::Flag(text.parse().ok()?),
        FieldKind::Time => FieldValue::Integer(Millis::parse(text).ok()?.0),
    })
}

/// Rows as a body in [`FORMAT`], one block.
///
/// # Errors
/// Arrow's.
pub fn encode(rows: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
    let mut writer = StreamWriter::try_new(Vec::with_capacity(rows.get_array_memory_size()), &rows.schema())?;
    writer.write(rows)?;
    writer.into_inner()
}

/// The events of an answer in [`FORMAT`] to a query by [`tables::SHOWN`].
///
/// # Errors
/// [`Error::Malformed`] when it is not such an answer.
pub fn read_answer(body: &[u8]) -> Result<Vec<Event>, Error> {
    // An answer without rows may have no schema either.
    if body.is_empty() {
        return Ok(Vec::new());
    }
    let malformed = |cause: ArrowError| Error::Malformed(format!("ClickHouse's answer: {cause}"));
    let mut events = Vec::new();
    for batch in StreamReader::try_new(body, None).map_err(malformed)? {
        let batch = batch.map_err(malformed)?;
        let blocks = Blocks::of(&batch)?;
        events.extend(columns::read_with(&batch, |row| blocks.read(row))?);
    }
    Ok(events)
}

struct Blocks<'a> {
    kinds: &'a arrow::array::StringArray,
    fields: &'a arrow::array::MapArray,
}

impl<'a> Blocks<'a> {
    fn of(batch: &'a RecordBatch) -> Result<Self, Error> {
        let mistyped = |name: &str| Error::Malformed(format!("column {name:?} is missing or of another type"));
        let kinds = batch.column_by_name("block_type").and_then(|column| column.as_string_opt::<i32>());
        let fields = batch.column_by_name("block").and_then(|column| column.as_map_opt());
        Ok(Self {
            kinds: kinds.ok_or_else(|| mistyped("block_type"))?,
            fields: fields.ok_or_else(|| mistyped("block"))?,
        })
    }

    fn read(&self, row: usize) -> Result<Option<Block>, Error> {
        let kind = self.kinds.value(row);
        if kind.is_empty() {
            return Ok(None);
        }
        let entries = self.fields.value(row);
        let texts = |at: usize| entries.column(at).as_string_opt::<i32>();
        let (Some(keys), Some(values)) = (texts(0), texts(1)) else {
            return Err(Error::Malformed("column \"block\" is of another type".into()));
        };
        let get = |name: &str, kind| {
            let at = (0..keys.len()).find(|at| keys.value(*at) == name)?;
            value(kind, values.value(at))
        };
        let block = block_named(kind, &get);
        Ok(Some(block.ok_or_else(|| Error::Malformed(format!("a block named {kind:?}")))?))
    }
}

/// Whether what ClickHouse says is one of some errors of its own, by their codes.
pub fn is_code(told: &str, codes: &[u32]) -> bool {
    codes.iter().any(|code| told.contains(&format!("Code: {code}.")))
}

/// The columns of `events` that are inserted.
pub fn row_schema() -> SchemaRef {
    static SCHEMA: OnceLock<SchemaRef> = OnceLock::new();
    // An empty batch of the archive's columns always converts.
    let made = || to_rows(&RecordBatch::new_empty(columns::schema())).map(|rows| rows.schema());
    SCHEMA.get_or_init(|| made().unwrap_or_else(|_| Arc::new(Schema::empty()))).clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{Bounce, StatusChange, Subscription};
    use crate::columns::EventColumns;
    use crate::kind::EventType;

    #[test]
    fn blocks_come_back_from_text() {
        let event = |seq, kind: EventType, block| Event {
            version: crate::codec::VERSION,
            account_id: vec![7; 16],
            seq,
            kind: kind as i32,
            event_id: format!("e{seq}"),
            block,
            ..Event::default()
        };
        let change =
            StatusChange { from: "HEALTHY".into(), numerator: 3, window_start: -3_600_001, ..StatusChange::default() };
        let subscription = Subscription { unsubscribe_all: Some(false), ..Subscription::default() };
        let bounce = Bounce { bounce_type: Some(String::new()), ..Bounce::default() };
        let events = [
            event(0, EventType::Send, None),
            event(1, EventType::Bounce, Some(Block::Bounce(bounce))),
            event(2, EventType::Bounce, Some(Block::Bounce(Bounce::default()))),
            event(3, EventType::Bounce, None),
            event(4, EventType::Paused, Some(Block::StatusChange(change))),
            event(5, EventType::Subscription, Some(Block::Subscription(subscription))),
        ];
        let mut columns = EventColumns::default();
        events.iter().for_each(|event| columns.push(event));
        let rows = to_rows(&columns.finish().unwrap()).unwrap();
        assert_eq!(rows.schema(), row_schema());
        assert_eq!(read_answer(&encode(&rows).unwrap()).unwrap(), events);
        assert_eq!(read_answer(b"").unwrap(), []);
        assert!(read_answer(b"DB::Exception").is_err());
    }
}
