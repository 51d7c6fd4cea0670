//! The contract's fine print, line by line: what becomes of a fact, and, below, all that follows from it.

mod sending;
mod sets;
mod standing;

use sendtrail_schemas::account::{ConfigSet, Identity, IdentityStatus, IdentityType, Policy};
use sendtrail_schemas::block::{Block, Bounce, Open};
use sendtrail_schemas::event::{Event, EventFact, Tags};
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::record::{Body, Change, IdentityName, Pause, SetIdentityStatus};
use sendtrail_schemas::time::{DAY, HOUR, MINUTE, Millis};
use uuid::Uuid;

use super::machine::{Machine, code, fact, record, send};
use crate::core::effects::SuppressionChange;
use crate::core::overlay::StoreKey;

const START: Millis = Millis(20_000 * DAY + 10 * HOUR);

fn machine() -> Machine {
    let mut machine = Machine::with_account(START, Policy::splashify());
    verify_domain(&mut machine, "acme.com");
    machine
}

pub fn verify_domain(machine: &mut Machine, domain: &str) {
    verify(machine, IdentityType::Domain, domain);
}

fn verify(machine: &mut Machine, kind: IdentityType, value: &str) {
    let identity = Identity { kind: kind as i32, value: value.into(), ..Identity::default() };
    machine.command(Change::CreateIdentity(identity));
    let name = IdentityName { kind: kind as i32, value: value.into() };
    let status = IdentityStatus::Verified as i32;
    machine.command(Change::SetIdentityStatus(SetIdentityStatus { identity: Some(name), status }));
}

fn set(name: &str) -> ConfigSet {
    ConfigSet {
        config_set_id: Uuid::from_u128(name.bytes().fold(7, |n, b| n * 131 + u128::from(b))).as_bytes().to_vec(),
        name: name.into(),
        sending_enabled: true,
        reputation_tracking_enabled: true,
        ..ConfigSet::default()
    }
}

fn bounce(message: &str, recipient: &str, kind: &str) -> EventFact {
    let block =
        Bounce { bounce_type: Some(kind.into()), diagnostic_code: Some("550 5.7.1".into()), ..Bounce::default() };
    EventFact { block: Some(Block::Bounce(block)), ..fact(EventType::Bounce, message, recipient) }
}

fn at(fact: EventFact, time: Millis) -> EventFact {
    EventFact { occurred_at_nanos: Some(time.0 * 1_000_000), ..fact }
}

fn sums(machine: &mut Machine) -> (u64, u64, u64) {
    let now = machine.now;
    let counts = machine.reputation().window.at(now);
    (counts.sent, counts.bounced, counts.complained)
}

fn kinds(events: &[Event]) -> Vec<EventType> {
    events.iter().map(Event::kind).collect()
}

fn sends(machine: &mut Machine, range: std::ops::Range<usize>) {
    for n in range {
        machine.fact(fact(EventType::Send, &format!("m{n}"), "a@b.co"));
    }
}

#[test]
fn an_event_before_the_window_is_history_and_may_still_suppress() {
    let mut m = machine();
    let first_hour = Millis::of_hour(START.hour() - 335);
    let event = &m.fact(at(fact(EventType::Send, "in", "a@b.co"), first_hour))[0];
    assert!(event.counted && !event.history);
    let event = &m.fact(at(fact(EventType::Send, "out", "a@b.co"), first_hour.plus(-1)))[0];
    assert!(!event.counted && event.history);
    assert_eq!(sums(&mut m), (1, 0, 0));
    let effects = m.apply(record(Body::Fact(at(bounce("x", "gone@b.co", "Permanent"), first_hour.plus(-DAY)))));
    assert!(effects.events[0].history && !effects.events[0].counted);
    assert!(matches!(&effects.suppressions[0].1, SuppressionChange::Put(row) if row.email == "gone@b.co"));
}

#[test]
fn an_event_too_far_ahead_is_dated_at_its_receipt() {
    let mut m = machine();
    let event = &m.fact(at(fact(EventType::Send, "a", "a@b.co"), START.plus(5 * MINUTE)))[0];
    assert_eq!((event.occurred_at, event.original_occurred_at), (START.0 + 5 * MINUTE, None));
    let event = &m.fact(at(fact(EventType::Send, "b", "a@b.co"), START.plus(5 * MINUTE + 1)))[0];
    assert_eq!((event.occurred_at, event.original_occurred_at), (START.0, Some(START.0 + 5 * MINUTE + 1)));
}

#[test]
fn an_event_in_the_next_hour_waits_outside_the_sum() {
    let mut m = machine();
    m.now = Millis::of_hour(START.hour() + 1).plus(-MINUTE);
    assert!(m.fact(at(fact(EventType::Send, "a", "a@b.co"), m.now.plus(2 * MINUTE)))[0].counted);
    assert_eq!(sums(&mut m), (0, 0, 0));
    m.now = m.now.plus(MINUTE);
    assert_eq!(sums(&mut m), (1, 0, 0));
}

