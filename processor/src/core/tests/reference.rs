//! A plain model of the contract: keeps every event for ever and recounts from scratch each time. Slow on purpose, and
//! written without the core's tables, windows and flags.

use std::collections::BTreeMap;

use sendtrail_schemas::account::{AccountConfig, IdentityType, Policy, Status, SuppressionOptions};
use sendtrail_schemas::block::Block;
use sendtrail_schemas::event::{EventFact, Tags};
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::reputation::Counts;

const HOUR: i64 = 3_600_000;
const DAY: i64 = 24 * HOUR;

/// One event as the model keeps it.
#[derive(Clone, Debug)]
pub struct Kept {
    pub kind: EventType,
    pub permanent: bool,
    pub message: String,
    pub recipient: String,
    pub t: i64,
    pub occurred_at: i64,
    pub original: Option<i64>,
    pub set: Option<String>,
    pub set_id: Option<Vec<u8>>,
    pub from: Option<String>,
    pub subject: Option<String>,
    pub tags: Tags,
    own_tags: Tags,
    pub unique: bool,
    pub counted: bool,
    pub history: bool,
    /// Told without anything personal.
    pub erased: bool,
    identity: Option<String>,
    /// Names of the scopes that counted it: unique over time.
    scopes: Vec<String>,
    /// Whether the policy judges it after `resumes` resumes.
    judged_in: Option<usize>,
    resumes: usize,
}

#[derive(Default)]
pub struct Model {
    pub events: Vec<Kept>,
    pub status: Option<Status>,
    pub suppressed: BTreeMap<String, String>,
    pub resumes: usize,
    /// Who was erased, and when.
    erased: Vec<(String, i64)>,
    /// How often each scope was made, so that one that is made again counts anew.
    pub made: BTreeMap<String, usize>,
    t: i64,
}

impl Model {
    pub fn advance(&mut self, received_at: i64) -> i64 {
        self.t = self.t.max(received_at);
        self.t
    }

    pub fn status(&self) -> Status {
        self.status.unwrap_or(Status::Healthy)
    }

    pub fn erase(&mut self, address: &str) {
        let address = address.to_lowercase();
        self.suppressed.remove(&address);
        self.erased.push((address, self.t));
    }

    /// Applies a fact; the new event and the status that it led to, or nothing for a duplicate.
    pub fn fact(&mut self, fact: &EventFact, config: &AccountConfig) -> Option<(Kept, Option<Status>)> {
        let t = self.t;
        let kind = fact.kind();
        let permanent = matches!(&fact.block, Some(Block::Bounce(b)) if b.bounce_type.as_deref() == Some("Permanent"));
        let recipient = fact.recipient.to_lowercase();
        let same = |kept: &&Kept| kept.kind == kind && kept.message == fact.message_id && kept.recipient == recipient;
        let once = match kind {
            EventType::Bounce => permanent,
            EventType::Open
            | EventType::Click
            | EventType::DeliveryDelay
            | EventType::Reply
            | EventType::Subscription => false,
            _ => true,
        };
        let identity = identity(fact);
        // A permanent bounce is a fact of its own beside the transient ones, whatever their identifiers.
        let mut alike = self.events.iter().filter(same).filter(|kept| kept.permanent == permanent);
        let duplicate = if once {
            alike.any(|kept| t < kept.t + 15 * DAY)
        } else {
            identity.is_some() && alike.any(|kept| kept.identity == identity && t < kept.t + 72 * HOUR)
        };
        if duplicate {
            return None;
        }
        let given = fact.occurred_at_nanos.map(|nanos| nanos.div_euclid(1_000_000));
        let original = given.filter(|given| *given > t + 300_000);
        let occurred_at = if original.is_some() { t } else { given.unwrap_or(t) };
        let sent = self.events.iter().rev().find(|kept| {
            kept.kind == EventType::Send
                && kept.message == fact.message_id
                && kept.recipient == recipient
                && t < kept.t + 15 * DAY
        });
        let lend = |own: &Option<String>, of_send: fn(&Kept) -> &Option<String>| {
            own.clone().or_else(|| sent.filter(|_| kind != EventType::Send).and_then(|sent| of_send(sent).clone()))
        };
        let set = lend(&fact.configuration_set_name, |kept| &kept.set);
        let from = lend(&fact.from, |kept| &kept.from);
        let subject = lend(&fact.subject, |kept| &kept.subject);
        let own_tags = match sent {
            Some(sent) if fact.tags.is_empty() && kind != EventType::Send => sent.own_tags.clone(),
            _ => fact.tags.clone(),
        };
        // The set of its message, under whatever name it goes by now; without a message, the one of its name.
        let of_send =
            sent.filter(|sent| kind != EventType::Send && sent.set == set).and_then(|sent| sent.set_id.clone());
        let existing = config.config_sets.iter().find(|known| match &of_send {
            Some(id) => known.config_set_id == *id,
            None => Some(&known.name) == set.as_ref(),
        });
        let set = existing.map(|existing| existing.name.clone()).or(set);
        let mut tags = existing.map(|set| set.tags.clone()).unwrap_or_default();
        tags.extend(own_tags.clone());
        let unique = matches!(kind, EventType::Open | EventType::Click)
            && !self.events.iter().filter(same).any(|kept| kept.unique && t < kept.t + 15 * DAY);
        let history = occurred_at.div_euclid(HOUR) < t.div_euclid(HOUR) - 335;
        let counts = matches!(kind, EventType::Send | EventType::Complaint) || permanent;
        let counted = counts && !history && existing.is_none_or(|set| set.reputation_tracking_enabled);
        let mut scopes = Vec::new();
        if let Some(set) = existing {
            scopes.push(self.scope(&format!("set {:?}", set.config_set_id)));
        }
        if let Some(from) = &from {
            let address = from.rsplit('<').next().unwrap().trim_end_matches('>').to_lowercase();
            let domain = address.split('@').nth(1).unwrap_or("").to_owned();
            for (kind, value) in [(IdentityType::EmailAddress, address), (IdentityType::Domain, domain)] {
                if config.identities.iter().any(|known| known.kind() == kind && known.value == value) {
                    scopes.push(self.scope(&format!("{kind:?} {value}")));
                }
            }
        }
        let before_resume = kind != EventType::Send && sent.is_some_and(|sent| sent.resumes < self.resumes);
        let sent_at = if kind == EventType::Send { Some(occurred_at) } else { sent.map(|sent| sent.occurred_at) };
        let erased = self.erased.iter().rev().find(|(address, _)| *address == recipient);
        let erased = erased.is_some_and(|(_, at)| t < at + 15 * DAY && sent_at.is_none_or(|sent_at| sent_at <= *at));
        let kept = Kept {
            kind,
            permanent,
            message: fact.message_id.clone(),
            recipient: recipient.clone(),
            t,
            occurred_at,
            original,
            set,
            set_id: existing.map(|existing| existing.config_set_id.clone()),
            from,
            subject,
            tags,
            own_tags,
            unique,
            counted,
            history,
            erased,
            identity,
            scopes,
            judged_in: (counted && !before_resume).then_some(self.resumes),
            resumes: self.resumes,
        };
        self.events.push(kept.clone());
        let options = existing.map_or(SuppressionOptions::BounceAndComplaint, |set| set.suppression_options());
        let reason = match kind {
            EventType::Bounce if permanent && options.bounces() => Some("BOUNCE"),
            EventType::Complaint if options.complaints() => Some("COMPLAINT"),
            EventType::Subscription => match &fact.block {
                Some(Block::Subscription(s)) if s.unsubscribe_all == Some(true) => Some("UNSUBSCRIBE"),
                _ => None,
            },
            _ => None,
        };
        if let Some(reason) = reason.filter(|_| !erased) {
            self.suppressed.entry(recipient).or_insert(reason.into());
        }
        // What the policy does not count, or not yet, moves no status.
        let is_judged = kept.judged_in.is_some() && occurred_at.div_euclid(HOUR) <= t.div_euclid(HOUR);
        let status = if is_judged { self.judge(&config.policy()) } else { None };
        Some((kept, status))
    }

