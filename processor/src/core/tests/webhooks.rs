//! Destinations: how they do, their secrets, replays, and who is told what.

use sendtrail_schemas::account::{Policy, Suppression};
use sendtrail_schemas::block::{Block, Lifecycle, Subscription};
use sendtrail_schemas::destination::{
    Destination, Dialect, Health, Replay, ReplayCounts, ReplayQuery, ReplayState, Surface,
};
use sendtrail_schemas::event::{Event, EventFact};
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::record::{
    Body, Change, Command, CreateDestination, DestinationName, DestinationPatch, Record, RotateSecret, WebhookHealth,
};
use sendtrail_schemas::time::{DAY, HOUR, Millis};
use uuid::Uuid;

use super::machine::{Machine, code, fact, send};
use crate::core::effects::Effects;
use crate::core::step::usual_settings;

const START: Millis = Millis(20_000 * DAY + 10 * HOUR);

fn id(n: u128) -> Vec<u8> {
    Uuid::from_u128(n).as_bytes().to_vec()
}

fn name(n: u128) -> DestinationName {
    DestinationName { config_set_id: Vec::new(), destination_id: id(n) }
}

fn sealed(n: u8) -> Vec<u8> {
    vec![n; 16]
}

fn add(m: &mut Machine, n: u128, dialect: Dialect, surface: Surface) {
    let destination = Destination {
        destination_id: id(n),
        name: format!("hook {n}"),
        webhook_url: "https://hook.example/".into(),
        dialect: dialect as i32,
        surface: surface as i32,
        enabled: true,
        sealed_secret: Some(sealed(1)),
        ..Destination::default()
    };
    let made = CreateDestination { config_set_id: Vec::new(), destination: Some(destination) };
    assert_eq!(code(&m.command(Change::CreateDestination(made))), "ok");
}

fn machine() -> Machine {
    let mut m = Machine::with_account(START, Policy::splashify());
    let settings = sendtrail_schemas::record::Settings {
        system_sender: "postmaster@sendtrail.example".into(),
        ..usual_settings()
    };
    m.apply(Record { version: 1, body: Some(Body::Settings(settings)), ..Record::default() });
    m
}

fn tell(m: &mut Machine, change: Change) -> Effects {
    m.ask(Body::Command(Command { change: Some(change) })).0
}

fn health(n: u128, health: Health, revival: u32) -> Change {
    Change::WebhookHealth(WebhookHealth {
        destination_id: id(n),
        health: health as i32,
        failing_since: START.0,
        failed_attempts: 10,
        reason: "10 attempts failed".into(),
        revival,
    })
}

fn destination(m: &mut Machine, n: u128) -> Destination {
    m.config().webhooks.iter().find(|known| known.destination_id == id(n)).unwrap().clone()
}

fn numbers(event: &Event) -> Vec<u128> {
    event.destinations().map(|id| id.0.as_u128()).collect()
}

#[test]
fn a_change_of_health_is_told_once_to_the_contact_and_the_operational_webhook() {
    let mut m = machine();
    add(&mut m, 1, Dialect::Splashify, Surface::Account);
    add(&mut m, 2, Dialect::Standard, Surface::Operational);
    let told = tell(&mut m, health(1, Health::Failing, 0));
    assert_eq!((told.events.len(), told.events[0].kind()), (1, EventType::WebhookFailing));
    assert_eq!(numbers(&told.events[0]), [2], "not to the one that fails");
    assert_eq!(told.mail.len(), 1);
    assert_eq!(told.mail[0].subject, "Webhook \"hook 1\" of Acme is failing");
    assert_eq!(told.mail[0].recipients[0].address, "ops@acme.com");
    let Some(Block::WebhookChange(change)) = &told.events[0].block else { panic!("{:?}", told.events[0]) };
    assert_eq!((change.from.as_deref(), change.to.as_deref()), (Some("working"), Some("failing")));
    let again = tell(&mut m, health(1, Health::Failing, 0));
    assert!(again.events.is_empty() && again.mail.is_empty(), "told once");
    m.restart();
    assert_eq!((destination(&mut m, 1).health(), destination(&mut m, 1).failing_since), (Health::Failing, START.0));

    let told = tell(&mut m, health(1, Health::Disabled, 0));
    assert_eq!(told.events[0].kind(), EventType::WebhookDisabled);
    assert!(!destination(&mut m, 1).enabled);
    assert!(numbers(&m.fact(fact(EventType::Send, "m", "a@b.co"))[0]).is_empty(), "nothing is for it");

    // Its owner enables it: what was seen before says nothing any more.
    let enabled = DestinationPatch { destination: Some(name(1)), enabled: Some(true), ..DestinationPatch::default() };
    m.command(Change::PatchDestination(enabled));
    let anew = destination(&mut m, 1);
    assert_eq!((anew.enabled, anew.health(), anew.revival, anew.failing_since), (true, Health::Working, 1, 0));
    assert!(tell(&mut m, health(1, Health::Disabled, 0)).events.is_empty());
    assert!(destination(&mut m, 1).enabled);
    assert_eq!(numbers(&m.fact(fact(EventType::Send, "n", "a@b.co"))[0]), [1]);
    assert_eq!(tell(&mut m, health(1, Health::Failing, 1)).events.len(), 1);
    assert_eq!(tell(&mut m, health(1, Health::Working, 1)).events[0].kind(), EventType::WebhookRecovered);
    assert_eq!(destination(&mut m, 1).health_reason, "");
    assert!(tell(&mut m, health(9, Health::Failing, 0)).events.is_empty(), "there is none");
}