#[test]
fn once_only_facts_are_the_same_whatever_their_event_id() {
    for kind in
        [EventType::Send, EventType::Delivery, EventType::Complaint, EventType::Reject, EventType::RenderingFailure]
    {
        let mut m = machine();
        assert_eq!(m.fact(EventFact { event_id: Some("1".into()), ..fact(kind, "m", "A@b.co") }).len(), 1);
        assert_eq!(m.fact(EventFact { event_id: Some("2".into()), ..fact(kind, "m", "a@B.co") }).len(), 0, "{kind:?}");
        m.now = m.now.plus(15 * DAY - 1);
        m.restart();
        assert_eq!(m.fact(fact(kind, "m", "a@b.co")).len(), 0, "{kind:?}");
        m.now = m.now.plus(1);
        assert_eq!(m.fact(fact(kind, "m", "a@b.co")).len(), 1, "{kind:?}");
    }
    let mut m = machine();
    assert_eq!(m.fact(bounce("m", "a@b.co", "Permanent")).len(), 1);
    assert_eq!(m.fact(bounce("m", "a@b.co", "Permanent")).len(), 0);
    assert_eq!(m.fact(bounce("m", "other@b.co", "Permanent")).len(), 1);
}

#[test]
fn repeatable_facts_are_told_apart_by_identifier_or_time_and_block() {
    let mut m = machine();
    let open = |id: Option<&str>, time: Option<i64>, ip: &str| EventFact {
        event_id: id.map(Into::into),
        occurred_at_nanos: time,
        block: Some(Block::Open(Open { ip_address: Some(ip.into()), ..Open::default() })),
        ..fact(EventType::Open, "m", "a@b.co")
    };
    let t = START.0 * 1_000_000;
    assert_eq!(m.fact(open(Some("e"), None, "1")).len(), 1);
    assert_eq!(m.fact(open(Some("e"), Some(t), "2")).len(), 0);
    assert_eq!(m.fact(open(None, Some(t), "1")).len(), 1);
    assert_eq!(m.fact(open(None, Some(t), "1")).len(), 0);
    assert_eq!(m.fact(open(None, Some(t), "2")).len(), 1);
    assert_eq!(m.fact(open(None, Some(t + 1), "1")).len(), 1);
    // With neither, at least once.
    assert_eq!(m.fact(open(None, None, "1")).len(), 1);
    assert_eq!(m.fact(open(None, None, "1")).len(), 1);
    let lent = EventFact { lent_identity: Some(b"key/0".to_vec()), ..open(None, None, "1") };
    assert_eq!(m.fact(lent.clone()).len(), 1);
    assert_eq!(m.fact(lent).len(), 0);
    // 72 hours, from the receipt of the first copy.
    m.now = m.now.plus(72 * HOUR - 1);
    assert_eq!(m.fact(open(Some("e"), None, "1")).len(), 0);
    m.now = m.now.plus(1);
    assert_eq!(m.fact(open(Some("e"), None, "1")).len(), 1);
}

#[test]
fn the_first_open_and_click_of_a_message_and_recipient_are_unique() {
    let mut m = machine();
    let flags: Vec<bool> = ["1", "2", "3"]
        .iter()
        .map(|id| m.fact(EventFact { event_id: Some((*id).into()), ..fact(EventType::Open, "m", "a@b.co") })[0].unique)
        .collect();
    assert_eq!(flags, [true, false, false]);
    assert!(m.fact(fact(EventType::Click, "m", "a@b.co"))[0].unique);
    assert!(m.fact(fact(EventType::Open, "m", "c@b.co"))[0].unique);
    m.now = m.now.plus(15 * DAY);
    assert!(m.fact(fact(EventType::Open, "m", "a@b.co"))[0].unique);
}

#[test]
fn an_event_takes_what_it_lacks_from_its_send() {
    let mut m = machine();
    let mut marketing = set("marketing");
    marketing.tags = Tags::from([("team".into(), "growth".into()), ("env".into(), "set".into())]);
    m.command(Change::CreateConfigSet(marketing));
    let sent = EventFact {
        from: Some("News <news@acme.com>".into()),
        subject: Some("June".into()),
        configuration_set_name: Some("marketing".into()),
        customer_id: Some("c1".into()),
        category: Some("marketing".into()),
        tags: Tags::from([("env".into(), "own".into())]),
        metadata: Some("{\"k\":1}".into()),
        send_id: Some("s1".into()),
        ..fact(EventType::Send, "m", "a@b.co")
    };
    let event = &m.fact(sent)[0];
    assert_eq!(event.tags, Tags::from([("team".into(), "growth".into()), ("env".into(), "own".into())]));
    m.restart();
    let event = &m.fact(fact(EventType::Delivery, "m", "a@b.co"))[0];
    assert_eq!(event.from.as_deref(), Some("News <news@acme.com>"));
    assert_eq!(event.subject.as_deref(), Some("June"));
    assert_eq!(event.configuration_set_name.as_deref(), Some("marketing"));
    assert_eq!((event.customer_id.as_deref(), event.category.as_deref()), (Some("c1"), Some("marketing")));
    assert_eq!((event.metadata.as_deref(), event.send_id.as_deref()), (Some("{\"k\":1}"), Some("s1")));
    assert_eq!(event.tags, Tags::from([("team".into(), "growth".into()), ("env".into(), "own".into())]));
    assert_eq!(event.sent_at, Some(START.0));
    // What it has stays.
    let own = EventFact {
        subject: Some("Re".into()),
        tags: Tags::from([("x".into(), String::new())]),
        ..fact(EventType::Open, "m", "a@b.co")
    };
    let event = &m.fact(own)[0];
    assert_eq!(event.subject.as_deref(), Some("Re"));
    assert!(event.tags.contains_key("x") && event.tags["env"] == "set");
    // After 15 days the Send is forgotten.
    m.now = m.now.plus(15 * DAY);
    let event = &m.fact(fact(EventType::Complaint, "m", "a@b.co"))[0];
    assert_eq!((event.from.as_deref(), event.sent_at), (None, None));
}

