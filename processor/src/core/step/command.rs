//! Changes of configuration, in the order in which they were asked for.

use sendtrail_schemas::account::{
    AccountConfig, ApiKey, ConfigSet, Identity, IdentityStatus, IdentityType, Mode, Status, Suppression,
};
use sendtrail_schemas::address;
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::problem::Code;
use sendtrail_schemas::record::{
    AccountFields, Change, Claim, ConfigSetPatch, Done, IdentityName, Networks, Outcome, Pause, Resume,
    SetIdentityStatus,
};
use sendtrail_schemas::time::HOUR;

use super::{Step, Told, erasure, refused, standing, webhook};
use crate::core::account::Account;
use crate::core::effects::SuppressionChange;
use crate::core::overlay::Keys;

/// Configuration sets of one account (S2 "Limits").
pub const MAX_CONFIG_SETS: usize = 100;
/// Identities of an account, each of which has a window of its own; as many as Amazon SES takes.
const MAX_IDENTITIES: usize = 10_000;
pub(super) fn done(changed: bool) -> Told {
    (Outcome::Done(Done { changed }), false)
}

pub(super) fn no_set() -> Told {
    refused(Code::ConfigSetNotFound, "no such configuration set")
}

impl Step<'_> {
    pub(super) fn command(&mut self, id: AccountId, change: Change, keys: &Keys) -> Told {
        let activity = self.actor.take().and_then(|actor| self.activity(&change, &actor));
        let told = self.apply_change(id, change, keys);
        if let Some(activity) = activity.filter(|_| matches!(told.0, Outcome::Done(Done { changed: true }))) {
            self.tell_activity(id, activity);
        }
        told
    }

    fn apply_change(&mut self, id: AccountId, change: Change, keys: &Keys) -> Told {
        match change {
            Change::CreateAccount(fields) => return self.create_account(id, fields),
            Change::Claim(claim) => return self.claim(claim, keys),
            Change::PutSuppression(row) => return self.put_suppression(id, row, keys),
            Change::DeleteSuppression(email) => return self.delete_suppression(id, &email, keys),
            _ => {}
        }
        let Some(mut account) = self.overlay.take_account(id) else {
            return refused(Code::PartnerNotFound, "no such account");
        };
        let rate = account.config.peak_rate();
        let told = match change {
            Change::EraseRecipient(erase) => self.erase_recipient(id, &mut account, erase, keys),
            change => self.change_account(id, &mut account, change),
        };
        let new_rate = account.config.peak_rate();
        if new_rate != rate && self.settings().logic_version >= 5 {
            account.usage_mut().change_rate(self.t, rate, new_rate);
        }
        if matches!(told.0, Outcome::Done(Done { changed: true })) {
            account.config_mut().version = self.offset;
            self.changed(id);
        }
        self.overlay.put_account(id, account);
        told
    }

    fn change_account(&mut self, id: AccountId, account: &mut Account, change: Change) -> Told {
        let now = self.t.0;
        let since_5 = self.settings().logic_version >= 5;
        match change {
            Change::PatchAccount(fields) => {
                fill(account.config_mut(), fields);
                done(true)
            }
            Change::CreateKey(key) => {
                account.config_mut().keys.push(ApiKey { created_at: now, revoked_at: None, last_used_at: None, ..key });
                done(true)
            }
            Change::RevokeKey(key) => match account.config_mut().keys.iter_mut().find(|known| known.key_id == key) {
                Some(key) => {
                    let changed = key.revoked_at.is_none();
                    key.revoked_at.get_or_insert(now);
                    done(changed)
                }
                None => refused(Code::NotFound, "no such key"),
            },
            Change::KeyUsed(key) => {
                let hour = now - now.rem_euclid(HOUR);
                let key = account.config_mut().keys.iter_mut().find(|known| known.key_id == key);
                let stale = key.filter(|key| key.last_used_at.is_none_or(|last| last < hour));
                done(stale.map(|key| key.last_used_at = Some(hour)).is_some())
            }
            Change::SetNetworks(Networks { networks }) => {
                let changed = account.config.networks != networks;
                account.config_mut().networks = networks;
                done(changed)
            }
            Change::Pause(pause) => self.pause(id, account, pause),
            Change::Resume(resume) => self.resume(id, account, resume),
            Change::CreateIdentity(_) if since_5 && account.config.identities.len() >= MAX_IDENTITIES => {
                refused(Code::InvalidRequest, format!("an account has at most {MAX_IDENTITIES} identities"))
            }
            Change::CreateIdentity(identity) => create_identity(account, identity, now),
            Change::SetIdentityStatus(set) => set_identity_status(account, &set, now),
            Change::DeleteIdentity(name) => delete_identity(account, &name),
            Change::CreateConfigSet(set) => create_set(account, set, now),
            Change::PatchConfigSet(patch) => patch_set(account, patch),
            Change::DeleteConfigSet(set) => {
                match account.config.config_sets.iter().position(|known| known.config_set_id == set) {
                    Some(at) => {
                        account.remove_set(at);
                        done(true)
                    }
                    None => no_set(),
                }
            }
            Change::CreateDestination(create) => webhook::create(account, create, now, since_5),
            Change::PatchDestination(patch) => webhook::patch(account, patch, since_5),
            Change::DeleteDestination(name) => webhook::delete(account, &name),
            Change::RotateSecret(rotate) => webhook::rotate(account, rotate, now),
            Change::SwitchSecret(name) => webhook::switch(account, &name),
            Change::WebhookHealth(health) => self.webhook_health(account, health),
            Change::StartReplay(replay) => {
                let below = since_5.then_some(self.overlay.progress.next_event);
                webhook::start_replay(account, replay, now, since_5, below)
            }
            Change::ReplayProgress(replay) => webhook::replay_progress(account, replay, now),
            Change::CancelReplay(replay) => webhook::cancel_replay(account, &replay, now),
            Change::Lifecycle(lifecycle) => self.lifecycle(account, lifecycle),
            Change::EndErasure(end) => erasure::end(account, &end, now),
            Change::CreateAccount(_)
            | Change::Claim(_)
            | Change::PutSuppression(_)
            | Change::DeleteSuppression(_)
            | Change::EraseRecipient(_) => done(false),
        }
    }

    fn create_account(&mut self, id: AccountId, fields: AccountFields) -> Told {
        if self.overlay.account(id).is_some() {
            return refused(Code::InvalidRequest, "the account exists");
        }
        let mut account = Box::new(Account::new(AccountConfig {
            account_id: id.bytes().to_vec(),
            version: self.offset,
            created_at: self.t.0,
            ..AccountConfig::default()
        }));
        fill(account.config_mut(), fields);
        self.overlay.put_account(id, account);
        self.changed(id);
        done(true)
    }

    fn claim(&mut self, claim: Claim, keys: &Keys) -> Told {
        if let Some(told) = self.answered(claim.idempotency.as_ref(), keys) {
            return told;
        }
        let outcome = Outcome::Claimed(claim.response);
        if let Some(idempotency) = &claim.idempotency {
            self.remember_answer(idempotency, keys, outcome.clone());
        }
        (outcome, false)
    }

    fn put_suppression(&mut self, id: AccountId, row: Suppression, keys: &Keys) -> Told {
        let (Some(key), true) = (keys.suppressed.first(), self.overlay.account(id).is_some()) else {
            return refused(Code::PartnerNotFound, "no such account");
        };
        let row = Suppression { created_at: self.t.0, event_id: None, ..row };
        self.suppress(id, *key, row, true);
        done(true)
    }

    fn delete_suppression(&mut self, id: AccountId, email: &str, keys: &Keys) -> Told {
        let Some(key) = keys.suppressed.first().filter(|key| self.overlay.row(key).is_some()) else {
            return refused(Code::NotFound, "the address is not on the suppression list");
        };
        self.overlay.put_row(*key, None);
        self.effects.suppressions.push((id, SuppressionChange::Delete(address::fold(email).into_owned())));
        done(true)
    }

    fn pause(&mut self, id: AccountId, account: &mut Account, pause: Pause) -> Told {
        if account.config.status() == Status::Paused {
            return done(false);
        }
        let counts = account.judged_counts(self.t);
        self.change_status(
            id,
            account,
            standing::Change {
                to: Status::Paused,
                kind: EventType::Paused,
                rule: "manual",
                numerator: counts.bounced,
                denominator: counts.sent,
                limit_ppm: 0,
                event_id: String::new(),
                reason: pause.reason,
            },
        );
        done(true)
    }

    fn resume(&mut self, id: AccountId, account: &mut Account, resume: Resume) -> Told {
        let mode = resume.mode.and_then(|mode| Mode::try_from(mode).ok());
        let paused = account.config.status() == Status::Paused;
        if paused {
            let counts = account.judged_counts(self.t);
            self.change_status(
                id,
                account,
                standing::Change {
                    to: Status::Healthy,
                    kind: EventType::Resumed,
                    rule: "manual",
                    numerator: counts.bounced,
                    denominator: counts.sent,
                    limit_ppm: 0,
                    event_id: String::new(),
                    reason: resume.reason,
                },
            );
            let now = self.t.0;
            let config = account.config_mut();
            config.resumed_at = Some(now);
            config.epoch += 1;
            account.restart_judging();
        }
        let other_mode = mode.filter(|mode| *mode != account.config.mode());
        if let Some(mode) = other_mode {
            let config = account.config_mut();
            config.set_mode(mode);
            // Back in the sandbox, an account has the sandbox's limits, whatever it was given before.
            if mode == Mode::Sandbox {
                (config.daily_send_quota, config.peak_send_rate_per_second) = (None, None);
            }
        }
        done(paused || other_mode.is_some())
    }
}

