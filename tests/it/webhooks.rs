//! Webhooks, as a receiver sees them.

use std::collections::HashSet;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::support::*;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

async fn hooked(server: &Server, name: &str, receiver: &Receiver, dialect: &str, extra: Value) -> (Partner, String) {
    let partner = server.partner(name).await;
    let set = partner.set(json!({"name": "set", "tags": {"team": "growth"}})).await;
    let mut fields =
        json!({"webhook_url": format!("{}/{name}", receiver.base), "webhook_secret": SECRET, "dialect": dialect});
    fields.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    partner.destination(&set, fields).await;
    (partner, set)
}

fn in_set(mut event: Value) -> Value {
    event["configuration_set_name"] = "set".into();
    event
}

#[tokio::test]
async fn splashify_is_signed_and_shaped_as_its_document_says() {
    let server = Server::start().await;
    let receiver = Receiver::start_ok().await;
    let (partner, _) =
        hooked(&server, "splash", &receiver, "splashify", json!({"matching_event_types": ["bounce", "email.opened"]}))
            .await;
    let mut bounce = in_set(partner.event("HardBounce"));
    bounce["bounce"] =
        json!({"bounceType": "Permanent", "bounceSubType": "General", "diagnosticCode": "smtp; 550 5.1.1 ünknown 🎉"});
    bounce["tags"] = json!({"campaign": "june"});
    partner.stream(&[in_set(partner.event("Send")), bounce.clone(), partner.event("HardBounce")]).await;
    let post = receiver.wait("/splash", 1).await.remove(0);
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
    mac.update(&post.body);
    let signature: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(post.header("x-splashify-signature"), format!("sha256={signature}"));
    assert_eq!(post.header("user-agent"), "Splashify-Pro-Webhook/1.0");
    assert_eq!((post.header("x-splashify-event"), post.header("x-splashify-attempt")), ("Bounce", "1"));
    assert_eq!(post.header("content-type"), "application/json");
    let stamp: i64 = post.header("x-splashify-timestamp").parse().unwrap();
    assert!((sendtrail_schemas::time::Millis::wall().0 / 1000 - stamp).abs() < 60);
    let body = post.json();
    assert_eq!(body["eventType"], "Bounce");
    assert_eq!(body["mail"]["messageId"], bounce["message_id"]);
    assert_eq!(body["mail"]["destination"], json!([bounce["recipient"]]));
    assert_eq!(body["mail"]["tags"], json!({"campaign": "june", "team": "growth"}), "a set's tags join the event's");
    assert_eq!(
        body["bounce"]["bouncedRecipients"][0],
        json!({"emailAddress": bounce["recipient"], "diagnosticCode": "smtp; 550 5.1.1 ünknown 🎉"})
    );

    // The delivery is on the event, and the event of no set was sent to nobody.
    eventually("delivered", async || partner.log().await[1]["deliveries"][0]["status"] == "delivered").await;
    let log = partner.log().await;
    let delivery = &log[1]["deliveries"][0];
    assert_eq!(delivery["delivery_id"], post.header("x-splashify-delivery-id"));
    assert_eq!((&delivery["attempts"], &delivery["last_status_code"]), (&json!(1), &json!(200)));
    assert!(delivery["delivered_at"].is_string());
    assert_eq!((&log[0]["deliveries"], &log[2]["deliveries"]), (&json!([]), &json!([])));
    assert_eq!(receiver.posts("/splash").len(), 1);
}

#[tokio::test]
async fn standard_is_verified_by_the_published_library() {
    let server = Server::start().await;
    let receiver = Receiver::start_ok().await;
    let (partner, _) = hooked(&server, "standard", &receiver, "standard", json!({})).await;
    partner.stream(&(0..60).map(|_| in_set(partner.event("Send"))).collect::<Vec<_>>()).await;
    partner.stream(&(0..7).map(|_| in_set(partner.event("HardBounce"))).collect::<Vec<_>>()).await;
    let posts = receiver.wait("/standard", 69).await;
    let verifier = standardwebhooks::Webhook::new(SECRET).unwrap();
    let mut types = Vec::new();
    for post in &posts {
        verifier.verify(&post.body, &post.headers).unwrap();
        let body = post.json();
        assert!(body["timestamp"].is_string() && body["data"].is_object());
        types.push(body["type"].as_str().unwrap().to_owned());
    }
    let count = |name: &str| types.iter().filter(|kind| *kind == name).count();
    assert_eq!(
        (count("email.sent"), count("email.bounced"), count("account.at_risk"), count("account.paused")),
        (60, 7, 1, 1)
    );
    let ids: HashSet<&str> = posts.iter().map(|post| post.header("webhook-id")).collect();
    assert_eq!(ids.len(), 69);
}

