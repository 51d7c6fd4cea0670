//! One record applied to the state: the only place where an account changes.

mod activity;
mod command;
mod erasure;
mod fact;
mod send;
mod standing;
mod webhook;

pub use command::MAX_CONFIG_SETS;
use sendtrail_schemas::account::{AccountConfig, ConfigSet};
use sendtrail_schemas::codec;
use sendtrail_schemas::destination::Destination;
use sendtrail_schemas::event::{Event, EventFact};
use sendtrail_schemas::ids::{AccountId, event_id};
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::mail::{DeadLetter, Mail};
use sendtrail_schemas::problem::Code;
use sendtrail_schemas::record::{
    Actor, Body, Change, Command, Decision, EraseRecipient, Outcome, Record, Refusal, Settings, SourcePosition,
    Unreadable,
};
use sendtrail_schemas::time::Millis;
use sendtrail_schemas::topic::Topic;

pub use webhook::{MAX_DESTINATIONS, MAX_WEBHOOKS};

use super::effects::Effects;
use super::overlay::{Keys, Overlay};
use super::rows::{Row, RowKey};
use super::source::{Marks, Place};

/// The logic that this program decides by. Older ones stay beside it until every snapshot has passed them:
///
/// 1. An event finds the configuration set of its message by the set's name.
/// 2. By its identifier: mail in flight stays with a set that is renamed.
/// 3. The state knows how far sources were read, which a program that does not must not write over.
/// 4. A change that somebody asked for is told, with who it was.
/// 5. The set that an event was found to be of says whom it suppresses, whatever set has its name by now. A destination that takes
///    one signature only from now on does not sign by a secret of before. An account has so many identities,
///    and remembers cancelled replays beside the others. What is known of a message is forgotten as a whole, whenever its row goes.
///    A replay ends at the events that there are when it is asked for. Whoever is told once a call is so whatever other types the
///    call had, whether an event names its call or takes it from its Send, and whether it came from outside or of our own sending.
///    A change of a subscription is told as an unsubscribe only if it is one. An account is judged after what its policy counts, which
///    is the evidence, and not after other events. What was sent ahead of a rate stays as many sends when the rate is changed.
///    A destination may ask for hard bounces only, or for soft ones.
pub const LOGIC_VERSION: u32 = 5;

/// What the partition's logic reads besides records, until a record says otherwise.
static DEFAULT_SETTINGS: Settings =
    Settings { logic_version: 1, simulated: false, repeatable_horizon_hours: 72, system_sender: String::new() };

/// The usual settings under the newest logic.
pub fn usual_settings() -> Settings {
    Settings { logic_version: LOGIC_VERSION, ..DEFAULT_SETTINGS.clone() }
}

/// What [`step`] will want to read.
pub fn keys(record: &Record) -> Keys {
    let Some(account) = record.account() else { return Keys::default() };
    let mut keys = Keys { account: Some(account), ..Keys::default() };
    match &record.body {
        Some(Body::Fact(fact)) => fact_keys(account, fact, &mut keys),
        Some(Body::Send(send)) => {
            keys.answered = send.idempotency.as_ref().map(|key| RowKey::answered(account, key));
            keys.suppressed = send.recipients.iter().map(|to| RowKey::suppressed(account, &to.address)).collect();
        }
        Some(Body::Command(Command { change: Some(change) })) => match change {
            Change::PutSuppression(row) => keys.suppressed.push(RowKey::suppressed(account, &row.email)),
            Change::DeleteSuppression(email) => keys.suppressed.push(RowKey::suppressed(account, email)),
            Change::EraseRecipient(EraseRecipient { recipient, .. }) => {
                keys.suppressed.push(RowKey::suppressed(account, recipient));
            }
            Change::Claim(claim) => {
                keys.answered = claim.idempotency.as_ref().map(|key| RowKey::answered(account, key));
            }
            _ => {}
        },
        _ => {}
    }
    keys
}

