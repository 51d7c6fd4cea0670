//! One attempt: looked up, signed, posted.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sendtrail_schemas::account::AccountConfig;
use sendtrail_schemas::destination::{Destination, Dialect, Envelope as Around, ReplayState};
use sendtrail_schemas::directory::Directory;
use sendtrail_schemas::event::Event;
use sendtrail_schemas::ids::{AccountId, DestinationId, delivery_id};
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::mail::{FailureClass, Trigger};
use sendtrail_schemas::secret::Vault;
use sendtrail_schemas::time::Millis;

use super::book::Waiting;
use super::client::{Answer, Poster};
use super::lane::{Job, Limits, Takes};
use super::sample;
use crate::Error;
use crate::core::webhook::envelope::{Envelope, render};
use crate::core::webhook::retry::{Plan, timeout_millis};
use crate::core::webhook::signature::{Signed, content_type, headers};

/// The header of an attempt that a replay makes: which one.
const REPLAY_HEADER: &str = "x-sendtrail-replay";

/// What posts to destinations, whatever makes it do so.
#[derive(Clone)]
pub struct Sender {
    /// Where destinations are looked up when an attempt begins.
    pub directory: Arc<Directory>,
    /// Opens their secrets.
    pub vault: Vault,
    /// Posts.
    pub poster: Poster,
    /// Attempts to one destination at once, unless its owner says otherwise.
    pub concurrency: usize,
}

/// What an attempt came to.
pub(super) struct Outcome {
    pub(super) job: Job,
    pub(super) destination: DestinationId,
    pub(super) started_at: i64,
    pub(super) finished_at: i64,
    pub(super) answer: Answer,
    /// The schedule of the destination's own, if it is there.
    pub(super) schedule: Option<Vec<u32>>,
    /// It belongs to a replay that was ended.
    pub(super) unwanted: bool,
}

impl Outcome {
    /// How often its delivery is tried.
    pub(super) fn plan(&self) -> Option<Plan<'_>> {
        let (dialect, once) = (self.job.waiting.dialect(), self.job.waiting.once);
        self.schedule.as_deref().map(|own| Plan { dialect, own: if once { &[] } else { own }, once })
    }
}

/// What is posted, besides the body.
struct Message<'a> {
    dialect: Dialect,
    around: Around,
    unsigned: bool,
    signed: Signed<'a>,
    replay: Option<&'a str>,
}

impl Sender {
    /// What the owner of a destination allows.
    pub(super) fn limits(&self, account: AccountId, destination: DestinationId) -> Limits {
        let config = self.directory.account(account);
        let found = config.as_ref().and_then(|config| config.destination(destination));
        Limits {
            concurrency: found.and_then(|found| found.concurrency).map_or(self.concurrency, |most| most as usize),
            rate_per_second: found.and_then(|found| found.rate_per_second),
            revival: found.map_or(0, |found| found.revival),
            takes: match found {
                Some(found) if found.enabled => Takes::Events,
                Some(_) => Takes::Nothing,
                None => Takes::NeverAgain,
            },
        }
    }

    /// Makes an attempt.
    pub(super) async fn attempt(&self, partition: u32, destination: DestinationId, job: Job) -> Outcome {
        let started_at = Millis::wall().0;
        let account = AccountId::from_slice(&job.waiting.account_id).unwrap_or(AccountId(uuid::Uuid::nil()));
        let config = self.directory.account(account);
        let config = config.as_deref();
        let found = config.and_then(|config| config.destination(destination));
        let outcome = |job, answer, unwanted| Outcome {
            job,
            destination,
            started_at,
            finished_at: Millis::wall().0,
            answer,
            schedule: found.map(|found| found.retry_schedule_seconds.clone()),
            unwanted,
        };
        if config.is_some_and(|config| is_ended(config, &job.waiting)) {
            return outcome(job, Answer::failed(FailureClass::Unavailable, "the replay was ended"), true);
        }
        let Some(found) = found.filter(|found| found.enabled) else {
            let gone = Answer::failed(FailureClass::Unavailable, "the destination was deleted or disabled");
            return outcome(job, gone, false);
        };
        let waiting = &job.waiting;
        let replay = uuid::Uuid::from_slice(&waiting.replay_id).ok().map(|id| id.to_string());
        let message = Message {
            dialect: waiting.dialect(),
            around: waiting.envelope(),
            unsigned: waiting.unsigned,
            signed: Signed {
                delivery_id: &delivery_id(account, partition, job.key.seq, destination).to_string(),
                event_name: &waiting.event_name,
                attempt: waiting.attempts + 1,
                timestamp: started_at / 1_000,
                body: &waiting.body,
            },
            replay: replay.as_deref(),
        };
        let answer = self.post(found, destination, &message, waiting.body.clone()).await;
        outcome(job, answer, false)
    }

