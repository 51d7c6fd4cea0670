//! Webhook destinations: made, changed, and told how they are doing; replays; and what is only for the account's own webhook.

use sendtrail_schemas::block::{Block, Lifecycle, WebhookChange};
use sendtrail_schemas::destination::{Bounces, Destination, Health, OldSecret, Replay, ReplayState};
use sendtrail_schemas::event::Event;
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::problem::Code;
use sendtrail_schemas::record::{CreateDestination, DestinationName, DestinationPatch, RotateSecret, WebhookHealth};
use sendtrail_schemas::time::Millis;

use super::command::{done, no_set};
use super::{Step, Told, everywhere, refused};
use crate::core::account::Account;

/// Destinations of one set (S2 "Limits").
pub const MAX_DESTINATIONS: usize = 5;
/// Destinations of an account that are of no set.
pub const MAX_WEBHOOKS: usize = 100;
/// Replays that are remembered, and that may run at once.
pub const MAX_REPLAYS: usize = 20;
/// Replays that were cancelled and are remembered beside them.
const MAX_CANCELLED: usize = 100;
/// See [`MAX_REPLAYS`].
pub const MAX_RUNNING: usize = 3;
/// Secrets that sign besides the two newest, after one rotation upon the other.
const MAX_OLDER: usize = 3;

fn no_destination() -> Told {
    refused(Code::NotFound, "no such event destination")
}

/// The list that a destination is in, or is to be in.
fn list<'a>(account: &'a mut Account, set: &[u8]) -> Option<&'a mut Vec<Destination>> {
    if set.is_empty() {
        return Some(&mut account.config_mut().webhooks);
    }
    let set = account.config_mut().config_sets.iter_mut().find(|known| known.config_set_id == set);
    set.map(|set| &mut set.destinations)
}

/// The place of a destination: its list, and where it is there.
fn find(account: &Account, name: &DestinationName) -> Result<(Vec<u8>, usize), Told> {
    let config = &account.config;
    let of_set = |set: &[u8], list: &[Destination]| {
        let at = list.iter().position(|dest| dest.destination_id == name.destination_id)?;
        Some((set.to_vec(), at))
    };
    if name.config_set_id.is_empty() {
        let of_sets = || config.config_sets.iter().find_map(|set| of_set(&set.config_set_id, &set.destinations));
        return of_set(&[], &config.webhooks).or_else(of_sets).ok_or_else(no_destination);
    }
    let set = config.config_sets.iter().find(|set| set.config_set_id == name.config_set_id).ok_or_else(no_set)?;
    of_set(&set.config_set_id, &set.destinations).ok_or_else(no_destination)
}

fn find_mut<'a>(account: &'a mut Account, name: &DestinationName) -> Result<&'a mut Destination, Told> {
    let (set, at) = find(account, name)?;
    list(account, &set).and_then(|list| list.get_mut(at)).ok_or_else(no_destination)
}

/// `since_5`: before, every destination that gets bounces gets both kinds, and no state says otherwise. So programs that know
/// no choice fold the same records into the same state.
fn chosen(bounces: i32, since_5: bool) -> i32 {
    if since_5 { bounces } else { Bounces::Both as i32 }
}

/// `since_5`: see [`chosen`].
pub(super) fn create(account: &mut Account, create: CreateDestination, now: i64, since_5: bool) -> Told {
    let Some(destination) = create.destination else { return no_destination() };
    let of_account = create.config_set_id.is_empty();
    let surface = destination.surface();
    if surface.is_single() && account.config.webhook_of(surface).is_some() {
        let message = format!("the account has its {} webhook already", surface.name());
        return refused(Code::DestinationLimitReached, message);
    }
    let Some(list) = list(account, &create.config_set_id) else { return no_set() };
    let (most, whose) =
        if of_account { (MAX_WEBHOOKS, "an account") } else { (MAX_DESTINATIONS, "a configuration set") };
    if list.len() >= most {
        return refused(Code::DestinationLimitReached, format!("{whose} has at most {most} event destinations"));
    }
    let bounces = chosen(destination.bounces, since_5);
    list.push(Destination { created_at: now, bounces, ..destination });
    done(true)
}

