//! What panics is begun anew, or told: nothing stands still in silence.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use http::Method;
use sendtrail::client::Api;
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::topic::partition_of;

use super::binary::{ADMIN_KEY, Process, account_with_key};
use super::send::walk;
use super::support::*;

/// All that a metric has, whatever its labels.
async fn metric(api: &Api, name: &str) -> f64 {
    let reply = api.call(Method::GET, "/metrics", &[], "").await.unwrap();
    let text = String::from_utf8(reply.body.to_vec()).unwrap();
    let lines = text.lines().filter(|line| line.starts_with(name));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// The status of health, and what it tells of partitions.
async fn health(api: &Api) -> (u16, String) {
    let reply = api.call(Method::GET, "/health", &[], "").await.unwrap();
    (reply.status.as_u16(), reply.json()["checks"]["processor"].as_str().unwrap().to_owned())
}

async fn tell(api: &Api, message: &str) -> anyhow::Result<Value> {
    api.send(Method::POST, &format!("{PARTNER}/events"), &event("Send", message)).await
}

#[tokio::test]
async fn a_checkpoint_or_an_archiver_that_panics_is_got_over() {
    let folder = tempfile::TempDir::new().unwrap();
    let settings = |failpoints: &'static str| {
        [
            ("SENDTRAIL_ADMIN_KEY", ADMIN_KEY),
            ("SENDTRAIL__LOG__PARTITIONS", "1"),
            ("SENDTRAIL__STATE__CHECKPOINT_MS", "50"),
            ("SENDTRAIL__ARCHIVE__INTAKE_SECONDS", "1"),
            ("FAILPOINTS", failpoints),
        ]
    };
    let mut process =
        Process::start(folder.path(), &settings("checkpoint.before=1*off->1*panic->off;intake.before=1*panic->off"));
    let (api, _) = account_with_key(&Api::new(&process.base, ADMIN_KEY)).await;
    let mut told = 0;
    eventually("the partition went back to its checkpoint", async || {
        // Refused while it begins anew.
        if let Ok(reply) = tell(&api, &format!("m-{told}")).await {
            assert_eq!(reply["accepted"], 1);
            told += 1;
        }
        metric(&api, "sendtrail_partition_restarts_total").await >= 1.0
    })
    .await;
    eventually("intake is archived all the same", async || {
        let kept = walk(&folder.path().join("archive/intake"));
        kept.iter().any(|path| path.file_name().unwrap().to_string_lossy().starts_with("intake-"))
    })
    .await;
    assert!(metric(&api, "sendtrail_intake_archive_failures_total").await >= 1.0);
    eventually("all is well", async || health(&api).await.0 == 200).await;
    process.signal("-TERM");
    eventually("it ends when it is told to", async || process.has_ended()).await;
    let process = Process::start(folder.path(), &settings(""));
    let api = Api::new(&process.base, api.key());
    let standing = api.get(&format!("{PARTNER}/reputation")).await.unwrap();
    assert_eq!(standing["sent"], told);
}

#[tokio::test]
async fn a_partition_whose_thread_panics_is_halted_and_told_of_and_the_others_go_on() {
    let (folder, snapshots) = (tempfile::TempDir::new().unwrap(), tempfile::TempDir::new().unwrap());
    let settings = |failpoints: &'static str| {
        [
            ("SENDTRAIL_ADMIN_KEY", ADMIN_KEY),
            ("SENDTRAIL__LOG__PARTITIONS", "2"),
            ("SENDTRAIL__INTAKE__MAX_LAG_MS", "600000"),
            // The first who ask a store for anything are the threads of partitions, for their snapshots.
            ("SENDTRAIL__STATE__SNAPSHOTS", snapshots.path().to_str().unwrap()),
            ("SENDTRAIL__ARCHIVE__INTAKE_DAYS", "0"),
            ("FAILPOINTS", failpoints),
        ]
    };
    let mut process = Process::start(folder.path(), &settings(""));
    let admin = Api::new(&process.base, ADMIN_KEY);
    let mut keys = BTreeMap::new();
    while keys.len() < 2 {
        let (api, account) = account_with_key(&admin).await;
        let id: AccountId = account.rsplit('/').next().unwrap().parse().unwrap();
        keys.insert(partition_of(id, 2), api.key().to_owned());
    }
    process.signal("-TERM");
    assert!(process.wait().success());

    let mut process = Process::start(folder.path(), &settings("object.asked=1*panic->off"));
    let (status, why) = health(&Api::new(&process.base, "")).await;
    let panicked = |partition: &u32| why == format!("partition {partition}: its thread panicked: restart the server");
    let halted = (0..2).find(panicked).unwrap_or_else(|| panic!("{status} {why}"));
    assert_eq!(status, 503);
    let refused = tell(&Api::new(&process.base, &keys[&halted]), "m-1").await.unwrap_err().to_string();
    assert!(refused.starts_with("503 DB_UNAVAILABLE"), "{refused}");
    let other = Api::new(&process.base, &keys[&(1 - halted)]);
    assert_eq!(tell(&other, "m-1").await.unwrap()["accepted"], 1);
    assert_eq!(whole(&other, "/reputation").await["sent"], 1);
    process.signal("-TERM");
    eventually("it ends when it is told to", async || process.has_ended()).await;
    assert!(process.wait().success());

    let process = Process::start(folder.path(), &settings(""));
    let api = Api::new(&process.base, &keys[&halted]);
    eventually("all is well", async || health(&api).await.0 == 200).await;
    assert_eq!(tell(&api, "m-1").await.unwrap()["accepted"], 1);
    assert_eq!(whole(&api, "/reputation").await["sent"], 1);
}

#[tokio::test]
async fn a_partition_that_goes_back_again_and_again_is_told_of_until_it_is_past_that() {
    let folder = tempfile::TempDir::new().unwrap();
    let settings = |failpoints: &'static str| {
        [
            ("SENDTRAIL_ADMIN_KEY", ADMIN_KEY),
            ("SENDTRAIL__LOG__PARTITIONS", "1"),
            ("SENDTRAIL__STATE__CHECKPOINT_MS", "50"),
            ("FAILPOINTS", failpoints),
        ]
    };
    let mut process = Process::start(folder.path(), &settings(""));
    let (api, _) = account_with_key(&Api::new(&process.base, ADMIN_KEY)).await;
    process.signal("-TERM");
    assert!(process.wait().success());
    let process = Process::start(folder.path(), &settings("checkpoint.before=3*panic->off"));
    let api = Api::new(&process.base, api.key());
    let (mut is_told, mut count, mut next) = (false, 0, Instant::now());
    eventually("it is told, and then past", async || {
        if Instant::now() >= next {
            // What comes wakes it, so that it sees that its checkpoint failed. Perhaps it is refused.
            drop(tell(&api, &format!("m-{count}")).await);
            (count, next) = (count + 1, Instant::now() + Duration::from_secs(1));
        }
        let (status, why) = health(&api).await;
        // Asked for afterwards: there were no more when health was told.
        let restarts = metric(&api, "sendtrail_partition_restarts_total").await;
        if status == 200 {
            assert!(!is_told || restarts >= 3.0, "it is said to be well after {restarts} failures of three");
            return is_told;
        }
        assert!(why.starts_with("partition 0: ") && why.contains("panicked"), "{why}");
        is_told = true;
        false
    })
    .await;
}
