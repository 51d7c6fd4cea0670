//! Recipients of whom nothing may be kept, from the request to the last store.

use std::path::Path;

use http::Method;
use sendtrail::client::Api;
use sendtrail_processor::archive::{ATTEMPTS, EVENTS, Layout, Table, read_file};

use super::audit::Verifiers;
use super::binary::{ADMIN_KEY, Process, account_with_key};
use super::support::*;

const JANE: &str = "Jane.Doe@inbox.example";

/// An event of Jane's, that says so wherever it can.
fn of_jane(kind: &str, message: &str) -> Value {
    let mut told = event(kind, message);
    told["recipient"] = JANE.into();
    told["subject"] = "Dear Jane.Doe".into();
    told["tags"] = json!({"who": "jane.doe"});
    told["metadata"] = json!({"name": "Jane.Doe"});
    if kind == "HardBounce" {
        told["bounce"]["diagnosticCode"] = "550 jane.doe is unknown".into();
    }
    told
}

/// Everything that the files of a table say, as text in lower case.
async fn filed(layout: &'static Layout, folder: &Path) -> String {
    let table = Table::find(layout, &folder.join(layout.name())).await.unwrap().unwrap();
    let mut text = String::new();
    for file in table.files() {
        for batch in read_file(layout, table.root(), &file).unwrap() {
            let mut writer = arrow::json::LineDelimitedWriter::new(Vec::new());
            writer.write(&batch.unwrap()).unwrap();
            text += &String::from_utf8(writer.into_inner()).unwrap();
        }
    }
    text.to_lowercase()
}

async fn erased(partner: &Partner, erasure: &Value) -> Value {
    let path = format!("/erasures/{}", erasure["erasure"]["erasure_id"].as_str().unwrap());
    eventually("it has reached every store", async || partner.get(&path).await["erasure"]["status"] == "ERASED").await;
    partner.get(&path).await["erasure"].take()
}

async fn erase(partner: &Partner, who: &str) -> Value {
    let reply = partner.call(Method::DELETE, &format!("/recipients/{who}"), &[], "").await;
    assert_eq!(reply.status, 202, "{}", reply.json());
    reply.success().unwrap()
}