#[tokio::test]
async fn a_failure_is_tried_again_with_the_same_identifier_and_a_new_signature() {
    let server = Server::start().await;
    let receiver = Receiver::start(|path, before| match (path, before) {
        ("/retry", 0) => Answer::status(500),
        ("/retry", 1) => Answer { headers: vec![("location", "http://127.0.0.1:1/".into())], ..Answer::status(302) },
        ("/refuse", _) => Answer::status(400),
        ("/never", _) => Answer::status(503),
        _ => Answer::status(204),
    })
    .await;
    let schedule = json!({"retry_schedule_seconds": [1, 1]});
    let (retry, _) = hooked(&server, "retry", &receiver, "splashify", schedule.clone()).await;
    let (refuse, _) = hooked(&server, "refuse", &receiver, "splashify", schedule.clone()).await;
    let (never, _) = hooked(&server, "never", &receiver, "standard", schedule).await;
    for partner in [&retry, &refuse, &never] {
        partner.stream(&[in_set(partner.event("Send"))]).await;
    }
    let posts = receiver.wait("/retry", 3).await;
    let attempts: Vec<_> = posts.iter().map(|post| post.header("x-splashify-attempt")).collect();
    assert_eq!(attempts, ["1", "2", "3"]);
    assert!(
        posts
            .windows(2)
            .all(|pair| pair[0].header("x-splashify-delivery-id") == pair[1].header("x-splashify-delivery-id"))
    );
    assert!(
        posts.windows(2).all(|pair| pair[1].at - pair[0].at >= Duration::from_millis(900)),
        "each after the one before"
    );
    let delivery = async |partner: &Partner| partner.log().await[0]["deliveries"][0].clone();
    eventually("delivered at last", async || delivery(&retry).await["status"] == "delivered").await;
    assert_eq!(delivery(&retry).await["attempts"], 3);

    // 4xx is final in this dialect, and any failure is after the last attempt.
    eventually("given up at once", async || delivery(&refuse).await["status"] == "gave_up").await;
    assert_eq!((&delivery(&refuse).await["attempts"], receiver.posts("/refuse").len()), (&json!(1), 1));
    eventually("given up at last", async || delivery(&never).await["status"] == "gave_up").await;
    let last = delivery(&never).await;
    assert_eq!(
        (&last["attempts"], &last["last_status_code"], &last["delivered_at"]),
        (&json!(3), &json!(503), &Value::Null)
    );
    // Each attempt has its own time, and a signature over that.
    let posts = receiver.posts("/never");
    for post in &posts {
        standardwebhooks::Webhook::new(SECRET).unwrap().verify(&post.body, &post.headers).unwrap();
    }
    let stamps: Vec<i64> = posts.iter().map(|post| post.header("webhook-timestamp").parse().unwrap()).collect();
    assert!(stamps.len() == 3 && stamps.windows(2).all(|pair| pair[0] < pair[1]), "{stamps:?}");
}

#[tokio::test]
async fn an_attempt_that_is_due_survives_a_restart() {
    let server = Server::start().await;
    let receiver = Receiver::start(|_, before| Answer::status(if before == 0 { 500 } else { 200 })).await;
    let (partner, _) = hooked(&server, "due", &receiver, "splashify", json!({"retry_schedule_seconds": [5]})).await;
    partner.stream(&[in_set(partner.event("Send"))]).await;
    receiver.wait("/due", 1).await;
    // Where the machine is slow it may be more than that by now.
    let attempts = async || partner.log().await[0]["deliveries"][0]["attempts"].as_u64();
    eventually("the failure is known", async || attempts().await >= Some(1)).await;
    let server = server.restart().await;
    let partner = partner.on(&server);
    let posts = receiver.wait("/due", 2).await;
    assert_eq!(posts[0].header("x-splashify-delivery-id"), posts[1].header("x-splashify-delivery-id"));
    assert_eq!(posts[1].header("x-splashify-attempt"), "2");
    eventually("delivered", async || partner.log().await[0]["deliveries"][0]["status"] == "delivered").await;
    // Nothing that was delivered is delivered again.
    let server = server.restart().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(receiver.posts("/due").len(), 2);
    drop(server);
}

