//! Reconciliation: what is equal is said to be, and what is not is named; ClickHouse is filled again after it lost its end.

use std::process::{Command, Output};

use super::support::*;

async fn compared(server: &Server, account: &str) -> Value {
    let path = format!("{ADMIN}/reconciliation?from=2026-05-01&to=2026-05-03&account_id={account}");
    server.admin.get(&path).await.unwrap()
}

#[tokio::test]
async fn what_stores_have_is_compared_row_by_row() {
    let server = Server::start_with(|config| {
        config.log.simulated = true;
        config.archive.commit_seconds = 1;
    })
    .await;
    let partner = server.partner("compared").await;
    let other = server.partner("beside").await;
    partner.stream(&(0..30).map(|_| partner.event("Send")).collect::<Vec<_>>()).await;
    partner.at(noon().plus(HOUR)).stream(&[partner.event("HardBounce"), partner.event("Open")]).await;
    other.stream(&[other.event("Send")]).await;
    let found = compared(&server, &partner.account_id).await;
    assert_eq!(found["equal"], true, "{found}");
    let hours = found["hours"].as_array().unwrap();
    assert_eq!(hours.len(), 2);
    let at = |hour: usize, name: &str| hours[hour][name].as_u64();
    // Nothing is added up of calls.
    for (name, calls) in [("log", CALLS), ("archive", CALLS), ("rollups", 0), ("archive_sums", 0)] {
        assert_eq!((at(0, name), at(1, name)), (Some(30 + calls), Some(2)), "{name}");
    }
    let all = server.admin.get(&format!("{ADMIN}/reconciliation?from=2026-05-01&to=2026-05-03")).await.unwrap();
    let events: u64 = all["hours"].as_array().unwrap().iter().map(|hour| hour["archive"].as_u64().unwrap()).sum();
    assert_eq!((&all["equal"], events), (&json!(true), 33 + 2 * CALLS));
    for (query, code) in [
        ("", "MISSING_PARAM"),
        ("?from=2026-05-01", "MISSING_PARAM"),
        ("?from=2026-05-02&to=2026-05-01", "INVALID_PARAM"),
        ("?from=2026-05-02&to=2026-08-01", "INVALID_PARAM"),
        ("?from=2026-05-02T00:30:00Z&to=2026-05-03", "INVALID_PARAM"),
        ("?from=2026-05-02&to=2026-05-03&account_id=nobody", "PARTNER_NOT_FOUND"),
    ] {
        let reply =
            server.admin.call(http::Method::GET, &format!("{ADMIN}/reconciliation{query}"), &[], "").await.unwrap();
        assert_eq!(reply.json()["error"], code, "{query}");
    }
    let run = tokio::process::Command::new(env!("CARGO_BIN_EXE_sendtrail"))
        .args(["reconcile", "--url", server.admin.base(), "--admin-key", server.admin.key()])
        .args(["--from", "2026-05-01", "--to", "2026-05-02"])
        .output()
        .await
        .unwrap();
    assert!(run.status.success() && String::from_utf8_lossy(&run.stdout).contains("every store has the same"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_comes_meanwhile_is_no_difference() {
    let server = Server::start_with(|config| {
        config.log.simulated = true;
        config.archive.commit_seconds = 1;
        // Traffic is held back, so that there are moments at which everything is everywhere.
        config.intake.max_lag_ms = 250;
        use_clickhouse(config);
    })
    .await;
    let partner = std::sync::Arc::new(server.partner("busy").await);
    let busy = partner.clone();
    let traffic = tokio::spawn(async move {
        loop {
            busy.stream(&(0..50).map(|_| busy.event("Send")).collect::<Vec<_>>()).await;
        }
    });
    let mut compared = 0;
    eventually("it was compared four times", async || {
        let path = format!("{ADMIN}/reconciliation?from=2026-05-01&to=2026-05-03&account_id={}", partner.account_id);
        let reply = server.admin.call(http::Method::GET, &path, &[], "").await.unwrap();
        if reply.status == 503 {
            // It does not say what it does not know.
            return false;
        }
        let found = reply.json();
        assert_eq!(found["equal"], true, "{found}");
        let last = found["hours"][0]["archive"].as_u64().unwrap();
        compared += 1;
        compared >= 4 && last > 50
    })
    .await;
    traffic.abort();
}

#[tokio::test]
async fn a_clickhouse_that_lost_rows_is_named_and_filled_again() {
    let mut url = String::new();
    let mut database = String::new();
    let server = Server::start_with(|config| {
        config.log.simulated = true;
        config.archive.commit_seconds = 1;
        config.clickhouse.batch_rows = 20;
        if use_clickhouse(config) {
            config.clickhouse.fallback = sendtrail::config::Fallback::Archive;
            (url, database) = (config.clickhouse.url.clone(), config.clickhouse.database.clone());
        }
    })
    .await;
    if url.is_empty() {
        return;
    }
    let client = sendtrail::clickhouse::client(&server.config.clickhouse).unwrap();
    let partner = server.partner("rebuilt").await;
    for _ in 0..5 {
        partner.stream(&(0..20).map(|_| partner.event("Send")).collect::<Vec<_>>()).await;
    }
    let count = async || client.query("SELECT count() FROM events").fetch_one::<u64>().await.unwrap();
    eventually("ClickHouse has them", async || count().await >= 100 + CALLS).await;
    assert_eq!(compared(&server, &partner.account_id).await["equal"], true);
    // A row gone, and one there twice.
    let run = async |sql: &str| client.query(sql).with_setting("mutations_sync", "2").execute().await.unwrap();
    run("INSERT INTO events SELECT * FROM events WHERE seq = 50").await;
    run("ALTER TABLE events DELETE WHERE seq IN (30, 31)").await;
    let found = compared(&server, &partner.account_id).await;
    let partition = found["differences"][0]["partition"].clone();
    let named = |difference: &str, first: u64, last: u64| {
        json!({"account_id": partner.account_id, "store": "clickhouse", "difference": difference, "partition": partition,
            "first_seq": first, "last_seq": last})
    };
    assert_eq!(found["differences"], json!([named("missing", 30, 31), named("twice", 50, 50)]), "{found}");
    assert_eq!(found["equal"], false);
    let stopped = server.stop().await;
    let repair = || -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sendtrail"));
        command.args(["reconcile", "--repair", "--data"]).arg(&stopped.config.data.dir);
        command.env("SENDTRAIL__CLICKHOUSE__URL", &url).env("SENDTRAIL__CLICKHOUSE__DATABASE", &database);
        command.env("SENDTRAIL__LOG__SIMULATED", "true").output().unwrap()
    };
    let refused = repair();
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && why.contains("not whole") && why.contains("--recreate"), "{why}");
    // As from a backup: whole, but of before.
    run("TRUNCATE TABLE events").await;
    run("TRUNCATE TABLE events_progress").await;
    run("TRUNCATE TABLE stats_hourly").await;
    for _ in 0..2 {
        let repaired = repair();
        assert!(repaired.status.success(), "{}", String::from_utf8_lossy(&repaired.stderr));
    }
    let server = stopped.start().await;
    let partner = partner.on(&server);
    eventually("it is filled again", async || count().await >= 100 + CALLS).await;
    partner.stream(&[partner.event("Open")]).await;
    eventually("and goes on", async || count().await >= 101 + CALLS).await;
    let found = compared(&server, &partner.account_id).await;
    assert_eq!((&found["equal"], count().await), (&json!(true), 101 + CALLS), "{found}");
}