    /// The name of a scope as it exists now.
    pub fn scope(&self, name: &str) -> String {
        format!("{name} #{}", self.made.get(name).copied().unwrap_or_default())
    }

    /// What a window ending at `now` holds of the events that `which` chooses.
    pub fn recount(&self, now: i64, which: impl Fn(&Kept) -> bool) -> Counts {
        let mut counts = Counts::default();
        let last = now.div_euclid(HOUR);
        for kept in self.events.iter().filter(|kept| kept.counted && which(kept)) {
            let hour = kept.occurred_at.div_euclid(HOUR);
            if hour <= last && hour > last - 336 {
                match kept.kind {
                    EventType::Send => counts.sent += 1,
                    EventType::Bounce => counts.bounced += 1,
                    _ => counts.complained += 1,
                }
            }
        }
        counts
    }

    /// Of one scope.
    pub fn recount_scope(&self, now: i64, name: &str) -> Counts {
        let name = self.scope(name);
        self.recount(now, |kept| kept.scopes.contains(&name))
    }

    fn judge(&mut self, policy: &Policy) -> Option<Status> {
        if self.status() == Status::Paused {
            return None;
        }
        let counts = self.recount(self.t, |kept| kept.judged_in == Some(self.resumes));
        let over = |part: u64, limit: Option<u32>| {
            limit.is_some_and(|limit| part as f64 / (counts.sent as f64) > f64::from(limit) / 1e6 + 1e-12)
        };
        let status = if counts.sent < policy.minimum_sends {
            Status::Healthy
        } else if over(counts.bounced, Some(policy.pause_bounce_ppm))
            || over(counts.complained, Some(policy.pause_complaint_ppm))
        {
            Status::Paused
        } else if over(counts.bounced, policy.warn_bounce_ppm) || over(counts.complained, policy.warn_complaint_ppm) {
            Status::AtRisk
        } else {
            Status::Healthy
        };
        let changed = status != self.status();
        self.status = Some(status);
        changed.then_some(status)
    }
}

fn identity(fact: &EventFact) -> Option<String> {
    match (&fact.event_id, fact.occurred_at_nanos) {
        (Some(id), _) => Some(format!("id {id}")),
        (None, Some(nanos)) => Some(format!("at {nanos} {:?}", fact.block)),
        (None, None) => None,
    }
}
