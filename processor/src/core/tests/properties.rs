//! Random histories: the core against the plain model, and against itself.

use proptest::prelude::*;
use sendtrail_schemas::account::{ConfigSet, Identity, IdentityType, Policy, Status, Suppression};
use sendtrail_schemas::block::{Block, Bounce, Open, Subscription};
use sendtrail_schemas::event::{Event, EventFact, Tags};
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::personal::strip;
use sendtrail_schemas::record::{
    Body, Change, Command, ConfigSetPatch, EraseRecipient, IdentityName, Pause, Record, Resume,
};
use sendtrail_schemas::reputation::Scope;
use sendtrail_schemas::time::{DAY, HOUR, MINUTE, Millis, SECOND};
use uuid::Uuid;

use super::machine::{Machine, record};
use super::reference::Model;
use crate::core::effects::{Effects, SuppressionChange};

const START: Millis = Millis(20_000 * DAY + 7 * HOUR + 59 * MINUTE);

#[derive(Clone, Debug)]
enum Op {
    Fact(Box<EventFact>, Option<i64>),
    Wait(i64),
    CreateSet(u8, ConfigSet),
    PatchSet(u8, bool, i32),
    RenameSet(u8, u8),
    DeleteSet(u8),
    CreateIdentity(bool),
    DeleteIdentity(bool),
    Pause,
    Resume,
    PutSuppression(u8),
    DeleteSuppression(u8),
    Erase(u8),
    Checkpoint,
    Restart,
}

fn set_id(n: u8) -> Vec<u8> {
    Uuid::from_u128(100 + u128::from(n)).as_bytes().to_vec()
}

/// Leaves out what would make a set that is there under another name a second time: identifiers are unique.
fn with_unique_sets(ops: Vec<Op>) -> Vec<Op> {
    let mut names: [Option<u8>; 3] = [None; 3];
    let mut kept = Vec::new();
    for op in ops {
        match &op {
            Op::CreateSet(n, _) if names[usize::from(*n)].is_some_and(|name| name != *n) => continue,
            Op::CreateSet(n, _) if !names.contains(&Some(*n)) => names[usize::from(*n)] = Some(*n),
            Op::RenameSet(n, to) if names[usize::from(*n)].is_some() && !names.contains(&Some(*to)) => {
                names[usize::from(*n)] = Some(*to);
            }
            Op::DeleteSet(n) => names[usize::from(*n)] = None,
            _ => {}
        }
        kept.push(op);
    }
    kept
}

fn address(n: u8) -> String {
    ["a@b.co", "A@B.co", "c@d.co", "e@f.co"][usize::from(n) % 4].into()
}

fn identity(domain: bool) -> (IdentityType, &'static str) {
    if domain { (IdentityType::Domain, "acme.com") } else { (IdentityType::EmailAddress, "hello@acme.com") }
}

prop_compose! {
    fn fact()(
        kind in prop_oneof![
            6 => Just(EventType::Send), 3 => Just(EventType::Bounce), 2 => Just(EventType::Complaint), 2 => Just(EventType::Open),
            1 => Just(EventType::Click), 1 => Just(EventType::Delivery), 1 => Just(EventType::DeliveryDelay),
            1 => Just(EventType::Subscription), 1 => Just(EventType::Reject),
        ],
        message in 0u8..40,
        to in 0u8..4,
        id in prop::option::weighted(0.3, 0u8..4),
        permanent in any::<bool>(),
        block in any::<bool>(),
        set in prop::option::weighted(0.4, 0u8..4),
        from in prop::option::weighted(0.5, 0u8..3),
        subject in prop::option::weighted(0.3, 0u8..3),
        tags in prop::option::weighted(0.3, 0u8..3),
    ) -> EventFact {
        let block = match kind {
            EventType::Bounce if block => Some(Block::Bounce(Bounce {
                bounce_type: Some(if permanent { "Permanent" } else { "Transient" }.into()),
                ..Bounce::default()
            })),
            EventType::Open if block => Some(Block::Open(Open { user_agent: Some(format!("{permanent}")), ..Open::default() })),
            EventType::Subscription => Some(Block::Subscription(Subscription { unsubscribe_all: Some(permanent), ..Subscription::default() })),
            _ => None,
        };
        EventFact {
            kind: kind as i32,
            message_id: format!("m{message}"),
            recipient: address(to),
            event_id: id.map(|id| format!("e{id}")),
            from: from.map(|n| ["Hello <Hello@Acme.com>", "other@acme.com", "x@elsewhere.org"][usize::from(n)].into()),
            subject: subject.map(|n| format!("subject {n}")),
            configuration_set_name: set.map(|n| format!("set{n}")),
            tags: tags.map(|n| Tags::from([(format!("k{n}"), "own".into())])).unwrap_or_default(),
            block,
            ..EventFact::default()
        }
    }
}

