//! S0's: what senders through Svix post. The seed names the fields of bounces, clicks and opens; the rest is ours.

use sendtrail_schemas::block::Block;
use sendtrail_schemas::event::{Event, Tags};
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::time::Millis;
use serde::Serialize;

use super::{json, some};

#[derive(Serialize)]
struct Body<'a> {
    r#type: &'a str,
    created_at: Millis,
    data: Data<'a>,
}

#[derive(Serialize, Default)]
struct Data<'a> {
    message_id: &'a str,
    to: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'a str>,
    /// S0's bare tag: a name without a value.
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tags: Option<&'a Tags>,
    /// `hard` or `soft`.
    #[serde(skip_serializing_if = "Option::is_none")]
    bounce_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bounce_sub_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    diagnostic_code: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    link_url: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_agent: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    geo: Option<Geo>,
    #[serde(skip_serializing_if = "Option::is_none")]
    feedback_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delay_type: Option<&'a str>,
}

/// What is known of where it happened: the address, of which a place would have to be looked up.
#[derive(Serialize)]
struct Geo {
    ip_address: String,
}

pub(super) fn body(event: &Event, event_name: &str) -> Vec<u8> {
    let mut data = Data {
        message_id: &event.message_id,
        to: &event.recipient,
        from: event.from.as_deref(),
        subject: event.subject.as_deref(),
        tag: event.tags.iter().find(|(_, value)| value.is_empty()).map(|(key, _)| key.as_str()),
        tags: (!event.tags.is_empty()).then_some(&event.tags),
        ..Data::default()
    };
    let geo = |address: &'_ Option<String>| Some(Geo { ip_address: some(address.as_deref()?)?.to_owned() });
    match &event.block {
        Some(Block::Bounce(block)) => {
            data.bounce_sub_type = block.bounce_sub_type.as_deref();
            data.diagnostic_code = block.diagnostic_code.as_deref();
        }
        Some(Block::Open(block)) => {
            (data.user_agent, data.geo) = (block.user_agent.as_deref(), geo(&block.ip_address));
        }
        Some(Block::Click(block)) => {
            (data.user_agent, data.geo) = (block.user_agent.as_deref(), geo(&block.ip_address));
            data.link_url = block.link.as_deref();
        }
        Some(Block::Complaint(block)) => data.feedback_type = block.complaint_feedback_type.as_deref(),
        Some(Block::DeliveryDelay(block)) => data.delay_type = block.delay_type.as_deref(),
        _ => {}
    }
    if event.kind() == EventType::Bounce {
        data.bounce_type = Some(if event.is_permanent_bounce() { "hard" } else { "soft" });
    }
    json(&Body { r#type: event_name, created_at: event.occurred(), data })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{event, told};
    use super::*;
    use sendtrail_schemas::block::{Bounce, Click};
    use sendtrail_schemas::destination::Dialect;
    use serde_json::json;

    #[test]
    fn data_names_what_the_seed_names() {
        let bounce = Bounce { bounce_type: Some("Permanent".into()), ..Bounce::default() };
        let hard = event(EventType::Bounce, Some(Block::Bounce(bounce)));
        let body = told(Dialect::Securesmtp, &hard);
        assert_eq!((&body["type"], &body["data"]["bounce_type"]), (&json!("email.bounced"), &json!("hard")));
        assert_eq!((&body["data"]["to"], &body["data"]["tag"]), (&json!("customer@example.com"), &json!("welcome")));
        assert_eq!(told(Dialect::Securesmtp, &event(EventType::Bounce, None))["data"]["bounce_type"], "soft");
        let click = Click {
            link: Some("https://x.example/?a=1&b=2".into()),
            ip_address: Some("203.0.113.9".into()),
            user_agent: Some("UA".into()),
        };
        let body = told(Dialect::Securesmtp, &event(EventType::Click, Some(Block::Click(click))));
        assert_eq!(body["data"]["link_url"], "https://x.example/?a=1&b=2");
        assert_eq!(body["data"]["geo"], json!({"ip_address": "203.0.113.9"}));
        assert_eq!(body["data"]["user_agent"], "UA");
    }
}
