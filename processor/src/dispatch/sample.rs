//! Made-up events, to try a webhook with.

use sendtrail_schemas::account::AccountConfig;
use sendtrail_schemas::block::{
    Block, Bounce, Click, Complaint, Delivery, DeliveryDelay, Lifecycle, Open, Reject, RenderingFailure, Reply,
    StatusChange, Subscription, WebhookChange,
};
use sendtrail_schemas::event::{Event, Tags};
use sendtrail_schemas::ids::hash128;
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::time::{Millis, SECOND};

/// An event of a type as it might be; its message and recipient are nobody's (RFC 2606).
pub fn event(account: &AccountConfig, kind: EventType, now: Millis) -> Event {
    let of_message = kind.is_streamable();
    let text = |text: &str| of_message.then(|| text.to_owned());
    let now_bytes = now.0.to_be_bytes();
    Event {
        version: kind.version(),
        account_id: account.account_id.clone(),
        kind: kind as i32,
        event_id: "sample".into(),
        // Where no event is, so that its delivery is told apart from every other and from the next sample.
        partition: u32::from(u16::MAX),
        seq: hash128(&[b"sample", &account.account_id, &now_bytes]) as u64,
        occurred_at: now.0,
        received_at: now.0,
        sent_at: of_message.then_some(now.0 - SECOND),
        message_id: text("00000000-0000-4000-8000-000000000000").unwrap_or_default(),
        send_id: text("00000000-0000-4000-8000-000000000001"),
        recipient: text("recipient@example.com").unwrap_or_default(),
        from: text("Sample <sender@example.com>"),
        subject: text("A sample"),
        category: text("transactional"),
        tags: if of_message { Tags::from([("sample".into(), "true".into())]) } else { Tags::new() },
        metadata: text(r#"{"sample":true}"#),
        block: block(kind),
        ..Event::default()
    }
}

/// Makes a sample of a bounce one that is not for good; others stay as they are.
pub fn soften(event: &mut Event) {
    if let Some(Block::Bounce(bounce)) = &mut event.block {
        let some = |text: &str| Some(text.to_owned());
        *bounce = Bounce {
            bounce_type: some("Transient"),
            bounce_sub_type: some("MailboxFull"),
            diagnostic_code: some("smtp; 452 4.2.2 mailbox full"),
            status: some("4.2.2"),
            action: some("failed"),
            ..Bounce::default()
        };
    }
}

fn block(kind: EventType) -> Option<Block> {
    let some = |text: &str| Some(text.to_owned());
    let (ip_address, user_agent) = (some("192.0.2.1"), some("Mozilla/5.0 (sample)"));
    Some(match kind {
        EventType::Unspecified | EventType::Send | EventType::RecipientErased | EventType::ConfigurationChanged => {
            return None;
        }
        EventType::Delivery => Block::Delivery(Delivery {
            smtp_response: some("250 2.0.0 OK"),
            processing_time_millis: Some(420),
            ..Delivery::default()
        }),
        EventType::Bounce => Block::Bounce(Bounce {
            bounce_type: some("Permanent"),
            bounce_sub_type: some("General"),
            diagnostic_code: some("smtp; 550 5.1.1 user unknown"),
            status: some("5.1.1"),
            action: some("failed"),
            ..Bounce::default()
        }),
        EventType::Complaint => {
            Block::Complaint(Complaint { complaint_feedback_type: some("abuse"), ..Complaint::default() })
        }
        EventType::Open => Block::Open(Open { ip_address, user_agent }),
        EventType::Click => Block::Click(Click { ip_address, user_agent, link: some("https://example.com/") }),
        EventType::Reject => Block::Reject(Reject { reason: some("address on suppression list") }),
        EventType::RenderingFailure => Block::RenderingFailure(RenderingFailure {
            template_name: some("sample"),
            error_message: some("missing required variable: name"),
        }),
        EventType::DeliveryDelay => {
            Block::DeliveryDelay(DeliveryDelay { delay_type: some("TemporaryFailure"), ..DeliveryDelay::default() })
        }
        EventType::Reply => Block::Reply(Reply {
            original_recipient: some("recipient@example.com"),
            from: some("Recipient <recipient@example.com>"),
            subject: some("Re: A sample"),
            text_body: some("Thank you!"),
            ..Reply::default()
        }),
        EventType::Subscription => Block::Subscription(Subscription {
            source: some("UnsubscribeHeader"),
            unsubscribe_all: Some(true),
            ..Subscription::default()
        }),
        EventType::AtRisk | EventType::Paused | EventType::Resumed | EventType::Healthy => {
            let to = match kind {
                EventType::AtRisk => "AT_RISK",
                EventType::Paused => "PAUSED",
                _ => "HEALTHY",
            };
            Block::StatusChange(StatusChange {
                from: "HEALTHY".into(),
                to: to.into(),
                rule: "bounce_rate".into(),
                numerator: 11,
                denominator: 100,
                limit_ppm: 100_000,
                reason: "a sample".into(),
                ..StatusChange::default()
            })
        }
        EventType::WebhookFailing | EventType::WebhookRecovered | EventType::WebhookDisabled => {
            let to = match kind {
                EventType::WebhookFailing => "failing",
                EventType::WebhookRecovered => "working",
                _ => "disabled",
            };
            Block::WebhookChange(WebhookChange {
                name: some("sample"),
                from: some("working"),
                to: some(to),
                reason: some("a sample"),
                ..WebhookChange::default()
            })
        }
        EventType::Lifecycle => Block::Lifecycle(Lifecycle {
            event_type: some("production_access.approved"),
            data: some("{}"),
            passthrough: Some(false),
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::webhook::envelope::render;
    use sendtrail_schemas::destination::{Dialect, Envelope};

    #[test]
    fn there_is_a_sample_of_everything_that_a_dialect_speaks_of() {
        for dialect in Dialect::ALL {
            for kind in EventType::ALL {
                let sample = event(&AccountConfig::default(), kind, Millis(1_700_000_000_000));
                let spoken = dialect.speaks_of(kind) || kind == EventType::Lifecycle;
                assert_eq!(render(dialect, Envelope::Dialect, &sample).is_some(), spoken, "{dialect:?} {kind:?}");
            }
        }
    }
}
