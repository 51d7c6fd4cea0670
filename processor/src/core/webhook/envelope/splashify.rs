//! S2's SES-shaped body.

use sendtrail_schemas::address;
use sendtrail_schemas::block::Block;
use sendtrail_schemas::event::Event;
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::time::Millis;
use serde_json::{Map, Value, json};

/// An object without the fields that are null.
fn compact(value: Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(fields.into_iter().filter(|(_, value)| !value.is_null()).collect()),
        other => other,
    }
}

/// The body.
pub(super) fn body(event: &Event) -> Vec<u8> {
    let timestamp = event.occurred();
    let recipient = &event.recipient;
    let mut mail = json!({
        "timestamp": Millis(event.sent_at.unwrap_or(event.occurred_at)),
        "messageId": event.message_id,
        "source": event.from.as_deref().map(address::bare).unwrap_or_default(),
        "destination": [recipient],
    });
    if !event.tags.is_empty() {
        mail["tags"] = json!(event.tags);
    }
    let (name, block) = match event.kind() {
        EventType::Send => ("send", json!({})),
        EventType::Delivery => {
            let block = match &event.block {
                Some(Block::Delivery(block)) => block.clone(),
                _ => Default::default(),
            };
            let told = json!({
                "timestamp": timestamp, "recipients": [recipient], "smtpResponse": block.smtp_response,
                "processingTimeMillis": block.processing_time_millis, "reportingMTA": block.reporting_mta,
            });
            ("delivery", told)
        }
        EventType::Bounce => {
            let block = match &event.block {
                Some(Block::Bounce(block)) => block.clone(),
                _ => Default::default(),
            };
            let bounced = compact(json!({
                "emailAddress": recipient, "diagnosticCode": block.diagnostic_code, "status": block.status,
                "action": block.action,
            }));
            let told = json!({
                "timestamp": timestamp,
                "bounceType": block.bounce_type.unwrap_or_else(|| "Undetermined".into()),
                "bounceSubType": block.bounce_sub_type.unwrap_or_else(|| "Undetermined".into()),
                "bouncedRecipients": [bounced], "reportingMTA": block.reporting_mta, "feedbackId": block.feedback_id,
            });
            ("bounce", told)
        }
        EventType::Complaint => {
            let block = match &event.block {
                Some(Block::Complaint(block)) => block.clone(),
                _ => Default::default(),
            };
            let told = json!({
                "timestamp": timestamp, "complaintFeedbackType": block.complaint_feedback_type,
                "complainedRecipients": [{"emailAddress": recipient}], "userAgent": block.user_agent,
                "feedbackId": block.feedback_id,
            });
            ("complaint", told)
        }
        EventType::DeliveryDelay => {
            let block = match &event.block {
                Some(Block::DeliveryDelay(block)) => block.clone(),
                _ => Default::default(),
            };
            let told = json!({
                "timestamp": timestamp, "delayType": block.delay_type, "delayedRecipients": [recipient],
                "expirationTime": block.expiration_time,
            });
            ("deliveryDelay", told)
        }
        kind => (kind.block_name(), with_timestamp(kind, timestamp, block_value(event))),
    };
    json!({"eventType": event.kind().name(), "mail": mail, name: compact(block)}).to_string().into_bytes()
}

/// Opens and clicks tell when; rejects, failures and replies do not (S2 "Event Types").
fn with_timestamp(kind: EventType, timestamp: Millis, block: Value) -> Value {
    match block {
        Value::Object(fields) if matches!(kind, EventType::Open | EventType::Click) => {
            let mut told = Map::from_iter([("timestamp".to_owned(), json!(timestamp))]);
            told.extend(fields);
            Value::Object(told)
        }
        other => other,
    }
}

