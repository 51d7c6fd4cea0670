//! A delivery event: is it new, what does it inherit, who counts it, does it suppress.

use sendtrail_schemas::account::{AccountConfig, Suppression, SuppressionOptions};
use sendtrail_schemas::block::Block;
use sendtrail_schemas::codec;
use sendtrail_schemas::destination::Destination;
use sendtrail_schemas::event::{Event, EventFact, Tags};
use sendtrail_schemas::ids::{AccountId, ConfigSetId};
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::personal;
use sendtrail_schemas::record::{Body, Record};
use sendtrail_schemas::reputation::WINDOW_HOURS;
use sendtrail_schemas::time::{HOUR, MINUTE, Millis};

use super::{Step, destinations, erasure};
use crate::core::account::{Account, Profiles};
use crate::core::effects::SuppressionChange;
use crate::core::overlay::Keys;
use crate::core::rows::{FactSeen, ONCE_HORIZON, Profile, Row, RowKey, Seen, Sent, remembered};
use crate::core::window::Counted;

/// How far ahead of its receipt an event may be dated.
const AHEAD: i64 = 5 * MINUTE;

/// Whether several facts of this type may be told of one message and recipient.
pub(super) fn is_repeatable(kind: EventType, permanent_bounce: bool) -> bool {
    match kind {
        EventType::Send
        | EventType::Delivery
        | EventType::Complaint
        | EventType::Reject
        | EventType::RenderingFailure => false,
        EventType::Bounce => !permanent_bounce,
        _ => true,
    }
}

/// What the row of a message told of a fact.
#[derive(Default)]
struct Observed {
    duplicate: bool,
    /// First open or click.
    unique: bool,
    /// When the message was sent.
    sent_at: Option<i64>,
    /// How often the account had been resumed then.
    sent_epoch: Option<u32>,
    /// The configuration set that it was sent through, unless the fact names another.
    sent_set: Option<ConfigSetId>,
}

/// Types of events by which a call was heard of, one bit each.
#[derive(Clone, Copy, Default)]
struct Heard(u32);

impl Heard {
    /// By one that is told once a call.
    fn by(kind: EventType) -> Self {
        Self(1_u32.checked_shl(kind as u32).unwrap_or_default())
    }

    /// What a row tells. One of an earlier logic may be of any type.
    fn before(seen: &FactSeen) -> Self {
        Self(if seen.kinds == 0 { u32::MAX } else { seen.kinds })
    }

    fn noted(self, t: Millis) -> FactSeen {
        FactSeen { at: t.0, horizon_hours: (ONCE_HORIZON / HOUR) as u32, kinds: self.0 }
    }

    /// Whether none of them was one that a destination is told of.
    fn is_news_for(self, to: &Destination) -> bool {
        let told = [EventType::Send, EventType::Reject, EventType::RenderingFailure];
        !told.into_iter().any(|kind| self.0 & Self::by(kind).0 != 0 && to.wants(kind, false, true))
    }
}

