//! What a partition writes to the log, and what it looks for there before it begins.

use std::collections::HashMap;

use sendtrail_eventlog::Batch;
use sendtrail_schemas::codec;
use sendtrail_schemas::record::{Body, Record, Settings};
use tokio::runtime::Handle;

use super::{Ended, Partition, READ_BYTES};
use crate::Error;

/// Bytes that an output usually takes.
const USUAL_BYTES: usize = 384;
/// Bytes of one batch of outputs.
const BATCH_BYTES: usize = 8 << 20;

/// Batches of a dense sequence whose last record has the number before `next`. Several when there is much: one small
/// record of intake may give rise to much.
pub fn numbered(next: u64, records: &[impl prost::Message]) -> Vec<Batch> {
    let mut number = next - records.len() as u64;
    let mut batches = Vec::new();
    let mut left = records;
    while !left.is_empty() {
        let mut batch = Batch::numbered(number).with_room((left.len() * USUAL_BYTES).min(BATCH_BYTES));
        let end = left.iter().position(|record| {
            batch.push(record);
            batch.bytes() >= BATCH_BYTES
        });
        number += batch.len() as u64;
        left = &left[end.map_or(left.len(), |at| at + 1)..];
        batches.push(batch);
    }
    batches
}

/// Appends a record to the intake and waits until it is durable.
pub fn append(of: &Partition, handle: &Handle, record: &Record) -> Result<(), Ended> {
    let mut batch = Batch::new();
    batch.push(record);
    handle.block_on(of.log.append(of.intake(), batch)).map(|_| ()).map_err(|error| Error::from(error).into())
}

/// Looks ahead, before anything is stepped: which records later ones tell to skip, and the last settings told.
pub fn scan(of: &Partition, from: u64, end: u64) -> Result<(HashMap<u64, String>, Option<Settings>), Ended> {
    let (mut skips, mut settings) = (HashMap::new(), None);
    let mut next = from;
    while next < end {
        let batches = of.log.read(of.intake(), next, READ_BYTES).map_err(Error::from)?;
        let Some(last) = batches.last() else { break };
        for record in batches.iter().flat_map(|batch| batch.records(next)) {
            match codec::decode::<Record>(&record.value).map(|record| record.body) {
                Ok(Some(Body::Skip(skip))) => drop(skips.insert(skip.offset, skip.reason)),
                Ok(Some(Body::Settings(told))) => settings = Some(told),
                _ => {}
            }
        }
        next = last.next_offset();
    }
    Ok((skips, settings))
}
