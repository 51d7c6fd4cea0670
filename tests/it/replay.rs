//! What was not delivered is kept, seen, and made once more; and so is everything else, back to the beginning.

use http::Method;

use super::support::*;

async fn hook(partner: &Partner, set: &str, url: String, more: Value) -> String {
    let mut fields = json!({"webhook_url": url, "webhook_secret": "s"});
    fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    partner.destination(set, fields).await
}

fn in_set(mut event: Value) -> Value {
    event["configuration_set_name"] = json!("set");
    event
}

async fn deliveries(partner: &Partner, destination: &str, status: &str) -> Vec<Value> {
    let status = if status.is_empty() { String::new() } else { format!("?status={status}") };
    partner.rows(&format!("/destinations/{destination}/deliveries{status}"), "deliveries").await
}

async fn replay_done(partner: &Partner, replay: &Value) -> Value {
    let path = format!("/events/replay/{}", replay["replay"]["replay_id"].as_str().unwrap());
    eventually("the replay is done", async || partner.get(&path).await["replay"]["status"] != "running").await;
    partner.get(&path).await["replay"].clone()
}

#[tokio::test]
async fn what_was_given_up_is_kept_with_every_attempt_and_can_be_recovered() {
    let server = Server::start().await;
    let well = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let answers = well.clone();
    let receiver = Receiver::start(move |path, _| {
        if path == "/hook" && !answers.load(std::sync::atomic::Ordering::Relaxed) {
            return Answer { body: "out of order – später".repeat(500), ..Answer::status(500) };
        }
        Answer::status(200)
    })
    .await;
    let partner = server.partner("dead").await;
    let set = partner.set(json!({"name": "set"})).await;
    let id = hook(&partner, &set, format!("{}/hook", receiver.base), json!({"retry_schedule_seconds": [1]})).await;
    partner.stream(&(0..5).map(|_| in_set(partner.event("Delivery"))).collect::<Vec<_>>()).await;
    eventually("all are given up", async || deliveries(&partner, &id, "gave_up").await.len() == 5).await;
    assert_eq!(deliveries(&partner, &id, "delivered").await.len(), 0);
    let listed = deliveries(&partner, &id, "").await;
    assert_eq!(
        listed.iter().map(|row| row["seq"].as_u64().unwrap()).collect::<Vec<_>>(),
        [4, 3, 2, 1, 0].map(|n| CALLS + 2 + n),
        "newest first; the set and the destination were before"
    );
    // Page by page it is the same.
    let page = partner.get(&format!("/destinations/{id}/deliveries?status=gave_up&limit=2")).await;
    assert_eq!(page["deliveries"].as_array().unwrap().len(), 2);
    let rest = partner
        .get(&format!(
            "/destinations/{id}/deliveries?status=gave_up&limit=1000&cursor={}",
            page["next_cursor"].as_str().unwrap()
        ))
        .await;
    assert_eq!(rest["deliveries"].as_array().unwrap().len(), 3);

    let one = &listed[2];
    assert_eq!(
        (&one["status"], &one["attempts"], &one["last_status_code"], &one["event_type"]),
        (&json!("gave_up"), &json!(2), &json!(500), &json!("Delivery"))
    );
    let delivery = one["delivery_id"].as_str().unwrap().to_owned();
    let told = partner.get(&format!("/deliveries/{delivery}")).await["delivery"].clone();
    let log = told["attempt_log"].as_array().unwrap();
    assert_eq!(log.len(), 2);
    for (n, attempt) in log.iter().enumerate() {
        assert_eq!(
            (&attempt["number"], &attempt["status_code"], &attempt["failure"], &attempt["trigger"]),
            (&json!(n + 1), &json!(500), &json!("status"), &json!("schedule"))
        );
        assert!(attempt["latency_ms"].is_i64() && attempt["started_at"].is_string());
        let response = attempt["response"].as_str().unwrap();
        assert!(
            response.starts_with("out of order – später") && (4_000..=4_100).contains(&response.len()),
            "{}",
            response.len()
        );
    }
    assert!(log[0]["next_attempt_at"].is_string() && log[1]["next_attempt_at"].is_null());

    // One by hand, then what is left.
    well.store(true, std::sync::atomic::Ordering::Relaxed);
    let before = receiver.posts("/hook").len();
    let started = partner.call(Method::POST, &format!("/deliveries/{delivery}/retry"), &[], "").await;
    assert_eq!(started.status, 201, "{}", started.json());
    let post = receiver.wait("/hook", before + 1).await.remove(before);
    assert_eq!((post.header("x-splashify-delivery-id"), post.header("x-splashify-attempt")), (delivery.as_str(), "3"));
    assert_eq!(post.header("x-sendtrail-replay"), started.json()["replay"]["replay_id"].as_str().unwrap());
    eventually("four are left", async || deliveries(&partner, &id, "gave_up").await.len() == 4).await;
    let started = partner.post(&format!("/destinations/{id}/recover"), &json!({"since": "2026-01-01"})).await;
    receiver.wait("/hook", before + 5).await;
    eventually("none is left", async || deliveries(&partner, &id, "gave_up").await.is_empty()).await;
    let done = replay_done(&partner, &started).await;
    assert_eq!((&done["status"], &done["deliveries"]), (&json!("done"), &json!(4)));
    assert_eq!(deliveries(&partner, &id, "delivered").await.len(), 5);
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert_eq!(receiver.posts("/hook").len(), before + 5, "each once");
    let ids: std::collections::HashSet<String> =
        receiver.posts("/hook").iter().map(|post| post.header("x-splashify-delivery-id").to_owned()).collect();
    assert_eq!(ids.len(), 5, "identifiers stay");

    for (path, status) in [
        ("/deliveries/nothing/retry".to_owned(), 404),
        (format!("/deliveries/{}/retry", uuid::Uuid::nil()), 404),
        (format!("/destinations/{id}/recover"), 400),
    ] {
        assert_eq!(partner.call(Method::POST, &path, &[], "").await.status, status, "{path}");
    }
    for (path, body) in [
        (format!("/destinations/{id}/recover"), json!({"since": "2026-11-30", "until": "2026-11-01"})),
        (format!("/destinations/{id}/recover"), json!({"since": "2026-11-01", "until": "later"})),
    ] {
        let reply = partner.call(Method::POST, &path, &[], body.to_string()).await;
        assert_eq!(reply.status, 400, "{body}");
        assert!(reply.json()["message"].as_str().unwrap().contains("until"), "{}", reply.json());
    }
    for (header, status) in [(("content-type", "application/xml"), 415), (("content-encoding", "gzip"), 415)] {
        let path = format!("/destinations/{id}/recover");
        assert_eq!(partner.call(Method::POST, &path, &[header], "{}").await.status, status, "{header:?}");
    }
    let other = server.partner("deadother").await;
    assert_eq!(other.call(Method::GET, &format!("/deliveries/{delivery}"), &[], "").await.status, 404);
    assert_eq!(other.call(Method::POST, &format!("/deliveries/{delivery}/retry"), &[], "").await.status, 404);
}