#[tokio::test]
async fn what_was_delivered_beside_one_that_hangs_is_not_posted_again_after_a_restart() {
    let server = Server::start().await;
    let receiver = Receiver::start(|path, _| match path {
        "/stuck" => Answer { after: Duration::from_secs(60), ..Answer::status(200) },
        _ => Answer::status(200),
    })
    .await;
    let (partner, set) = hooked(&server, "stuck", &receiver, "splashify", json!({})).await;
    partner.destination(&set, json!({"name": "well", "webhook_url": format!("{}/fine", receiver.base)})).await;
    partner.stream(&(0..50).map(|_| in_set(partner.event("Send"))).collect::<Vec<_>>()).await;
    receiver.wait("/fine", 50).await;
    let delivered = async || {
        let log = partner.log().await;
        let all = log.iter().flat_map(|event| event["deliveries"].as_array().unwrap());
        all.filter(|delivery| delivery["status"] == "delivered").count()
    };
    eventually("all are recorded", async || delivered().await == 50).await;
    let server = server.restart().await;
    partner.on(&server).stream(&[in_set(event("Send", "after"))]).await;
    receiver.wait("/fine", 51).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(receiver.posts("/fine").len(), 51);
}

#[tokio::test]
async fn a_delivery_keeps_the_dialect_that_it_was_made_in() {
    let server = Server::start().await;
    let receiver = Receiver::start(|_, before| Answer::status(if before == 0 { 500 } else { 200 })).await;
    let (partner, set) =
        hooked(&server, "switch", &receiver, "splashify", json!({"retry_schedule_seconds": [1]})).await;
    partner.stream(&[in_set(partner.event("Send"))]).await;
    receiver.wait("/switch", 1).await;
    let path = format!("/configuration-sets/{set}/event-destinations");
    let id = partner.get(&path).await["event_destinations"][0]["destination_id"].as_str().unwrap().to_owned();
    partner
        .api
        .send(http::Method::PATCH, &format!("{PARTNER}{path}/{id}"), &json!({"dialect": "standard"}))
        .await
        .unwrap();
    let second = receiver.wait("/switch", 2).await.remove(1);
    assert_eq!((second.header("x-splashify-attempt"), second.header("webhook-id")), ("2", ""));
    partner.stream(&[in_set(partner.event("Send"))]).await;
    let third = receiver.wait("/switch", 3).await.remove(2);
    standardwebhooks::Webhook::new(SECRET).unwrap().verify(&third.body, &third.headers).unwrap();
}

#[tokio::test]
async fn one_that_hangs_delays_nobody_else() {
    let server = Server::start().await;
    let receiver = Receiver::start(|path, _| match path {
        "/hang" => Answer { after: Duration::from_secs(60), ..Answer::status(200) },
        _ => Answer::status(200),
    })
    .await;
    let (partner, set) = hooked(&server, "hang", &receiver, "splashify", json!({})).await;
    partner.destination(&set, json!({"name": "well", "webhook_url": format!("{}/well", receiver.base)})).await;
    let begun = std::time::Instant::now();
    partner.stream(&(0..200).map(|_| in_set(partner.event("Send"))).collect::<Vec<_>>()).await;
    let posts = receiver.wait("/well", 200).await;
    let ids: HashSet<&str> = posts.iter().map(|post| post.header("x-splashify-delivery-id")).collect();
    assert_eq!(ids.len(), 200);
    // After ten seconds others take the place of those that hang.
    let mut hanging = receiver.posts("/hang");
    hanging.retain(|post| post.at < begun + Duration::from_secs(10));
    assert!(hanging.len() <= server.config.webhooks.concurrency_per_destination);
}

