//! ClickHouse gives the answers that the archive gives, loses nothing, and takes nothing twice.

mod outages;
mod replays;
mod tables;

use std::time::Duration;

use clickhouse::Client;
use http::Method;
use sendtrail::config::{Config, Fallback};
use sendtrail_schemas::time::Millis;

use super::support::proxy::Proxy;
use super::support::*;

/// Events that both answer questions about: enough for several files and inserts, or as many as are asked for.
fn count() -> usize {
    std::env::var("SENDTRAIL_TEST_EVENTS").ok().and_then(|count| count.parse().ok()).unwrap_or(60_000)
}

/// A server in simulated time that answers from ClickHouse; none where there is no ClickHouse.
async fn with_clickhouse(change: impl FnOnce(&mut Config)) -> Option<Server> {
    sendtrail_test_servers::clickhouse()?;
    let start = Server::start_with(|config| {
        config.log.simulated = true;
        use_clickhouse(config);
        change(config);
    });
    Some(start.await)
}

fn client(config: &Config) -> Client {
    sendtrail::clickhouse::client(&config.clickhouse).unwrap()
}

/// One event of many kinds, the same for the same number.
fn varied(n: usize) -> Value {
    let kinds =
        ["Send", "Delivery", "Open", "Click", "HardBounce", "SoftBounce", "Complaint", "DeliveryDelay", "Reply"];
    let kind = kinds[n * 7 % kinds.len()];
    let mut event = event(kind, &format!("m-{}", n / 9));
    event["event_id"] = format!("e-{:x}", n.wrapping_mul(2_654_435_761) & 0xffff_ffff).into();
    event["recipient"] = match n % 5 {
        0 => format!("User{}@Inbox.example", n % 1_009),
        1 => format!("ÄRGER{}@post.example", n % 97),
        _ => format!("user{}@host{}.example", n % 5_003, n % 13),
    }
    .into();
    event["from"] = format!("News <news@from{}.example>", n % 4).into();
    if n.is_multiple_of(3) {
        event["configuration_set_name"] = format!("set-{}", n % 7).into();
    }
    event["tags"] = match n % 4 {
        0 => json!({"campaign": format!("c{}", n % 11), "bare": ""}),
        1 => json!({"a:b": "c", "campaign": "it's \\ \"quoted\"\t{x:String}"}),
        _ => json!({}),
    };
    if n.is_multiple_of(17) {
        event["metadata"] = json!({"order": n, "text": "Ä\n'\\"});
        event["subject"] = "An offer, for you: 100%".into();
        event["customer_id"] = format!("customer-{}", n % 31).into();
    }
    if kind == "Click" {
        event["click"] = json!({"link": "https://shop.example/?a=1&b='2'", "ipAddress": "192.0.2.1"});
    }
    // Several share a moment; a few are history, one from long before ClickHouse's own calendar begins.
    let at = match n % 1_000 {
        999 if n < 1_000 => Millis::parse("1701-02-03T04:59:59.999Z").unwrap(),
        500..=520 => noon().plus(-20 * DAY - (n as i64 / 3) * 1_000),
        _ => noon().plus(-((n as i64) / 3) * 1_000 % (3 * DAY)),
    };
    event["occurred_at"] = at.to_string().into();
    event
}

