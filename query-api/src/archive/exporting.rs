//! Much that nobody waits for, read in little memory.

use std::sync::Arc;

use datafusion::arrow::array::{AsArray, RecordBatch};
use datafusion::arrow::compute::{max, min};
use datafusion::arrow::datatypes::{SchemaRef, TimestampMicrosecondType};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::logical_expr::Expr;
use datafusion::prelude::SessionContext;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use sendtrail_schemas::archive::{ArchiveView, ArchivedFile};
use sendtrail_schemas::time::Millis;

use super::context;
use super::provider::{ArchiveTable, Chosen};
use crate::Error;

/// What reads much that nobody waits for: one file after the other, of which nothing is remembered.
pub fn exporting() -> SessionContext {
    let runtime = RuntimeEnvBuilder::new().with_metadata_cache_limit(0).build_arc().unwrap_or_default();
    SessionContext::new_with_config_rt(context(1, true).copied_config(), runtime)
}

/// What is in no file yet and may be of a span of time, by a column of times.
pub fn tail_of(view: &ArchiveView, column: &str, from: Option<Millis>, to: Option<Millis>) -> Vec<RecordBatch> {
    let may_hold = |rows: &&RecordBatch| {
        let times = rows.column_by_name(column);
        let times = times.and_then(|times| times.as_primitive_opt::<TimestampMicrosecondType>());
        // Without its times a batch is read, and says what is wrong with it.
        let Some((first, last)) = times.and_then(|times| Some((min(times)?, max(times)?))) else { return true };
        from.is_none_or(|from| Millis(last.div_euclid(1_000)) >= from)
            && to.is_none_or(|to| Millis(first.div_euclid(1_000)) < to)
    };
    view.tail.iter().map(|batch| &batch.rows).filter(may_hold).cloned().collect()
}

/// What is wanted of some files and some of the tail, in no order, some thousand rows at once. Each file is a query of its own, so that
/// nothing of it is in memory when the next is read.
pub fn one_by_one(
    context: &SessionContext,
    schema: SchemaRef,
    view: &ArchiveView,
    files: impl Iterator<Item = Arc<ArchivedFile>>,
    tail: Vec<RecordBatch>,
    wanted: Expr,
    columns: Option<&[&str]>,
) -> BoxStream<'static, Result<RecordBatch, Error>> {
    let of = |files, tail| ArchiveTable { schema: schema.clone(), root: view.root.clone(), files, tail };
    let mut tables: Vec<ArchiveTable> = files.map(|file| of(vec![Chosen::whole(file)], Vec::new())).collect();
    // Most days of a long span have nothing, and planning a query to find nothing takes longer than everything else of them.
    if !tail.is_empty() {
        tables.push(of(Vec::new(), tail));
    }
    let columns: Option<Vec<String>> = columns.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
    let context = context.clone();
    let read = move |table| {
        let (context, wanted, columns) = (context.clone(), wanted.clone(), columns.clone());
        async move {
            let mut rows = context.read_table(Arc::new(table))?.filter(wanted)?;
            if let Some(columns) = columns {
                rows = rows.select_columns(&columns.iter().map(String::as_str).collect::<Vec<_>>())?;
            }
            Ok::<_, Error>(rows.execute_stream().await?.map_err(Error::from))
        }
    };
    futures::stream::iter(tables).then(read).try_flatten().boxed()
}
