//! Who is not mailed again.

use http::Method;

use super::support::*;

#[tokio::test]
async fn bounces_and_complaints_suppress_as_their_set_says() {
    let server = Server::start().await;
    let partner = server.partner("list").await;
    partner.set(json!({"name": "bounces", "suppression_options": "BOUNCE"})).await;
    partner.set(json!({"name": "none", "suppression_options": "NONE"})).await;
    let told = |kind: &str, message: &str, set: &str| {
        let mut event = event(kind, message);
        if !set.is_empty() {
            event["configuration_set_name"] = set.into();
        }
        event
    };
    partner
        .stream(&[
            told("HardBounce", "default-bounce", ""),
            told("Complaint", "default-complaint", ""),
            told("SoftBounce", "soft", ""),
            told("HardBounce", "bounces-bounce", "bounces"),
            told("Complaint", "bounces-complaint", "bounces"),
            told("HardBounce", "none-bounce", "none"),
            told("HardBounce", "unknown-set", "nobody made this"),
        ])
        .await;
    let rows = async |path: &str| {
        let rows = partner.rows(path, "suppressions").await;
        rows.iter()
            .map(|row| format!("{} {}", row["email"].as_str().unwrap(), row["reason"].as_str().unwrap()))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        rows("/suppression").await,
        [
            "to-bounces-bounce@inbox.example BOUNCE",
            "to-default-bounce@inbox.example BOUNCE",
            "to-default-complaint@inbox.example COMPLAINT",
            "to-unknown-set@inbox.example BOUNCE",
        ]
    );
    assert_eq!(rows("/suppression?reason=COMPLAINT").await.len(), 1);
    assert_eq!(rows("/suppression?search=BOUNCES").await.len(), 1);
    assert_eq!(rows("/suppression?search=nobody").await.len(), 0);
}

#[tokio::test]
async fn a_suppressed_recipient_is_rejected_and_the_others_are_sent() {
    let server = Server::start().await;
    let partner = server.partner("mixed").await;
    let put = partner
        .call(Method::PUT, "/suppression/No.More@Inbox.example", &[], r#"{"reason":"UNSUBSCRIBE","details":"asked"}"#)
        .await;
    assert_eq!(put.status, 200);
    let (status, reply) = partner.try_send(&["no.more@INBOX.example", "success@inbox.example"]).await;
    assert_eq!(status, 200);
    assert_eq!(
        (&reply["results"][0]["status"], &reply["results"][0]["reason"]),
        (&json!("rejected"), &json!("suppressed"))
    );
    assert_eq!(reply["results"][1]["status"], "queued");
    let events = partner.log().await;
    let reject = events.iter().find(|event| event["event_type"] == "Reject").unwrap();
    assert_eq!(reject["reject"]["reason"], "address on suppression list");
    assert_eq!(reject["message_id"], reply["results"][0]["message_id"]);
    assert_eq!(partner.get("/quotas").await["sent_today"], 1, "a rejected recipient uses no quota");

    let other = server.partner("other").await;
    assert_eq!(
        other.try_send(&["no.more@inbox.example"]).await.1["results"][0]["status"],
        "queued",
        "lists are an account's own"
    );

    assert_eq!(partner.call(Method::DELETE, "/suppression/no.more@inbox.example", &[], "").await.status, 200);
    assert_eq!(partner.call(Method::DELETE, "/suppression/no.more@inbox.example", &[], "").await.status, 404);
    assert_eq!(partner.try_send(&["no.more@inbox.example"]).await.1["results"][0]["status"], "queued");
}

#[tokio::test]
async fn pages_are_whole() {
    let server = Server::start().await;
    let partner = server.partner("pages").await;
    partner.stream(&(0..25).map(|_| partner.event("HardBounce")).collect::<Vec<_>>()).await;
    let mut emails = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = partner.get(&format!("/suppression?limit=10{cursor}")).await;
        emails.extend(
            page["suppressions"].as_array().unwrap().iter().map(|row| row["email"].as_str().unwrap().to_owned()),
        );
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    let distinct: std::collections::BTreeSet<_> = emails.iter().collect();
    assert_eq!((emails.len(), distinct.len()), (25, 25));
}