/// Everything that can be asked, by one of each filter and many of two; `deliveries` aside, which one place keeps.
fn questions() -> Vec<String> {
    let filters = [
        "",
        "event_type=bounce",
        "event_type=open,click,AtRisk,Paused",
        "recipient=user5%40inbox.EXAMPLE",
        "recipient=%C3%A4rger3%40post.example",
        "message_id=m-77",
        "message_id=nothing",
        "configuration_set_name=set-3",
        "tag=campaign%3Ac4",
        "tag=bare",
        "tag=a%3Ab%3Ac",
        "tag=campaign%3Ait%27s%20%5C%20%22quoted%22%09%7Bx%3AString%7D",
        "day_bucket=2026-04-30",
        "from=2026-04-30T10:00:00Z&to=2026-04-30T11:30:00.500Z",
        "to=1900-01-01",
    ];
    let mut all: Vec<String> = filters.iter().map(|filter| format!("/events?limit=50&{filter}")).collect();
    for (at, one) in filters.iter().enumerate().skip(1) {
        for other in filters.iter().skip(at + 1).step_by(3) {
            all.push(format!("/events?limit=20&{one}&{other}"));
        }
    }
    all.retain(|path| {
        // A filter is given once; a day stands for from and to.
        let names: Vec<&str> =
            path.split(['?', '&']).filter_map(|part| part.split_once('=')).map(|(name, _)| name).collect();
        let spans = names.iter().filter(|name| ["day_bucket", "from", "to"].contains(name)).count();
        names.iter().enumerate().all(|(at, name)| !names[..at].contains(name))
            && (spans <= 1 || !names.contains(&"day_bucket"))
    });
    for span in [
        "",
        "from=2026-04-30&to=2026-05-01",
        "from=2026-04-30T10:20:00Z&to=2026-04-30T13:40:00Z",
        "days=400",
        "from=1701-01-01&to=1701-12-31",
    ] {
        for granularity in ["day", "hour"] {
            all.push(format!("/stats?granularity={granularity}&{span}"));
            for group in ["config_set", "recipient_domain", "tag", "from_domain"] {
                all.push(format!("/stats?granularity={granularity}&group_by={group}&{span}"));
            }
        }
        all.push(format!("/stats?tag=bare&{span}"));
        all.push(format!("/stats?tag=k:v1&group_by=recipient_domain&{span}"));
        all.push(format!("/stats?configuration_set_name=set-0&{span}"));
        all.push(format!("/stats?configuration_set_name=set-0&group_by=tag&{span}"));
    }
    all.extend(["m-0", "m-111", "m-5000"].map(|id| format!("/emails/{id}")));
    all.push("/emails/nothing".into());
    // Pages of the calls that made the account and its set, and one of nothing.
    all.extend(["limit=2", "from=2026-05-01&to=2026-05-02", "to=1900-01-01"].map(|asked| format!("/activity?{asked}")));
    all
}

/// The answers, with up to three pages of each; and whether any says that it is not of now.
async fn answers(partner: &Partner) -> (Vec<(String, Value)>, bool) {
    let (mut answers, mut dated) = (Vec::new(), false);
    for question in questions() {
        let mut path = question.clone();
        for _ in 0..3 {
            let reply = partner.call(Method::GET, &path, &[], "").await;
            dated |= reply.headers.contains_key("sendtrail-as-of");
            let answer = reply.json();
            assert!(matches!(reply.status.as_u16(), 200 | 404), "{path}: {answer}");
            let next = answer["next_cursor"].as_str().map(|cursor| format!("{question}&cursor={cursor}"));
            answers.push((path, answer));
            let Some(next) = next else { break };
            path = next;
        }
    }
    (answers, dated)
}

fn assert_same(one: &[(String, Value)], other: &[(String, Value)]) {
    assert_eq!(one.len(), other.len());
    for ((path, one), (_, other)) in one.iter().zip(other) {
        assert_eq!(one, other, "{path}");
    }
}

