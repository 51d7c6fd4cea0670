//! `/stats` and `/events` on 20 million events; `benches/compare_duckdb.py` asks DuckDB the same of the same files.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use fjall::Database;
use sendtrail_processor::archive::{ATTEMPTS, EVENTS, Table, write_files};
use sendtrail_processor::{Projections, rebuild_projections};
use sendtrail_query_api::{Analytics, DataFusionAnalytics, EventQuery};
use sendtrail_schemas::archive::{ArchiveCell, ArchiveView};
use sendtrail_schemas::block::{Block, Bounce};
use sendtrail_schemas::columns::EventColumns;
use sendtrail_schemas::event::Event;
use sendtrail_schemas::ids::{AccountId, event_id};
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::rollup::{Apart, HourRows};
use sendtrail_schemas::time::{DAY, Millis};
use uuid::Uuid;

use crate::{median, rate};

const ROWS: u64 = 20_000_000;
/// Rows of a file, as merging leaves them.
const FILE: u64 = 1_000_000;
const ACCOUNTS: u64 = 200;
const DAYS: i64 = 14;
const BEGIN: Millis = Millis(1_777_593_600_000);

fn account(n: u64) -> AccountId {
    AccountId(Uuid::from_u128(u128::from(n % ACCOUNTS) + 1))
}

/// The nth event that was received; a message's events follow one another at a distance.
pub fn event(n: u64, seq: u64) -> Event {
    let message = n / 3;
    let kind = match (n % 3, message % 50) {
        (0, _) => EventType::Send,
        (1, 0) => EventType::Bounce,
        (1, _) => EventType::Delivery,
        _ => EventType::Open,
    };
    let at = BEGIN.0 + (n as i64 * (DAYS * DAY / 1_000)) / (ROWS as i64 / 1_000);
    let block = (kind == EventType::Bounce)
        .then(|| Block::Bounce(Bounce { bounce_type: Some("Permanent".into()), ..Bounce::default() }));
    Event {
        version: 1,
        account_id: account(message).bytes().to_vec(),
        seq,
        offset: seq,
        received_at: at + 500,
        kind: kind as i32,
        event_id: event_id(0, seq),
        occurred_at: at,
        message_id: format!("{:016x}", message.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        recipient: format!("user{}@mail{}.example", message % 999_983, message % 40),
        from: Some("News <news@acme.example>".into()),
        subject: Some("This week".into()),
        configuration_set_name: Some(["news", "receipts", "alerts"][message as usize % 3].into()),
        tags: [("campaign".to_owned(), format!("week{}", message % 20))].into(),
        counted: kind != EventType::Delivery,
        unique: kind == EventType::Open,
        block,
        ..Event::default()
    }
}

pub fn run() {
    let folder = std::env::var_os("SENDTRAIL_BENCH_ARCHIVE")
        .map_or_else(|| std::env::temp_dir().join("sendtrail-bench"), PathBuf::from);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut table = Table::open(&EVENTS, &folder).await.unwrap();
        if table.files().is_empty() {
            fill(&mut table).await;
        }
        let state = tempfile::TempDir::new().unwrap();
        let database = Database::builder(state.path()).open().unwrap();
        let mut projections = Projections::open(&database).unwrap();
        let begun = Instant::now();
        let attempts = Table::open(&ATTEMPTS, &state.path().join("attempts")).await.unwrap();
        let rebuilt = rebuild_projections(&table, &attempts, &mut projections, 1).await.unwrap();
        rate("sums made anew from the archive", rebuilt.events, begun.elapsed());

        let analytics = DataFusionAnalytics::new(shown(&table), 128 << 20, 2);
        let reader = projections.reader();
        let who = account(7);
        let last_day = BEGIN.plus((DAYS - 2) * DAY);
        println!("  the archive is in {}; the account is {who}", folder.display());
        median("/stats: 14 days of one account, from the sums", 21, || {
            let rows = reader.rollups(who, BEGIN.hour(), BEGIN.plus(DAYS * DAY).hour(), &Apart::NONE).unwrap();
            let sends: u64 = rows
                .iter()
                .map(|hour| match hour {
                    HourRows::Exact(_, rows) => rows.iter().map(|row| row.sums.sends).sum::<u64>(),
                    HourRows::Overflowing(_) => 0,
                })
                .sum();
            assert!(sends > 30_000, "{sends}");
        });
        let ask = |query: EventQuery| {
            tokio::task::block_in_place(|| runtime.handle().block_on(analytics.events(query)).unwrap().len())
        };
        let message = event(ROWS / 2, 0);
        median("/emails: a look-up by message id", 21, || {
            let query =
                EventQuery { message_id: Some(message.message_id.clone()), ..EventQuery::of(message.account(), 100) };
            assert!(ask(query) > 0);
        });
        median("/events: one account's bounces of a day", 21, || {
            let query = EventQuery {
                kinds: vec![EventType::Bounce],
                from: Some(last_day),
                to: Some(last_day.plus(DAY)),
                ..EventQuery::of(who, 1_000)
            };
            ask(query);
        });
        median("/events: the newest 50 of one account", 21, || assert_eq!(ask(EventQuery::of(who, 50)), 50));
    });
}

