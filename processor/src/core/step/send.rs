//! A call to send, decided whole: paused, rate, identity, set, suppression, quota, in this order.

use sendtrail_schemas::account::{AccountConfig, ConfigSet, Mode};
use sendtrail_schemas::block::{Block, Reject};
use sendtrail_schemas::event::Event;
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::mail::Mail;
use sendtrail_schemas::problem::Code;
use sendtrail_schemas::record::{
    Decision, Idempotency, Outcome, Recipient, Refusal, SendOutcome, SendRequest, SendResult,
};

use super::fact::{intern, join_tags};
use super::{Step, Told, destinations, refused};
use crate::core::account::Account;
use crate::core::overlay::Keys;
use crate::core::rows::{Answer, IDEMPOTENCY_HORIZON, Profile, Row, RowKey, Seen, Sent};
use crate::core::window::Counted;

/// Why a recipient is rejected: in its result, and in its Reject event.
const SUPPRESSED: (&str, &str) = ("suppressed", "address on suppression list");
const SET_DISABLED: (&str, &str) = ("configuration_set_disabled", "sending through the configuration set is disabled");

impl Step<'_> {
    pub(super) fn send(&mut self, id: AccountId, request: SendRequest, keys: &Keys) -> Told {
        if let Some(told) = self.answered(request.idempotency.as_ref(), keys) {
            return told;
        }
        let Some(mut account) = self.overlay.take_account(id) else {
            return refused(Code::PartnerNotFound, "no such account");
        };
        let idempotency = request.idempotency.clone();
        let told = match self.admit(&mut account, &request, keys) {
            Ok(rejected) => self.queue(id, &mut account, request, &rejected),
            Err(refusal) => (Outcome::Refused(refusal), false),
        };
        self.overlay.put_account(id, account);
        if let (Some(idempotency), Outcome::Sent(_)) = (idempotency, &told.0) {
            self.remember_answer(&idempotency, keys, told.0.clone());
        }
        told
    }

    /// The answer given to an earlier request with the same `Idempotency-Key`, or the refusal of another body.
    pub(super) fn answered(&mut self, idempotency: Option<&Idempotency>, keys: &Keys) -> Option<Told> {
        let (idempotency, key) = (idempotency?, keys.answered.as_ref()?);
        let t = self.t;
        let Some(Row::Answered(answer)) = self.overlay.row(key) else { return None };
        if t.0 >= answer.at + IDEMPOTENCY_HORIZON {
            return None;
        }
        if answer.body_hash != idempotency.body_hash {
            return Some(refused(Code::IdempotencyMismatch, "this Idempotency-Key was used with another body"));
        }
        answer.decision.as_ref()?.outcome.clone().map(|outcome| (outcome, true))
    }

    pub(super) fn remember_answer(&mut self, idempotency: &Idempotency, keys: &Keys, outcome: Outcome) {
        let Some(key) = keys.answered else { return };
        let decision = Decision { offset: self.offset, replayed: true, outcome: Some(outcome) };
        let answer = Answer { at: self.t.0, body_hash: idempotency.body_hash.clone(), decision: Some(decision) };
        self.overlay.put_row(key, Some(Row::Answered(Box::new(answer))));
    }

    /// Whether the call passes; if so, why each recipient is rejected, if it is. Changes nothing.
    fn admit(
        &mut self,
        account: &mut Account,
        request: &SendRequest,
        keys: &Keys,
    ) -> Result<Vec<Option<(&'static str, &'static str)>>, Refusal> {
        let refuse = |code: Code, message: String, retry_after_seconds| {
            Err(Refusal { code: code.name().into(), message, retry_after_seconds })
        };
        let config = account.config.clone();
        if let Some(why) = config.why_paused() {
            return refuse(Code::SendingPaused, why, None);
        }
        if let Err(seconds) = account.usage.check_rate(self.t, config.peak_rate()) {
            let message = format!("more than {} recipients a second", config.peak_rate());
            return refuse(Code::RateLimited, message, Some(seconds));
        }
        if !config.may_send_from(&request.from_address) {
            let message = format!("{} is on no verified identity", request.from_address);
            return refuse(Code::FromNotVerified, message, None);
        }
        let set = match &request.configuration_set_name {
            Some(name) => match config.config_set(name) {
                Some(set) => Some(set),
                None => return refuse(Code::ConfigSetNotFound, format!("no configuration set {name:?}"), None),
            },
            None => None,
        };
        let rejected = self.rejections(set, request, keys);
        let accepted = rejected.iter().filter(|reason| reason.is_none()).count() as u64;
        let mut usage = account.usage;
        usage.roll(self.t);
        if accepted > 0 && usage.sent + accepted > config.daily_quota() {
            let quota = config.daily_quota();
            let message =
                format!("{} of {quota} recipients were sent to today (UTC); {accepted} more are too many", usage.sent);
            let code = match config.mode() {
                Mode::Sandbox => Code::SandboxQuotaReached,
                Mode::Production => Code::DailyLimitReached,
            };
            return refuse(code, message, None);
        }
        Ok(rejected)
    }

    fn rejections(
        &mut self,
        set: Option<&ConfigSet>,
        request: &SendRequest,
        keys: &Keys,
    ) -> Vec<Option<(&'static str, &'static str)>> {
        if set.is_some_and(|set| !set.sending_enabled) {
            return vec![Some(SET_DISABLED); request.recipients.len()];
        }
        keys.suppressed.iter().map(|key| self.overlay.row(key).map(|_| SUPPRESSED)).collect()
    }

    fn queue(
        &mut self,
        id: AccountId,
        account: &mut Account,
        request: SendRequest,
        rejected: &[Option<(&'static str, &'static str)>],
    ) -> Told {
        let t = self.t;
        let config = account.config.clone();
        let total = request.recipients.len() as u64;
        let accepted = rejected.iter().filter(|reason| reason.is_none()).count() as u64;
        let usage = account.usage_mut();
        usage.roll(t);
        usage.take(t, config.peak_rate(), total);
        usage.sent += accepted;
        if config.mode() == Mode::Sandbox {
            usage.sandbox_sent += accepted;
        }
        let set = config.config_set_position(request.configuration_set_name.as_deref(), None);
        let kept_set = self.kept_set(set.and_then(|set| config.config_sets.get(set)));
        let sender = Sender::new(&config, account, &request, set, kept_set, t.0);
        let mut results = Vec::with_capacity(request.recipients.len());
        let mut mailed = Vec::with_capacity(request.recipients.len());
        let mut counted = false;
        let (mut first_sent, mut first_rejected) = (true, true);
        for (recipient, reason) in request.recipients.iter().zip(rejected) {
            let seen = RowKey::seen(id, &recipient.message_id, &recipient.address);
            let row = if reason.is_some() {
                Seen { reject: Some(t.0), ..Seen::default() }
            } else {
                Seen { send: Some(t.0), sent: Some(sender.sent.clone()), ..Seen::default() }
            };
            self.overlay.put_row(seen, Some(Row::Seen(Box::new(row))));
            let first = if reason.is_none() { &mut first_sent } else { &mut first_rejected };
            let mut event = sender.event(recipient, *reason, std::mem::take(first));
            if reason.is_none() {
                if sender.tracked {
                    account.count(sender.set, &request.from, t, t.hour(), Counted::Send, true);
                    event.counted = true;
                    counted = true;
                }
                mailed.push(recipient.clone());
            }
            self.emit(event);
            results.push(SendResult {
                recipient: recipient.address.clone(),
                message_id: recipient.message_id.clone(),
                rejected: reason.map(|(short, _)| short.into()),
            });
        }
        if self.settings().logic_version >= 5 {
            for (kind, is_told) in [(EventType::Send, !first_sent), (EventType::Reject, !first_rejected)] {
                if is_told {
                    self.note_call(id, &config, kind, &request.send_id);
                }
            }
        }
        let send_id = request.send_id.clone();
        if !mailed.is_empty() {
            self.mail(Mail {
                account_id: id.bytes().to_vec(),
                send_id: request.send_id,
                from: request.from,
                reply_to: request.reply_to,
                subject: request.subject,
                content: request.content,
                recipients: mailed,
                configuration_set_name: request.configuration_set_name,
                ..Mail::default()
            });
        }
        if counted {
            self.judge(id, account);
        }
        (Outcome::Sent(SendOutcome { send_id, results }), false)
    }
}

