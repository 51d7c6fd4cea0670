//! Load on a running server: events in batches over several connections, with rate and latency.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use rand::Rng;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::cli::Loadgen;
use crate::client::Api;

const PATH: &str = "/api/v1/partner/email/events";

/// What happened to requests.
#[derive(Default)]
struct Counts {
    accepted: AtomicU64,
    held_back: AtomicU64,
    failed: AtomicU64,
}

/// Runs until its time is over and prints what it measured.
///
/// # Errors
/// When the server cannot be reached at all.
pub async fn run(args: Loadgen) -> anyhow::Result<()> {
    let api = Api::new(&args.url, &args.key);
    api.get("/api/v1/partner/email/quotas").await?;
    let counts = Arc::new(Counts::default());
    let until = Instant::now() + Duration::from_secs(args.seconds);
    let begun = Instant::now();
    let mut workers = JoinSet::new();
    let run_id: u32 = rand::rng().next_u32();
    for worker in 0..args.connections.max(1) {
        let (api, counts) = (api.clone(), counts.clone());
        let pause = (args.rate > 0).then(|| {
            let per_worker = args.rate as f64 / args.connections.max(1) as f64;
            Duration::from_secs_f64(args.batch as f64 / per_worker)
        });
        let batch = args.batch.max(1);
        workers.spawn(async move { work(&api, &counts, until, pause, batch, &format!("{run_id:08x}-{worker}")).await });
    }
    let mut latencies = Vec::new();
    while let Some(worked) = workers.join_next().await {
        latencies.extend(worked?);
    }
    report(&counts, latencies, begun.elapsed());
    Ok(())
}

/// Sends batch after batch; the latencies of those that were accepted.
async fn work(
    api: &Api,
    counts: &Counts,
    until: Instant,
    pause: Option<Duration>,
    batch: usize,
    name: &str,
) -> Vec<Duration> {
    let mut latencies = Vec::new();
    let mut ticks = pause.map(interval);
    if let Some(ticks) = &mut ticks {
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    let mut number = 0u64;
    let headers = [("content-type", "application/x-ndjson")];
    while Instant::now() < until {
        if let Some(ticks) = &mut ticks {
            ticks.tick().await;
        }
        let body = bodies(name, &mut number, batch);
        let sent = Instant::now();
        match api.call(Method::POST, PATH, &headers, body).await {
            Ok(reply) if reply.status == StatusCode::OK => {
                counts.accepted.fetch_add(reply.json()["accepted"].as_u64().unwrap_or(0), Ordering::Relaxed);
                latencies.push(sent.elapsed());
            }
            Ok(reply) if matches!(reply.status.as_u16(), 429 | 503) => {
                counts.held_back.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            _ => {
                counts.failed.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    latencies
}

/// The next events: a send and what became of it, in turn.
fn bodies(name: &str, number: &mut u64, batch: usize) -> String {
    let mut body = String::with_capacity(batch * 256);
    for _ in 0..batch {
        let (message, step) = (*number / 3, *number % 3);
        *number += 1;
        let to = format!("user{}@example{}.com", message % 100_000, message % 50);
        let event = match step {
            0 => format!(
                r#"{{"event_type":"Send","message_id":"{name}-{message}","recipient":"{to}","from":"news@acme.com","subject":"June","tags":{{"campaign":"june"}}}}"#
            ),
            1 => format!(
                r#"{{"event_type":"Delivery","message_id":"{name}-{message}","recipient":"{to}","delivery":{{"smtpResponse":"250 OK","processingTimeMillis":420}}}}"#
            ),
            _ => format!(
                r#"{{"event_type":"Open","message_id":"{name}-{message}","recipient":"{to}","event_id":"{name}-{message}-o","open":{{"ipAddress":"203.0.113.9","userAgent":"Mozilla/5.0"}}}}"#
            ),
        };
        body.push_str(&event);
        body.push('\n');
    }
    body
}

fn report(counts: &Counts, mut latencies: Vec<Duration>, took: Duration) {
    latencies.sort_unstable();
    let at = |share: f64| {
        let place = ((latencies.len() as f64 * share) as usize).min(latencies.len().saturating_sub(1));
        latencies.get(place).map_or(0.0, |latency| latency.as_secs_f64() * 1e3)
    };
    let accepted = counts.accepted.load(Ordering::Relaxed);
    println!(
        "accepted   {accepted} events in {:.1} s: {:.0} events/s",
        took.as_secs_f64(),
        accepted as f64 / took.as_secs_f64()
    );
    println!(
        "requests   {} accepted, {} held back, {} failed",
        latencies.len(),
        counts.held_back.load(Ordering::Relaxed),
        counts.failed.load(Ordering::Relaxed)
    );
    println!("latency    p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms, max {:.1} ms", at(0.5), at(0.9), at(0.99), at(1.0));
}
