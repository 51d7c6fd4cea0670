//! Events as Arrow columns: what the Parquet archive holds and what queries read.
//!
//! Names are those of `/events`; a block is a struct, tags are a map, metadata is JSON text. Columns are only ever added.

use std::sync::{Arc, OnceLock};

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, BooleanBuilder, Int64Builder, ListBuilder, MapBuilder, MapFieldNames,
    NullBufferBuilder, RecordBatch, StringBuilder, StructArray, TimestampMicrosecondBuilder,
};
use arrow::datatypes::{
    DataType, Field, Fields as ArrowFields, Int64Type, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType,
};

use crate::Error;
use crate::address;
use crate::block::{
    Activity, Block, Bounce, Click, Complaint, Delivery, DeliveryDelay, FieldKind, FieldValue, Fields, Lifecycle, Open,
    Reject, RenderingFailure, Reply, StatusChange, Subscription, WebhookChange,
};
use crate::event::{Event, Tags};
use crate::ids::{AccountId, ConfigSetId, DestinationId};
use crate::kind::EventType;
use crate::time::Millis;

/// The column by which the archive is partitioned: the UTC day of `received_at`. It stands in paths, not in files.
pub const PARTITION_COLUMN: &str = "dt";

fn utc() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

pub(crate) fn data_type(kind: FieldKind) -> DataType {
    match kind {
        FieldKind::Text => DataType::Utf8,
        FieldKind::Integer => DataType::Int64,
        FieldKind::Flag => DataType::Boolean,
        FieldKind::Time => utc(),
    }
}

fn tags_field() -> Field {
    let entries =
        ArrowFields::from(vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Utf8, true)]);
    let entries = Field::new("key_value", DataType::Struct(entries), false);
    Field::new("tags", DataType::Map(Arc::new(entries), false), true)
}

fn fields_of<B: Fields>() -> ArrowFields {
    B::FIELDS.iter().map(|(name, kind)| Field::new(*name, data_type(*kind), true)).collect()
}

/// The blocks and the columns that hold them.
macro_rules! blocks {
    ($($column:ident: $kind:ident = $name:literal),* $(,)?) => {
        fn block_fields() -> Vec<Field> {
            vec![$(Field::new($name, DataType::Struct(fields_of::<$kind>()), true)),*]
        }

        struct BlockColumns { $($column: BlockColumn),* }

        impl BlockColumns {
            fn new() -> Self {
                Self { $($column: BlockColumn::new::<$kind>()),* }
            }

            fn push(&mut self, row: usize, block: Option<&Block>) {
                match block {
                    $(Some(Block::$kind(block)) => self.$column.push(row, block),)*
                    None => {}
                }
            }

            fn finish(&mut self, rows: usize) -> Vec<ArrayRef> {
                vec![$(self.$column.finish(rows)),*]
            }
        }

        fn read_block(batch: &RecordBatch, row: usize) -> Result<Option<Block>, Error> {
            $(
                if let Some(block) = read_struct::<$kind>(batch, $name, row)? {
                    return Ok(Some(Block::$kind(block)));
                }
            )*
            Ok(None)
        }

        /// The block of a name, with what `get` tells of its fields.
        pub(crate) fn block_named(
            name: &str,
            get: &dyn Fn(&str, FieldKind) -> Option<FieldValue<'static>>,
        ) -> Option<Block> {
            match name {
                $($name => Some(Block::$kind(filled(get))),)*
                _ => None,
            }
        }
    };
}

blocks! {
    bounce: Bounce = "bounce",
    complaint: Complaint = "complaint",
    delivery: Delivery = "delivery",
    open: Open = "open",
    click: Click = "click",
    reject: Reject = "reject",
    delivery_delay: DeliveryDelay = "deliveryDelay",
    rendering_failure: RenderingFailure = "renderingFailure",
    reply: Reply = "reply",
    subscription: Subscription = "subscription",
    status: StatusChange = "status",
    webhook: WebhookChange = "webhook",
    lifecycle: Lifecycle = "lifecycle",
    activity: Activity = "activity",
}

