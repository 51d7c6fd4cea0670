//! Sends: what is checked in which order, quotas, and keys that make them safe to repeat.

use sendtrail_schemas::account::Mode;
use sendtrail_schemas::record::{AccountFields, Claim, Idempotency, Outcome, Resume};
use sendtrail_schemas::time::SECOND;

use super::*;

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
fn a_request_that_is_repeated_moves_no_rate_however_late() {
    let mut m = machine();
    let named = |fact: EventFact| EventFact { event_id: Some("e".into()), ..fact };
    let request = [
        named(fact(EventType::Send, "m", "a@b.co")),
        named(bounce("m", "a@b.co", "Permanent")),
        named(fact(EventType::Complaint, "m", "a@b.co")),
        named(fact(EventType::Open, "m", "a@b.co")),
    ];
    let tell = |m: &mut Machine| {
        let key = Idempotency { route: "events".into(), key: "k".into(), body_hash: vec![1; 32] };
        let told = m.command(Change::Claim(Claim { idempotency: Some(key), response: b"{}".to_vec() }));
        let events: Vec<Event> = request.iter().flat_map(|fact| m.fact(fact.clone())).collect();
        (told.replayed, events)
    };
    assert_eq!(tell(&mut m).1.len(), 4);
    m.now = START.plus(DAY - 1);
    assert_eq!(tell(&mut m), (true, Vec::new()));
    // The key is over, and what the events are is not.
    m.now = START.plus(72 * HOUR - 1);
    assert_eq!(tell(&mut m), (false, Vec::new()));
    // An open is one more, of a message that was opened before; what is judged stays as it is.
    m.now = START.plus(72 * HOUR);
    let (_, events) = tell(&mut m);
    assert_eq!(kinds(&events), [EventType::Open]);
    assert!(!events[0].unique && !events[0].counted);
    assert_eq!(sums(&mut m), (1, 1, 1));
}

#[test]
fn a_debt_of_sends_outlives_a_change_of_the_rate() {
    let mut m = machine();
    let limits = |rate| AccountFields { peak_send_rate_per_second: Some(rate), ..Default::default() };
    let wait = |m: &mut Machine, send_id: &str| {
        let decision = m.send(send(send_id, &["x@y.co"])).1;
        let Some(Outcome::Refused(refusal)) = &decision.outcome else { panic!("{decision:?}") };
        (refusal.code.clone(), refusal.retry_after_seconds)
    };
    m.command(Change::PatchAccount(limits(1)));
    assert_eq!(code(&m.send(send("many", &["x@y.co"; 41])).1), "ok");
    assert_eq!(wait(&mut m, "a"), ("RATE_LIMITED".into(), Some(41)));
    // 40 in debt, and one more needed.
    m.command(Change::PatchAccount(limits(20)));
    m.restart();
    assert_eq!(wait(&mut m, "b"), ("RATE_LIMITED".into(), Some(3)));
    // A resume into the sandbox has the sandbox's rate.
    m.command(Change::Pause(Pause { reason: "x".into() }));
    m.command(Change::Resume(Resume { reason: "x".into(), mode: Some(Mode::Sandbox as i32) }));
    assert_eq!(wait(&mut m, "c"), ("RATE_LIMITED".into(), Some(41)));
    m.now = m.now.plus(41 * SECOND);
    assert_eq!(code(&m.send(send("d", &["x@y.co"])).1), "ok");
}
