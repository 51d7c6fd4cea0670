//! Receivers of the worst kind: none of them delays another, loses a delivery, or leads anywhere inside.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::Method;

use super::support::adversary::{Adversary, Dns, MANNERS, Manner, Tls, plain, proxy};
use super::support::*;

fn in_set(mut event: Value) -> Value {
    event["configuration_set_name"] = json!("set");
    event
}

/// The only delivery of each event of a partner, in the order of the log.
async fn deliveries(partner: &Partner) -> Vec<Value> {
    partner.log().await.iter().flat_map(|event| event["deliveries"].as_array().unwrap().clone()).collect()
}

async fn attempts(partner: &Partner, delivery: &Value) -> Vec<Value> {
    let path = format!("/deliveries/{}", delivery["delivery_id"].as_str().unwrap());
    partner.get(&path).await["delivery"]["attempt_log"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_bad_receiver_is_told_apart_and_delays_nobody() {
    let server = Server::start_with(|config| {
        config.log.simulated = true;
        // Nobody is spared because it fails.
        config.webhooks.failing_after_seconds = 36_000;
    })
    .await;
    let receiver = Receiver::start_ok().await;
    let mut partners = HashMap::new();
    let mut kept = Vec::new();
    for manner in MANNERS {
        let adversary = Adversary::start(manner).await;
        let partner = server.partner(&format!("bad{}", partners.len())).await;
        let set = partner.set(json!({"name": "set"})).await;
        // Five seconds of time-out, and no second attempt while the test looks.
        let fields = json!({"webhook_url": format!("{}/x", adversary.base), "dialect": "sendcomms", "retry_schedule_seconds": [600]});
        partner.destination(&set, fields).await;
        let good = json!({"name": "good", "webhook_url": format!("{}/{manner:?}", receiver.base), "matching_event_types": ["delivered"]});
        partner.destination(&set, good).await;
        partners.insert(manner, partner);
        kept.push(adversary);
    }
    let begun = Instant::now();
    for (manner, partner) in &partners {
        // Those that keep a place for the whole time-out have far more to keep it with, all of it before what is good.
        let ahead = if matches!(manner, Manner::Hang | Manner::DripHead) { 360 } else { 0 };
        let kinds = std::iter::repeat_n("Open", ahead).chain(std::iter::repeat_n("Delivery", 40));
        partner.stream(&kinds.map(|kind| in_set(partner.event(kind))).collect::<Vec<_>>()).await;
    }
    for manner in MANNERS {
        receiver.wait(&format!("/{manner:?}"), 40).await;
    }
    // Whoever shared places with them would take 225 seconds, eight places being kept for five seconds each time.
    assert!(begun.elapsed() < Duration::from_secs(180), "{:?}", begun.elapsed());
    for (manner, partner) in &partners {
        let bad = async || {
            let log = partner.log().await;
            let all = log.iter().flat_map(|event| event["deliveries"].as_array().unwrap()).cloned();
            let all: Vec<Value> = all.collect();
            let destination = all[0]["destination_id"].clone();
            all.into_iter().filter(|delivery| delivery["destination_id"] == destination).collect::<Vec<_>>()
        };
        let (status, failure) = match manner {
            Manner::Hang | Manner::DripHead => ("failed", "timeout"),
            Manner::Reset | Manner::Garbage | Manner::Half => ("failed", "connection"),
            Manner::Huge => ("failed", "status"),
            // What it says after its 200 does not matter.
            Manner::DripBody | Manner::HugeOk => ("delivered", "none"),
            Manner::SlowAccept => ("delivered", "none"),
        };
        let mut attempt = Value::Null;
        eventually("it was tried", async || {
            for tried in bad().await.iter().filter(|delivery| delivery["attempts"] == 1) {
                attempt = attempts(partner, tried).await.remove(0);
                let told = tried["status"] == status && attempt["failure"] == failure;
                // Where the machine stalled for longer than an attempt may take, the next one tells.
                assert!(told || attempt["failure"] == "timeout", "{manner:?}: {attempt}");
                if told && attempt["latency_ms"].as_i64().unwrap() < 9_000 {
                    return true;
                }
            }
            false
        })
        .await;
        if *manner == Manner::Huge {
            assert_eq!(attempt["response"].as_str().unwrap().len(), 4_096, "no more of it is kept");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_nobody_answers_for_delays_nobody_else() {
    let silent = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let server = Server::start_with(|config| {
        config.log.simulated = true;
        config.webhooks.dns_servers = vec![silent.local_addr().unwrap()];
        // Nobody is spared because it fails.
        config.webhooks.failing_after_seconds = 36_000;
    })
    .await;
    let receiver = Receiver::start_ok().await;
    let partner = server.partner("dead").await;
    let set = partner.set(json!({"name": "set"})).await;
    let fields =
        json!({"webhook_url": "http://dead.test:8080/x", "dialect": "sendcomms", "retry_schedule_seconds": [600]});
    let dead = partner.destination(&set, fields).await;
    let good = json!({"name": "good", "webhook_url": format!("{}/good", receiver.base), "matching_event_types": ["delivered"]});
    partner.destination(&set, good).await;
    let begun = Instant::now();
    let kinds = std::iter::repeat_n("Open", 360).chain(std::iter::repeat_n("Delivery", 40));
    partner.stream(&kinds.map(|kind| in_set(partner.event(kind))).collect::<Vec<_>>()).await;
    receiver.wait("/good", 40).await;
    // Whoever shared places with it would wait for each name until nobody has answered twice.
    assert!(begun.elapsed() < Duration::from_secs(150), "{:?}", begun.elapsed());
    let failed = format!("/destinations/{dead}/deliveries?status=failed");
    eventually("it was tried", async || !partner.rows(&failed, "deliveries").await.is_empty()).await;
    let tried = partner.rows(&failed, "deliveries").await.remove(0);
    let attempt = attempts(&partner, &tried).await.remove(0);
    assert!(["dns", "timeout"].contains(&attempt["failure"].as_str().unwrap()), "{attempt}");
}

/// A server whose webhooks soon are taken for failing.
async fn impatient(change: impl FnOnce(&mut sendtrail::config::Config)) -> Server {
    Server::start_with(|config| {
        config.log.simulated = true;
        config.webhooks.failing_after_failures = 3;
        config.webhooks.failing_after_seconds = 0;
        config.webhooks.probe_seconds = 1;
        change(config);
    })
    .await
}

async fn health(partner: &Partner, id: &str) -> String {
    partner.get(&format!("/destinations/{id}")).await["destination"]["health"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_fails_all_the_time_is_left_alone_and_gets_everything_when_it_is_back() {
    let server = impatient(|_| {}).await;
    let well = Arc::new(AtomicBool::new(false));
    let answers = well.clone();
    let receiver = Receiver::start(move |path, _| {
        let fails = path == "/flaps" && !answers.load(Ordering::Relaxed);
        Answer::status(if fails { 404 } else { 200 })
    })
    .await;
    let partner = server.partner("flaps").await;
    let set = partner.set(json!({"name": "set"})).await;
    // A 404 is final in this dialect: three are lost before it is known that everything fails, and no more.
    let id =
        partner.destination(&set, json!({"webhook_url": format!("{}/flaps", receiver.base), "concurrency": 1})).await;
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let operational = json!({"webhook_url": format!("{}/operator", receiver.base), "webhook_secret": SECRET});
    // It speaks the standard dialect, so that it may be in its other envelope.
    let mut enveloped = operational.clone();
    enveloped["envelope"] = "cloudevents".into();
    for body in [enveloped, operational] {
        partner.call(Method::PUT, "/operational-webhook", &[], body.to_string()).await.success().unwrap();
    }
    partner.stream(&(0..20).map(|_| in_set(partner.event("Delivery"))).collect::<Vec<_>>()).await;
    eventually("it is known to fail", async || health(&partner, &id).await == "failing").await;
    let post = receiver.wait("/operator", 1).await.remove(0);
    standardwebhooks::Webhook::new(SECRET).unwrap().verify(&post.body, &post.headers).unwrap();
    let told = post.json();
    assert_eq!(
        (&told["type"], &told["data"]["webhook"]["destination_id"], &told["data"]["webhook"]["to"]),
        (&json!("webhook.failing"), &json!(id), &json!("failing"))
    );
    // Probes only, ever more seldom.
    receiver.wait("/flaps", 4).await;
    let before = receiver.posts("/flaps").len();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let probes = receiver.posts("/flaps").len() - before;
    assert!(probes <= 3, "{probes}");
    let of = async |status: &str| {
        partner.rows(&format!("/destinations/{id}/deliveries?status={status}"), "deliveries").await
    };
    assert_eq!(of("gave_up").await.len(), 3, "while it is left alone nothing is spent");
    well.store(true, Ordering::Relaxed);
    eventually("everything else is there", async || of("delivered").await.len() == 17).await;
    eventually("it is known to work", async || health(&partner, &id).await == "working").await;
    receiver.wait("/operator", 2).await;
    let kinds: Vec<String> =
        receiver.posts("/operator").iter().map(|post| post.json()["type"].as_str().unwrap().to_owned()).collect();
    assert_eq!(kinds, ["webhook.failing", "webhook.recovered"]);
    // Probes are attempts, but none of the schedule; and not always the same delivery was tried.
    let mut probed = 0;
    for delivery in of("delivered").await {
        let log = attempts(&partner, &delivery).await;
        probed += usize::from(log.iter().any(|attempt| attempt["trigger"] == "probe"));
    }
    assert!(probed >= 2, "{probed}");
    let log = partner.log().await;
    let changes: Vec<&Value> = log.iter().filter(|event| event["webhook"].is_object()).collect();
    assert_eq!(kinds_of(&changes), ["WebhookFailing", "WebhookRecovered"]);
    assert_eq!(
        (&changes[0]["webhook"]["from"], &changes[0]["webhook"]["destination_id"]),
        (&json!("working"), &json!(id))
    );
    partner.post(&format!("/destinations/{id}/recover"), &json!({"since": "2026-01-01"})).await;
    eventually("nothing is lost", async || of("delivered").await.len() == 20).await;
}

fn kinds_of<'a>(events: &[&'a Value]) -> Vec<&'a str> {
    events.iter().map(|event| event["event_type"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_fails_for_too_long_is_disabled_and_its_owner_brings_it_back() {
    let server = impatient(|config| config.webhooks.disabled_after_hours = 0).await;
    let well = Arc::new(AtomicBool::new(false));
    let answers = well.clone();
    let receiver =
        Receiver::start(move |_, _| Answer::status(if answers.load(Ordering::Relaxed) { 200 } else { 500 })).await;
    let partner = server.partner("long").await;
    let set = partner.set(json!({"name": "set"})).await;
    let id = partner.destination(&set, json!({"webhook_url": format!("{}/long", receiver.base)})).await;
    partner.stream(&(0..10).map(|_| in_set(partner.event("Delivery"))).collect::<Vec<_>>()).await;
    eventually("it is disabled", async || health(&partner, &id).await == "disabled").await;
    let shown = partner.get(&format!("/destinations/{id}")).await["destination"].clone();
    assert_eq!(shown["enabled"], false);
    assert!(shown["failing_since"].is_string() && shown["health_reason"].as_str().unwrap().contains("failed"));
    // What comes now is not for it; what waited is kept.
    partner.stream(&[in_set(partner.event("Open"))]).await;
    let server = server.restart().await;
    let partner = partner.on(&server);
    assert_eq!(health(&partner, &id).await, "disabled", "also after a restart");
    well.store(true, Ordering::Relaxed);
    let enabled = json!({"enabled": true});
    partner.api.send(Method::PATCH, &format!("{PARTNER}/destinations/{id}"), &enabled).await.unwrap();
    assert_eq!(health(&partner, &id).await, "working");
    partner.stream(&[in_set(partner.event("Click"))]).await;
    eventually("what is new comes", async || {
        receiver.posts("/long").iter().any(|post| post.header("x-splashify-event") == "Click")
    })
    .await;
    partner
        .post(
            "/events/replay",
            &json!({"from": "2026-01-01", "destination_ids": [id], "statuses": ["gave_up", "failed", "pending"]}),
        )
        .await;
    let delivered =
        async || partner.rows(&format!("/destinations/{id}/deliveries?status=delivered"), "deliveries").await.len();
    // Ten that waited, one that was not for it but is asked for now, one that is new.
    eventually("what waited comes, too", async || delivered().await >= 11).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_one_message_come_in_order_where_that_is_asked_for() {
    let server = Server::start().await;
    // The first message that comes fails until everything of the others was taken; all of that message waits for it.
    let failing = parking_lot::Mutex::new((None, 0));
    let receiver = Receiver::start_reading(move |post, _| {
        let message = post.json()["mail"]["messageId"].as_str().unwrap().to_owned();
        let (first, others) = &mut *failing.lock();
        if *first.get_or_insert_with(|| message.clone()) != message {
            *others += 1;
            return Answer::status(200);
        }
        Answer::status(if *others < 12 { 500 } else { 200 })
    })
    .await;
    let partner = server.partner("order").await;
    let set = partner.set(json!({"name": "set"})).await;
    let fields = json!({"webhook_url": format!("{}/ordered", receiver.base), "ordering": "per_message", "retry_schedule_seconds": [1, 2, 4, 8, 16, 32, 64]});
    let id = partner.destination(&set, fields).await;
    let mut events = Vec::new();
    for message in ["m0", "m1", "m2", "m3"] {
        for kind in ["Send", "Delivery", "Open", "Click"] {
            let mut event = in_set(event(kind, message));
            event["occurred_at"] = json!(noon());
            events.push(event);
        }
    }
    partner.stream(&events).await;
    let delivered =
        async || partner.rows(&format!("/destinations/{id}/deliveries?status=delivered"), "deliveries").await.len();
    eventually("all are delivered", async || delivered().await == 16).await;
    let mut taken: HashMap<String, Vec<String>> = HashMap::new();
    let posts = receiver.posts("/ordered");
    let failed = posts[0].json()["mail"]["messageId"].as_str().unwrap().to_owned();
    let mut failures = posts.len() - 16;
    assert!((1..=7).contains(&failures), "one failed, and no other: {failures}");
    for post in &posts {
        let body = post.json();
        let (message, kind) = (body["mail"]["messageId"].as_str().unwrap(), body["eventType"].as_str().unwrap());
        if message == failed && failures > 0 {
            assert_eq!(kind, "Send", "what comes after it waits");
            failures -= 1;
            continue;
        }
        taken.entry(message.to_owned()).or_default().push(kind.to_owned());
    }
    for (message, kinds) in &taken {
        assert_eq!(kinds, &["Send", "Delivery", "Open", "Click"], "{message}");
    }
    let last_of_others = posts.iter().rposition(|post| post.json()["mail"]["messageId"] != json!(failed)).unwrap();
    let of_it = posts[last_of_others..].iter().filter(|post| post.json()["mail"]["messageId"] == json!(failed));
    assert!(of_it.count() >= 4, "the others did not wait: {last_of_others} of {}", posts.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rates_and_concurrency_are_what_the_owner_says_and_retry_after_is_honoured() {
    let server = Server::start().await;
    let receiver = Receiver::start(|path, before| match path {
        "/one" => Answer { after: Duration::from_millis(50), ..Answer::status(200) },
        "/later" if before == 0 => Answer { headers: vec![("retry-after", "3".into())], ..Answer::status(429) },
        "/date" if before == 0 => {
            let at = std::time::SystemTime::UNIX_EPOCH
                + Duration::from_millis(sendtrail_schemas::time::Millis::wall().0 as u64 + 4_000);
            Answer { headers: vec![("retry-after", httpdate::fmt_http_date(at))], ..Answer::status(503) }
        }
        _ => Answer::status(200),
    })
    .await;
    let partner = server.partner("rates").await;
    let set = partner.set(json!({"name": "set"})).await;
    for (path, more) in [
        ("one", json!({"concurrency": 1})),
        ("slow", json!({"rate_per_second": 10})),
        ("later", json!({"retry_schedule_seconds": [1]})),
        ("date", json!({"retry_schedule_seconds": [1]})),
    ] {
        let mut fields = json!({"name": path, "webhook_url": format!("{}/{path}", receiver.base)});
        fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        if path == "later" || path == "date" {
            fields["matching_event_types"] = json!(["bounce"]);
        } else {
            fields["matching_event_types"] = json!(["delivered"]);
        }
        partner.destination(&set, fields).await;
    }
    let begun = Instant::now();
    partner.stream(&(0..20).map(|_| in_set(partner.event("Delivery"))).collect::<Vec<_>>()).await;
    partner.stream(&[in_set(partner.event("SoftBounce"))]).await;
    let one = receiver.wait("/one", 20).await;
    assert!(one.windows(2).all(|pair| pair[1].at - pair[0].at >= Duration::from_millis(45)), "one at a time");
    let slow = receiver.wait("/slow", 20).await;
    // From the beginning: where the machine stalls the first may be seen late, and the others close behind.
    assert!(slow[19].at - begun >= Duration::from_millis(1_850), "{:?}", slow[19].at - begun);
    let later = receiver.wait("/later", 2).await;
    assert!(later[1].at - later[0].at >= Duration::from_millis(2_900), "{:?}", later[1].at - later[0].at);
    let date = receiver.wait("/date", 2).await;
    assert!(date[1].at - date[0].at >= Duration::from_millis(2_500), "{:?}", date[1].at - date[0].at);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_leads_inside_is_not_followed_however_it_changes() {
    let (outer, came_out) = plain("127.0.0.2:0".parse().unwrap()).await;
    let (_, came_in) = plain(format!("127.0.0.1:{}", outer.port()).parse().unwrap()).await;
    let (good, bad) = ("127.0.0.2".parse().unwrap(), "127.0.0.1".parse().unwrap());
    let dns = Dns::start(HashMap::from([
        ("rebind.test", vec![vec![good], vec![bad]]),
        ("both.test", vec![vec![bad, good]]),
        ("inside.test", vec![vec![bad]]),
        ("nowhere.test", vec![vec![]]),
    ]))
    .await;
    let server = Server::start_with(|config| {
        config.log.simulated = true;
        // Here everything is on the loopback interface: one address of it stands for the world outside.
        config.webhooks.allow_private_networks = vec!["127.0.0.2/32".parse().unwrap()];
        config.webhooks.dns_servers = vec![dns.address];
    })
    .await;
    let mut told = HashMap::new();
    for name in ["rebind", "both", "inside", "nowhere", "unknown"] {
        let partner = server.partner(name).await;
        let set = partner.set(json!({"name": "set"})).await;
        let url = format!("http://{name}.test:{}/x", outer.port());
        partner.destination(&set, json!({"webhook_url": url, "retry_schedule_seconds": [600]})).await;
        for n in 1..=2 {
            partner.stream(&[in_set(partner.event("Delivery"))]).await;
            eventually("it was tried", async || {
                deliveries(&partner).await.iter().filter(|d| d["attempts"] == 1).count() == n
            })
            .await;
        }
        let mut failures = Vec::new();
        for delivery in deliveries(&partner).await {
            failures.push(attempts(&partner, &delivery).await[0]["failure"].as_str().unwrap().to_owned());
        }
        told.insert(name, failures);
    }
    assert_eq!(told["rebind"], ["none", "refused"], "what it led to the next moment was refused");
    assert_eq!(told["both"], ["none", "none"]);
    assert_eq!(told["inside"], ["refused", "refused"]);
    assert_eq!(told["unknown"], ["dns", "dns"]);
    assert!(["dns", "refused"].contains(&told["nowhere"][0].as_str()), "{told:?}");
    assert_eq!((came_out.load(Ordering::Relaxed), came_in.load(Ordering::Relaxed)), (3, 0));
    assert_eq!(dns.asked.lock()["rebind.test"], 2, "a name is resolved once for each connection");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_verified() {
    let (ours, theirs) = (Tls::new(), Tls::new());
    let folder = tempfile::TempDir::new().unwrap();
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, &ours.authority_pem).unwrap();
    let server = Server::start_with(|config| {
        config.log.simulated = true;
        config.webhooks.allow_http = false;
        config.webhooks.ca_location = file.clone();
    })
    .await;
    for (name, port, failure) in [
        ("good", ours.receiver("localhost", false).await, "none"),
        ("stranger", theirs.receiver("localhost", false).await, "tls"),
        ("expired", ours.receiver("localhost", true).await, "tls"),
        ("another", ours.receiver("another.example", false).await, "tls"),
    ] {
        let partner = server.partner(name).await;
        let set = partner.set(json!({"name": "set"})).await;
        let fields = json!({"webhook_url": format!("https://localhost:{port}/x"), "retry_schedule_seconds": [600]});
        let id = partner.destination(&set, fields).await;
        let told = partner.post(&format!("/destinations/{id}/test"), &json!({})).await["test"].clone();
        assert_eq!(told["failure"], failure, "{name}: {told}");
    }
    // Plain HTTP where TLS is spoken, and the other way round.
    let receiver = Receiver::start_ok().await;
    let partner = server.partner("plain").await;
    let set = partner.set(json!({"name": "set"})).await;
    let fields = json!({"webhook_url": receiver.base.replace("http://", "https://")});
    let id = partner.destination(&set, fields).await;
    let told = partner.post(&format!("/destinations/{id}/test"), &json!({})).await["test"].clone();
    assert_eq!((&told["failure"], receiver.posts("/").len()), (&json!("tls"), 0), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_of_the_settings_is_asked_for_what_is_within_reach_only() {
    let (proxy, asked) = proxy().await;
    let ours = Tls::new();
    let folder = tempfile::TempDir::new().unwrap();
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, &ours.authority_pem).unwrap();
    // The proxy may take any address of a name.
    let both = vec![vec!["127.0.0.1".parse().unwrap(), "127.0.0.2".parse().unwrap()]];
    let within = vec![vec!["127.0.0.1".parse().unwrap()]];
    let dns =
        Dns::start(HashMap::from([("both.test", both), ("localhost", within), ("nowhere.test", vec![vec![]])])).await;
    let server = Server::start_with(|config| {
        config.log.simulated = true;
        config.webhooks.ca_location = file.clone();
        config.webhooks.dns_servers = vec![dns.address];
        config.webhooks.proxy = format!("http://{proxy}");
        config.webhooks.allow_private_networks = vec!["127.0.0.1/32".parse().unwrap(), "::1/128".parse().unwrap()];
    })
    .await;
    let plain = Receiver::start_ok().await;
    let secure = format!("localhost:{}", ours.receiver("localhost", false).await);
    let plain_address = plain.base.trim_start_matches("http://").to_owned();
    for (name, url, failure) in [
        ("plain", plain.base.clone(), "none"),
        ("secure", format!("https://{secure}/x"), "none"),
        ("private", "http://127.0.0.2:9/".into(), "refused"),
        ("metadata", "http://169.254.169.254/latest".into(), "refused"),
        ("nowhere", "https://nowhere.test/".into(), "dns"),
        // Nothing listens there; it is the port that was judged, and no other.
        ("usual", "http://127.0.0.1/".into(), "connection"),
        ("both", "https://both.test/".into(), "refused"),
    ] {
        let partner = server.partner(name).await;
        let set = partner.set(json!({"name": "set"})).await;
        let fields = json!({"name": name, "destination_type": "WEBHOOK", "webhook_url": url});
        let made = partner.api.post(&format!("{PARTNER}/configuration-sets/{set}/event-destinations"), &fields).await;
        // An address that is out of reach is refused when it is given.
        let Ok(made) = made else {
            assert_eq!(failure, "refused", "{name}: {made:?}");
            continue;
        };
        let id = made["event_destination"]["destination_id"].as_str().unwrap();
        let told = partner.post(&format!("/destinations/{id}/test"), &json!({})).await["test"].clone();
        assert_eq!(told["failure"], failure, "{name}: {told}");
    }
    assert_eq!(*asked.lock(), [plain_address, secure, "127.0.0.1:80".to_owned()]);
    assert_eq!(plain.posts("/").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_fails_is_not_probed_without_pause_when_its_secret_cannot_be_opened() {
    use base64::Engine;
    let encoded = |byte| base64::prelude::BASE64_STANDARD.encode([byte; 32]);
    let server = impatient(|config| {
        config.secrets.key = encoded(1);
        config.webhooks.probe_seconds = 1;
    })
    .await;
    let receiver = Receiver::start(|_, _| Answer::status(500)).await;
    let partner = server.partner("sealed").await;
    let set = partner.set(json!({"name": "set"})).await;
    let url = format!("{}/sealed", receiver.base);
    let fields = json!({"webhook_url": url, "retry_schedule_seconds": [600], "webhook_secret": "s"});
    let id = partner.destination(&set, fields).await;
    partner.stream(&(0..20).map(|_| in_set(partner.event("Delivery"))).collect::<Vec<_>>()).await;
    eventually("it is known to fail", async || health(&partner, &id).await == "failing").await;
    let mut stopped = server.stop().await;
    stopped.config.secrets.key = encoded(2);
    let server = stopped.start().await;
    let partner = partner.on(&server);
    let probes = async || {
        let mut probes = 0;
        for delivery in deliveries(&partner).await.iter().filter(|delivery| delivery["attempts"] != 0) {
            let log = attempts(&partner, delivery).await;
            probes += log.iter().filter(|attempt| attempt["failure"] == "secret").count();
        }
        probes
    };
    eventually("it is probed", async || probes().await > 0).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let probes = probes().await;
    assert!(probes < 12, "{probes} within some seconds");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_one_that_its_owner_disables_ends_and_is_kept() {
    // It is not tried again while the test looks.
    let server = impatient(|config| config.webhooks.probe_seconds = 1_000).await;
    let receiver = Receiver::start(|_, _| Answer::status(500)).await;
    let partner = server.partner("unwanted").await;
    let set = partner.set(json!({"name": "set"})).await;
    // One at a time, so that none is under way once it is known to fail.
    let fields = json!({"webhook_url": format!("{}/unwanted", receiver.base), "retry_schedule_seconds": [600], "concurrency": 1});
    let id = partner.destination(&set, fields).await;
    partner.stream(&(0..40).map(|_| in_set(partner.event("Delivery"))).collect::<Vec<_>>()).await;
    eventually("it is known to fail", async || health(&partner, &id).await == "failing").await;
    let failed = receiver.posts("/unwanted").len();
    let patch = json!({"enabled": false});
    partner.api.send(Method::PATCH, &format!("{PARTNER}/destinations/{id}"), &patch).await.unwrap();
    let of = async |status: &str| {
        partner.rows(&format!("/destinations/{id}/deliveries?status={status}"), "deliveries").await.len()
    };
    // Those that wait for a second attempt end when that is due.
    eventually("what waited has ended", async || of("gave_up").await >= 40 - failed).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!((of("gave_up").await + of("failed").await, of("pending").await), (40, 0));
    let mut attempted = 0;
    for delivery in deliveries(&partner).await {
        attempted += attempts(&partner, &delivery).await.len();
    }
    assert_eq!(attempted, 40, "one attempt each, none of them over and over");
    assert_eq!(receiver.posts("/unwanted").len(), failed);
}