/// What anyone can count: rows, distinct identities, and how far numbers reach, of each partition.
async fn audit(client: &Client, table: &str) -> u64 {
    let sql = format!(
        "SELECT partition, count() AS n, uniqExact(seq) AS d, toUInt64(max(seq) - min(seq) + 1) AS span FROM {table} GROUP BY partition"
    );
    let rows = client.query(&sql).fetch_all::<(u32, u64, u64, u64)>().await.unwrap();
    for (partition, count, distinct, span) in &rows {
        assert!(count == distinct && count == span, "{table} {partition}: {count} rows, {distinct} distinct, {span}");
    }
    let kept = format!(
        "SELECT partition, sum(`rows`), toUInt64(max(last) - min(first) + 1) FROM {table}_progress GROUP BY partition"
    );
    for (partition, count, span) in client.query(&kept).fetch_all::<(u32, u64, u64)>().await.unwrap() {
        assert!(count == span, "{table}_progress {partition}: {count} rows, {span}");
    }
    rows.iter().map(|row| row.1).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_route_answers_the_same_from_both() {
    let Some(server) = with_clickhouse(|_| {}).await else {
        return;
    };
    let partner = server.partner("both").await;
    partner.set(json!({"name": "set-0"})).await;
    let other = server.partner("other").await;
    other.stream(&[other.event("Send"), other.event("HardBounce")]).await;
    let events = count();
    for from in (0..events).step_by(10_000) {
        partner.stream(&(from..from + 10_000).map(varied).collect::<Vec<_>>()).await;
    }
    let late: Vec<Value> = (events..events + 500).map(varied).collect();
    partner.at(noon().plus(2 * DAY)).stream(&late).await;
    let partner = partner.at(noon().plus(2 * DAY));
    let from_clickhouse = caught_up(&partner).await;
    let client = client(&server.config);
    let rows = audit(&client, "events").await;

    let mut stopped = server.stop().await;
    let url = std::mem::take(&mut stopped.config.clickhouse.url);
    let server = stopped.start().await;
    let partner = partner.on(&server).at(noon().plus(2 * DAY));
    let (from_archive, _) = answers(&partner).await;
    assert_same(&from_clickhouse, &from_archive);
    let shown = from_clickhouse.iter().filter(|(path, _)| path.starts_with("/events"));
    let shown: usize = shown.map(|(_, answer)| answer["events"].as_array().unwrap().len()).sum();
    assert!(shown > 1_000, "the questions find something: {shown}");
    assert_eq!(rows, server.app.archive().rows, "what the archive has");

    // A day that ClickHouse has no more comes from the archive, through the same cursors.
    let mut stopped = server.stop().await;
    client.query("ALTER TABLE events DROP PARTITION '2026-05-01'").execute().await.unwrap();
    assert_eq!(client.query("SELECT count() FROM events").fetch_one::<u64>().await.unwrap(), 500);
    stopped.config.clickhouse.url = url;
    let server = stopped.start().await;
    let seamless = caught_up(&partner.on(&server).at(noon().plus(2 * DAY))).await;
    assert_same(&seamless, &from_archive);

    // Not even the last day: what came just now is in no file yet, and not where ClickHouse is asked.
    let stopped = server.stop().await;
    client.query("ALTER TABLE events DROP PARTITION '2026-05-03'").execute().await.unwrap();
    let server = stopped.start().await;
    let partner = partner.on(&server).at(noon().plus(2 * DAY));
    let nothing = caught_up(&partner).await;
    assert_same(&nothing, &from_archive);
    for n in 0..20 {
        partner.stream(&[event("Send", &format!("late-{n}"))]).await;
        let found = partner.get(&format!("/events?message_id=late-{n}")).await;
        assert_eq!(found["events"].as_array().unwrap().len(), 1, "{n}");
    }
}

/// The answers once ClickHouse gives them.
async fn caught_up(partner: &Partner) -> Vec<(String, Value)> {
    eventually("ClickHouse has caught up", async || {
        partner.call(Method::GET, "/events?limit=1", &[], "").await.status == 200
    })
    .await;
    let (answers, dated) = answers(partner).await;
    assert!(!dated, "ClickHouse answers");
    answers
}

/// A server whose ClickHouse is behind a line that can be cut.
async fn with_line(fallback: Fallback) -> Option<(Server, Proxy, Client)> {
    let proxy = Proxy::to(sendtrail_test_servers::clickhouse()?).await;
    let server = Server::start_with(|config| {
        config.log.simulated = true;
        use_clickhouse(config);
        config.clickhouse.url = format!("http://{}", proxy.address);
        config.clickhouse.fallback = fallback;
        config.clickhouse.batch_rows = 1_000;
        config.clickhouse.flush_ms = 20;
        config.clickhouse.lanes = 2;
    })
    .await;
    let direct = client(&server.config).with_url(format!("http://{}", sendtrail_test_servers::clickhouse()?));
    Some((server, proxy, direct))
}

/// Also while events never cease, and while one lane has nothing to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_steady_traffic_clickhouse_answers_with_what_was_just_acknowledged() {
    let Some((server, _proxy, direct)) = with_line(Fallback::Refuse).await else { return };
    let partner = server.partner("steady").await;
    let (done, mut told) = (std::sync::atomic::AtomicBool::new(false), 0);
    let other = server.partner("busy").await;
    let traffic = async {
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            other.stream(&[other.event("Send"), other.event("Open")]).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let reader = async {
        for day in 0..3 {
            let partner = partner.at(noon().plus(day * DAY));
            for _ in 0..5 {
                partner.stream(&["Delivery", "Send"].map(|kind| event(kind, &format!("steady-{told}")))).await;
                told += 2;
                let events = partner.get("/events?limit=1000").await;
                assert_eq!(events["events"].as_array().unwrap().len(), told, "day {day}");
            }
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    tokio::join!(traffic, reader);
    audit(&direct, "events").await;
}
