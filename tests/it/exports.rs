//! Exports: whole, in every format, seen by nobody else, and taken up after a restart.

use std::path::{Path, PathBuf};
use std::process::Command;

use http::{Method, StatusCode};

use super::support::python::python_with;
use super::support::*;

async fn begin(partner: &Partner, wanted: &Value) -> String {
    let made = partner.post("/exports", wanted).await;
    made["export"]["export_id"].as_str().unwrap().to_owned()
}

async fn done(partner: &Partner, id: &str) -> Value {
    let path = format!("/exports/{id}");
    let mut last = Value::Null;
    eventually("the export is over", async || {
        last = partner.get(&path).await["export"].take();
        !matches!(last["status"].as_str().unwrap(), "queued" | "running")
    })
    .await;
    assert_eq!(last["status"], "done", "{last}");
    last
}

/// Downloads every file by its link, without a key; the folder.
async fn download(server: &Server, export: &Value) -> tempfile::TempDir {
    let folder = tempfile::TempDir::new().unwrap();
    let nobody = sendtrail::client::Api::new(server.admin.base(), "");
    for file in export["files"].as_array().unwrap() {
        let to = folder.path().join(file["name"].as_str().unwrap());
        let bytes = nobody.download(file["url"].as_str().unwrap(), &to).await.unwrap();
        assert_eq!(file["bytes"], bytes);
    }
    folder
}

fn verifies(folder: &Path) -> bool {
    let output = Command::new(env!("CARGO_BIN_EXE_sendtrail")).arg("verify").arg(folder).output().unwrap();
    output.status.success()
}

const READ: &str = r#"
import sys, json, glob, pandas, duckdb, pyarrow.parquet as pq
folder = sys.argv[1]
parquet = sorted(glob.glob(folder + "/parquet/*.parquet"))
frames = pandas.concat([pandas.read_parquet(path) for path in parquet])
csv = pandas.concat([pandas.read_csv(path) for path in sorted(glob.glob(folder + "/csv/*.csv"))])
lines = [json.loads(line) for path in sorted(glob.glob(folder + "/ndjson/*.ndjson")) for line in open(path)]
duck = duckdb.sql("select count(*), sum((bounce.bounceType = 'Permanent')::int) from read_parquet(?)", params=[parquet]).fetchall()[0]
order = lambda ids: sorted(ids)
print(json.dumps({"parquet": order(frames["event_id"]), "csv": order(csv["event_id"]), "ndjson": order(line["event_id"] for line in lines), "duck": duck,
    "csv_bounces": int((csv["bounce.bounceType"] == "Permanent").sum()), "tag": [json.loads(t) for t in csv["tags"].dropna()], "line_tags": [l["tags"] for l in lines if l.get("tags")]}))
"#;

