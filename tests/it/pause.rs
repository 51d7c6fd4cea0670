//! An account is paused at the very event that crosses the limit, however many sends race it.

use std::sync::Arc;

use super::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_send_is_accepted_after_the_bounce_that_pauses() {
    let server = Server::start().await;
    let partner = Arc::new(server.partner("racer").await);
    partner.stream(&(0..100).map(|_| partner.event("Send")).collect::<Vec<_>>()).await;

    let mut racers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let partner = partner.clone();
        racers.spawn(async move {
            let mut accepted = Vec::new();
            loop {
                match partner.try_send(&["success@inbox.example"]).await {
                    (200, reply) => accepted.push(reply["results"][0]["message_id"].as_str().unwrap().to_owned()),
                    (403, reply) => {
                        assert_eq!(reply["error"], "SENDING_PAUSED");
                        return accepted;
                    }
                    (status, reply) => panic!("{status} {reply}"),
                }
            }
        });
    }
    // More than the sends can outrun; each is judged by itself.
    while partner.get("/reputation").await["status"] != "PAUSED" {
        partner.stream(&(0..30).map(|_| partner.event("HardBounce")).collect::<Vec<_>>()).await;
    }
    let accepted: Vec<String> = racers.join_all().await.into_iter().flatten().collect();

    let events = partner.log().await;
    let (mut sent, mut bounced) = (0u64, 0u64);
    let mut crossing = None;
    for event in &events {
        match event["event_type"].as_str().unwrap() {
            "Send" => {
                assert!(crossing.is_none(), "a send after the pause: {event}");
                sent += 1;
            }
            "Bounce" => bounced += 1,
            _ => continue,
        }
        if sent >= 50 && bounced * 10 > sent && crossing.is_none() {
            crossing = Some((event.clone(), sent, bounced));
        }
    }
    let (crossing, sent, bounced) = crossing.unwrap();
    let paused = events.iter().find(|event| event["event_type"] == "Paused").unwrap();
    assert_eq!(paused["seq"].as_u64(), crossing["seq"].as_u64().map(|seq| seq + 1), "at the very event");
    assert_eq!(paused["status"]["event_id"], crossing["event_id"]);
    assert_eq!(paused["status"]["rule"], "bounce_rate");
    assert_eq!(paused["status"]["numerator"], bounced);
    assert_eq!(paused["status"]["denominator"], sent);
    let mut found: Vec<&str> = events
        .iter()
        .filter(|event| event["event_type"] == "Send" && event["recipient"] == "success@inbox.example")
        .map(|event| event["message_id"].as_str().unwrap())
        .collect();
    let mut accepted: Vec<&str> = accepted.iter().map(String::as_str).collect();
    found.sort_unstable();
    accepted.sort_unstable();
    assert_eq!(found, accepted, "what was accepted is there, and nothing else");

    let evidence = &partner.get("/reputation").await["paused"];
    assert_eq!(evidence["event_id"], crossing["event_id"]);
    assert_eq!(evidence["at"], crossing["received_at"]);
}

#[tokio::test]
async fn a_warning_then_a_pause_then_a_resume_each_with_evidence() {
    let server = Server::start().await;
    let partner = server.partner("steps").await;
    partner.stream(&(0..200).map(|_| partner.event("Send")).collect::<Vec<_>>()).await;
    partner.stream(&(0..10).map(|_| partner.event("HardBounce")).collect::<Vec<_>>()).await;
    assert_eq!(partner.get("/reputation").await["status"], "HEALTHY", "a rate equal to its limit does not breach it");
    partner.stream(&[partner.event("HardBounce")]).await;
    assert_eq!(partner.get("/reputation").await["status"], "AT_RISK");
    partner.stream(&(0..10).map(|_| partner.event("HardBounce")).collect::<Vec<_>>()).await;
    let reputation = partner.get("/reputation").await;
    assert_eq!(reputation["status"], "PAUSED");
    assert_eq!((&reputation["sent"], &reputation["bounced"]), (&json!(200), &json!(21)));
    assert_eq!(partner.get("/quotas").await["reputation_status"], "PAUSED");

    let resumed = server.admin.post(&format!("{}/resume", partner.account), &json!({"reason": "list cleaned"})).await;
    assert_eq!(resumed.unwrap()["account"]["reputation_status"], "HEALTHY");
    assert_eq!(partner.try_send(&["success@inbox.example"]).await.0, 200);
    // A late bounce of a message from before the resume is counted, but not judged.
    let late = event("HardBounce", "steps.example-0");
    partner.stream(&[late]).await;
    let reputation = partner.get("/reputation").await;
    assert_eq!((&reputation["bounced"], &reputation["status"]), (&json!(22), &json!("HEALTHY")));

    let path = format!("{}/history", partner.account);
    let history = server.admin.rows(&path, "history").await.unwrap();
    assert_eq!(kinds(&history), ["Resumed", "Paused", "AtRisk"]);
    assert_eq!(history[0]["status"]["reason"], "list cleaned");
    for (at, change) in [("AtRisk", &history[2]), ("Paused", &history[1])] {
        assert_eq!(change["status"]["denominator"], 200, "{at}");
        assert!(change["status"]["event_id"].as_str().unwrap().starts_with("ev_"), "{at}");
    }
    // The contact is mailed at each, through the mail path, and no quota is used for it.
    assert_eq!(partner.get("/quotas").await["sent_today"], 1);
}

#[tokio::test]
async fn by_hand_and_once() {
    let server = Server::start().await;
    let partner = server.partner("byhand").await;
    let pause = format!("{}/pause", partner.account);
    for _ in 0..2 {
        let paused = server.admin.post(&pause, &json!({"reason": "phishing report"})).await.unwrap();
        assert_eq!(paused["account"]["reputation_status"], "PAUSED");
    }
    assert_eq!(partner.try_send(&["a@inbox.example"]).await.1["error"], "SENDING_PAUSED");
    let evidence = &partner.get("/reputation").await["paused"];
    assert_eq!((&evidence["rule"], &evidence["reason"]), (&json!("manual"), &json!("phishing report")));
    assert_eq!(kinds(&partner.log().await), ["Paused"], "one event for each change");
}

#[tokio::test]
async fn who_is_paused_is_told_so_however_often_he_asks() {
    // By the wall clock, where floods are held off before the log.
    let server = Server::start_with(|_| {}).await;
    let partner = server.partner("flood").await;
    server.admin.post(&format!("{}/pause", partner.account), &json!({"reason": "too much"})).await.unwrap();
    let tries = (0..200).map(|_| partner.try_send(&["success@inbox.example"]));
    for (status, told) in futures::future::join_all(tries).await {
        assert_eq!((status, &told["error"]), (403, &json!("SENDING_PAUSED")), "{told}");
    }
}
