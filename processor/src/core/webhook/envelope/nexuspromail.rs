//! S1's: type and data, in which recipient, message, time and metadata are the seed's and the rest is ours.

use sendtrail_schemas::block::Block;
use sendtrail_schemas::event::Event;
use sendtrail_schemas::time::Millis;
use serde::Serialize;
use serde_json::value::RawValue;

use super::{json, metadata, raw};

#[derive(Serialize)]
struct Body<'a> {
    r#type: &'a str,
    data: Data<'a>,
}

#[derive(Serialize)]
struct Data<'a> {
    recipient: &'a str,
    message_id: &'a str,
    timestamp: Millis,
    metadata: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip_address: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_agent: Option<&'a str>,
}

pub(super) fn body(event: &Event, event_name: &str) -> Vec<u8> {
    let mut data = Data {
        recipient: &event.recipient,
        message_id: &event.message_id,
        timestamp: event.occurred(),
        metadata: metadata(event).or(raw(Some("{}"))).unwrap_or(RawValue::NULL),
        reason: None,
        url: None,
        ip_address: None,
        user_agent: None,
    };
    match &event.block {
        Some(Block::Bounce(block)) => data.reason = block.diagnostic_code.as_deref(),
        Some(Block::Complaint(block)) => data.reason = block.complaint_feedback_type.as_deref(),
        Some(Block::Open(block)) => {
            (data.ip_address, data.user_agent) = (block.ip_address.as_deref(), block.user_agent.as_deref());
        }
        Some(Block::Click(block)) => {
            (data.ip_address, data.user_agent) = (block.ip_address.as_deref(), block.user_agent.as_deref());
            data.url = block.link.as_deref();
        }
        _ => {}
    }
    json(&Body { r#type: event_name, data })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{event, told};
    use super::*;
    use sendtrail_schemas::block::Bounce;
    use sendtrail_schemas::destination::Dialect;
    use sendtrail_schemas::kind::EventType;
    use serde_json::json;

    #[test]
    fn bounces_are_hard_or_soft() {
        let hard = Bounce {
            bounce_type: Some("Permanent".into()),
            diagnostic_code: Some("550 5.1.1".into()),
            ..Bounce::default()
        };
        let body = told(Dialect::Nexuspromail, &event(EventType::Bounce, Some(Block::Bounce(hard))));
        assert_eq!((&body["type"], &body["data"]["reason"]), (&json!("bounced.hard"), &json!("550 5.1.1")));
        assert_eq!(told(Dialect::Nexuspromail, &event(EventType::Bounce, None))["type"], "bounced.soft");
    }

    #[test]
    fn data_has_recipient_message_time_and_metadata() {
        let plain = Event { metadata: None, ..event(EventType::Delivery, None) };
        assert_eq!(
            told(Dialect::Nexuspromail, &plain),
            json!({"type": "delivered", "data": {"recipient": "customer@example.com", "message_id": "550e8400",
                "timestamp": "2026-05-03T12:34:58.789Z", "metadata": {}}})
        );
    }
}
