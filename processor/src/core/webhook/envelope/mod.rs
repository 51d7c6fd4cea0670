//! An event as each dialect tells it. The bytes of a body are the same over retries.
//!
//! `metadata` is passed on as it came, byte for byte: numbers beyond a double's precision, and whatever else JSON allows.

mod nexuspromail;
mod securesmtp;
mod sendcomms;
mod splashify;
mod standard;
mod zmailer;

use sendtrail_schemas::block::{Block, Lifecycle};
use sendtrail_schemas::destination::{Dialect, Envelope as Around};
use sendtrail_schemas::event::Event;
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::time::Millis;
use serde::Serialize;
use serde_json::value::RawValue;

/// A body and what goes beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The event's name in the dialect.
    pub event_name: String,
    /// The body, JSON.
    pub body: Vec<u8>,
    /// Whether it is signed, if there is a secret.
    pub signed: bool,
    /// One attempt and no more.
    pub once: bool,
}

/// Renders an event; `None` when the dialect has no name for it.
pub fn render(dialect: Dialect, around: Around, event: &Event) -> Option<Envelope> {
    if let (EventType::Lifecycle, Some(Block::Lifecycle(block))) = (event.kind(), &event.block) {
        return Some(lifecycle(event, block));
    }
    let event_name = dialect.event_name(event.kind(), event.is_permanent_bounce())?;
    let body = match dialect {
        Dialect::Splashify => splashify::body(event),
        Dialect::Standard if around == Around::Cloudevents => standard::cloudevent(event, event_name),
        Dialect::Standard => standard::body(event, event_name),
        Dialect::Securesmtp => securesmtp::body(event, event_name),
        Dialect::Nexuspromail => nexuspromail::body(event, event_name),
        Dialect::Sendcomms => sendcomms::body(event, event_name),
        Dialect::Zmailer => zmailer::body(event, event_name),
    };
    Some(Envelope { event_name: event_name.into(), body, signed: true, once: false })
}

/// What is not about email goes to the account-level webhook in an envelope of its own, once and unsigned (S2 "RCS
/// Events", "RCS Incoming Events").
fn lifecycle(event: &Event, block: &Lifecycle) -> Envelope {
    #[derive(Serialize)]
    struct Body<'a> {
        event_type: &'a str,
        partner_id: String,
        occurred_at: Millis,
        data: &'a RawValue,
    }
    let (event_type, data) = (block.event_type.as_deref().unwrap_or_default(), block.data.as_deref().unwrap_or("{}"));
    let body = if block.passthrough == Some(true) {
        data.as_bytes().to_vec()
    } else {
        json(&Body {
            event_type,
            partner_id: event.account().to_string(),
            occurred_at: event.occurred(),
            data: raw(Some(data)).unwrap_or(RawValue::NULL),
        })
    };
    Envelope { event_name: event_type.to_owned(), body, signed: false, once: true }
}

/// Structs of text and numbers always serialize.
fn json(body: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(body).unwrap_or_default()
}

/// JSON as it came; `None` when it is none.
fn raw(text: Option<&str>) -> Option<&RawValue> {
    text.and_then(|text| serde_json::from_str(text).ok())
}

/// The metadata of an event as it came.
fn metadata(event: &Event) -> Option<&RawValue> {
    raw(event.metadata.as_deref())
}

/// Nothing for empty text.
fn some(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sendtrail_schemas::event::Tags;
    use serde_json::{Value, json};

    /// A message with everything that is hard on envelopes.
    pub(super) fn event(kind: EventType, block: Option<Block>) -> Event {
        Event {
            account_id: vec![7; 16],
            partition: 3,
            seq: 255,
            kind: kind as i32,
            event_id: "e".into(),
            occurred_at: Millis::parse("2026-05-03T12:34:58.789Z").unwrap().0,
            received_at: Millis::parse("2026-05-03T12:34:59.001Z").unwrap().0,
            sent_at: Some(Millis::parse("2026-05-03T12:34:56.123Z").unwrap().0),
            message_id: "550e8400".into(),
            send_id: Some("call-1".into()),
            recipient: "customer@example.com".into(),
            from: Some("Hello <hello@yourcompany.com>".into()),
            subject: Some("Grüße \u{1f680} \"x\" \u{2028}\u{7}".into()),
            tags: Tags::from([("env".into(), "prod".into()), ("welcome".into(), String::new())]),
            metadata: Some(r#"{ "n":12345678901234567890123, "é":"\u00e9", "o":{} }"#.into()),
            block,
            ..Event::default()
        }
    }

    pub(super) fn told(dialect: Dialect, event: &Event) -> Value {
        serde_json::from_slice(&render(dialect, Around::Dialect, event).unwrap().body).unwrap()
    }

    #[test]
    fn metadata_is_passed_on_byte_for_byte() {
        let event = event(EventType::Delivery, None);
        for dialect in [Dialect::Standard, Dialect::Nexuspromail, Dialect::Zmailer] {
            let body = String::from_utf8(render(dialect, Around::Dialect, &event).unwrap().body).unwrap();
            assert!(body.contains(event.metadata.as_deref().unwrap()), "{body}");
        }
    }

    #[test]
    fn an_event_without_a_name_is_not_told() {
        for (dialect, kind) in [
            (Dialect::Splashify, EventType::Paused),
            (Dialect::Splashify, EventType::Subscription),
            (Dialect::Nexuspromail, EventType::Send),
            (Dialect::Zmailer, EventType::Open),
            (Dialect::Sendcomms, EventType::Reject),
            (Dialect::Securesmtp, EventType::Reply),
            (Dialect::Standard, EventType::Unspecified),
        ] {
            assert_eq!(render(dialect, Around::Dialect, &event(kind, None)), None);
        }
    }

    #[test]
    fn lifecycle_posts_wrap_their_data_or_pass_it_on() {
        let block = |data: &str, passthrough| Lifecycle {
            event_type: Some("rcs.message.text".into()),
            data: Some(data.into()),
            passthrough: Some(passthrough),
        };
        let of = |block| event(EventType::Lifecycle, Some(Block::Lifecycle(block)));
        let data = r#"{"rm_event":{ "a" : 1.0, "text_message":"Hi"}}"#;
        let wrapped = render(Dialect::Splashify, Around::Dialect, &of(block(data, false))).unwrap();
        let body = String::from_utf8(wrapped.body).unwrap();
        assert!(body.contains(data) && (wrapped.signed, wrapped.once) == (false, true));
        assert_eq!(
            serde_json::from_str::<Value>(&body).unwrap(),
            json!({"event_type": "rcs.message.text", "partner_id": "07070707-0707-0707-0707-070707070707",
                "occurred_at": "2026-05-03T12:34:58.789Z", "data": serde_json::from_str::<Value>(data).unwrap()})
        );
        let meta = "{ \"object\":\"whatsapp_business_account\" }\n";
        let passed = render(Dialect::Standard, Around::Cloudevents, &of(block(meta, true))).unwrap();
        assert_eq!((passed.body, passed.event_name.as_str()), (meta.as_bytes().to_vec(), "rcs.message.text"));
    }
}