fn fact_keys(account: AccountId, fact: &EventFact, keys: &mut Keys) {
    let kind = fact.kind();
    let permanent = fact.is_permanent_bounce();
    keys.seen = Some(RowKey::seen(account, &fact.message_id, &fact.recipient));
    if fact::is_repeatable(kind, permanent) {
        keys.fact = RowKey::fact(account, fact);
    }
    if permanent || matches!(kind, EventType::Complaint | EventType::Subscription) {
        keys.suppressed.push(RowKey::suppressed(account, &fact.recipient));
    }
    keys.call = fact.send_id.as_ref().and_then(|send_id| RowKey::call(account, kind, send_id));
}

/// The call that a fact takes from its Send, as is known once the rows of its [`keys`] are loaded: one more that [`step`] will
/// want to read.
pub fn inherited_call(overlay: &mut Overlay, record: &Record, keys: &Keys) -> Option<RowKey> {
    let (Some(Body::Fact(fact)), Some(account), Some(seen)) = (&record.body, keys.account, &keys.seen) else {
        return None;
    };
    let kind = fact.kind();
    let is_since_5 = overlay.progress.settings.as_ref().is_some_and(|settings| settings.logic_version >= 5);
    // A Send takes nothing, and the others are told of each recipient.
    if !is_since_5 || fact.send_id.is_some() || !matches!(kind, EventType::Reject | EventType::RenderingFailure) {
        return None;
    }
    let Some(Row::Seen(seen)) = overlay.row(seen) else { return None };
    RowKey::call(account, kind, seen.sent.as_ref()?.send_id.as_deref()?)
}

/// Applies the record at `offset` to the state, appending what it gives rise to.
///
/// The same records give the same effects, byte for byte. `keys` are those of the record, loaded before. A panic leaves
/// the overlay unusable: throw it away, go back to the checkpoint, and [`skip`] the record.
pub fn step(
    overlay: &mut Overlay,
    mut record: Record,
    keys: &Keys,
    offset: u64,
    received_at: Millis,
    effects: &mut Effects,
) {
    // First of all: whether time is simulated holds for the record that says so, too.
    if let Some(Body::Settings(settings)) = &record.body {
        overlay.progress.settings = Some(settings.clone());
    }
    let t = overlay.advance(received_at, record.simulated_time);
    overlay.progress.next_offset = offset + 1;
    match record.source.as_ref().map_or(Place::Next, |source| overlay.progress.sources.follow(source)) {
        Place::Next => {}
        Place::Copy => return,
        Place::Gap => {
            effects.gaps += 1;
            return;
        }
    }
    let account = record.account();
    let (source, actor) = (record.source.take(), record.actor.take());
    let mut step = Step { overlay, effects, t, offset, source, actor };
    let outcome = if let (Some(Body::Fact(fact)), Some(account)) = (&mut record.body, account) {
        step.fact(account, fact, keys);
        None
    } else {
        match (record.body, account) {
            (Some(Body::Send(request)), Some(account)) => Some(step.send(account, request, keys)),
            (Some(Body::Command(Command { change: Some(change) })), Some(account)) => {
                Some(step.command(account, change, keys))
            }
            (Some(Body::Unreadable(message)), account) => {
                step.unreadable(account, message);
                None
            }
            // Settings hold already; a skip was honoured when its offset was reached; a tick only moves the time.
            _ => None,
        }
    };
    if let (Some(reply_to), Some((outcome, replayed))) = (record.reply_to, outcome) {
        let decision = Decision { offset, replayed, outcome: Some(outcome) };
        step.effects.decisions.push((reply_to, decision));
    }
}

/// Passes over the record at `offset`, which a [`sendtrail_schemas::record::Skip`] names: it becomes a dead letter.
pub fn skip(
    overlay: &mut Overlay,
    payload: Vec<u8>,
    reason: &str,
    offset: u64,
    received_at: Millis,
    effects: &mut Effects,
) {
    let t = overlay.advance(received_at, None);
    overlay.progress.next_offset = offset + 1;
    // Those after it must not wait for it.
    if let Ok(Record { source: Some(source), .. }) = codec::decode::<Record>(&payload) {
        overlay.progress.sources.follow(&source);
    }
    Step { overlay, effects, t, offset, source: None, actor: None }.dead_letter(payload, reason.into());
}

