//! Events in our own form: flat, with SES's field names in the block of the type.

use sendtrail_schemas::block::{Block, Bounce};
use sendtrail_schemas::event::{EventFact, Tags};
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::time::parse_nanos;
use serde::Deserialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{Fault, MAX_METADATA, check, check_object};

/// One event of `POST /events`. The block of its type is read, others are passed over.
#[derive(Deserialize, ToSchema)]
#[schema(as = Event)]
pub struct NativeEvent<'a> {
    /// Send, Delivery, Bounce, Complaint, Open, Click, Reject, RenderingFailure, DeliveryDelay, Reply or Subscription.
    event_type: Option<String>,
    /// Which message.
    #[schema(required)]
    message_id: Option<String>,
    /// To whom.
    #[schema(required)]
    recipient: Option<String>,
    /// RFC 3339; the time of receipt when absent.
    #[schema(format = DateTime)]
    occurred_at: Option<String>,
    /// Tells repeatable facts apart.
    event_id: Option<String>,
    from: Option<String>,
    subject: Option<String>,
    send_id: Option<String>,
    configuration_set_name: Option<String>,
    customer_id: Option<String>,
    /// `transactional` or `marketing`.
    category: Option<String>,
    tags: Option<Tags>,
    /// A JSON object, kept as it is.
    #[serde(borrow)]
    #[schema(value_type = Option<Object>)]
    metadata: Option<&'a RawValue>,
    #[serde(borrow)]
    #[schema(value_type = Option<Object>)]
    bounce: Option<&'a RawValue>,
    #[serde(borrow)]
    #[schema(value_type = Option<Object>)]
    complaint: Option<&'a RawValue>,
    #[serde(borrow)]
    #[schema(value_type = Option<Object>)]
    delivery: Option<&'a RawValue>,
    #[serde(borrow)]
    #[schema(value_type = Option<Object>)]
    open: Option<&'a RawValue>,
    #[serde(borrow)]
    #[schema(value_type = Option<Object>)]
    click: Option<&'a RawValue>,
    #[serde(borrow)]
    #[schema(value_type = Option<Object>)]
    reject: Option<&'a RawValue>,
    #[serde(rename = "deliveryDelay", alias = "delivery_delay")]
    #[serde(borrow)]
    #[schema(value_type = Option<Object>)]
    delivery_delay: Option<&'a RawValue>,
    #[serde(rename = "renderingFailure", alias = "rendering_failure")]
    #[serde(borrow)]
    #[schema(value_type = Option<Object>)]
    rendering_failure: Option<&'a RawValue>,
    #[serde(borrow)]
    #[schema(value_type = Option<Object>)]
    reply: Option<&'a RawValue>,
    #[serde(borrow)]
    #[schema(value_type = Option<Object>)]
    subscription: Option<&'a RawValue>,
}

/// The recipients that SES names in a block.
#[derive(Deserialize)]
struct Recipients {
    #[serde(
        default,
        alias = "bouncedRecipients",
        alias = "complainedRecipients",
        alias = "delayedRecipients",
        alias = "recipients"
    )]
    nested: Vec<NestedRecipient>,
}

/// A block.
fn block<'a, B: Deserialize<'a>>(given: Option<&'a RawValue>) -> Result<Option<B>, Fault> {
    let read = |text: &'a RawValue| serde_json::from_str::<Option<B>>(text.get());
    let read = given.map(read).transpose().map_err(|cause| Fault::invalid(cause.to_string()))?;
    Ok(read.flatten())
}

/// A block, and the recipients that it names.
fn with_recipients<'a, B: Deserialize<'a>>(
    given: Option<&'a RawValue>,
    nested: &mut Vec<NestedRecipient>,
) -> Result<Option<B>, Fault> {
    let Some(text) = given.map(RawValue::get) else { return Ok(None) };
    let malformed = |cause: serde_json::Error| Fault::invalid(cause.to_string());
    // Few have any, and looking is cheaper than reading twice.
    if text.contains("ecipients\"") {
        *nested =
            serde_json::from_str::<Option<Recipients>>(text).map_err(malformed)?.map_or_else(Vec::new, |r| r.nested);
    }
    serde_json::from_str(text).map_err(malformed)
}

/// A recipient in a block: SES writes objects, and for deliveries plain addresses.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum NestedRecipient {
    Address(String),
    #[serde(rename_all = "camelCase")]
    Detailed {
        email_address: String,
        diagnostic_code: Option<String>,
        status: Option<String>,
        action: Option<String>,
    },
}