impl Step<'_> {
    pub(super) fn fact(&mut self, id: AccountId, fact: &mut EventFact, keys: &Keys) {
        let Some(mut account) = self.overlay.take_account(id) else {
            // The door checks accounts; what comes here was read from a source.
            let record = Record {
                version: codec::VERSION,
                account_id: id.bytes().to_vec(),
                body: Some(Body::Fact(std::mem::take(fact))),
                ..Record::default()
            };
            let reason = match &self.source {
                Some(at) => {
                    format!("no such account ({}, partition {}, offset {})", at.source, at.partition, at.offset)
                }
                None => "no such account".into(),
            };
            return self.dead_letter(codec::encode(&record).to_vec(), reason);
        };
        if let Some((event, is_judged)) = self.canonical(&mut account, fact, keys) {
            self.suppress_by(&account, id, &event, keys);
            self.emit(event);
            if is_judged {
                self.judge(id, &mut account);
            }
        }
        self.overlay.put_account(id, account);
    }

    /// The event of a new fact, counted by the windows that it belongs to, and whether the account is judged after it; `None` for
    /// a duplicate.
    fn canonical(&mut self, account: &mut Account, fact: &mut EventFact, keys: &Keys) -> Option<(Event, bool)> {
        let (t, kind, permanent) = (self.t, fact.kind(), fact.is_permanent_bounce());
        if let Some(key) = &keys.fact
            && self.is_repeated(key)
        {
            return None;
        }
        let given = fact.occurred_at_nanos.map(|nanos| Millis(nanos.div_euclid(1_000_000)));
        let ahead = given.filter(|given| given.0 > t.0 + AHEAD);
        let occurred_at = if ahead.is_some() { t } else { given.unwrap_or(t) };
        let observed = self.observe(account, fact, keys, occurred_at);
        if observed.duplicate {
            return None;
        }
        let config = account.config.clone();
        let set = config.config_set_position(fact.configuration_set_name.as_deref(), observed.sent_set);
        let of_set = set.and_then(|set| config.config_sets.get(set));
        if let Some(set) = of_set.filter(|set| fact.configuration_set_name.as_ref() != Some(&set.name)) {
            // It was renamed since.
            fact.configuration_set_name = Some(set.name.clone());
        }
        join_tags(&mut fact.tags, of_set.map(|set| &set.tags));
        let history = occurred_at.hour() <= t.hour() - WINDOW_HOURS;
        let tracked = of_set.is_none_or(|set| set.reputation_tracking_enabled);
        let what = match kind {
            EventType::Send => Some(Counted::Send),
            EventType::Bounce if permanent => Some(Counted::Bounce),
            EventType::Complaint => Some(Counted::Complaint),
            _ => None,
        };
        let what = what.filter(|_| tracked && !history);
        let is_judged = what.is_some_and(|what| {
            // A bounce or complaint of a message sent before the last resume says nothing about what came after.
            let judged = what == Counted::Send || observed.sent_epoch.is_none_or(|epoch| epoch == config.epoch);
            let from = fact.from.as_deref().unwrap_or_default();
            let is_in_sum = account.count(set, from, t, occurred_at.hour(), what, judged);
            // What the policy does not count cannot be what crossed its limit. Earlier logics judged after it, too.
            is_in_sum || self.settings().logic_version < 5
        });
        let heard = keys.call.filter(|_| fact.send_id.is_some()).map(|call| self.hear_of_call(&config, kind, &call));
        let heard = heard.unwrap_or_default();
        let mut destination_ids = destinations(&config, set, kind, permanent, |to| heard.is_news_for(to));
        if self.settings().logic_version >= 5
            && matches!(&fact.block, Some(Block::Subscription(change)) if !change.is_unsubscribe())
        {
            // Whoever has a name for the type calls it an unsubscribe.
            destination_ids.clear();
        }
        let erased = erasure::is_erased(account, fact, observed.sent_at, occurred_at, t);
        let mut event = Event {
            account_id: config.account_id.clone(),
            kind: fact.kind,
            event_id: fact.event_id.take().unwrap_or_default(),
            occurred_at: occurred_at.0,
            original_occurred_at: ahead.map(|given| given.0),
            message_id: std::mem::take(&mut fact.message_id),
            send_id: fact.send_id.take(),
            recipient: std::mem::take(&mut fact.recipient),
            from: fact.from.take(),
            subject: fact.subject.take(),
            configuration_set_name: fact.configuration_set_name.take(),
            customer_id: fact.customer_id.take(),
            category: fact.category.take(),
            tags: std::mem::take(&mut fact.tags),
            metadata: fact.metadata.take(),
            unique: observed.unique,
            counted: what.is_some(),
            history,
            sent_at: observed.sent_at,
            destination_ids,
            config_set_id: of_set.map(|set| set.config_set_id.clone()),
            block: fact.block.take(),
            ..Event::default()
        };
        if erased {
            personal::strip(&mut event);
        }
        Some((event, is_judged))
    }

    /// By what a call was heard of before a new fact, which is noted if somebody is told of such facts once a call.
    fn hear_of_call(&mut self, config: &AccountConfig, kind: EventType, call: &RowKey) -> Heard {
        if !config.destinations().any(|dest| dest.dialect().is_once_a_call(kind)) {
            return Heard::default();
        }
        let t = self.t;
        let now = if self.settings().logic_version >= 5 { Heard::by(kind) } else { Heard::default() };
        self.overlay.edit_row(call, |row| match row {
            Some(Row::Fact(seen)) if seen.remembered(t) => {
                let before = Heard::before(seen);
                let is_other = (before.0 | now.0) != before.0;
                if is_other {
                    seen.kinds = before.0 | now.0;
                }
                (is_other, before)
            }
            _ => {
                *row = Some(Row::Fact(now.noted(t)));
                (true, Heard::default())
            }
        })
    }

    /// A call of our own was heard of: facts that come of it later are not the first.
    pub(super) fn note_call(&mut self, id: AccountId, config: &AccountConfig, kind: EventType, send_id: &str) {
        let is_asked = config.destinations().any(|dest| dest.dialect().is_once_a_call(kind));
        if let Some(call) = RowKey::call(id, kind, send_id).filter(|_| is_asked) {
            self.overlay.put_row(call, Some(Row::Fact(Heard::by(kind).noted(self.t))));
        }
    }

    fn is_repeated(&mut self, key: &RowKey) -> bool {
        let (t, horizon_hours) = (self.t, self.settings().repeatable_horizon_hours);
        self.overlay.edit_row(key, |row| {
            if matches!(row, Some(Row::Fact(seen)) if seen.remembered(t)) {
                return (false, true);
            }
            *row = Some(Row::Fact(FactSeen { at: t.0, horizon_hours, kinds: 0 }));
            (true, false)
        })
    }

    /// Looks at the row of the message and recipient: notes the fact there, and lends the fact what it lacks.
    fn observe(&mut self, account: &mut Account, fact: &mut EventFact, keys: &Keys, occurred_at: Millis) -> Observed {
        let (t, kind) = (self.t, fact.kind());
        let once = !is_repeatable(kind, fact.is_permanent_bounce());
        let epoch = account.config.epoch;
        let kept_set = if kind == EventType::Send {
            let named = fact.configuration_set_name.as_deref();
            self.kept_set(named.and_then(|name| account.config.config_set(name)))
        } else {
            None
        };
        let Some(key) = &keys.seen else { return Observed::default() };
        let profiles = &mut account.profiles;
        let forgets = self.settings().logic_version >= 5;
        let (observed, touched) = self.overlay.edit_row(key, |row| {
            // Whether the store has dropped it by now is chance. Nobody is to see which: it is taken away, also where nothing
            // else is to be noted.
            let over = forgets && matches!(row, Some(Row::Seen(seen)) if !remembered(Some(seen.last()), t));
            if over {
                *row = None;
            }
            let engaged = matches!(kind, EventType::Open | EventType::Click);
            if row.is_none() && !once && !engaged {
                // Nothing to learn, nothing to note.
                return (over, (Observed::default(), false));
            }
            let mut fresh = Box::default();
            let seen: &mut Box<Seen> = match row {
                Some(Row::Seen(seen)) => seen,
                _ => &mut fresh,
            };
            let first =
                if once || engaged { seen.first(kind).map(|first| (remembered(*first, t), first)) } else { None };
            let mut observed = Observed::default();
            let mut changed = false;
            match first {
                Some((true, _)) if once => {
                    observed.duplicate = true;
                    return (false, (observed, false));
                }
                Some((false, first)) => {
                    *first = Some(t.0);
                    changed = true;
                    observed.unique = engaged;
                }
                _ => {}
            }
            let mut touched = false;
            if kind == EventType::Send {
                touched = true;
                seen.sent = Some(sent(profiles, fact, kept_set, occurred_at, epoch, t));
                observed.sent_at = Some(occurred_at.0);
            } else if let Some(sent) = seen.sent_at(t) {
                observed.sent_at = Some(sent.occurred_at);
                observed.sent_epoch = Some(sent.epoch);
                observed.sent_set = inherit(fact, sent, profiles);
            }
            if changed && row.is_none() {
                *row = Some(Row::Seen(fresh));
            }
            (changed || over, (observed, touched))
        });
        account.touched |= touched;
        observed
    }

    fn suppress_by(&mut self, account: &Account, id: AccountId, event: &Event, keys: &Keys) {
        // Whoever was erased is not written down again.
        if event.recipient.is_empty() {
            return;
        }
        let set = if self.settings().logic_version >= 5 {
            let id = event.config_set_id.as_deref().and_then(|id| ConfigSetId::from_slice(id).ok());
            id.and_then(|id| account.config.config_set_by_id(id))
        } else {
            event.configuration_set_name.as_deref().and_then(|name| account.config.config_set(name))
        };
        let options = set.map_or(SuppressionOptions::BounceAndComplaint, |set| set.suppression_options());
        let (reason, details) = match &event.block {
            Some(Block::Bounce(bounce)) if event.is_permanent_bounce() && options.bounces() => {
                ("BOUNCE", bounce.diagnostic_code.clone())
            }
            Some(Block::Subscription(subscription)) if subscription.unsubscribe_all == Some(true) => {
                ("UNSUBSCRIBE", subscription.source.clone())
            }
            block if event.kind() == EventType::Complaint && options.complaints() => match block {
                Some(Block::Complaint(complaint)) => ("COMPLAINT", complaint.complaint_feedback_type.clone()),
                _ => ("COMPLAINT", None),
            },
            _ => return,
        };
        let Some(key) = keys.suppressed.first() else { return };
        let event_id = if event.event_id.is_empty() {
            sendtrail_schemas::ids::event_id(self.overlay.partition, self.overlay.progress.next_event)
        } else {
            event.event_id.clone()
        };
        let row = Suppression {
            email: event.recipient.clone(),
            reason: reason.into(),
            details,
            created_at: self.t.0,
            event_id: Some(event_id),
        };
        self.suppress(id, *key, row, false);
    }

    /// Puts an address on the list; one that is there stays as it is unless `replace`.
    pub(super) fn suppress(&mut self, id: AccountId, key: RowKey, row: Suppression, replace: bool) {
        if replace || self.overlay.row(&key).is_none() {
            self.overlay.put_row(key, Some(Row::Suppressed(Box::new(row.clone()))));
            self.effects.suppressions.push((id, SuppressionChange::Put(row)));
        }
    }
}

