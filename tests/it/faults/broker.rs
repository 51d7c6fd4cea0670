//! A broker that is gone for a minute, under traffic of every kind.

use sendtrail_test_servers::Server as Broker;

use super::*;
use crate::kafka::environment;

/// Longer than the session of whoever owns the log.
const GONE: Duration = Duration::from_secs(61);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_minute_without_a_broker_loses_nothing() {
    let Some(broker) = tokio::task::spawn_blocking(Broker::kafka).await.unwrap() else { return };
    let folder = tempfile::TempDir::new().unwrap();
    let receiver = Receiver::start_ok().await;
    let settings: Settings = environment(broker.address(), "minute")
        .into_iter()
        .chain([
            ("SENDTRAIL__ARCHIVE__COMMIT_SECONDS", "1"),
            ("SENDTRAIL__ARCHIVE__INTAKE_SECONDS", "1"),
            ("SENDTRAIL__WEBHOOKS__ALLOW_HTTP", "true"),
            ("SENDTRAIL__WEBHOOKS__ALLOW_PRIVATE_NETWORKS", r#"["127.0.0.0/8"]"#),
        ])
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let start = || {
        let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (&**name, &**value)).collect();
        tokio::task::block_in_place(|| Process::try_start(folder.path(), &settings))
    };
    let mut process = start().expect("it listens");
    let base = Arc::new(Mutex::new(process.base.clone()));
    let mut clients = tokio::task::JoinSet::new();
    for (seed, name) in [(1, "a"), (2, "b")] {
        let client = Client::new(&base, name, &receiver, seed).await;
        clients.spawn(client.work());
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    broker.signal("-STOP");
    let admin = Api::new(&process.base, ADMIN_KEY);
    let health = async || admin.call(Method::GET, "/health", &[], "").await.map(|reply| reply.status.as_u16());
    eventually("health tells", async || health().await.is_ok_and(|status| status == 503)).await;
    tokio::time::sleep(GONE).await;
    assert!(clients.try_join_next().is_none(), "both are still at it");
    broker.signal("-CONT");
    // Without a session it cannot know whether another server owns the log: it ended, and whoever looks after it starts it again.
    let mut known = BTreeSet::new();
    let mut done = Vec::new();
    while !clients.is_empty() {
        if process.has_ended() {
            // It may end once more, before it listens, while the broker gathers itself.
            let Some(again) = start() else { continue };
            process = again;
            base.lock().clone_from(&process.base);
        }
        if let Ok(Some(client)) = tokio::time::timeout(Duration::from_millis(200), clients.join_next()).await {
            done.push(client.unwrap());
        }
    }
    for client in &done {
        known.extend(client.check(&receiver).await);
    }
    process.signal("-TERM");
    assert!(process.wait().success());
    check_archive(&folder.path().join("archive/events"), &known).await;
    check_state(folder.path(), &settings);
}