impl NestedRecipient {
    /// The address.
    pub fn address(&self) -> &str {
        match self {
            Self::Address(address) | Self::Detailed { email_address: address, .. } => address,
        }
    }

    /// Gives a bounce what stands beside its recipient.
    pub fn lend(self, bounce: &mut Bounce) {
        if let Self::Detailed { diagnostic_code, status, action, .. } = self {
            bounce.diagnostic_code = bounce.diagnostic_code.take().or(diagnostic_code);
            bounce.status = bounce.status.take().or(status);
            bounce.action = bounce.action.take().or(action);
        }
    }
}

/// Reads one event.
///
/// # Errors
/// Why it is not taken.
pub fn read(text: &str) -> Result<EventFact, Fault> {
    let event: NativeEvent<'_> = serde_json::from_str(text).map_err(|cause| Fault::invalid(cause.to_string()))?;
    let kind = event.event_type.ok_or_else(|| Fault::invalid("event_type is missing"))?;
    let kind = EventType::parse(&kind)
        .filter(|kind| kind.is_streamable())
        .ok_or_else(|| Fault::invalid(format!("event_type {kind:?} is none of those that can be streamed")))?;
    let occurred_at = event.occurred_at.map(|text| parse_nanos(&text)).transpose();
    let occurred_at_nanos = occurred_at.map_err(|cause| Fault::invalid(format!("occurred_at: {cause}")))?;
    let metadata = event.metadata.map(RawValue::get).filter(|text| *text != "null");
    metadata.map_or(Ok(()), |json| check_object("metadata", json, MAX_METADATA)).map_err(Fault::invalid)?;
    if event.category.as_deref().is_some_and(|category| !matches!(category, "transactional" | "marketing")) {
        return Err(Fault::invalid("category is transactional or marketing"));
    }
    let mut nested = Vec::new();
    let block = match kind {
        EventType::Bounce => with_recipients(event.bounce, &mut nested)?.map(|mut bounce: Bounce| {
            if nested.len() == 1
                && let Some(recipient) = nested.pop()
            {
                nested.push(NestedRecipient::Address(recipient.address().to_owned()));
                recipient.lend(&mut bounce);
            }
            Block::Bounce(bounce)
        }),
        EventType::Complaint => with_recipients(event.complaint, &mut nested)?.map(Block::Complaint),
        EventType::Delivery => with_recipients(event.delivery, &mut nested)?.map(Block::Delivery),
        EventType::DeliveryDelay => with_recipients(event.delivery_delay, &mut nested)?.map(Block::DeliveryDelay),
        EventType::Open => block(event.open)?.map(Block::Open),
        EventType::Click => block(event.click)?.map(Block::Click),
        EventType::Reject => block(event.reject)?.map(Block::Reject),
        EventType::RenderingFailure => block(event.rendering_failure)?.map(Block::RenderingFailure),
        EventType::Reply => block(event.reply)?.map(Block::Reply),
        EventType::Subscription => block(event.subscription)?.map(Block::Subscription),
        _ => None,
    };
    // One event speaks of one recipient; SES's nested one will do when it is alone.
    let alone = || if nested.len() == 1 { nested.first().map(|to| to.address().to_owned()) } else { None };
    let fact = EventFact {
        kind: kind as i32,
        message_id: event.message_id.unwrap_or_default(),
        recipient: event.recipient.or_else(alone).unwrap_or_default(),
        occurred_at_nanos,
        event_id: event.event_id.filter(|id| !id.is_empty()),
        from: event.from,
        subject: event.subject,
        configuration_set_name: event.configuration_set_name.filter(|name| !name.is_empty()),
        customer_id: event.customer_id,
        category: event.category,
        tags: event.tags.unwrap_or_default(),
        metadata: metadata.map(Into::into),
        send_id: event.send_id,
        lent_identity: None,
        block,
    };
    check(&fact)?;
    Ok(fact)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_field() {
        let fact = read(
            r#"{"event_type":"Bounce","message_id":"m","recipient":"A@b.co","occurred_at":"2026-05-03T12:34:56.123456789Z",
                "event_id":"e","from":"X <x@y.co>","subject":"s","send_id":"sid","configuration_set_name":"set","customer_id":"c",
                "category":"marketing","tags":{"a":"b"},"metadata":{"n": 1.50},
                "bounce":{"bounceType":"Permanent","bounceSubType":"General","diagnosticCode":"550","status":"5.1.1","action":"failed"}}"#,
        )
        .unwrap();
        assert_eq!(fact.kind(), EventType::Bounce);
        assert_eq!(fact.occurred_at_nanos.unwrap() % 1_000_000_000, 123_456_789);
        assert_eq!(fact.metadata.as_deref(), Some(r#"{"n": 1.50}"#));
        assert!(fact.is_permanent_bounce());
        let Some(Block::Bounce(bounce)) = fact.block else { panic!("no block") };
        assert_eq!((bounce.status.as_deref(), bounce.action.as_deref()), (Some("5.1.1"), Some("failed")));
    }

    #[test]
    fn only_the_block_of_its_type_is_read() {
        let others =
            r#""bounce":true,"open":1,"click":true,"reject":"no","renderingFailure":"x","reply":7,"subscription":"y""#;
        let of = |kind: &str| {
            read(&format!(r#"{{"event_type":"{kind}","message_id":"m","recipient":"a@b.co",{others}}}"#)).map(|_| ())
        };
        assert!(of("Send").is_ok());
        for kind in ["Open", "Click", "Reject", "RenderingFailure", "Reply", "Subscription", "Bounce"] {
            assert!(of(kind).is_err(), "{kind}");
        }
        assert!(
            read(r#"{"event_type":"Open","message_id":"m","recipient":"a@b.co","open":null}"#).unwrap().block.is_none()
        );
    }

    #[test]
    fn takes_sess_nested_recipients() {
        let fact = read(
            r#"{"event_type":"Bounce","message_id":"m","bounce":{"bounceType":"Transient",
                "bouncedRecipients":[{"emailAddress":"a@b.co","diagnosticCode":"452 full","status":"4.2.2"}]}}"#,
        )
        .unwrap();
        assert_eq!(fact.recipient, "a@b.co");
        assert!(
            matches!(fact.block, Some(Block::Bounce(bounce)) if bounce.diagnostic_code.as_deref() == Some("452 full"))
        );
        for (kind, block) in [
            ("Complaint", r#""complaint":{"complainedRecipients":[{"emailAddress":"a@b.co"}]}"#),
            ("Delivery", r#""delivery":{"recipients":["a@b.co"],"processingTimeMillis":12}"#),
            (
                "DeliveryDelay",
                r#""deliveryDelay":{"delayType":"MailboxFull","delayedRecipients":[{"emailAddress":"a@b.co"}]}"#,
            ),
        ] {
            let fact = read(&format!(r#"{{"event_type":"{kind}","message_id":"m",{block}}}"#)).unwrap();
            assert_eq!(fact.recipient, "a@b.co", "{kind}");
            assert!(fact.block.is_some());
        }
    }

    #[test]
    fn each_fault_is_named() {
        let fault = |text: &str| read(text).map(|_| ()).unwrap_err();
        let base = |extra: &str| format!(r#"{{"event_type":"Open","message_id":"m","recipient":"a@b.co"{extra}}}"#);
        assert!(read(&base("")).is_ok());
        assert_eq!(fault(r#"{"event_type":"Open","message_id":"m","recipient":"nobody"}"#).code, Code::BadRecipient);
        assert_eq!(fault(r#"{"event_type":"Open","message_id":"m"}"#).code, Code::BadRecipient);
        for bad in [
            "5".to_owned(),
            "nonsense".into(),
            r#"{"message_id":"m","recipient":"a@b.co"}"#.into(),
            r#"{"event_type":"Paused","message_id":"m","recipient":"a@b.co"}"#.into(),
            r#"{"event_type":"Nope","message_id":"m","recipient":"a@b.co"}"#.into(),
            r#"{"event_type":"Open","recipient":"a@b.co"}"#.into(),
            base(r#","occurred_at":"yesterday""#),
            base(r#","tags":["a"]"#),
            base(r#","tags":{"":"b"}"#),
            base(r#","metadata":[1]"#),
            base(r#","category":"spam""#),
            base(&format!(r#","event_id":"{}""#, "x".repeat(600))),
            base(&format!(r#","metadata":{{"x":"{}"}}"#, "x".repeat(40_000))),
            base(&format!(r#","open":{{"userAgent":"{}"}}"#, "x".repeat(140_000))),
        ] {
            assert_eq!(fault(&bad).code, Code::InvalidRequest, "{bad}");
        }
        assert!(read(&base(r#","metadata":null,"tags":null,"unknown":1"#)).is_ok());
    }

    use sendtrail_schemas::problem::Code;
}