/// What later events will take from a Send.
fn sent(
    profiles: &mut Profiles,
    fact: &EventFact,
    config_set_id: Option<Vec<u8>>,
    occurred_at: Millis,
    epoch: u32,
    t: Millis,
) -> Sent {
    let profile = Profile {
        configuration_set_name: fact.configuration_set_name.clone(),
        from: fact.from.clone(),
        customer_id: fact.customer_id.clone(),
        category: fact.category.clone(),
        tags: fact.tags.clone(),
        config_set_id,
    };
    let (profile, own) = intern(profiles, profile, t);
    Sent {
        occurred_at: occurred_at.0,
        epoch,
        profile,
        own,
        subject: fact.subject.clone(),
        metadata: fact.metadata.clone(),
        send_id: fact.send_id.clone(),
    }
}

pub(super) fn intern(profiles: &mut Profiles, profile: Profile, t: Millis) -> (u32, Option<Box<Profile>>) {
    if profile.is_empty() {
        return (0, None);
    }
    match profiles.number(profile, t) {
        Ok(number) => (number, None),
        Err(own) => (0, Some(own)),
    }
}

/// Gives a fact what it lacks and its Send had; the set of its Send, unless it names another.
fn inherit(fact: &mut EventFact, sent: &Sent, profiles: &Profiles) -> Option<ConfigSetId> {
    fn lend(own: &mut Option<String>, of_send: &Option<String>) {
        if own.is_none() {
            own.clone_from(of_send);
        }
    }
    lend(&mut fact.subject, &sent.subject);
    lend(&mut fact.metadata, &sent.metadata);
    lend(&mut fact.send_id, &sent.send_id);
    let profile = sent.own.as_deref().or_else(|| profiles.get(sent.profile).map(|shared| &**shared))?;
    lend(&mut fact.configuration_set_name, &profile.configuration_set_name);
    lend(&mut fact.from, &profile.from);
    lend(&mut fact.customer_id, &profile.customer_id);
    lend(&mut fact.category, &profile.category);
    if fact.tags.is_empty() {
        fact.tags.clone_from(&profile.tags);
    }
    let same = fact.configuration_set_name == profile.configuration_set_name;
    profile.config_set_id.as_deref().filter(|_| same).and_then(|id| ConfigSetId::from_slice(id).ok())
}

/// Joins a set's tags to an event's own, which win.
pub(super) fn join_tags(own: &mut Tags, of_set: Option<&Tags>) {
    for (key, value) in of_set.into_iter().flatten() {
        if !own.contains_key(key) {
            own.insert(key.clone(), value.clone());
        }
    }
}
