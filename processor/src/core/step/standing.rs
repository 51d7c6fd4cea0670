//! Changes of an account's standing: judged, recorded as events with their evidence, and told to the contact.

use sendtrail_schemas::account::{AccountConfig, PauseEvidence, Status};
use sendtrail_schemas::block::{Block, StatusChange};
use sendtrail_schemas::event::Event;
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::mail::{Body, Content, Mail, MailContent};
use sendtrail_schemas::record::{Recipient, RecipientKind};

use super::{Step, everywhere};
use crate::core::account::Account;
use crate::core::policy::{self, Verdict};

/// A change, before it has a place in the log.
pub(super) struct Change {
    pub to: Status,
    pub kind: EventType,
    pub rule: &'static str,
    pub numerator: u64,
    pub denominator: u64,
    pub limit_ppm: u32,
    pub event_id: String,
    pub reason: String,
}

impl Step<'_> {
    /// Judges an account after a record that its policy counts, whose last counted event is the evidence.
    pub(super) fn judge(&mut self, id: AccountId, account: &mut Account) {
        let counts = account.judged_counts(self.t);
        let config = &account.config;
        let verdict = match &config.policy {
            Some(policy) => policy::judge(policy, counts, config.status()),
            None => policy::judge(&config.policy(), counts, config.status()),
        };
        if let Some(verdict) = verdict {
            // A call may have rejected recipients after those that count.
            let crossing = self.effects.events.iter().rev().find(|event| event.counted);
            let event_id = crossing.map(|event| event.event_id.clone()).unwrap_or_default();
            self.change_status(id, account, of_verdict(verdict, event_id));
        }
    }

    pub(super) fn change_status(&mut self, id: AccountId, account: &mut Account, change: Change) {
        let since = account.judged_since(self.t).0;
        let from = account.config.status();
        let (t, offset) = (self.t.0, self.offset);
        let config = account.config_mut();
        config.version = offset;
        config.set_status(change.to);
        config.paused = (change.to == Status::Paused).then(|| PauseEvidence {
            at: t,
            rule: change.rule.into(),
            numerator: change.numerator,
            denominator: change.denominator,
            window_start: since,
            event_id: change.event_id.clone(),
            reason: change.reason.clone(),
        });
        self.changed(id);
        let status = StatusChange {
            from: from.name().into(),
            to: change.to.name().into(),
            rule: change.rule.into(),
            numerator: change.numerator,
            denominator: change.denominator,
            limit_ppm: change.limit_ppm,
            window_start: since,
            window_end: t,
            event_id: change.event_id,
            reason: change.reason,
        };
        self.tell_contact(&account.config, &status, change.to);
        self.emit(Event {
            account_id: id.bytes().to_vec(),
            kind: change.kind as i32,
            occurred_at: t,
            // A change of standing belongs to no set.
            destination_ids: everywhere(&account.config, change.kind),
            block: Some(Block::StatusChange(status)),
            ..Event::default()
        });
    }

    fn tell_contact(&mut self, config: &AccountConfig, status: &StatusChange, to: Status) {
        if to == Status::Healthy {
            return;
        }
        let subject = match to {
            Status::Paused => format!("Sending is paused for {}", config.name),
            _ => format!("Sending is at risk for {}", config.name),
        };
        let text = format!(
            "Account: {} ({})\nStatus: {} (before: {})\nWhy: {}\n{} of {} sends in the window; the limit is {} per million.\nEvent: {}\n",
            config.name,
            config.id(),
            status.to,
            status.from,
            status.reason,
            status.numerator,
            status.denominator,
            status.limit_ppm,
            status.event_id,
        );
        self.mail_contact(config, subject, text);
    }

    /// A mail of ours to the contact of an account, if there is one and we have a sender.
    pub(super) fn mail_contact(&mut self, config: &AccountConfig, subject: String, text: String) {
        let sender = self.settings().system_sender.clone();
        if config.contact_email.is_empty() || sender.is_empty() {
            return;
        }
        let seq = self.overlay.progress.next_mail;
        let message_id = format!("notice-{}-{}", self.overlay.partition, seq);
        let content = MailContent { text: Some(text), ..MailContent::default() };
        self.mail(Mail {
            account_id: config.account_id.clone(),
            send_id: message_id.clone(),
            from: sender,
            subject,
            content: Some(Content { body: Some(Body::Inline(content)) }),
            recipients: vec![Recipient {
                address: config.contact_email.clone(),
                message_id,
                kind: RecipientKind::To as i32,
            }],
            system: true,
            ..Mail::default()
        });
    }
}

fn of_verdict(verdict: Verdict, event_id: String) -> Change {
    let share = |what: &str| {
        format!(
            "{what} over the limit: {} of {} sends, limit {} per million",
            verdict.numerator, verdict.denominator, verdict.limit_ppm
        )
    };
    let reason = match verdict.rule {
        policy::Rule::BounceRate => share("bounce rate"),
        policy::Rule::ComplaintRate => share("complaint rate"),
        policy::Rule::Recovered => "rates are within the warning limits again".into(),
    };
    let kind = match verdict.to {
        Status::Healthy => EventType::Healthy,
        Status::AtRisk => EventType::AtRisk,
        Status::Paused => EventType::Paused,
    };
    Change {
        to: verdict.to,
        kind,
        rule: verdict.rule.name(),
        numerator: verdict.numerator,
        denominator: verdict.denominator,
        limit_ppm: verdict.limit_ppm,
        event_id,
        reason,
    }
}