fn op() -> impl Strategy<Value = Op> {
    // Offsets of occurred_at from now: none, near, next hour, days back, before the window, far ahead.
    let offset = prop_oneof![
        4 => Just(None),
        4 => (-10 * MINUTE..6 * MINUTE).prop_map(Some),
        2 => (-14 * DAY..0).prop_map(Some),
        1 => (-15 * DAY..-13 * DAY).prop_map(Some),
        1 => (0..10 * DAY).prop_map(Some),
    ];
    let wait = prop_oneof![
        4 => 0..10 * SECOND,
        3 => 0..90 * MINUTE,
        1 => 0..2 * DAY,
        1 => 12 * DAY..16 * DAY,
        1 => -2 * DAY..0,
    ];
    let set = (0u8..3, any::<bool>(), 0i32..4, any::<bool>()).prop_map(|(n, tracked, options, tagged)| {
        let tags =
            if tagged { Tags::from([("k1".into(), "set".into()), ("team".into(), "x".into())]) } else { Tags::new() };
        let set = ConfigSet {
            config_set_id: set_id(n),
            name: format!("set{n}"),
            sending_enabled: true,
            reputation_tracking_enabled: tracked,
            suppression_options: options,
            tags,
            ..ConfigSet::default()
        };
        Op::CreateSet(n, set)
    });
    prop_oneof![
        60 => (fact(), offset).prop_map(|(fact, offset)| Op::Fact(Box::new(fact), offset)),
        10 => wait.prop_map(Op::Wait),
        3 => set,
        2 => (0u8..3, any::<bool>(), 0i32..4).prop_map(|(n, tracked, options)| Op::PatchSet(n, tracked, options)),
        2 => (0u8..3, 0u8..4).prop_map(|(n, to)| Op::RenameSet(n, to)),
        1 => (0u8..3).prop_map(Op::DeleteSet),
        2 => any::<bool>().prop_map(Op::CreateIdentity),
        1 => any::<bool>().prop_map(Op::DeleteIdentity),
        1 => Just(Op::Pause),
        2 => Just(Op::Resume),
        1 => (0u8..4).prop_map(Op::PutSuppression),
        1 => (0u8..4).prop_map(Op::DeleteSuppression),
        1 => (0u8..4).prop_map(Op::Erase),
        2 => Just(Op::Checkpoint),
        1 => Just(Op::Restart),
    ]
}