#[test]
fn another_address_is_another_receiver() {
    let mut m = machine();
    add(&mut m, 1, Dialect::Standard, Surface::Account);
    tell(&mut m, health(1, Health::Failing, 0));
    let patch = |url: &str| {
        let url = Some(url.to_owned());
        DestinationPatch { destination: Some(name(1)), webhook_url: url, ..DestinationPatch::default() }
    };
    m.command(Change::PatchDestination(patch("https://hook.example/")));
    assert_eq!(destination(&mut m, 1).health(), Health::Failing, "the same");
    m.command(Change::PatchDestination(patch("https://other.example/")));
    assert_eq!((destination(&mut m, 1).health(), destination(&mut m, 1).revival), (Health::Working, 1));
}

#[test]
fn secrets_change_with_an_overlap_where_there_is_room_for_two_signatures() {
    let mut m = machine();
    add(&mut m, 1, Dialect::Standard, Surface::Account);
    add(&mut m, 2, Dialect::Sendcomms, Surface::Sendcomms);
    let rotate = |m: &mut Machine, n: u128, secret: u8, overlap: i64| {
        let rotate = RotateSecret {
            destination: Some(name(n)),
            sealed_secret: sealed(secret),
            overlap,
            ..RotateSecret::default()
        };
        assert_eq!(code(&m.command(Change::RotateSecret(rotate))), "ok");
    };
    let signing = |m: &mut Machine, n: u128, wait: i64| -> Vec<u8> {
        let now = m.now.0 + wait;
        destination(m, n).signing_secrets(now).map(|sealed| sealed[0]).collect()
    };
    rotate(&mut m, 1, 2, DAY);
    assert_eq!((signing(&mut m, 1, DAY - HOUR), signing(&mut m, 1, DAY + HOUR)), (vec![2, 1], vec![2]));
    rotate(&mut m, 1, 4, HOUR);
    assert_eq!(signing(&mut m, 1, 0), [4, 2, 1], "nobody who was given a day has less");
    assert_eq!(signing(&mut m, 1, 2 * HOUR), [4, 1]);
    assert_eq!(signing(&mut m, 1, DAY + HOUR), [4]);
    for n in 5..15 {
        rotate(&mut m, 1, n, DAY);
    }
    assert_eq!(signing(&mut m, 1, 0), [14, 13, 10, 11, 12], "not without bound");
    rotate(&mut m, 1, 3, 0);
    assert_eq!(signing(&mut m, 1, 0), [3], "at once");
    // In a dialect with one signature no secret of before signs, whether its time is over or not.
    rotate(&mut m, 1, 16, DAY);
    let patch =
        DestinationPatch { destination: Some(name(1)), dialect: Some(Dialect::Zmailer as i32), ..Default::default() };
    assert_eq!(code(&m.command(Change::PatchDestination(patch))), "ok");
    assert_eq!((signing(&mut m, 1, 0), signing(&mut m, 1, 2 * DAY)), (vec![16], vec![16]));
    // One signature: the old one until it is asked for, however often it is rotated in between.
    rotate(&mut m, 2, 2, DAY);
    rotate(&mut m, 2, 3, DAY);
    assert_eq!(signing(&mut m, 2, 5 * DAY), [1]);
    assert_eq!(code(&m.command(Change::SwitchSecret(name(2)))), "ok");
    assert_eq!(signing(&mut m, 2, 0), [3]);
    // Sealed anew, unless it is another by now.
    for (of, expected) in [(2, 3), (3, 9)] {
        let reseal = RotateSecret {
            destination: Some(name(2)),
            sealed_secret: sealed(of),
            resealed: Some(sealed(9)),
            ..RotateSecret::default()
        };
        m.command(Change::RotateSecret(reseal));
        assert_eq!(signing(&mut m, 2, 0), [expected]);
    }
}