#[test]
fn a_row_that_is_over_is_forgotten_as_a_whole() {
    // Whether the store has dropped it by then, or has not, is chance.
    let rows = |was_sent: bool| {
        let mut m = machine();
        if was_sent {
            m.fact(fact(EventType::Send, "m", "a@b.co"));
            m.checkpoint();
        }
        m.now = m.now.plus(20 * DAY);
        let opened = m.fact(EventFact { event_id: Some("e".into()), ..fact(EventType::Open, "m", "a@b.co") });
        assert_eq!((opened[0].unique, opened[0].sent_at), (true, None));
        m.checkpoint();
        let rows = m.store_bytes().into_iter().filter(|(key, _)| matches!(key, StoreKey::Row(_)));
        rows.collect::<Vec<_>>()
    };
    assert_eq!(rows(true), rows(false));
}

#[test]
fn time_never_runs_back() {
    let mut m = machine();
    m.fact(fact(EventType::Send, "a", "a@b.co"));
    m.now = m.now.plus(-DAY);
    let event = &m.fact(fact(EventType::Send, "b", "a@b.co"))[0];
    assert_eq!(event.received_at, START.0);
    assert_eq!(event.occurred_at, START.0);
}

#[test]
fn simulated_time_is_honoured_only_on_a_simulated_log() {
    let mut m = machine();
    let later = |body| sendtrail_schemas::record::Record { simulated_time: Some(START.0 + DAY), ..record(body) };
    let body = || Body::Fact(fact(EventType::Open, "a", "a@b.co"));
    assert_eq!(m.apply(later(body())).events[0].received_at, START.0);
    let settings = sendtrail_schemas::record::Settings { simulated: true, ..crate::core::step::usual_settings() };
    // The very first record of a simulated log: not even it is of the wall clock's time.
    m.now = m.now.plus(60 * DAY);
    m.apply(sendtrail_schemas::record::Record {
        version: 1,
        body: Some(Body::Settings(settings)),
        ..Default::default()
    });
    m.now = m.now.plus(-60 * DAY);
    assert_eq!(m.apply(later(body())).events[0].received_at, START.0 + DAY);
    m.now = m.now.plus(30 * DAY);
    assert_eq!(m.apply(record(body())).events[0].received_at, START.0 + DAY);
}

#[test]
fn unknown_accounts_are_refused_and_their_facts_become_dead_letters() {
    let mut m = Machine::new(START);
    assert_eq!(code(&m.send(send("s", &["x@y.co"])).1), "PARTNER_NOT_FOUND");
    assert_eq!(code(&m.command(Change::Pause(Pause { reason: "x".into() }))), "PARTNER_NOT_FOUND");
    let effects = m.apply(record(Body::Fact(fact(EventType::Open, "m", "a@b.co"))));
    assert!(effects.events.is_empty());
    assert_eq!(effects.dead_letters[0].reason, "no such account");
}

#[test]
fn profiles_are_shared_up_to_a_bound_and_written_out_beyond() {
    use crate::core::account::MAX_PROFILES;
    let mut m = machine();
    let sent = |n: usize| EventFact {
        customer_id: Some(format!("c{n}")),
        ..fact(EventType::Send, &format!("m{n}"), "a@b.co")
    };
    for n in 0..MAX_PROFILES + 10 {
        m.fact(sent(n));
    }
    m.restart();
    for n in [0, MAX_PROFILES - 1, MAX_PROFILES, MAX_PROFILES + 9] {
        let event = &m.fact(fact(EventType::Delivery, &format!("m{n}"), "a@b.co"))[0];
        assert_eq!(event.customer_id, Some(format!("c{n}")));
    }
    // Once no row can name them, numbers are given anew, and rows that named the old ones have expired.
    m.now = m.now.plus(15 * DAY + 2 * HOUR);
    m.fact(EventFact { customer_id: Some("new".into()), ..fact(EventType::Send, "late", "a@b.co") });
    m.restart();
    assert_eq!(m.fact(fact(EventType::Delivery, "late", "a@b.co"))[0].customer_id.as_deref(), Some("new"));
    assert_eq!(m.fact(fact(EventType::Open, "m0", "a@b.co"))[0].customer_id, None);
}
