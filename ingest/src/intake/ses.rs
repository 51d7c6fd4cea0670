//! Events as Amazon SES publishes them: event publishing and feedback notifications, bare, in an SNS envelope or in an
//! EventBridge one.
//!
//! Source: SES developer guide, "Contents of event data that Amazon SES publishes" and "Amazon SNS notification
//! contents". What has no field of ours is kept in `metadata`.

use sendtrail_schemas::address;
use sendtrail_schemas::block::{
    Block, Bounce, Click, Complaint, Delivery, DeliveryDelay, Open, Reject, RenderingFailure, Subscription,
};
use sendtrail_schemas::event::{EventFact, Tags};
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::time::parse_nanos;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::native::NestedRecipient;
use super::{Fault, MAX_HEADER, MAX_METADATA, MAX_RECIPIENTS, MAX_TAG, MAX_TAGS, check, fit, kept};

type Object = Map<String, Value>;

/// Reads one document: an event for each of its recipients.
///
/// # Errors
/// Why it is not taken; then none of its events is.
pub fn read(text: &str) -> Result<Vec<EventFact>, Fault> {
    let document = serde_json::from_str(text).map_err(|cause| Fault::invalid(cause.to_string()))?;
    let Some(document) = unwrap(document)? else { return Ok(Vec::new()) };
    let facts = facts(document)?;
    facts.iter().try_for_each(check)?;
    Ok(facts)
}

/// What an envelope holds; `None` for SNS's own announcements, which speak of no message.
fn unwrap(mut document: Object) -> Result<Option<Object>, Fault> {
    if let Some(Value::String(message)) = document.remove("Message") {
        let kind = document.get("Type").and_then(Value::as_str).unwrap_or("Notification");
        if kind != "Notification" {
            return Err(Fault::invalid(format!("an SNS {kind} is not an event: confirm the subscription with AWS")));
        }
        // What SNS itself says when a topic is connected.
        if message.starts_with("Successfully validated SNS topic") {
            return Ok(None);
        }
        document = serde_json::from_str(&message).map_err(|cause| Fault::invalid(format!("Message: {cause}")))?;
    } else if let Some(Value::Object(detail)) = document.remove("detail") {
        document = detail;
    }
    let announced = document.get("notificationType").and_then(Value::as_str);
    Ok((announced != Some("AmazonSnsSubscriptionSucceeded")).then_some(document))
}

fn facts(mut document: Object) -> Result<Vec<EventFact>, Fault> {
    let name = take_text(&mut document, "eventType").or_else(|| take_text(&mut document, "notificationType"));
    let name = name.ok_or_else(|| Fault::invalid("neither eventType nor notificationType"))?;
    let kind = EventType::parse(&name)
        .filter(|kind| kind.is_streamable() && *kind != EventType::Reply)
        .ok_or_else(|| Fault::invalid(format!("event type {name:?} is none of SES's")))?;
    let mut mail = take_object(&mut document, "mail").ok_or_else(|| Fault::invalid("mail is missing"))?;
    let mut block = take_object(&mut document, block_name(kind)).unwrap_or_default();
    let sent_at = take_text(&mut mail, "timestamp");
    let happened_at = take_text(&mut block, "timestamp").or(sent_at);
    let occurred_at = happened_at.map(|text| parse_nanos(&text)).transpose();
    let occurred_at_nanos = occurred_at.map_err(|cause| Fault::invalid(format!("timestamp: {cause}")))?;
    let recipients = recipients(kind, &mut block, &mut mail)?;
    if recipients.len() > MAX_RECIPIENTS {
        return Err(Fault::invalid(format!("more than {MAX_RECIPIENTS} recipients")));
    }
    let (tags, configuration_set_name) = take_tags(&mut mail);
    let mut headers = take_object(&mut mail, "commonHeaders").unwrap_or_default();
    let source = take_text(&mut mail, "source");
    let from = take_first(&mut headers, "from").or(source);
    let shared = EventFact {
        kind: kind as i32,
        message_id: take_text(&mut mail, "messageId").unwrap_or_default(),
        occurred_at_nanos,
        from: from.map(|text| fit(text, MAX_HEADER)),
        subject: take_text(&mut headers, "subject").map(|text| fit(text, MAX_HEADER)),
        configuration_set_name,
        tags: tags.into_iter().map(|(name, value)| (fit(name, MAX_TAG), fit(value, MAX_TAG))).take(MAX_TAGS).collect(),
        block: read_block(kind, &mut block)?,
        ..EventFact::default()
    };
    let metadata = rest(document, mail, headers, block_name(kind), block);
    let per_recipient = recipients.into_iter().map(|recipient| {
        let mut fact =
            EventFact { recipient: recipient.address().to_owned(), metadata: metadata.clone(), ..shared.clone() };
        if let Some(Block::Bounce(bounce)) = &mut fact.block {
            recipient.lend(bounce);
        }
        fact
    });
    Ok(per_recipient.collect())
}

/// SES calls one block otherwise than S2 does.
fn block_name(kind: EventType) -> &'static str {
    if kind == EventType::RenderingFailure { "failure" } else { kind.block_name() }
}