    async fn post(&self, to: &Destination, id: DestinationId, message: &Message<'_>, body: Bytes) -> Answer {
        let opened = to.signing_secrets(Millis::wall().0).map(|sealed| self.vault.open(sealed, id.bytes())).collect();
        let secrets: Result<Vec<Vec<u8>>, _> = if message.unsigned { Ok(Vec::new()) } else { opened };
        let secrets = match secrets {
            Ok(secrets) => secrets,
            // Whoever runs the server can put it right: it is tried again.
            Err(error) => return Answer::failed(FailureClass::Secret, error.to_string()),
        };
        let own = headers(message.dialect, &secrets, &message.signed);
        // The owner's first: they take nothing's place.
        let mut all: Vec<(&str, &str)> = to.headers.iter().map(|h| (h.name.as_str(), h.value.as_str())).collect();
        all.extend(own.iter().map(|(name, value)| (*name, value.as_str())));
        all.extend(message.replay.map(|id| (REPLAY_HEADER, id)));
        let within = Duration::from_millis(timeout_millis(message.dialect) as u64);
        self.poster.post(&to.webhook_url, content_type(message.around), &all, body, within).await
    }

    /// Posts a sample of an event, once; nothing is recorded. `None`: the destination has no name for such events.
    pub async fn sample(&self, account: &AccountConfig, to: &Destination, kind: EventType) -> Option<(String, Answer)> {
        if !to.surface().is_for(kind) {
            return None;
        }
        let mut event = sample::event(account, kind, Millis::wall());
        if !to.bounces().include(true) {
            sample::soften(&mut event);
        }
        let event = &event;
        let sample = waiting(event, Some(to), Millis::wall().0)?;
        let id = to.id()?;
        let message = Message {
            dialect: sample.dialect(),
            around: sample.envelope(),
            unsigned: sample.unsigned,
            signed: Signed {
                delivery_id: &delivery_id(account.id(), event.partition, event.seq, id).to_string(),
                event_name: &sample.event_name,
                attempt: 1,
                timestamp: Millis::wall().0 / 1_000,
                body: &sample.body,
            },
            replay: None,
        };
        let answer = self.post(to, id, &message, sample.body.clone()).await;
        Some((sample.event_name, answer))
    }
}

fn is_ended(config: &AccountConfig, waiting: &Waiting) -> bool {
    let mine = |replay: &&sendtrail_schemas::destination::Replay| replay.replay_id == waiting.replay_id;
    !waiting.replay_id.is_empty()
        && config.replays.iter().find(mine).is_some_and(|replay| replay.state() == ReplayState::Cancelled)
}

/// A delivery of an event to a destination as it begins; `None` when the destination has no name for it.
pub(super) fn waiting(event: &Event, to: Option<&Destination>, now: i64) -> Option<Waiting> {
    // A destination that is gone gets an attempt that says so, in the default dialect.
    let (dialect, around) = to.map_or((Dialect::Splashify, Around::Dialect), |to| (to.dialect(), to.envelope()));
    let Envelope { event_name, body, signed, once } = render(dialect, around, event)?;
    // Lifecycle posts are S2's, whatever the account's webhook speaks otherwise.
    let lifecycle = event.kind() == EventType::Lifecycle;
    let (dialect, around) = if lifecycle { (Dialect::Splashify, Around::Dialect) } else { (dialect, around) };
    Some(Waiting {
        account_id: event.account_id.clone(),
        dialect: dialect as i32,
        envelope: around as i32,
        event_name,
        body: body.into(),
        unsigned: !signed,
        once,
        due_at: now,
        event_received_at: event.received_at,
        event_type: event.kind,
        in_order_of: to.map_or(0, |to| order_of(event, to)),
        ..Waiting::default()
    })
}

/// What an event's deliveries come in order of.
fn order_of(event: &Event, to: &Destination) -> u64 {
    use sendtrail_schemas::destination::Ordering;
    if to.ordering() != Ordering::PerMessage || event.message_id.is_empty() {
        return 0;
    }
    let recipient = sendtrail_schemas::address::fold(&event.recipient);
    // Never 0, which means none.
    sendtrail_schemas::ids::hash128(&[event.message_id.as_bytes(), recipient.as_bytes()]) as u64 | 1
}

/// What an attempt is told of as, if it was one of the schedule.
pub(super) fn spent(job: &Job) -> u32 {
    if job.trigger == Trigger::Probe { job.waiting.spent } else { job.waiting.spent + 1 }
}

/// The answer of a receiver as far as it is kept: not of deliveries, of which nobody asks what was said.
pub(super) fn kept(answer: &Answer) -> Vec<u8> {
    if answer.class() == FailureClass::None { Vec::new() } else { answer.body.to_vec() }
}

/// For errors that say what was being done.
pub(super) fn joining(cause: tokio::task::JoinError) -> Error {
    Error::Io { what: "attempt a webhook".into(), cause: cause.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sendtrail_schemas::destination::Surface;

    #[test]
    fn lifecycle_posts_are_s2s_whatever_the_accounts_webhook_speaks() {
        let account = AccountConfig::default();
        for (dialect, around) in [(Dialect::Standard, Around::Cloudevents), (Dialect::Sendcomms, Around::Dialect)] {
            let to = Destination {
                dialect: dialect as i32,
                envelope: around as i32,
                surface: Surface::Account as i32,
                enabled: true,
                ..Destination::default()
            };
            let told = |kind| {
                let told = waiting(&sample::event(&account, kind, Millis(1_700_000_000_000)), Some(&to), 7).unwrap();
                (told.dialect(), told.envelope(), told.unsigned, told.once)
            };
            assert_eq!(told(EventType::Lifecycle), (Dialect::Splashify, Around::Dialect, true, true));
            assert_eq!(told(EventType::Delivery), (dialect, around, false, false));
        }
    }
}