#[tokio::test]
async fn a_recipient_is_gone_from_every_store_and_every_count_stays() {
    let receiver = Receiver::start(|_, before| match before {
        0..35 => Answer { body: "no jane.doe here".into(), ..Answer::status(500) },
        _ => Answer::status(200),
    })
    .await;
    let server = Server::start_with(|config| config.log.simulated = true).await;
    let partner = server.partner("shop").await;
    let hook = json!({"webhook_url": format!("{}/all", receiver.base)}).to_string();
    partner.call(Method::PUT, "/webhook", &[], hook).await.success().unwrap();
    let mut events: Vec<Value> = (0..30).map(|_| partner.event("Send")).collect();
    for (n, kind) in ["Send", "Delivery", "Open", "HardBounce", "Complaint"].into_iter().enumerate() {
        events.push(of_jane(kind, &format!("jane-{n}")));
    }
    partner.stream(&events).await;
    receiver.wait("/all", events.len()).await;
    let tomorrow = partner.at(noon().plus(DAY));
    tomorrow.stream(&[of_jane("Send", "jane-9"), tomorrow.event("Send")]).await;
    let seals = server.config.data.dir.join("archive/events/_seals");
    eventually("the first day is sealed", async || seals.join("000001.seal.json").exists()).await;
    let folder = server.config.data.dir.join("archive");
    eventually("what receivers said is filed", async || filed(&ATTEMPTS, &folder).await.contains("jane.doe")).await;
    assert!(filed(&EVENTS, &folder).await.contains("jane.doe"));
    assert_eq!(tomorrow.rows(&format!("/events?recipient={JANE}&from=2026-04-01"), "events").await.len(), 6);
    let stats = tomorrow.get("/stats?from=2026-04-30&to=2026-05-03").await["totals"].clone();
    let reputation = tomorrow.get("/reputation").await;

    let told = erase(&tomorrow, "jane.doe@INBOX.example").await;
    assert_eq!(told["erasure"]["status"], "PENDING");
    let suppressed = tomorrow.call(Method::GET, &format!("/suppression/{JANE}"), &[], "").await;
    assert_eq!(suppressed.status, 404);
    // Late: it counts, and nothing of her is kept. A copy is a copy.
    let late = [of_jane("HardBounce", "jane-9"), of_jane("HardBounce", "jane-3"), of_jane("Click", "jane-1")];
    tomorrow.stream(&late).await;
    let shown = erased(&tomorrow, &told).await;
    // Six events, and the one that asks for it; the late ones never had her.
    assert_eq!(shown["rows"], 7, "{shown}");
    assert_eq!(tomorrow.get("/erasures").await["erasures"], json!([shown]));

    let log = tomorrow.rows("/events?from=2026-04-01", "events").await;
    assert!(!format!("{log:?}").to_lowercase().contains("jane.doe"));
    let of_her = log.iter().filter(|event| event["message_id"].as_str().is_some_and(|id| id.starts_with("jane-")));
    let mut kinds: Vec<(&str, &str)> =
        of_her.map(|event| (event["message_id"].as_str().unwrap(), event["event_type"].as_str().unwrap())).collect();
    kinds.sort_unstable();
    let expected = [
        ("jane-0", "Send"),
        ("jane-1", "Click"),
        ("jane-1", "Delivery"),
        ("jane-2", "Open"),
        ("jane-3", "Bounce"),
        ("jane-4", "Complaint"),
        ("jane-9", "Bounce"),
        ("jane-9", "Send"),
    ];
    assert_eq!(kinds, expected);
    let bounce = log.iter().find(|event| event["message_id"] == "jane-3").unwrap();
    assert_eq!((&bounce["recipient"], &bounce["bounce"]["bounceType"]), (&Value::Null, &json!("Permanent")));
    assert_eq!(tomorrow.rows(&format!("/events?recipient={JANE}&from=2026-04-01"), "events").await.len(), 0);
    let mut counted = stats.clone();
    for (field, more) in [("permanent_bounces", 1), ("clicks", 1), ("unique_clicks", 1)] {
        counted[field] = json!(counted[field].as_u64().unwrap() + more);
    }
    let now = tomorrow.get("/stats?from=2026-04-30&to=2026-05-03").await["totals"].clone();
    for (field, value) in counted.as_object().unwrap().iter().filter(|(_, value)| value.is_u64()) {
        assert_eq!(&now[field], value, "{field}");
    }
    assert_eq!(tomorrow.get("/reputation").await["bounced"], json!(reputation["bounced"].as_u64().unwrap() + 1));
    assert!(!filed(&EVENTS, &folder).await.contains("jane.doe"));
    if let Some(client) = sendtrail::clickhouse::client(&server.config.clickhouse) {
        let sql = "SELECT count(), countIf(positionCaseInsensitive(toString(tuple(*)) || recipient_key, 'jane.doe') > 0) FROM events";
        let (rows, hers) = client.query(sql).fetch_one::<(u64, u64)>().await.unwrap();
        assert!(rows > 30 && hers == 0, "{hers} of {rows}");
    }
    // What a receiver said of others is theirs.
    let hers: Vec<u64> = log
        .iter()
        .filter(|event| event["message_id"].as_str().is_some_and(|id| id.starts_with("jane-")))
        .map(|event| event["seq"].as_u64().unwrap())
        .collect();
    let answers = filed(&ATTEMPTS, &folder).await;
    let of_whom = answers.lines().filter(|line| line.contains("jane.doe")).map(|line| {
        let attempt: Value = serde_json::from_str(line).unwrap();
        attempt["event_seq"].as_u64().unwrap()
    });
    let of_whom: Vec<u64> = of_whom.collect();
    assert!(of_whom.len() >= 30 && !of_whom.iter().any(|seq| hers.contains(seq)), "{of_whom:?} {hers:?}");
    // Whoever is mailed again is somebody new.
    let (status, sent) = tomorrow.at(noon().plus(DAY + HOUR)).try_send(&[JANE]).await;
    assert_eq!((status, &sent["results"][0]["status"]), (200, &json!("queued")), "{sent}");

    let stopped = server.stop().await;
    let (holds, said) = Verifiers::of(&stopped.config.data.dir).check(&folder.join("events"));
    assert!(holds, "{said}");
    let tombstone = std::fs::read_to_string(seals.join("000001.erasure.json")).unwrap();
    assert!(tombstone.contains("payload"));
    let server = stopped.start().await;
    let again = tomorrow.on(&server);
    let again = again.at(noon().plus(2 * DAY));
    assert_eq!(again.rows(&format!("/events?recipient={JANE}&from=2026-04-01&to=2026-05-02"), "events").await.len(), 0);
}