#[tokio::test]
async fn events_are_replayed_from_files_and_tail_alike_to_whom_and_of_what_is_asked_for() {
    let server = Server::start().await;
    let receiver = Receiver::start_ok().await;
    let partner = server.partner("again").await;
    let set = partner.set(json!({"name": "set"})).await;
    let first = hook(&partner, &set, format!("{}/first", receiver.base), json!({})).await;
    let at = |partner: &Partner, hours: i64| partner.at(noon().plus(hours * HOUR));
    // Over three days, half of them in files by the restart.
    for hours in [0, 1, 30, 50] {
        let events: Vec<Value> = ["Send", "Delivery", "Open"]
            .into_iter()
            .map(|kind| in_set(event(kind, &format!("m{hours}-{kind}"))))
            .collect();
        at(&partner, hours).stream(&events).await;
    }
    receiver.wait("/first", 12).await;
    let server = server.restart().await;
    let partner = partner.on(&server);
    at(&partner, 51).stream(&[in_set(event("Delivery", "late"))]).await;
    receiver.wait("/first", 13).await;
    // Another one comes later, and wants what was before.
    let second =
        hook(&partner, &set, format!("{}/second", receiver.base), json!({"matching_event_types": ["delivered"]})).await;

    let replay = async |body: Value| {
        let reply = partner.call(Method::POST, "/events/replay", &[], body.to_string()).await;
        assert!([200, 201].contains(&reply.status.as_u16()), "{}", reply.json());
        reply.json()
    };
    let from = "2026-05-01T12:30:00Z";
    let dry = replay(json!({"from": from, "to": "2026-05-03", "dry_run": true})).await;
    assert_eq!(dry["dry_run"], json!({"events": 6, "deliveries": 6, "complete": true}));
    let dry = replay(json!({"from": from, "event_types": ["email.delivered"], "dry_run": true})).await;
    assert_eq!(dry["dry_run"], json!({"events": 4, "deliveries": 4, "complete": true}));
    let dry = replay(json!({"from": "2026-05-01", "statuses": ["gave_up"], "dry_run": true})).await;
    assert_eq!(dry["dry_run"]["deliveries"], 0);
    assert_eq!((receiver.posts("/first").len(), receiver.posts("/second").len()), (13, 0), "a dry run posts nothing");

    let ids: Vec<String> =
        receiver.posts("/first").iter().map(|post| post.header("x-splashify-delivery-id").to_owned()).collect();
    let started = replay(json!({"from": from, "to": "2026-05-03", "destination_ids": [first]})).await;
    let posts = receiver.wait("/first", 13 + 6).await;
    for post in &posts[13..] {
        assert!(ids.contains(&post.header("x-splashify-delivery-id").to_owned()), "the same delivery");
        assert_eq!((post.header("x-splashify-attempt"), post.header("x-sendtrail-replay").len()), ("2", 36));
    }
    let told = replay_done(&partner, &started).await;
    assert_eq!((&told["events"], &told["deliveries"], &told["status"]), (&json!(6), &json!(6), &json!("done")));
    assert!(told["finished_at"].is_string());

    // Everything that it would have got, from the archive's beginning; one an event.
    let started = replay(json!({"from": "2000-01-01", "destination_ids": [second], "rate_per_second": 100})).await;
    let posts = receiver.wait("/second", 5).await;
    assert_eq!(replay_done(&partner, &started).await["deliveries"], 5);
    assert!(posts.iter().all(|post| post.json()["eventType"] == "Delivery"));
    let order: Vec<String> =
        posts.iter().map(|post| post.json()["mail"]["messageId"].as_str().unwrap().to_owned()).collect();
    let mut sorted = order.clone();
    sorted.sort_by_key(|id| {
        ["m0-Delivery", "m1-Delivery", "m30-Delivery", "m50-Delivery", "late"].iter().position(|known| known == id)
    });
    assert_eq!(order.len(), sorted.len());
    assert_eq!(partner.rows("/events/replay", "replays").await.len(), 2);

    for (body, status) in [
        (json!({}), 400),
        (json!({"from": "yesterday"}), 400),
        (json!({"from": "2026-05-02", "to": "2026-05-01"}), 400),
        (json!({"from": "2026-05-01", "event_types": ["nothing"]}), 400),
        (json!({"from": "2026-05-01", "statuses": ["lost"]}), 400),
        (json!({"from": "2026-05-01", "rate_per_second": 0}), 400),
        (json!({"from": "2026-05-01", "destination_ids": [uuid::Uuid::nil()]}), 404),
    ] {
        let reply = partner.call(Method::POST, "/events/replay", &[], body.to_string()).await;
        assert_eq!(reply.status, status, "{body}: {}", reply.json());
    }
}