/// What readers see of a table.
pub fn shown(table: &Table) -> Arc<ArchiveCell> {
    let cell = Arc::new(ArchiveCell::default());
    cell.update(|_| ArchiveView {
        root: table.root().to_path_buf(),
        version: table.version(),
        files: Arc::new(table.files()),
        filed: Arc::default(),
        tail: Vec::new(),
    });
    cell
}

/// The same questions to archives of ever more files of as many rows each, and how soon they are open.
pub fn over_files(count: u64) {
    const EACH: u64 = 20_000;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let folder = tempfile::TempDir::new().unwrap();
    // As they come, file by file in the order of receipt, some hundred a commit.
    let rows = count * EACH;
    let scaled = |n: u64| {
        let mut event = event(n, n);
        event.occurred_at = BEGIN.0 + (n as i128 * i128::from(DAYS * DAY) / i128::from(rows)) as i64;
        event.received_at = event.occurred_at + 500;
        event
    };
    runtime.block_on(async {
        let mut table = Table::open(&EVENTS, folder.path()).await.unwrap();
        let mut columns = EventColumns::default();
        let (mut files, mut from) = (Vec::new(), 0);
        for file in 0..count {
            (file * EACH..(file + 1) * EACH).for_each(|n| columns.push(&scaled(n)));
            let rows = columns.finish().unwrap();
            let name = format!("part{file:05}");
            files.extend(write_files(&EVENTS, table.root(), &name, std::slice::from_ref(&rows)).unwrap());
            if files.len() >= 100 || file + 1 == count {
                let to = (file + 1) * EACH;
                table.append(&std::mem::take(&mut files), &BTreeMap::from([(0, (from, to - 1))])).await.unwrap();
                from = to;
            }
        }
        drop(table);
        println!("  {} rows in files of {EACH}", rows);
        let begun = Instant::now();
        let table = Table::open(&EVENTS, folder.path()).await.unwrap();
        println!(
            "    {:<56} {:>10.2} ms",
            format!("{} files are open", table.files().len()),
            begun.elapsed().as_secs_f64() * 1e3
        );
        let analytics = DataFusionAnalytics::new(shown(&table), 128 << 20, 2);
        let ask = |query: EventQuery| {
            tokio::task::block_in_place(|| runtime.handle().block_on(analytics.events(query)).unwrap().len())
        };
        let who = account(7);
        let message = scaled(rows / 2);
        let looked_up =
            EventQuery { message_id: Some(message.message_id.clone()), ..EventQuery::of(message.account(), 100) };
        let begun = Instant::now();
        assert!(ask(looked_up.clone()) > 0);
        println!("    {:<56} {:>10.2} ms", "the first look-up by message id", begun.elapsed().as_secs_f64() * 1e3);
        median("  one more", 21, || assert!(ask(looked_up.clone()) > 0));
        let last_day = BEGIN.plus((DAYS - 2) * DAY);
        let bounces = EventQuery {
            kinds: vec![EventType::Bounce],
            from: Some(last_day),
            to: Some(last_day.plus(DAY)),
            ..EventQuery::of(who, 1_000)
        };
        median("  one account's bounces of a day", 21, || _ = ask(bounces.clone()));
        median("  the newest 50 of one account", 21, || assert_eq!(ask(EventQuery::of(who, 50)), 50));
    });
}

async fn fill(table: &mut Table) {
    let begun = Instant::now();
    let mut columns = EventColumns::default();
    for file in 0..ROWS / FILE {
        let mut batches = Vec::new();
        for n in file * FILE..(file + 1) * FILE {
            columns.push(&event(n, n));
            if columns.len() == 65_536 {
                batches.push(columns.finish().unwrap());
            }
        }
        batches.push(columns.finish().unwrap());
        let files = write_files(&EVENTS, table.root(), &format!("part{file:04}"), &batches).unwrap();
        table.append(&files, &BTreeMap::from([(0, (file * FILE, (file + 1) * FILE - 1))])).await.unwrap();
    }
    rate("rows into the archive, one thread", ROWS, begun.elapsed());
}
