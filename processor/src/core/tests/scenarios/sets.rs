//! Configuration sets: whose an event is, what they have windows of, and where their events go.

use sendtrail_schemas::destination::{Bounces, Destination, Dialect};
use sendtrail_schemas::record::{ConfigSetPatch, CreateDestination, DestinationName, DestinationPatch, Settings};

use super::*;
use crate::core::step::usual_settings;

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

/// Where each kind of bounces goes under a logic, hard and soft, and which bounces the destinations are known to want.
fn told_of_bounces(logic_version: u32) -> (Vec<u128>, Vec<u128>, Vec<Bounces>) {
    let mut m = machine();
    m.overlay.progress.settings = Some(Settings { logic_version, ..usual_settings() });
    m.command(Change::CreateConfigSet(set("s")));
    let id = |n: u128| Uuid::from_u128(n).as_bytes().to_vec();
    let asked = [
        (1, Dialect::Nexuspromail, Bounces::Both),
        (2, Dialect::Nexuspromail, Bounces::Hard),
        // It has one name for both, and is told of those that were asked for.
        (3, Dialect::Standard, Bounces::Soft),
        (4, Dialect::Nexuspromail, Bounces::Both),
        (5, Dialect::Nexuspromail, Bounces::Hard),
    ];
    for (n, dialect, bounces) in asked {
        let destination = Destination {
            destination_id: id(n),
            enabled: true,
            matching_event_types: vec![EventType::Bounce as i32],
            dialect: dialect as i32,
            bounces: bounces as i32,
            ..Default::default()
        };
        let config_set_id = set("s").config_set_id;
        let create = CreateDestination { config_set_id, destination: Some(destination) };
        assert_eq!(code(&m.command(Change::CreateDestination(create))), "ok");
    }
    let name = |n: u128| Some(DestinationName { config_set_id: Vec::new(), destination_id: id(n) });
    let types = |n: u128, bounces: Bounces| DestinationPatch {
        destination: name(n),
        has_matching_event_types: true,
        matching_event_types: vec![EventType::Bounce as i32],
        bounces: bounces as i32,
        ..Default::default()
    };
    // Other bounces for two of them; a patch without types is about something else.
    let other = DestinationPatch { destination: name(2), description: Some("two".into()), ..Default::default() };
    for patch in [types(4, Bounces::Soft), types(5, Bounces::Both), other] {
        assert_eq!(code(&m.command(Change::PatchDestination(patch))), "ok");
    }
    m.restart();
    let mut told = |message: &str, kind: &str| -> Vec<u128> {
        let fact = EventFact { configuration_set_name: Some("s".into()), ..bounce(message, "a@b.co", kind) };
        m.fact(fact)[0].destinations().map(|id| id.0.as_u128()).collect()
    };
    let (hard, soft) = (told("m1", "Permanent"), told("m2", "Transient"));
    assert_eq!(told("m3", "Undetermined"), soft, "what is not for good is soft");
    let known = m.config().config_sets.remove(0).destinations.iter().map(Destination::bounces).collect();
    (hard, soft, known)
}

#[test]
fn one_kind_of_bounces_goes_to_who_asked_for_it() {
    let (hard, soft, known) = told_of_bounces(usual_settings().logic_version);
    assert_eq!((hard, soft), (vec![1, 2, 5], vec![1, 3, 4, 5]));
    assert_eq!(known, [Bounces::Both, Bounces::Hard, Bounces::Soft, Bounces::Soft, Bounces::Both]);
}

#[test]
fn an_older_logic_knows_one_kind_of_bounces() {
    // Nor does its state say otherwise: programs that do not know the choice have the same.
    assert_eq!(told_of_bounces(4), (vec![1, 2, 3, 4, 5], vec![1, 2, 3, 4, 5], vec![Bounces::Both; 5]));
}
