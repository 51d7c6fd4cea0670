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

/// An answer that says of when it is, to a question that is put right after ten events more. Where the machine stalls in
/// between all of them may be shown by then: of such an answer `whole` must hold, and more is told.
async fn dated(api: &Api, path: &str, told: &mut usize, whole: impl Fn(&Reply, u64)) -> (Reply, Millis) {
    for _ in 0..20 {
        tell(api, "Send", *told, *told + 10).await;
        *told += 10;
        let reply = api.call(Method::GET, &format!("{PARTNER}{path}"), &[], "").await.unwrap();
        match as_of(&reply) {
            Some(at) => return (reply, at),
            None => whole(&reply, *told as u64),
        }
    }
    panic!("{path} does not say that it is of before")
}

/// What waits for everything, or is refused, and then is asked for again.
async fn insist(ask: impl AsyncFn() -> anyhow::Result<Value>) -> Value {
    let mut found = Value::Null;
    eventually("it is not refused", async || match ask().await {
        Ok(told) => {
            found = told;
            true
        }
        Err(why) => {
            assert!(why.to_string().starts_with("503"), "{why}");
            false
        }
    })
    .await;
    found
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
    let mut told = 10;
    for path in ["/stats", "/events?limit=1"] {
        let (reply, at) = dated(&api, path, &mut told, |reply, told| {
            assert!(path != "/stats" || sends(reply) == told, "{path} lacks something, and does not say so");
        })
        .await;
        assert_eq!(reply.status, 200, "{}", reply.json());
        assert!(at >= begun && at <= Millis::wall(), "{path}: {at} is not of then");
        assert!(path != "/stats" || (10..=told as u64).contains(&sends(&reply)), "{}", reply.json());
    }
    // A replay would never tell what it has not seen.
    tell(&api, "Send", told, told + 10).await;
    let dry = json!({"from": begun.day_text(), "dry_run": true});
    let dry = insist(async || api.post(&format!("{PARTNER}/events/replay"), &dry).await).await;
    assert_eq!(dry["dry_run"]["events"], told + 10, "{dry}");
    // What is late is not lost.
    tell(&api, "Send", told + 10, told + 20).await;
    let hours = format!("from={}&to={}", begun.day_text(), begun.plus(2 * DAY).day_text());
    let admin = Api::new(&process.base, ADMIN_KEY);
    let all = insist(async || admin.get(&format!("{ADMIN}/reconciliation?{hours}&account_id={id}")).await).await;
    let archived: u64 = all["hours"].as_array().unwrap().iter().map(|hour| hour["archive"].as_u64().unwrap()).sum();
    assert!(all["equal"] == json!(true) && archived >= told as u64 + 20, "{all}");
    // An export has what was there when it was asked for.
    tell(&api, "Send", told + 20, told + 30).await;
    let wanted = json!({"dataset": "events", "from": begun.day_text(), "to": begun.plus(2 * DAY).day_text()});
    let made = api.post(&format!("{PARTNER}/exports"), &wanted).await.unwrap();
    let path = format!("{PARTNER}/exports/{}", made["export"]["export_id"].as_str().unwrap());
    let mut export = Value::Null;
    eventually("the export is over", async || {
        export = api.get(&path).await.unwrap()["export"].take();
        !matches!(export["status"].as_str().unwrap(), "queued" | "running")
    })
    .await;
    assert_eq!((&export["status"], &export["progress"]["rows"]), (&json!("done"), &json!(told + 30)), "{export}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_that_has_ended_shows_nothing_new_and_it_is_told() {
    let (_folder, process, _receiver, api, _) = slow("projections.before=20*off->panic").await;
    let mut told = 0;
    let nobody = Api::new(&process.base, "");
    // A slow machine is behind, too: that the sink has ended is what health tells.
    eventually("an answer says of when it is, and health that it is over", async || {
        tell(&api, "Send", told, told + 1).await;
        told += 1;
        let is_dated = as_of(&ask(&api, "/stats").await).is_some();
        is_dated && nobody.call(Method::GET, "/health", &[], "").await.unwrap().status == 503
    })
    .await;
    tell(&api, "Send", told, told + 5).await;
    let reply = ask(&api, "/stats").await;
    assert!(as_of(&reply).is_some() && reply.json()["totals"]["sends"].as_u64().unwrap() < told as u64 + 5);
    let health = nobody.call(Method::GET, "/health", &[], "").await.unwrap();
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
    let mut told = 7;
    for path in ["/suppression", "/stats"].into_iter().chain(nobody) {
        let (reply, at) = dated(&api, path, &mut told, |reply, told| {
            let shown = reply.json();
            let all = match path {
                "/suppression" => shown["suppressions"].as_array().is_some_and(|rows| rows.len() == 7),
                "/stats" => shown["totals"]["sends"] == told - 7,
                _ => true,
            };
            assert!(all, "{path} lacks something, and does not say so: {shown}");
        })
        .await;
        assert_eq!(reply.status, if nobody.contains(&path) { 404 } else { 200 }, "{}", reply.json());
        assert!(at >= begun.plus(-DAY) && at <= Millis::wall(), "{path}: {at} is not of then");
    }
    eventually("all of it is there, as of now", async || {
        let reply = ask(&api, "/suppression?limit=100").await;
        as_of(&reply).is_none() && reply.json()["suppressions"].as_array().unwrap().len() == 7
    })
    .await;
}
