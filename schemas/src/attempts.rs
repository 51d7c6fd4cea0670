//! Attempts at webhooks as Arrow columns: what their Parquet archive holds.

use std::sync::{Arc, OnceLock};

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{Field, Schema, SchemaRef};

use crate::Error;
use crate::block::{FieldKind, FieldValue, Fields};
use crate::columns::{ValueColumn, data_type, read_value};
use crate::ids::{AccountId, DestinationId, delivery_id};
use crate::kind::EventType;
use crate::mail::{Attempt, DeliveryStatus, FailureClass, Trigger};

/// An attempt and where it stands in the log.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct LoggedAttempt {
    /// The partition.
    pub partition: u32,
    /// Its offset among the attempts of the partition.
    pub offset: u64,
    /// The attempt.
    pub attempt: Attempt,
}

impl Fields for LoggedAttempt {
    const FIELDS: &'static [(&'static str, FieldKind)] = &[
        ("account_id", FieldKind::Text),
        ("delivery_id", FieldKind::Text),
        ("destination_id", FieldKind::Text),
        ("started_at", FieldKind::Time),
        ("finished_at", FieldKind::Time),
        ("partition", FieldKind::Integer),
        ("event_seq", FieldKind::Integer),
        ("offset", FieldKind::Integer),
        ("number", FieldKind::Integer),
        ("status", FieldKind::Text),
        ("status_code", FieldKind::Integer),
        ("error", FieldKind::Text),
        ("next_due_at", FieldKind::Time),
        ("first_started_at", FieldKind::Time),
        ("response", FieldKind::Text),
        ("failure", FieldKind::Text),
        ("event_received_at", FieldKind::Time),
        ("event_type", FieldKind::Text),
        ("spent", FieldKind::Integer),
        ("trigger", FieldKind::Text),
    ];

    fn read(&self, put: &mut dyn FnMut(Option<FieldValue<'_>>)) {
        let attempt = &self.attempt;
        let text = |text: String| Some(FieldValue::Text(text.into()));
        let account = AccountId::from_slice(&attempt.account_id).unwrap_or(AccountId(uuid::Uuid::nil()));
        let destination = DestinationId::from_slice(&attempt.destination_id);
        let destination = destination.unwrap_or(DestinationId(uuid::Uuid::nil()));
        put(text(account.to_string()));
        put(text(delivery_id(account, self.partition, attempt.event_seq, destination).to_string()));
        put(text(destination.to_string()));
        put(Some(FieldValue::Integer(attempt.started_at)));
        put(Some(FieldValue::Integer(attempt.finished_at)));
        put(Some(FieldValue::Integer(i64::from(self.partition))));
        put(Some(FieldValue::Integer(attempt.event_seq as i64)));
        put(Some(FieldValue::Integer(self.offset as i64)));
        put(Some(FieldValue::Integer(i64::from(attempt.number))));
        put(text(attempt.status().name().to_owned()));
        put(attempt.status_code.map(|code| FieldValue::Integer(i64::from(code))));
        put(attempt.error.as_deref().map(|error| FieldValue::Text(error.into())));
        put(attempt.next_due_at.map(FieldValue::Integer));
        put(Some(FieldValue::Integer(attempt.first_started_at)));
        let response = String::from_utf8_lossy(&attempt.response);
        put((!response.is_empty()).then_some(FieldValue::Text(response)));
        let failure = attempt.failure();
        put((failure != FailureClass::None).then(|| FieldValue::Text(failure.name().into())));
        put((attempt.event_received_at != 0).then_some(FieldValue::Integer(attempt.event_received_at)));
        let kind = attempt.event_type();
        put((kind != EventType::Unspecified).then(|| FieldValue::Text(kind.name().into())));
        put(Some(FieldValue::Integer(i64::from(attempt.spent))));
        put(text(attempt.trigger().name().to_owned()));
    }

    fn write(&mut self, take: &mut dyn FnMut() -> Option<FieldValue<'static>>) {
        let account = take().and_then(FieldValue::text).and_then(|id| id.parse::<AccountId>().ok());
        // The delivery's identifier follows from the others.
        take();
        let destination = take().and_then(FieldValue::text).and_then(|id| id.parse::<DestinationId>().ok());
        let mut integer = || take().and_then(FieldValue::integer).unwrap_or_default();
        let (started_at, finished_at) = (integer(), integer());
        let (partition, event_seq, offset, number) = (integer(), integer(), integer(), integer());
        self.partition = partition as u32;
        self.offset = offset as u64;
        self.attempt = Attempt {
            version: crate::codec::VERSION,
            account_id: account.map(|id| id.bytes().to_vec()).unwrap_or_default(),
            event_seq: event_seq as u64,
            destination_id: destination.map(|id| id.bytes().to_vec()).unwrap_or_default(),
            number: number as u32,
            started_at,
            finished_at,
            status: take()
                .and_then(FieldValue::text)
                .and_then(|name| DeliveryStatus::parse(&name))
                .map_or(0, |s| s as i32),
            status_code: take().and_then(FieldValue::integer).map(|code| code as u32),
            error: take().and_then(FieldValue::text),
            next_due_at: take().and_then(FieldValue::integer),
            first_started_at: take().and_then(FieldValue::integer).unwrap_or_default(),
            response: take().and_then(FieldValue::text).unwrap_or_default().into_bytes(),
            failure: take()
                .and_then(FieldValue::text)
                .and_then(|name| FailureClass::parse(&name))
                .map_or(0, |class| class as i32),
            event_received_at: take().and_then(FieldValue::integer).unwrap_or_default(),
            event_type: take()
                .and_then(FieldValue::text)
                .and_then(|name| EventType::parse(&name))
                .map_or(0, |kind| kind as i32),
            spent: take().and_then(FieldValue::integer).unwrap_or_default() as u32,
            trigger: take()
                .and_then(FieldValue::text)
                .and_then(|name| Trigger::parse(&name))
                .map_or(0, |trigger| trigger as i32),
        };
    }
}

