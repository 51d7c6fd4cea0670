//! Bounces and complaints: whom they suppress, and what becomes of the account's standing.

use sendtrail_schemas::account::{Mode, Status, SuppressionOptions};
use sendtrail_schemas::block::Subscription;
use sendtrail_schemas::record::{AccountFields, Resume};

use super::*;

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
fn what_the_policy_does_not_count_is_no_evidence() {
    let mut m = machine();
    sends(&mut m, 0..100);
    m.command(Change::Pause(Pause { reason: "x".into() }));
    m.command(Change::Resume(Resume { reason: "x".into(), mode: None }));
    sends(&mut m, 200..300);
    for n in 200..210 {
        m.fact(bounce(&format!("m{n}"), "a@b.co", "Permanent"));
    }
    // A tenth bounced, which is no longer allowed: the account is judged with the next record that counts.
    let policy = Some(Policy { pause_bounce_ppm: 80_000, ..Policy::splashify() });
    m.command(Change::PatchAccount(AccountFields { policy, ..Default::default() }));
    // A bounce of a message of before the resume, and one that waits for its hour.
    m.now = Millis::of_hour(START.hour() + 1).plus(-MINUTE);
    let ahead = at(bounce("m210", "a@b.co", "Permanent"), m.now.plus(2 * MINUTE));
    for other in [bounce("m5", "a@b.co", "Permanent"), ahead] {
        let events = m.fact(other);
        assert!(events.len() == 1 && events[0].counted);
        assert_eq!(m.config().status(), Status::AtRisk);
    }
    let events = m.fact(bounce("m211", "a@b.co", "Permanent"));
    assert_eq!(kinds(&events), [EventType::Bounce, EventType::Paused]);
    let evidence = m.config().paused.unwrap();
    assert_eq!((evidence.numerator, evidence.denominator), (11, 100));
    assert_eq!(evidence.event_id, events[0].event_id);
}
