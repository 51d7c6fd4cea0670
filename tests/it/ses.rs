//! Amazon SES's documents, as AWS publishes them and in the envelopes they come in.

use http::Method;

use super::support::*;

fn bounce(message: &str) -> Value {
    json!({"eventType": "Bounce", "bounce": {"bounceType": "Permanent", "bounceSubType": "General",
        "bouncedRecipients": [{"emailAddress": "a@x.example", "action": "failed", "status": "5.1.1", "diagnosticCode": "smtp; 550"},
            {"emailAddress": "b@x.example"}], "timestamp": "2026-05-01T11:00:40.641Z", "feedbackId": "f-1", "reportingMTA": "dsn; mta"},
        "mail": {"timestamp": "2026-05-01T11:00:40.502Z", "source": "Sender <s@ses.example>", "messageId": message,
            "destination": ["a@x.example", "b@x.example"], "headersTruncated": false,
            "commonHeaders": {"from": ["Sender <s@ses.example>"], "to": ["a@x.example"], "subject": "From SES"},
            "tags": {"ses:configuration-set": ["ConfigSet"], "campaign": ["june"]}}})
}

#[tokio::test]
async fn bare_in_sns_and_in_eventbridge() {
    let server = Server::start().await;
    let partner = server.partner("ses").await;
    let sns =
        json!({"Type": "Notification", "MessageId": "x", "TopicArn": "arn", "Message": bounce("m-2").to_string()});
    let bridge = json!({"version": "0", "detail-type": "Email Bounced", "source": "aws.ses", "detail": bounce("m-3")});
    let mut feedback = bounce("m-4");
    feedback["notificationType"] = feedback["eventType"].take();
    feedback.as_object_mut().unwrap().remove("eventType");
    let body = [bounce("m-1"), sns, bridge, feedback, json!({"eventType": "Nonsense"}), bounce("m-1")]
        .map(|document| document.to_string())
        .join("\n");
    let reply = partner
        .call(Method::POST, "/events?format=ses", &[("content-type", "application/x-ndjson")], body)
        .await
        .json();
    assert_eq!(reply["accepted"], 10, "one event a recipient: {reply}");
    assert_eq!(reply["rejected"][0]["index"], 4, "of documents");
    let log = partner.log().await;
    assert_eq!(log.len(), 8, "the repeated document is a duplicate");
    let event = &log[0];
    assert_eq!((&event["message_id"], &event["recipient"]), (&json!("m-1"), &json!("a@x.example")));
    assert_eq!(event["occurred_at"], "2026-05-01T11:00:40.641Z");
    assert_eq!((&event["from"], &event["subject"]), (&json!("Sender <s@ses.example>"), &json!("From SES")));
    assert_eq!((&event["configuration_set_name"], &event["tags"]), (&json!("ConfigSet"), &json!({"campaign": "june"})));
    assert_eq!(event["bounce"]["diagnosticCode"], "smtp; 550");
    assert_eq!(event["metadata"]["mail"]["headersTruncated"], false, "what has no field of ours is kept: {event}");
    let reputation = partner.get("/reputation").await;
    assert_eq!(reputation["bounced"], 8);
    assert_eq!(partner.rows("/suppression", "suppressions").await.len(), 2);
}

#[tokio::test]
async fn what_ses_hands_on_is_no_fault_and_many_recipients_are_bounded() {
    let server = Server::start().await;
    let partner = server.partner("odd").await;
    let mut long = bounce("m-long");
    long["mail"]["headers"] = json!([{"name": "X-Long", "value": "x".repeat(40_000)}]);
    long["mail"]["commonHeaders"]["subject"] = "folded\r\n subject".into();
    long["mail"]["tags"]["wordy"] = json!(["w".repeat(300)]);
    let reply = partner.call(Method::POST, "/events?format=ses", &[], long.to_string()).await.json();
    assert_eq!(reply["accepted"], 2, "{reply}");
    assert_eq!(partner.log().await[0]["subject"], "folded   subject");

    let mut crowd = bounce("m-crowd");
    crowd["bounce"]["bouncedRecipients"] =
        (0..1_001).map(|n| json!({"emailAddress": format!("a{n}@x.example")})).collect();
    let reply = partner.call(Method::POST, "/events?format=ses", &[], crowd.to_string()).await.json();
    assert_eq!((&reply["accepted"], &reply["rejected"][0]["index"]), (&json!(0), &json!(0)));
    crowd["bounce"]["bouncedRecipients"].as_array_mut().unwrap().truncate(900);
    let many: Vec<&Value> = (0..12).map(|_| &crowd).collect();
    let reply = partner.call(Method::POST, "/events?format=ses", &[], json!(many).to_string()).await;
    assert_eq!((reply.status.as_u16(), &reply.json()["error"]), (413, &json!("PAYLOAD_TOO_LARGE")));
}

#[tokio::test]
async fn an_unsubscribe_from_everything_suppresses() {
    let server = Server::start().await;
    let partner = server.partner("topics").await;
    let document = |message: &str, all: bool| {
        json!({"eventType": "Subscription", "mail": {"timestamp": "2026-05-01T10:00:00Z", "messageId": message, "destination": [format!("{message}@x.example")]},
            "subscription": {"contactList": "c", "timestamp": "2026-05-01T11:00:00Z", "source": "UnsubscribeHeader",
                "newTopicPreferences": {"unsubscribeAll": all, "topicSubscriptionStatus": [{"topicName": "t", "subscriptionStatus": "OptOut"}]}}})
    };
    let body = json!([document("some", false), document("all", true)]).to_string();
    let reply = partner.call(Method::POST, "/events?format=ses", &[], body).await.json();
    assert_eq!(reply["accepted"], 2, "{reply}");
    assert_eq!(kinds(&partner.log().await), ["Subscription", "Subscription"]);
    let rows = partner.rows("/suppression", "suppressions").await;
    assert_eq!(
        (rows.len(), &rows[0]["email"], &rows[0]["reason"]),
        (1, &json!("all@x.example"), &json!("UNSUBSCRIBE"))
    );
}
