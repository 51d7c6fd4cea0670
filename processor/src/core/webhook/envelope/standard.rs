//! Standard Webhooks: `{type,timestamp,data}`; and the same data as a CloudEvent.

use sendtrail_schemas::event::{Event, Tags};
use sendtrail_schemas::ids::{AccountId, event_id};
use sendtrail_schemas::time::Millis;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::splashify::block_value;
use super::{json, metadata, some};

#[derive(Serialize)]
struct Body<'a> {
    r#type: &'a str,
    timestamp: Millis,
    data: Data<'a>,
}

/// CloudEvents 1.0.2, "JSON Event Format" §3.
#[derive(Serialize)]
struct CloudEvent<'a> {
    specversion: &'static str,
    /// With `source` it tells events apart, so it is the event's place, not the name that its sender gave it.
    id: String,
    source: String,
    r#type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'a str>,
    time: Millis,
    datacontenttype: &'static str,
    data: Data<'a>,
}

#[derive(Serialize)]
struct Data<'a> {
    account_id: AccountId,
    event_id: &'a str,
    occurred_at: Millis,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    send_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recipient: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    configuration_set_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    customer_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    category: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tags: Option<&'a Tags>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a RawValue>,
    #[serde(flatten)]
    block: Named<'a>,
}

/// The block of the event under its name.
struct Named<'a>(&'a Event);

impl Serialize for Named<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let block = self.0.block.as_ref().map(|_| (self.0.kind().block_name(), block_value(self.0)));
        serializer.collect_map(block)
    }
}

fn data(event: &Event) -> Data<'_> {
    Data {
        account_id: event.account(),
        event_id: &event.event_id,
        occurred_at: event.occurred(),
        message_id: some(&event.message_id),
        send_id: event.send_id.as_deref(),
        recipient: some(&event.recipient),
        from: event.from.as_deref(),
        subject: event.subject.as_deref(),
        configuration_set_name: event.configuration_set_name.as_deref(),
        customer_id: event.customer_id.as_deref(),
        category: event.category.as_deref(),
        tags: (!event.tags.is_empty()).then_some(&event.tags),
        metadata: metadata(event),
        block: Named(event),
    }
}

pub(super) fn body(event: &Event, event_name: &str) -> Vec<u8> {
    json(&Body { r#type: event_name, timestamp: event.occurred(), data: data(event) })
}

pub(super) fn cloudevent(event: &Event, event_name: &str) -> Vec<u8> {
    json(&CloudEvent {
        specversion: "1.0",
        id: event_id(event.partition, event.seq),
        source: format!("/accounts/{}", event.account()),
        r#type: event_name,
        subject: some(&event.message_id),
        time: event.occurred(),
        datacontenttype: "application/json",
        data: data(event),
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{event, told};
    use super::super::{Around, render};
    use super::*;
    use sendtrail_schemas::block::{Block, StatusChange};
    use sendtrail_schemas::destination::Dialect;
    use sendtrail_schemas::kind::EventType;
    use serde_json::{Value, json};

    #[test]
    fn bodies_have_type_timestamp_and_data() {
        let of = Event { metadata: Some(r#"{"n":1}"#.into()), ..event(EventType::Open, None) };
        let body = told(Dialect::Standard, &of);
        assert_eq!(body["type"], "email.opened");
        assert_eq!(body["timestamp"], "2026-05-03T12:34:58.789Z");
        assert_eq!(body["data"]["metadata"], json!({"n": 1}));
        assert_eq!(body["data"]["recipient"], "customer@example.com");
        let status = StatusChange { to: "PAUSED".into(), numerator: 7, ..StatusChange::default() };
        let paused = Event {
            message_id: String::new(),
            recipient: String::new(),
            ..event(EventType::Paused, Some(Block::StatusChange(status)))
        };
        let body = told(Dialect::Standard, &paused);
        assert_eq!(
            (body["type"].as_str(), body["data"]["status"]["numerator"].as_u64()),
            (Some("account.paused"), Some(7))
        );
        assert_eq!(body["data"].get("recipient"), None);
    }

    #[test]
    fn cloud_events_have_what_the_specification_requires() {
        let rendered = render(Dialect::Standard, Around::Cloudevents, &event(EventType::Click, None)).unwrap();
        let body: Value = serde_json::from_slice(&rendered.body).unwrap();
        assert_eq!((&body["specversion"], &body["type"]), (&json!("1.0"), &json!("email.clicked")));
        assert_eq!((&body["id"], &body["subject"]), (&json!("ev_0003_00000000000000ff"), &json!("550e8400")));
        assert_eq!(body["source"], "/accounts/07070707-0707-0707-0707-070707070707");
        assert_eq!(body["time"], "2026-05-03T12:34:58.789Z");
        assert_eq!((&body["datacontenttype"], &body["data"]["event_id"]), (&json!("application/json"), &json!("e")));
    }
}
