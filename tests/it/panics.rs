//! What panics is begun anew, or told: nothing stands still in silence.

use http::Method;
use sendtrail::client::Api;

use super::binary::{ADMIN_KEY, Process};
use super::send::walk;
use super::support::*;

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
    let admin = Api::new(&process.base, ADMIN_KEY);
    let body = json!({"name": "a", "contact_email": "a@b.example", "mode": "production"});
    let account = admin.post(&format!("{ADMIN}/accounts"), &body).await.unwrap();
    let keys = format!("{ADMIN}/accounts/{}/keys", account["account"]["account_id"].as_str().unwrap());
    let key = admin.post(&keys, &json!({})).await.unwrap()["key"]["api_key"].take();
    let api = admin.with_key(key.as_str().unwrap());
    let metric = async |name: &str| -> f64 {
        let reply = api.call(Method::GET, "/metrics", &[], "").await.unwrap();
        let text = String::from_utf8(reply.body.to_vec()).unwrap();
        let lines = text.lines().filter(|line| line.starts_with(name));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    };
    let mut told = 0;
    eventually("the partition went back to its checkpoint", async || {
        // Refused while it begins anew.
        if let Ok(reply) =
            api.send(Method::POST, &format!("{PARTNER}/events"), &event("Send", &format!("m-{told}"))).await
        {
            assert_eq!(reply["accepted"], 1);
            told += 1;
        }
        metric("sendtrail_partition_restarts_total").await >= 1.0
    })
    .await;
    eventually("intake is archived all the same", async || {
        let kept = walk(&folder.path().join("archive/intake"));
        kept.iter().any(|path| path.file_name().unwrap().to_string_lossy().starts_with("intake-"))
    })
    .await;
    assert!(metric("sendtrail_intake_archive_failures_total").await >= 1.0);
    eventually("all is well", async || api.call(Method::GET, "/health", &[], "").await.unwrap().status == 200).await;
    process.signal("-TERM");
    eventually("it ends when it is told to", async || process.has_ended()).await;
    let process = Process::start(folder.path(), &settings(""));
    let api = Api::new(&process.base, key.as_str().unwrap());
    let standing = api.get(&format!("{PARTNER}/reputation")).await.unwrap();
    assert_eq!(standing["sent"], told);
}
