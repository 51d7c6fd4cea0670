//! Parquet files: ours (sorted, bloom filters, fsync) against the bare arrow writer with the same compression.

use std::time::Instant;

use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use sendtrail_processor::archive::{EVENTS, write_files};
use sendtrail_schemas::columns::EventColumns;

use crate::query::event;
use crate::rate;

const ROWS: u64 = 300_000;

pub fn run() {
    let begun = Instant::now();
    let mut batches = Vec::new();
    let mut columns = EventColumns::default();
    for n in 0..ROWS {
        columns.push(&event(n, n));
        if columns.len() == 8_192 {
            batches.push(columns.finish().unwrap());
        }
    }
    batches.push(columns.finish().unwrap());
    rate("events into columns (making them up included)", ROWS, begun.elapsed());
    let folder = tempfile::TempDir::new().unwrap();
    let mut bytes = 0;
    let begun = Instant::now();
    for round in 0..3 {
        let files = write_files(&EVENTS, folder.path(), &format!("bench{round}"), &batches).unwrap();
        bytes = files.iter().map(|file| file.bytes).sum();
    }
    rate("rows into our files", 3 * ROWS, begun.elapsed());
    println!("  {:<58} {:>12.1}", "bytes a row", bytes as f64 / ROWS as f64);
    let level = ZstdLevel::try_new(1).unwrap();
    let properties = WriterProperties::builder().set_compression(Compression::ZSTD(level)).build();
    let begun = Instant::now();
    for _ in 0..3 {
        let file = std::fs::File::create(folder.path().join("bare.parquet")).unwrap();
        let mut writer = ArrowWriter::try_new(file, batches[0].schema(), Some(properties.clone())).unwrap();
        batches.iter().for_each(|batch| writer.write(batch).unwrap());
        writer.close().unwrap();
    }
    rate("rows into the bare arrow writer's file", 3 * ROWS, begun.elapsed());
}
