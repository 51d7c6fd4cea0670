//! Who changed what.

use sendtrail_schemas::account::{ApiKey, Policy, Suppression};
use sendtrail_schemas::block::{Activity, Block};
use sendtrail_schemas::destination::{Destination, Dialect};
use sendtrail_schemas::event::Event;
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::record::{
    AccountFields, Actor, Body, Change, Command, CreateDestination, DestinationPatch, EraseRecipient, Pause, Record,
    Settings,
};
use sendtrail_schemas::time::{DAY, Millis};

use super::machine::{Machine, record};
use crate::core::step::usual_settings;

const START: Millis = Millis(20_000 * DAY);
const KEY: [u8; 16] = [7; 16];

fn machine() -> Machine {
    let mut machine = Machine::with_account(START, Policy::splashify());
    let key = ApiKey { key_id: KEY.to_vec(), name: "deploy".into(), ..ApiKey::default() };
    machine.command(Change::CreateKey(key));
    machine
}

fn by(key: &[u8], change: Change) -> Record {
    let actor = Some(Actor { key_id: key.to_vec(), address: "192.0.2.7".into() });
    Record { actor, ..record(Body::Command(Command { change: Some(change) })) }
}

fn told(machine: &mut Machine, key: &[u8], change: Change) -> Vec<(Event, Activity)> {
    let events = machine.apply(by(key, change)).events.into_iter();
    let told = events.filter_map(|event| match event.block.clone() {
        Some(Block::Activity(activity)) => Some((event, activity)),
        _ => None,
    });
    told.collect()
}

fn pause() -> Change {
    Change::Pause(Pause { reason: "too much spam".into() })
}

#[test]
fn a_change_is_told_with_who_made_it_and_only_if_it_was_made() {
    let mut m = machine();
    let (event, activity) = told(&mut m, &[], pause()).remove(0);
    assert_eq!(event.kind(), EventType::ConfigurationChanged);
    assert!(event.destination_ids.is_empty());
    let expected = Activity {
        action: Some("account.paused".into()),
        actor: Some("administrator".into()),
        address: Some("192.0.2.7".into()),
        details: Some(r#"{"reason":"too much spam"}"#.into()),
        ..Activity::default()
    };
    assert_eq!(activity, expected);
    assert_eq!(told(&mut m, &[], pause()), [], "it is paused already");
    let fields = AccountFields { name: Some("Acme 2".into()), suspended: Some(false), ..AccountFields::default() };
    let (_, activity) = told(&mut m, &KEY, Change::PatchAccount(fields)).remove(0);
    assert_eq!(activity.actor.as_deref(), Some("key"));
    assert_eq!(activity.actor_name.as_deref(), Some("deploy"));
    assert_eq!(activity.actor_id.as_deref(), Some("07070707-0707-0707-0707-070707070707"));
    assert_eq!(activity.details.as_deref(), Some(r#"{"name":"Acme 2","suspended":false}"#));
    assert_eq!(told(&mut m, &KEY, Change::RevokeKey(vec![1; 16])), [], "there is no such key");
    assert_eq!(told(&mut m, &KEY, Change::KeyUsed(KEY.to_vec())), [], "that is no change of configuration");
    // Of what nobody asked for, nothing is told.
    let resume = Change::Resume(sendtrail_schemas::record::Resume { reason: "x".into(), mode: None });
    let effects = m.apply(record(Body::Command(Command { change: Some(resume) })));
    assert!(effects.events.iter().all(|event| event.kind() != EventType::ConfigurationChanged));
}

#[test]
fn no_secret_and_no_address_is_written_down() {
    let mut m = machine();
    let url = "https://hook.example:8443/path-token?key=query-token";
    let destination = Destination {
        destination_id: vec![2; 16],
        name: "hook".into(),
        webhook_url: url.into(),
        dialect: Dialect::Standard as i32,
        sealed_secret: Some(b"sealed-secret".to_vec()),
        enabled: true,
        ..Destination::default()
    };
    let create = CreateDestination { config_set_id: Vec::new(), destination: Some(destination) };
    let patch = DestinationPatch {
        destination: Some(sendtrail_schemas::record::DestinationName {
            config_set_id: Vec::new(),
            destination_id: vec![2; 16],
        }),
        webhook_url: Some(url.into()),
        sealed_secret: Some(b"sealed-secret".to_vec()),
        ..DestinationPatch::default()
    };
    let erase = EraseRecipient { erasure_id: vec![3; 16], recipient: "jane@b.co".into() };
    let mut all = String::new();
    for change in [
        Change::CreateDestination(create),
        Change::PatchDestination(patch),
        Change::EraseRecipient(erase),
        Change::CreateKey(ApiKey { key_id: vec![9; 16], hash: b"hash-of-it".to_vec(), ..ApiKey::default() }),
    ] {
        let (event, activity) = told(&mut m, &KEY, change).remove(0);
        assert_eq!(event.recipient, "");
        all += &format!("{activity:?}");
    }
    for word in ["path-token", "query-token", "sealed", "jane", "hash-of-it"] {
        assert!(!all.contains(word), "{word}: {all}");
    }
    assert!(
        all.contains("https://hook.example:8443") && all.contains(r#""secret\":\"changed"#) || all.contains("changed")
    );
    // An address stands where an erasure finds it.
    let row = Suppression { email: "Jane@b.co".into(), reason: "MANUAL".into(), ..Suppression::default() };
    let (event, activity) = told(&mut m, &KEY, Change::PutSuppression(row)).remove(0);
    assert_eq!((event.recipient.as_str(), activity.action.as_deref()), ("Jane@b.co", Some("suppression.put")));
    assert!(!format!("{activity:?}").to_lowercase().contains("jane"));
}

#[test]
fn an_older_logic_tells_nothing() {
    let mut m = machine();
    m.overlay.progress.settings = Some(Settings { logic_version: 3, ..usual_settings() });
    assert_eq!(told(&mut m, &[], pause()), []);
}