fn fill(config: &mut AccountConfig, fields: AccountFields) {
    let AccountFields {
        name,
        contact_email,
        mode,
        policy,
        daily_send_quota,
        peak_send_rate_per_second,
        suspended,
        legal_hold,
        retention_days,
    } = fields;
    config.name = name.unwrap_or_else(|| std::mem::take(&mut config.name));
    config.contact_email = contact_email.unwrap_or_else(|| std::mem::take(&mut config.contact_email));
    config.mode = mode.unwrap_or(config.mode);
    config.policy = policy.or(config.policy.take());
    config.daily_send_quota = daily_send_quota.or(config.daily_send_quota);
    config.peak_send_rate_per_second = peak_send_rate_per_second.or(config.peak_send_rate_per_second);
    config.suspended = suspended.unwrap_or(config.suspended);
    config.legal_hold = legal_hold.unwrap_or(config.legal_hold);
    config.retention_days = retention_days.unwrap_or(config.retention_days);
}

fn create_identity(account: &mut Account, identity: Identity, now: i64) -> Told {
    match account.config.identity_position(identity.kind(), &identity.value) {
        Ok(_) => refused(Code::IdentityExists, "the identity exists"),
        Err(at) => {
            let status = IdentityStatus::Pending as i32;
            account.insert_identity(at, Identity { status, created_at: now, verified_at: None, ..identity });
            done(true)
        }
    }
}

