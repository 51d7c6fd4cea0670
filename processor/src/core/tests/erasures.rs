//! Recipients of whom nothing may be kept.

use sendtrail_schemas::account::{MAX_ERASURES, Policy};
use sendtrail_schemas::block::{Block, Bounce};
use sendtrail_schemas::event::{EventFact, Tags};
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::record::{AccountFields, Body, Change, Command, EndErasure, EraseRecipient};
use sendtrail_schemas::time::{DAY, HOUR, Millis};

use super::machine::{Machine, code, fact, send};
use super::scenarios::verify_domain;
use crate::core::effects::SuppressionChange;

const START: Millis = Millis(20_000 * DAY + 10 * HOUR);

fn machine() -> Machine {
    let mut machine = Machine::with_account(START, Policy::splashify());
    verify_domain(&mut machine, "acme.com");
    machine
}

fn erase(n: u32, recipient: &str) -> Change {
    let erasure_id = u128::from(n).to_be_bytes().to_vec();
    Change::EraseRecipient(EraseRecipient { erasure_id, recipient: recipient.into() })
}

fn bounce(message: &str, recipient: &str) -> EventFact {
    let block = Bounce {
        bounce_type: Some("Permanent".into()),
        diagnostic_code: Some("550 <jane@b.co>".into()),
        ..Bounce::default()
    };
    EventFact { block: Some(Block::Bounce(block)), ..fact(EventType::Bounce, message, recipient) }
}

#[test]
fn an_erasure_takes_the_suppression_away_and_tells_whoever_files_events() {
    let mut m = machine();
    m.fact(bounce("m", "Jane@b.co"));
    let (effects, decision) = m.ask(Body::Command(Command { change: Some(erase(1, "jane@B.co")) }));
    assert_eq!(code(&decision), "ok");
    assert_eq!(effects.suppressions.len(), 1);
    assert!(matches!(&effects.suppressions[0].1, SuppressionChange::Delete(email) if email == "jane@b.co"));
    let event = &effects.events[0];
    assert_eq!((event.kind(), event.recipient.as_str()), (EventType::RecipientErased, "jane@B.co"));
    assert!(event.destination_ids.is_empty());
    let known = &m.config().erasures[0];
    assert_eq!((known.requested_at, known.erased_at), (START.0, None));
    let shown = format!("{:?}", m.config());
    assert!(!shown.to_lowercase().contains("jane"), "the account remembers a hash only");
    m.command(Change::EndErasure(EndErasure { erasure_id: known.erasure_id.clone(), rows: 3 }));
    assert_eq!((m.config().erasures[0].erased_at, m.config().erasures[0].rows), (Some(START.0), 3));
    assert_eq!(code(&m.command(Change::EndErasure(EndErasure { erasure_id: vec![9; 16], rows: 0 }))), "NOT_FOUND");
}

#[test]
fn what_comes_late_of_messages_from_before_counts_and_says_nothing_of_the_recipient() {
    let mut m = machine();
    let sent = EventFact {
        subject: Some("Jane!".into()),
        customer_id: Some("jane".into()),
        tags: Tags::from([("a".into(), "b".into())]),
        ..fact(EventType::Send, "before", "jane@b.co")
    };
    m.fact(sent);
    m.now = m.now.plus(HOUR);
    m.command(erase(1, "jane@b.co"));
    m.restart();
    m.now = m.now.plus(HOUR);
    for message in ["before", "unknown"] {
        let effects = m.apply(super::machine::record(Body::Fact(bounce(message, "JANE@b.co"))));
        let event = &effects.events[0];
        assert!(event.counted && effects.suppressions.is_empty(), "{message}");
        assert_eq!((event.message_id.as_str(), event.recipient.as_str()), (message, ""));
        assert_eq!((&event.subject, &event.customer_id, event.tags.len()), (&None, &None, 0));
        let kept = Bounce { bounce_type: Some("Permanent".into()), ..Bounce::default() };
        assert_eq!(event.block, Some(Block::Bounce(kept)));
    }
    assert!(m.fact(bounce("before", "jane@b.co")).is_empty(), "a copy is still a copy");
    // Others, and mail sent since, are none of it.
    assert_eq!(m.fact(bounce("before", "other@b.co"))[0].recipient, "other@b.co");
    m.send(send("since", &["jane@b.co"]));
    m.now = m.now.plus(HOUR);
    assert_eq!(m.fact(fact(EventType::Open, "since-0", "jane@b.co"))[0].recipient, "jane@b.co");
    // After 15 days a message that nobody remembers is a new one.
    m.now = START.plus(HOUR + 15 * DAY);
    assert_eq!(m.fact(bounce("long ago", "jane@b.co"))[0].recipient, "jane@b.co");
}

#[test]
fn a_hold_refuses_and_so_does_the_bound() {
    let mut m = machine();
    let hold = |on| Change::PatchAccount(AccountFields { legal_hold: Some(on), ..AccountFields::default() });
    m.command(hold(true));
    assert_eq!(code(&m.command(erase(0, "a@b.co"))), "LEGAL_HOLD");
    assert!(m.config().erasures.is_empty());
    m.command(hold(false));
    for n in 0..MAX_ERASURES as u32 {
        assert_eq!(code(&m.command(erase(n, &format!("u{n}@b.co")))), "ok");
    }
    assert_eq!(code(&m.command(erase(5_000, "one@b.co"))), "ERASURE_LIMIT_REACHED");
    // Those of long ago make room once they have reached every store.
    let first = m.config().erasures[0].erasure_id.clone();
    m.command(Change::EndErasure(EndErasure { erasure_id: first, rows: 1 }));
    assert_eq!(code(&m.command(erase(5_000, "one@b.co"))), "ERASURE_LIMIT_REACHED");
    m.now = m.now.plus(15 * DAY);
    assert_eq!(code(&m.command(erase(5_000, "one@b.co"))), "ok");
    assert_eq!(m.config().erasures.len(), MAX_ERASURES);
}
