//! Documents of the shapes that AWS publishes.

use sendtrail_schemas::problem::Code;
use serde_json::json;

use super::*;

fn mail() -> Value {
    json!({
        "timestamp": "2026-10-09T23:00:00.123Z",
        "source": "sender@example.com",
        "sourceArn": "arn:aws:ses:us-east-1:123456789012:identity/sender@example.com",
        "sendingAccountId": "123456789012",
        "messageId": "EXAMPLE7c191be45",
        "destination": ["one@example.com", "two@example.com"],
        "headersTruncated": false,
        "headers": [{"name": "From", "value": "sender@example.com"}],
        "commonHeaders": {
            "from": ["Sender Name <sender@example.com>"], "to": ["one@example.com"],
            "messageId": "EXAMPLE7c191be45", "subject": "Message sent from Amazon SES"
        },
        "tags": {
            "ses:configuration-set": ["ConfigSet"], "ses:source-ip": ["192.0.2.0"],
            "campaign": ["june"], "cities": ["berlin", "paris"]
        }
    })
}

fn event(kind: &str, block: Value) -> Value {
    let mut document = json!({"eventType": kind, "mail": mail()});
    let name = match kind {
        "Rendering Failure" => "failure".to_owned(),
        other => other[..1].to_lowercase() + &other[1..],
    };
    document[name] = block;
    document
}

fn ok(document: &Value) -> Vec<EventFact> {
    read(&document.to_string()).unwrap()
}

#[test]
fn a_bounce_becomes_one_event_a_recipient() {
    let facts = ok(&event(
        "Bounce",
        json!({
            "bounceType": "Permanent", "bounceSubType": "General",
            "bouncedRecipients": [
                {"emailAddress": "one@example.com", "action": "failed", "status": "5.1.1", "diagnosticCode": "smtp; 550 5.1.1"},
                {"emailAddress": "Two <two@example.com>"}
            ],
            "timestamp": "2026-10-09T23:00:05.500Z", "feedbackId": "f-1", "reportingMTA": "dsn; mta.example.com"
        }),
    ));
    assert_eq!(facts.len(), 2);
    let one = &facts[0];
    assert_eq!((one.message_id.as_str(), one.recipient.as_str()), ("EXAMPLE7c191be45", "one@example.com"));
    assert_eq!(one.from.as_deref(), Some("Sender Name <sender@example.com>"));
    assert_eq!(one.subject.as_deref(), Some("Message sent from Amazon SES"));
    assert_eq!(one.configuration_set_name.as_deref(), Some("ConfigSet"));
    assert_eq!(one.tags, Tags::from([("campaign".into(), "june".into()), ("cities".into(), "berlin,paris".into())]));
    assert_eq!(one.occurred_at_nanos, Some(parse_nanos("2026-10-09T23:00:05.500Z").unwrap()));
    assert!(one.is_permanent_bounce());
    let Some(Block::Bounce(bounce)) = &one.block else { panic!("no block") };
    assert_eq!((bounce.status.as_deref(), bounce.feedback_id.as_deref()), (Some("5.1.1"), Some("f-1")));
    let Some(Block::Bounce(bounce)) = &facts[1].block else { panic!("no block") };
    assert_eq!((facts[1].recipient.as_str(), bounce.status.as_deref()), ("two@example.com", None));
    // What has no field of ours is kept.
    let metadata: Value = serde_json::from_str(one.metadata.as_deref().unwrap()).unwrap();
    assert_eq!(metadata["mail"]["sendingAccountId"], "123456789012");
    assert_eq!(metadata["mail"]["tags"]["ses:source-ip"][0], "192.0.2.0");
    assert_eq!(metadata["mail"]["commonHeaders"]["to"][0], "one@example.com");
    assert_eq!(metadata["mail"].get("messageId"), None);
}

