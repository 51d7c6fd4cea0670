//! A row as bytes: the same for the same values, whoever wrote them into whichever file. `docs/AUDIT.md` has the rules.

use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch, StructArray};
use arrow::compute::nullif;
use arrow::datatypes::{DataType, Int64Type, Schema, TimeUnit, TimestampMicrosecondType};
use arrow::error::ArrowError;

use crate::Error;

const TEXT: u8 = 1;
const INTEGER: u8 = 2;
const FLAG: u8 = 3;
const TIME: u8 = 4;
const LIST: u8 = 5;
const MAP: u8 = 6;
const STRUCT: u8 = 7;

/// The columns of a schema in the order of the encoding, and which of them are personal.
#[derive(Clone, Debug)]
pub struct Columns {
    columns: Vec<Column>,
}

#[derive(Clone, Debug)]
struct Column {
    at: usize,
    name: String,
    /// Whether it belongs to the personal part; of a struct, by field, in the order of their names.
    personal: bool,
    fields: Option<Vec<Column>>,
}

impl Columns {
    /// Of a schema, and the personal columns as [`sendtrail_schemas::personal::PERSONAL`] writes them.
    pub fn of(schema: &Schema, personal: &[String]) -> Self {
        let has = |name: &str| personal.iter().any(|one| one == name);
        let column = |(at, field): (usize, &arrow::datatypes::FieldRef)| {
            let name = field.name().clone();
            let fields = match field.data_type() {
                DataType::Struct(fields) => {
                    let mixed = has(&format!("{name}.*"));
                    let inner = fields.iter().enumerate().map(|(at, field)| {
                        let personal = mixed && !has(&format!("!{name}.{}", field.name()));
                        Column { at, name: field.name().clone(), personal, fields: None }
                    });
                    Some(sorted(inner.collect()))
                }
                _ => None,
            };
            Column { at, personal: has(&name), name, fields }
        };
        Self { columns: sorted(schema.fields().iter().enumerate().map(column).collect()) }
    }

    /// Writes one row: its plain part and its personal part.
    ///
    /// # Errors
    /// [`Error::Malformed`]: a column is of a type that has no encoding.
    pub fn encode(
        &self,
        batch: &RecordBatch,
        row: usize,
        plain: &mut Vec<u8>,
        personal: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let (mut plain, mut personal) = (Fields::begin(plain), Fields::begin(personal));
        for column in &self.columns {
            let array = batch.column(column.at).as_ref();
            if array.is_null(row) {
                continue;
            }
            match &column.fields {
                None if column.personal => personal.put(&column.name, array, row)?,
                None => plain.put(&column.name, array, row)?,
                Some(fields) => {
                    put_struct(&mut plain, column, fields, array, row, false)?;
                    if fields.iter().any(|field| field.personal) {
                        put_struct(&mut personal, column, fields, array, row, true)?;
                    }
                }
            }
        }
        plain.end();
        personal.end();
        Ok(())
    }

    /// Whether a row holds nothing personal.
    pub fn is_bare(&self, batch: &RecordBatch, row: usize) -> bool {
        self.columns.iter().all(|column| {
            let array = batch.column(column.at);
            match &column.fields {
                _ if array.is_null(row) => true,
                None => !column.personal,
                Some(fields) => {
                    fields.iter().all(|field| !field.personal || array.as_struct().column(field.at).is_null(row))
                }
            }
        })
    }

    /// The same rows, of which some lose what is personal.
    ///
    /// # Errors
    /// [`Error::Malformed`]: a personal column may not be null.
    pub fn bare(&self, batch: &RecordBatch, rows: &BooleanArray) -> Result<RecordBatch, Error> {
        let malformed = |cause: ArrowError| Error::Malformed(format!("personal columns: {cause}"));
        let mut columns = batch.columns().to_vec();
        for column in &self.columns {
            let array = &mut columns[column.at];
            match &column.fields {
                None if column.personal => *array = nullif(array, rows).map_err(malformed)?,
                Some(fields) if fields.iter().any(|field| field.personal) => {
                    let (named, mut inner, valid) = array.as_struct().clone().into_parts();
                    for field in fields.iter().filter(|field| field.personal) {
                        inner[field.at] = nullif(&inner[field.at], rows).map_err(malformed)?;
                    }
                    *array = Arc::new(StructArray::try_new(named, inner, valid).map_err(malformed)?);
                }
                _ => {}
            }
        }
        RecordBatch::try_new(batch.schema(), columns).map_err(malformed)
    }
}