/// The columns of an event, in their order.
pub fn schema() -> SchemaRef {
    static SCHEMA: OnceLock<SchemaRef> = OnceLock::new();
    SCHEMA
        .get_or_init(|| {
            let text = |name: &str, nullable| Field::new(name, DataType::Utf8, nullable);
            let number = |name: &str| Field::new(name, DataType::Int64, false);
            let flag = |name: &str| Field::new(name, DataType::Boolean, false);
            let ids = Field::new("element", DataType::Utf8, true);
            let mut fields = vec![
                text("account_id", false),
                text("event_id", false),
                text("event_type", false),
                Field::new("occurred_at", utc(), false),
                Field::new("received_at", utc(), false),
                Field::new("original_occurred_at", utc(), true),
                Field::new("sent_at", utc(), true),
                number("partition"),
                number("seq"),
                number("offset"),
                text("message_id", true),
                text("send_id", true),
                text("recipient", true),
                // Only where it differs, for look-ups without case.
                text("recipient_folded", true),
                text("recipient_domain", true),
                text("from", true),
                text("from_domain", true),
                text("subject", true),
                text("configuration_set_name", true),
                text("config_set_id", true),
                text("customer_id", true),
                text("category", true),
                tags_field(),
                text("metadata", true),
                flag("unique"),
                flag("counted"),
                flag("history"),
                Field::new("destination_ids", DataType::List(Arc::new(ids)), true),
            ];
            fields.extend(block_fields());
            Arc::new(Schema::new(fields))
        })
        .clone()
}

/// One struct column. Most rows have no block of its type, so nulls are appended in bulk before the next row that has.
struct BlockColumn {
    fields: ArrowFields,
    columns: Vec<ValueColumn>,
    validity: NullBufferBuilder,
}

/// A column of values of one kind.
pub(crate) enum ValueColumn {
    Text(StringBuilder),
    Integer(Int64Builder),
    Flag(BooleanBuilder),
    Time(TimestampMicrosecondBuilder),
}

impl BlockColumn {
    fn new<B: Fields>() -> Self {
        let columns = B::FIELDS.iter().map(|(_, kind)| ValueColumn::new(*kind)).collect();
        Self { fields: fields_of::<B>(), columns, validity: NullBufferBuilder::new(0) }
    }

    fn push<B: Fields>(&mut self, row: usize, block: &B) {
        self.fill(row);
        let mut columns = self.columns.iter_mut();
        block.read(&mut |value| {
            if let Some(column) = columns.next() {
                column.push(value);
            }
        });
        self.validity.append_non_null();
    }

    fn fill(&mut self, rows: usize) {
        let missing = rows - self.validity.len();
        if missing > 0 {
            self.validity.append_n_nulls(missing);
            self.columns.iter_mut().for_each(|column| column.push_nulls(missing));
        }
    }

    fn finish(&mut self, rows: usize) -> ArrayRef {
        self.fill(rows);
        let columns = self.columns.iter_mut().map(ValueColumn::finish).collect();
        Arc::new(StructArray::new(self.fields.clone(), columns, self.validity.finish()))
    }
}

impl ValueColumn {
    pub(crate) fn new(kind: FieldKind) -> Self {
        match kind {
            FieldKind::Text => Self::Text(StringBuilder::new()),
            FieldKind::Integer => Self::Integer(Int64Builder::new()),
            FieldKind::Flag => Self::Flag(BooleanBuilder::new()),
            FieldKind::Time => Self::Time(TimestampMicrosecondBuilder::new().with_data_type(utc())),
        }
    }

    pub(crate) fn push(&mut self, value: Option<FieldValue<'_>>) {
        match (self, value) {
            (Self::Text(column), Some(FieldValue::Text(text))) => column.append_value(text),
            (Self::Integer(column), Some(FieldValue::Integer(number))) => column.append_value(number),
            (Self::Flag(column), Some(FieldValue::Flag(flag))) => column.append_value(flag),
            (Self::Time(column), Some(FieldValue::Integer(millis))) => column.append_value(micros(millis)),
            (column, _) => column.push_nulls(1),
        }
    }

    fn push_nulls(&mut self, count: usize) {
        match self {
            Self::Text(column) => column.append_nulls(count),
            Self::Integer(column) => column.append_nulls(count),
            Self::Flag(column) => column.append_nulls(count),
            Self::Time(column) => column.append_nulls(count),
        }
    }

