//! S4's: flat, with `sendId` for the call and `providerMessageId` for the message.

use sendtrail_schemas::block::Block;
use sendtrail_schemas::event::Event;
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::time::Millis;
use serde::Serialize;
use serde_json::value::RawValue;

use super::{json, metadata, raw};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    event: &'a str,
    timestamp: Millis,
    send_id: &'a str,
    /// The same: receivers of old know it by this name.
    message_id: &'a str,
    provider_message_id: &'a str,
    recipient: &'a str,
    subject: &'a str,
    tags: Vec<String>,
    metadata: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    delivered_at: Option<Millis>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bounce_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bounce_sub_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    diagnostic_code: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

pub(super) fn body(event: &Event, event_name: &str) -> Vec<u8> {
    // A message that came from elsewhere is a call of its own.
    let send_id = event.send_id.as_deref().unwrap_or(&event.message_id);
    let tag = |(key, value): (&String, &String)| if value.is_empty() { key.clone() } else { format!("{key}:{value}") };
    let mut body = Body {
        event: event_name,
        timestamp: event.occurred(),
        send_id,
        message_id: send_id,
        provider_message_id: &event.message_id,
        recipient: &event.recipient,
        subject: event.subject.as_deref().unwrap_or_default(),
        tags: event.tags.iter().map(tag).collect(),
        metadata: metadata(event).or(raw(Some("{}"))).unwrap_or(RawValue::NULL),
        delivered_at: (event.kind() == EventType::Delivery).then(|| event.occurred()),
        bounce_type: None,
        bounce_sub_type: None,
        diagnostic_code: None,
        reason: None,
    };
    if event.kind() == EventType::Bounce {
        (body.bounce_type, body.bounce_sub_type) = (Some("Undetermined"), Some("Undetermined"));
    }
    match &event.block {
        Some(Block::Bounce(block)) => {
            body.bounce_type = block.bounce_type.as_deref().or(body.bounce_type);
            body.bounce_sub_type = block.bounce_sub_type.as_deref().or(body.bounce_sub_type);
            body.diagnostic_code = block.diagnostic_code.as_deref();
        }
        Some(Block::Reject(block)) => body.reason = block.reason.as_deref(),
        Some(Block::RenderingFailure(block)) => body.reason = block.error_message.as_deref(),
        _ => {}
    }
    json(&body)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{event, told};
    use super::*;
    use sendtrail_schemas::block::{Bounce, Reject};
    use sendtrail_schemas::destination::Dialect;
    use serde_json::json;

    #[test]
    fn bodies_are_those_of_the_seed() {
        let common = json!({"timestamp": "2026-05-03T12:34:58.789Z", "sendId": "call-1", "messageId": "call-1",
            "providerMessageId": "550e8400", "recipient": "customer@example.com",
            "subject": event(EventType::Send, None).subject, "tags": ["env:prod", "welcome"], "metadata": {"a": [1]}});
        let bounce = Bounce {
            bounce_type: Some("Permanent".into()),
            bounce_sub_type: Some("General".into()),
            diagnostic_code: Some("smtp; 550 5.1.1 user unknown".into()),
            ..Bounce::default()
        };
        let reject = Reject { reason: Some("address on suppression list".into()) };
        let cases = [
            (EventType::Send, None, "email.sent", json!({})),
            (EventType::Delivery, None, "email.delivered", json!({"deliveredAt": "2026-05-03T12:34:58.789Z"})),
            (
                EventType::Bounce,
                Some(Block::Bounce(bounce)),
                "email.bounced",
                json!({"bounceType": "Permanent", "bounceSubType": "General",
                    "diagnosticCode": "smtp; 550 5.1.1 user unknown"}),
            ),
            (
                EventType::Bounce,
                None,
                "email.bounced",
                json!({"bounceType": "Undetermined", "bounceSubType": "Undetermined"}),
            ),
            (
                EventType::Reject,
                Some(Block::Reject(reject)),
                "email.failed",
                json!({"reason": "address on suppression list"}),
            ),
        ];
        for (kind, block, name, own) in cases {
            let of = Event { metadata: Some(r#"{"a":[1]}"#.into()), ..event(kind, block) };
            let mut expected = common.clone();
            expected["event"] = json!(name);
            expected.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
            assert_eq!(told(Dialect::Zmailer, &of), expected);
        }
        let alone = Event { send_id: None, ..event(EventType::Send, None) };
        assert_eq!(told(Dialect::Zmailer, &alone)["sendId"], "550e8400");
    }
}
