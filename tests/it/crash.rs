//! SIGKILL at any moment: what was acknowledged is there, once.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sendtrail::client::Api;

use super::binary::{ADMIN_KEY, Process};
use super::support::*;

const KILLS: u64 = 6;
/// Files with keys that a first start makes.
const KEYS: [&str; 3] = ["secret.key", "admin-key.sha256", "seal.key"];

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_acknowledged_event_survives_a_kill() {
    survive_kills(&[], KILLS).await;
}

#[test]
fn whatever_ends_a_first_start_leaves_keys_whole_or_not_at_all() {
    for made in 0..KEYS.len() {
        let folder = tempfile::TempDir::new().unwrap();
        // Of the next one nothing is written yet.
        let failpoints = format!("key.made={made}*off->return");
        let settings = [("SENDTRAIL_ADMIN_KEY", ADMIN_KEY), ("FAILPOINTS", &*failpoints)];
        assert!(Process::try_start(folder.path(), &settings).is_none(), "it ends before it listens");
        let whole = || {
            let found = KEYS.iter().filter_map(|name| std::fs::read(folder.path().join(name)).ok());
            let lengths: Vec<usize> = found.map(|key| key.len()).collect();
            assert!(lengths.iter().all(|length| *length == 64), "{lengths:?}");
            lengths.len()
        };
        assert_eq!(whole(), made);
        let _process = Process::start(folder.path(), &settings[..1]);
        assert_eq!(whole(), KEYS.len());
    }
}

