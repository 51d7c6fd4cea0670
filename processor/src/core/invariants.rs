//! What holds of the state and of what a record gives rise to, by name. `docs/INVARIANTS.md` lists all, also those that are
//! no matter of the core.
//!
//! Property tests ask after every operation; builds with debug assertions ask after every record that is applied, so that every
//! scenario and every killed server asks, too.

use sendtrail_schemas::account::Status;
use sendtrail_schemas::kind::EventType;

use super::account::Account;
use super::effects::Effects;
use super::overlay::Progress;
use super::step::{MAX_CONFIG_SETS, MAX_DESTINATIONS, MAX_WEBHOOKS};
use super::window::Window;

/// Something that holds no more: the invariant's name and how it shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// As in `docs/INVARIANTS.md`.
    pub name: &'static str,
    /// What was found.
    pub found: String,
}

fn holds(name: &'static str, holds: bool, found: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation { name, found: found() }) }
}

/// `window-sum`: a window's running sum is the sum of its hours.
///
/// # Errors
/// [`Violation`].
pub fn window_sum(window: &Window) -> Result<(), Violation> {
    let (sum, counted) = (window.sum(), window.counted());
    holds("window-sum", sum == counted, || format!("the sum is {sum:?}, the hours have {counted:?}"))
}

/// Everything that holds of an account.
///
/// # Errors
/// [`Violation`], the first.
pub fn of_account(account: &Account) -> Result<(), Violation> {
    let config = &account.config;
    account.windows().try_for_each(|tracked| window_sum(&tracked.window))?;
    let (sets, identities) = (&config.config_sets, &config.identities);
    holds(
        "windows-of-parts",
        (account.sets.len(), account.identities.len()) == (sets.len(), identities.len()),
        || {
            format!(
                "{} windows of {} sets, {} of {} identities",
                account.sets.len(),
                sets.len(),
                account.identities.len(),
                identities.len()
            )
        },
    )?;
    let sorted = sets.is_sorted_by(|one, other| one.name < other.name);
    holds("sets-sorted", sorted, || "configuration sets are not in the order of their names, or two have one".into())?;
    holds("pause-evidence", (config.status() == Status::Paused) == config.paused.is_some(), || {
        format!("{:?}, with evidence: {}", config.status(), config.paused.is_some())
    })?;
    let fullest = sets.iter().map(|set| set.destinations.len()).max().unwrap_or_default();
    let bounded = sets.len() <= MAX_CONFIG_SETS && fullest <= MAX_DESTINATIONS && config.webhooks.len() <= MAX_WEBHOOKS;
    holds("caps", bounded, || {
        format!("{} sets, {fullest} destinations, {} webhooks", sets.len(), config.webhooks.len())
    })
}

/// Where a partition and its outputs were before a record.
#[derive(Clone, Copy, Debug)]
pub struct Before {
    next_offset: u64,
    next_event: u64,
    last_t: i64,
    events: usize,
}

impl Before {
    /// Now.
    pub fn of(progress: &Progress, effects: &Effects) -> Self {
        Self {
            next_offset: progress.next_offset,
            next_event: progress.next_event,
            last_t: progress.last_t,
            events: effects.events.len(),
        }
    }

