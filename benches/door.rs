//! The whole: HTTP to acknowledged, with windows, archive, merging and queries running beside it, all in this process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::Method;
use sendtrail::app::App;
use sendtrail::client::Api;
use sendtrail::config::Config;
use serde_json::json;

const SECONDS: u64 = 15;
const ACCOUNTS: usize = 8;
const BATCH: u64 = 500;

pub fn run() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let folder = tempfile::TempDir::new().unwrap();
        let mut config = Config::defaults();
        config.data.dir = folder.path().to_path_buf();
        config.server.listen = "127.0.0.1:0".into();
        let app = App::start(&config).await.unwrap();
        let admin = Api::new(&format!("http://{}", app.address), app.fresh_admin_key.as_ref().unwrap());
        let mut partners = Vec::new();
        for n in 0..ACCOUNTS {
            let body = json!({"name": format!("p{n}"), "contact_email": "a@b.example", "mode": "production"});
            let account = admin.post("/api/v1/admin/accounts", &body).await.unwrap();
            let path = format!("/api/v1/admin/accounts/{}/keys", account["account"]["account_id"].as_str().unwrap());
            let key = admin.post(&path, &json!({})).await.unwrap();
            partners.push(admin.with_key(key["key"]["api_key"].as_str().unwrap()));
        }
        let accepted = Arc::new(AtomicU64::new(0));
        let until = Instant::now() + Duration::from_secs(SECONDS);
        let begun = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for (n, partner) in partners.iter().cloned().enumerate() {
            tasks.spawn(stream(partner, n as u64, until, accepted.clone()));
        }
        tasks.spawn(ask(partners[0].clone(), until));
        let latencies: Vec<Duration> = tasks.join_all().await.into_iter().flatten().collect();
        let accepted = accepted.load(Ordering::Relaxed);
        crate::rate("events acknowledged, queries beside them", accepted, begun.elapsed());
        let mut latencies = latencies;
        latencies.sort_unstable();
        let at = |share: f64| latencies[(latencies.len() as f64 * share) as usize].as_secs_f64() * 1e3;
        println!("  {:<58} {:>6.1} / {:.1} ms", "a batch of 500: median, p99", at(0.5), at(0.99));
        app.stop().await;
    });
}

/// Batch after batch; latencies of those that were taken.
async fn stream(partner: Api, number: u64, until: Instant, accepted: Arc<AtomicU64>) -> Vec<Duration> {
    let mut latencies = Vec::new();
    let mut next = 0;
    while Instant::now() < until {
        let body: String = (next..next + BATCH).map(|n| line(number, n)).collect();
        next += BATCH;
        let body = bytes::Bytes::from(body);
        loop {
            let sent = Instant::now();
            let headers = [("content-type", "application/x-ndjson")];
            let path = "/api/v1/partner/email/events";
            let reply = partner.call(Method::POST, path, &headers, body.clone()).await.unwrap();
            if reply.status == 200 {
                latencies.push(sent.elapsed());
                accepted.fetch_add(BATCH, Ordering::Relaxed);
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    latencies
}

/// One event, as a line.
pub fn line(partner: u64, n: u64) -> String {
    let (message, kind) = (n / 3, n % 3);
    let common = format!(
        r#""message_id":"{partner}-{message}","recipient":"user{}@mail{}.example""#,
        message % 99_991,
        message % 40
    );
    let event = match kind {
        0 => format!(
            r#"{{"event_type":"Send",{common},"from":"news@acme.example","subject":"June","tags":{{"campaign":"june"}}}}"#
        ),
        1 => format!(
            r#"{{"event_type":"Delivery",{common},"delivery":{{"smtpResponse":"250 OK","processingTimeMillis":420}}}}"#
        ),
        _ => format!(
            r#"{{"event_type":"Open",{common},"event_id":"{n}","open":{{"ipAddress":"203.0.113.9","userAgent":"Mozilla/5.0"}}}}"#
        ),
    };
    format!("{event}\n")
}

/// A dashboard that looks now and then.
async fn ask(partner: Api, until: Instant) -> Vec<Duration> {
    while Instant::now() < until {
        for path in ["/stats?days=14&group_by=recipient_domain", "/reputation", "/events?limit=50&event_type=open"] {
            partner.get(&format!("/api/v1/partner/email{path}")).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    Vec::new()
}