/// Kills a server again and again under load; what was acknowledged must be there in the end, once.
pub async fn survive_kills(further: &[(&str, &str)], kills: u64) {
    let folder = tempfile::TempDir::new().unwrap();
    let mut settings = vec![
        ("SENDTRAIL_ADMIN_KEY", ADMIN_KEY),
        ("SENDTRAIL__ARCHIVE__COMMIT_SECONDS", "1"),
        ("SENDTRAIL__STATE__CHECKPOINT_MS", "100"),
    ];
    settings.extend(further);
    let mut process = Process::start(folder.path(), &settings);
    let admin = Api::new(&process.base, ADMIN_KEY);
    let body = json!({"name": "kill", "contact_email": "a@b.example", "mode": "production", "policy": {"minimum_sends": 1_000_000_000}});
    let account = admin.post(&format!("{ADMIN}/accounts"), &body).await.unwrap();
    let account = format!("{ADMIN}/accounts/{}", account["account"]["account_id"].as_str().unwrap());
    let key = admin.post(&format!("{account}/keys"), &json!({})).await.unwrap()["key"]["api_key"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut random = StdRng::seed_from_u64(7);
    let acknowledged: Arc<Mutex<Vec<String>>> = Arc::default();
    for round in 0..kills {
        let before = acknowledged.lock().len();
        let mut streams = tokio::task::JoinSet::new();
        for stream in 0..3 {
            let (api, acknowledged) = (Api::new(&process.base, &key), acknowledged.clone());
            streams.spawn(async move {
                for batch in 0.. {
                    let ids: Vec<String> = (0..20).map(|n| format!("{round}-{stream}-{batch}-{n}")).collect();
                    let mut events: Vec<Value> = ids.iter().map(|id| event("Send", id)).collect();
                    // A copy, and a bounce that uses up part of the list.
                    events.push(event("Send", &ids[0]));
                    events.push(event("HardBounce", &ids[1]));
                    let body: String = events.iter().map(|event| format!("{event}\n")).collect();
                    let headers = [("content-type", "application/x-ndjson")];
                    let reply = api.call(http::Method::POST, &format!("{PARTNER}/events"), &headers, body).await;
                    match reply {
                        Ok(reply) if reply.status == 200 => acknowledged.lock().extend(ids),
                        Ok(reply) => assert_eq!(reply.status, 503, "{}", reply.json()),
                        Err(_) => return,
                    }
                }
            });
        }
        // In the middle of it, however slow the machine is.
        let enough = before + 60;
        eventually("events are acknowledged", async || acknowledged.lock().len() > enough).await;
        tokio::time::sleep(Duration::from_millis(random.random_range(200..900))).await;
        process.signal("-KILL");
        process.wait();
        streams.join_all().await;
        process = Process::start(folder.path(), &settings);
    }
    let api = Api::new(&process.base, &key);
    let mut log = whole_rows(&api, "/events", "events").await;
    log.extend(whole_rows(&api, "/activity", "activity").await);
    log.sort_by_key(|event| event["seq"].as_u64());
    for (at, event) in log.iter().enumerate() {
        assert_eq!(event["seq"], at, "numbers are dense");
    }
    let of = |kind: &str| {
        log.iter()
            .filter(|event| event["event_type"] == kind)
            .map(|event| event["message_id"].as_str().unwrap())
            .collect::<Vec<_>>()
    };
    let (sends, bounces) = (of("Send"), of("Bounce"));
    let found: HashSet<&str> = sends.iter().copied().collect();
    assert_eq!(found.len(), sends.len(), "nothing twice");
    let acknowledged = acknowledged.lock().clone();
    assert!(acknowledged.len() > 200, "{}", acknowledged.len());
    let lost = acknowledged.iter().filter(|id| !found.contains(id.as_str())).count();
    assert_eq!(lost, 0, "of {}", acknowledged.len());
    let reputation = whole(&api, "/reputation").await;
    assert_eq!((&reputation["sent"], &reputation["bounced"]), (&json!(sends.len()), &json!(bounces.len())));
    let totals = &whole(&api, "/stats").await["totals"];
    assert_eq!((&totals["sends"], &totals["permanent_bounces"]), (&json!(sends.len()), &json!(bounces.len())));
    assert_eq!(whole_rows(&api, "/suppression", "suppressions").await.len(), bounces.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn webhooks_survive_kills_in_the_middle_of_dispatch() {
    const CONCURRENCY: usize = 8;
    const MESSAGES: usize = 40;
    const KINDS: [&str; 3] = ["Send", "Delivery", "Open"];
    let folder = tempfile::TempDir::new().unwrap();
    let settings = [
        ("SENDTRAIL_ADMIN_KEY", ADMIN_KEY),
        ("SENDTRAIL__STATE__CHECKPOINT_MS", "100"),
        ("SENDTRAIL__WEBHOOKS__ALLOW_HTTP", "true"),
        ("SENDTRAIL__WEBHOOKS__ALLOW_PRIVATE_NETWORKS", r#"["127.0.0.0/8"]"#),
    ];
    // One in five fails.
    let fails = |before: usize| before % 5 == 4;
    let receiver = Receiver::start(move |_, before| Answer {
        after: Duration::from_millis(15),
        ..Answer::status(if fails(before) { 500 } else { 200 })
    })
    .await;
    let mut process = Process::start(folder.path(), &settings);
    let admin = Api::new(&process.base, ADMIN_KEY);
    let body = json!({"name": "hooks", "contact_email": "a@b.example", "mode": "production"});
    let account = admin.post(&format!("{ADMIN}/accounts"), &body).await.unwrap();
    let keys = format!("{ADMIN}/accounts/{}/keys", account["account"]["account_id"].as_str().unwrap());
    let key = admin.post(&keys, &json!({})).await.unwrap()["key"]["api_key"].as_str().unwrap().to_owned();
    let api = Api::new(&process.base, &key);
    let set = api.post(&format!("{PARTNER}/configuration-sets"), &json!({"name": "set"})).await.unwrap();
    let set = set["configuration_set"]["config_set_id"].as_str().unwrap();
    let mut destinations = Vec::new();
    for (path, ordering) in [("/any", "unordered"), ("/ordered", "per_message")] {
        let fields = json!({"name": path, "destination_type": "WEBHOOK", "webhook_url": format!("{}{path}", receiver.base), "dialect": "standard",
            "ordering": ordering, "concurrency": CONCURRENCY, "retry_schedule_seconds": [1, 1, 1, 1, 1, 1, 1, 1]});
        let made = api.post(&format!("{PARTNER}/configuration-sets/{set}/event-destinations"), &fields).await.unwrap();
        destinations.push(made["event_destination"]["destination_id"].as_str().unwrap().to_owned());
    }
    let mut random = StdRng::seed_from_u64(11);
    const KILLS: usize = 5;
    for round in 0..KILLS {
        let mut lines = String::new();
        for (message, kind) in (0..MESSAGES).flat_map(|message| KINDS.map(|kind| (message, kind))) {
            let mut event = event(kind, &format!("{round}-{message}"));
            event["configuration_set_name"] = "set".into();
            lines += &format!("{event}\n");
        }
        let told = stream(&Api::new(&process.base, &key), lines).await;
        assert_eq!(told["accepted"], MESSAGES * KINDS.len(), "{told}");
        tokio::time::sleep(Duration::from_millis(random.random_range(20..500))).await;
        process.signal("-KILL");
        process.wait();
        process = Process::start(folder.path(), &settings);
    }
    let api = Api::new(&process.base, &key);
    let events = KILLS * MESSAGES * KINDS.len();
    for (path, destination) in ["/any", "/ordered"].into_iter().zip(&destinations) {
        let list = format!("{PARTNER}/destinations/{destination}/deliveries");
        let delivered = async || api.rows(&format!("{list}?status=delivered"), "deliveries").await.unwrap().len();
        eventually("everything is delivered", async || delivered().await == events).await;
        assert_eq!(api.rows(&list, "deliveries").await.unwrap().len(), events);
        // What was taken first of each message, in the order of the events.
        let (mut taken, mut kinds) = (HashSet::new(), HashMap::<String, Vec<String>>::new());
        let answered = receiver.posts(path).into_iter().enumerate().filter(|(before, _)| !fails(*before));
        let mut repeated = 0;
        for (_, post) in answered {
            if !taken.insert(post.header("webhook-id").to_owned()) {
                repeated += 1;
                continue;
            }
            let body = post.json();
            let message = body["data"]["message_id"].as_str().unwrap().to_owned();
            kinds.entry(message).or_default().push(body["type"].as_str().unwrap().to_owned());
        }
        assert_eq!(taken.len(), events, "{path}");
        assert!(repeated <= KILLS * CONCURRENCY, "only what was under way at a kill came twice: {path} {repeated}");
        let in_order = |told: &Vec<String>| told == &["email.sent", "email.delivered", "email.opened"];
        assert_eq!(path == "/ordered", kinds.values().all(in_order), "{path}: {kinds:?}");
    }
}
