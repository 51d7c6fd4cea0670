use sendtrail_schemas::problem::Code;
use serde_json::json;

use super::*;

/// A record as KumoMTA's manual shows it, with some fields changed.
fn record(changes: Value) -> String {
    let mut record = json!({
        "type": "Delivery",
        "id": "1d98076abbbc11ed940250ebf67f93bd",
        "sender": "bounces@sender.example",
        "recipient": "user@recipient.example",
        "queue": "campaign:tenant@recipient.example",
        "site": "source2->mx.recipient.example",
        "size": 1047,
        "response": {
            "code": 250,
            "enhanced_code": {"class": 2, "subject": 0, "detail": 0},
            "content": "OK ids=8a54",
            "command": "."
        },
        "peer_address": {"name": "mx.recipient.example.", "addr": "192.0.2.27"},
        "timestamp": 1_678_069_691,
        "created": 1_678_069_690,
        "num_attempts": 1,
        "bounce_classification": "Uncategorized",
        "egress_pool": "pool0",
        "egress_source": "source2",
        "feedback_report": null,
        "meta": {},
        "headers": {},
        "delivery_protocol": "ESMTP",
        "reception_protocol": "ESMTP",
        "nodeid": "557f3ad4-2c8c-11ee-976e-782d7e12e173"
    });
    record.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    record.to_string()
}

fn one(changes: Value) -> EventFact {
    let mut facts = read(&record(changes)).unwrap();
    assert_eq!(facts.len(), 1);
    facts.remove(0)
}

fn failed(kind: &str, class: Option<&str>, code: u16) -> Value {
    json!({"type": kind, "bounce_classification": class, "response": {"code": code, "content": "no",
        "enhanced_code": {"class": code / 100, "subject": 1, "detail": 1}, "command": null}})
}

fn bounced(kind: &str, class: Option<&str>, code: u16) -> (String, String) {
    let Some(Block::Bounce(bounce)) = one(failed(kind, class, code)).block else { panic!("no bounce") };
    (bounce.bounce_type.unwrap(), bounce.bounce_sub_type.unwrap())
}

#[test]
fn a_delivery_with_all_that_it_says() {
    let fact = one(json!({
        "meta": {"campaign": "spring", "n": 5, "nested": {"a": 1}, "configuration_set_name": "news", "customer_id": "c"},
        "headers": {"Subject": "Hello", "FROM": ["Acme <hello@sender.example>"], "X-Other": "kept"},
    }));
    assert_eq!(fact.kind(), EventType::Delivery);
    assert_eq!(fact.message_id, "1d98076abbbc11ed940250ebf67f93bd");
    assert_eq!(fact.recipient, "user@recipient.example");
    assert_eq!(fact.occurred_at_nanos, Some(1_678_069_691_000_000_000));
    assert_eq!(fact.from.as_deref(), Some("Acme <hello@sender.example>"));
    assert_eq!(fact.subject.as_deref(), Some("Hello"));
    assert_eq!((fact.configuration_set_name.as_deref(), fact.customer_id.as_deref()), (Some("news"), Some("c")));
    assert_eq!(fact.tags, Tags::from([("campaign".into(), "spring".into()), ("n".into(), "5".into())]));
    let Some(Block::Delivery(delivery)) = fact.block else { panic!("no delivery") };
    assert_eq!(delivery.smtp_response.as_deref(), Some("250 2.0.0 OK ids=8a54"));
    assert_eq!(delivery.processing_time_millis, Some(1_000));
    assert_eq!(delivery.remote_mta_ip.as_deref(), Some("192.0.2.27"));
    let metadata: Value = serde_json::from_str(&fact.metadata.unwrap()).unwrap();
    assert_eq!(metadata["queue"], "campaign:tenant@recipient.example");
    assert_eq!(metadata["egress_source"], "source2");
    assert_eq!(metadata["headers"], json!({"X-Other": "kept"}));
    assert!(metadata.get("feedback_report").is_none() && metadata.get("id").is_none(), "{metadata}");
}

