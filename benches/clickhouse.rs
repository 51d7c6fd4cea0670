//! The sink into ClickHouse beside bare inserts of the same blocks into the same tables, views included. The engine, on
//! the same cores and behind its front of Python, is part of both figures.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use bytes::Bytes;
use clickhouse::{Client, Compression};
use sendtrail_eventlog::Clock;
use sendtrail_processor::archive::{EVENTS, Table, write_files};
use sendtrail_processor::clickhouse::{ClickHouseOptions, ClickHouseSink, Wanted, migrate};
use sendtrail_schemas::archive::{ArchiveCell, ArchiveView, TailBatch};
use sendtrail_schemas::clickhouse::{FORMAT, encode, to_rows};
use sendtrail_schemas::columns::EventColumns;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::query::event;
use crate::rate;

const ROWS: u64 = 1_000_000;
const BATCH: usize = 100_000;
const TAIL_BATCH: usize = 8_192;

pub fn run() {
    let Some(address) = sendtrail_test_servers::clickhouse() else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let tail = tail();
        let folder = TempDir::new().unwrap();
        let filed = filed(&folder, &tail).await;
        let bodies = bodies(&tail);
        let in_memory = ArchiveView { tail, ..ArchiveView::default() };
        for round in 0..3 {
            let client = |what: &str| {
                let url = format!("http://{address}");
                let name = format!("bench_{}_{what}_{round}", std::process::id());
                Client::default().with_url(url).with_database(name).with_compression(Compression::None)
            };
            sink("rows from memory by the sink", &in_memory, client("memory")).await;
            bare(&bodies, client("bare")).await;
            sink("rows from files by the sink", &filed, client("files")).await;
        }
    });
}

fn tail() -> Vec<TailBatch> {
    let mut columns = EventColumns::default();
    let mut tail = Vec::new();
    let mut first = 0;
    for n in 0..ROWS {
        columns.push(&event(n, n));
        if columns.len() == TAIL_BATCH || n + 1 == ROWS {
            let numbers = Arc::new(BTreeMap::from([(0, (first, n))]));
            tail.push(TailBatch { rows: columns.finish().unwrap(), numbers });
            first = n + 1;
        }
    }
    tail
}

/// The same rows in files.
async fn filed(folder: &TempDir, tail: &[TailBatch]) -> ArchiveView {
    let mut table = Table::open(&EVENTS, folder.path()).await.unwrap();
    let batches: Vec<RecordBatch> = tail.iter().map(|batch| batch.rows.clone()).collect();
    let files = write_files(&EVENTS, table.root(), "bench", &batches).unwrap();
    table.append(&files, &BTreeMap::from([(0, (0, ROWS - 1))])).await.unwrap();
    ArchiveView {
        root: table.root().to_owned(),
        version: table.version(),
        files: Arc::new(table.files()),
        filed: Arc::new(BTreeMap::from([(0, ROWS)])),
        tail: Vec::new(),
    }
}

fn bodies(tail: &[TailBatch]) -> Vec<Bytes> {
    let all: Vec<RecordBatch> = tail.iter().map(|batch| batch.rows.clone()).collect();
    let all = to_rows(&concat_batches(&all[0].schema(), &all).unwrap()).unwrap();
    (0..all.num_rows()).step_by(BATCH).map(|at| Bytes::from(encode(&all.slice(at, BATCH)).unwrap())).collect()
}

async fn make(client: &Client) {
    let wanted = Wanted { database_id: Uuid::from_u128(1), lanes: 1, retention_days: 0, recreate: true };
    migrate(client, &wanted).await.unwrap();
}

async fn sink(what: &str, view: &ArchiveView, client: Client) {
    make(&client).await;
    let claims = TempDir::new().unwrap();
    let events = Arc::new(ArchiveCell::default());
    events.update(|_| view.clone());
    let sink = ClickHouseSink {
        client: client.clone(),
        events,
        attempts: Arc::default(),
        claims: claims.path().to_owned(),
        clock: Clock::wall(),
        options: ClickHouseOptions {
            batch_rows: BATCH,
            flush_every: Duration::from_millis(500),
            timeout: Duration::from_secs(60),
        },
    };
    let stop = CancellationToken::new();
    let begun = Instant::now();
    let (handle, running) = sink.start(stop.clone());
    let running = tokio::spawn(running);
    // Nobody waits for one that is far behind.
    while !handle.has(0, ROWS, Duration::from_secs(1)).await {
        assert_eq!(handle.failure(), None);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    rate(what, ROWS, begun.elapsed());
    stop.cancel();
    running.await.unwrap();
    drop_tables(&client).await;
}

async fn bare(bodies: &[Bytes], client: Client) {
    make(&client).await;
    let begun = Instant::now();
    for (number, body) in bodies.iter().enumerate() {
        let mut insert = client
            .insert_formatted_with(format!("INSERT INTO events FORMAT {FORMAT}"))
            .with_setting("insert_deduplication_token", number.to_string())
            .with_setting("max_insert_threads", "1");
        insert.send(body.clone()).await.unwrap();
        insert.end().await.unwrap();
    }
    rate("rows of ready blocks, inserted one after the other", ROWS, begun.elapsed());
    drop_tables(&client).await;
}

async fn drop_tables(client: &Client) {
    let rows = client.query("SELECT count() FROM events").fetch_one::<u64>().await.unwrap();
    assert_eq!(rows, ROWS);
    let database = clickhouse::sql::Identifier(client.database().unwrap());
    client.clone().with_database("default").query("DROP DATABASE ?").bind(database).execute().await.unwrap();
}
