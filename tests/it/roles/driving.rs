//! Traffic that is insisted on while servers come and go, and the recount of it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use parking_lot::Mutex;
use sendtrail::client::Api;
use sendtrail_schemas::codec;
use sendtrail_schemas::record::{Body, Record};

use super::fleet::{Fleet, PARTITIONS, message};
use crate::binary::Process;
use crate::kafka::consume;
use crate::support::*;

/// Where the two servers are that take requests: they move when they are started again.
pub type Doors = Arc<Mutex<[String; 2]>>;

/// What was acknowledged.
#[derive(Default)]
pub struct Acknowledged {
    pub sends: Vec<String>,
    pub bounces: Vec<String>,
    /// By `/send`.
    pub mail: Vec<String>,
}

/// Says something until it is acknowledged, at whichever door is open.
pub async fn insist(doors: &Doors, key: &str, path: &str, headers: &[(&str, &str)], body: String) -> Value {
    for attempt in 0.. {
        let base = doors.lock()[attempt % 2].clone();
        let api = Api::new(&base, key);
        match api.call(Method::POST, &format!("{PARTNER}{path}"), headers, body.clone()).await {
            Ok(reply) if reply.status == 200 => return reply.json(),
            Ok(reply) => assert_eq!(reply.status, 503, "{}", reply.json()),
            Err(_) => {}
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    unreachable!()
}

/// Streams events and sends mail, batch after batch, as long as it should.
pub async fn drive(doors: Doors, key: String, stream: usize, goes_on: impl Fn(usize) -> bool) -> Acknowledged {
    const BATCH: usize = 500;
    let mut acknowledged = Acknowledged::default();
    for batch in (0..).take_while(|batch| goes_on(*batch)) {
        let ids: Vec<String> = (0..BATCH).map(|n| format!("{stream}-{batch}-{n}")).collect();
        let bounced = &ids[..BATCH / 50];
        let told = ids.iter().map(|id| event("Send", id)).chain(bounced.iter().map(|id| event("HardBounce", id)));
        // And one copy.
        let told = told.chain([event("Send", &ids[0])]);
        let body: String = told.map(|event| format!("{event}\n")).collect();
        let reply = insist(&doors, &key, "/events", &[("content-type", "application/x-ndjson")], body).await;
        assert_eq!(reply["rejected"], json!([]), "{reply}");
        acknowledged.bounces.extend(bounced.iter().cloned());
        acknowledged.sends.extend(ids);
        let once = format!("{stream}-{batch}");
        let headers = [("content-type", "application/json"), ("idempotency-key", &*once)];
        let reply = insist(&doors, &key, "/send", &headers, message(&format!("success+{once}@inbox.example"))).await;
        acknowledged.mail.push(reply["results"][0]["message_id"].as_str().unwrap().to_owned());
    }
    acknowledged
}

/// Compares everything that is told of an account with what was acknowledged.
pub async fn check(query: &Process, front: &Process, key: &str, acknowledged: &Acknowledged) {
    let (api, all) = (Api::new(&query.base, key), acknowledged);
    // A message that was sent is delivered at once by the simulator's address.
    let expected = [all.sends.len() + all.mail.len(), all.bounces.len(), all.mail.len()];
    let totals = async || {
        // The engine may be busy with other tests.
        let Ok(stats) = api.get(&format!("{PARTNER}/stats")).await else { return [0; 3] };
        let totals = &stats["totals"];
        ["sends", "permanent_bounces", "deliveries"].map(|name| totals[name].as_u64().unwrap() as usize)
    };
    eventually("every message is delivered", async || totals().await == expected).await;
    let reputation = whole(&api, "/reputation").await;
    assert_eq!((&reputation["sent"], &reputation["bounced"]), (&json!(expected[0]), &json!(expected[1])));
    let mut events = whole_rows(&api, "/events", "events").await;
    events.sort_by_key(|event| event["seq"].as_u64());
    let seq = |event: &Value| event["seq"].as_u64().unwrap();
    assert!(events.windows(2).all(|pair| seq(&pair[0]) < seq(&pair[1])), "each number once");
    let of = |kind: &str| {
        let of = events.iter().filter(|event| event["event_type"] == kind);
        of.map(|event| event["message_id"].as_str().unwrap().to_owned()).collect::<HashSet<_>>()
    };
    assert_eq!(events.len(), expected.iter().sum::<usize>());
    assert_eq!(of("Send"), all.sends.iter().chain(&all.mail).cloned().collect());
    assert_eq!(of("Bounce"), all.bounces.iter().cloned().collect());
    assert_eq!(of("Delivery"), all.mail.iter().cloned().collect());
    let suppressed = whole_rows(&Api::new(&front.base, key), "/suppression", "suppressions").await;
    assert_eq!(suppressed.len(), all.bounces.len());
}

/// Webhooks of mail only: what was streamed names no set. At least once, each with an identifier of its own.
pub async fn check_webhooks(receiver: &Receiver, mail: usize) {
    let told = || receiver.posts("/").iter().map(|post| post.header("webhook-id").to_owned()).collect::<HashSet<_>>();
    eventually("every webhook came", async || told().len() >= 2 * mail).await;
    assert_eq!(told().len(), 2 * mail);
}

/// The logic by which each partition decides, one after the other, as the log tells it.
pub fn logic(fleet: &Fleet) -> Vec<Vec<u32>> {
    let intake = format!("{}.intake", fleet.setting("NAMESPACE"));
    let records = tokio::task::block_in_place(|| consume(&fleet.setting("BOOTSTRAP_SERVERS"), &intake, 4));
    let mut found = vec![Vec::new(); PARTITIONS];
    for (partition, _, payload) in records {
        if let Some(Body::Settings(settings)) = codec::decode::<Record>(&payload).unwrap().body {
            found[partition as usize].push(settings.logic_version);
        }
    }
    found
}