/// What the events of one call share.
struct Sender {
    shared: Event,
    sent: Sent,
    set: Option<usize>,
    tracked: bool,
    send_destinations: Destinations,
    reject_destinations: Destinations,
}

/// Where the first event of a type goes, and where the further ones of its call go.
struct Destinations {
    first: Vec<Vec<u8>>,
    further: Vec<Vec<u8>>,
}

impl Destinations {
    fn new(config: &AccountConfig, set: Option<usize>, kind: EventType) -> Self {
        let of = |first| destinations(config, set, kind, false, |_| first);
        Self { first: of(true), further: of(false) }
    }

    fn of(&self, first: bool) -> Vec<Vec<u8>> {
        if first { self.first.clone() } else { self.further.clone() }
    }
}

impl Sender {
    fn new(
        config: &AccountConfig,
        account: &mut Account,
        request: &SendRequest,
        set: Option<usize>,
        kept_set: Option<Vec<u8>>,
        now: i64,
    ) -> Self {
        let of_set = set.and_then(|set| config.config_sets.get(set));
        let profile = Profile {
            configuration_set_name: request.configuration_set_name.clone(),
            from: Some(request.from.clone()),
            customer_id: request.customer_id.clone(),
            category: Some(request.category.clone()),
            tags: request.tags.clone(),
            config_set_id: kept_set,
        };
        let (profile, own) = intern(&mut account.profiles, profile, sendtrail_schemas::time::Millis(now));
        account.touched = true;
        let sent = Sent {
            occurred_at: now,
            epoch: config.epoch,
            profile,
            own,
            subject: Some(request.subject.clone()),
            metadata: request.metadata.clone(),
            send_id: Some(request.send_id.clone()),
        };
        let mut tags = request.tags.clone();
        join_tags(&mut tags, of_set.map(|set| &set.tags));
        let shared = Event {
            account_id: config.account_id.clone(),
            occurred_at: now,
            send_id: Some(request.send_id.clone()),
            from: Some(request.from.clone()),
            subject: Some(request.subject.clone()),
            configuration_set_name: request.configuration_set_name.clone(),
            customer_id: request.customer_id.clone(),
            category: Some(request.category.clone()),
            tags,
            metadata: request.metadata.clone(),
            sent_at: Some(now),
            config_set_id: of_set.map(|set| set.config_set_id.clone()),
            ..Event::default()
        };
        Self {
            shared,
            sent,
            set,
            tracked: of_set.is_none_or(|set| set.reputation_tracking_enabled),
            send_destinations: Destinations::new(config, set, EventType::Send),
            reject_destinations: Destinations::new(config, set, EventType::Reject),
        }
    }

    fn event(&self, recipient: &Recipient, reason: Option<(&str, &str)>, first: bool) -> Event {
        let mut event = Event {
            recipient: recipient.address.clone(),
            message_id: recipient.message_id.clone(),
            ..self.shared.clone()
        };
        match reason {
            None => {
                event.set_kind(EventType::Send);
                event.destination_ids = self.send_destinations.of(first);
            }
            Some((_, long)) => {
                event.set_kind(EventType::Reject);
                event.destination_ids = self.reject_destinations.of(first);
                event.block = Some(Block::Reject(Reject { reason: Some(long.into()) }));
            }
        }
        event
    }
}
