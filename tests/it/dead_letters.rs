//! What cannot be applied goes to the dead letters with its offset and reason, and the rest goes on.

use sendtrail::backbone::Backbone;
use sendtrail_eventlog::Batch;
use sendtrail_schemas::codec::Wire;
use sendtrail_schemas::record::Record;
use sendtrail_schemas::topic::{Topic, TopicPartition};

use super::support::*;

/// Appends bytes to intake behind the server's back.
pub async fn poison(stopped: &Stopped, payloads: &[&[u8]]) -> u64 {
    let log = Backbone::open(&stopped.config).await.unwrap();
    let mut batch = Batch::new();
    payloads.iter().for_each(|payload| batch.push_bytes(payload));
    let offset = log.log().append(TopicPartition::new(Topic::Intake, 0), batch).await.unwrap();
    log.close();
    offset
}

#[tokio::test]
async fn nonsense_is_kept_with_its_reason_and_can_be_tried_again() {
    let server = Server::start_with(|config| {
        config.log.simulated = true;
        config.log.partitions = 1;
    })
    .await;
    let partner = server.partner("poison").await;
    partner.stream(&[partner.event("Send")]).await;
    let stopped = server.stop().await;
    let offset = poison(&stopped, &[b"\x08\x01\xffnonsense", b""]).await;
    let server = stopped.start().await;
    let partner = partner.on(&server);
    partner.stream(&[partner.event("Send"), event("Delivery", "poison.example-0")]).await;
    assert_eq!(partner.log().await.len(), 3, "the rest goes on");

    let path = format!("{ADMIN}/dead-letters");
    let list = async || server.admin.rows(&path, "dead_letters").await.unwrap();
    eventually("a dead letter", async || !list().await.is_empty()).await;
    let letters = list().await;
    let letter = &letters[0];
    assert_eq!((&letter["topic"], &letter["offset"]), (&json!("sendtrail.intake"), &json!(offset)));
    assert!(!letter["reason"].as_str().unwrap().is_empty());
    let one = server.admin.get(&format!("{path}/0/0")).await.unwrap();
    assert_eq!(one["dead_letter"]["payload_base64"], "CAH/bm9uc2Vuc2U=");

    let retried = server.admin.post(&format!("{path}/0/0/retry"), &json!({})).await.unwrap();
    assert!(retried["offset"].as_u64().unwrap() > offset);
    let before = letters.len();
    eventually("it fails again", async || list().await.len() > before).await;
    let unknown = server.admin.call(http::Method::POST, &format!("{path}/0/99/retry"), &[], "").await.unwrap();
    assert_eq!((unknown.status.as_u16(), &unknown.json()["error"]), (404, &json!("NOT_FOUND")));

    // Skips are records, so a restart skips the same.
    let server = server.restart().await;
    assert_eq!(partner.on(&server).log().await.len(), 3);
}

#[tokio::test]
async fn pages_of_large_letters_are_short_and_lead_on() {
    let server = Server::start_with(|config| {
        config.log.simulated = true;
        config.log.partitions = 1;
    })
    .await;
    server.partner("large").await;
    let stopped = server.stop().await;
    let mut payload = b"\x08\x01\xff".to_vec();
    payload.resize(3_000_000, b'x');
    poison(&stopped, &[payload.as_slice(); 4]).await;
    let server = stopped.start().await;

    let path = format!("{ADMIN}/dead-letters");
    let list = async || server.admin.rows(&path, "dead_letters").await.unwrap();
    eventually("all are there", async || list().await.len() == 4).await;
    let numbers = |letters: &[Value]| letters.iter().map(|letter| letter["seq"].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!(numbers(&list().await), [0, 1, 2, 3], "each once");
    let page = async |query: &str| {
        let page = server.admin.get(&format!("{path}?{query}")).await.unwrap();
        (numbers(page["dead_letters"].as_array().unwrap()), page["next_cursor"].clone())
    };
    assert_eq!(page("limit=1000").await, (vec![0, 1], json!("0-2")), "8 MiB");
    assert_eq!(page("limit=1&cursor=0-1").await, (vec![1], json!("0-2")));
    assert_eq!(page("limit=2&cursor=0-2").await, (vec![2, 3], Value::Null));

    let mut command = tokio::process::Command::new(super::binary::PROGRAM);
    command.args(["dead-letters", "list", "--url", server.admin.base(), "--admin-key", server.admin.key()]);
    let listed = command.output().await.unwrap();
    assert!(listed.status.success());
    assert_eq!(String::from_utf8_lossy(&listed.stdout).matches("3000000").count(), 4, "the command goes on, too");
}

#[tokio::test]
async fn a_record_of_a_newer_version_halts_its_partition_with_503() {
    let server = Server::start_with(|config| {
        config.log.simulated = true;
        config.log.partitions = 1;
    })
    .await;
    let partner = server.partner("newer").await;
    partner.stream(&[partner.event("Send")]).await;
    let stopped = server.stop().await;
    // Field 1, the version, is one more than is known.
    poison(&stopped, &[&[8, <Record as Wire>::NEWEST as u8 + 1]]).await;
    let server = stopped.start().await;
    let partner = partner.on(&server);
    eventually("it says so", async || {
        let health = server.admin.call(http::Method::GET, "/health", &[], "").await.unwrap();
        let told = health.json()["checks"]["processor"].as_str().unwrap().to_owned();
        health.status == 503 && told.contains("version")
    })
    .await;
    let (status, reply) = partner.try_send(&["success@inbox.example"]).await;
    assert_eq!(status, 503, "{reply}");
    let reply = partner.call(http::Method::POST, "/events", &[], partner.event("Send").to_string()).await;
    assert_eq!(reply.status, 503, "{}", reply.json());
    // No answer lacks nothing from now on: there is something that is not applied.
    eventually("what was applied can still be read", async || {
        let rows = partner.api.rows(&format!("{PARTNER}/events?from=2000-01-01"), "events").await.unwrap();
        assert!(rows.len() <= 1, "{rows:?}");
        rows.len() == 1
    })
    .await;
    let letters = server.admin.rows(&format!("{ADMIN}/dead-letters"), "dead_letters").await.unwrap();
    assert!(letters.is_empty(), "it is not poison");
}