    pub(crate) fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Text(column) => Arc::new(column.finish()),
            Self::Integer(column) => Arc::new(column.finish()),
            Self::Flag(column) => Arc::new(column.finish()),
            Self::Time(column) => Arc::new(column.finish()),
        }
    }
}

fn micros(millis: i64) -> i64 {
    millis.saturating_mul(1_000)
}

/// Gathers events into columns.
pub struct EventColumns {
    rows: usize,
    account_id: StringBuilder,
    event_id: StringBuilder,
    event_type: StringBuilder,
    occurred_at: TimestampMicrosecondBuilder,
    received_at: TimestampMicrosecondBuilder,
    original_occurred_at: TimestampMicrosecondBuilder,
    sent_at: TimestampMicrosecondBuilder,
    partition: Int64Builder,
    seq: Int64Builder,
    offset: Int64Builder,
    message_id: StringBuilder,
    send_id: StringBuilder,
    recipient: StringBuilder,
    recipient_folded: StringBuilder,
    recipient_domain: StringBuilder,
    from: StringBuilder,
    from_domain: StringBuilder,
    subject: StringBuilder,
    configuration_set_name: StringBuilder,
    config_set_id: StringBuilder,
    customer_id: StringBuilder,
    category: StringBuilder,
    tags: MapBuilder<StringBuilder, StringBuilder>,
    metadata: StringBuilder,
    unique: BooleanBuilder,
    counted: BooleanBuilder,
    history: BooleanBuilder,
    destination_ids: ListBuilder<StringBuilder>,
    blocks: BlockColumns,
}

impl Default for EventColumns {
    fn default() -> Self {
        let time = || TimestampMicrosecondBuilder::new().with_data_type(utc());
        let names = MapFieldNames { entry: "key_value".into(), key: "key".into(), value: "value".into() };
        let ids = Field::new("element", DataType::Utf8, true);
        Self {
            rows: 0,
            account_id: StringBuilder::new(),
            event_id: StringBuilder::new(),
            event_type: StringBuilder::new(),
            occurred_at: time(),
            received_at: time(),
            original_occurred_at: time(),
            sent_at: time(),
            partition: Int64Builder::new(),
            seq: Int64Builder::new(),
            offset: Int64Builder::new(),
            message_id: StringBuilder::new(),
            send_id: StringBuilder::new(),
            recipient: StringBuilder::new(),
            recipient_folded: StringBuilder::new(),
            recipient_domain: StringBuilder::new(),
            from: StringBuilder::new(),
            from_domain: StringBuilder::new(),
            subject: StringBuilder::new(),
            configuration_set_name: StringBuilder::new(),
            config_set_id: StringBuilder::new(),
            customer_id: StringBuilder::new(),
            category: StringBuilder::new(),
            tags: MapBuilder::new(Some(names), StringBuilder::new(), StringBuilder::new()),
            metadata: StringBuilder::new(),
            unique: BooleanBuilder::new(),
            counted: BooleanBuilder::new(),
            history: BooleanBuilder::new(),
            destination_ids: ListBuilder::new(StringBuilder::new()).with_field(ids),
            blocks: BlockColumns::new(),
        }
    }
}