#[tokio::test]
async fn an_export_has_what_the_events_are_in_every_format() {
    let server = Server::start_with(|config| {
        config.log.simulated = true;
        config.exports.file_rows = 50;
    })
    .await;
    let partner = server.partner("exported").await;
    let other = server.partner("other").await;
    let mut events: Vec<Value> = (0..120).map(|_| partner.event("Send")).collect();
    events[3]["tags"] = json!({"campaign": "june, \"early\""});
    events[4]["metadata"] = json!({"order": 7});
    partner.stream(&events).await;
    partner.stream(&(0..5).map(|_| partner.event("HardBounce")).collect::<Vec<_>>()).await;
    partner.at(noon().plus(DAY)).stream(&(0..7).map(|_| partner.event("Open")).collect::<Vec<_>>()).await;
    other.stream(&(0..9).map(|_| other.event("Send")).collect::<Vec<_>>()).await;
    let mut wanted: Vec<String> =
        partner.log().await.iter().map(|event| event["event_id"].as_str().unwrap().into()).collect();
    wanted.sort_unstable();
    let folder = tempfile::TempDir::new().unwrap();
    for format in ["parquet", "csv", "ndjson"] {
        let asked = json!({"dataset": "events", "from": "2026-04-30", "to": "2026-05-04", "format": format});
        let export = done(&partner, &begin(&partner, &asked).await).await;
        assert_eq!(
            (&export["progress"]["parts_done"], &export["progress"]["rows"]),
            (&json!(4), &json!(wanted.len())),
            "{export}"
        );
        let names: Vec<&str> =
            export["files"].as_array().unwrap().iter().map(|file| file["name"].as_str().unwrap()).collect();
        // Days without events are no files, those with many are several.
        let days = ["events-2026-05-01", "events-2026-05-01-0002", "events-2026-05-01-0003", "events-2026-05-02"];
        let days = days.map(|day| format!("{day}.{format}"));
        assert_eq!(names, [&days[0], &days[1], &days[2], &days[3], "seal.json"]);
        let rows = export["files"].as_array().unwrap().iter().filter_map(|file| file["rows"].as_u64());
        assert_eq!(rows.collect::<Vec<_>>(), [50, 50, 25, 7, 0]);
        let files = download(&server, &export).await;
        assert!(verifies(files.path()));
        if let Some(python) = python_with("cryptography") {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/audit/verify.py");
            assert!(Command::new(python).arg(script).arg(files.path()).status().unwrap().success());
        }
        std::fs::rename(files.keep(), folder.path().join(format)).unwrap();
    }
    let files = std::fs::read_dir(folder.path().join("csv")).unwrap().map(|entry| entry.unwrap().path());
    let read = |path: PathBuf| (std::fs::read_to_string(&path).unwrap(), path);
    let (text, damaged) = files.map(read).find(|(text, _)| text.contains("Permanent")).unwrap();
    std::fs::write(&damaged, text.replacen("Permanent", "Transient", 1)).unwrap();
    assert!(!verifies(&folder.path().join("csv")));
    std::fs::write(&damaged, text).unwrap();
    let Some(python) = python_with("pandas") else { return };
    let output = Command::new(python).args(["-c", READ]).arg(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read: Value = serde_json::from_slice(&output.stdout).unwrap();
    for format in ["parquet", "csv", "ndjson"] {
        assert_eq!(read[format], json!(wanted), "{format}");
    }
    assert_eq!((&read["duck"], &read["csv_bounces"]), (&json!([wanted.len(), 5]), &json!(5)));
    assert_eq!(read["tag"], json!([{"campaign": "june, \"early\""}]));
    assert_eq!(read["tag"], read["line_tags"]);
}

/// The rows of an export as JSON.
async fn lines(server: &Server, partner: &Partner, mut wanted: Value) -> Vec<Value> {
    wanted["format"] = "ndjson".into();
    let export = done(partner, &begin(partner, &wanted).await).await;
    let folder = download(server, &export).await;
    let mut lines = Vec::new();
    for file in export["files"].as_array().unwrap() {
        let name = file["name"].as_str().unwrap();
        if name != "seal.json" {
            let text = std::fs::read_to_string(folder.path().join(name)).unwrap();
            lines.extend(text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()));
        }
    }
    lines
}

