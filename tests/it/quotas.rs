//! Caps and rates, decided by the log's time.

use super::support::*;

#[tokio::test]
async fn the_sandbox_has_200_a_day() {
    let server = Server::start().await;
    let partner = server.partner_with(json!({"name": "sandbox", "mode": "sandbox"})).await;
    let quotas = partner.get("/quotas").await;
    assert_eq!(
        (&quotas["sandbox"], &quotas["daily_send_quota"], &quotas["peak_send_rate_per_second"]),
        (&json!(true), &json!(200), &json!(1))
    );
    let fifty: Vec<String> = (0..50).map(|n| format!("success+{n}@inbox.example")).collect();
    let fifty: Vec<&str> = fifty.iter().map(String::as_str).collect();
    // A call passes when the bucket is not in debt, then takes it into debt.
    for round in 0..3i64 {
        let at = partner.at(noon().plus(round * 100_000));
        assert_eq!(at.try_send(&fifty).await.0, 200);
        let (status, reply) = at.try_send(&["success@inbox.example"]).await;
        assert_eq!((status, &reply["error"]), (429, &json!("RATE_LIMITED")));
    }
    let last = partner.at(noon().plus(300_000));
    assert_eq!(last.try_send(&fifty[1..]).await.0, 200);
    assert_eq!(partner.get("/quotas").await["sent_today"], 199);
    let later = partner.at(noon().plus(HOUR));
    let (status, reply) = later.try_send(&["success@a.example", "success@b.example"]).await;
    assert_eq!((status, &reply["error"]), (403, &json!("SANDBOX_QUOTA_REACHED")), "all or nothing");
    assert_eq!(later.try_send(&["success@a.example"]).await.0, 200);
    let quotas = partner.get("/quotas").await;
    assert_eq!((&quotas["sent_today"], &quotas["sandbox_free_used_today"]), (&json!(200), &json!(200)));
    // The day is UTC.
    let tomorrow = partner.at(noon().plus(12 * HOUR));
    assert_eq!(tomorrow.try_send(&["success@a.example"]).await.0, 200);
    assert_eq!(partner.get("/quotas").await["sent_today"], 1);
}

#[tokio::test]
async fn production_caps_answer_429_and_streamed_sends_use_none() {
    let server = Server::start().await;
    let partner = server
        .partner_with(
            json!({"name": "capped", "mode": "production", "daily_send_quota": 3, "peak_send_rate_per_second": 100}),
        )
        .await;
    partner.stream(&(0..10).map(|_| partner.event("Send")).collect::<Vec<_>>()).await;
    assert_eq!(partner.get("/quotas").await["sent_today"], 0);
    assert_eq!(partner.try_send(&["success@a.example", "success@b.example"]).await.0, 200);
    let (status, reply) = partner.try_send(&["success@a.example", "success@b.example"]).await;
    assert_eq!((status, &reply["error"]), (429, &json!("DAILY_LIMIT_REACHED")));
    let path = partner.account.clone();
    server.admin.send(http::Method::PATCH, &path, &json!({"daily_send_quota": 4})).await.unwrap();
    assert_eq!(partner.try_send(&["success@a.example", "success@b.example"]).await.0, 200);
    let kinds_of = partner.log().await;
    assert!(!kinds(&kinds_of).contains(&"Reject"), "a call refused whole makes no message");
}

#[tokio::test]
async fn a_rate_tells_when_to_come_back() {
    let server = Server::start().await;
    let partner =
        server.partner_with(json!({"name": "rated", "mode": "production", "peak_send_rate_per_second": 2})).await;
    let ten: Vec<String> = (0..10).map(|n| format!("success+{n}@inbox.example")).collect();
    let ten: Vec<&str> = ten.iter().map(String::as_str).collect();
    assert_eq!(partner.try_send(&ten).await.0, 200);
    let message = partner.message(&["success@a.example"]).to_string();
    let reply = partner.call(http::Method::POST, "/send", &[], message).await;
    assert_eq!(reply.status, 429);
    let seconds: i64 = reply.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((3..=5).contains(&seconds), "{seconds}");
    let early = partner.at(noon().plus((seconds - 2) * 1_000));
    assert_eq!(early.try_send(&["success@a.example"]).await.0, 429);
    assert_eq!(partner.at(noon().plus(seconds * 1_000)).try_send(&["success@a.example"]).await.0, 200);
}