#[test]
fn three_replays_run_at_once_and_what_was_ended_stays_so() {
    let mut m = machine();
    let replay = |n: u128| Replay { replay_id: id(n), ..Replay::default() };
    let progress = |n: u128, state: ReplayState| {
        let counts = Some(ReplayCounts { events: 7, deliveries: 9 });
        Change::ReplayProgress(Replay { counts, state: state as i32, cursor: "there".into(), ..replay(n) })
    };
    for n in 1..=3 {
        assert_eq!(code(&m.command(Change::StartReplay(replay(n)))), "ok");
    }
    assert_eq!(code(&m.command(Change::StartReplay(replay(4)))), "REPLAY_LIMIT_REACHED");
    m.command(progress(1, ReplayState::Running));
    m.command(progress(2, ReplayState::Done));
    assert_eq!(code(&m.command(Change::CancelReplay(id(3)))), "ok");
    m.command(progress(3, ReplayState::Running));
    m.restart();
    let states: Vec<_> =
        m.config().replays.iter().map(|replay| (replay.state(), replay.finished_at.is_some())).collect();
    let expected = [(ReplayState::Running, false), (ReplayState::Done, true), (ReplayState::Cancelled, true)];
    assert_eq!(states, expected);
    assert_eq!(m.config().replays[0].cursor, "there");
    assert_eq!(code(&m.command(Change::CancelReplay(id(7)))), "NOT_FOUND");
    // Of those that ended the oldest are forgotten.
    for n in 10..40 {
        m.command(Change::StartReplay(replay(n)));
        m.command(progress(n, ReplayState::Done));
    }
    let known = m.config().replays;
    let kept: Vec<_> = known.iter().take(2).map(|replay| replay.replay_id.clone()).collect();
    assert_eq!((known.len(), kept), (21, vec![id(1), id(3)]), "one that runs is kept, and one that was cancelled");
    // Cancelled ones are remembered longer, and not for ever.
    for n in 100..250 {
        m.command(Change::StartReplay(replay(n)));
        assert_eq!(code(&m.command(Change::CancelReplay(id(n)))), "ok");
    }
    let known = m.config().replays;
    let of = |state| known.iter().filter(|replay| replay.state() == state).count();
    assert_eq!((of(ReplayState::Running), of(ReplayState::Done), of(ReplayState::Cancelled)), (1, 18, 100));
}

#[test]
fn lifecycle_posts_are_for_the_accounts_own_webhook() {
    let mut m = machine();
    add(&mut m, 1, Dialect::Splashify, Surface::Account);
    add(&mut m, 2, Dialect::Standard, Surface::Operational);
    add(&mut m, 3, Dialect::Sendcomms, Surface::Sendcomms);
    let lifecycle = Lifecycle { event_type: Some("rcs.message".into()), ..Lifecycle::default() };
    let told = tell(&mut m, Change::Lifecycle(lifecycle));
    assert_eq!((told.events[0].kind(), numbers(&told.events[0])), (EventType::Lifecycle, vec![1]));
}

#[test]
fn zmailer_is_told_of_a_call_once_also_of_a_streamed_one() {
    let mut m = machine();
    add(&mut m, 1, Dialect::Zmailer, Surface::Zmailer);
    add(&mut m, 2, Dialect::Standard, Surface::Account);
    let sent = |message: &str, send_id: &str| EventFact {
        send_id: (!send_id.is_empty()).then(|| send_id.into()),
        ..fact(EventType::Send, message, "a@b.co")
    };
    let told: Vec<Vec<u128>> = [("m1", "call"), ("m2", "call"), ("m3", ""), ("m4", "")]
        .map(|(message, call)| {
            m.restart();
            numbers(&m.fact(sent(message, call))[0])
        })
        .into();
    assert_eq!(told, [vec![1, 2], vec![2], vec![1, 2], vec![1, 2]]);
    for message in ["m1", "m2"] {
        assert_eq!(numbers(&m.fact(fact(EventType::Delivery, message, "a@b.co"))[0]), [1, 2], "each recipient");
    }
    // A call of one's own: its recipients are told of together.
    super::scenarios::verify_domain(&mut m, "acme.com");
    let (effects, decision) = m.send(send("s", &["x@y.co", "z@y.co", "w@y.co"]));
    assert_eq!(code(&decision), "ok");
    let told: Vec<Vec<u128>> = effects.events.iter().map(numbers).collect();
    assert_eq!(told, [vec![1, 2], vec![2], vec![2]]);
}