#[tokio::test]
async fn every_dataset_and_filter() {
    let server = Server::start().await;
    let receiver = Receiver::start_ok().await;
    let partner = server.partner("datasets").await;
    let set = partner.set(json!({"name": "news"})).await;
    let hook = partner.destination(&set, json!({"webhook_url": receiver.base})).await;
    let mut send = partner.event("Send");
    send["configuration_set_name"] = "news".into();
    partner.stream(&(0..60).map(|_| partner.event("Send")).chain([send]).collect::<Vec<_>>()).await;
    partner.stream(&(0..9).map(|_| partner.event("HardBounce")).collect::<Vec<_>>()).await;
    receiver.wait("/", 1).await;
    let span = |dataset: &str| json!({"dataset": dataset, "from": "2026-05-01", "to": "2026-05-02"});

    let suppressed = lines(&server, &partner, json!({"dataset": "suppressions"})).await;
    let listed = partner.rows("/suppression", "suppressions").await;
    assert_eq!(suppressed.len(), 9);
    let emails = |rows: &[Value]| rows.iter().map(|row| row["email"].clone()).collect::<Vec<_>>();
    assert_eq!(emails(&suppressed), emails(&listed));

    let changes = lines(&server, &partner, span("status_changes")).await;
    let kinds: Vec<&str> = changes.iter().map(|row| row["event_type"].as_str().unwrap()).collect();
    assert!(kinds.contains(&"Paused") && !kinds.contains(&"Send"), "{kinds:?}");
    assert!(changes.iter().all(|row| row["status"]["numerator"].is_number()), "{changes:?}");

    let mut attempts = Vec::new();
    eventually("the attempt is there", async || {
        attempts =
            lines(&server, &partner, json!({"dataset": "webhook_attempts", "from": "2026-01-01", "to": "2035-12-31"}))
                .await;
        !attempts.is_empty()
    })
    .await;
    assert_eq!(
        (attempts.len(), &attempts[0]["destination_id"], &attempts[0]["status"]),
        (1, &json!(hook), &json!("delivered"))
    );
    // However it is written.
    let mut of_one = json!({"dataset": "webhook_attempts", "from": "2026-01-01", "to": "2035-12-31"});
    of_one["filters"] = json!({"destination_id": hook.replace('-', "").to_uppercase()});
    assert_eq!(lines(&server, &partner, of_one).await.len(), 1);

    let stats = lines(&server, &partner, span("stats")).await;
    let sum = |name: &str| stats.iter().map(|row| row[name].as_u64().unwrap()).sum::<u64>();
    let totals = partner.get("/stats?from=2026-05-01&to=2026-05-02").await["totals"].take();
    assert_eq!((json!(sum("sends")), json!(sum("permanent_bounces"))), (totals["sends"].clone(), json!(9)));

    let mut filtered = span("events");
    filtered["filters"] = json!({"event_types": ["Send"], "configuration_set_name": "news"});
    assert_eq!(lines(&server, &partner, filtered).await.len(), 1);
    let mut one = span("events");
    one["filters"] = json!({"recipient": suppressed[0]["email"].as_str().unwrap().to_uppercase()});
    assert_eq!(lines(&server, &partner, one).await.len(), 1);

    for (wrong, part) in [
        (json!({"dataset": "everything"}), "dataset is"),
        (json!({"dataset": "events"}), "from and to"),
        (json!({"dataset": "events", "from": "2026-05-02", "to": "2026-05-01"}), "before"),
        (json!({"dataset": "events", "from": "2016-05-02", "to": "2036-05-01"}), "days"),
        (json!({"dataset": "events", "from": "x", "to": "2026-05-01"}), "from is"),
        (
            json!({"dataset": "stats", "from": "2026-05-01", "to": "2026-05-02", "filters": {"recipient": "a@b.co"}}),
            "filters",
        ),
        (
            json!({"dataset": "events", "from": "2026-05-01", "to": "2026-05-02", "filters": {"event_types": ["Nope"]}}),
            "Nope",
        ),
        (json!({"dataset": "events", "from": "2026-05-01", "to": "2026-05-02", "format": "xlsx"}), "format is"),
        (
            json!({"dataset": "webhook_attempts", "from": "2026-05-01", "to": "2026-05-02", "filters": {"destination_id": "x"}}),
            "destination_id",
        ),
        (
            json!({"dataset": "status_changes", "from": "2026-05-01", "to": "2026-05-02", "filters": {"event_types": ["Delivery"]}}),
            "no change of status",
        ),
        (
            json!({"dataset": "events", "from": "2026-05-01", "to": "2026-05-02", "account_id": partner.account_id}),
            "administrator",
        ),
        (json!({"dataset": "events", "frm": "2026-05-01"}), "frm"),
    ] {
        let reply = partner.call(Method::POST, "/exports", &[], wrong.to_string()).await;
        assert_eq!(
            (reply.status, &reply.json()["error"]),
            (StatusCode::BAD_REQUEST, &json!("INVALID_REQUEST")),
            "{wrong}"
        );
        assert!(reply.json()["message"].as_str().unwrap().contains(part), "{wrong}: {}", reply.json());
    }
}

