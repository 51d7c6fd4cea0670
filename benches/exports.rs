//! Exports of one large day, and the memory that they take: each in a process of its own, so that nothing of what wrote the archive is
//! counted. `SENDTRAIL_BENCH_ROWS=2000000,50000000` says how many rows; without it the first. `SENDTRAIL_BENCH_EXPORT_AS=csv,ndjson` says which
//! formats; without it all.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use sendtrail_audit::SealKey;
use sendtrail_eventlog::Clock;
use sendtrail_processor::archive::{EVENTS, Table, write_files};
use sendtrail_query_api::exports::{
    Asker, Dataset, ExportOptions, Exports, Filters, Format, Request, Rows, Status, SuppressionPages,
};
use sendtrail_query_api::{Accounts, Answered, ArchivedAttempts, DataFusionAnalytics, Error};
use sendtrail_schemas::account::Suppression;
use sendtrail_schemas::archive::ArchiveCell;
use sendtrail_schemas::columns::EventColumns;
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::reputation::Reputation;
use sendtrail_schemas::time::{DAY, HOUR, Millis};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::{query, rate};

/// Says to the child process where the archive is.
const ARCHIVE: &str = "SENDTRAIL_BENCH_EXPORT_OF";
/// And how it is to be written.
const FORMAT: &str = "SENDTRAIL_BENCH_EXPORT_AS";
/// Rows of a file, as merging leaves them.
const FILE: u64 = 4_000_000;
const BEGIN: Millis = Millis(1_777_593_600_000);

struct NoSuppressions;

#[async_trait]
impl SuppressionPages for NoSuppressions {
    async fn page(
        &self,
        _: AccountId,
        _: Option<String>,
        _: usize,
    ) -> Result<(Vec<Suppression>, Option<String>), Error> {
        Ok((Vec::new(), None))
    }
}

/// Of an archive to which nothing comes.
struct AllSeen;

#[async_trait]
impl Accounts for AllSeen {
    async fn settle(&self, _: AccountId, _: Duration) -> Option<Millis> {
        None
    }

    async fn settle_wholly(&self, _: AccountId, _: Duration) -> bool {
        true
    }

    async fn reputation(&self, _: AccountId) -> Result<Answered<Option<Reputation>>, Error> {
        Ok(Answered { value: None, as_of: None, is_makeshift: false })
    }
}

pub fn run() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if let Some(folder) = std::env::var_os(ARCHIVE) {
        let format = match std::env::var(FORMAT).unwrap().as_str() {
            "csv" => Format::Csv,
            "ndjson" => Format::Ndjson,
            _ => Format::Parquet,
        };
        return runtime.block_on(export(Path::new(&folder), format));
    }
    let counts = std::env::var("SENDTRAIL_BENCH_ROWS").unwrap_or_else(|_| "2000000".into());
    for rows in counts.split(',').filter_map(|count| count.parse().ok()) {
        let folder = TempDir::new().unwrap();
        println!("  {rows} rows");
        runtime.block_on(fill(folder.path(), rows));
        let formats = std::env::var(FORMAT).unwrap_or_else(|_| "csv,ndjson,parquet".into());
        for format in formats.split(',') {
            let mut child = Command::new(std::env::current_exe().unwrap());
            child.arg("exports").env(ARCHIVE, folder.path()).env(FORMAT, format);
            assert!(child.status().unwrap().success());
        }
    }
}

async fn fill(folder: &Path, rows: u64) {
    let mut table = Table::open(&EVENTS, folder).await.unwrap();
    let mut columns = EventColumns::default();
    let mut from = 0;
    while from < rows {
        let to = (from + FILE).min(rows);
        let mut batches = Vec::new();
        for n in from..to {
            let mut event = query::event(n, n);
            event.occurred_at = BEGIN.0 + (n as i64 * (DAY / 1_000)) / (rows as i64 / 1_000);
            event.received_at = event.occurred_at + 500;
            columns.push(&event);
            if columns.len() == 65_536 {
                batches.push(columns.finish().unwrap());
            }
        }
        batches.push(columns.finish().unwrap());
        let files = write_files(&EVENTS, table.root(), &format!("part{from:010}"), &batches).unwrap();
        table.append(&files, &BTreeMap::from([(0, (from, to - 1))])).await.unwrap();
        from = to;
    }
}

/// Of a process of its own: its memory before, and at most while it made the export.
async fn export(folder: &Path, format: Format) {
    let table = Table::open(&EVENTS, folder).await.unwrap();
    let analytics = Arc::new(DataFusionAnalytics::new(query::shown(&table), 128 << 20, 2));
    let kept = TempDir::new().unwrap();
    let options = ExportOptions {
        folder: kept.path().to_path_buf(),
        keep: HOUR,
        at_once: 1,
        waiting: 1,
        kept: 1,
        file_rows: FILE,
        links_hold: HOUR,
        link_key: [1; 32],
        seal_key: Arc::new(SealKey::new(&[2; 32])),
    };
    let rows = Rows {
        events: analytics.clone(),
        attempts: Arc::new(ArchivedAttempts::new(Arc::new(ArchiveCell::default()), 2)),
        sums: analytics,
        suppressions: Arc::new(NoSuppressions),
        directory: Arc::default(),
        accounts: Arc::new(AllSeen),
        partitions: 1,
    };
    let exports = Exports::new(options, rows, Clock::default());
    let stop = CancellationToken::new();
    let worker = tokio::spawn(exports.clone().run(stop.clone()));
    let request = Request {
        dataset: Dataset::Events,
        from: Some(BEGIN),
        to: Some(BEGIN.plus(DAY)),
        filters: Filters::default(),
        format,
    };
    let before = memory("VmRSS:");
    let begun = Instant::now();
    let job = exports.start(Asker::Operator, None, request).unwrap();
    let mut next = 1;
    let done = loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let (job, running) = exports.get(Asker::Operator, job.export_id).unwrap();
        if running >= next << 20 {
            println!("      {running:>12} rows: {:>6} MiB more", memory("VmRSS:").saturating_sub(before));
            next *= 2;
        }
        if job.status.is_over() {
            break job;
        }
    };
    assert_eq!(done.status, Status::Done, "{:?}", done.error);
    rate(&format!("as {}", format.ending()), done.rows, begun.elapsed());
    let bytes: u64 = done.files.iter().map(|file| file.bytes).sum();
    let (more, most) = (memory("VmRSS:").saturating_sub(before), memory("VmHWM:").saturating_sub(before));
    println!("    {} MiB; more memory: {more} MiB at the end, {most} MiB at most", bytes >> 20);
    stop.cancel();
    worker.await.unwrap();
}

/// MiB of this process.
fn memory(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0) >> 10
}