fn sorted(mut columns: Vec<Column>) -> Vec<Column> {
    columns.sort_unstable_by(|one, other| one.name.as_bytes().cmp(other.name.as_bytes()));
    columns
}

fn put_struct(
    into: &mut Fields<'_>,
    column: &Column,
    fields: &[Column],
    array: &dyn Array,
    row: usize,
    personal: bool,
) -> Result<(), Error> {
    into.name(&column.name);
    into.bytes.push(STRUCT);
    let array = array.as_struct();
    let mut inner = Fields::begin(into.bytes);
    for field in fields.iter().filter(|field| field.personal == personal) {
        let values = array.column(field.at).as_ref();
        if !values.is_null(row) {
            inner.put(&field.name, values, row)?;
        }
    }
    inner.end();
    Ok(())
}

/// Named values that are not null: how many, then each name and value.
struct Fields<'a> {
    bytes: &'a mut Vec<u8>,
    count_at: usize,
    count: u32,
}

impl<'a> Fields<'a> {
    fn begin(bytes: &'a mut Vec<u8>) -> Self {
        let count_at = bytes.len();
        bytes.extend([0; 4]);
        Self { bytes, count_at, count: 0 }
    }

    fn name(&mut self, name: &str) {
        self.count += 1;
        text(self.bytes, name);
    }

    fn put(&mut self, name: &str, array: &dyn Array, row: usize) -> Result<(), Error> {
        self.name(name);
        value(self.bytes, array, row)
    }

    fn end(self) {
        self.bytes[self.count_at..self.count_at + 4].copy_from_slice(&self.count.to_be_bytes());
    }
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u32).to_be_bytes());
    bytes.extend(text.as_bytes());
}

/// Writes a value that is not null.
fn value(bytes: &mut Vec<u8>, array: &dyn Array, row: usize) -> Result<(), Error> {
    match array.data_type() {
        DataType::Utf8 => {
            bytes.push(TEXT);
            text(bytes, array.as_string::<i32>().value(row));
        }
        DataType::Int64 => {
            bytes.push(INTEGER);
            bytes.extend(array.as_primitive::<Int64Type>().value(row).to_be_bytes());
        }
        DataType::Boolean => bytes.extend([FLAG, u8::from(array.as_boolean().value(row))]),
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            bytes.push(TIME);
            bytes.extend(array.as_primitive::<TimestampMicrosecondType>().value(row).to_be_bytes());
        }
        DataType::List(_) => {
            let list = array.as_list::<i32>().value(row);
            bytes.push(LIST);
            bytes.extend((list.len() as u32).to_be_bytes());
            for at in 0..list.len() {
                optional(bytes, &list, at)?;
            }
        }
        DataType::Map(_, _) => {
            let entries = array.as_map().value(row);
            let keys = entries.column(0).as_string_opt::<i32>();
            let keys = keys.ok_or_else(|| Error::Malformed("keys of a map are text".into()))?;
            // Whoever writes a map may order it as they like.
            let mut order: Vec<usize> = (0..keys.len()).collect();
            order.sort_by(|one, other| keys.value(*one).as_bytes().cmp(keys.value(*other).as_bytes()));
            bytes.push(MAP);
            bytes.extend((keys.len() as u32).to_be_bytes());
            for at in order {
                text(bytes, keys.value(at));
                optional(bytes, entries.column(1), at)?;
            }
        }
        other => return Err(Error::Malformed(format!("no encoding for values of the type {other}"))),
    }
    Ok(())
}