/// The record that an operation is, if it is one.
fn body(op: &Op, now: Millis) -> Option<Body> {
    let change = match op {
        Op::Fact(fact, offset) => {
            let occurred_at_nanos = offset.map(|offset| (now.0 + offset) * 1_000_000 + 7);
            return Some(Body::Fact(EventFact { occurred_at_nanos, ..(**fact).clone() }));
        }
        Op::Wait(_) | Op::Checkpoint | Op::Restart => return None,
        Op::CreateSet(_, set) => Change::CreateConfigSet(set.clone()),
        Op::PatchSet(n, tracked, options) => Change::PatchConfigSet(ConfigSetPatch {
            config_set_id: set_id(*n),
            reputation_tracking_enabled: Some(*tracked),
            suppression_options: Some(*options),
            ..ConfigSetPatch::default()
        }),
        Op::RenameSet(n, to) => Change::PatchConfigSet(ConfigSetPatch {
            config_set_id: set_id(*n),
            name: Some(format!("set{to}")),
            ..ConfigSetPatch::default()
        }),
        Op::DeleteSet(n) => Change::DeleteConfigSet(set_id(*n)),
        Op::CreateIdentity(domain) => {
            let (kind, value) = identity(*domain);
            Change::CreateIdentity(Identity { kind: kind as i32, value: value.into(), ..Identity::default() })
        }
        Op::DeleteIdentity(domain) => {
            let (kind, value) = identity(*domain);
            Change::DeleteIdentity(IdentityName { kind: kind as i32, value: value.into() })
        }
        Op::Pause => Change::Pause(Pause { reason: "by hand".into() }),
        Op::Resume => Change::Resume(Resume { reason: "by hand".into(), mode: None }),
        Op::PutSuppression(n) => Change::PutSuppression(Suppression {
            email: address(*n),
            reason: "MANUAL".into(),
            ..Suppression::default()
        }),
        Op::DeleteSuppression(n) => Change::DeleteSuppression(address(*n)),
        Op::Erase(n) => Change::EraseRecipient(EraseRecipient { erasure_id: vec![*n; 16], recipient: address(*n) }),
    };
    Some(Body::Command(Command { change: Some(change) }))
}

fn change_model(model: &mut Model, op: &Op, existed: bool) {
    match op {
        Op::CreateSet(n, _) if !existed => *model.made.entry(format!("set {:?}", set_id(*n))).or_default() += 1,
        Op::CreateIdentity(domain) if !existed => {
            let (kind, value) = identity(*domain);
            *model.made.entry(format!("{kind:?} {value}")).or_default() += 1;
        }
        Op::Pause => model.status = Some(Status::Paused),
        Op::Resume if model.status() == Status::Paused => {
            model.status = Some(Status::Healthy);
            model.resumes += 1;
        }
        Op::PutSuppression(n) => drop(model.suppressed.insert(address(*n).to_lowercase(), "MANUAL".into())),
        Op::DeleteSuppression(n) => drop(model.suppressed.remove(&address(*n).to_lowercase())),
        Op::Erase(n) => model.erase(&address(*n)),
        _ => {}
    }
}

fn follow_suppressions(listed: &mut std::collections::BTreeMap<String, String>, effects: &Effects) {
    for (_, change) in &effects.suppressions {
        match change {
            SuppressionChange::Put(row) => drop(listed.insert(row.email.to_lowercase(), row.reason.clone())),
            SuppressionChange::Delete(email) => drop(listed.remove(email)),
        }
    }
}