#[tokio::test]
async fn gone_disables_a_standard_destination_and_a_patched_secret_holds_at_once() {
    let server = Server::start().await;
    let receiver = Receiver::start(|path, _| Answer::status(if path == "/gone" { 410 } else { 200 })).await;
    let (gone, set) = hooked(&server, "gone", &receiver, "standard", json!({})).await;
    gone.stream(&[in_set(gone.event("Send"))]).await;
    let enabled = async || {
        gone.get(&format!("/configuration-sets/{set}/event-destinations")).await["event_destinations"][0]["enabled"]
            .clone()
    };
    eventually("disabled", async || enabled().await == false).await;
    gone.stream(&[in_set(gone.event("Send"))]).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(receiver.posts("/gone").len(), 1);

    // Of many that wait, no more go out than were under way; and what of these is taken late enables nothing.
    let slow = Receiver::start(|_, before| match before {
        0 => Answer::status(410),
        _ => Answer { after: Duration::from_millis(700), ..Answer::status(200) },
    })
    .await;
    let (leaving, set) = hooked(&server, "leaving", &slow, "standard", json!({})).await;
    leaving.stream(&(0..200).map(|_| in_set(leaving.event("Send"))).collect::<Vec<_>>()).await;
    let state = async || {
        let destinations = leaving.get(&format!("/configuration-sets/{set}/event-destinations")).await;
        let one = &destinations["event_destinations"][0];
        (one["enabled"].clone(), one["health"].clone())
    };
    let disabled = (json!(false), json!("disabled"));
    eventually("it is disabled", async || state().await == disabled).await;
    let posts = slow.posts("/leaving").len();
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!((state().await, slow.posts("/leaving").len()), (disabled, posts));
    assert!(posts <= 16, "{posts} of 200");

    let (partner, set) = hooked(&server, "patched", &receiver, "standard", json!({})).await;
    partner.stream(&[in_set(partner.event("Send"))]).await;
    receiver.wait("/patched", 1).await;
    let list = partner.get(&format!("/configuration-sets/{set}/event-destinations")).await;
    let destination = &list["event_destinations"][0];
    assert!(!list.to_string().contains(SECRET), "never echoed");
    let path = format!(
        "{PARTNER}/configuration-sets/{set}/event-destinations/{}",
        destination["destination_id"].as_str().unwrap()
    );
    let other = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
    partner.api.send(http::Method::PATCH, &path, &json!({"webhook_secret": other})).await.unwrap();
    partner.stream(&[in_set(partner.event("Send"))]).await;
    let post = receiver.wait("/patched", 2).await.remove(1);
    standardwebhooks::Webhook::new(other).unwrap().verify(&post.body, &post.headers).unwrap();
}

#[tokio::test]
async fn private_addresses_are_reached_only_when_allowed() {
    let server = Server::start_with(|config| {
        config.log.simulated = true;
        config.webhooks.allow_private_networks.clear();
    })
    .await;
    let receiver = Receiver::start_ok().await;
    // What a literal leads to is seen at once, what a name leads to when it is resolved.
    let named = receiver.named("localhost");
    let (partner, set) = hooked(&server, "inside", &named, "splashify", json!({})).await;
    partner.stream(&[in_set(partner.event("Send"))]).await;
    eventually("refused", async || partner.log().await[0]["deliveries"][0]["attempts"] == 1).await;
    assert_eq!(named.posts("/inside").len(), 0);
    let delivery = partner.log().await[0]["deliveries"][0]["delivery_id"].as_str().unwrap().to_owned();
    let attempt = partner.get(&format!("/deliveries/{delivery}")).await["delivery"]["attempt_log"][0].clone();
    assert_eq!((&attempt["failure"], &attempt["status_code"]), (&json!("refused"), &Value::Null));
    assert!(attempt["error"].as_str().unwrap().contains("no public address"), "{attempt}");
    let body = json!({"name": "x", "webhook_url": "https://169.254.169.254/latest"}).to_string();
    let path = format!("/configuration-sets/{set}/event-destinations");
    let reply = partner.call(http::Method::POST, &path, &[], body).await;
    assert_eq!((reply.status.as_u16(), &reply.json()["error"]), (400, &json!("INVALID_REQUEST")));
    let server = Server::start_with(|config| config.webhooks.allow_http = false).await;
    let partner = server.partner("plain").await;
    let set = partner.set(json!({"name": "set"})).await;
    let body = json!({"name": "h", "destination_type": "WEBHOOK", "webhook_url": "http://hook.example/"});
    let path = format!("/configuration-sets/{set}/event-destinations");
    let reply = partner.call(http::Method::POST, &path, &[], body.to_string()).await;
    assert_eq!((reply.status.as_u16(), &reply.json()["error"]), (400, &json!("INVALID_REQUEST")));
}