    /// Everything that holds of what the record at `offset` gave rise to.
    ///
    /// # Errors
    /// [`Violation`], the first.
    pub fn check(self, progress: &Progress, effects: &Effects, offset: u64) -> Result<(), Violation> {
        holds("offset-order", self.next_offset <= offset && progress.next_offset == offset + 1, || {
            format!("after the record at {offset} {} comes next, before it {}", progress.next_offset, self.next_offset)
        })?;
        holds("time-never-back", self.last_t <= progress.last_t, || {
            format!("from {} to {}", self.last_t, progress.last_t)
        })?;
        let events = effects.events.get(self.events..).unwrap_or_default();
        let dense = (self.next_event..).zip(events).all(|(seq, event)| event.seq == seq);
        let counted = self.next_event + events.len() as u64 == progress.next_event;
        holds("dense-seq", dense && counted, || {
            let seqs: Vec<u64> = events.iter().map(|event| event.seq).collect();
            format!("{seqs:?} between {} and {}", self.next_event, progress.next_event)
        })?;
        let stamped = events.iter().all(|event| event.received_at == progress.last_t && event.offset == offset);
        holds("stamped-by-the-record", stamped, || {
            format!("an event of the record at {offset} names another, or another time")
        })?;
        // A pause is the last word of its record on sends: none is accepted by the same call after it.
        let paused = events.iter().position(|event| event.kind() == EventType::Paused);
        let sends = |from: usize| {
            events.iter().skip(from).any(|event| event.kind() == EventType::Send && event.send_id.is_some())
        };
        holds("no-send-after-pause", paused.is_none_or(|at| !sends(at)), || {
            "a send after the pause of its record".into()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sendtrail_schemas::account::{AccountConfig, ConfigSet, PauseEvidence};
    use sendtrail_schemas::event::Event;

    fn name(outcome: Result<(), Violation>) -> &'static str {
        outcome.unwrap_err().name
    }

    #[test]
    fn what_is_broken_is_named() {
        let set = |name: &str| ConfigSet { name: name.into(), ..ConfigSet::default() };
        let account = |config: AccountConfig| Account::new(config);
        assert_eq!(of_account(&account(AccountConfig::default())), Ok(()));
        let unsorted = AccountConfig { config_sets: vec![set("b"), set("a")], ..AccountConfig::default() };
        assert_eq!(name(of_account(&account(unsorted))), "sets-sorted");
        let many = (0..=MAX_CONFIG_SETS).map(|n| set(&format!("{n:03}"))).collect();
        assert_eq!(name(of_account(&account(AccountConfig { config_sets: many, ..AccountConfig::default() }))), "caps");
        let paused = AccountConfig { paused: Some(PauseEvidence::default()), ..AccountConfig::default() };
        assert_eq!(name(of_account(&account(paused))), "pause-evidence");
        let mut lost = account(AccountConfig { config_sets: vec![set("a")], ..AccountConfig::default() });
        lost.sets.clear();
        assert_eq!(name(of_account(&lost)), "windows-of-parts");
    }

    #[test]
    fn what_a_record_may_not_do_is_named() {
        let before = Progress { next_offset: 7, next_event: 3, last_t: 50, ..Progress::default() };
        let after = Progress { next_offset: 8, next_event: 4, last_t: 60, ..before.clone() };
        let event = Event { seq: 3, received_at: 60, offset: 7, ..Event::default() };
        let check = |after: &Progress, events: Vec<Event>| {
            let effects = Effects { events, ..Effects::default() };
            Before::of(&before, &Effects::default()).check(after, &effects, 7)
        };
        assert_eq!(check(&after, vec![event.clone()]), Ok(()));
        assert_eq!(name(check(&after, vec![])), "dense-seq");
        assert_eq!(name(check(&after, vec![Event { seq: 4, ..event.clone() }])), "dense-seq");
        assert_eq!(name(check(&after, vec![Event { received_at: 50, ..event.clone() }])), "stamped-by-the-record");
        assert_eq!(name(check(&Progress { last_t: 40, ..after.clone() }, vec![event.clone()])), "time-never-back");
        assert_eq!(name(check(&Progress { next_offset: 9, ..after.clone() }, vec![event.clone()])), "offset-order");
        let paused = Event { kind: EventType::Paused as i32, ..event.clone() };
        let send = Event { kind: EventType::Send as i32, seq: 4, send_id: Some("s".into()), ..event };
        assert_eq!(name(check(&Progress { next_event: 5, ..after }, vec![paused, send])), "no-send-after-pause");
    }
}
