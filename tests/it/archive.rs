//! The archive is a Delta Lake table that others open as it is.

use std::path::{Path, PathBuf};
use std::process::Command;

use sendtrail_processor::archive::{ATTEMPTS, Table};

use super::support::python::python_with;
use super::support::*;

/// A Python with the `deltalake` package; none where it cannot be had, which is an error in CI.
fn python() -> Option<PathBuf> {
    python_with("deltalake")
}

const COUNT: &str = r#"
import sys, json, duckdb
from deltalake import DeltaTable
table = DeltaTable(sys.argv[1])
rows = table.to_pyarrow_table()
files = [f if "://" not in f else f[7:] for f in table.file_uris()]
duck = duckdb.sql("select count(*), count(distinct (account_id, message_id)), sum(bounce.bounceType = 'Permanent') from read_parquet(?, hive_partitioning=true)", params=[files]).fetchall()[0]
import os
os.chdir(os.path.dirname(sys.argv[1]))
duckdb.sql(open(sys.argv[2]).read())
audit = all(row[4] for row in duckdb.sql("select * from audit").fetchall())
daily = duckdb.sql("select * from daily").fetchall()
import pyarrow.compute as pc
first = rows.filter(pc.field("event_type") == "Send").sort_by([("seq", "ascending")]).slice(0, 1).to_pylist()[0]
print(json.dumps({"rows": rows.num_rows, "columns": rows.schema.names, "duck": duck, "audit": audit, "daily": daily, "files": len(files),
    "types": {f.name: str(f.type) for f in rows.schema}, "partitions": table.metadata().partition_columns, "first": first}, default=str))
"#;

#[tokio::test]
async fn python_opens_it_and_counts_the_same() {
    let server = Server::start().await;
    let partner = server.partner("audit").await;
    let mut told: Vec<Value> = (0..200).map(|_| partner.event("Send")).collect();
    told[0]["tags"] = json!({"campaign": "june"});
    told[0]["metadata"] = json!({"order": 7});
    partner.stream(&told).await;
    // On another day of receipt.
    partner.at(noon().plus(DAY)).stream(&(0..8).map(|_| partner.event("HardBounce")).collect::<Vec<_>>()).await;
    let log = partner.on(&server).log().await;
    let stopped = server.stop().await;
    let table = stopped.config.data.dir.join("archive/events");
    let Some(python) = python() else { return };
    let views = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/duckdb.sql");
    let output = Command::new(python).args(["-c", COUNT]).arg(&table).arg(views).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = log.len() as u64 + CALLS;
    assert_eq!(told["rows"], rows, "after a clean stop it holds every event");
    assert_eq!(told["duck"][0], rows);
    assert_eq!(told["duck"][2], 8);
    assert_eq!(told["partitions"], json!(["dt"]));
    assert_eq!(told["audit"], true);
    let of_account = |row: &&Value| row[0] == json!(partner.account_id);
    let daily: Vec<&Value> = told["daily"].as_array().unwrap().iter().filter(of_account).collect();
    assert_eq!(daily.iter().map(|row| row[2].as_u64().unwrap()).sum::<u64>(), 200);
    assert_eq!(daily.iter().map(|row| row[4].as_u64().unwrap()).sum::<u64>(), 8);
    for column in [
        "account_id",
        "event_id",
        "event_type",
        "occurred_at",
        "received_at",
        "partition",
        "seq",
        "offset",
        "message_id",
        "send_id",
        "recipient",
        "from",
        "subject",
        "configuration_set_name",
        "customer_id",
        "category",
        "tags",
        "metadata",
        "bounce",
        "dt",
    ] {
        assert!(told["columns"].as_array().unwrap().contains(&column.into()), "{column}: {}", told["columns"]);
    }
    let first = &told["first"];
    assert_eq!((&first["message_id"], &first["account_id"]), (&log[0]["message_id"], &json!(partner.account_id)));
    assert_eq!((&first["dt"], &first["tags"]), (&json!("2026-05-01"), &json!([["campaign", "june"]])));
    assert_eq!(first["metadata"], r#"{"order":7}"#);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_event_is_missing_or_doubled_while_files_are_made_and_merged() {
    let server = Server::start_with(|config| {
        config.log.simulated = true;
        config.archive.commit_rows = 1_000;
    })
    .await;
    let partner = server.partner("seam").await;
    let mut told = 0;
    let mut looks = 0;
    for round in 0..40 {
        let events: Vec<Value> = (0..250).map(|_| partner.event("Send")).collect();
        partner.stream(&events).await;
        told += events.len() as u64;
        // Within two seconds, the contract says; what was acknowledged is there at once.
        let totals = partner.get("/stats?from=2026-05-01&to=2026-05-02").await;
        assert_eq!(totals["totals"]["sends"], told);
        if round % 8 == 7 {
            let found = partner.rows("/events", "events").await;
            let seqs: std::collections::BTreeSet<u64> =
                found.iter().map(|event| event["seq"].as_u64().unwrap()).collect();
            assert_eq!((found.len() as u64, seqs.len() as u64), (told, told));
            assert_eq!(seqs.last().copied(), Some(CALLS + told - 1));
            looks += 1;
            tokio::time::sleep(std::time::Duration::from_millis(600)).await;
        }
    }
    assert_eq!(looks, 5);
    let table = server.config.data.dir.join("archive/events");
    eventually("files are merged", async || has_merged(&table)).await;
    assert_eq!(partner.rows("/events", "events").await.len() as u64, told);
}

/// Whether a table has a file that was merged from others.
fn has_merged(table: &Path) -> bool {
    let files = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let days: Vec<PathBuf> = files(table).collect();
    days.iter().flat_map(|day| files(day)).any(|file| file.to_string_lossy().ends_with("-merged.parquet"))
}

#[tokio::test]
async fn events_are_filed_while_the_table_of_attempts_fails_and_nothing_of_it_is_lost() {
    let server = Server::start().await;
    let receiver = Receiver::start_ok().await;
    let partner = server.partner("half").await;
    let set = partner.set(json!({"name": "set"})).await;
    partner.destination(&set, json!({"webhook_url": receiver.base, "dialect": "standard"})).await;
    let attempts = server.config.data.dir.join("archive/attempts");
    let away = server.config.data.dir.join("away");
    std::fs::rename(&attempts, &away).unwrap();
    std::fs::write(&attempts, "no folder").unwrap();
    let mut send = partner.event("Send");
    send["configuration_set_name"] = "set".into();
    partner.stream(&[send]).await;
    receiver.wait("/", 1).await;
    let health = async || server.admin.call(http::Method::GET, "/health", &[], "").await.unwrap();
    eventually("the failure shows", async || health().await.status == 503).await;
    let before = server.app.archive().rows;
    partner.stream(&[partner.event("Send"), partner.event("Send")]).await;
    eventually("events are filed", async || server.app.archive().rows >= before + 2).await;

    std::fs::remove_file(&attempts).unwrap();
    std::fs::rename(&away, &attempts).unwrap();
    eventually("it is well again", async || health().await.status == 200).await;
    let stopped = server.stop().await;
    let table = Table::open(&ATTEMPTS, &stopped.config.data.dir.join("archive/attempts")).await.unwrap();
    assert_eq!(table.files().iter().map(|file| file.rows).sum::<u64>(), 1);
}