#[tokio::test]
async fn a_hold_stops_erasure_and_retention_and_both_go_on_after_it() {
    let server = Server::start().await;
    let partner = server.partner("held").await;
    let admin = server.admin.at(noon());
    let set = async |fields: Value| admin.send(Method::PATCH, &partner.account, &fields).await;
    for days in [json!(3), json!(40_000)] {
        assert!(set(json!({"retention_days": days})).await.is_err());
    }
    partner.stream(&[of_jane("Send", "m-1"), partner.event("Send")]).await;
    let shown = set(json!({"legal_hold": true, "retention_days": 15})).await.unwrap();
    assert_eq!((&shown["account"]["legal_hold"], &shown["account"]["retention_days"]), (&json!(true), &json!(15)));
    let path = format!("/recipients/{JANE}");
    let reply = partner.call(Method::DELETE, &path, &[], "").await;
    assert_eq!((reply.status.as_u16(), &reply.json()["error"]), (409, &json!("LEGAL_HOLD")));
    let by_admin = format!("{}{path}", partner.account);
    let reply = admin.call(Method::DELETE, &by_admin, &[], "").await.unwrap();
    assert_eq!((reply.status.as_u16(), &reply.json()["error"]), (409, &json!("LEGAL_HOLD")));
    let reply = partner.call(Method::DELETE, "/recipients/nobody", &[], "").await;
    assert_eq!((reply.status.as_u16(), &reply.json()["error"]), (400, &json!("INVALID_PARAM")));
    set(json!({"legal_hold": false, "retention_days": 0})).await.unwrap();
    let reply = admin.call(Method::DELETE, &by_admin, &[], "").await.unwrap();
    assert_eq!(reply.status, 202);
    erased(&partner, &reply.json()).await;
    let listed = admin.get(&format!("{}/erasures", partner.account)).await.unwrap();
    assert_eq!(listed["erasures"].as_array().unwrap().len(), 1);
    // The other's address is there until it is too old.
    let all = "/events?from=2026-04-01&event_type=Send";
    let addresses = async |partner: &Partner| {
        let rows = partner.rows(all, "events").await;
        rows.iter().filter(|event| event["recipient"].is_string()).count()
    };
    assert_eq!(addresses(&partner).await, 1);
    set(json!({"retention_days": 15})).await.unwrap();
    server.tick(noon().plus(14 * DAY)).await;
    let server = server.restart().await;
    let partner = partner.on(&server);
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    assert_eq!(addresses(&partner).await, 1, "fourteen days are not too old");
    server.tick(noon().plus(16 * DAY)).await;
    let server = server.restart().await;
    let partner = partner.on(&server);
    eventually("it is too old", async || addresses(&partner).await == 0).await;
    assert_eq!(partner.rows(all, "events").await.len(), 2, "the rows stay");
}

#[tokio::test]
async fn a_hold_stops_a_retention_that_is_under_way() {
    const DAYS: i64 = 12;
    let folder = tempfile::TempDir::new().unwrap();
    let settings = |failpoints: &'static str| {
        [
            ("SENDTRAIL_ADMIN_KEY", ADMIN_KEY),
            ("SENDTRAIL__LOG__SIMULATED", "true"),
            ("SENDTRAIL__ARCHIVE__COMMIT_SECONDS", "1"),
            ("FAILPOINTS", failpoints),
        ]
    };
    let mut process = Process::start(folder.path(), &settings(""));
    let admin = Api::new(&process.base, ADMIN_KEY).at(noon());
    let (api, account) = account_with_key(&admin).await;
    let (others, other) = account_with_key(&admin).await;
    for day in 0..DAYS {
        let now = noon().plus(day * DAY);
        admin.post(&format!("{ADMIN}/clock"), &json!({"now": now})).await.unwrap();
        for api in [&api, &others] {
            stream(&api.at(now), of_jane("Send", &format!("m-{day}")).to_string()).await;
        }
    }
    // Everything is too old.
    let now = noon().plus(60 * DAY);
    admin.post(&format!("{ADMIN}/clock"), &json!({"now": now})).await.unwrap();
    for account in [&account, &other] {
        admin.send(Method::PATCH, account, &json!({"retention_days": 15})).await.unwrap();
    }
    process.signal("-TERM");
    assert!(process.wait().success());
    // A day takes a while.
    let process = Process::start(folder.path(), &settings("erase.buried=sleep(2500)"));
    let admin = Api::new(&process.base, ADMIN_KEY).at(now);
    let left_of = async |api: &Api| {
        let rows = api.rows(&format!("{PARTNER}/events?from=2026-04-01"), "events").await.unwrap();
        rows.iter().filter(|event| event["recipient"].is_string()).count()
    };
    let api = admin.with_key(api.key()).at(now);
    let left = async || left_of(&api).await;
    let all = DAYS as usize;
    eventually("it begins", async || left().await < all).await;
    admin.send(Method::PATCH, &account, &json!({"legal_hold": true})).await.unwrap();
    let held = left().await;
    assert!(held > 2, "too late to see anything: {held}");
    let others = admin.with_key(others.key()).at(now);
    eventually("all days of others are cleared", async || left_of(&others).await == 0).await;
    // But for the day that could not be stopped any more.
    assert!(left().await >= held - 1, "{held}, then {}", left().await);
    admin.send(Method::PATCH, &account, &json!({"legal_hold": false})).await.unwrap();
    drop(process);
    let process = Process::start(folder.path(), &settings(""));
    let api = Api::new(&process.base, api.key()).at(now);
    eventually("it goes on after the hold", async || left_of(&api).await == 0).await;
}