#[tokio::test]
async fn nobody_else_sees_an_export_and_links_hold_for_an_hour() {
    let server = Server::start().await;
    let partner = server.partner("owner").await;
    let other = server.partner("stranger").await;
    partner.stream(&[partner.event("Send")]).await;
    let id = begin(&partner, &json!({"dataset": "events", "from": "2026-05-01", "to": "2026-05-02"})).await;
    let export = done(&partner, &id).await;
    assert_eq!(other.get("/exports").await["exports"], json!([]));
    for (method, path) in [
        (Method::GET, format!("/exports/{id}")),
        (Method::DELETE, format!("/exports/{id}")),
        (Method::GET, format!("/exports/{id}/files/seal.json")),
    ] {
        assert_eq!(other.call(method, &path, &[], "").await.status, StatusCode::NOT_FOUND, "{path}");
    }
    // The operator's are apart.
    let admin = server.admin.get("/api/v1/admin/exports").await.unwrap();
    assert_eq!(admin["exports"], json!([]));
    let link = export["files"][0]["url"].as_str().unwrap();
    let nobody = sendtrail::client::Api::new(server.admin.base(), "");
    let status = async |path: &str| nobody.call(Method::GET, path, &[], "").await.unwrap().status;
    assert_eq!(status(link).await, StatusCode::OK);
    let range = nobody.call(Method::GET, link, &[("range", "bytes=0-3")], "").await.unwrap();
    assert_eq!((range.status, &range.body[..]), (StatusCode::PARTIAL_CONTENT, &b"PAR1"[..]));
    for changed in [
        link.replace("signature=", "signature=0"),
        link.replace("expires=1", "expires=2"),
        link.replace("events-2026-05-01.parquet", "job.json"),
        link.replace("events-2026-05-01.parquet", "..%2Fjob.json"),
    ] {
        assert_eq!(status(&changed).await, StatusCode::UNAUTHORIZED, "{changed}");
    }
    let own =
        async |name: &str| partner.call(Method::GET, &format!("/exports/{id}/files/{name}"), &[], "").await.status;
    assert_eq!((own("job.json").await, own("..%2Fjob.json").await), (StatusCode::NOT_FOUND, StatusCode::NOT_FOUND));
    server.tick(noon().plus(2 * HOUR)).await;
    eventually("the link is past its time", async || status(link).await == StatusCode::UNAUTHORIZED).await;
    // Deleted, it is gone.
    let path = format!("/exports/{id}");
    assert_eq!(partner.call(Method::DELETE, &path, &[], "").await.status, StatusCode::OK);
    assert_eq!(partner.call(Method::GET, &path, &[], "").await.status, StatusCode::NOT_FOUND);
    assert!(!server.config.data.dir.join("exports").join(&id).exists());
}

/// How many days the events of [`a_year`] are of.
const DAYS: i64 = 360;

/// Streams an event of each day of a year; what asks for their export, which takes a while.
async fn a_year(partner: &Partner) -> Value {
    let of = |n: i64| {
        let mut event = partner.event("Send");
        event["occurred_at"] = noon().plus(-n * DAY).to_string().into();
        event
    };
    partner.stream(&(0..DAYS).map(of).collect::<Vec<_>>()).await;
    json!({"dataset": "events", "from": "2025-05-04", "to": "2026-05-04", "format": "csv"})
}

