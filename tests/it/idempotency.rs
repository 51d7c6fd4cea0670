//! The same `Idempotency-Key` gives the same answer and sends nothing twice.

use http::Method;

use super::support::*;

const KEY: (&str, &str) = ("idempotency-key", "order-4711");

#[tokio::test]
async fn a_send_is_repeated_safely_even_after_a_restart() {
    let server = Server::start().await;
    let partner = server.partner("again").await;
    let body = partner.message(&["success@inbox.example"]).to_string();
    let first = partner.call(Method::POST, "/send", &[KEY], body.clone()).await;
    assert_eq!((first.status.as_u16(), first.headers.get("idempotent-replayed")), (200, None));
    let second = partner.call(Method::POST, "/send", &[KEY], body.clone()).await;
    assert_eq!(second.headers["idempotent-replayed"], "true");
    assert_eq!(second.json(), first.json());

    let other = partner.message(&["success@other.example"]).to_string();
    let mismatch = partner.call(Method::POST, "/send", &[KEY], other.clone()).await;
    assert_eq!((mismatch.status.as_u16(), &mismatch.json()["error"]), (409, &json!("IDEMPOTENCY_MISMATCH")));

    let server = server.restart().await;
    let partner = partner.on(&server);
    let third = partner.call(Method::POST, "/send", &[KEY], body.clone()).await;
    assert_eq!((third.status.as_u16(), third.json()), (200, first.json()));
    assert_eq!(partner.get("/quotas").await["sent_today"], 1);

    let stranger = server.partner("stranger").await;
    let reply =
        stranger.call(Method::POST, "/send", &[KEY], stranger.message(&["success@inbox.example"]).to_string()).await;
    assert_eq!(reply.status, 200, "keys are an account's own");

    let tomorrow = partner.at(noon().plus(DAY));
    let late = tomorrow.call(Method::POST, "/send", &[KEY], other).await;
    assert_eq!(late.status, 200, "keys are kept for 24 hours");
}

#[tokio::test]
async fn many_at_once_send_once() {
    let server = Server::start().await;
    let partner = server.partner("burst").await;
    let body = partner.message(&["success@inbox.example"]).to_string();
    let calls = (0..20).map(|_| partner.call(Method::POST, "/send", &[KEY], body.clone()));
    let replies = futures::future::join_all(calls).await;
    let fresh = replies.iter().filter(|reply| !reply.headers.contains_key("idempotent-replayed")).count();
    assert_eq!(fresh, 1);
    assert!(replies.iter().all(|reply| reply.json() == replies[0].json()));
    assert_eq!(partner.get("/quotas").await["sent_today"], 1);
}

#[tokio::test]
async fn only_what_was_accepted_is_remembered() {
    let server = Server::start().await;
    let partner = server.partner("refused").await;
    server.admin.post(&format!("{}/pause", partner.account), &json!({"reason": "x"})).await.unwrap();
    let body = partner.message(&["success@inbox.example"]).to_string();
    assert_eq!(partner.call(Method::POST, "/send", &[KEY], body.clone()).await.status, 403);
    server.admin.post(&format!("{}/resume", partner.account), &json!({"reason": "x"})).await.unwrap();
    assert_eq!(partner.call(Method::POST, "/send", &[KEY], body).await.status, 200);
}

#[tokio::test]
async fn events_that_nothing_tells_apart_are_taken_once() {
    let server = Server::start().await;
    let partner = server.partner("stream").await;
    let body = format!("{}\n{}\n", event("Open", "m"), event("Open", "m"));
    let headers = [KEY, ("content-type", "application/x-ndjson")];
    let first = partner.call(Method::POST, "/events", &headers, body.clone()).await;
    let second = partner.call(Method::POST, "/events", &headers, body.clone()).await;
    assert_eq!((first.json()["accepted"].as_u64(), second.json()), (Some(2), first.json()));
    assert_eq!(second.headers["idempotent-replayed"], "true");
    assert_eq!(partner.log().await.len(), 2);
    let other = partner.call(Method::POST, "/events", &headers, event("Open", "n").to_string()).await;
    assert_eq!(other.json()["error"], "IDEMPOTENCY_MISMATCH");
    // The same bytes, read otherwise, are another request.
    for path in ["/events?format=ses", "/events?format=kumomta"] {
        let other = partner.call(Method::POST, path, &headers, body.clone()).await;
        assert_eq!(other.json()["error"], "IDEMPOTENCY_MISMATCH", "{path}");
    }
    // Without the key, each is a fact of its own.
    partner.stream_text(body).await;
    assert_eq!(partner.log().await.len(), 4);
}