fn optional(bytes: &mut Vec<u8>, array: &dyn Array, at: usize) -> Result<(), Error> {
    if array.is_null(at) {
        bytes.push(0);
        return Ok(());
    }
    value(bytes, array, at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::compute::concat_batches;
    use sendtrail_schemas::block::{Block, Bounce, Open};
    use sendtrail_schemas::columns::{EventColumns, schema};
    use sendtrail_schemas::event::{Event, Tags};
    use sendtrail_schemas::kind::EventType;
    use sendtrail_schemas::personal::{PERSONAL, personal};

    fn event(seq: u64) -> Event {
        Event {
            account_id: vec![7; 16],
            kind: EventType::Bounce as i32,
            seq,
            recipient: "Jane@example.com".into(),
            tags: Tags::from([("b".into(), "2".into()), ("a".into(), "1".into())]),
            block: Some(Block::Bounce(Bounce {
                bounce_type: Some("Permanent".into()),
                diagnostic_code: Some("550 jane".into()),
                ..Default::default()
            })),
            ..Default::default()
        }
    }

    fn batch(events: &[Event]) -> RecordBatch {
        let mut columns = EventColumns::default();
        events.iter().for_each(|event| columns.push(event));
        columns.finish().unwrap()
    }

    fn encoded(batch: &RecordBatch, row: usize) -> (Vec<u8>, Vec<u8>) {
        let (mut plain, mut private) = (Vec::new(), Vec::new());
        Columns::of(&batch.schema(), &personal()).encode(batch, row, &mut plain, &mut private).unwrap();
        (plain, private)
    }

    #[test]
    fn every_personal_column_exists() {
        let schema = schema();
        for name in PERSONAL {
            let path = name.trim_start_matches('!');
            let (column, field) = path.split_once('.').unwrap_or((path, ""));
            let column = schema.field_with_name(column).unwrap();
            if let (DataType::Struct(fields), false) = (column.data_type(), field == "*") {
                assert!(fields.iter().any(|one| one.name() == field), "{name}");
            }
        }
    }

    #[test]
    fn a_row_is_the_same_wherever_it_stands_and_whatever_else_is_there() {
        let alone = encoded(&batch(&[event(1)]), 0);
        let open = Event { block: Some(Block::Open(Open::default())), ..event(0) };
        assert_eq!(encoded(&batch(&[open, event(1)]), 1), alone);
        // Columns that an older or a newer program has are nothing, as long as nothing is in them; their order neither.
        let full = batch(&[event(1)]);
        let mut few: Vec<usize> = (0..full.num_columns()).filter(|&at| full.column(at).null_count() == 0).collect();
        few.reverse();
        assert_eq!(encoded(&full.project(&few).unwrap(), 0), alone);
        assert_eq!(encoded(&concat_batches(&full.schema(), [&full, &full]).unwrap(), 1), alone);
    }

    #[test]
    fn what_is_personal_is_in_its_part_only() {
        let holds = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
        let (plain, private) = encoded(&batch(&[event(1)]), 0);
        for text in ["Jane@", "jane@", "550 jane", "example.com"] {
            assert!(!holds(&plain, text) && holds(&private, text), "{text}");
        }
        assert!(holds(&plain, "Permanent") && !holds(&private, "Permanent"));
    }

    #[test]
    fn a_row_made_bare_has_the_same_plain_part_and_no_personal_one() {
        let full = batch(&[event(0), event(1), event(2)]);
        let columns = Columns::of(&full.schema(), &personal());
        let cleared = columns.bare(&full, &BooleanArray::from(vec![false, true, false])).unwrap();
        for row in [0, 2] {
            assert_eq!(encoded(&cleared, row), encoded(&full, row));
            assert!(!columns.is_bare(&cleared, row));
        }
        assert!(columns.is_bare(&cleared, 1));
        assert_eq!(encoded(&cleared, 1).0, encoded(&full, 1).0);
        assert!(!encoded(&cleared, 1).1.windows(4).any(|part| part.eq_ignore_ascii_case(b"jane")));
    }

    #[test]
    fn the_encoding_is_what_the_document_says() {
        let mut columns = EventColumns::default();
        columns.push(&event(258));
        let batch = columns.finish().unwrap();
        let only = |name: &str| batch.project(&[batch.schema().index_of(name).unwrap()]).unwrap();
        let named = |name: &str, rest: &[u8]| {
            let mut bytes = vec![0, 0, 0, 1, 0, 0, 0, name.len() as u8];
            bytes.extend(name.as_bytes());
            bytes.extend(rest);
            bytes
        };
        assert_eq!(encoded(&only("seq"), 0), (named("seq", &[2, 0, 0, 0, 0, 0, 0, 1, 2]), vec![0; 4]));
        assert_eq!(encoded(&only("unique"), 0).0, named("unique", &[3, 0]));
        assert_eq!(encoded(&only("occurred_at"), 0).0, named("occurred_at", &[4, 0, 0, 0, 0, 0, 0, 0, 0]));
        let tags = [6, 0, 0, 0, 2, 0, 0, 0, 1, b'a', 1, 0, 0, 0, 1, b'1', 0, 0, 0, 1, b'b', 1, 0, 0, 0, 1, b'2'];
        assert_eq!(encoded(&only("tags"), 0).1, named("tags", &tags));
        let (plain, private) = encoded(&only("bounce"), 0);
        let inner = |name: &str, text: &str| {
            [&[7][..], &named(name, &[&[1, 0, 0, 0, text.len() as u8], text.as_bytes()].concat())].concat()
        };
        assert_eq!(plain, named("bounce", &inner("bounceType", "Permanent")));
        assert_eq!(private, named("bounce", &inner("diagnosticCode", "550 jane")));
    }
}