fn status_of(kind: EventType) -> Option<Status> {
    match kind {
        EventType::AtRisk => Some(Status::AtRisk),
        EventType::Paused => Some(Status::Paused),
        EventType::Healthy | EventType::Resumed => Some(Status::Healthy),
        _ => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Duplicates, disorder, skewed clocks, changing configuration, pauses and resumes, with restarts in between.
    #[test]
    fn equals_the_plain_model(
        ops in prop::collection::vec(op(), 1..250).prop_map(with_unique_sets),
        floor in prop_oneof![Just(0u64), Just(3), Just(10)],
        zmailer in any::<bool>(),
    ) {
        let mut policy = if zmailer { Policy::zmailer() } else { Policy::splashify() };
        policy.minimum_sends = floor;
        let mut machine = Machine::with_account(START, policy);
        let mut model = Model::default();
        model.advance(START.0);
        let mut listed = std::collections::BTreeMap::new();
        let mut seq = machine.overlay.progress.next_event;
        for op in &ops {
            match op {
                Op::Wait(millis) => machine.now = machine.now.plus(*millis),
                Op::Checkpoint => machine.checkpoint(),
                Op::Restart => machine.restart(),
                _ => {}
            }
            let Some(body) = body(op, machine.now) else { continue };
            let t = model.advance(machine.now.0);
            let config = machine.config();
            let effects = machine.apply(record(body.clone()));
            follow_suppressions(&mut listed, &effects);
            for event in &effects.events {
                prop_assert_eq!(event.seq, seq, "numbers are dense");
                seq += 1;
            }
            match &body {
                Body::Fact(fact) => match model.fact(fact, &config) {
                    None => prop_assert!(effects.events.is_empty(), "duplicate: {:?}", effects.events),
                    Some((kept, status)) => {
                        let event: &Event = &effects.events[0];
                        prop_assert_eq!(event.kind(), kept.kind);
                        prop_assert_eq!(event.received_at, t);
                        prop_assert_eq!((event.occurred_at, event.original_occurred_at), (kept.occurred_at, kept.original));
                        prop_assert_eq!((event.unique, event.counted, event.history), (kept.unique, kept.counted, kept.history));
                        prop_assert_eq!(&event.configuration_set_name, &kept.set);
                        prop_assert_eq!(&event.config_set_id, &kept.set_id);
                        prop_assert_eq!(&event.from, &kept.from);
                        if kept.erased {
                            let mut bare = event.clone();
                            strip(&mut bare);
                            prop_assert_eq!(event, &bare);
                        } else {
                            prop_assert_eq!(&event.recipient, &fact.recipient);
                            prop_assert_eq!(&event.subject, &kept.subject);
                            prop_assert_eq!(&event.tags, &kept.tags);
                        }
                        let changes: Vec<Status> = effects.events[1..].iter().filter_map(|event| status_of(event.kind())).collect();
                        prop_assert_eq!(changes, status.into_iter().collect::<Vec<_>>());
                        for change in &effects.events[1..] {
                            if let Some(Block::StatusChange(told)) = &change.block {
                                prop_assert_eq!(&told.event_id, &event.event_id);
                            }
                        }
                    }
                },
                _ => {
                    let existed = match op {
                        Op::CreateSet(_, set) => config.config_set(&set.name).is_some(),
                        Op::CreateIdentity(domain) => {
                            let (kind, value) = identity(*domain);
                            config.identity(kind, value).is_some()
                        }
                        _ => false,
                    };
                    change_model(&mut model, op, existed);
                }
            }
            prop_assert_eq!(machine.config().status(), model.status());
        }
        let reputation = machine.reputation();
        // Readers slide to their own now, which may be ahead of the log.
        for now in [machine.overlay.progress.last_t, machine.overlay.progress.last_t + 3 * DAY] {
            prop_assert_eq!(reputation.window.at(Millis(now)), model.recount(now, |_| true));
            for (scope, view) in &reputation.scopes {
                let name = match scope {
                    Scope::ConfigSet(id) => format!("set {:?}", id.bytes().to_vec()),
                    Scope::Identity(kind, value) => format!("{:?} {value}", IdentityType::try_from(*kind).unwrap()),
                };
                prop_assert_eq!(view.at(Millis(now)), model.recount_scope(now, &name), "{}", name);
            }
        }
        prop_assert_eq!(listed, model.suppressed);
    }

    /// The same records give the same effects and the same state, byte for byte: twice from the start, and from a
    /// checkpoint in the middle.
    #[test]
    fn replays_are_identical(ops in prop::collection::vec(op(), 1..150).prop_map(with_unique_sets), cut in 0usize..150) {
        let mut now = START;
        let mut records: Vec<(Record, Millis)> = Vec::new();
        for op in &ops {
            if let Op::Wait(millis) = op {
                now = now.plus(*millis);
            }
            if let Some(body) = body(op, now) {
                records.push((record(body), now));
            }
        }
        let run = |restart_at: Option<usize>| {
            let mut machine = Machine::with_account(START, Policy::splashify());
            let mut all = Vec::new();
            for (at, (record, now)) in records.iter().enumerate() {
                if restart_at == Some(at) {
                    machine.restart();
                }
                machine.now = *now;
                all.push(machine.apply(record.clone()));
            }
            machine.checkpoint();
            (all, machine.store_bytes())
        };
        let first = run(None);
        prop_assert_eq!(&first, &run(None));
        prop_assert_eq!(&first, &run(Some(cut)));
    }
}
