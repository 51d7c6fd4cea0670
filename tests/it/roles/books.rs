//! Dispatchers one after the other.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use sendtrail::client::Api;

use super::fleet::{Fleet, partner, told};
use crate::support::*;

/// A dispatcher on an empty folder goes on with what another one's webhooks waited for: attempts go on counting, nothing that
/// was delivered is delivered again, and a destination that failed is left alone still.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn another_dispatcher_goes_on_with_retries_failures_and_replays() {
    let further = [
        ("SENDTRAIL__WEBHOOKS__FAILING_AFTER_FAILURES", "3"),
        ("SENDTRAIL__WEBHOOKS__FAILING_AFTER_SECONDS", "0"),
        ("SENDTRAIL__WEBHOOKS__PROBE_SECONDS", "3600"),
    ];
    let Some(fleet) = Fleet::new("books", &further).await else { return };
    let receiver = Receiver::start(move |path, before| match path {
        "/late" if before < 2 => Answer::status(500),
        "/bad" => Answer::status(500),
        "/again" => Answer { after: Duration::from_millis(5), ..Answer::status(200) },
        _ => Answer::status(200),
    })
    .await;
    let rest = fleet.start("rest", &["ingest", "processor", "delivery", "sinks", "query"]);
    let mut one = fleet.start("one", &["dispatcher"]);
    let (key, _) = partner(&rest, &receiver, 1_000_000_000).await;
    let api = Api::new(&rest.base, &key);
    let mut ids = HashMap::new();
    for path in ["late", "bad", "again"] {
        let set = api.post(&format!("{PARTNER}/configuration-sets"), &json!({"name": path})).await.unwrap();
        let set = set["configuration_set"]["config_set_id"].as_str().unwrap().to_owned();
        let hook = json!({"name": path, "destination_type": "WEBHOOK", "webhook_url": format!("{}/{path}", receiver.base),
            "dialect": "standard", "retry_schedule_seconds": [if path == "late" { 12 } else { 600 }, 600, 600, 600],
            // So that no other attempt is under way once it is known to fail.
            "concurrency": if path == "bad" { 1 } else { 8 }});
        let made = api.post(&format!("{PARTNER}/configuration-sets/{set}/event-destinations"), &hook).await.unwrap();
        ids.insert(path, made["event_destination"]["destination_id"].as_str().unwrap().to_owned());
    }
    let tell = async |set: &str, range: std::ops::Range<usize>| {
        let lines: String = range
            .map(|n| {
                let mut event = event("Delivery", &format!("{set}-{n}"));
                event["configuration_set_name"] = set.into();
                format!("{event}\n")
            })
            .collect();
        let told = stream(&api, lines).await;
        assert_eq!(told["rejected"], json!([]), "{told}");
    };
    tell("late", 0..2).await;
    tell("bad", 0..20).await;
    tell("again", 0..300).await;
    receiver.wait("/late", 2).await;
    receiver.wait("/again", 300).await;
    let destination = async |path: &str| api.get(&format!("{PARTNER}/destinations/{}", ids[path])).await.unwrap();
    eventually("it is known to fail", async || destination("bad").await["destination"]["health"] == "failing").await;
    let failed = receiver.posts("/bad").len();
    // A replay in the middle of which the dispatcher dies.
    let replay = json!({"from": "2026-01-01", "destination_ids": [ids["again"]], "rate_per_second": 30});
    api.post(&format!("{PARTNER}/events/replay"), &replay).await.unwrap();
    receiver.wait("/again", 360).await;
    // Two snapshots, of which the second was begun after now, and has the checkpoint of by then.
    let mut bytes = told(&one, "sendtrail_snapshot_bytes_total").await;
    for _ in 0..2 {
        let before = bytes;
        eventually("a snapshot is taken", async || {
            bytes = told(&one, "sendtrail_snapshot_bytes_total").await;
            bytes > before
        })
        .await;
    }
    one.signal("-KILL");
    one.wait();
    std::fs::remove_dir_all(fleet.data("one")).unwrap();

    let _two = fleet.start("two", &["dispatcher"]);
    let late = receiver.wait("/late", 4).await;
    let ids_of = |posts: &[Post]| posts.iter().map(|post| post.header("webhook-id").to_owned()).collect::<HashSet<_>>();
    assert_eq!(late.iter().map(|post| post.header("webhook-attempt")).collect::<Vec<_>>(), ["1", "1", "2", "2"]);
    assert_eq!(ids_of(&late[..2]), ids_of(&late[2..]), "the same deliveries");
    eventually("everything is replayed", async || {
        let replayed: Vec<Post> =
            receiver.posts("/again").into_iter().filter(|post| !post.header("x-sendtrail-replay").is_empty()).collect();
        ids_of(&replayed).len() == 300
    })
    .await;
    tell("again", 300..310).await;
    eventually("what is new comes, too", async || ids_of(&receiver.posts("/again")).len() == 310).await;
    let first =
        receiver.posts("/again").into_iter().filter(|post| post.header("x-sendtrail-replay").is_empty()).count();
    assert_eq!(first, 310, "nothing but what was asked for came again");
    assert_eq!(receiver.posts("/bad").len(), failed, "it is left alone");
}