/// `since_5`: with the dialect, secrets of before may go; see [`chosen`], too.
pub(super) fn patch(account: &mut Account, patch: DestinationPatch, since_5: bool) -> Told {
    let Some(name) = patch.destination else { return no_destination() };
    let dest = match find_mut(account, &name) {
        Ok(dest) => dest,
        Err(told) => return told,
    };
    // What failed was the address before, or the server that its owner has mended since.
    let moved = patch.webhook_url.as_ref().is_some_and(|url| *url != dest.webhook_url);
    if moved || patch.enabled == Some(true) && (!dest.enabled || dest.health() != Health::Working) {
        dest.set_health(Health::Working);
        (dest.failing_since, dest.revival) = (0, dest.revival + 1);
        dest.health_reason.clear();
    }
    if let Some(name) = patch.name {
        dest.name = name;
    }
    if let Some(url) = patch.webhook_url {
        dest.webhook_url = url;
    }
    if let Some(secret) = patch.sealed_secret {
        (dest.sealed_secret, dest.previous_secret, dest.previous_until) = (Some(secret), None, 0);
        dest.older_secrets.clear();
    }
    if patch.has_matching_event_types {
        dest.bounces = chosen(patch.bounces, since_5);
        dest.matching_event_types = patch.matching_event_types;
    }
    let several = dest.dialect().carries_several_signatures();
    dest.dialect = patch.dialect.unwrap_or(dest.dialect);
    if since_5 && several && !dest.dialect().carries_several_signatures() {
        // The one signature of the new dialect is by the secret of now.
        (dest.previous_secret, dest.previous_until) = (None, 0);
        dest.older_secrets.clear();
    }
    dest.enabled = patch.enabled.unwrap_or(dest.enabled);
    if patch.has_retry_schedule {
        dest.retry_schedule_seconds = patch.retry_schedule_seconds;
    }
    if let Some(text) = patch.description {
        dest.description = (!text.is_empty()).then_some(text);
    }
    if patch.has_headers {
        dest.headers = patch.headers;
    }
    dest.ordering = patch.ordering.unwrap_or(dest.ordering);
    let some = |own: Option<u32>, new: Option<u32>| new.map_or(own, |new| (new > 0).then_some(new));
    dest.concurrency = some(dest.concurrency, patch.concurrency);
    dest.rate_per_second = some(dest.rate_per_second, patch.rate_per_second);
    dest.envelope = patch.envelope.unwrap_or(dest.envelope);
    done(true)
}

pub(super) fn delete(account: &mut Account, name: &DestinationName) -> Told {
    match find(account, name) {
        Ok((set, at)) => {
            if let Some(list) = list(account, &set) {
                list.remove(at);
            }
            done(true)
        }
        Err(told) => told,
    }
}

/// Another secret; the one before signs on for a while. Or the same ones, sealed anew.
pub(super) fn rotate(account: &mut Account, rotate: RotateSecret, now: i64) -> Told {
    let Some(name) = rotate.destination else { return no_destination() };
    let dest = match find_mut(account, &name) {
        Ok(dest) => dest,
        Err(told) => return told,
    };
    if let Some(resealed) = rotate.resealed {
        // Whoever sealed anew read them some time ago.
        if dest.sealed_secret.as_ref() != Some(&rotate.sealed_secret) {
            return done(false);
        }
        dest.sealed_secret = Some(resealed);
        dest.previous_secret = dest.previous_secret.take().and(rotate.resealed_previous);
        for (old, anew) in dest.older_secrets.iter_mut().zip(rotate.resealed_older) {
            old.sealed = anew;
        }
        return done(true);
    }
    let before = dest.sealed_secret.replace(rotate.sealed_secret);
    let several = dest.dialect().carries_several_signatures();
    if several && rotate.overlap <= 0 {
        (dest.previous_secret, dest.previous_until) = (None, 0);
        dest.older_secrets.clear();
    } else {
        // What signs goes on signing, also when a rotation is asked for before the last one was over.
        dest.older_secrets.retain(|old| old.until > now);
        if several && dest.previous_until > now {
            let until = dest.previous_until;
            dest.older_secrets.extend(dest.previous_secret.take().map(|sealed| OldSecret { sealed, until }));
            let beyond = dest.older_secrets.len().saturating_sub(MAX_OLDER);
            dest.older_secrets.drain(..beyond);
        }
        dest.previous_secret = if several { before } else { dest.previous_secret.take().or(before) };
        dest.previous_until = now + rotate.overlap;
    }
    done(true)
}

pub(super) fn switch(account: &mut Account, name: &DestinationName) -> Told {
    match find_mut(account, name) {
        Ok(dest) => {
            let changed = dest.previous_secret.take().is_some();
            dest.previous_until = 0;
            dest.older_secrets.clear();
            done(changed)
        }
        Err(told) => told,
    }
}

/// `keeps`: cancelled ones are counted apart. `below`: the number of the next event, where a replay ends.
pub(super) fn start_replay(
    account: &mut Account,
    mut replay: Replay,
    now: i64,
    keeps: bool,
    below: Option<u64>,
) -> Told {
    let running = |replay: &&Replay| replay.state() == ReplayState::Running;
    if account.config.replays.iter().filter(running).count() >= MAX_RUNNING {
        return refused(Code::ReplayLimitReached, format!("at most {MAX_RUNNING} replays run at once"));
    }
    if let Some(query) = replay.query.as_mut().filter(|query| query.seq.is_none()) {
        // No clock tells what was there before: some events are dated ahead, and others come late.
        query.below = below;
    }
    let replays = &mut account.config_mut().replays;
    // Of one that was cancelled much may wait for long, which only the record of it holds back.
    let is_cancelled = |replay: &Replay| keeps && replay.state() == ReplayState::Cancelled;
    for (most, cancelled) in [(MAX_REPLAYS, false), (MAX_CANCELLED, true)] {
        let of_kind = |replay: &&Replay| is_cancelled(replay) == cancelled;
        if replays.iter().filter(of_kind).count() >= most
            && let Some(oldest) =
                replays.iter().position(|one| one.state() != ReplayState::Running && is_cancelled(one) == cancelled)
        {
            replays.remove(oldest);
        }
    }
    replays.push(Replay { created_at: now, state: ReplayState::Running as i32, finished_at: None, ..replay });
    done(true)
}