/// The block of an event as it is shown.
pub(super) fn block_value(event: &Event) -> Value {
    let value = match &event.block {
        None => return json!({}),
        Some(Block::Bounce(block)) => serde_json::to_value(block),
        Some(Block::Complaint(block)) => serde_json::to_value(block),
        Some(Block::Delivery(block)) => serde_json::to_value(block),
        Some(Block::Open(block)) => serde_json::to_value(block),
        Some(Block::Click(block)) => serde_json::to_value(block),
        Some(Block::Reject(block)) => serde_json::to_value(block),
        Some(Block::DeliveryDelay(block)) => serde_json::to_value(block),
        Some(Block::RenderingFailure(block)) => serde_json::to_value(block),
        Some(Block::Reply(block)) => serde_json::to_value(block),
        Some(Block::Subscription(block)) => serde_json::to_value(block),
        Some(Block::StatusChange(block)) => serde_json::to_value(block),
        Some(Block::WebhookChange(block)) => serde_json::to_value(block),
        Some(Block::Lifecycle(block)) => serde_json::to_value(block),
        Some(Block::Activity(block)) => serde_json::to_value(block),
    };
    // Blocks are plain structs, which always serialize.
    value.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{event, told};
    use super::*;
    use sendtrail_schemas::block::{Bounce, Click, Complaint, Delivery, DeliveryDelay, Reject};
    use sendtrail_schemas::destination::Dialect;

    #[test]
    fn splashify_bodies_are_those_of_the_seed() {
        let mail = json!({
            "timestamp": "2026-05-03T12:34:56.123Z", "messageId": "550e8400", "source": "hello@yourcompany.com",
            "destination": ["customer@example.com"], "tags": {"env": "prod", "welcome": ""},
        });
        let time = "2026-05-03T12:34:58.789Z";
        let bounce = Bounce {
            bounce_type: Some("Permanent".into()),
            bounce_sub_type: Some("no_such_user".into()),
            diagnostic_code: Some("550 5.1.1 user unknown".into()),
            ..Bounce::default()
        };
        let complaint = Complaint { complaint_feedback_type: Some("abuse".into()), ..Complaint::default() };
        let click = Click {
            link: Some("https://x.example".into()),
            ip_address: Some("203.0.113.42".into()),
            user_agent: Some("UA".into()),
        };
        let delay = DeliveryDelay { delay_type: Some("TemporaryFailure".into()), ..DeliveryDelay::default() };
        let cases = [
            (EventType::Send, None, "send", json!({})),
            (
                EventType::Delivery,
                Some(Block::Delivery(Delivery { smtp_response: Some("250 OK".into()), ..Delivery::default() })),
                "delivery",
                json!({"timestamp": time, "recipients": ["customer@example.com"], "smtpResponse": "250 OK"}),
            ),
            (
                EventType::Bounce,
                Some(Block::Bounce(bounce)),
                "bounce",
                json!({"timestamp": time, "bounceType": "Permanent", "bounceSubType": "no_such_user",
                    "bouncedRecipients": [{"emailAddress": "customer@example.com", "diagnosticCode": "550 5.1.1 user unknown"}]}),
            ),
            (
                EventType::Bounce,
                None,
                "bounce",
                json!({"timestamp": time, "bounceType": "Undetermined", "bounceSubType": "Undetermined",
                    "bouncedRecipients": [{"emailAddress": "customer@example.com"}]}),
            ),
            (
                EventType::Complaint,
                Some(Block::Complaint(complaint)),
                "complaint",
                json!({"timestamp": time, "complaintFeedbackType": "abuse", "complainedRecipients": [{"emailAddress": "customer@example.com"}]}),
            ),
            (
                EventType::Click,
                Some(Block::Click(click)),
                "click",
                json!({"timestamp": time, "ipAddress": "203.0.113.42", "userAgent": "UA", "link": "https://x.example"}),
            ),
            (
                EventType::Reject,
                Some(Block::Reject(Reject { reason: Some("address on suppression list".into()) })),
                "reject",
                json!({"reason": "address on suppression list"}),
            ),
            (
                EventType::DeliveryDelay,
                Some(Block::DeliveryDelay(delay)),
                "deliveryDelay",
                json!({"timestamp": time, "delayType": "TemporaryFailure", "delayedRecipients": ["customer@example.com"]}),
            ),
        ];
        for (kind, block, name, expected) in cases {
            let body = told(Dialect::Splashify, &event(kind, block));
            assert_eq!(body, json!({"eventType": kind.name(), "mail": mail, name: expected}));
        }
    }
}