fn position(account: &Account, name: &IdentityName) -> Result<usize, Told> {
    let kind = IdentityType::try_from(name.kind).unwrap_or(IdentityType::Domain);
    let found = account.config.identity_position(kind, &name.value);
    found.map_err(|_| refused(Code::IdentityNotFound, "no such identity"))
}

fn set_identity_status(account: &mut Account, set: &SetIdentityStatus, now: i64) -> Told {
    let Some(name) = &set.identity else { return refused(Code::IdentityNotFound, "no such identity") };
    match position(account, name) {
        Ok(at) => {
            let identity = &mut account.config_mut().identities[at];
            let changed = identity.status != set.status;
            identity.status = set.status;
            if set.status() == IdentityStatus::Verified && changed {
                identity.verified_at = Some(now);
            }
            done(changed)
        }
        Err(told) => told,
    }
}

fn delete_identity(account: &mut Account, name: &IdentityName) -> Told {
    match position(account, name) {
        Ok(at) => {
            account.remove_identity(at);
            done(true)
        }
        Err(told) => told,
    }
}

fn name_taken(name: &str) -> Told {
    refused(Code::ConfigSetNameTaken, format!("a configuration set is called {name:?} already"))
}

fn create_set(account: &mut Account, set: ConfigSet, now: i64) -> Told {
    let sets = &account.config.config_sets;
    let Err(at) = sets.binary_search_by(|known| known.name.cmp(&set.name)) else { return name_taken(&set.name) };
    if sets.len() >= MAX_CONFIG_SETS {
        let message = format!("an account has at most {MAX_CONFIG_SETS} configuration sets");
        return refused(Code::ConfigSetLimitReached, message);
    }
    account.insert_set(at, ConfigSet { created_at: now, destinations: Vec::new(), ..set });
    done(true)
}

fn patch_set(account: &mut Account, patch: ConfigSetPatch) -> Told {
    let sets = &account.config.config_sets;
    let Some(at) = sets.iter().position(|set| set.config_set_id == patch.config_set_id) else { return no_set() };
    let mut set = sets[at].clone();
    if let Some(name) = patch.name.filter(|name| *name != set.name) {
        if account.config.config_set(&name).is_some() {
            return name_taken(&name);
        }
        set.name = name;
    }
    let text = |own: Option<String>, new: Option<String>| match new {
        Some(new) => (!new.is_empty()).then_some(new),
        None => own,
    };
    set.description = text(set.description.take(), patch.description);
    set.customer_id = text(set.customer_id.take(), patch.customer_id);
    set.sending_enabled = patch.sending_enabled.unwrap_or(set.sending_enabled);
    set.reputation_tracking_enabled = patch.reputation_tracking_enabled.unwrap_or(set.reputation_tracking_enabled);
    set.suppression_options = patch.suppression_options.unwrap_or(set.suppression_options);
    if patch.has_tags {
        set.tags = patch.tags;
    }
    account.move_set(at, set);
    done(true)
}
