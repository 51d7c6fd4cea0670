//! ClickHouse that is cut off, says nothing, or is asked for too much, and what is answered meanwhile.

use super::*;
use crate::support::proxy::Line;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_cut_off_is_answered_by_the_archive_and_made_up_for() {
    let Some((mut server, proxy, direct)) = with_line(Fallback::Archive).await else { return };
    let receiver = Receiver::start_ok().await;
    let mut partner = server.partner("cut").await;
    let set = partner.set(json!({"name": "hooked"})).await;
    partner
        .destination(
            &set,
            json!({"webhook_url": format!("{}/hook", receiver.base), "matching_event_types": ["send", "bounce"]}),
        )
        .await;
    let mut told = 0;
    for round in 0..12 {
        // Cut in the middle, answers lost in the middle, and the server started again while nobody knows.
        proxy.set([Line::Up, Line::Mute, Line::Down][round % 3]);
        let events: Vec<Value> = (0..700)
            .map(|_| {
                let mut event = partner.event("Send");
                event["configuration_set_name"] = "hooked".into();
                event
            })
            .collect();
        for events in events.chunks(100) {
            partner.stream(events).await;
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        told += events.len();
        if round == 7 {
            server = server.restart().await;
            partner = partner.on(&server);
        }
        let mut is_dated = false;
        eventually("all of it is shown", async || {
            let reply = partner.call(Method::GET, "/stats", &[], "").await;
            is_dated = reply.headers.contains_key("sendtrail-as-of");
            let is_whole = reply.json()["totals"]["sends"] == told;
            assert!(is_whole || is_dated, "round {round}: {}", reply.json());
            is_whole
        })
        .await;
        if round % 3 == 2 {
            assert!(is_dated, "the archive answers, and says so");
            let health = server.admin.call(Method::GET, "/health", &[], "").await.unwrap().json();
            assert_ne!(health["checks"]["clickhouse"], "ok");
        }
    }
    proxy.set(Line::Up);
    eventually("ClickHouse answers again", async || {
        let reply = partner.call(Method::GET, "/stats", &[], "").await;
        assert_eq!(reply.json()["totals"]["sends"], told);
        !reply.headers.contains_key("sendtrail-as-of")
    })
    .await;
    eventually("and is well", async || {
        let health = server.admin.call(Method::GET, "/health", &[], "").await.unwrap().json();
        health["checks"]["clickhouse"] == "ok"
    })
    .await;
    // And the set and its webhook.
    assert_eq!(audit(&direct, "events").await, told as u64 + CALLS + 2);
    let sums = direct.query("SELECT sum(sends) FROM stats_hourly").fetch_one::<u64>().await.unwrap();
    assert_eq!(sums, told as u64, "and so do sums, whose inserts were repeated too");
    eventually("every attempt is there", async || {
        let settled = direct.query("SELECT uniqExact(delivery_id) FROM deliveries WHERE status = 'delivered'");
        settled.fetch_one::<u64>().await.unwrap() == told as u64
    })
    .await;
    audit(&direct, "deliveries").await;
}

#[tokio::test]
async fn without_a_fallback_it_is_503_and_health_says_so() {
    let Some((server, proxy, _)) = with_line(Fallback::Refuse).await else { return };
    let partner = server.partner("refused").await;
    partner.stream(&[partner.event("Send")]).await;
    eventually("it answers", async || partner.call(Method::GET, "/stats", &[], "").await.status == 200).await;
    proxy.set(Line::Down);
    partner.stream(&[partner.event("Send")]).await;
    let reply = partner.call(Method::GET, "/stats", &[], "").await;
    assert_eq!((reply.status.as_u16(), &reply.json()["error"]), (503, &json!("DB_UNAVAILABLE")));
    assert!(reply.headers.contains_key("retry-after"));
    eventually("health tells", async || {
        let reply = server.admin.call(Method::GET, "/health", &[], "").await.unwrap();
        reply.status == 503 && reply.json()["checks"]["clickhouse"] != "ok"
    })
    .await;
}

#[tokio::test]
async fn one_that_does_not_answer_is_waited_for_once() {
    let Some((server, proxy)) = with_silence(|_| {}).await else { return };
    let partner = server.partner("silent").await;
    partner.stream(&[partner.event("Send")]).await;
    let stats = async || partner.call(Method::GET, "/stats", &[], "").await;
    eventually("ClickHouse answers", async || !stats().await.headers.contains_key("sendtrail-as-of")).await;
    proxy.set(Line::Silent);
    // Each would take five seconds if it asked.
    let twenty = async {
        for _ in 0..20 {
            let reply = stats().await;
            assert_eq!(reply.json()["totals"]["sends"], 1);
            assert!(reply.headers.contains_key("sendtrail-as-of"));
        }
    };
    tokio::time::timeout(Duration::from_secs(75), twenty).await.expect("only the first waits");
    let health = server.admin.call(Method::GET, "/health", &[], "").await.unwrap().json();
    assert_ne!(health["checks"]["clickhouse"], "ok");
    proxy.set(Line::Up);
    partner.stream(&[partner.event("Send")]).await;
    eventually("ClickHouse answers again", async || !stats().await.headers.contains_key("sendtrail-as-of")).await;
    assert_eq!(stats().await.json()["totals"]["sends"], 2);
}

/// A server that waits five seconds for an answer of ClickHouse: the archive's own answers must come within that, too.
async fn with_silence(change: impl FnOnce(&mut Config)) -> Option<(Server, Proxy)> {
    let proxy = Proxy::to(sendtrail_test_servers::clickhouse()?).await;
    let server = Server::start_with(|config| {
        config.log.simulated = true;
        use_clickhouse(config);
        config.clickhouse.url = format!("http://{}", proxy.address);
        config.clickhouse.fallback = Fallback::Archive;
        config.clickhouse.insert_timeout_ms = 5_000;
        config.query.timeout_ms = 5_000;
        change(config);
    })
    .await;
    Some((server, proxy))
}

#[tokio::test]
async fn a_query_whose_turn_does_not_come_is_refused_and_nobody_is_blamed_for_it() {
    let Some((server, proxy)) = with_silence(|config| {
        config.query.concurrency = 1;
        config.query.turn_within_ms = 100;
    })
    .await
    else {
        return;
    };
    let partner = server.partner("crowd").await;
    partner.stream(&[partner.event("Send")]).await;
    let stats = async || partner.call(Method::GET, "/stats", &[], "").await;
    eventually("ClickHouse answers", async || !stats().await.headers.contains_key("sendtrail-as-of")).await;
    let mut blamed = Value::Null;
    for _ in 0..5 {
        proxy.set(Line::Silent);
        // One has the only turn until ClickHouse was silent for too long.
        let ask = async |wait: u64| {
            tokio::time::sleep(Duration::from_millis(wait)).await;
            let reply = stats().await;
            (reply, server.admin.call(Method::GET, "/health", &[], "").await.unwrap().json())
        };
        let (first, second) = tokio::join!(ask(0), ask(300));
        let ((answered, _), (refused, mut meanwhile)) =
            if first.0.status == 200 { (first, second) } else { (second, first) };
        assert_eq!((answered.status.as_u16(), answered.json()["totals"]["sends"].as_u64()), (200, Some(1)));
        // Unless the machine stalled until the turn was free again.
        if refused.status != 200 {
            let told = refused.json();
            assert_eq!((refused.status.as_u16(), told["error"].as_str()), (503, Some("UNAVAILABLE")), "{told}");
            assert!(refused.headers.contains_key("retry-after"));
            blamed = meanwhile["checks"]["clickhouse"].take();
            if blamed == "ok" {
                return;
            }
        }
        // What the sink asked was under way when the line fell silent, and that it tells.
        proxy.set(Line::Up);
        eventually("ClickHouse answers", async || !stats().await.headers.contains_key("sendtrail-as-of")).await;
    }
    panic!("ClickHouse is blamed: {blamed}");
}

#[tokio::test]
async fn a_query_that_takes_too_much_is_refused_and_not_tried_elsewhere() {
    let Some(server) = with_clickhouse(|config| {
        config.clickhouse.fallback = Fallback::Archive;
        config.clickhouse.max_query_rows = 1;
    })
    .await
    else {
        return;
    };
    let partner = server.partner("greedy").await;
    partner.stream(&(0..50).map(|_| partner.event("Send")).collect::<Vec<_>>()).await;
    eventually("ClickHouse is asked", async || {
        let reply = partner.call(Method::GET, "/events", &[], "").await;
        reply.status == 503 && reply.json()["message"].as_str().is_some_and(|message| message.contains("ask for less"))
    })
    .await;
}