#[tokio::test]
async fn a_replay_is_bounded_comes_behind_what_is_new_and_ends_when_its_owner_says_so() {
    let server = Server::start().await;
    let receiver =
        Receiver::start(|_, _| Answer { after: std::time::Duration::from_millis(20), ..Answer::status(200) }).await;
    let partner = server.partner("slow").await;
    let set = partner.set(json!({"name": "set"})).await;
    let id = hook(&partner, &set, format!("{}/hook", receiver.base), json!({"concurrency": 1})).await;
    partner.stream(&(0..100).map(|_| in_set(partner.event("Delivery"))).collect::<Vec<_>>()).await;
    receiver.wait("/hook", 100).await;
    // Slow enough that another event comes long before its end, also on a busy machine.
    let body = json!({"from": "2026-01-01", "rate_per_second": 4});
    let started = partner.post("/events/replay", &body).await;
    let path = format!("/events/replay/{}", started["replay"]["replay_id"].as_str().unwrap());
    receiver.wait("/hook", 110).await;
    // While it goes on it tells how far it is.
    eventually("it is under way", async || {
        let told = partner.get(&path).await["replay"].clone();
        told["status"] == "running" && (1..100).contains(&told["deliveries"].as_u64().unwrap())
    })
    .await;
    // What is new is not behind the rest.
    let new = in_set(partner.event("Open"));
    partner.stream(&[new]).await;
    let came = async || receiver.posts("/hook").iter().any(|post| post.json()["eventType"] == "Open");
    let before = receiver.posts("/hook").len();
    eventually("the new one came", came).await;
    assert!(receiver.posts("/hook").len() <= before + 10, "it does not wait for the replay");
    let reply = partner.call(Method::DELETE, &path, &[], "").await;
    assert_eq!(reply.status, 200);
    assert_eq!(partner.get(&path).await["replay"]["status"], "cancelled");
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let left = receiver.posts("/hook").len();
    assert!(left < 201, "{left} of 201");
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert_eq!(receiver.posts("/hook").len(), left, "nothing comes any more");
    // Three at once, and no more.
    for _ in 0..3 {
        partner.post("/events/replay", &json!({"from": "2026-01-01", "rate_per_second": 1})).await;
    }
    let reply = partner.call(Method::POST, "/events/replay", &[], r#"{"from":"2026-01-01"}"#).await;
    assert_eq!((reply.status.as_u16(), &reply.json()["error"]), (400, &json!("REPLAY_LIMIT_REACHED")));
    // A restart goes on with them; here they are ended first.
    for replay in partner.rows("/events/replay", "replays").await {
        let path = format!("/events/replay/{}", replay["replay_id"].as_str().unwrap());
        assert_eq!(partner.call(Method::DELETE, &path, &[], "").await.status, 200);
    }
    assert_eq!(partner.call(Method::DELETE, &format!("/events/replay/{id}"), &[], "").await.status, 404);
}

#[tokio::test]
async fn what_comes_after_a_replay_was_asked_for_is_not_of_it() {
    let server = Server::start().await;
    let receiver = Receiver::start_ok().await;
    let partner = server.partner("later").await;
    let set = partner.set(json!({"name": "set"})).await;
    hook(&partner, &set, format!("{}/hook", receiver.base), json!({})).await;
    let events = || (0..20).map(|_| in_set(partner.event("Delivery"))).collect::<Vec<_>>();
    partner.stream(&events()).await;
    receiver.wait("/hook", 20).await;
    // Slowly, so that the rest comes while it is read, and into the very slice that it reads.
    let started = partner.post("/events/replay", &json!({"from": "2026-01-01", "rate_per_second": 5})).await;
    partner.stream(&events()).await;
    let done = replay_done(&partner, &started).await;
    assert_eq!((&done["status"], &done["events"], &done["deliveries"]), (&json!("done"), &json!(20), &json!(20)));
    let ids = |posts: &[Post], again: bool| -> std::collections::HashSet<String> {
        let of = posts.iter().filter(|post| post.header("x-sendtrail-replay").is_empty() != again);
        of.map(|post| post.header("x-splashify-delivery-id").to_owned()).collect()
    };
    let posts = receiver.wait("/hook", 60).await;
    assert_eq!((ids(&posts, false).len(), ids(&posts, true)), (40, ids(&posts[..20], false)));
}

#[tokio::test]
async fn a_replay_goes_on_after_a_restart() {
    let server = Server::start().await;
    let receiver = Receiver::start_ok().await;
    let partner = server.partner("resume").await;
    let set = partner.set(json!({"name": "set"})).await;
    hook(&partner, &set, format!("{}/hook", receiver.base), json!({})).await;
    partner.stream(&(0..300).map(|_| in_set(partner.event("Delivery"))).collect::<Vec<_>>()).await;
    receiver.wait("/hook", 300).await;
    let started = partner.post("/events/replay", &json!({"from": "2026-01-01", "rate_per_second": 100})).await;
    receiver.wait("/hook", 350).await;
    let server = server.restart().await;
    let partner = partner.on(&server);
    let done = replay_done(&partner, &started).await;
    assert_eq!((&done["status"], &done["deliveries"]), (&json!("done"), &json!(300)));
    let all = async || {
        let replayed = receiver.posts("/hook").into_iter().filter(|post| !post.header("x-sendtrail-replay").is_empty());
        let ids: std::collections::HashSet<String> =
            replayed.map(|post| post.header("x-splashify-delivery-id").to_owned()).collect();
        ids.len() == 300
    };
    eventually("every delivery came once more", all).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_recovered_slowly_is_all_recovered() {
    let server = Server::start().await;
    let well = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let answers = well.clone();
    let receiver = Receiver::start(move |_, _| {
        Answer::status(if answers.load(std::sync::atomic::Ordering::Relaxed) { 200 } else { 404 })
    })
    .await;
    let partner = server.partner("slowly").await;
    let set = partner.set(json!({"name": "set"})).await;
    // A 404 is final in this dialect.
    let id = hook(&partner, &set, format!("{}/slow", receiver.base), json!({"dialect": "splashify"})).await;
    let other = hook(&partner, &set, format!("{}/other", receiver.base), json!({"name": "other"})).await;
    partner.stream(&(0..9).map(|_| in_set(partner.event("Delivery"))).collect::<Vec<_>>()).await;
    for id in [&id, &other] {
        eventually("all are given up", async || deliveries(&partner, id, "gave_up").await.len() == 9).await;
    }
    well.store(true, std::sync::atomic::Ordering::Relaxed);
    // What page after page delivers is asked for no more, and nothing after it is passed over.
    let replay = json!({"from": "2026-01-01", "statuses": ["gave_up"], "rate_per_second": 5});
    let started = partner.post("/events/replay", &replay).await;
    let done = replay_done(&partner, &started).await;
    assert_eq!((&done["status"], &done["deliveries"], &done["events"]), (&json!("done"), &json!(18), &json!(9)));
    for id in [&id, &other] {
        eventually("all are delivered", async || deliveries(&partner, id, "delivered").await.len() == 9).await;
    }

    // One that takes nothing is not asked, and what was delivered stays so.
    let patch = json!({"enabled": false});
    partner.api.send(Method::PATCH, &format!("{PARTNER}/destinations/{id}"), &patch).await.unwrap();
    let dry = partner.post("/events/replay", &json!({"from": "2026-01-01", "dry_run": true})).await;
    assert_eq!((&dry["dry_run"]["events"], &dry["dry_run"]["deliveries"]), (&json!(9), &json!(9)));
    let started = partner.post("/events/replay", &json!({"from": "2026-01-01"})).await;
    assert_eq!(replay_done(&partner, &started).await["deliveries"], 9);
    receiver.wait("/other", 27).await;
    assert_eq!((receiver.posts("/slow").len(), deliveries(&partner, &id, "delivered").await.len()), (18, 9));
    for path in [
        format!("/destinations/{id}/recover"),
        format!("/deliveries/{}/retry", deliveries(&partner, &id, "").await[0]["delivery_id"].as_str().unwrap()),
    ] {
        let reply = partner.call(Method::POST, &path, &[], json!({"since": "2026-01-01"}).to_string()).await;
        assert_eq!(reply.status, 400, "{path}");
        assert!(reply.json()["message"].as_str().unwrap().contains("disabled"), "{}", reply.json());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_told_once_a_call_is_replayed_once() {
    let server = Server::start().await;
    let receiver = Receiver::start_ok().await;
    let partner = server.partner("once").await;
    let set = partner.set(json!({"name": "set"})).await;
    let id = hook(&partner, &set, format!("{}/once", receiver.base), json!({"dialect": "zmailer"})).await;
    let events: Vec<Value> = (0..5)
        .map(|_| {
            let mut event = in_set(partner.event("Send"));
            event["send_id"] = "call".into();
            event
        })
        .collect();
    partner.stream(&events).await;
    receiver.wait("/once", 1).await;
    let started = partner.post("/events/replay", &json!({"from": "2026-01-01", "destination_ids": [id]})).await;
    assert_eq!(replay_done(&partner, &started).await["deliveries"], 1);
    let posts = receiver.wait("/once", 2).await;
    assert_eq!(posts[0].header("x-zmailer-delivery-id"), posts[1].header("x-zmailer-delivery-id"));
}