impl EventColumns {
    /// How many events have been gathered.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether none has.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Adds an event.
    pub fn push(&mut self, event: &Event) {
        fn some(column: &mut StringBuilder, text: &str) {
            column.append_option((!text.is_empty()).then_some(text));
        }
        let mut uuid = [0u8; uuid::fmt::Hyphenated::LENGTH];
        self.account_id.append_value(event.account().0.hyphenated().encode_lower(&mut uuid));
        self.event_id.append_value(&event.event_id);
        self.event_type.append_value(event.kind().name());
        self.occurred_at.append_value(micros(event.occurred_at));
        self.received_at.append_value(micros(event.received_at));
        self.original_occurred_at.append_option(event.original_occurred_at.map(micros));
        self.sent_at.append_option(event.sent_at.map(micros));
        self.partition.append_value(i64::from(event.partition));
        self.seq.append_value(event.seq as i64);
        self.offset.append_value(event.offset as i64);
        some(&mut self.message_id, &event.message_id);
        self.send_id.append_option(event.send_id.as_deref());
        some(&mut self.recipient, &event.recipient);
        let folded = address::fold(&event.recipient);
        self.recipient_folded.append_option((folded != event.recipient).then_some(&*folded));
        some(&mut self.recipient_domain, folded.rsplit_once('@').map_or("", |(_, domain)| domain));
        self.from.append_option(event.from.as_deref());
        some(&mut self.from_domain, &address::domain(event.from.as_deref().unwrap_or_default()));
        self.subject.append_option(event.subject.as_deref());
        self.configuration_set_name.append_option(event.configuration_set_name.as_deref());
        match event.config_set() {
            Some(id) => self.config_set_id.append_value(id.0.hyphenated().encode_lower(&mut uuid)),
            None => self.config_set_id.append_null(),
        }
        self.customer_id.append_option(event.customer_id.as_deref());
        self.category.append_option(event.category.as_deref());
        for (key, value) in &event.tags {
            self.tags.keys().append_value(key);
            self.tags.values().append_value(value);
        }
        // Appending an entry fails only when keys and values differ in number, which they do not.
        let _ = self.tags.append(!event.tags.is_empty());
        self.metadata.append_option(event.metadata.as_deref());
        self.unique.append_value(event.unique);
        self.counted.append_value(event.counted);
        self.history.append_value(event.history);
        for id in event.destinations() {
            self.destination_ids.values().append_value(id.0.hyphenated().encode_lower(&mut uuid));
        }
        self.destination_ids.append(!event.destination_ids.is_empty());
        self.blocks.push(self.rows, event.block.as_ref());
        self.rows += 1;
    }

    /// The events gathered so far, in [`schema`]; nothing is left.
    ///
    /// # Errors
    /// Arrow's, when columns and schema disagree: a fault of this module.
    pub fn finish(&mut self) -> Result<RecordBatch, arrow::error::ArrowError> {
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(self.account_id.finish()),
            Arc::new(self.event_id.finish()),
            Arc::new(self.event_type.finish()),
            Arc::new(self.occurred_at.finish()),
            Arc::new(self.received_at.finish()),
            Arc::new(self.original_occurred_at.finish()),
            Arc::new(self.sent_at.finish()),
            Arc::new(self.partition.finish()),
            Arc::new(self.seq.finish()),
            Arc::new(self.offset.finish()),
            Arc::new(self.message_id.finish()),
            Arc::new(self.send_id.finish()),
            Arc::new(self.recipient.finish()),
            Arc::new(self.recipient_folded.finish()),
            Arc::new(self.recipient_domain.finish()),
            Arc::new(self.from.finish()),
            Arc::new(self.from_domain.finish()),
            Arc::new(self.subject.finish()),
            Arc::new(self.configuration_set_name.finish()),
            Arc::new(self.config_set_id.finish()),
            Arc::new(self.customer_id.finish()),
            Arc::new(self.category.finish()),
            Arc::new(self.tags.finish()),
            Arc::new(self.metadata.finish()),
            Arc::new(self.unique.finish()),
            Arc::new(self.counted.finish()),
            Arc::new(self.history.finish()),
            Arc::new(self.destination_ids.finish()),
        ];
        columns.extend(self.blocks.finish(self.rows));
        self.rows = 0;
        RecordBatch::try_new(schema(), columns)
    }
}

/// Columns as events, in the order of the rows.
///
/// # Errors
/// [`Error::Malformed`] when a column is missing or of another type.
pub fn read_events(batch: &RecordBatch) -> Result<Vec<Event>, Error> {
    read_with(batch, |row| read_block(batch, row))
}

/// The same, with blocks that are kept in another way.
pub(crate) fn read_with(
    batch: &RecordBatch,
    block: impl Fn(usize) -> Result<Option<Block>, Error>,
) -> Result<Vec<Event>, Error> {
    let reader = Reader { batch };
    (0..batch.num_rows()).map(|row| Ok(Event { block: block(row)?, ..reader.event(row)? })).collect()
}

struct Reader<'a> {
    batch: &'a RecordBatch,
}

