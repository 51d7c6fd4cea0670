//! Events out of time: late, very late, and ahead.

use super::support::*;

fn dated(event: Value, t: sendtrail_schemas::time::Millis) -> Value {
    let mut event = event;
    event["occurred_at"] = t.to_string().into();
    event
}

#[tokio::test]
async fn the_window_has_336_hours_and_what_is_older_is_history() {
    let server = Server::start().await;
    let partner = server.partner("window").await;
    let oldest = noon().plus(-335 * HOUR);
    partner
        .stream(&[
            dated(partner.event("Send"), noon()),
            dated(partner.event("Send"), oldest),
            dated(partner.event("Send"), oldest.plus(-1)),
            dated(partner.event("HardBounce"), oldest.plus(-20 * DAY)),
        ])
        .await;
    let log = partner.log().await;
    let flags: Vec<_> = log.iter().map(|event| (event["counted"] == true, event["history"] == true)).collect();
    assert_eq!(flags, [(true, false), (true, false), (false, true), (false, true)]);
    let reputation = partner.get("/reputation").await;
    assert_eq!((&reputation["sent"], &reputation["bounced"]), (&json!(2), &json!(0)));
    assert_eq!(reputation["since"], oldest.to_string());
    let totals = &partner.get("/stats?from=2026-03-01&to=2026-05-02").await["totals"];
    assert_eq!((&totals["sends"], &totals["permanent_bounces"]), (&json!(3), &json!(1)), "/stats has all");
    assert_eq!(partner.rows("/suppression", "suppressions").await.len(), 1, "history suppresses, too");

    // The window slides while nothing happens.
    server.tick(noon().plus(HOUR)).await;
    assert_eq!(partner.get("/reputation").await["sent"], 1);
    server.tick(noon().plus(336 * HOUR)).await;
    assert_eq!(partner.get("/reputation").await["sent"], 0);
}

#[tokio::test]
async fn the_future_is_brought_back_and_the_next_hour_waits() {
    let server = Server::start().await;
    let partner = server.partner("ahead").await;
    let almost = noon().plus(58 * MINUTE);
    let at = partner.at(almost);
    at.stream(&[
        dated(partner.event("Send"), almost.plus(5 * MINUTE + 1)),
        dated(partner.event("Send"), almost.plus(4 * MINUTE)),
    ])
    .await;
    let log = partner.log().await;
    assert_eq!(log[0]["occurred_at"], almost.to_string());
    assert_eq!(log[0]["original_occurred_at"], almost.plus(5 * MINUTE + 1).to_string());
    assert_eq!(log[1]["occurred_at"], almost.plus(4 * MINUTE).to_string());
    assert!(log[1]["original_occurred_at"].is_null());
    assert_eq!(partner.get("/reputation").await["sent"], 1, "the next hour is not in the sum yet");
    server.tick(noon().plus(HOUR)).await;
    assert_eq!(partner.get("/reputation").await["sent"], 2);
}

#[tokio::test]
async fn disorder_and_late_copies_count_once() {
    let server = Server::start().await;
    let partner = server.partner("disorder").await;
    // The click before the send, and everything again ten days later.
    let send =
        dated(json!({"event_type": "Send", "message_id": "m", "recipient": "a@x.example", "subject": "S"}), noon());
    let click = dated(
        json!({"event_type": "Click", "message_id": "m", "recipient": "a@x.example", "event_id": "c"}),
        noon().plus(MINUTE),
    );
    let again = dated(
        json!({"event_type": "Click", "message_id": "m", "recipient": "a@x.example", "event_id": "d"}),
        noon().plus(MINUTE),
    );
    partner.stream(&[click.clone(), send.clone(), again]).await;
    partner.at(noon().plus(2 * DAY)).stream(&[click.clone(), send.clone()]).await;
    let log = partner.log().await;
    assert_eq!(kinds(&log), ["Click", "Send", "Click"]);
    let shown: Vec<_> = log.iter().map(|event| (event["unique"] == true, event["subject"].clone())).collect();
    assert_eq!(
        shown,
        [(true, Value::Null), (false, json!("S")), (false, json!("S"))],
        "inherited once the send is known"
    );
    // A repeatable fact is known for 72 hours, a once-only one for 15 days.
    partner.at(noon().plus(3 * DAY)).stream(&[click, send]).await;
    assert_eq!(kinds(&partner.log().await).len(), 4);
}
