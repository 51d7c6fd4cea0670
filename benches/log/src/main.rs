//! The embedded log against its rivals: batches of 500 records of 300 bytes, each batch durable.
//! `cargo run --release --manifest-path benches/log/Cargo.toml`

use std::time::{Duration, Instant};

use fjall::{Database, KeyspaceCreateOptions, PersistMode};
use sendtrail_eventlog::embedded::{EmbeddedLog, Options};
use sendtrail_eventlog::{Batch, EventLog};
use sendtrail_schemas::topic::{Topic, TopicPartition};


const BATCHES: u64 = 1_000;
const RECORDS: u64 = 500;
const BYTES: usize = 300;

fn payload(n: u64) -> [u8; BYTES] {
    let mut bytes = [0u8; BYTES];
    // Not all the same, for those that compress.
    bytes.chunks_mut(8).enumerate().for_each(|(at, chunk)| {
        let mixed = (n + at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        chunk.copy_from_slice(&mixed[..chunk.len()]);
    });
    bytes
}

/// Prints how many a second.
fn rate(what: &str, count: u64, took: Duration) {
    println!("  {what:<58} {:>12.0} /s", count as f64 / took.as_secs_f64());
}

fn main() {
    for writers in [1, 8] {
        segments(writers);
    }
    fjall_key_per_record();
    fjall_batch_as_value();
    raft_engine();
}

fn segments(writers: u64) {
    let folder = tempfile::TempDir::new().unwrap();
    let options = Options { partitions: 4, ..Options::default() };
    let log = std::sync::Arc::new(EmbeddedLog::open(folder.path(), options).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let begun = Instant::now();
    runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for writer in 0..writers {
            let log = log.clone();
            tasks.spawn(async move {
                for at in 0..BATCHES / writers {
                    let mut batch = Batch::new().with_room(RECORDS as usize * (BYTES + 4));
                    (0..RECORDS).for_each(|n| batch.push_bytes(&payload(at * RECORDS + n)));
                    log.append(TopicPartition::new(Topic::Intake, (writer % 4) as u32), batch).await.unwrap();
                }
            });
        }
        tasks.join_all().await;
    });
    rate(&format!("segments, {writers} writing at once"), BATCHES * RECORDS, begun.elapsed());
}

fn fjall_key_per_record() {
    let folder = tempfile::TempDir::new().unwrap();
    let database = Database::builder(folder.path()).open().unwrap();
    let keyspace = database.keyspace("log", KeyspaceCreateOptions::default).unwrap();
    let begun = Instant::now();
    for at in 0..BATCHES {
        let mut batch = database.batch().durability(Some(PersistMode::SyncAll));
        for n in 0..RECORDS {
            batch.insert(&keyspace, (at * RECORDS + n).to_be_bytes(), payload(at * RECORDS + n));
        }
        batch.commit().unwrap();
    }
    rate("fjall, a key a record", BATCHES * RECORDS, begun.elapsed());
}

fn fjall_batch_as_value() {
    let folder = tempfile::TempDir::new().unwrap();
    let database = Database::builder(folder.path()).open().unwrap();
    let keyspace = database.keyspace("log", KeyspaceCreateOptions::default).unwrap();
    let begun = Instant::now();
    for at in 0..BATCHES {
        let mut value = Vec::with_capacity(RECORDS as usize * BYTES);
        (0..RECORDS).for_each(|n| value.extend_from_slice(&payload(at * RECORDS + n)));
        let mut batch = database.batch().durability(Some(PersistMode::SyncAll));
        batch.insert(&keyspace, at.to_be_bytes(), value);
        batch.commit().unwrap();
    }
    rate("fjall, a batch as one value", BATCHES * RECORDS, begun.elapsed());
}

fn raft_engine() {
    use raft_engine::{Config, Engine, LogBatch};

    for keys_of_their_own in [true, false] {
        let folder = tempfile::TempDir::new().unwrap();
        let dir = folder.path().to_str().unwrap().to_owned();
        let engine = Engine::open(Config { dir, ..Config::default() }).unwrap();
        let begun = Instant::now();
        for at in 0..BATCHES {
            let mut batch = LogBatch::default();
            let numbers = at * RECORDS..(at + 1) * RECORDS;
            if keys_of_their_own {
                numbers.for_each(|n| batch.put(1, n.to_be_bytes().to_vec(), payload(n).to_vec()).unwrap());
            } else {
                batch.put(1, at.to_be_bytes().to_vec(), numbers.flat_map(payload).collect()).unwrap();
            }
            engine.write(&mut batch, true).unwrap();
        }
        let what = if keys_of_their_own { "raft-engine, a key a record" } else { "raft-engine, a batch as one value" };
        rate(what, BATCHES * RECORDS, begun.elapsed());
    }
}
