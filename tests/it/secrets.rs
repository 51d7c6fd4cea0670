//! Nothing secret is in the logs, whatever a server is used for and however much it logs.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine;
use http::Method;
use sendtrail::client::Api;

use super::binary::{ADMIN_KEY, PROGRAM, Process};
use super::support::*;

/// What the files of a folder hold, as text.
fn contents(folder: &Path) -> String {
    let mut all = String::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all += &contents(&path);
        } else {
            // One that is gone by now was merged into another.
            all += &String::from_utf8_lossy(&std::fs::read(&path).unwrap_or_default());
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_ever_logged() {
    let folder = tempfile::TempDir::new().unwrap();
    let log = folder.path().join("log.txt");
    let encoded = |byte: u8| base64::prelude::BASE64_STANDARD.encode([byte; 32]);
    let (sealing, before, signing) = (encoded(1), encoded(2), encoded(3));
    let previous = format!(r#"["{before}"]"#);
    let password = "the password of ClickHouse";
    let settings = [
        ("SENDTRAIL_ADMIN_KEY", ADMIN_KEY),
        // Everything of ours, and what libraries tell people who look for faults.
        (
            "SENDTRAIL__TELEMETRY__LOG",
            "debug,sendtrail=trace,sendtrail_ingest=trace,sendtrail_processor=trace,sendtrail_query_api=trace,sendtrail_eventlog=trace",
        ),
        ("SENDTRAIL__SECRETS__KEY", &*sealing),
        ("SENDTRAIL__SECRETS__PREVIOUS_KEYS", &*previous),
        ("SENDTRAIL__SECRETS__SEAL_KEY", &*signing),
        ("SENDTRAIL__CLICKHOUSE__URL", "http://127.0.0.1:9"),
        ("SENDTRAIL__CLICKHOUSE__PASSWORD", password),
        ("SENDTRAIL__WEBHOOKS__ALLOW_HTTP", "true"),
        ("SENDTRAIL__WEBHOOKS__ALLOW_PRIVATE_NETWORKS", r#"["127.0.0.0/8"]"#),
    ];
    let data = folder.path().join("data");
    let file = || Stdio::from(std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap());
    let mut process = Process::start_logging(&data, &settings, file()).unwrap();
    let admin = Api::new(&process.base, ADMIN_KEY);
    let body = json!({"name": "secret", "contact_email": "a@b.example", "mode": "production"});
    let account = admin.post(&format!("{ADMIN}/accounts"), &body).await.unwrap();
    let account = format!("{ADMIN}/accounts/{}", account["account"]["account_id"].as_str().unwrap());
    let key = admin.post(&format!("{account}/keys"), &json!({})).await.unwrap()["key"]["api_key"].take();
    let api = admin.with_key(key.as_str().unwrap());
    let receiver = Receiver::start(|_, before| Answer::status(if before == 0 { 500 } else { 200 })).await;
    let set = api.post(&format!("{PARTNER}/configuration-sets"), &json!({"name": "set"})).await.unwrap();
    let set = set["configuration_set"]["config_set_id"].as_str().unwrap().to_owned();
    let own = "a secret of the partner's own, 32 characters";
    let made = json!({"name": "hook", "destination_type": "WEBHOOK", "webhook_url": format!("{}/hook", receiver.base),
        "webhook_secret": own, "retry_schedule_seconds": [1, 1]});
    let destination = api.post(&format!("{PARTNER}/configuration-sets/{set}/event-destinations"), &made).await.unwrap();
    let destination = destination["event_destination"]["destination_id"].as_str().unwrap().to_owned();
    let made = json!({"name": "two", "destination_type": "WEBHOOK", "webhook_url": format!("{}/two", receiver.base),
        "dialect": "standard", "generate_secret": true});
    let two = api.post(&format!("{PARTNER}/configuration-sets/{set}/event-destinations"), &made).await.unwrap();
    let generated = two.to_string().split('"').find(|part| part.starts_with("whsec_")).map(str::to_owned);
    let rotated = "another secret of the partner's own, longer";
    let rotate = json!({"webhook_secret": rotated});
    drop(api.post(&format!("{PARTNER}/destinations/{destination}/rotate-secret"), &rotate).await);
    let endpoint = api.post("/webhooks", &json!({"url": "https://hook.example/"})).await.unwrap();
    let of_s4 = endpoint["endpoint"]["secret"].as_str().unwrap().to_owned();
    let mut lines = String::new();
    for n in 0..5 {
        let mut told = event("Send", &format!("m{n}"));
        told["configuration_set_name"] = "set".into();
        lines += &format!("{told}\n");
    }
    stream(&api, lines).await;
    receiver.wait("/hook", 6).await;
    receiver.wait("/two", 5).await;
    // What goes wrong is logged, too.
    let headers = [("content-type", "application/json")];
    for wrong in ["{", "[]", r#"{"name":"x"}"#] {
        drop(api.call(Method::POST, &format!("{PARTNER}/configuration-sets"), &headers, wrong.to_owned()).await);
    }
    drop(Api::new(&process.base, "pk_live_wrong").get(&format!("{PARTNER}/quotas")).await);
    let export = json!({"dataset": "events", "from": "2026-01-01", "to": "2026-01-02"});
    let export = api.post(&format!("{PARTNER}/exports"), &export).await.unwrap();
    let path = format!("{PARTNER}/exports/{}", export["export"]["export_id"].as_str().unwrap());
    eventually("the export is done", async || api.get(&path).await.unwrap()["export"]["status"] == "done").await;
    let link = api.get(&path).await.unwrap()["export"]["files"][0]["url"].as_str().unwrap().to_owned();
    drop(api.call(Method::GET, &link, &[], "").await);
    tokio::time::sleep(Duration::from_secs(2)).await;
    process.signal("-TERM");
    process.wait();
    let shown = Command::new(PROGRAM).arg("config").envs(settings).output().unwrap();
    let mut text = std::fs::read_to_string(&log).unwrap();
    assert!(text.lines().count() > 50, "it logs");
    text += &String::from_utf8_lossy(&shown.stdout);
    let hex = |byte: u8| format!("{byte:02x}").repeat(32);
    let signature = link.split("signature=").nth(1).unwrap();
    let generated = generated.expect("a generated secret is shown");
    let secrets = [
        ADMIN_KEY,
        key.as_str().unwrap(),
        own,
        rotated,
        &generated,
        generated.trim_start_matches("whsec_"),
        &of_s4,
        &sealing,
        &before,
        &signing,
        &hex(1),
        &hex(2),
        &hex(3),
        password,
        signature,
    ];
    for secret in secrets {
        let line = text.lines().find(|line| line.contains(secret));
        assert!(line.is_none(), "{secret}: {}", line.unwrap_or_default());
    }
    // What is kept tells where a webhook goes, but has its secret sealed only.
    assert!(contents(&data.join("log")).contains(&format!("{}/hook", receiver.base)), "records can be read");
    let kept = contents(&data);
    for secret in [own, rotated, &generated, generated.trim_start_matches("whsec_"), &of_s4] {
        assert!(!kept.contains(secret), "{secret} is kept as it is");
    }
}