#[tokio::test]
async fn what_is_under_way_is_bounded_cancelled_and_taken_up_after_a_restart() {
    let server = Server::start().await;
    let partner = server.partner("many").await;
    let long = a_year(&partner).await;
    let first = begin(&partner, &long).await;
    let second = begin(&partner, &long).await;
    for _ in 0..3 {
        begin(&partner, &long).await;
    }
    // Whoever may read may export.
    let scoped = json!({"scopes": ["read"]});
    let key = server.admin.post(&format!("{}/keys", partner.account), &scoped).await.unwrap();
    let reader = partner.api.with_key(key["key"]["api_key"].as_str().unwrap());
    let own = reader.post(&format!("{PARTNER}/exports"), &long).await;
    assert_eq!(own.map_err(|why| why.to_string()[..16].to_owned()).unwrap_err(), "429 RATE_LIMITED");
    let refused = partner.call(Method::POST, "/exports", &[], long.to_string()).await;
    assert_eq!((refused.status, &refused.json()["error"]), (StatusCode::TOO_MANY_REQUESTS, &json!("RATE_LIMITED")));
    assert!(refused.headers.contains_key("retry-after"));
    let at = |id: &str| format!("/exports/{id}");
    eventually("some of it is made", async || {
        partner.get(&at(&first)).await["export"]["progress"]["parts_done"].as_u64() > Some(5)
    })
    .await;
    for listed in partner.get("/exports").await["exports"].as_array().unwrap() {
        let id = listed["export_id"].as_str().unwrap();
        if id != first {
            assert_eq!(partner.call(Method::DELETE, &at(id), &[], "").await.status, StatusCode::OK);
        }
    }
    assert_eq!(partner.get(&at(&second)).await["export"]["status"], "cancelled");
    let stopped = server.stop().await;
    let job = stopped.config.data.dir.join("exports").join(&first).join("job.json");
    let kept: Value = serde_json::from_slice(&std::fs::read(job).unwrap()).unwrap();
    let before = kept["parts_done"].as_u64().unwrap();
    assert!(before > 5 && before < 360, "{before}");
    // What deletions left that were interrupted, and what is no export yet.
    let folder = stopped.config.data.dir.join("exports");
    let [gone, unnamed, begun] = [(1, ".gone"), (2, ""), (3, "")].map(|(id, ending)| {
        let path = folder.join(format!("{}{ending}", uuid::Uuid::from_u128(id)));
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("events-2026-05-01.csv"), "jane@inbox.example").unwrap();
        path
    });
    std::fs::File::open(&unnamed).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    let server = stopped.start().await;
    let partner = partner.on(&server);
    eventually("remains are deleted", async || !gone.exists() && !unnamed.exists()).await;
    assert!(begun.exists() && folder.join(&first).exists());
    let export = done(&partner, &first).await;
    assert_eq!((&export["progress"]["rows"], &export["progress"]["parts_done"]), (&json!(DAYS), &json!(365)));
    assert!(verifies(download(&server, &export).await.path()));
    // One that runs is cancelled, too.
    let running = begin(&partner, &long).await;
    eventually("it runs", async || partner.get(&at(&running)).await["export"]["status"] == "running").await;
    assert_eq!(partner.call(Method::DELETE, &at(&running), &[], "").await.status, StatusCode::OK);
    let next = begin(&partner, &json!({"dataset": "suppressions"})).await;
    done(&partner, &next).await;
    assert_eq!(partner.get(&at(&running)).await["export"]["status"], "cancelled");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_exports_of_others() {
    let server = Server::start().await;
    let (busy, other) = (server.partner("busy").await, server.partner("other").await);
    let long = a_year(&busy).await;
    let mut last = String::new();
    for _ in 0..5 {
        last = begin(&busy, &long).await;
    }
    let small = begin(&other, &json!({"dataset": "suppressions"})).await;
    done(&other, &small).await;
    assert_eq!(busy.get(&format!("/exports/{last}")).await["export"]["status"], "queued");
}

#[tokio::test]
async fn the_operator_exports_everybody_from_the_command_line() {
    let server = Server::start().await;
    let (one, other) = (server.partner("one").await, server.partner("two").await);
    one.stream(&[one.event("Send"), one.event("HardBounce")]).await;
    other.stream(&[other.event("Send"), other.event("HardBounce")]).await;
    let folder = tempfile::TempDir::new().unwrap();
    for (dataset, account, rows) in
        [("events", None, 4), ("events", Some(&one.account_id), 2), ("suppressions", None, 2), ("stats", None, 2)]
    {
        let out = folder.path().join(format!("{dataset}{}", account.is_some()));
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_sendtrail"));
        command.args(["export", "--url", server.admin.base(), "--admin-key", server.admin.key()]);
        command.args(["--dataset", dataset, "--from", "2026-05-01", "--to", "2026-05-02", "--out"]).arg(&out);
        if let Some(account) = account {
            command.args(["--account", account]);
        }
        let output = command.output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        let told: u64 = said.lines().filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum();
        assert!(told >= rows, "{dataset}: {said}");
        assert!(verifies(&out));
    }
}
