//! A state that is lost or damaged, folded once more from the archived intake; and sums made anew, killed on the way.

use std::path::Path;
use std::process::{Command, Output};

use sendtrail::config::{Backend, Config};

use super::binary::{PROGRAM, refused};
use super::support::*;

fn settings(config: &Config) -> [(&'static str, &str); 7] {
    [
        ("SENDTRAIL__LOG__BACKEND", if config.log.backend == Backend::Kafka { "kafka" } else { "embedded" }),
        ("SENDTRAIL__KAFKA__BOOTSTRAP_SERVERS", &config.kafka.bootstrap_servers),
        ("SENDTRAIL__KAFKA__NAMESPACE", &config.kafka.namespace),
        ("SENDTRAIL__KAFKA__REPLICATION", "1"),
        ("SENDTRAIL__KAFKA__ALLOW_SINGLE_REPLICA", "true"),
        ("SENDTRAIL__LOG__PARTITIONS", "3"),
        ("SENDTRAIL__LOG__SIMULATED", "true"),
    ]
}

fn sendtrail(command: &[&str], data: &Path, config: &Config) -> Output {
    ended_at("", command, data, config)
}

/// The same, ended at a point if it gets there.
fn ended_at(failpoints: &str, command: &[&str], data: &Path, config: &Config) -> Output {
    Command::new(PROGRAM)
        .args(command)
        .arg("--data")
        .arg(data)
        .envs(settings(config))
        .env("FAILPOINTS", failpoints)
        .output()
        .unwrap()
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The oldest segment of the log.
fn oldest(server: &Server) -> String {
    let names = std::fs::read_dir(server.config.data.dir.join("log")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with('0')).min().unwrap_or_default()
}

/// What an account is shown of its state.
async fn shown(partner: &Partner) -> [Value; 4] {
    let suppressed = partner.rows("/suppression", "suppressions").await;
    let sets = partner.get("/configuration-sets").await;
    [partner.get("/reputation").await, partner.get("/quotas").await, sets, Value::Array(suppressed)]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_is_lost_is_folded_again_and_goes_on() {
    let server = Server::start_with(|config| {
        config.log.simulated = true;
        config.log.segment_bytes = 64 << 10;
    })
    .await;
    let first = oldest(&server);
    let receiver = Receiver::start_ok().await;
    let partner = server.partner("lost").await;
    let set = partner.set(json!({"name": "set"})).await;
    partner.destination(&set, json!({"webhook_url": format!("{}/hook", receiver.base)})).await;
    let with_set = |kind: &str| {
        let mut event = partner.event(kind);
        event["configuration_set_name"] = "set".into();
        event
    };
    partner.stream(&(0..3_000).map(|_| partner.event("Send")).collect::<Vec<_>>()).await;
    partner.stream(&(0..40).map(|_| with_set("HardBounce")).collect::<Vec<_>>()).await;
    let (status, _) = partner.try_send(&["success@test.example"]).await;
    assert_eq!(status, 200);
    receiver.wait("/hook", 40).await;
    let before = shown(&partner).await;
    let log = partner.log().await;
    // So that the log has let go of what the state came from.
    let stopped = server.stop().await;
    let server = stopped.start().await;
    let partner = partner.on(&server);
    assert_eq!(shown(&partner).await, before);
    let is_embedded = server.config.log.backend == Backend::Embedded;
    eventually("the log lets go of it", async || !is_embedded || oldest(&server) > first).await;
    let stopped = server.stop().await;

    let (data, config) = (stopped.config.data.dir.clone(), stopped.config.clone());
    std::fs::remove_dir_all(data.join("state")).unwrap();
    let compared = sendtrail(&["rebuild-state"], &data, &config);
    assert_eq!(compared.status.code(), Some(1), "{}", told(&compared));
    assert_eq!(told(&compared).matches("there is no state here").count(), 3, "{}", told(&compared));
    let replaced = sendtrail(&["rebuild-state", "--replace"], &data, &config);
    assert!(replaced.status.success(), "{}", told(&replaced));
    let compared = sendtrail(&["rebuild-state"], &data, &config);
    assert_eq!(told(&compared).matches("the same, byte for byte").count(), 3, "{}", told(&compared));
    assert!(compared.status.success());
    assert!(!data.join("rebuild").exists());
    let projections = sendtrail(&["rebuild-projections"], &data, &config);
    assert!(projections.status.success(), "{}", told(&projections));

    let server = stopped.start().await;
    let partner = partner.on(&server);
    assert_eq!(shown(&partner).await, before);
    assert_eq!(partner.log().await, log);
    // A copy is still known as one, and what is new still counts.
    let sent = log.iter().find(|event| event["event_type"] == "Send").unwrap()["message_id"].as_str().unwrap();
    partner.stream(&[event("Send", sent), event("Send", "new")]).await;
    let reputation = partner.get("/reputation").await;
    assert_eq!(reputation["sent"].as_u64().unwrap(), before[0]["sent"].as_u64().unwrap() + 1);
    // Webhooks and mail go on, though where they were is lost.
    let bounce = json!({"event_type": "Bounce", "message_id": "new", "recipient": "to-new@inbox.example",
        "configuration_set_name": "set", "bounce": {"bounceType": "Permanent"}});
    partner.stream(&[bounce]).await;
    let is_posted = || receiver.posts("/hook").iter().any(|post| post.json()["mail"]["messageId"] == "new");
    eventually("what is new is posted", async || is_posted()).await;
    let (status, sent) = partner.try_send(&["success@test.example"]).await;
    assert_eq!(status, 200, "{sent}");
    server.tick(noon().plus(HOUR)).await;
    let id = sent["results"][0]["message_id"].clone();
    let delivered = || async {
        let deliveries = partner.rows("/events?event_type=delivery", "events").await;
        deliveries.iter().any(|event| event["message_id"] == id)
    };
    eventually("what is new is delivered", async || delivered().await).await;
    let mut stopped = server.stop().await;

    // Who wants none of it kept has nothing of it left.
    let kept = data.join("archive/intake/partition-00000");
    assert!(kept.exists());
    stopped.config.archive.intake_days = 0;
    let server = stopped.start().await;
    assert!(!kept.exists());
    server.app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sums_of_which_some_are_missing_are_not_served() {
    let server = Server::start().await;
    let receiver = Receiver::start_ok().await;
    let partner = server.partner("halves").await;
    let set = partner.set(json!({"name": "set"})).await;
    partner.destination(&set, json!({"webhook_url": format!("{}/hook", receiver.base)})).await;
    let mut click = partner.event("Click");
    click["configuration_set_name"] = "set".into();
    partner.stream(&[click]).await;
    partner.stream(&(0..300).map(|_| partner.event("Send")).collect::<Vec<_>>()).await;
    let delivered = async |partner: &Partner| {
        let clicks = partner.rows("/events?event_type=click", "events").await;
        clicks[0]["deliveries"][0].clone()
    };
    eventually("it is delivered", async || delivered(&partner).await["status"] == "delivered").await;
    let path = "/stats?from=2026-05-01&to=2026-05-02&granularity=hour&group_by=recipient_domain";
    let before = (partner.get(path).await, delivered(&partner).await);
    assert_eq!(before.0["totals"]["sends"], 300);
    let stopped = server.stop().await;
    let (data, config) = (stopped.config.data.dir.clone(), stopped.config.clone());
    // Before whatever it makes durable, from when nothing was touched yet to when only the end is missing.
    let mut killed = 0;
    loop {
        let point = format!("projections.before={killed}*off->return");
        let rebuilt = ended_at(&point, &["rebuild-projections"], &data, &config);
        if rebuilt.status.success() {
            break;
        }
        assert_eq!(rebuilt.status.code(), None, "{}", told(&rebuilt));
        if killed > 0 {
            let why = refused(&data, &settings(&config)).await;
            assert!(why.contains("run 'sendtrail rebuild-projections' again"), "after {killed}: {why}");
        }
        killed += 1;
    }
    // Its mark, a file of events, one of attempts, the end.
    assert!(killed >= 4, "{killed}");
    let server = stopped.start().await;
    let partner = partner.on(&server);
    assert_eq!((partner.get(path).await, delivered(&partner).await), before);
    partner.stream(&[event("Send", "one-more")]).await;
    assert_eq!(partner.get(path).await["totals"]["sends"], 301);
}
