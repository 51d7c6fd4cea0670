//! The contract's fine print, line by line.

use sendtrail_schemas::account::{
    ConfigSet, Identity, IdentityStatus, IdentityType, Mode, Policy, Status, SuppressionOptions,
};
use sendtrail_schemas::block::{Block, Bounce, Open, Subscription};
use sendtrail_schemas::destination::Destination;
use sendtrail_schemas::event::{Event, EventFact, Tags};
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::record::{
    AccountFields, Body, Change, ConfigSetPatch, CreateDestination, Idempotency, IdentityName, Outcome, Pause, Resume,
    SetIdentityStatus,
};
use sendtrail_schemas::time::{DAY, HOUR, MINUTE, Millis, SECOND};
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
fn an_unknown_set_is_kept_as_given_and_has_default_options() {
    let mut m = machine();
    let named = EventFact { configuration_set_name: Some("ghost".into()), ..bounce("m", "a@b.co", "Permanent") };
    let effects = m.apply(record(Body::Fact(named)));
    assert_eq!(effects.events[0].configuration_set_name.as_deref(), Some("ghost"));
    assert_eq!(effects.events[0].config_set_id, None);
    assert!(effects.events[0].counted);
    assert_eq!(effects.suppressions.len(), 1);
}

#[test]
fn mail_in_flight_stays_with_its_set_when_that_is_renamed() {
    let mut m = machine();
    let none = ConfigSet { suppression_options: 3, ..set("old") };
    let id = none.config_set_id.clone();
    m.command(Change::CreateConfigSet(none));
    let rename = |name: &str| {
        let patch = ConfigSetPatch { config_set_id: id.clone(), name: Some(name.into()), ..Default::default() };
        Change::PatchConfigSet(patch)
    };
    let request =
        sendtrail_schemas::record::SendRequest { configuration_set_name: Some("old".into()), ..send("s", &["a@b.co"]) };
    m.send(request);
    m.fact(EventFact { configuration_set_name: Some("old".into()), ..fact(EventType::Send, "m", "a@b.co") });
    m.command(rename("new"));
    m.restart();
    for message in ["s-0", "m"] {
        let effects = m.apply(record(Body::Fact(bounce(message, "a@b.co", "Permanent"))));
        assert_eq!(effects.events[0].configuration_set_name.as_deref(), Some("new"));
        assert_eq!(effects.events[0].config_set_id.as_ref(), Some(&id));
        assert!(effects.suppressions.is_empty(), "its options say none");
    }
    // Told by its old name; and the name given to another set.
    let told = || EventFact { configuration_set_name: Some("old".into()), ..fact(EventType::Delivery, "m", "a@b.co") };
    let other = ConfigSet { config_set_id: vec![9; 16], suppression_options: 3, ..set("old") };
    m.command(Change::CreateConfigSet(other));
    assert_eq!(m.fact(told())[0].configuration_set_name.as_deref(), Some("new"));
    // Another message of that name is the other set's.
    let other = EventFact { message_id: "other".into(), ..told() };
    assert_eq!(m.fact(other)[0].config_set_id.as_deref(), Some(&[9; 16][..]));
    // Of a set that is gone only the name is left; whoever took that name does not get its mail.
    m.command(Change::DeleteConfigSet(id.clone()));
    let effects = m.apply(record(Body::Fact(fact(EventType::Complaint, "m", "a@b.co"))));
    let event = &effects.events[0];
    assert_eq!((event.configuration_set_name.as_deref(), &event.config_set_id), (Some("old"), &None));
    assert_eq!(effects.suppressions.len(), 1, "what the other set says is not about this mail");
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
fn only_permanent_bounces_suppress_and_count() {
    let mut m = machine();
    for (n, kind) in ["Transient", "Undetermined", "transient", ""].into_iter().enumerate() {
        let effects = m.apply(record(Body::Fact(bounce(&format!("m{n}"), "a@b.co", kind))));
        assert!(!effects.events[0].counted && effects.suppressions.is_empty(), "{kind}");
    }
    let effects = m.apply(record(Body::Fact(fact(EventType::Bounce, "no block", "a@b.co"))));
    assert!(!effects.events[0].counted && effects.suppressions.is_empty());
    // 5.7.1 stays a bounce.
    let effects = m.apply(record(Body::Fact(bounce("m", "a@b.co", "permanent"))));
    assert!(effects.events[0].counted);
    let SuppressionChange::Put(row) = &effects.suppressions[0].1 else { panic!("not suppressed") };
    assert_eq!((row.reason.as_str(), row.details.as_deref()), ("BOUNCE", Some("550 5.7.1")));
    assert_eq!(row.event_id.as_deref(), Some(effects.events[0].event_id.as_str()));
    assert_eq!(sums(&mut m), (0, 1, 0));
}

#[test]
fn the_events_set_found_by_its_send_governs_suppression_and_tracking() {
    for (options, by_bounce, by_complaint) in [
        (SuppressionOptions::None, 0, 0),
        (SuppressionOptions::Bounce, 1, 0),
        (SuppressionOptions::Complaint, 0, 1),
        (SuppressionOptions::BounceAndComplaint, 1, 1),
    ] {
        let mut m = machine();
        m.command(Change::CreateConfigSet(ConfigSet {
            suppression_options: options as i32,
            reputation_tracking_enabled: false,
            ..set("quiet")
        }));
        for message in ["m1", "m2"] {
            let sent =
                EventFact { configuration_set_name: Some("quiet".into()), ..fact(EventType::Send, message, "a@b.co") };
            assert!(!m.fact(sent)[0].counted);
        }
        let effects = m.apply(record(Body::Fact(bounce("m1", "a@b.co", "Permanent"))));
        assert_eq!(effects.suppressions.len(), by_bounce, "{options:?}");
        let effects = m.apply(record(Body::Fact(fact(EventType::Complaint, "m2", "b@b.co"))));
        // The Send of m2 to b@b.co is unknown, so default options hold; to a@b.co the set's do.
        assert_eq!(effects.suppressions.len(), 1);
        m.command(Change::DeleteSuppression("a@b.co".into()));
        let effects = m.apply(record(Body::Fact(fact(EventType::Complaint, "m2", "a@b.co"))));
        assert_eq!(effects.suppressions.len(), by_complaint, "{options:?}");
        assert_eq!(sums(&mut m), (0, 0, 1));
    }
}

#[test]
fn leaving_every_topic_suppresses() {
    let mut m = machine();
    let leave = |all| EventFact {
        event_id: Some(format!("{all}")),
        block: Some(Block::Subscription(Subscription { unsubscribe_all: Some(all), ..Subscription::default() })),
        ..fact(EventType::Subscription, "m", "a@b.co")
    };
    assert!(m.apply(record(Body::Fact(leave(false)))).suppressions.is_empty());
    let effects = m.apply(record(Body::Fact(leave(true))));
    assert!(matches!(&effects.suppressions[0].1, SuppressionChange::Put(row) if row.reason == "UNSUBSCRIBE"));
}

#[test]
fn a_pause_comes_at_the_very_event_and_holds_from_there() {
    let mut m = machine();
    sends(&mut m, 0..100);
    let mut statuses = Vec::new();
    for n in 0..11 {
        assert_eq!(code(&m.send(send(&format!("s{n}"), &["x@y.co"])).1), "ok", "before bounce {n}");
        let events = m.fact(bounce(&format!("m{n}"), "a@b.co", "Permanent"));
        statuses.extend(events.into_iter().skip(1));
    }
    // 110 sends in all; more than a tenth bounced with the twelfth.
    assert_eq!(kinds(&statuses), [EventType::AtRisk]);
    let events = m.fact(bounce("m11", "a@b.co", "Permanent"));
    assert_eq!(kinds(&events), [EventType::Bounce, EventType::Paused]);
    let Some(Block::StatusChange(change)) = &events[1].block else { panic!("no evidence") };
    assert_eq!((change.numerator, change.denominator, change.limit_ppm), (12, 111, 100_000));
    assert_eq!((change.rule.as_str(), change.event_id.as_str()), ("bounce_rate", events[0].event_id.as_str()));
    assert_eq!((change.from.as_str(), change.to.as_str()), ("AT_RISK", "PAUSED"));
    assert_eq!(events[1].seq, events[0].seq + 1);
    assert_eq!(code(&m.send(send("after", &["x@y.co"])).1), "SENDING_PAUSED");
    let evidence = m.config().paused.unwrap();
    assert_eq!((evidence.numerator, evidence.denominator, evidence.at), (12, 111, START.0));
}

#[test]
fn a_send_that_reaches_the_floor_may_pause() {
    let mut m = machine();
    for n in 0..3 {
        m.fact(bounce(&format!("b{n}"), "a@b.co", "Permanent"));
    }
    for n in 3..6 {
        m.fact(fact(EventType::Complaint, &format!("b{n}"), "a@b.co"));
    }
    sends(&mut m, 0..49);
    assert_eq!(m.config().status(), Status::Healthy);
    let (effects, decision) = m.send(send("fiftieth", &["x@y.co"]));
    assert_eq!(code(&decision), "ok");
    assert_eq!(kinds(&effects.events), [EventType::Send, EventType::Paused]);
}

#[test]
fn the_evidence_is_what_counted_not_what_came_last() {
    let mut m = machine();
    for n in 0..6 {
        m.fact(bounce(&format!("b{n}"), "a@b.co", "Permanent"));
    }
    sends(&mut m, 0..49);
    let (effects, _) = m.send(send("fiftieth", &["x@y.co", "a@b.co"]));
    assert_eq!(kinds(&effects.events), [EventType::Send, EventType::Reject, EventType::Paused]);
    assert_eq!(m.config().paused.clone().unwrap().event_id, effects.events[0].event_id);
}

#[test]
fn after_a_resume_only_what_came_after_is_judged() {
    let mut m = machine();
    sends(&mut m, 0..100);
    for n in 0..11 {
        m.fact(bounce(&format!("m{n}"), "a@b.co", "Permanent"));
    }
    assert_eq!(m.config().status(), Status::Paused);
    m.now = m.now.plus(DAY);
    let resumed = m.command(Change::Resume(Resume { reason: "list cleaned".into(), mode: None }));
    assert_eq!(code(&resumed), "ok");
    assert_eq!(m.config().status(), Status::Healthy);
    assert_eq!(m.config().resumed_at, Some(m.now.0));
    m.restart();
    sends(&mut m, 200..250);
    // Bounces of messages sent before the resume: counted, not judged.
    for n in 20..40 {
        let events = m.fact(bounce(&format!("m{n}"), "a@b.co", "Permanent"));
        assert!(events.len() == 1 && events[0].counted);
    }
    assert_eq!(sums(&mut m), (150, 31, 0));
    // A bounce whose Send is unknown counts, as does one sent after.
    for n in 0..3 {
        assert_eq!(m.fact(bounce(&format!("unknown{n}"), "a@b.co", "Permanent")).len(), if n == 2 { 2 } else { 1 });
    }
    assert_eq!(m.config().status(), Status::AtRisk);
    for n in 200..203 {
        m.fact(bounce(&format!("m{n}"), "a@b.co", "Permanent"));
    }
    assert_eq!(m.config().status(), Status::Paused);
    let evidence = m.config().paused.unwrap();
    assert_eq!((evidence.numerator, evidence.denominator), (6, 50));
    assert_eq!(evidence.window_start, m.now.0);
}

#[test]
fn at_risk_recovers_with_the_next_counted_record() {
    let mut m = machine();
    sends(&mut m, 0..100);
    for n in 0..6 {
        m.fact(bounce(&format!("m{n}"), "a@b.co", "Permanent"));
    }
    assert_eq!(m.config().status(), Status::AtRisk);
    m.now = m.now.plus(14 * DAY);
    // Nothing is left in the window, but nothing counted has come either.
    m.fact(fact(EventType::Open, "m1", "a@b.co"));
    assert_eq!(m.config().status(), Status::AtRisk);
    let events = m.fact(fact(EventType::Send, "new", "a@b.co"));
    assert_eq!(kinds(&events), [EventType::Send, EventType::Healthy]);
}

#[test]
fn an_administrator_pauses_and_resumes_with_a_reason() {
    let mut m = machine();
    let (effects, _) = m.ask(Body::Command(sendtrail_schemas::record::Command {
        change: Some(Change::Pause(Pause { reason: "phishing".into() })),
    }));
    assert_eq!(kinds(&effects.events), [EventType::Paused]);
    let Some(Block::StatusChange(change)) = &effects.events[0].block else { panic!("no evidence") };
    assert_eq!((change.rule.as_str(), change.reason.as_str()), ("manual", "phishing"));
    assert_eq!(code(&m.send(send("s", &["x@y.co"])).1), "SENDING_PAUSED");
    assert_eq!(code(&m.command(Change::Pause(Pause { reason: "again".into() }))), "ok");
    assert_eq!(m.config().paused.unwrap().reason, "phishing");
    let (effects, _) = m.ask(Body::Command(sendtrail_schemas::record::Command {
        change: Some(Change::Resume(Resume { reason: "mistake".into(), mode: Some(Mode::Sandbox as i32) })),
    }));
    assert_eq!(kinds(&effects.events), [EventType::Resumed]);
    assert_eq!((m.config().mode(), m.config().daily_quota(), m.config().peak_rate()), (Mode::Sandbox, 200, 1));
    assert_eq!(code(&m.send(send("s", &["x@y.co"])).1), "ok");
}

#[test]
fn the_contact_is_mailed_at_risk_and_when_paused() {
    let mut m = machine();
    let mut settings = crate::core::step::usual_settings();
    settings.system_sender = "postmaster@sendtrail.example".into();
    m.apply(sendtrail_schemas::record::Record {
        version: 1,
        body: Some(Body::Settings(settings)),
        ..Default::default()
    });
    sends(&mut m, 0..100);
    let mut mailed = Vec::new();
    for n in 0..11 {
        mailed.extend(m.apply(record(Body::Fact(bounce(&format!("m{n}"), "a@b.co", "Permanent")))).mail);
    }
    let subjects: Vec<&str> = mailed.iter().map(|mail| mail.subject.as_str()).collect();
    assert_eq!(subjects, ["Sending is at risk for Acme", "Sending is paused for Acme"]);
    assert!(mailed.iter().all(|mail| mail.system && mail.recipients[0].address == "ops@acme.com"));
    let resumed = m.ask(Body::Command(sendtrail_schemas::record::Command {
        change: Some(Change::Resume(Resume { reason: "ok".into(), mode: None })),
    }));
    assert!(resumed.0.mail.is_empty());
}

#[test]
fn a_send_is_checked_in_the_order_of_the_contract() {
    let mut m = Machine::with_account(START, Policy::splashify());
    let mut request = send("s", &["x@y.co"]);
    request.configuration_set_name = Some("none".into());
    m.command(Change::PatchAccount(AccountFields {
        peak_send_rate_per_second: Some(1),
        daily_send_quota: Some(1),
        ..Default::default()
    }));
    m.command(Change::PutSuppression(sendtrail_schemas::account::Suppression {
        email: "no@y.co".into(),
        reason: "MANUAL".into(),
        ..Default::default()
    }));
    assert_eq!(code(&m.send(request.clone()).1), "FROM_NOT_VERIFIED");
    verify(&mut m, IdentityType::EmailAddress, "hello@acme.com");
    assert_eq!(code(&m.send(request.clone()).1), "CONFIG_SET_NOT_FOUND");
    request.configuration_set_name = None;
    assert_eq!(code(&m.send(send("two", &["x@y.co", "z@y.co"])).1), "DAILY_LIMIT_REACHED");
    // One of the two is suppressed, so the cap counts one; the call is taken.
    let (effects, decision) = m.send(send("three", &["NO@y.co", "z@y.co"]));
    let Some(Outcome::Sent(sent)) = &decision.outcome else { panic!("{decision:?}") };
    assert_eq!(sent.results[0].rejected.as_deref(), Some("suppressed"));
    assert_eq!(sent.results[1].rejected, None);
    assert_eq!(kinds(&effects.events), [EventType::Reject, EventType::Send]);
    assert!(
        matches!(&effects.events[0].block, Some(Block::Reject(reject)) if reject.reason.as_deref() == Some("address on suppression list"))
    );
    assert_eq!(effects.mail[0].recipients.len(), 1);
    let (_, decision) = m.send(request.clone());
    let Some(Outcome::Refused(refusal)) = &decision.outcome else { panic!("{decision:?}") };
    assert_eq!((refusal.code.as_str(), refusal.retry_after_seconds), ("RATE_LIMITED", Some(2)));
    m.now = m.now.plus(2 * SECOND);
    let (effects, decision) = m.send(request.clone());
    assert_eq!(code(&decision), "DAILY_LIMIT_REACHED");
    assert!(effects.events.is_empty() && effects.mail.is_empty());
    m.command(Change::Pause(Pause { reason: "x".into() }));
    assert_eq!(code(&m.send(request).1), "SENDING_PAUSED");
}

#[test]
fn the_sandbox_has_its_own_code_and_midnight_utc_begins_a_new_day() {
    let mut m = machine();
    m.command(Change::PatchAccount(AccountFields { mode: Some(0), daily_send_quota: Some(2), ..Default::default() }));
    assert_eq!(code(&m.send(send("a", &["x@y.co", "z@y.co"])).1), "ok");
    assert_eq!(code(&m.send(send("b", &["x@y.co"])).1), "SANDBOX_QUOTA_REACHED");
    assert_eq!((m.account().usage.sent, m.account().usage.sandbox_sent), (2, 2));
    m.now = Millis::of_day(START.day() + 1);
    m.restart();
    assert_eq!(code(&m.send(send("c", &["x@y.co"])).1), "ok");
}

#[test]
fn streamed_sends_use_no_quota() {
    let mut m = machine();
    sends(&mut m, 0..10);
    assert_eq!(m.account().usage.sent, 0);
    assert_eq!(sums(&mut m).0, 10);
}

#[test]
fn a_disabled_set_rejects_each_recipient() {
    let mut m = machine();
    m.command(Change::CreateConfigSet(ConfigSet { sending_enabled: false, ..set("off") }));
    let (effects, decision) = m.send(sendtrail_schemas::record::SendRequest {
        configuration_set_name: Some("off".into()),
        ..send("s", &["x@y.co", "z@y.co"])
    });
    let Some(Outcome::Sent(sent)) = &decision.outcome else { panic!("{decision:?}") };
    assert!(sent.results.iter().all(|result| result.rejected.is_some()));
    assert_eq!(kinds(&effects.events), [EventType::Reject, EventType::Reject]);
    assert!(effects.mail.is_empty());
    assert_eq!(m.account().usage.sent, 0);
}

#[test]
fn a_key_makes_a_send_safe_to_repeat_for_a_day() {
    let mut m = machine();
    let request = |send_id: &str, body: u8, key: &str| sendtrail_schemas::record::SendRequest {
        idempotency: Some(Idempotency { route: "send".into(), key: key.into(), body_hash: vec![body] }),
        ..send(send_id, &["x@y.co"])
    };
    let (_, first) = m.send(request("one", 1, "k"));
    m.restart();
    let (effects, again) = m.send(request("two", 1, "k"));
    assert!(again.replayed && effects.events.is_empty() && effects.mail.is_empty());
    assert_eq!(again.outcome, first.outcome);
    assert_eq!(code(&m.send(request("three", 2, "k")).1), "IDEMPOTENCY_MISMATCH");
    assert!(!m.send(request("four", 2, "other")).1.replayed);
    m.now = m.now.plus(DAY - 1);
    assert!(m.send(request("five", 1, "k")).1.replayed);
    m.now = m.now.plus(1);
    assert!(!m.send(request("six", 1, "k")).1.replayed);
    // Refusals are not kept.
    m.command(Change::Pause(Pause { reason: "x".into() }));
    assert_eq!(code(&m.send(request("seven", 7, "p")).1), "SENDING_PAUSED");
    m.command(Change::Resume(Resume { reason: "x".into(), mode: None }));
    assert_eq!(code(&m.send(request("eight", 7, "p")).1), "ok");
}

#[test]
fn sets_and_destinations_have_caps_and_unique_names() {
    let mut m = machine();
    for n in 0..100 {
        assert_eq!(code(&m.command(Change::CreateConfigSet(set(&format!("set{n}"))))), "ok");
    }
    assert_eq!(code(&m.command(Change::CreateConfigSet(set("set5")))), "CONFIG_SET_NAME_TAKEN");
    assert_eq!(code(&m.command(Change::CreateConfigSet(set("more")))), "CONFIG_SET_LIMIT_REACHED");
    let id = set("set5").config_set_id;
    let destination = |n: u128| CreateDestination {
        config_set_id: id.clone(),
        destination: Some(Destination {
            destination_id: Uuid::from_u128(n).as_bytes().to_vec(),
            enabled: true,
            ..Default::default()
        }),
    };
    for n in 0..5 {
        assert_eq!(code(&m.command(Change::CreateDestination(destination(n)))), "ok");
    }
    assert_eq!(code(&m.command(Change::CreateDestination(destination(6)))), "DESTINATION_LIMIT_REACHED");
    let rename = |name: &str| {
        Change::PatchConfigSet(ConfigSetPatch {
            config_set_id: id.clone(),
            name: Some(name.into()),
            ..Default::default()
        })
    };
    assert_eq!(code(&m.command(rename("set6"))), "CONFIG_SET_NAME_TAKEN");
    assert_eq!(code(&m.command(rename("set5"))), "ok");
    assert_eq!(code(&m.command(rename("Set6"))), "ok");
    assert_eq!(m.config().config_set("Set6").unwrap().destinations.len(), 5);
    assert_eq!(code(&m.command(Change::DeleteConfigSet(id.clone()))), "ok");
    assert_eq!(code(&m.command(Change::DeleteConfigSet(id))), "CONFIG_SET_NOT_FOUND");
}

#[test]
fn windows_of_sets_and_identities_begin_with_them() {
    let mut m = machine();
    let sent = |n: usize| EventFact {
        configuration_set_name: Some("s".into()),
        from: Some("Hello <Hello@Acme.com>".into()),
        ..fact(EventType::Send, &format!("m{n}"), "a@b.co")
    };
    m.fact(sent(0));
    m.command(Change::CreateConfigSet(set("s")));
    verify(&mut m, IdentityType::EmailAddress, "hello@acme.com");
    m.fact(sent(1));
    m.fact(sent(2));
    m.restart();
    let now = m.now;
    let counts =
        |m: &mut Machine| -> Vec<u64> { m.reputation().scopes.iter().map(|(_, view)| view.at(now).sent).collect() };
    // The set, the domain (from the start), the address.
    assert_eq!(counts(&mut m), [2, 3, 2]);
    m.command(Change::DeleteConfigSet(set("s").config_set_id));
    let name = IdentityName { kind: IdentityType::EmailAddress as i32, value: "hello@acme.com".into() };
    m.command(Change::DeleteIdentity(name));
    m.checkpoint();
    verify(&mut m, IdentityType::EmailAddress, "hello@acme.com");
    m.restart();
    assert_eq!(counts(&mut m), [3, 0]);
}

#[test]
fn events_go_to_the_destinations_of_their_set_that_ask_for_them() {
    let mut m = machine();
    m.command(Change::CreateConfigSet(set("s")));
    let add = |m: &mut Machine, n: u128, types: Vec<i32>, dialect: i32| {
        let destination = Destination {
            destination_id: Uuid::from_u128(n).as_bytes().to_vec(),
            enabled: true,
            matching_event_types: types,
            dialect,
            ..Default::default()
        };
        m.command(Change::CreateDestination(CreateDestination {
            config_set_id: set("s").config_set_id,
            destination: Some(destination),
        }));
    };
    add(&mut m, 1, vec![], 0);
    add(&mut m, 2, vec![EventType::Bounce as i32], 0);
    add(&mut m, 3, vec![], 1);
    let numbers = |event: &Event| -> Vec<u128> { event.destinations().map(|id| id.0.as_u128()).collect() };
    let with_set = |fact: EventFact| EventFact { configuration_set_name: Some("s".into()), ..fact };
    assert_eq!(numbers(&m.fact(with_set(fact(EventType::Send, "m", "a@b.co")))[0]), [1, 3]);
    assert_eq!(numbers(&m.fact(bounce("m", "a@b.co", "Permanent"))[0]), [1, 2, 3]);
    assert_eq!(numbers(&m.fact(fact(EventType::Send, "other", "a@b.co"))[0]), [0u128; 0]);
    // S2 has no name for a change of standing.
    let (effects, _) = m.ask(Body::Command(sendtrail_schemas::record::Command {
        change: Some(Change::Pause(Pause { reason: "x".into() })),
    }));
    assert_eq!(numbers(&effects.events[0]), [3]);
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
