//! What is delivered once more is the same, whether it is read from ClickHouse or from the archive.

use std::collections::BTreeMap;

use super::*;
use crate::support::proxy::Line;

const EVENTS: usize = 270;

/// What dry runs count, and what comes of a replay of everything, by deliveries.
async fn replayed(partner: &Partner, receiver: &Receiver) -> (Vec<Value>, BTreeMap<String, Vec<u8>>) {
    let mut counts = Vec::new();
    for more in [
        json!({}),
        json!({"to": "2026-05-01T11:59:00Z"}),
        json!({"event_types": ["bounce", "email.clicked"]}),
        json!({"statuses": ["delivered"]}),
        json!({"statuses": ["gave_up"]}),
    ] {
        let mut body = json!({"from": "2026-01-01", "dry_run": true});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let mut told = Value::Null;
        eventually("it is counted", async || {
            let reply = partner.call(Method::POST, "/events/replay", &[], body.to_string()).await;
            told = reply.json()["dry_run"].clone();
            // The engine may be busy with other tests.
            reply.status != 503
        })
        .await;
        counts.push(told);
    }
    let started = partner.post("/events/replay", &json!({"from": "2026-01-01"})).await;
    let id = started["replay"]["replay_id"].as_str().unwrap();
    let bodies = || -> BTreeMap<String, Vec<u8>> {
        let mut posts = receiver.posts("/hook");
        posts.retain(|post| post.header("x-sendtrail-replay") == id);
        posts.iter().map(|post| (post.header("webhook-id").to_owned(), post.body.to_vec())).collect()
    };
    eventually("everything came once more", async || bodies().len() == EVENTS).await;
    (counts, bodies())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_is_the_same_from_both() {
    let Some((server, proxy, _)) = with_line(Fallback::Refuse).await else { return };
    let receiver = Receiver::start_ok().await;
    let partner = server.partner("again").await;
    let set = partner.set(json!({"name": "set"})).await;
    let fields = json!({"webhook_url": format!("{}/hook", receiver.base), "dialect": "standard"});
    let id = partner.destination(&set, fields).await;
    let events = (0..EVENTS).map(|n| {
        let mut event = varied(n);
        event["configuration_set_name"] = "set".into();
        event
    });
    partner.stream(&events.collect::<Vec<_>>()).await;
    let delivered = format!("/destinations/{id}/deliveries?status=delivered");
    eventually("all are delivered", async || partner.rows(&delivered, "deliveries").await.len() == EVENTS).await;
    eventually("ClickHouse has caught up", async || {
        partner.call(Method::GET, "/events?limit=1", &[], "").await.status == 200
    })
    .await;
    let (counts, from_clickhouse) = replayed(&partner, &receiver).await;
    assert_eq!(counts[0], json!({"events": EVENTS, "deliveries": EVENTS, "complete": true}));
    // It was ClickHouse that was asked: without it there is no answer.
    proxy.set(Line::Down);
    let dry = json!({"from": "2026-01-01", "dry_run": true}).to_string();
    assert_eq!(partner.call(Method::POST, "/events/replay", &[], dry).await.status, 503);
    proxy.set(Line::Up);

    let mut stopped = server.stop().await;
    stopped.config.clickhouse.url.clear();
    let server = stopped.start().await;
    let (counted, from_archive) = replayed(&partner.on(&server), &receiver).await;
    assert_eq!(counted, counts);
    assert_eq!(from_archive, from_clickhouse);
}