#[test]
fn a_type_that_was_not_asked_for_does_not_use_up_what_is_told_once_a_call() {
    let mut m = machine();
    for (n, kinds) in [(1, vec![EventType::Reject]), (2, vec![]), (3, vec![EventType::RenderingFailure])] {
        add(&mut m, n, Dialect::Zmailer, Surface::Zmailer);
        let patch = DestinationPatch {
            destination: Some(name(n)),
            has_matching_event_types: true,
            matching_event_types: kinds.into_iter().map(|kind| kind as i32).collect(),
            ..DestinationPatch::default()
        };
        assert_eq!(code(&m.command(Change::PatchDestination(patch))), "ok");
    }
    let (reject, failure) = (EventType::Reject, EventType::RenderingFailure);
    let told = [(failure, "m1"), (reject, "m2"), (reject, "m3"), (failure, "m4")].map(|(kind, message)| {
        m.restart();
        numbers(&m.fact(EventFact { send_id: Some("call".into()), ..fact(kind, message, "a@b.co") })[0])
    });
    assert_eq!(told, [vec![2, 3], vec![1], vec![], vec![]]);
}

#[test]
fn a_call_is_told_of_once_also_when_its_events_take_it_from_their_sends() {
    let mut m = machine();
    add(&mut m, 1, Dialect::Zmailer, Surface::Zmailer);
    for message in ["m1", "m2"] {
        m.fact(EventFact { send_id: Some("call".into()), ..fact(EventType::Send, message, "a@b.co") });
    }
    let failed = |m: &mut Machine, kind, message: &str, to: &str| {
        m.restart();
        let events = m.fact(fact(kind, message, to));
        (events[0].send_id.clone().unwrap_or_default(), numbers(&events[0]))
    };
    assert_eq!(failed(&mut m, EventType::Reject, "m1", "a@b.co"), ("call".into(), vec![1]));
    assert_eq!(failed(&mut m, EventType::RenderingFailure, "m2", "a@b.co"), ("call".into(), vec![]));
    // One of our own was told of when it was made.
    super::scenarios::verify_domain(&mut m, "acme.com");
    let no = Suppression { email: "no@y.co".into(), reason: "MANUAL".into(), ..Suppression::default() };
    assert_eq!(code(&m.command(Change::PutSuppression(no))), "ok");
    let (effects, decision) = m.send(send("s", &["x@y.co", "no@y.co"]));
    assert_eq!(code(&decision), "ok");
    let told: Vec<_> = effects.events.iter().map(|event| (event.kind(), numbers(event))).collect();
    assert_eq!(told, [(EventType::Send, vec![1]), (EventType::Reject, vec![1])]);
    assert_eq!(failed(&mut m, EventType::Reject, "s-0", "x@y.co"), ("s".into(), vec![]));
    // What is remembered of a Send no longer says nothing of its call.
    m.now = m.now.plus(16 * DAY);
    assert_eq!(failed(&mut m, EventType::Reject, "m2", "a@b.co"), (String::new(), vec![1]));
}

#[test]
fn only_an_unsubscribe_is_told_as_one() {
    let mut m = machine();
    add(&mut m, 1, Dialect::Nexuspromail, Surface::Sendcomms);
    add(&mut m, 2, Dialect::Standard, Surface::Account);
    let told = [
        (None, None),
        (Some(true), Some("SubscriptionManagementPage")),
        (Some(false), Some("SubscriptionManagementPage")),
        (Some(false), None),
        (Some(false), Some("UnsubscribeHeader")),
    ]
    .map(|(unsubscribe_all, source)| {
        let block = Subscription { unsubscribe_all, source: source.map(Into::into), ..Subscription::default() };
        let block = Some(Block::Subscription(block));
        numbers(&m.fact(EventFact { block, ..fact(EventType::Subscription, "m", "a@b.co") })[0])
    });
    assert_eq!(told, [vec![1, 2], vec![1, 2], vec![], vec![], vec![1, 2]]);
    assert_eq!(numbers(&m.fact(fact(EventType::Subscription, "m", "a@b.co"))[0]), [1, 2], "one that says nothing more");
}

#[test]
fn a_replay_ends_at_the_events_that_there_are_when_it_is_asked_for() {
    let mut m = machine();
    for message in ["m1", "m2", "m3"] {
        m.fact(fact(EventType::Delivery, message, "a@b.co"));
    }
    let next = m.overlay.progress.next_event;
    let whole = ReplayQuery { to: START.0 + DAY, ..ReplayQuery::default() };
    let one = ReplayQuery { seq: Some(1), ..ReplayQuery::default() };
    for (n, query) in [(1, whole), (2, one)] {
        let replay = Replay { replay_id: id(n), query: Some(query), ..Replay::default() };
        assert_eq!(code(&m.command(Change::StartReplay(replay))), "ok");
        m.fact(fact(EventType::Delivery, &format!("later{n}"), "a@b.co"));
    }
    m.restart();
    let below: Vec<_> = m.config().replays.iter().map(|replay| replay.query.as_ref().unwrap().below).collect();
    assert_eq!(below, [Some(next), None]);
}
