//! Rows of several batches brought into one order.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StructArray, new_null_array};
use arrow::buffer::{BooleanBuffer, NullBuffer};
use arrow::compute::interleave;
use arrow::datatypes::DataType;

use crate::Error;

/// The rows that are named by batch and row, in this order. All batches have one schema, and there is at least one.
///
/// Most columns of most rows are null: an event has one block of eleven. What is null throughout is not looked at row by
/// row.
///
/// # Errors
/// [`Error::Arrow`], when the batches are not alike.
pub fn gather(batches: &[&RecordBatch], rows: &[(usize, usize)]) -> Result<RecordBatch, Error> {
    let Some(first) = batches.first() else {
        return Err(sendtrail_schemas::Error::Malformed("nothing to gather from".into()).into());
    };
    let column = |at: usize| {
        let arrays: Vec<&dyn Array> = batches.iter().map(|batch| batch.column(at).as_ref()).collect();
        gather_column(&arrays, rows)
    };
    let columns = (0..first.num_columns()).map(column).collect::<Result<_, _>>()?;
    Ok(RecordBatch::try_new(first.schema(), columns)?)
}

fn gather_column(arrays: &[&dyn Array], rows: &[(usize, usize)]) -> Result<ArrayRef, Error> {
    let kind = arrays.first().map_or(&DataType::Null, |array| array.data_type());
    if arrays.iter().all(|array| array.null_count() == array.len()) {
        return Ok(new_null_array(kind, rows.len()));
    }
    let DataType::Struct(fields) = kind else { return Ok(interleave(arrays, rows)?) };
    let structs: Vec<&StructArray> = arrays.iter().map(|array| array.as_struct()).collect();
    let child = |at: usize| {
        let children: Vec<&dyn Array> = structs.iter().map(|array| array.column(at).as_ref()).collect();
        gather_column(&children, rows)
    };
    let children = (0..fields.len()).map(child).collect::<Result<_, _>>()?;
    let valid = |at: usize| rows.get(at).is_some_and(|(batch, row)| structs[*batch].is_valid(*row));
    let valid = NullBuffer::new(BooleanBuffer::collect_bool(rows.len(), valid));
    Ok(Arc::new(StructArray::try_new(fields.clone(), children, Some(valid))?))
}
