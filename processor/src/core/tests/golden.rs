//! A log that an earlier program wrote, and what it gave out: every later program must give the same, byte for byte.
//!
//! When logic is changed on purpose, the old logic stays behind `logic_version` and a new golden log is added beside the
//! old one; `SENDTRAIL_BLESS=1` writes those that are not there. One that is there is never written again.

use std::path::{Path, PathBuf};

use bytes::{Buf, BufMut};
use prost::Message;
use sendtrail_schemas::account::{ConfigSet, Identity, IdentityStatus, IdentityType, Policy};
use sendtrail_schemas::block::{Block, Bounce, Click, Lifecycle, Subscription};
use sendtrail_schemas::codec;
use sendtrail_schemas::destination::{Destination, Dialect, Health, Replay, ReplayState, Surface};
use sendtrail_schemas::event::EventFact;
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::record::{
    AccountFields, Actor, Body, Change, Claim, Command, ConfigSetPatch, CreateDestination, DestinationName,
    DestinationPatch, EndErasure, EraseRecipient, Idempotency, IdentityName, Pause, Record, ReplyTo, Resume,
    RotateSecret, SendRequest, SetIdentityStatus, Settings, SourcePosition, Tick, Unreadable, WebhookHealth,
};
use sendtrail_schemas::time::{DAY, HOUR, MINUTE, Millis};

use super::machine::{Machine, fact, record, send};
use crate::core::effects::{Effects, SuppressionChange};
use crate::core::overlay::StoreKey;
use crate::core::step::usual_settings;

const START: Millis = Millis(1_777_636_800_000);

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/core/tests/golden").join(name)
}