/// Columns that may say something of a person: what somebody else wrote.
pub const PERSONAL: [&str; 2] = ["error", "response"];

/// The columns, in their order. Columns are only ever added.
pub fn schema() -> SchemaRef {
    static SCHEMA: OnceLock<SchemaRef> = OnceLock::new();
    let fields = LoggedAttempt::FIELDS;
    // What was added later is null in the rows of before.
    let first_added = fields.iter().position(|(name, _)| *name == "response").unwrap_or(fields.len());
    let added: Vec<&str> = fields[first_added..].iter().map(|(name, _)| *name).collect();
    let nullable = |name: &str| matches!(name, "status_code" | "error" | "next_due_at") || added.contains(&name);
    SCHEMA
        .get_or_init(|| {
            let field = |(name, kind): &(&str, FieldKind)| Field::new(*name, data_type(*kind), nullable(name));
            Arc::new(Schema::new(fields.iter().map(field).collect::<Vec<_>>()))
        })
        .clone()
}

/// Gathers attempts into columns.
pub struct AttemptColumns {
    rows: usize,
    columns: Vec<ValueColumn>,
}

impl Default for AttemptColumns {
    fn default() -> Self {
        Self { rows: 0, columns: LoggedAttempt::FIELDS.iter().map(|(_, kind)| ValueColumn::new(*kind)).collect() }
    }
}

impl AttemptColumns {
    /// How many attempts have been gathered.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether none has.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Adds an attempt.
    pub fn push(&mut self, attempt: &LoggedAttempt) {
        let mut columns = self.columns.iter_mut();
        attempt.read(&mut |value| {
            if let Some(column) = columns.next() {
                column.push(value);
            }
        });
        self.rows += 1;
    }

    /// The attempts gathered so far, in [`schema`]; nothing is left.
    ///
    /// # Errors
    /// Arrow's, when columns and schema disagree: a fault of this module.
    pub fn finish(&mut self) -> Result<RecordBatch, arrow::error::ArrowError> {
        self.rows = 0;
        let columns: Vec<ArrayRef> = self.columns.iter_mut().map(ValueColumn::finish).collect();
        RecordBatch::try_new(schema(), columns)
    }
}

/// Columns as attempts, in the order of the rows.
///
/// # Errors
/// [`Error::Malformed`] when a column is missing.
pub fn read_attempts(batch: &RecordBatch) -> Result<Vec<LoggedAttempt>, Error> {
    let described = schema();
    let column = |(name, kind): &(&str, FieldKind)| {
        let column = batch.column_by_name(name);
        // Rows of before have not what was added later.
        if column.is_none() && described.field_with_name(name).is_ok_and(|field| !field.is_nullable()) {
            return Err(Error::Malformed(format!("no column {name:?}")));
        }
        Ok((column, *kind))
    };
    let columns = LoggedAttempt::FIELDS.iter().map(column).collect::<Result<Vec<_>, Error>>()?;
    let read = |row| {
        let mut attempt = LoggedAttempt::default();
        let mut columns = columns.iter();
        attempt.write(&mut || columns.next().and_then(|(column, kind)| read_value(column.as_ref()?, *kind, row)));
        attempt
    };
    Ok((0..batch.num_rows()).map(read).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_into_columns_comes_out() {
        let failed = Attempt {
            version: crate::codec::VERSION,
            account_id: vec![1; 16],
            event_seq: 7,
            destination_id: vec![2; 16],
            number: 3,
            started_at: 1_700_000_000_123,
            finished_at: 1_700_000_000_456,
            error: Some("time-out".into()),
            status: DeliveryStatus::Failed as i32,
            next_due_at: Some(1_700_000_060_456),
            first_started_at: 1_699_999_999_999,
            response: "no – later".into(),
            failure: FailureClass::Timeout as i32,
            event_received_at: 1_699_999_999_000,
            event_type: EventType::Bounce as i32,
            spent: 2,
            trigger: Trigger::Probe as i32,
            ..Attempt::default()
        };
        let delivered = Attempt {
            status_code: Some(204),
            error: None,
            status: DeliveryStatus::Delivered as i32,
            next_due_at: None,
            response: Vec::new(),
            failure: FailureClass::None as i32,
            event_received_at: 0,
            event_type: 0,
            trigger: Trigger::Schedule as i32,
            ..failed.clone()
        };
        let attempts = [failed, delivered].map(|attempt| LoggedAttempt { partition: 5, offset: 9, attempt });
        let mut columns = AttemptColumns::default();
        attempts.iter().for_each(|attempt| columns.push(attempt));
        assert_eq!(columns.len(), 2);
        assert_eq!(read_attempts(&columns.finish().unwrap()).unwrap(), attempts);
        assert!(columns.is_empty());
    }
}