#[test]
fn each_type_becomes_its_event_or_none() {
    let kind = |name: &str| read(&record(json!({"type": name}))).unwrap().first().map(EventFact::kind);
    for (name, wanted) in [
        ("Reception", Some(EventType::Send)),
        ("Delivery", Some(EventType::Delivery)),
        ("Bounce", Some(EventType::Bounce)),
        ("Expiration", Some(EventType::Bounce)),
        ("AdminBounce", Some(EventType::Bounce)),
        ("OOB", Some(EventType::Bounce)),
        ("TransientFailure", Some(EventType::DeliveryDelay)),
        ("Rejection", Some(EventType::Reject)),
        ("Delayed", None),
        ("AdminRebind", None),
        ("XferOut", None),
    ] {
        assert_eq!(kind(name), wanted, "{name}");
    }
    for nothing in [
        json!({"type": "Rejection", "recipient": ""}),
        json!({"type": "Rejection", "recipient": [""]}),
        json!({"type": "Rejection", "id": ""}),
        json!({"type": "Reception", "sender": ""}),
    ] {
        assert!(read(&record(nothing.clone())).unwrap().is_empty(), "{nothing}");
    }
    assert!(read(&record(json!({"type": "OOB", "bounce_classification": "AutoReply"}))).unwrap().is_empty());
    assert!(read(&record(json!({"reception_protocol": "LogRecord"}))).unwrap().is_empty());
    assert!(read(&record(json!({"type": "Surprise"}))).unwrap_err().message().contains("Surprise"));
}

#[test]
fn only_what_is_wrong_with_the_address_is_permanent() {
    let told = |kind, class, code| {
        let (bounce_type, sub_type) = bounced(kind, class, code);
        format!("{bounce_type} {sub_type}")
    };
    assert_eq!(told("Bounce", Some("InvalidRecipient"), 550), "Permanent NoEmail");
    assert_eq!(told("Bounce", Some("InactiveMailbox"), 550), "Permanent General");
    assert_eq!(told("Bounce", Some("QuotaIssues"), 552), "Transient MailboxFull");
    assert_eq!(told("Bounce", Some("SpamBlock"), 554), "Transient ContentRejected");
    assert_eq!(told("Bounce", Some("PolicyRelated"), 550), "Transient General");
    assert_eq!(told("Bounce", Some("Uncategorized"), 550), "Permanent General");
    assert_eq!(told("Bounce", Some("our own class"), 550), "Permanent General");
    assert_eq!(told("Bounce", None, 451), "Transient General");
    assert_eq!(told("Expiration", Some("InvalidRecipient"), 551), "Transient General");
    assert_eq!(told("AdminBounce", Some("Uncategorized"), 551), "Undetermined AdminBounce");
    assert_eq!(told("OOB", Some("InvalidRecipient"), 550), "Permanent NoEmail");
    let fact = one(failed("OOB", None, 550));
    assert!(fact.is_permanent_bounce());
    let Some(Block::Bounce(bounce)) = fact.block else { panic!("no bounce") };
    assert_eq!(bounce.diagnostic_code.as_deref(), Some("smtp; 550 5.1.1 no"));
    assert_eq!((bounce.status.as_deref(), bounce.action.as_deref()), (Some("5.1.1"), Some("failed")));
    assert_eq!(bounce.reporting_mta.as_deref(), Some("dns; mx.recipient.example"));
    let Some(Block::DeliveryDelay(delay)) = one(failed("TransientFailure", Some("QuotaIssues"), 452)).block else {
        panic!("no delay")
    };
    assert_eq!(delay.delay_type.as_deref(), Some("MailboxFull"));
}

