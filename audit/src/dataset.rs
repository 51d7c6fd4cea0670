//! The tables whose days are sealed: how their rows are numbered, and whom they are of.

use arrow::array::{Array, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::Int64Type;
use sendtrail_schemas::{attempts, personal};

use crate::Error;
use crate::encoding::Columns;
use crate::salts::{SubjectKey, subject_key};

/// A table whose days are sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dataset {
    /// Every event, by `seq`, which has no holes.
    Events,
    /// Every attempt at a webhook, by its `offset` in the log: what is no attempt leaves a hole.
    Attempts,
}

impl Dataset {
    /// As a seal names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Attempts => "attempts",
        }
    }

    /// By the name that a seal has for it.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Events, Self::Attempts].into_iter().find(|dataset| dataset.name() == name)
    }

    /// The column with a row's number in its partition.
    pub fn number(self) -> &'static str {
        match self {
            Self::Events => "seq",
            Self::Attempts => "offset",
        }
    }

    /// Whether a number that no row has is a row that is missing.
    pub fn is_dense(self) -> bool {
        self == Self::Events
    }

    /// Columns that are not hashed in the clear.
    pub fn personal(self) -> Vec<String> {
        match self {
            Self::Events => personal::personal(),
            Self::Attempts => attempts::PERSONAL.iter().map(|&name| name.to_owned()).collect(),
        }
    }

    /// Partition and number of each row of a batch.
    ///
    /// # Errors
    /// [`Error::Malformed`]: it lacks them.
    pub fn places(self, batch: &RecordBatch) -> Result<impl Fn(usize) -> (u32, u64) + use<'_>, Error> {
        let (partitions, numbers) = (numbers(batch, "partition")?, numbers(batch, self.number())?);
        Ok(move |row| (partitions.value(row) as u32, numbers.value(row) as u64))
    }

    /// Whom each row of a batch is of, `None`: of nobody. Of an event it is the recipient; answers of receivers are each of the
    /// delivery that they came to, since nobody knows what is in them.
    pub(crate) fn persons<'a>(
        self,
        batch: &'a RecordBatch,
        columns: &'a Columns,
    ) -> Result<impl Fn(usize) -> Person<'a> + use<'a>, Error> {
        let text = |name| batch.column_by_name(name).and_then(|column| column.as_string_opt::<i32>());
        let accounts = text("account_id").ok_or_else(|| missing("account_id"))?;
        let (recipients, folded, deliveries) = match self {
            Self::Events => (text("recipient"), text("recipient_folded"), None),
            Self::Attempts => (None, None, Some(text("delivery_id").ok_or_else(|| missing("delivery_id"))?)),
        };
        let value = |column: Option<&'a StringArray>, row| {
            column.filter(|column| column.is_valid(row)).map(|column| column.value(row))
        };
        Ok(move |row| {
            let delivery = || value(deliveries, row).filter(|_| !columns.is_bare(batch, row));
            let name = value(folded, row).or_else(|| value(recipients, row)).or_else(delivery);
            Person { account: accounts.value(row), name }
        })
    }
}

/// Whom a row is of.
pub(crate) struct Person<'a> {
    account: &'a str,
    /// None: of nobody. Such rows of an account share a salt.
    pub name: Option<&'a str>,
}

impl Person<'_> {
    /// Which salt is theirs.
    pub fn key(&self) -> SubjectKey {
        subject_key(self.account, self.name.unwrap_or_default())
    }
}

fn missing(name: &str) -> Error {
    Error::Malformed(format!("there is no column {name:?} as the archive has it"))
}

fn numbers<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a Int64Array, Error> {
    let column = batch.column_by_name(name).and_then(|column| column.as_primitive_opt::<Int64Type>());
    column.filter(|column| column.null_count() == 0).ok_or_else(|| missing(name))
}
