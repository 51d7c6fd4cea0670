//! S3's. Its receivers sign what `JSON.stringify(JSON.parse(body))` gives, so the body must be just that: compact, nothing
//! escaped that need not be, and here text only, for numbers would have to be written as JavaScript writes them.

use sendtrail_schemas::event::Event;
use sendtrail_schemas::ids::hash128;
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::time::Millis;
use serde::Serialize;

use super::json;

#[derive(Serialize)]
struct Body<'a> {
    event: &'a str,
    transaction_id: &'a str,
    timestamp: Millis,
    data: Data<'a>,
}

#[derive(Serialize)]
struct Data<'a> {
    id: &'a str,
    email_id: &'a str,
    r#type: &'static str,
    status: &'static str,
    to: &'a str,
    subject: &'a str,
    from: &'a str,
}

pub(super) fn body(event: &Event, event_name: &str) -> Vec<u8> {
    let transaction_id = &transaction_id(event);
    let status = match event.kind() {
        EventType::Send => "sent",
        EventType::Delivery => "delivered",
        EventType::Bounce => "bounced",
        EventType::Complaint => "complained",
        EventType::Open => "opened",
        _ => "clicked",
    };
    let data = Data {
        id: transaction_id,
        email_id: &event.message_id,
        r#type: "email",
        status,
        to: &event.recipient,
        subject: event.subject.as_deref().unwrap_or_default(),
        from: event.from.as_deref().unwrap_or_default(),
    };
    json(&Body { event: event_name, transaction_id, timestamp: event.occurred(), data })
}

/// One an event, the same over retries and for every destination: `txn_`, its receipt in base 36, twelve digits of its place.
fn transaction_id(event: &Event) -> String {
    let mut time = Vec::new();
    let mut rest = event.received_at.max(0) as u64;
    while rest > 0 || time.is_empty() {
        time.push(char::from_digit((rest % 36) as u32, 36).unwrap_or('0'));
        rest /= 36;
    }
    let time: String = time.into_iter().rev().collect();
    let place = hash128(&[&event.account_id, &event.partition.to_be_bytes(), &event.seq.to_be_bytes()]) as u64;
    format!("txn_{time}_{:012x}", place & 0xffff_ffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{event, told};
    use super::*;
    use sendtrail_schemas::destination::Dialect;
    use serde_json::json;

    #[test]
    fn bodies_are_those_of_the_seed_with_a_transaction_of_their_own() {
        let delivered = event(EventType::Delivery, None);
        let body = told(Dialect::Sendcomms, &delivered);
        let transaction = body["transaction_id"].as_str().unwrap();
        assert!(transaction.starts_with("txn_mo") && transaction.len() == 25, "{transaction}");
        assert_eq!(
            body,
            json!({"event": "email.delivered", "transaction_id": transaction, "timestamp": "2026-05-03T12:34:58.789Z",
                "data": {"id": transaction, "email_id": "550e8400", "type": "email", "status": "delivered",
                    "to": "customer@example.com", "subject": delivered.subject, "from": delivered.from}})
        );
        let next = Event { seq: 256, ..delivered.clone() };
        assert_ne!(transaction_id(&next), transaction);
        assert_eq!(transaction_id(&delivered), transaction);
    }
}
