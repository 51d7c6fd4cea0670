//! What grows with what: the cost of a step with the days in the window, queries with the files of the archive, and a server with
//! its accounts: how fast it applies, what it keeps in memory and on disk, how soon it is back. Figures and what follows from them
//! are in docs/SCALING.md.
//!
//! `SENDTRAIL_BENCH_ACCOUNTS=10000,100000,1000000` says how many accounts, `SENDTRAIL_BENCH_FILES=10,100,1000` how many files; without
//! them the first two.

use std::convert::Infallible;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sendtrail::backbone::Backbone;
use sendtrail::client::Api;
use sendtrail::config::Config;
use sendtrail_eventlog::Batch;
use sendtrail_processor::core::effects::Effects;
use sendtrail_processor::core::overlay::{Overlay, Progress};
use sendtrail_processor::core::step::{keys, step, usual_settings};
use sendtrail_schemas::event::EventFact;
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::record::{AccountFields, Body, Change, Command as Asked, Record};
use sendtrail_schemas::time::{DAY, HOUR, Millis};
use sendtrail_schemas::topic::{Topic, TopicPartition, partition_of};
use tempfile::TempDir;
use uuid::Uuid;

use crate::rate;

const NOW: Millis = Millis(1_777_636_800_000);
const ADMIN_KEY: &str = "the administrator's key of a measurement";
/// Events of each account.
const EVENTS: u64 = 5;
const BATCH: usize = 1_000;
/// How long a server may take to apply everything.
const PATIENCE: Duration = Duration::from_secs(900);

fn account(n: u64) -> AccountId {
    AccountId(Uuid::from_u128(u128::from(n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)))
}

fn record(n: u64, body: Body) -> Record {
    Record { version: 1, account_id: account(n).bytes().to_vec(), body: Some(body), ..Record::default() }
}

fn create(n: u64) -> Record {
    let fields = AccountFields {
        name: Some(format!("Account {n}")),
        contact_email: Some(format!("ops@account{n}.example")),
        mode: Some(1),
        ..AccountFields::default()
    };
    record(n, Body::Command(Asked { change: Some(Change::CreateAccount(fields)) }))
}

fn fact(account: u64, n: u64, at: Option<Millis>) -> Record {
    record(
        account,
        Body::Fact(EventFact {
            kind: EventType::Send as i32,
            message_id: format!("message-{n:012}"),
            recipient: format!("user{n}@mail{}.example", n % 40),
            from: Some("News <news@acme.example>".into()),
            occurred_at_nanos: at.map(|at| at.0 * 1_000_000),
            ..EventFact::default()
        }),
    )
}

pub fn run() {
    for days in [0, 1, 7, 14] {
        days_in_the_window(days);
    }
    let counts = |name: &str, usual: &str| -> Vec<u64> {
        let asked = std::env::var(name).unwrap_or_else(|_| usual.into());
        asked.split(',').filter_map(|count| count.parse().ok()).collect()
    };
    counts("SENDTRAIL_BENCH_FILES", "10,100").into_iter().for_each(crate::query::over_files);
    counts("SENDTRAIL_BENCH_ACCOUNTS", "10000,100000").into_iter().for_each(accounts);
}

/// Steps while so many days of the window hold events in every hour; time goes on through two days of hours meanwhile.
fn days_in_the_window(days: i64) {
    const STEPS: u64 = 400_000;
    let progress = Progress { settings: Some(usual_settings()), ..Progress::default() };
    let mut overlay = Overlay::new(0, progress);
    let mut effects = Effects::default();
    let mut offset = 0;
    let mut apply = |record: Record, now: Millis| {
        let keys = keys(&record);
        if let Some(id) = keys.account {
            overlay.load_account(id, || Ok::<_, Infallible>(None)).unwrap();
        }
        for key in keys.rows() {
            overlay.load_row(*key, || Ok::<_, Infallible>(None)).unwrap();
        }
        step(&mut overlay, record, &keys, offset, now, &mut effects);
        offset += 1;
        if offset.is_multiple_of(1_000) {
            effects.clear();
        }
    };
    let begin = NOW.plus(-days * DAY);
    apply(create(0), begin);
    for hour in 0..days * 24 {
        for n in 0..100 {
            apply(fact(0, (hour * 100 + n) as u64, None), begin.plus(hour * HOUR));
        }
    }
    let records: Vec<Record> = (0..STEPS).map(|n| fact(0, 1_000_000 + n, None)).collect();
    let begun = Instant::now();
    for (n, record) in (0i64..).zip(records) {
        apply(record, NOW.plus(n * 2 * DAY / STEPS as i64));
    }
    rate(&format!("steps with {days} days in the window"), STEPS, begun.elapsed());
}