#[test]
fn a_report_is_of_whoever_complained() {
    let report = |changes: Value| {
        let mut report = json!({
            "feedback_type": "abuse", "user_agent": "SomeGenerator/1.0", "version": 1, "arrival_date": "2005-03-08T18:00:00Z",
            "original_mail_from": "<a@sender.example>", "original_rcpto_to": ["<user@example.com>"],
            "original_message": "From: <a@sender.example>\n\nSpam",
            "supplemental_trace": {"recipient": "test@example.com", "message_id": "the message", "tenant": "t"},
        });
        report.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        record(json!({"type": "Feedback", "recipient": "fbl@sender.example", "feedback_report": report}))
    };
    let facts = read(&report(json!({}))).unwrap();
    assert_eq!((facts[0].recipient.as_str(), facts[0].message_id.as_str()), ("test@example.com", "the message"));
    let Some(Block::Complaint(complaint)) = &facts[0].block else { panic!("no complaint") };
    assert_eq!(complaint.complaint_feedback_type.as_deref(), Some("abuse"));
    assert_eq!(complaint.user_agent.as_deref(), Some("SomeGenerator/1.0"));
    assert!(!facts[0].metadata.as_ref().unwrap().contains("Spam"), "messages are not kept");
    let untraced = read(&report(json!({"supplemental_trace": null}))).unwrap();
    assert_eq!(untraced[0].recipient, "user@example.com");
    assert!(read(&report(json!({"supplemental_trace": null, "original_rcpto_to": []}))).is_err());
    assert!(read(&report(json!({"feedback_type": "not-spam"}))).unwrap().is_empty());
    assert!(read(&record(json!({"type": "Feedback"}))).is_err());
}

#[test]
fn one_record_of_several_recipients_is_an_event_for_each() {
    let facts = read(&record(json!({"type": "Reception", "recipient": ["a@b.co", "<c@d.co>"]}))).unwrap();
    assert_eq!(facts.iter().map(|fact| fact.recipient.as_str()).collect::<Vec<_>>(), ["a@b.co", "c@d.co"]);
    assert_eq!(facts[0].from.as_deref(), Some("bounces@sender.example"));
}

#[test]
fn times_that_are_far_apart_say_nothing_of_how_long_it_took() {
    let took = |timestamp: i64, created: i64| {
        let fact = one(json!({"type": "Delivery", "timestamp": timestamp, "created": created}));
        match fact.block {
            Some(Block::Delivery(delivery)) => delivery.processing_time_millis,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(took(1_000_000_010, 1_000_000_007), Some(3_000));
    assert_eq!((took(9_000_000_000, -9_000_000_000), took(-9_000_000_000, 9_000_000_000)), (None, None));
}

#[test]
fn what_is_wrong_is_told() {
    for (changes, told) in [
        (json!({"timestamp": "yesterday"}), "timestamp"),
        (json!({"timestamp": 1.5}), "timestamp"),
        (json!({"timestamp": 9_223_372_036_854_775_807_i64}), "timestamp"),
        (json!({"recipient": []}), "recipient"),
        (json!({"recipient": vec!["a@b.co"; 1_001]}), "more than 1000 recipients"),
        (json!({"id": ""}), "message_id"),
        (json!({"response": "250 OK"}), "Response"),
    ] {
        let fault = read(&record(changes.clone())).unwrap_err();
        assert!(fault.message().contains(told), "{changes}: {}", fault.message());
    }
    assert_eq!(read(&record(json!({"recipient": "nobody"}))).unwrap_err().at(0).error, Code::BadRecipient.name());
    assert!(read("[]").is_err() && read("5").is_err() && read("{}").is_err());
    let named = one(json!({"timestamp": "2026-05-03T12:34:56Z", "meta": {"message_id": "ours"}, "sender": ""}));
    assert_eq!((named.message_id.as_str(), named.from), ("ours", None));
    let long =
        one(json!({"meta": {"k".repeat(400): "v"}, "headers": {"subject": "a\r\nb"}, "site": "x".repeat(40_000)}));
    assert_eq!(long.tags.keys().next().unwrap().len(), MAX_TAG);
    assert_eq!(long.subject.as_deref(), Some("a  b"));
    assert_eq!(long.metadata.as_deref(), Some(r#"{"truncated":true}"#));
}