/// One step under way.
struct Step<'a> {
    overlay: &'a mut Overlay,
    effects: &'a mut Effects,
    t: Millis,
    offset: u64,
    /// Where the record was read, if not at our own door.
    source: Option<SourcePosition>,
    /// Who asks for a change.
    actor: Option<Actor>,
}

/// What a request is told, and whether it was told so before.
type Told = (Outcome, bool);

fn refused(code: Code, message: impl Into<String>) -> Told {
    (Outcome::Refused(Refusal { code: code.name().into(), message: message.into(), retry_after_seconds: None }), false)
}

impl Step<'_> {
    /// What a Send keeps of its configuration set.
    fn kept_set(&self, set: Option<&ConfigSet>) -> Option<Vec<u8>> {
        set.filter(|_| self.settings().logic_version >= 2).map(|set| set.config_set_id.clone())
    }

    fn settings(&self) -> &Settings {
        self.overlay.progress.settings.as_ref().unwrap_or(&DEFAULT_SETTINGS)
    }

    /// Numbers an event and sends it on its way.
    fn emit(&mut self, mut event: Event) {
        let progress = &mut self.overlay.progress;
        event.version = event.kind().version();
        event.partition = self.overlay.partition;
        event.seq = progress.next_event;
        event.offset = self.offset;
        event.received_at = self.t.0;
        if event.event_id.is_empty() {
            event.event_id = event_id(event.partition, event.seq);
        }
        progress.next_event += 1;
        self.effects.events.push(event);
    }

    fn mail(&mut self, mut mail: Mail) {
        mail.version = codec::VERSION;
        mail.seq = self.overlay.progress.next_mail;
        mail.accepted_at = self.t.0;
        self.overlay.progress.next_mail += 1;
        self.effects.mail.push(mail);
    }

    /// A message of a source that could not be read.
    fn unreadable(&mut self, account: Option<AccountId>, message: Unreadable) {
        let source = self.source.take();
        self.dead_letter(message.payload, message.reason);
        if let Some(letter) = self.effects.dead_letters.last_mut() {
            letter.source = source;
            letter.account_id = account.map(|id| id.bytes().to_vec()).unwrap_or_default();
        }
    }

    fn dead_letter(&mut self, payload: Vec<u8>, reason: String) {
        let seq = self.overlay.progress.next_dead_letter;
        self.overlay.progress.next_dead_letter += 1;
        self.effects.dead_letters.push(DeadLetter {
            version: codec::VERSION,
            seq,
            topic: Topic::Intake.name().into(),
            partition: self.overlay.partition,
            offset: self.offset,
            at: self.t.0,
            reason,
            payload,
            source: None,
            account_id: Vec::new(),
        });
    }

    fn changed(&mut self, account: AccountId) {
        if self.effects.changed.last() != Some(&account) {
            self.effects.changed.push(account);
        }
    }
}

/// The destinations of a set, and the account's own, that take events of a type, sixteen bytes each. `permanent` is of bounces.
/// `first_of_call`: whether it is the first of its call that one is told of.
fn destinations(
    config: &AccountConfig,
    set: Option<usize>,
    kind: EventType,
    permanent: bool,
    first_of_call: impl Fn(&Destination) -> bool,
) -> Vec<Vec<u8>> {
    let of_set = set.and_then(|set| config.config_sets.get(set)).into_iter().flat_map(|set| &set.destinations);
    let all = of_set.chain(&config.webhooks);
    let takes = |dest: &&Destination| dest.takes(kind, permanent, first_of_call(dest));
    all.filter(takes).map(|dest| dest.destination_id.clone()).collect()
}

/// Every destination of an account that takes events of a type which belong to no set, sixteen bytes each. No bounces are.
fn everywhere(config: &AccountConfig, kind: EventType) -> Vec<Vec<u8>> {
    config.destinations().filter(|dest| dest.takes(kind, false, true)).map(|dest| dest.destination_id.clone()).collect()
}