impl Reader<'_> {
    fn column(&self, name: &str) -> Result<&ArrayRef, Error> {
        self.batch.column_by_name(name).ok_or_else(|| Error::Malformed(format!("no column {name:?}")))
    }

    fn text(&self, name: &str, row: usize) -> Result<Option<String>, Error> {
        let column = self.column(name)?;
        let column = column.as_string_opt::<i32>().ok_or_else(|| mistyped(name))?;
        Ok(column.is_valid(row).then(|| column.value(row).to_owned()))
    }

    fn time(&self, name: &str, row: usize) -> Result<Option<i64>, Error> {
        let column = self.column(name)?;
        let column = column.as_primitive_opt::<TimestampMicrosecondType>().ok_or_else(|| mistyped(name))?;
        Ok(column.is_valid(row).then(|| column.value(row).div_euclid(1_000)))
    }

    fn number(&self, name: &str, row: usize) -> Result<i64, Error> {
        let column = self.column(name)?;
        Ok(column.as_primitive_opt::<Int64Type>().ok_or_else(|| mistyped(name))?.value(row))
    }

    fn flag(&self, name: &str, row: usize) -> Result<bool, Error> {
        Ok(self.column(name)?.as_boolean_opt().ok_or_else(|| mistyped(name))?.value(row))
    }

    fn tags(&self, row: usize) -> Result<Tags, Error> {
        let column = self.column("tags")?.as_map_opt().ok_or_else(|| mistyped("tags"))?;
        if column.is_null(row) {
            return Ok(Tags::new());
        }
        let entries = column.value(row);
        let keys = entries.column(0).as_string_opt::<i32>().ok_or_else(|| mistyped("tags"))?;
        let values = entries.column(1).as_string_opt::<i32>().ok_or_else(|| mistyped("tags"))?;
        Ok((0..keys.len()).map(|at| (keys.value(at).to_owned(), values.value(at).to_owned())).collect())
    }

    fn destinations(&self, row: usize) -> Result<Vec<Vec<u8>>, Error> {
        let name = "destination_ids";
        let column = self.column(name)?.as_list_opt::<i32>().ok_or_else(|| mistyped(name))?;
        if column.is_null(row) {
            return Ok(Vec::new());
        }
        let ids = column.value(row);
        let ids = ids.as_string_opt::<i32>().ok_or_else(|| mistyped(name))?;
        (0..ids.len()).map(|at| Ok(ids.value(at).parse::<DestinationId>()?.bytes().to_vec())).collect()
    }

    fn event(&self, row: usize) -> Result<Event, Error> {
        let kind = self.text("event_type", row)?.unwrap_or_default();
        let kind = EventType::parse(&kind).ok_or_else(|| Error::Malformed(format!("event type {kind:?}")))?;
        let account: AccountId = self.text("account_id", row)?.unwrap_or_default().parse()?;
        let set: Option<ConfigSetId> = self.text("config_set_id", row)?.map(|id| id.parse()).transpose()?;
        Ok(Event {
            version: crate::codec::VERSION,
            account_id: account.bytes().to_vec(),
            partition: self.number("partition", row)? as u32,
            seq: self.number("seq", row)? as u64,
            offset: self.number("offset", row)? as u64,
            received_at: self.time("received_at", row)?.unwrap_or_default(),
            kind: kind as i32,
            event_id: self.text("event_id", row)?.unwrap_or_default(),
            occurred_at: self.time("occurred_at", row)?.unwrap_or_default(),
            original_occurred_at: self.time("original_occurred_at", row)?,
            message_id: self.text("message_id", row)?.unwrap_or_default(),
            send_id: self.text("send_id", row)?,
            recipient: self.text("recipient", row)?.unwrap_or_default(),
            from: self.text("from", row)?,
            subject: self.text("subject", row)?,
            configuration_set_name: self.text("configuration_set_name", row)?,
            customer_id: self.text("customer_id", row)?,
            category: self.text("category", row)?,
            tags: self.tags(row)?,
            metadata: self.text("metadata", row)?,
            unique: self.flag("unique", row)?,
            counted: self.flag("counted", row)?,
            history: self.flag("history", row)?,
            sent_at: self.time("sent_at", row)?,
            destination_ids: self.destinations(row)?,
            config_set_id: set.map(|id| id.bytes().to_vec()),
            block: None,
        })
    }
}

fn mistyped(name: &str) -> Error {
    Error::Malformed(format!("column {name:?} is of another type"))
}