/// How far a replay is; one that was ended stays so.
pub(super) fn replay_progress(account: &mut Account, told: Replay, now: i64) -> Told {
    let known = account.config.replays.iter().position(|replay| replay.replay_id == told.replay_id);
    let Some(at) = known.filter(|at| account.config.replays[*at].state() == ReplayState::Running) else {
        return done(false);
    };
    let replay = &mut account.config_mut().replays[at];
    (replay.counts, replay.cursor, replay.error, replay.state) = (told.counts, told.cursor, told.error, told.state);
    if replay.state() != ReplayState::Running {
        replay.finished_at = Some(now);
    }
    done(true)
}

pub(super) fn cancel_replay(account: &mut Account, id: &[u8], now: i64) -> Told {
    let Some(at) = account.config.replays.iter().position(|replay| replay.replay_id == id) else {
        return refused(Code::NotFound, "no such replay");
    };
    if account.config.replays[at].state() != ReplayState::Running {
        return done(false);
    }
    let replay = &mut account.config_mut().replays[at];
    replay.set_state(ReplayState::Cancelled);
    replay.finished_at = Some(now);
    done(true)
}

impl Step<'_> {
    /// How a destination is doing, as whoever posts to it saw: a change is an event, told to the contact and the operator.
    pub(super) fn webhook_health(&mut self, account: &mut Account, told: WebhookHealth) -> Told {
        let name = DestinationName { config_set_id: Vec::new(), destination_id: told.destination_id.clone() };
        let (health, t) = (told.health(), self.t.0);
        let dest = match find(account, &name) {
            Ok((set, at)) => list(account, &set).and_then(|list| list.get_mut(at)),
            Err(told) => return told,
        };
        let Some(dest) = dest.filter(|dest| dest.revival == told.revival && dest.health() != health) else {
            return done(false);
        };
        let from = dest.health();
        dest.set_health(health);
        dest.failing_since = if health == Health::Working { 0 } else { told.failing_since };
        dest.health_reason = if health == Health::Working { String::new() } else { told.reason.clone() };
        if health == Health::Disabled {
            dest.enabled = false;
        }
        let since = Millis(told.failing_since).to_string();
        let change = WebhookChange {
            destination_id: dest.id().map(|id| id.to_string()),
            name: Some(dest.name.clone()),
            from: Some(from.name().into()),
            to: Some(health.name().into()),
            reason: Some(told.reason),
            failed_attempts: Some(i64::from(told.failed_attempts)),
            failing_since: (told.failing_since > 0).then_some(since),
        };
        let kind = match health {
            Health::Working => EventType::WebhookRecovered,
            Health::Failing => EventType::WebhookFailing,
            Health::Disabled => EventType::WebhookDisabled,
        };
        self.tell_of_webhook(account, &change, health);
        let config = account.config.clone();
        self.emit(Event {
            account_id: config.account_id.clone(),
            kind: kind as i32,
            occurred_at: t,
            destination_ids: everywhere(&config, kind),
            block: Some(Block::WebhookChange(change)),
            ..Event::default()
        });
        done(true)
    }

    fn tell_of_webhook(&mut self, account: &Account, change: &WebhookChange, health: Health) {
        let config = account.config.clone();
        let some = |text: &Option<String>| text.clone().unwrap_or_default();
        let (name, means) = (
            some(&change.name),
            match health {
                Health::Working => "It takes events again; what has waited is being delivered.",
                Health::Failing => {
                    "Deliveries to it wait and none is lost; one is tried now and then until it answers."
                }
                Health::Disabled => {
                    "It gets nothing until it is enabled again. What it missed is kept and can be recovered."
                }
            },
        );
        let subject = format!("Webhook {name:?} of {} is {}", config.name, health.name());
        let text = format!(
            "Account: {} ({})\nWebhook: {name} ({})\nStatus: {} (before: {})\nWhy: {}\n{means}\n",
            config.name,
            config.id(),
            some(&change.destination_id),
            some(&change.to),
            some(&change.from),
            some(&change.reason),
        );
        self.mail_contact(&config, subject, text);
    }

    /// Something for the account-level webhook that is not about email.
    pub(super) fn lifecycle(&mut self, account: &Account, lifecycle: Lifecycle) -> Told {
        let config = account.config.clone();
        self.emit(Event {
            account_id: config.account_id.clone(),
            kind: EventType::Lifecycle as i32,
            occurred_at: self.t.0,
            destination_ids: everywhere(&config, EventType::Lifecycle),
            block: Some(Block::Lifecycle(lifecycle)),
            ..Event::default()
        });
        done(false)
    }
}