#[tokio::test]
async fn whatever_ends_an_erasure_in_the_middle_it_comes_to_its_end_and_seals_hold() {
    for point in ["erase.buried", "erase.committed", "erase.told"] {
        let folder = tempfile::TempDir::new().unwrap();
        let settings = |failpoints: &'static str| {
            [
                ("SENDTRAIL_ADMIN_KEY", ADMIN_KEY),
                ("SENDTRAIL__LOG__SIMULATED", "true"),
                ("SENDTRAIL__ARCHIVE__COMMIT_SECONDS", "1"),
                ("SENDTRAIL__ARCHIVE__MERGE_SECONDS", "1"),
                ("FAILPOINTS", failpoints),
            ]
        };
        let failpoints = match point {
            "erase.buried" => "erase.buried=return",
            "erase.committed" => "erase.committed=return",
            _ => "erase.told=return",
        };
        let mut process = Process::start(folder.path(), &settings(failpoints));
        let admin = Api::new(&process.base, ADMIN_KEY).at(noon());
        let (api, _) = account_with_key(&admin).await;
        let lines: String = (0..20).map(|n| format!("{}\n", of_jane("Send", &format!("m-{n}")))).collect();
        stream(&api, lines).await;
        admin.post(&format!("{ADMIN}/clock"), &json!({"now": noon().plus(DAY)})).await.unwrap();
        let events = folder.path().join("archive/events");
        let sealed = events.join("_seals/000001.seal.json");
        eventually("the day is sealed", async || sealed.exists()).await;
        let path = format!("{PARTNER}/recipients/{JANE}");
        let reply = api.at(noon().plus(DAY)).call(Method::DELETE, &path, &[], "").await.unwrap();
        assert_eq!(reply.status, 202);
        eventually("it ends of itself", async || process.has_ended()).await;
        // As it was left, too: a tombstone that no commit names came to nothing.
        let (holds, said) = Verifiers::of(folder.path()).check(&events);
        let void = said.contains("came to nothing");
        assert!(holds && void == (point == "erase.buried"), "{point}: {said}");
        let mut process = Process::start(folder.path(), &settings(""));
        let api = Api::new(&process.base, api.key()).at(noon().plus(DAY));
        let list = async || api.get(&format!("{PARTNER}/erasures")).await.unwrap()["erasures"].take();
        eventually("it is erased", async || list().await[0]["status"] == "ERASED").await;
        assert_eq!(list().await[0]["rows"], 21, "{point}");
        process.signal("-TERM");
        assert!(process.wait().success());
        assert!(!filed(&EVENTS, &folder.path().join("archive")).await.contains("jane.doe"), "{point}");
        let (holds, said) = Verifiers::of(folder.path()).check(&events);
        assert!(holds && said.contains("20"), "{point}: {said}");
        assert!(!events.join("_seals/000001.going.json").exists(), "{point}");
    }
}

#[tokio::test]
async fn dead_letters_that_name_somebody_are_cleared() {
    let server = Server::start_with(|config| {
        config.log.simulated = true;
        config.log.partitions = 1;
    })
    .await;
    let partner = server.partner("letters").await;
    let stopped = server.stop().await;
    let account = uuid::Uuid::parse_str(&partner.account_id).unwrap();
    let of = |whose: &[u8], text: &str| [b"\x08\x01\xff", whose, text.as_bytes()].concat();
    let letters = [
        of(account.as_bytes(), " JANE.DOE@inbox.example"),
        of(account.as_bytes(), " mary-jane.doe@inbox.example"),
        of(&[9; 16], " jane.doe@inbox.example"),
    ];
    super::dead_letters::poison(&stopped, &letters.each_ref().map(Vec::as_slice)).await;
    let server = stopped.start().await;
    let partner = partner.on(&server);
    let path = format!("{ADMIN}/dead-letters");
    let list = async || server.admin.rows(&path, "dead_letters").await.unwrap();
    eventually("all are there", async || list().await.len() == 3).await;
    erased(&partner, &erase(&partner, JANE).await).await;
    let bytes: Vec<_> = list().await.iter().map(|letter| letter["payload_bytes"].clone()).collect();
    let kept = |at: usize| json!(letters[at].len());
    assert_eq!(bytes, [json!(0), kept(1), kept(2)], "not another's, and not another account's");
    assert!(list().await[0]["reason"].as_str().unwrap().contains("erased"));
    let reply = server.admin.call(Method::POST, &format!("{path}/0/0/retry"), &[], "").await.unwrap();
    assert_eq!((reply.status.as_u16(), &reply.json()["error"]), (400, &json!("INVALID_REQUEST")));
}