/// A server with so many accounts.
fn accounts(count: u64) {
    let folder = TempDir::new().unwrap();
    let mut config = Config::defaults();
    config.data.dir = folder.path().to_path_buf();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(fill(&config, count));
    println!("  {count} accounts, {EVENTS} events each");
    let records = count * (EVENTS + 1);
    let begun = Instant::now();
    let mut server = Server::start(folder.path());
    let api = Api::new(&server.base, ADMIN_KEY);
    let applied = async || metric(&api, "sendtrail_events_total").await >= (count * EVENTS) as f64;
    let peak = runtime.block_on(async {
        while !applied().await {
            assert!(begun.elapsed() < PATIENCE, "it does not get on");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        rate("    records applied, archive and sums beside", records, begun.elapsed());
        tokio::time::sleep(Duration::from_secs(20)).await;
        server.memory()
    });
    println!("    {:<56} {:>9} MiB, at most {} MiB", "memory after that", peak.0, peak.1);
    let begun = Instant::now();
    server.stop();
    println!("    {:<56} {:>9.1} s", "stopped in", begun.elapsed().as_secs_f64());
    println!("    {:<56} {:>9} MiB", "state on disk", size(&folder.path().join("state")) >> 20);
    let begun = Instant::now();
    let mut server = Server::start(folder.path());
    println!("    {:<56} {:>9.2} s", "started again, until it answers", begun.elapsed().as_secs_f64());
    std::thread::sleep(Duration::from_secs(5));
    let memory = server.memory();
    println!("    {:<56} {:>9} MiB, at most {} MiB", "memory after the start", memory.0, memory.1);
    let path = format!("/api/v1/admin/accounts/{}", account(count / 2));
    let begun = Instant::now();
    runtime.block_on(Api::new(&server.base, ADMIN_KEY).get(&path)).unwrap();
    println!("    {:<56} {:>9.2} ms", "one account is shown in", begun.elapsed().as_secs_f64() * 1e3);
    server.stop();
}

/// Writes accounts and their events into the log of a folder, events spread over ten days.
async fn fill(config: &Config, count: u64) {
    let backbone = Backbone::open(config).await.unwrap();
    let log = backbone.log();
    let partitions = config.log.partitions;
    let now = Millis::wall();
    let created = (0..count).map(create);
    let told = (0..count * EVENTS).map(|n| {
        let at = now.plus(-(n as i64 % 240) * HOUR);
        fact(n % count, n, Some(at))
    });
    let mut batches: Vec<Batch> = (0..partitions).map(|_| Batch::new()).collect();
    for record in created.chain(told) {
        let to = partition_of(record.account().unwrap(), partitions);
        let batch = &mut batches[to as usize];
        batch.push(&record);
        if batch.len() == BATCH {
            let full = std::mem::replace(batch, Batch::new());
            log.append(TopicPartition::new(Topic::Intake, to), full).await.unwrap();
        }
    }
    for (to, batch) in (0..).zip(batches).filter(|(_, batch)| !batch.is_empty()) {
        log.append(TopicPartition::new(Topic::Intake, to), batch).await.unwrap();
    }
    tokio::task::spawn_blocking(move || backbone.close()).await.unwrap();
}

async fn metric(api: &Api, name: &str) -> f64 {
    let Ok(reply) = api.call(http::Method::GET, "/metrics", &[], "").await else { return 0.0 };
    let text = String::from_utf8_lossy(&reply.body).into_owned();
    let value = |line: &str| {
        let rest = line.strip_prefix(name)?;
        rest.starts_with([' ', '{']).then(|| line.rsplit(' ').next()?.parse::<f64>().ok()).flatten()
    };
    text.lines().filter_map(value).sum()
}

/// The program.
struct Server {
    child: Child,
    base: String,
}

impl Server {
    fn start(data: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sendtrail"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(data).env("SENDTRAIL_ADMIN_KEY", ADMIN_KEY);
        command.env("SENDTRAIL__ARCHIVE__SEAL", "false");
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let base = lines.find_map(|line| line.strip_prefix("listening on ").map(str::to_owned)).unwrap();
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, base }
    }

    /// Resident now and at most, MiB.
    fn memory(&self) -> (u64, u64) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let of = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name));
            let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
            kib.unwrap_or(0) >> 10
        };
        (of("VmRSS:"), of("VmHWM:"))
    }

    fn stop(&mut self) {
        Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn size(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| {
            let path = entry.path();
            if path.is_dir() { size(&path) } else { entry.metadata().map_or(0, |metadata| metadata.len()) }
        })
        .sum()
}
