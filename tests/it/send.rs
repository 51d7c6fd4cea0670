//! Sends, from the call to the events of each message.

use super::support::*;

#[tokio::test]
async fn each_recipient_has_a_message_of_its_own() {
    let server = Server::start().await;
    let partner = server.partner("sender").await;
    let message = json!({"from": "News <news@sender.example>", "to": ["Ann <success@a.example>", "bounce+1@b.example"],
        "cc": "complaint@c.example", "bcc": ["success@d.example"], "reply_to": "help@sender.example", "subject": "Grüße 🎉",
        "html_body": "<p>Hello <b>there</b></p>", "tags": {"campaign": "june"}, "metadata": {"order": 7},
        "category": "marketing", "customer_id": "c-1"});
    let (status, reply) = partner.try_send_body(&message).await;
    assert_eq!(status, 200, "{reply}");
    let results = reply["results"].as_array().unwrap();
    let ids: std::collections::HashSet<&str> = results.iter().map(|row| row["message_id"].as_str().unwrap()).collect();
    assert_eq!((results.len(), ids.len()), (4, 4));
    assert!(results.iter().all(|row| row["status"] == "queued" && row["reason"].is_null()));

    server.tick(noon().plus(MINUTE)).await;
    let status_of = async |at: usize| {
        let path = format!("/emails/{}", results[at]["message_id"].as_str().unwrap());
        partner.get(&path).await["email"]["status"].as_str().unwrap().to_owned()
    };
    eventually("the simulator has delivered", async || status_of(0).await == "delivered").await;
    eventually("a bounce", async || status_of(1).await == "bounced").await;
    eventually("a complaint", async || status_of(2).await == "complained").await;
    let email = &partner.get(&format!("/emails/{}", results[0]["message_id"].as_str().unwrap())).await["email"];
    assert_eq!(email["send_id"], reply["send_id"]);
    assert_eq!(kinds(email["events"].as_array().unwrap()), ["Send", "Delivery"]);
    for event in email["events"].as_array().unwrap() {
        // What only the Send knew, its later events know too.
        assert_eq!(event["subject"], "Grüße 🎉");
        assert_eq!(event["tags"], json!({"campaign": "june"}));
        assert_eq!(event["metadata"], json!({"order": 7}));
        assert_eq!((&event["category"], &event["customer_id"]), (&json!("marketing"), &json!("c-1")));
    }
    let quotas = partner.get("/quotas").await;
    assert_eq!(quotas["sent_today"], 4);
}

#[tokio::test]
async fn large_bodies_and_attachments_go_by_the_blob_store() {
    let server = Server::start().await;
    let partner = server.partner("large").await;
    let mut message = partner.message(&["success@inbox.example"]);
    message["html_body"] = "x".repeat(200_000).into();
    message["attachments"] = json!([{"filename": "ü.txt", "content_type": "text/plain", "content_base64": "aGVsbG8="}]);
    let (status, reply) = partner.try_send_body(&message).await;
    assert_eq!(status, 200, "{reply}");
    let blobs: Vec<_> = walk(&server.config.data.dir.join("blobs"));
    assert_eq!(blobs.len(), 1, "{blobs:?}");
    server.tick(noon().plus(MINUTE)).await;
    let path = format!("/emails/{}", reply["results"][0]["message_id"].as_str().unwrap());
    eventually("delivered from the blob", async || partner.get(&path).await["email"]["status"] == "delivered").await;

    message["html_body"] = "x".repeat(11 << 20).into();
    let (status, reply) = partner.try_send_body(&message).await;
    assert_eq!((status, &reply["error"]), (413, &json!("PAYLOAD_TOO_LARGE")));
}

pub fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        if entry.path().is_dir() {
            files.extend(walk(&entry.path()));
        } else {
            files.push(entry.path());
        }
    }
    files
}

#[tokio::test]
async fn a_disabled_set_rejects_and_an_untracked_one_does_not_count() {
    let server = Server::start().await;
    let partner = server.partner("sets").await;
    partner.set(json!({"name": "off", "sending_enabled": false})).await;
    partner.set(json!({"name": "untracked", "reputation_tracking_enabled": false})).await;
    let mut message = partner.message(&["success@inbox.example"]);
    message["configuration_set_name"] = "off".into();
    let (status, reply) = partner.try_send_body(&message).await;
    assert_eq!((status, &reply["results"][0]["status"]), (200, &json!("rejected")));
    message["configuration_set_name"] = "untracked".into();
    assert_eq!(partner.try_send_body(&message).await.0, 200);
    message["configuration_set_name"] = "Off".into();
    assert_eq!(partner.try_send_body(&message).await.1["error"], "CONFIG_SET_NOT_FOUND", "names have case");

    assert_eq!(partner.get("/reputation").await["sent"], 0);
    let events = partner.log().await;
    assert_eq!(kinds(&events)[..2], ["Reject", "Send"]);
    assert_eq!((&events[1]["counted"], &events[0]["counted"]), (&json!(false), &json!(false)));
    assert_eq!(partner.get("/stats?from=2026-05-01&to=2026-05-02").await["totals"]["sends"], 1, "/stats counts it");
}
