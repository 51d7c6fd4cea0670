//! One account streams in its past as fast as it can; nobody else notices, and nothing is half taken.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use http::Method;

use super::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backfill_is_held_back_and_the_sends_of_others_are_not() {
    // One partition for all, and no patience with a backlog.
    let server = Server::start_with(|config| {
        config.log.partitions = 1;
        config.intake.max_lag_ms = 1;
    })
    .await;
    let (past, sender) = (server.partner("past").await, server.partner("sender").await);
    let (done, held_back, taken) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let stream = async |stream: usize| {
        for part in 0..6 {
            let lines = (0..2_000).map(|n| {
                let mut event = event("Send", &format!("past-{stream}-{part}-{n}"));
                event["occurred_at"] = noon().plus(-HOUR - n).to_string().into();
                format!("{event}\n")
            });
            let body = bytes::Bytes::from(lines.collect::<String>());
            loop {
                let headers = [("content-type", "application/x-ndjson")];
                let reply = past.call(Method::POST, "/events", &headers, body.clone()).await;
                if reply.status == 503 {
                    assert_eq!(reply.json()["error"], "UNAVAILABLE");
                    assert!(reply.headers.contains_key("retry-after"));
                    held_back.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                    continue;
                }
                assert_eq!(reply.success().unwrap()["accepted"], 2_000);
                taken.fetch_add(2_000, Ordering::Relaxed);
                break;
            }
        }
    };
    let sends = async {
        let mut sends = 0;
        while !done.load(Ordering::Relaxed) || sends < 20 {
            let (status, body) = sender.try_send(&["success@inbox.example"]).await;
            assert_eq!(status, 200, "{body}");
            sends += 1;
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let backfill = async {
        tokio::join!(stream(0), stream(1), stream(2), stream(3));
        done.store(true, Ordering::Relaxed);
    };
    tokio::join!(sends, backfill);
    assert!(held_back.load(Ordering::Relaxed) > 0, "the backlog never showed");
    let all = taken.load(Ordering::Relaxed);
    eventually("all of it, and nothing that was held back", async || {
        past.get("/stats?from=2026-04-25&to=2026-05-02").await["totals"]["sends"] == all
    })
    .await;
}