fn read_struct<B: Fields>(batch: &RecordBatch, name: &str, row: usize) -> Result<Option<B>, Error> {
    // A column that an older file lacks reads as null.
    let Some(column) = batch.column_by_name(name) else { return Ok(None) };
    let column = column.as_struct_opt().ok_or_else(|| mistyped(name))?;
    if column.is_null(row) {
        return Ok(None);
    }
    Ok(Some(filled(&|name, kind| read_value(column.column_by_name(name)?, kind, row))))
}

/// A block with what `get` tells of its fields.
fn filled<B: Fields>(get: &dyn Fn(&str, FieldKind) -> Option<FieldValue<'static>>) -> B {
    let mut block = B::default();
    let mut fields = B::FIELDS.iter();
    block.write(&mut || {
        let (name, kind) = fields.next()?;
        get(name, *kind)
    });
    block
}

pub(crate) fn read_value(column: &ArrayRef, kind: FieldKind, row: usize) -> Option<FieldValue<'static>> {
    if column.is_null(row) {
        return None;
    }
    Some(match kind {
        FieldKind::Text => FieldValue::Text(column.as_string_opt::<i32>()?.value(row).to_owned().into()),
        FieldKind::Integer => FieldValue::Integer(column.as_primitive_opt::<Int64Type>()?.value(row)),
        FieldKind::Flag => FieldValue::Flag(column.as_any().downcast_ref::<BooleanArray>()?.value(row)),
        FieldKind::Time => {
            let micros = column.as_primitive_opt::<TimestampMicrosecondType>()?.value(row);
            FieldValue::Integer(Millis(micros.div_euclid(1_000)).0)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn sample(seq: u64, kind: EventType, block: Option<Block>) -> Event {
        Event {
            version: crate::codec::VERSION,
            account_id: Uuid::from_u128(7).as_bytes().to_vec(),
            partition: 3,
            seq,
            offset: 2 * seq,
            received_at: 1_700_000_000_123,
            kind: kind as i32,
            event_id: crate::ids::event_id(3, seq),
            occurred_at: 1_699_999_999_999,
            message_id: "m-1".into(),
            recipient: "Someone@Example.com".into(),
            block,
            ..Default::default()
        }
    }

    fn full(seq: u64) -> Event {
        let bounce =
            Bounce { bounce_type: Some("Permanent".into()), status: Some("5.1.1".into()), ..Default::default() };
        Event {
            original_occurred_at: Some(5),
            send_id: Some("s".into()),
            from: Some("A <a@b.co>".into()),
            subject: Some("ä".into()),
            configuration_set_name: Some("set".into()),
            customer_id: Some("c".into()),
            category: Some("marketing".into()),
            tags: Tags::from([("k".into(), "v".into()), ("bare".into(), String::new())]),
            metadata: Some("{\"a\":1}".into()),
            unique: true,
            counted: true,
            history: true,
            sent_at: Some(9),
            destination_ids: vec![Uuid::from_u128(8).as_bytes().to_vec()],
            config_set_id: Some(Uuid::from_u128(9).as_bytes().to_vec()),
            ..sample(seq, EventType::Bounce, Some(Block::Bounce(bounce)))
        }
    }

    #[test]
    fn what_goes_into_columns_comes_out() {
        let status =
            StatusChange { from: "HEALTHY".into(), numerator: 3, window_start: 3_600_000, ..Default::default() };
        let delivery = Delivery { processing_time_millis: Some(12), ..Default::default() };
        let events = vec![
            sample(0, EventType::Send, None),
            full(1),
            sample(2, EventType::Delivery, Some(Block::Delivery(delivery))),
            sample(3, EventType::Paused, Some(Block::StatusChange(status))),
            sample(
                4,
                EventType::Subscription,
                Some(Block::Subscription(Subscription { unsubscribe_all: Some(true), ..Default::default() })),
            ),
            sample(5, EventType::Send, None),
        ];
        let mut columns = EventColumns::default();
        events.iter().for_each(|event| columns.push(event));
        assert_eq!(columns.len(), 6);
        let batch = columns.finish().unwrap();
        assert_eq!(read_events(&batch).unwrap(), events);
        // The builders can be used again.
        columns.push(&full(9));
        assert_eq!(read_events(&columns.finish().unwrap()).unwrap(), vec![full(9)]);
    }
}