#[test]
fn every_type_that_ses_publishes_is_read() {
    let time = "2026-10-09T23:00:09.000Z";
    let cases = [
        (event("Send", json!({})), EventType::Send, 2, mail()["timestamp"].as_str().unwrap().to_owned()),
        (
            event("Reject", json!({"reason": "Bad content"})),
            EventType::Reject,
            2,
            mail()["timestamp"].as_str().unwrap().to_owned(),
        ),
        (
            event("Rendering Failure", json!({"templateName": "T", "errorMessage": "Attribute 'x' is not present"})),
            EventType::RenderingFailure,
            2,
            mail()["timestamp"].as_str().unwrap().to_owned(),
        ),
        (
            event(
                "Delivery",
                json!({"timestamp": time, "processingTimeMillis": 11893, "recipients": ["one@example.com"], "smtpResponse": "250 ok", "reportingMTA": "mta"}),
            ),
            EventType::Delivery,
            1,
            time.into(),
        ),
        (
            event(
                "Complaint",
                json!({"timestamp": time, "complainedRecipients": [{"emailAddress": "one@example.com"}], "feedbackId": "f", "complaintFeedbackType": "abuse", "complaintSubType": null, "arrivalDate": time}),
            ),
            EventType::Complaint,
            1,
            time.into(),
        ),
        (
            event("Open", json!({"ipAddress": "192.0.2.1", "timestamp": time, "userAgent": "UA"})),
            EventType::Open,
            2,
            time.into(),
        ),
        (
            event(
                "Click",
                json!({"ipAddress": "192.0.2.1", "link": "https://example.com", "linkTags": {"a": ["b"]}, "timestamp": time, "userAgent": "UA"}),
            ),
            EventType::Click,
            2,
            time.into(),
        ),
        (
            event(
                "DeliveryDelay",
                json!({"timestamp": time, "delayType": "TransientCommunicationFailure", "expirationTime": "2026-10-10T13:59:58.150Z", "delayedRecipients": [{"emailAddress": "one@example.com", "status": "4.4.1", "diagnosticCode": "smtp; 421"}]}),
            ),
            EventType::DeliveryDelay,
            1,
            time.into(),
        ),
        (
            event(
                "Subscription",
                json!({"contactList": "L", "timestamp": time, "source": "UnsubscribeHeader", "newTopicPreferences": {"unsubscribeAll": true, "topicSubscriptionStatus": []}, "oldTopicPreferences": {"unsubscribeAll": false}}),
            ),
            EventType::Subscription,
            2,
            time.into(),
        ),
    ];
    for (document, kind, count, occurred) in cases {
        let facts = ok(&document);
        assert_eq!((facts.len(), facts[0].kind()), (count, kind), "{kind:?}");
        assert_eq!(facts[0].occurred_at_nanos, Some(parse_nanos(&occurred).unwrap()), "{kind:?}");
        assert_eq!(facts[0].block.is_some(), kind != EventType::Send, "{kind:?}");
        if kind == EventType::Subscription {
            assert!(matches!(&facts[0].block, Some(Block::Subscription(s)) if s.unsubscribe_all == Some(true)));
        }
        if kind == EventType::Click {
            assert!(facts[0].metadata.as_ref().unwrap().contains(r#""linkTags":{"a":["b"]}"#));
        }
    }
}

#[test]
fn feedback_notifications_and_envelopes_are_read() {
    let mut notification = event(
        "Complaint",
        json!({"timestamp": "2026-10-09T23:00:09.000Z", "complainedRecipients": [{"emailAddress": "one@example.com"}]}),
    );
    let kind = notification.as_object_mut().unwrap().remove("eventType").unwrap();
    notification["notificationType"] = kind;
    let bare = ok(&notification);
    assert_eq!(bare[0].kind(), EventType::Complaint);
    let sns = json!({
        "Type": "Notification", "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324", "TopicArn": "arn:aws:sns:us-east-1:1:t",
        "Message": notification.to_string(), "Timestamp": "2026-10-09T23:00:10.000Z", "SignatureVersion": "1"
    });
    assert_eq!(ok(&sns), bare);
    let bridge = json!({"version": "0", "id": "x", "detail-type": "Email Complaint Received", "source": "aws.ses", "detail": notification});
    assert_eq!(ok(&bridge), bare);
    assert!(ok(&json!({"Type": "Notification", "Message": "Successfully validated SNS topic for Amazon SES event publishing."})).is_empty());
    assert!(ok(&json!({"notificationType": "AmazonSnsSubscriptionSucceeded", "message": "…"})).is_empty());
}

#[test]
fn what_is_not_an_event_is_refused_by_name() {
    let fault = |document: &Value| read(&document.to_string()).unwrap_err();
    assert!(
        fault(&json!({"Type": "SubscriptionConfirmation", "Message": "You have chosen…"})).message.contains("confirm")
    );
    assert_eq!(fault(&json!({"Type": "Notification", "Message": "not JSON"})).code, Code::InvalidRequest);
    assert_eq!(fault(&json!({"eventType": "Nonsense", "mail": mail()})).code, Code::InvalidRequest);
    assert_eq!(fault(&json!({"eventType": "Open"})).message, "mail is missing");
    assert!(fault(&json!({"mail": mail()})).message.contains("eventType"));
    let mut nobody = event("Open", json!({}));
    nobody["mail"]["destination"] = json!([]);
    assert_eq!(fault(&nobody).message, "no recipient is named");
    nobody["mail"]["destination"] = json!(["not an address"]);
    assert_eq!(fault(&nobody).code, Code::BadRecipient);
    let mut late = event("Open", json!({"timestamp": "yesterday"}));
    late["open"]["userAgent"] = json!("UA");
    assert!(fault(&late).message.contains("timestamp"));
    assert_eq!(read("[]").unwrap_err().code, Code::InvalidRequest);
}