/// The records of the newest golden log.
fn script() -> Vec<(Millis, Record)> {
    let mut log = Vec::new();
    let mut at = START;
    let mut tell = |wait: i64, body: Body| {
        at = at.plus(wait);
        let reply_to = (!matches!(body, Body::Fact(_) | Body::Tick(_))).then_some(ReplyTo { instance: 7, request: 9 });
        log.push((at, Record { reply_to, ..record(body) }));
    };
    let command = |change| Body::Command(Command { change: Some(change) });
    let domain = |value: &str| (IdentityType::Domain as i32, value.to_owned());
    let (kind, value) = domain("acme.com");
    tell(0, command(Change::CreateIdentity(Identity { kind, value: value.clone(), ..Identity::default() })));
    let identity = Some(IdentityName { kind, value });
    tell(
        5,
        command(Change::SetIdentityStatus(SetIdentityStatus { identity, status: IdentityStatus::Verified as i32 })),
    );
    let set = ConfigSet {
        config_set_id: vec![1; 16],
        name: "news".into(),
        sending_enabled: true,
        reputation_tracking_enabled: true,
        tags: [("team".into(), "growth".into())].into(),
        ..ConfigSet::default()
    };
    tell(5, command(Change::CreateConfigSet(set)));
    for (id, dialect) in [(2, Dialect::Splashify), (3, Dialect::Standard)] {
        let destination = Destination {
            destination_id: vec![id; 16],
            name: format!("hook {id}"),
            webhook_url: "https://hook.example/".into(),
            dialect: dialect as i32,
            enabled: true,
            ..Destination::default()
        };
        let destination = CreateDestination { config_set_id: vec![1; 16], destination: Some(destination) };
        tell(5, command(Change::CreateDestination(destination)));
    }
    let request = |n: usize| SendRequest {
        configuration_set_name: Some("news".into()),
        tags: [("campaign".into(), "june".into()), ("bare".into(), String::new())].into(),
        metadata: Some(format!(r#"{{"n":{n}}}"#)),
        ..send(&format!("s{n}"), &[&format!("User{n}@mail.example"), "copy@mail.example"])
    };
    for n in 0..40 {
        tell(7 * MINUTE, Body::Send(request(n)));
        let to = format!("user{n}@MAIL.example");
        let told = |kind, wait: i64| EventFact {
            occurred_at_nanos: Some((START.0 + n as i64 * 7 * MINUTE + wait) * 1_000_000),
            ..fact(kind, &format!("s{n}-0"), &to)
        };
        match n % 5 {
            0 => tell(900, Body::Fact(told(EventType::Delivery, 900))),
            1 => {
                let click = Click { link: Some("https://a.example/".into()), ..Click::default() };
                let click = EventFact { block: Some(Block::Click(click)), ..told(EventType::Click, HOUR) };
                tell(HOUR, Body::Fact(click.clone()));
                tell(1, Body::Fact(click));
            }
            2 if n > 20 => {
                let block = Bounce { bounce_type: Some("Permanent".into()), ..Bounce::default() };
                let bounce = EventFact { block: Some(Block::Bounce(block)), ..told(EventType::Bounce, MINUTE) };
                tell(MINUTE, Body::Fact(EventFact { event_id: Some(format!("b{n}")), ..bounce.clone() }));
                tell(MINUTE, Body::Fact(bounce));
            }
            2 => tell(MINUTE, Body::Fact(told(EventType::Bounce, -20 * DAY))),
            3 => tell(2, Body::Fact(told(EventType::Open, 3 * DAY))),
            _ => {
                let block = Subscription { unsubscribe_all: Some(true), ..Subscription::default() };
                tell(
                    2,
                    Body::Fact(EventFact {
                        block: Some(Block::Subscription(block)),
                        ..told(EventType::Subscription, 5)
                    }),
                );
            }
        }
    }
    let key = Idempotency { route: "send".into(), key: "k".into(), body_hash: vec![5; 32] };
    for _ in 0..2 {
        tell(1, Body::Send(SendRequest { idempotency: Some(key.clone()), ..request(100) }));
    }
    let claim = Idempotency { route: "events".into(), ..key };
    tell(1, command(Change::Claim(Claim { idempotency: Some(claim), response: b"{}".to_vec() })));
    tell(HOUR, command(Change::Pause(Pause { reason: "by hand".into() })));
    tell(1, Body::Send(request(101)));
    tell(HOUR, command(Change::Resume(Resume { reason: "well".into(), mode: None })));
    tell(1, Body::Send(send("s103", &["USER4@mail.example", "user5@mail.example"])));
    for n in 0..60 {
        tell(
            3,
            Body::Fact(EventFact {
                event_id: Some(format!("c{n}")),
                ..fact(EventType::Send, &format!("x{n}"), "a@b.example")
            }),
        );
    }
    for n in 0..5 {
        tell(3, Body::Fact(fact(EventType::Complaint, &format!("x{n}"), "a@b.example")));
    }
    let renamed =
        ConfigSetPatch { config_set_id: vec![1; 16], name: Some("letters".into()), ..ConfigSetPatch::default() };
    tell(1, command(Change::PatchConfigSet(renamed)));
    tell(1, Body::Fact(fact(EventType::Delivery, "s38-0", "user38@mail.example")));
    tell(16 * DAY, Body::Tick(Tick {}));
    tell(1, Body::Fact(fact(EventType::Complaint, "x0", "a@b.example")));
    log
}

/// Everything that a record gave out, as bytes.
fn write(effects: &Effects, out: &mut Vec<u8>) {
    let mut put = |kind: u8, bytes: Vec<u8>| {
        out.put_u8(kind);
        out.put_u32_le(bytes.len() as u32);
        out.put_slice(&bytes);
    };
    effects.events.iter().for_each(|event| put(1, event.encode_to_vec()));
    effects.mail.iter().for_each(|mail| put(2, mail.encode_to_vec()));
    effects.dead_letters.iter().for_each(|letter| put(3, letter.encode_to_vec()));
    effects.decisions.iter().for_each(|(_, decision)| put(4, decision.encode_to_vec()));
    for (_, change) in &effects.suppressions {
        match change {
            SuppressionChange::Put(row) => put(5, row.encode_to_vec()),
            SuppressionChange::Delete(email) => put(6, email.clone().into_bytes()),
        }
    }
}

fn replay(mut log: &[u8], logic_version: u32) -> Vec<u8> {
    let mut machine = Machine::with_account(START, Policy::splashify());
    machine.overlay.progress.settings = Some(Settings { logic_version, ..usual_settings() });
    let mut out = Vec::new();
    let mut at = 0;
    while log.has_remaining() {
        machine.now = Millis(log.get_i64_le());
        let length = log.get_u32_le() as usize;
        let record: Record = codec::decode(&log[..length]).unwrap();
        log.advance(length);
        write(&machine.apply(record), &mut out);
        at += 1;
        if at % 17 == 0 {
            machine.restart();
        }
    }
    machine.checkpoint();
    for (key, value) in machine.store_bytes() {
        let (kind, key) = match key {
            StoreKey::Account(key) => (8, key),
            StoreKey::Row(key) => (9, key),
        };
        out.put_u8(kind);
        out.put_slice(&key);
        out.put_u32_le(value.len() as u32);
        out.put_slice(&value);
    }
    out
}

/// Replays a golden log under a logic and compares what it gives out with what it gave.
fn compare(intake: &str, effects: &str, logic_version: u32) -> Vec<u8> {
    let is = replay(&std::fs::read(file(&format!("{intake}.intake"))).unwrap(), logic_version);
    let effects = file(&format!("{effects}.effects"));
    if is_blessed(&effects) {
        std::fs::write(&effects, &is).unwrap();
    }
    let should = std::fs::read(effects).unwrap();
    let differs = should.iter().zip(&is).position(|(one, other)| one != other);
    assert_eq!((is.len(), differs), (should.len(), None), "the first byte that differs");
    // It is worth something: warned, paused, resumed, duplicates, refusals.
    for told in ["AT_RISK", "PAUSED", "by hand", "SENDING_PAUSED", "address on suppression list"] {
        assert!(is.windows(told.len()).any(|bytes| bytes == told.as_bytes()), "{told}");
    }
    is
}

/// Whether a file is to be written: only one that is not there yet.
fn is_blessed(file: &Path) -> bool {
    std::env::var_os("SENDTRAIL_BLESS").is_some() && !file.exists()
}

fn bless(name: &str, script: Vec<(Millis, Record)>) {
    let intake = file(&format!("{name}.intake"));
    if !is_blessed(&intake) {
        return;
    }
    let mut log = Vec::new();
    for (at, record) in script {
        log.put_i64_le(at.0);
        let bytes = codec::encode(&record);
        log.put_u32_le(bytes.len() as u32);
        log.put_slice(&bytes);
    }
    std::fs::write(intake, &log).unwrap();
}

#[test]
fn the_log_of_the_first_logic_gives_what_it_gave() {
    compare("0.1", "0.1", 1);
}

#[test]
fn the_log_of_the_second_logic_gives_what_it_gave_under_either() {
    bless("0.1-logic-2", script());
    let second = compare("0.1-logic-2", "0.1-logic-2", 2);
    let first = compare("0.1-logic-2", "0.1-logic-2-under-1", 1);
    assert_ne!(first, second, "the logics differ on this log");
}

/// The same with records of a source at the end: copies, gaps, one that cannot be read, one of nobody.
fn script_with_sources() -> Vec<(Millis, Record)> {
    let mut log = script();
    let mut at = log[log.len() - 1].0;
    let open = |message: &str| Body::Fact(fact(EventType::Open, message, "a@b.example"));
    let unreadable = || Body::Unreadable(Unreadable { reason: "not JSON".into(), payload: b"\xff".to_vec() });
    let told = [
        (0, Body::Tick(Tick {})),
        (1, open("o1")),
        (1, open("o1")),
        (2, open("o2")),
        (4, open("o4")),
        (3, unreadable()),
        (4, open("o4")),
        (5, open("o5")),
        (3, unreadable()),
    ];
    for (number, body) in told {
        at = at.plus(7);
        let (offset, settled) = (100 + number, 90 + number);
        let source = SourcePosition { source: "mail".into(), partition: 1, number, offset, index: 1, settled };
        let record = Record { version: codec::SOURCED, source: Some(source), ..record(body) };
        // The fifth is of an account that there is not.
        log.push((at, if number == 5 { Record { account_id: vec![9; 16], ..record } } else { record }));
    }
    log
}

#[test]
fn the_log_of_the_third_logic_gives_what_it_gave() {
    bless("0.1-logic-3", script_with_sources());
    let third = compare("0.1-logic-3", "0.1-logic-3", 3);
    for told in ["not JSON", "no such account (mail, partition 1, offset 105)", "o1", "o2", "o4"] {
        assert!(third.windows(told.len()).any(|bytes| bytes == told.as_bytes()), "{told}");
    }
    compare("0.1-logic-2", "0.1-logic-2", 3);
}

#[test]
fn an_upgrade_in_the_middle_of_a_log_holds_from_there_on() {
    let mut upgraded = script();
    let middle = upgraded.len() / 2;
    let settings = Settings { logic_version: 2, ..usual_settings() };
    let at = upgraded[middle].0;
    upgraded.insert(middle, (at, Record { account_id: Vec::new(), ..record(Body::Settings(settings)) }));
    bless("0.1-upgrade", upgraded);
    compare("0.1-upgrade", "0.1-upgrade", 1);
}

/// The same with what there is to say about webhooks at the end: health, secrets, replays, calls, lifecycle posts.
fn script_with_webhooks() -> Vec<(Millis, Record)> {
    let mut log = script();
    let mut at = log[log.len() - 1].0;
    let hook = |id: u8, dialect, surface| {
        let destination = Destination {
            destination_id: vec![id; 16],
            name: format!("hook {id}"),
            webhook_url: "https://hook.example/".into(),
            dialect: dialect as i32,
            surface: surface as i32,
            enabled: true,
            sealed_secret: Some(vec![id; 8]),
            ..Destination::default()
        };
        Change::CreateDestination(CreateDestination { config_set_id: Vec::new(), destination: Some(destination) })
    };
    let name = |id: u8| Some(DestinationName { config_set_id: Vec::new(), destination_id: vec![id; 16] });
    let health = |health: Health, revival| {
        Change::WebhookHealth(WebhookHealth {
            destination_id: vec![7; 16],
            health: health as i32,
            failing_since: START.0,
            failed_attempts: 10,
            reason: "10 attempts failed".into(),
            revival,
        })
    };
    let replay = |state: ReplayState| Replay { replay_id: vec![8; 16], state: state as i32, ..Replay::default() };
    let enabled = DestinationPatch { destination: name(7), enabled: Some(true), ..DestinationPatch::default() };
    let rotate =
        |id| RotateSecret { destination: name(id), sealed_secret: vec![1], overlap: DAY, ..RotateSecret::default() };
    let changes = [
        hook(5, Dialect::Zmailer, Surface::Zmailer),
        hook(6, Dialect::Standard, Surface::Operational),
        hook(7, Dialect::Splashify, Surface::Account),
        Change::RotateSecret(rotate(5)),
        Change::RotateSecret(rotate(7)),
        Change::SwitchSecret(name(5).unwrap_or_default()),
        health(Health::Failing, 0),
        health(Health::Failing, 0),
        health(Health::Disabled, 0),
        Change::PatchDestination(enabled),
        health(Health::Failing, 0),
        health(Health::Failing, 1),
        health(Health::Working, 1),
        Change::StartReplay(replay(ReplayState::Running)),
        Change::ReplayProgress(replay(ReplayState::Done)),
        Change::CancelReplay(vec![8; 16]),
        Change::Lifecycle(Lifecycle { event_type: Some("rcs.message".into()), ..Lifecycle::default() }),
    ];
    let mut told: Vec<Record> = Vec::new();
    for change in changes {
        let version = change.version();
        let reply_to = Some(ReplyTo { instance: 7, request: 9 });
        told.push(Record { version, reply_to, ..record(Body::Command(Command { change: Some(change) })) });
    }
    for n in 0..4 {
        let send_id = Some(format!("call{}", n / 2));
        told.push(record(Body::Fact(EventFact { send_id, ..fact(EventType::Send, &format!("z{n}"), "a@b.example") })));
    }
    for record in told {
        at = at.plus(11);
        log.push((at, record));
    }
    log
}

/// The same with recipients who are erased at the end, and what comes late.
fn script_with_erasures() -> Vec<(Millis, Record)> {
    let mut log = script();
    let mut at = log[log.len() - 1].0;
    let mut tell = |wait: i64, version: u32, body: Body| {
        at = at.plus(wait);
        log.push((at, Record { version, reply_to: Some(ReplyTo { instance: 7, request: 9 }), ..record(body) }));
    };
    let hold = |on| AccountFields { legal_hold: Some(on), retention_days: Some(400), ..AccountFields::default() };
    let erase = |n: u8, recipient: &str| {
        Change::EraseRecipient(EraseRecipient { erasure_id: vec![n; 16], recipient: recipient.into() })
    };
    let resume = Change::Resume(Resume { reason: "well".into(), mode: None });
    tell(1, codec::VERSION, Body::Command(Command { change: Some(resume) }));
    tell(1, codec::VERSION, Body::Send(send("t1", &["user4@mail.example", "jane@mail.example"])));
    tell(1, codec::VERSION, Body::Fact(fact(EventType::Complaint, "t1-1", "jane@mail.example")));
    for change in [
        Change::PatchAccount(hold(true)),
        erase(1, "jane@mail.example"),
        Change::PatchAccount(hold(false)),
        erase(2, "Jane@mail.example"),
        erase(3, "user4@mail.example"),
        Change::EndErasure(EndErasure { erasure_id: vec![2; 16], rows: 2 }),
    ] {
        tell(5, change.version(), Body::Command(Command { change: Some(change) }));
    }
    let block = Bounce {
        bounce_type: Some("Permanent".into()),
        diagnostic_code: Some("550 no jane here".into()),
        ..Bounce::default()
    };
    let bounce = |message: &str| EventFact {
        block: Some(Block::Bounce(block.clone())),
        ..fact(EventType::Bounce, message, "jane@mail.example")
    };
    tell(HOUR, codec::VERSION, Body::Fact(bounce("t1-1")));
    tell(HOUR, codec::VERSION, Body::Send(send("t2", &["jane@mail.example"])));
    tell(HOUR, codec::VERSION, Body::Fact(bounce("t2-0")));
    log
}

/// Changes that somebody asked for, of every kind that is told, under the logic that tells them.
#[test]
fn the_log_of_activity_gives_what_it_gave_under_either() {
    let script = script_with_erasures().into_iter().enumerate().map(|(n, (at, record))| {
        let key_id = if n % 3 == 0 { Vec::new() } else { vec![4; 16] };
        (at, Record { actor: Some(Actor { key_id, address: "192.0.2.1".into() }), ..record })
    });
    bless("0.1-logic-4", script.collect());
    let fourth = compare("0.1-logic-4", "0.1-logic-4", 4);
    let third = compare("0.1-logic-4", "0.1-logic-4-under-3", 3);
    assert!(fourth.len() > third.len());
    for told in ["identity.created", "configuration_set.updated", "destination.created", "account.updated"] {
        assert!(fourth.windows(told.len()).any(|bytes| bytes == told.as_bytes()), "{told}");
    }
}

#[test]
fn the_log_of_erasures_gives_what_it_gave() {
    bless("0.1-erasures", script_with_erasures());
    let gives = compare("0.1-erasures", "0.1-erasures", 3);
    for told in ["LEGAL_HOLD", "t1-1", "t2-0", "550 no jane here"] {
        assert!(gives.windows(told.len()).any(|bytes| bytes == told.as_bytes()), "{told}");
    }
}

#[test]
fn the_log_of_webhooks_gives_what_it_gave() {
    bless("0.1-webhooks", script_with_webhooks());
    let gives = compare("0.1-webhooks", "0.1-webhooks", 3);
    for told in ["10 attempts failed", "rcs.message", "hook 7", "call1"] {
        assert!(gives.windows(told.len()).any(|bytes| bytes == told.as_bytes()), "{told}");
    }
}
