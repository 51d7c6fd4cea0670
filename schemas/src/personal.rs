//! What of an event may say something of a person, and events without it.

use crate::block::{Block, FieldValue, Fields};
use crate::event::Event;

/// Columns of the archive of events that may say something of a person. `block.*` is every field of a block that is not
/// named as `!block.field`.
pub const PERSONAL: &[&str] = &[
    "activity.*",
    "bounce.*",
    "click.*",
    "complaint.*",
    "customer_id",
    "delivery.*",
    "deliveryDelay.*",
    "lifecycle.*",
    "metadata",
    "open.*",
    "recipient",
    "recipient_domain",
    "recipient_folded",
    "reject.*",
    "renderingFailure.*",
    "reply.*",
    "subject",
    "subscription.*",
    "tags",
    "!activity.action",
    "!activity.actor",
    "!activity.actor_id",
    "!activity.subject",
    "!bounce.bounceSubType",
    "!bounce.bounceType",
    "!bounce.status",
    "!complaint.complaintFeedbackType",
    "!complaint.complaintSubType",
    "!delivery.processingTimeMillis",
    "!deliveryDelay.delayType",
    "!lifecycle.event_type",
    "!renderingFailure.templateName",
    "!subscription.contactList",
    "!subscription.source",
    "!subscription.unsubscribeAll",
];

/// The same, as a seal lists them.
pub fn personal() -> Vec<String> {
    PERSONAL.iter().map(|&name| name.to_owned()).collect()
}

/// Whether a field of a block may say something of a person.
pub fn is_personal(block: &str, field: &str) -> bool {
    let named = |text: &str| PERSONAL.contains(&text);
    named(&format!("{block}.*")) && !named(&format!("!{block}.{field}"))
}

/// An event of which nothing personal is left: what happened when, and to which message.
pub fn strip(event: &mut Event) {
    event.recipient.clear();
    event.subject = None;
    event.customer_id = None;
    event.tags.clear();
    event.metadata = None;
    event.block = event.block.take().map(|block| match block {
        Block::Bounce(block) => Block::Bounce(stripped(&block, "bounce")),
        Block::Complaint(block) => Block::Complaint(stripped(&block, "complaint")),
        Block::Delivery(block) => Block::Delivery(stripped(&block, "delivery")),
        Block::Open(block) => Block::Open(stripped(&block, "open")),
        Block::Click(block) => Block::Click(stripped(&block, "click")),
        Block::Reject(block) => Block::Reject(stripped(&block, "reject")),
        Block::DeliveryDelay(block) => Block::DeliveryDelay(stripped(&block, "deliveryDelay")),
        Block::RenderingFailure(block) => Block::RenderingFailure(stripped(&block, "renderingFailure")),
        Block::Reply(block) => Block::Reply(stripped(&block, "reply")),
        Block::Subscription(block) => Block::Subscription(stripped(&block, "subscription")),
        Block::Lifecycle(block) => Block::Lifecycle(stripped(&block, "lifecycle")),
        Block::Activity(block) => Block::Activity(stripped(&block, "activity")),
        Block::StatusChange(_) | Block::WebhookChange(_) => block,
    });
}

fn stripped<B: Fields>(block: &B, name: &str) -> B {
    let mut names = B::FIELDS.iter();
    let mut values: Vec<Option<FieldValue<'static>>> = Vec::with_capacity(B::FIELDS.len());
    block.read(&mut |value| {
        let personal = names.next().is_none_or(|(field, _)| is_personal(name, field));
        values.push(value.filter(|_| !personal).map(FieldValue::into_owned));
    });
    let mut values = values.into_iter();
    let mut made = B::default();
    made.write(&mut || values.next().flatten());
    made
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Bounce;
    use crate::event::Tags;

    #[test]
    fn what_happened_stays_and_to_whom_does_not() {
        let bounce = Bounce {
            bounce_type: Some("Permanent".into()),
            status: Some("5.1.1".into()),
            diagnostic_code: Some("550 <jane@example.com> unknown".into()),
            ..Bounce::default()
        };
        let mut event = Event {
            message_id: "m-1".into(),
            recipient: "jane@example.com".into(),
            subject: Some("Jane, your order".into()),
            customer_id: Some("jane".into()),
            tags: Tags::from([("name".into(), "jane".into())]),
            metadata: Some("{}".into()),
            from: Some("shop@example.org".into()),
            block: Some(Block::Bounce(bounce)),
            ..Event::default()
        };
        strip(&mut event);
        let kept = Bounce { bounce_type: Some("Permanent".into()), status: Some("5.1.1".into()), ..Bounce::default() };
        let expected = Event {
            message_id: "m-1".into(),
            from: Some("shop@example.org".into()),
            block: Some(Block::Bounce(kept)),
            ..Event::default()
        };
        assert_eq!(event, expected);
    }
}
