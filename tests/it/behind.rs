//! Readers of what is behind: they are told of when an answer is, and what must not lack anything waits.

use http::Method;
use sendtrail::client::{Api, Reply};
use sendtrail_schemas::time::Millis;

use super::binary::{ADMIN_KEY, Process};
use super::roles::fleet::partner;
use super::support::*;

/// A server that is slow at a point, and an account on it.
async fn slow(at: &'static str) -> (tempfile::TempDir, Process, Receiver, Api, String) {
    let settings = [
        ("SENDTRAIL_ADMIN_KEY", ADMIN_KEY),
        ("SENDTRAIL__WEBHOOKS__ALLOW_HTTP", "true"),
        ("SENDTRAIL__WEBHOOKS__ALLOW_PRIVATE_NETWORKS", r#"["127.0.0.0/8"]"#),
        ("SENDTRAIL__INTAKE__MAX_LAG_MS", "600000"),
        ("SENDTRAIL__SENDING__DECISION_TIMEOUT_MS", "60000"),
        ("FAILPOINTS", at),
    ];
    let folder = tempfile::TempDir::new().unwrap();
    let process = Process::start(folder.path(), &settings);
    let receiver = Receiver::start_ok().await;
    let (key, id) = partner(&process, &receiver, 1_000_000).await;
    let api = Api::new(&process.base, &key);
    (folder, process, receiver, api, id)
}

async fn tell(api: &Api, kind: &str, from: usize, to: usize) {
    let lines: String = (from..to).map(|n| format!("{}\n", event(kind, &format!("behind-{n}")))).collect();
    assert_eq!(stream(api, lines).await["accepted"], to - from);
}

async fn ask(api: &Api, path: &str) -> Reply {
    let reply = api.call(Method::GET, &format!("{PARTNER}{path}"), &[], "").await.unwrap();
    assert_eq!(reply.status, 200, "{}", reply.json());
    reply
}

fn as_of(reply: &Reply) -> Option<Millis> {
    reply.headers.get("sendtrail-as-of").map(|at| Millis::parse(at.to_str().unwrap()).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_shown_yet_is_told_of_or_waited_for() {
    // Far longer than a reader waits: the machine may be slow, too.
    let (_folder, process, _receiver, api, id) = slow("projections.before=sleep(6000)").await;
    let begun = Millis::wall();
    let sends = |reply: &Reply| reply.json()["totals"]["sends"].as_u64().unwrap();
    tell(&api, "Send", 0, 10).await;
    eventually("what is there is shown, as of now", async || {
        let reply = ask(&api, "/stats").await;
        as_of(&reply).is_none() && sends(&reply) == 10
    })
    .await;
    for (n, path) in ["/stats", "/events?limit=1"].into_iter().enumerate() {
        tell(&api, "Send", 10 + 10 * n, 20 + 10 * n).await;
        let reply = ask(&api, path).await;
        let at = as_of(&reply).unwrap_or_else(|| panic!("{path} does not say that it is of before"));
        assert!(at >= begun && at <= Millis::wall(), "{path}: {at} is not of then");
        assert!(path != "/stats" || (10..=30).contains(&sends(&reply)), "{}", reply.json());
    }
    // A replay would never tell what it has not seen.
    tell(&api, "Send", 30, 40).await;
    let dry = json!({"from": begun.day_text(), "dry_run": true});
    let dry = api.post(&format!("{PARTNER}/events/replay"), &dry).await.unwrap();
    assert_eq!(dry["dry_run"]["events"], 40, "{dry}");
    // What is late is not lost.
    tell(&api, "Send", 40, 50).await;
    let hours = format!("from={}&to={}", begun.day_text(), begun.plus(2 * DAY).day_text());
    let admin = Api::new(&process.base, ADMIN_KEY);
    let all = admin.get(&format!("{ADMIN}/reconciliation?{hours}&account_id={id}")).await.unwrap();
    let archived: u64 = all["hours"].as_array().unwrap().iter().map(|hour| hour["archive"].as_u64().unwrap()).sum();
    assert!(all["equal"] == json!(true) && archived >= 50, "{all}");
    // An export has what was there when it was asked for.
    tell(&api, "Send", 50, 60).await;
    let wanted = json!({"dataset": "events", "from": begun.day_text(), "to": begun.plus(2 * DAY).day_text()});
    let made = api.post(&format!("{PARTNER}/exports"), &wanted).await.unwrap();
    let path = format!("{PARTNER}/exports/{}", made["export"]["export_id"].as_str().unwrap());
    let mut export = Value::Null;
    eventually("the export is over", async || {
        export = api.get(&path).await.unwrap()["export"].take();
        !matches!(export["status"].as_str().unwrap(), "queued" | "running")
    })
    .await;
    assert_eq!((&export["status"], &export["progress"]["rows"]), (&json!("done"), &json!(60)), "{export}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_that_has_ended_shows_nothing_new_and_it_is_told() {
    let (_folder, process, _receiver, api, _) = slow("projections.before=20*off->panic").await;
    let mut told = 0;
    eventually("an answer says of when it is", async || {
        tell(&api, "Send", told, told + 1).await;
        told += 1;
        as_of(&ask(&api, "/stats").await).is_some()
    })
    .await;
    tell(&api, "Send", told, told + 5).await;
    let reply = ask(&api, "/stats").await;
    assert!(as_of(&reply).is_some() && reply.json()["totals"]["sends"].as_u64().unwrap() < told as u64 + 5);
    let health = Api::new(&process.base, "").call(Method::GET, "/health", &[], "").await.unwrap();
    assert_eq!(health.status, 503, "{}", health.json());
    // What is sealed must not lack what was acknowledged.
    let day = Millis::wall();
    let wanted = json!({"dataset": "events", "from": day.day_text(), "to": day.plus(2 * DAY).day_text()});
    let made = api.post(&format!("{PARTNER}/exports"), &wanted).await.unwrap();
    let path = format!("{PARTNER}/exports/{}", made["export"]["export_id"].as_str().unwrap());
    eventually("the export is given up", async || {
        let export = api.get(&path).await.unwrap()["export"].take();
        assert_ne!(export["status"], "done", "{export}");
        export["status"] == "failed"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_applied_yet_is_told_of() {
    let (_folder, _process, _receiver, api, _) = slow("outputs.before=sleep(4500)").await;
    let begun = Millis::wall();
    tell(&api, "HardBounce", 0, 7).await;
    // Also that there is nothing may be of before.
    let nobody = ["/suppression/nobody@inbox.example", "/emails/none"];
    for path in ["/suppression", "/stats"].into_iter().chain(nobody) {
        tell(&api, "Send", 7, 8).await;
        let reply = api.call(Method::GET, &format!("{PARTNER}{path}"), &[], "").await.unwrap();
        assert_eq!(reply.status, if nobody.contains(&path) { 404 } else { 200 }, "{}", reply.json());
        let at = as_of(&reply).unwrap_or_else(|| panic!("{path} does not say that it is of before"));
        assert!(at >= begun.plus(-DAY) && at <= Millis::wall(), "{path}: {at} is not of then");
    }
    eventually("all of it is there, as of now", async || {
        let reply = ask(&api, "/suppression?limit=100").await;
        as_of(&reply).is_none() && reply.json()["suppressions"].as_array().unwrap().len() == 7
    })
    .await;
}
