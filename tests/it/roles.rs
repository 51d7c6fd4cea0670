//! One deployment, split over processes: each does a part, on a real broker and a real ClickHouse.

mod books;
mod clocks;
mod driving;
pub mod fleet;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::join_all;
use http::Method;
use parking_lot::Mutex;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use sendtrail::client::Api;
use sendtrail::roles::Role;
use sendtrail_processor::core::step::LOGIC_VERSION;
use sendtrail_schemas::account::AccountConfig;
use sendtrail_schemas::codec;
use sendtrail_schemas::exchange::{Seen, SuppressionView, View};
use sendtrail_schemas::time::Millis;
use sendtrail_schemas::topic::partition_of;

use super::binary::{ADMIN_KEY, Process};
use super::kafka::consume;
use super::sources::Writer;
use super::support::*;
use driving::{Acknowledged, Doors, check, check_webhooks, drive, logic};
use fleet::{Fleet, PARTITIONS, partner, partners, send, told};

/// Has a recipient erased; where to ask how far that is.
async fn erase_somebody(front: &Api) -> String {
    let path = format!("{PARTNER}/recipients/nobody@inbox.example");
    let reply = front.call(Method::DELETE, &path, &[], "").await.unwrap();
    assert_eq!(reply.status, 202, "{}", reply.json());
    format!("{PARTNER}/erasures/{}", reply.json()["erasure"]["erasure_id"].as_str().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn servers_that_each_do_a_part_are_one() {
    let Some(fleet) = Fleet::new("split", &[]).await else { return };
    let receiver = Receiver::start_ok().await;
    let front = fleet.start("front", &["ingest"]);
    let processor = fleet.start("processor", &["processor"]);
    let workers = fleet.start("workers", &["delivery", "dispatcher"]);
    let sinks = fleet.start("sinks", &["sinks"]);
    let query = fleet.start("query", &["query"]);
    let (key, id) = partner(&front, &receiver, 100).await;
    // One that starts later knows everything that was made known.
    let other = fleet.start("other", &["ingest"]);
    let [front_api, other_api, query_api] = [&front, &other, &query].map(|server| Api::new(&server.base, &key));

    let (status, sent) = send(&other_api, "success@inbox.example").await;
    assert_eq!(status, 200, "{sent}");
    let message_id = sent["results"][0]["message_id"].as_str().unwrap().to_owned();
    let delivered = async || {
        // Away from the sinks an answer may be of a moment ago.
        let Ok(email) = query_api.get(&format!("{PARTNER}/emails/{message_id}")).await else { return false };
        let events = email["email"]["events"].as_array().unwrap().clone();
        let state = |event: &Value| event["deliveries"][0]["status"].clone();
        events.len() == 2 && events.iter().all(|event| state(event) == "delivered")
    };
    eventually("the message is delivered, and its webhooks", delivered).await;
    receiver.wait("/", 2).await;

    let gone = erase_somebody(&front_api).await;
    eventually("an erasure that the sinks tell of is known where it was asked for", async || {
        front_api.get(&gone).await.is_ok_and(|told| told["erasure"]["status"] == "ERASED")
    })
    .await;

    let tell = async |api: &Api, kind: &str, count: usize| {
        let events: String = (0..count).map(|n| format!("{}\n", event(kind, &format!("{kind}-{n}")))).collect();
        let told = stream(api, events).await;
        assert_eq!(told["accepted"], count, "{told}");
    };
    tell(&front_api, "Send", 399).await;
    tell(&other_api, "Send", 399).await;
    tell(&other_api, "HardBounce", 41).await;
    let (status, refused) = send(&front_api, "success@inbox.example").await;
    assert_eq!((status, &refused["error"]), (403, &json!("SENDING_PAUSED")));

    let reputation = whole(&query_api, "/reputation").await;
    assert_eq!(
        [&reputation["sent"], &reputation["bounced"], &reputation["status"]],
        [&json!(400), &json!(41), &json!("PAUSED")]
    );
    let stats = whole(&query_api, "/stats").await;
    assert_eq!([&stats["totals"]["sends"], &stats["totals"]["permanent_bounces"]], [&json!(400), &json!(41)]);
    let events = whole_rows(&query_api, "/events", "events").await;
    assert_eq!(kinds(&events).iter().filter(|kind| **kind == "Bounce").count(), 41);
    // A server that only answers queries follows no events; it asks the log where they end.
    let admin = Api::new(&query.base, ADMIN_KEY);
    let day = |millis: i64| millis.div_euclid(DAY) * DAY;
    let (from, to) = (Millis(day(Millis::wall().0 - DAY)), Millis(day(Millis::wall().0 + 2 * DAY)));
    let path = format!("{ADMIN}/reconciliation?from={from}&to={to}&account_id={id}");
    let mut compared = Value::Null;
    eventually("it is compared, and not put off", async || match admin.get(&path).await {
        Ok(told) => {
            compared = told;
            true
        }
        Err(why) => {
            assert!(why.to_string().starts_with("503"), "{why}");
            false
        }
    })
    .await;
    let total = |store: &str| -> u64 {
        compared["hours"].as_array().unwrap().iter().map(|hour| hour[store].as_u64().unwrap()).sum()
    };
    assert_eq!((&compared["equal"], total("log")), (&json!(true), total("archive")), "{compared}");
    assert!(total("log") > 440, "{compared}");
    for api in [&front_api, &other_api] {
        assert_eq!(whole_rows(api, "/suppression", "suppressions").await.len(), 41);
    }
    let unserved = front_api.call(Method::GET, &format!("{PARTNER}/reputation"), &[], "").await.unwrap();
    assert_eq!(unserved.status, 404);

    // A key that is revoked at one is refused by all, also by one that starts afterwards.
    let admin = Api::new(&other.base, ADMIN_KEY);
    let keys = admin.rows(&format!("{ADMIN}/accounts/{id}/keys"), "keys").await.unwrap();
    let revoke = format!("{ADMIN}/accounts/{id}/keys/{}", keys[0]["key_id"].as_str().unwrap());
    admin.call(Method::DELETE, &revoke, &[], "").await.unwrap().success().unwrap();
    let status =
        async |api: &Api| api.call(Method::GET, &format!("{PARTNER}/suppression"), &[], "").await.unwrap().status;
    assert_eq!(status(&other_api).await, 401);
    eventually("the others learn of it", async || status(&front_api).await == 401).await;
    let late = fleet.start("late", &["ingest"]);
    assert_eq!(status(&Api::new(&late.base, &key)).await, 401);

    // A folder that only spoke with clients must not mail everything again, nor post it unless the books of whoever
    // did are there.
    drop((front, processor, workers, sinks));
    let all = Role::ALL.map(Role::name);
    let no_books = [("SENDTRAIL__STATE__SNAPSHOTS", "")];
    for (roles, further) in [(&all[..], &[][..]), (&["delivery"], &[]), (&["dispatcher"], &no_books)] {
        let told = fleet.refused("front", roles, further).await;
        assert!(told.contains("the topics hold another server's log"), "{roles:?}: {told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whichever_server_is_killed_nothing_is_lost_and_nothing_twice() {
    const BATCHES: usize = 100;
    let Some(fleet) = Fleet::new("fleet-kills", &[]).await else { return };
    let receiver = Receiver::start_ok().await;
    let all: [(&str, &[&str]); 7] = [
        ("front", &["ingest"]),
        ("other", &["ingest"]),
        ("one", &["processor"]),
        ("workers", &["delivery", "dispatcher"]),
        ("sinks", &["sinks"]),
        ("query", &["query"]),
        ("two", &["processor"]),
    ];
    // As if an older program ran.
    let old = [("SENDTRAIL__STATE__LOGIC_VERSION", "2")];
    let start = |at: usize, further: &[(&str, &str)]| {
        let (name, roles) = all[at];
        tokio::task::block_in_place(|| fleet.start_with(name, roles, further))
    };
    let mut servers: Vec<Process> = (0..6).map(|at| start(at, &old)).collect();
    let partners = partners(&servers[0], &receiver).await;
    let doors: Doors = Arc::new(Mutex::new([servers[0].base.clone(), servers[1].base.clone()]));
    let is_over = Arc::<AtomicBool>::default();
    let drive = |(stream, (key, _)): (usize, &(String, String))| {
        let is_over = is_over.clone();
        // Slower after a while, until everything happened that is to happen meanwhile.
        let goes_on = move |batch| {
            let is_over = is_over.load(Ordering::Acquire);
            if batch >= BATCHES && !is_over {
                tokio::task::block_in_place(|| std::thread::sleep(Duration::from_secs(1)));
            }
            batch < BATCHES || !is_over
        };
        tokio::spawn(drive(doors.clone(), key.clone(), stream, goes_on))
    };
    let streams: Vec<_> = partners.iter().enumerate().map(drive).collect();
    // A second processor takes its share while events come.
    servers.push(start(6, &old));
    for processor in [&servers[2], &servers[6]] {
        eventually("each has its share", async || told(processor, "sendtrail_partitions_owned").await == 2.0).await;
    }
    for at in [2, 0, 4, 3, 6, 1, 5] {
        tokio::time::sleep(Duration::from_millis(700)).await;
        servers[at].signal("-KILL");
        servers[at].wait();
        servers[at] = start(at, &old);
        if at < 2 {
            doors.lock()[at] = servers[at].base.clone();
        }
    }
    // A newer program, one processor after the other, each in order.
    for at in [2, 6] {
        servers[at].signal("-TERM");
        assert!(tokio::task::block_in_place(|| servers[at].wait()).success());
        servers[at] = start(at, &[]);
    }
    assert!(streams.iter().all(|stream| !stream.is_finished()), "all while events came");
    is_over.store(true, Ordering::Release);
    let mut mail = 0;
    for (stream, (key, _)) in streams.into_iter().zip(&partners) {
        let acknowledged = stream.await.unwrap();
        assert!(acknowledged.mail.len() >= BATCHES);
        mail += acknowledged.mail.len();
        check(&servers[5], &servers[0], key, &acknowledged).await;
    }
    check_webhooks(&receiver, mail).await;
    for decided in logic(&fleet) {
        assert!(decided.is_sorted() && decided.first() == Some(&2), "never by older logic again: {decided:?}");
    }
    assert!(logic(&fleet).iter().any(|decided| decided.last() == Some(&LOGIC_VERSION)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_other_processor_goes_on_from_snapshots_and_the_one_before_changes_nothing() {
    let Some(fleet) = Fleet::in_bucket("zombie").await else { return };
    let receiver = Receiver::start_ok().await;
    let mut first = fleet.start("first", &["processor"]);
    let mut second = tokio::task::block_in_place(|| fleet.start("second", &["processor"]));
    let front = fleet.start("front", &["ingest"]);
    let _workers = fleet.start("workers", &["delivery", "dispatcher", "sinks"]);
    let query = fleet.start("query", &["query"]);
    let partners = partners(&front, &receiver).await;
    for processor in [&first, &second] {
        eventually("each has its share", async || told(processor, "sendtrail_partitions_owned").await == 2.0).await;
    }
    let doors: Doors = Arc::new(Mutex::new([front.base.clone(), front.base.clone()]));
    let mut acknowledged: Vec<Acknowledged> = partners.iter().map(|_| Acknowledged::default()).collect();
    let mut rounds = 0;
    let mut drive_all = async || {
        let driven: Vec<_> = (0..)
            .zip(&partners)
            .map(|(n, (key, _))| tokio::spawn(drive(doors.clone(), key.clone(), 10 * rounds + n, |batch| batch < 5)))
            .collect();
        rounds += 1;
        for (all, driven) in acknowledged.iter_mut().zip(driven) {
            let driven = driven.await.unwrap();
            all.sends.extend(driven.sends);
            all.bounces.extend(driven.bounces);
            all.mail.extend(driven.mail);
        }
    };
    drive_all().await;
    eventually("snapshots are written", async || told(&first, "sendtrail_snapshot_bytes_total").await > 0.0).await;
    // Two more, so that they hold what was driven.
    tokio::time::sleep(Duration::from_secs(3)).await;
    first.signal("-STOP");

    // It is gone for longer than its session, while events come, and the other one takes over, with nothing of its own.
    drive_all().await;
    assert_eq!(told(&second, "sendtrail_partitions_owned").await, 4.0);
    assert!(told(&second, "sendtrail_snapshot_restores_total").await > 0.0, "it did not step everything again");
    let admin = Api::new(&front.base, ADMIN_KEY);
    let mut spares = Vec::new();
    for (_, id) in &partners {
        let spare = admin.post(&format!("{ADMIN}/accounts/{id}/keys"), &json!({})).await.unwrap();
        let revoke = format!("{ADMIN}/accounts/{id}/keys/{}", spare["key"]["key_id"].as_str().unwrap());
        admin.call(Method::DELETE, &revoke, &[], "").await.unwrap().success().unwrap();
        spares.push(spare["key"]["api_key"].as_str().unwrap().to_owned());
    }

    // The first one goes on where it stood, until it learns that it owns nothing.
    first.signal("-CONT");
    drive_all().await;
    assert_eq!(tokio::task::block_in_place(|| first.wait()).code(), Some(1), "it ends by itself");
    let late = fleet.start("late", &["ingest"]);
    for ((key, _), all) in partners.iter().zip(&acknowledged) {
        check(&query, &late, key, all).await;
    }
    check_webhooks(&receiver, acknowledged.iter().map(|all| all.mail.len()).sum()).await;
    for key in &spares {
        let path = format!("{PARTNER}/suppression");
        let reply = Api::new(&late.base, key).call(Method::GET, &path, &[], "").await.unwrap();
        assert_eq!(reply.status, 401, "what was revoked stays revoked");
    }

    // In order, it leaves everything to whoever comes next.
    second.signal("-TERM");
    assert!(tokio::task::block_in_place(|| second.wait()).success());
    // Its state, which began from another's snapshots, is what comes of all intake, which both archived.
    let (done, told_of) = tokio::task::block_in_place(|| fleet.run("second", &["processor"], "rebuild-state"));
    let whole = told_of.matches("records 0 to").count() == PARTITIONS;
    assert!(done && whole && told_of.matches("byte for byte").count() == PARTITIONS, "{told_of}");
    let third = tokio::task::block_in_place(|| fleet.start("third", &["processor"]));
    eventually("it is given partitions, with their states", async || {
        told(&third, "sendtrail_snapshot_restores_total").await > 0.0
    })
    .await;
    for (key, _) in &partners {
        assert_eq!(send(&Api::new(&front.base, key), "success@inbox.example").await.0, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_that_does_everything_shares_with_one_that_only_decides() {
    let Some(fleet) = Fleet::new("mixed", &[]).await else { return };
    let receiver = Receiver::start_ok().await;
    let all = fleet.start("all", &Role::ALL.map(Role::name));
    let partners = partners(&all, &receiver).await;
    // What was made known before partitions move, while they were its own.
    for (key, _) in &partners {
        let path = format!("{PARTNER}/suppression/never@inbox.example");
        Api::new(&all.base, key).send(Method::PUT, &path, &json!({"reason": "MANUAL"})).await.unwrap();
    }
    let mut helper = tokio::task::block_in_place(|| fleet.start("helper", &["processor"]));
    for (round, owned) in [2.0, 4.0].into_iter().enumerate() {
        eventually("it has its share", async || told(&all, "sendtrail_partitions_owned").await == owned).await;
        for (key, _) in &partners {
            let api = Api::new(&all.base, key);
            let list = async || {
                let rows = whole_rows(&api, "/suppression", "suppressions").await;
                rows.iter().map(|row| row["email"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
            };
            let before = whole(&api, "/reputation").await["sent"].as_u64().unwrap();
            let path = format!("{PARTNER}/suppression/no@inbox.example");
            // What was changed is seen at once, whoever decided it.
            api.send(Method::PUT, &path, &json!({"reason": "MANUAL"})).await.unwrap();
            assert_eq!(list().await, ["never@inbox.example", "no@inbox.example"]);
            let (status, refused) = send(&api, "no@inbox.example").await;
            assert_eq!((status, &refused["results"][0]["reason"]), (200, &json!("suppressed")), "{refused}");
            api.call(Method::DELETE, &path, &[], "").await.unwrap().success().unwrap();
            assert_eq!(list().await, ["never@inbox.example"]);
            let (status, sent) = send(&api, "success@inbox.example").await;
            assert_eq!(status, 200, "{sent}");
            assert_eq!(whole(&api, "/reputation").await["sent"], before + 1);
            let message = sent["results"][0]["message_id"].as_str().unwrap();
            eventually("it is delivered", async || {
                // Of a moment ago it may not be there.
                let Ok(email) = api.get(&format!("{PARTNER}/emails/{message}")).await else { return false };
                email["email"]["events"].as_array().unwrap().len() == 2
            })
            .await;
        }
        // Then it owns everything again.
        if round == 0 {
            helper.signal("-KILL");
            helper.wait();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_source_goes_on_with_whichever_processor_is_left() {
    const MESSAGES: usize = 3_000;
    let Some(writer) = Writer::new("moving-source", 2).await else { return };
    let source = format!("[{{topic={:?},account_header=\"account\"}}]", writer.topic);
    let Some(fleet) = Fleet::new("moving", &[("SENDTRAIL__SOURCES__KAFKA", &source)]).await else { return };
    let receiver = Receiver::start_ok().await;
    let start = |name: &str| tokio::task::block_in_place(|| fleet.start(name, &["processor"]));
    let mut processors = [start("one"), start("two")];
    let front = fleet.start("front", &["ingest"]);
    let query = fleet.start("query", &["query"]);
    let partners = partners(&front, &receiver).await;
    let admin = Api::new(&front.base, ADMIN_KEY);
    for (round, kill) in [None, Some(0), Some(1)].into_iter().enumerate() {
        let (writer, partners) = (&writer, &partners);
        // Each third cannot be read: dead letters know no duplicates, so one that is read twice is there twice.
        let write = |n: usize| async move {
            let id = format!("{round}-{n}");
            let text = if n.is_multiple_of(3) { format!("not JSON {id}") } else { event("Send", &id).to_string() };
            writer.write((n % 2) as i32, &text, Some(&partners[n % PARTITIONS].1)).await;
        };
        join_all((0..MESSAGES / 2).map(write)).await;
        if let Some(at) = kill {
            processors[at].signal("-KILL");
            processors[at].wait();
        }
        join_all((MESSAGES / 2..MESSAGES).map(write)).await;
        // Whoever is left reads all there is.
        let all = (round + 1) * MESSAGES;
        let read = async || {
            let mut sent = 0;
            for (key, _) in partners {
                let reputation = Api::new(&query.base, key).get(&format!("{PARTNER}/reputation")).await;
                sent += reputation.map_or(0, |reputation| reputation["sent"].as_u64().unwrap() as usize);
            }
            (sent, super::sources::letters(&admin).await.len())
        };
        eventually("everything was read, once", async || read().await == (all / 3 * 2, all / 3)).await;
        if let Some(at) = kill {
            processors[at] = start(["one", "two"][at]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_made_known_is_the_truth_whoever_said_otherwise() {
    let Some(fleet) = Fleet::new("truth", &[]).await else { return };
    let receiver = Receiver::start_ok().await;
    let start = |name: &str, roles: &[&str]| tokio::task::block_in_place(|| fleet.start(name, roles));
    let mut processor = start("owner", &["processor"]);
    let front = start("front", &["ingest"]);
    let (key, id) = partner(&front, &receiver, 1_000_000_000).await;
    let api = Api::new(&front.base, &key);
    let suppress = format!("{PARTNER}/suppression/No@Mail.example");
    api.send(Method::PUT, &suppress, &json!({"reason": "MANUAL"})).await.unwrap();
    let stop = |server: &mut Process| {
        server.signal("-TERM");
        assert!(tokio::task::block_in_place(|| server.wait()).success());
    };
    // What a front server can tell a client.
    let knows = async |name: &str| {
        let server = start(name, &["ingest"]);
        let found = Api::new(&server.base, &key).rows(&format!("{PARTNER}/suppression"), "suppressions").await;
        found.is_ok_and(|rows| rows.len() == 1 && rows[0]["email"] == "No@Mail.example")
    };

    // One who owned it before says something, late.
    stop(&mut processor);
    processor = start("owner", &["processor"]);
    let (broker, namespace) = (fleet.setting("BOOTSTRAP_SERVERS"), fleet.setting("NAMESPACE"));
    let topic = format!("{namespace}.views");
    let account: sendtrail_schemas::ids::AccountId = id.parse().unwrap();
    let partition = partition_of(account, 4);
    let late = [
        Seen::Account(Box::new(AccountConfig { account_id: account.bytes().to_vec(), ..AccountConfig::default() })),
        Seen::Suppression(SuppressionView {
            account_id: account.bytes().to_vec(),
            email: "no@mail.example".into(),
            row: None,
        }),
    ];
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", &broker).create().unwrap();
    for seen in &late {
        let view = View { version: codec::VERSION, reign: 0, seen: Some(seen.clone()) };
        let (key, payload) = (seen.key(), codec::encode(&view));
        producer.send(BaseRecord::to(&topic).partition(partition as i32).key(&key).payload(&payload[..])).unwrap();
    }
    producer.flush(Duration::from_secs(60)).unwrap();
    let last = |key: &[u8]| {
        let all = tokio::task::block_in_place(|| consume(&broker, &topic, 4));
        let last = all.into_iter().rfind(|(of, found, _)| *of == partition as i32 && found == key);
        codec::decode::<View>(&last.unwrap().2).unwrap().seen.unwrap()
    };
    eventually("the owner says how it is", async || {
        let account = matches!(last(&late[0].key()), Seen::Account(config) if !config.keys.is_empty());
        account && matches!(last(&late[1].key()), Seen::Suppression(view) if view.row.is_some())
    })
    .await;
    assert!(knows("second").await);

    // Nothing was ever made known, as after an upgrade.
    stop(&mut processor);
    drop(front);
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &broker).create().unwrap();
    admin.delete_topics(&[&topic], &AdminOptions::new()).await.unwrap();
    eventually("the topic is gone", async || {
        let metadata = admin.inner().fetch_metadata(None, Duration::from_secs(60)).unwrap();
        metadata.topics().iter().all(|found| found.name() != topic)
    })
    .await;
    // Another role in its folder takes nothing from it.
    let mut visitor = start("owner", &["ingest"]);
    stop(&mut visitor);
    let _processor = start("owner", &["processor"]);
    eventually("everything is made known again", async || {
        let said = tokio::task::block_in_place(|| consume(&broker, &topic, 4));
        let has = |key: &[u8]| said.iter().any(|(_, found, _)| found == key);
        has(&late[0].key()) && has(&late[1].key())
    })
    .await;
    assert!(knows("third").await);
}
