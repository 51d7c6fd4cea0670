//! The tables of the archive, and how their files are written.

use arrow::datatypes::SchemaRef;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::SortingColumn;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use sendtrail_audit::Dataset;
use sendtrail_schemas::{attempts, columns};

/// Rows of a row group: what a query that finds one row has to look through.
const GROUP_ROWS: usize = 128 * 1_024;
/// False positives of a bloom filter.
const BLOOM_FPP: f64 = 0.01;

/// What a table holds.
///
/// In each, the first column is the account, the fourth the time by which an account's rows are sorted, and the fifth
/// the time whose UTC day the row is filed under.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// What its seals call it.
    pub dataset: Dataset,
    /// Its columns.
    pub schema: fn() -> SchemaRef,
    /// The name of the fourth column.
    pub time: &'static str,
    /// Whether a partition's rows may begin with any number: what came before was never here.
    pub begins_anywhere: bool,
    /// Columns that are looked up by value.
    looked_up: &'static [&'static str],
    /// Columns whose pages are told apart by their bounds.
    bounded: &'static [&'static str],
    /// Columns of which nearly every value is another: a dictionary would only be thrown away.
    distinct: &'static [&'static str],
}

/// Every event.
pub static EVENTS: Layout = Layout {
    dataset: Dataset::Events,
    schema: columns::schema,
    time: "occurred_at",
    begins_anywhere: false,
    looked_up: &["message_id", "recipient", "recipient_folded"],
    bounded: &["account_id", "occurred_at", "received_at"],
    distinct: &["event_id", "message_id", "send_id", "metadata", "seq", "offset"],
};

/// Every attempt at a webhook.
pub static ATTEMPTS: Layout = Layout {
    dataset: Dataset::Attempts,
    schema: attempts::schema,
    time: "started_at",
    begins_anywhere: true,
    looked_up: &["delivery_id"],
    bounded: &["account_id", "started_at"],
    distinct: &["delivery_id", "event_seq", "offset"],
};

/// Places of the account and the time among the columns.
pub const ACCOUNT: usize = 0;
/// See [`ACCOUNT`].
pub const TIME: usize = 3;
/// The place of the time whose day counts.
pub const FILED_BY: usize = 4;

impl Layout {
    /// Its name, and the first word of its files'.
    pub fn name(&self) -> &'static str {
        self.dataset.name()
    }

    /// With other columns: as a program of before knew it.
    #[cfg(test)]
    pub(super) fn with_schema(self, schema: fn() -> SchemaRef) -> Self {
        Self { schema, ..self }
    }

    /// How its files are written. `rows` bounds the distinct values that a bloom filter is made for.
    pub fn properties(&self, rows: usize) -> WriterProperties {
        let column = |name: &str| ColumnPath::from(name.to_owned());
        let ascending = |at: usize| SortingColumn { column_idx: at as i32, descending: false, nulls_first: false };
        let mut properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(1).unwrap_or_default()))
            .set_max_row_group_row_count(Some(GROUP_ROWS))
            .set_statistics_enabled(EnabledStatistics::Chunk)
            .set_data_page_row_count_limit(10_000)
            .set_sorting_columns(Some([ACCOUNT, TIME].map(ascending).to_vec()))
            .set_created_by(format!("sendtrail {}", env!("CARGO_PKG_VERSION")));
        for name in self.bounded {
            properties = properties.set_column_statistics_enabled(column(name), EnabledStatistics::Page);
        }
        for name in self.distinct {
            properties = properties.set_column_dictionary_enabled(column(name), false);
        }
        let distinct = rows.min(GROUP_ROWS) as u64;
        for name in self.looked_up {
            properties = properties
                .set_column_bloom_filter_enabled(column(name), true)
                .set_column_bloom_filter_fpp(column(name), BLOOM_FPP)
                .set_column_bloom_filter_max_ndv(column(name), distinct);
        }
        properties.build()
    }
}