/// Whom the event speaks of: those in its block where it names them, else all the message went to.
fn recipients(kind: EventType, block: &mut Object, mail: &mut Object) -> Result<Vec<NestedRecipient>, Fault> {
    let destination = mail.remove("destination");
    let named = match kind {
        EventType::Bounce => block.remove("bouncedRecipients"),
        EventType::Complaint => block.remove("complainedRecipients"),
        EventType::Delivery => block.remove("recipients"),
        EventType::DeliveryDelay => block.remove("delayedRecipients"),
        _ => None,
    };
    let list = named.filter(|list| list.as_array().is_some_and(|list| !list.is_empty())).or(destination);
    let list = list.ok_or_else(|| Fault::invalid("no recipient is named"))?;
    let mut list: Vec<NestedRecipient> =
        serde_json::from_value(list).map_err(|cause| Fault::invalid(format!("recipients: {cause}")))?;
    // SES writes "Name <a@b>" in places.
    for recipient in &mut list {
        let bare = address::bare(recipient.address());
        if bare.len() != recipient.address().len() {
            *recipient = NestedRecipient::Address(bare.to_owned());
        }
    }
    if list.is_empty() { Err(Fault::invalid("no recipient is named")) } else { Ok(list) }
}

fn read_block(kind: EventType, block: &mut Object) -> Result<Option<Block>, Fault> {
    fn of<B: DeserializeOwned>(block: &mut Object, names: &[&str]) -> Result<B, Fault> {
        let known: Object = names.iter().filter_map(|name| block.remove_entry(*name)).collect();
        serde_json::from_value(Value::Object(known)).map_err(|cause| Fault::invalid(cause.to_string()))
    }
    use sendtrail_schemas::block::Fields;
    fn read<B: DeserializeOwned + Fields>(block: &mut Object) -> Result<B, Fault> {
        let names: Vec<&str> = B::FIELDS.iter().map(|(name, _)| *name).collect();
        of(block, &names)
    }
    if block.is_empty() {
        return Ok(None);
    }
    Ok(Some(match kind {
        EventType::Bounce => Block::Bounce(read::<Bounce>(block)?),
        EventType::Complaint => Block::Complaint(read::<Complaint>(block)?),
        EventType::Delivery => Block::Delivery(read::<Delivery>(block)?),
        EventType::Open => Block::Open(read::<Open>(block)?),
        EventType::Click => Block::Click(read::<Click>(block)?),
        EventType::Reject => Block::Reject(read::<Reject>(block)?),
        EventType::RenderingFailure => Block::RenderingFailure(read::<RenderingFailure>(block)?),
        EventType::DeliveryDelay => Block::DeliveryDelay(read::<DeliveryDelay>(block)?),
        EventType::Subscription => {
            let mut subscription = read::<Subscription>(block)?;
            let preferences = block.get("newTopicPreferences").and_then(Value::as_object);
            let all = preferences.and_then(|preferences| preferences.get("unsubscribeAll"));
            subscription.unsubscribe_all = subscription.unsubscribe_all.or_else(|| all.and_then(Value::as_bool));
            Block::Subscription(subscription)
        }
        _ => return Ok(None),
    }))
}

/// The sender's own tags, and the configuration set; SES's own tags stay for `metadata`.
fn take_tags(mail: &mut Object) -> (Tags, Option<String>) {
    let Some(Value::Object(given)) = mail.remove("tags") else { return (Tags::new(), None) };
    let (mut tags, mut set, mut own) = (Tags::new(), None, Object::new());
    for (name, values) in given {
        let text = joined(&values);
        match text {
            Some(text) if name == "ses:configuration-set" => set = Some(text),
            Some(text) if !name.starts_with("ses:") => drop(tags.insert(name, text)),
            _ => drop(own.insert(name, values)),
        }
    }
    if !own.is_empty() {
        mail.insert("tags".into(), Value::Object(own));
    }
    (tags, set)
}

/// SES gives each tag a list of values, nearly always of one.
fn joined(values: &Value) -> Option<String> {
    match values {
        Value::String(text) => Some(text.clone()),
        Value::Array(list) => {
            let texts: Option<Vec<&str>> = list.iter().map(Value::as_str).collect();
            texts.map(|texts| texts.join(","))
        }
        _ => None,
    }
}

/// What was not read, in the document's own shape; `None` when nothing is left.
fn rest(mut document: Object, mut mail: Object, headers: Object, block_name: &str, block: Object) -> Option<String> {
    let put = |parent: &mut Object, name: &str, child: Object| {
        if !child.is_empty() {
            parent.insert(name.into(), Value::Object(child));
        }
    };
    put(&mut mail, "commonHeaders", headers);
    put(&mut document, "mail", mail);
    put(&mut document, block_name, block);
    if document.is_empty() {
        return None;
    }
    let mut document = Value::Object(document);
    let mut text = document.to_string();
    if text.len() > MAX_METADATA
        && let Some(mail) = document["mail"].as_object_mut()
    {
        // The headers of a message can be long, and they are in the message, too.
        mail.remove("headers");
        text = document.to_string();
    }
    Some(kept(text))
}

fn take_text(object: &mut Object, name: &str) -> Option<String> {
    match object.get_mut(name) {
        Some(Value::String(text)) => {
            let text = std::mem::take(text);
            object.remove(name);
            Some(text)
        }
        _ => None,
    }
}

fn take_object(object: &mut Object, name: &str) -> Option<Object> {
    match object.get_mut(name) {
        Some(Value::Object(inner)) => {
            let inner = std::mem::take(inner);
            object.remove(name);
            Some(inner)
        }
        _ => None,
    }
}

fn take_first(object: &mut Object, name: &str) -> Option<String> {
    let first = object.get(name)?.as_array()?.first()?.as_str()?.to_owned();
    object.remove(name);
    Some(first)
}

#[cfg(test)]
mod tests;
