//! Who changed what, as an event: what was done, to what, and what was given, without secrets.

use sendtrail_schemas::account::{IdentityStatus, KeyForm, KeyScope, Mode};
use sendtrail_schemas::block::{Activity, Block};
use sendtrail_schemas::destination::Destination;
use sendtrail_schemas::event::Event;
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::record::{AccountFields, Actor, Change, IdentityName};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::Step;

/// The logic since which changes are told.
const SINCE: u32 = 4;

/// What is told of a change: the block, and the address that it is about.
pub(super) struct Told {
    activity: Activity,
    recipient: String,
}

impl Step<'_> {
    /// What to tell of a change, should it be made; `None` of what is no change of configuration.
    pub(super) fn activity(&self, change: &Change, actor: &Actor) -> Option<Told> {
        if self.settings().logic_version < SINCE {
            return None;
        }
        let Described { action, subject, recipient, details } = describe(change)?;
        let details: Map<String, Value> = details.into_iter().filter(|(_, value)| !value.is_null()).collect();
        let activity = Activity {
            action: Some(action.into()),
            actor: Some(if actor.key_id.is_empty() { "administrator" } else { "key" }.into()),
            actor_id: (!actor.key_id.is_empty()).then(|| uuid(&actor.key_id)),
            actor_name: None,
            address: (!actor.address.is_empty()).then(|| actor.address.clone()),
            subject: (!subject.is_empty()).then_some(subject),
            details: (!details.is_empty()).then(|| Value::Object(details).to_string()),
        };
        Some(Told { activity, recipient })
    }

    pub(super) fn tell_activity(&mut self, id: AccountId, told: Told) {
        let Told { mut activity, recipient } = told;
        let account = self.overlay.account(id);
        activity.actor_name = account.and_then(|account| {
            let is_it = |id: &str| account.config.keys.iter().find(|key| uuid(&key.key_id) == id);
            activity.actor_id.as_deref().and_then(is_it).map(|key| key.name.clone())
        });
        self.emit(Event {
            account_id: id.bytes().to_vec(),
            kind: EventType::ConfigurationChanged as i32,
            occurred_at: self.t.0,
            recipient,
            block: Some(Block::Activity(activity)),
            ..Event::default()
        });
    }
}

fn uuid(bytes: &[u8]) -> String {
    Uuid::from_slice(bytes).unwrap_or_default().to_string()
}

/// A change in words.
#[derive(Default)]
struct Described {
    action: &'static str,
    subject: String,
    recipient: String,
    details: Map<String, Value>,
}

fn of(action: &'static str, subject: impl Into<String>, details: Value) -> Option<Described> {
    let details = match details {
        Value::Object(details) => details,
        _ => Map::new(),
    };
    Some(Described { action, subject: subject.into(), recipient: String::new(), details })
}

fn describe(change: &Change) -> Option<Described> {
    let nothing = || Value::Null;
    match change {
        Change::CreateAccount(fields) => of("account.created", "", account(fields)),
        Change::PatchAccount(fields) => of("account.updated", "", account(fields)),
        Change::Pause(pause) => of("account.paused", "", json!({"reason": pause.reason})),
        Change::Resume(resume) => {
            let mode = resume.mode.and_then(|mode| Mode::try_from(mode).ok()).map(Mode::name);
            of("account.resumed", "", json!({"reason": resume.reason, "mode": mode}))
        }
        Change::SetNetworks(set) => of("ip_allowlist.set", "", json!({"networks": set.networks})),
        Change::CreateKey(key) => {
            let scopes = key.scopes.iter().filter_map(|scope| KeyScope::try_from(*scope).ok()).map(KeyScope::name);
            let scopes: Vec<&str> = scopes.collect();
            let form = KeyForm::try_from(key.form).ok().map(KeyForm::name);
            let details = json!({"name": key.name, "form": form, "prefix": key.prefix, "scopes": scopes,
                "expires_at": key.expires_at});
            of("key.created", uuid(&key.key_id), details)
        }
        Change::RevokeKey(key) => of("key.revoked", uuid(key), nothing()),
        Change::CreateIdentity(identity) => of("identity.created", &*identity.value, nothing()),
        Change::SetIdentityStatus(set) => {
            let status = IdentityStatus::try_from(set.status).ok().map(IdentityStatus::name);
            of("identity.status_set", named(set.identity.as_ref()), json!({"status": status}))
        }
        Change::DeleteIdentity(name) => of("identity.deleted", named(Some(name)), nothing()),
        Change::CreateConfigSet(set) => {
            of("configuration_set.created", uuid(&set.config_set_id), json!({"name": set.name}))
        }
        Change::PatchConfigSet(patch) => {
            let tags = patch.has_tags.then_some(&patch.tags);
            let details = json!({"name": patch.name, "description": patch.description, "customer_id": patch.customer_id,
                "sending_enabled": patch.sending_enabled,
                "reputation_tracking_enabled": patch.reputation_tracking_enabled, "tags": tags});
            of("configuration_set.updated", uuid(&patch.config_set_id), details)
        }
        Change::DeleteConfigSet(set) => of("configuration_set.deleted", uuid(set), nothing()),
        Change::CreateDestination(create) => {
            let made = create.destination.as_ref()?;
            of("destination.created", uuid(&made.destination_id), destination(made))
        }
        Change::PatchDestination(patch) => {
            let id = patch.destination.as_ref().map(|name| uuid(&name.destination_id)).unwrap_or_default();
            let details = json!({"name": patch.name, "webhook_url": patch.webhook_url.as_deref().map(origin),
                "enabled": patch.enabled, "description": patch.description,
                "secret": patch.sealed_secret.as_ref().map(|_| "changed")});
            of("destination.updated", id, details)
        }
        Change::DeleteDestination(name) => of("destination.deleted", uuid(&name.destination_id), nothing()),
        // The same secrets under another key of the server's are no change of the account's.
        Change::RotateSecret(rotate) if rotate.resealed.is_none() => {
            let id = rotate.destination.as_ref().map(|name| uuid(&name.destination_id)).unwrap_or_default();
            of("destination.secret_rotated", id, json!({"overlap_seconds": rotate.overlap / 1_000}))
        }
        Change::SwitchSecret(name) => of("destination.secret_switched", uuid(&name.destination_id), nothing()),
        Change::StartReplay(replay) => of("replay.started", uuid(&replay.replay_id), nothing()),
        Change::CancelReplay(replay) => of("replay.cancelled", uuid(replay), nothing()),
        Change::PutSuppression(row) => Some(Described {
            recipient: row.email.clone(),
            ..of("suppression.put", "", json!({"reason": row.reason}))?
        }),
        Change::DeleteSuppression(email) => {
            Some(Described { recipient: email.clone(), ..of("suppression.deleted", "", nothing())? })
        }
        // The address is not written down once more.
        Change::EraseRecipient(erase) => of("recipient.erased", uuid(&erase.erasure_id), nothing()),
        Change::KeyUsed(_)
        | Change::Claim(_)
        | Change::RotateSecret(_)
        | Change::WebhookHealth(_)
        | Change::ReplayProgress(_)
        | Change::Lifecycle(_)
        | Change::EndErasure(_) => None,
    }
}

fn account(fields: &AccountFields) -> Value {
    let policy = fields.policy.as_ref().map(|policy| {
        json!({"name": policy.name, "minimum_sends": policy.minimum_sends, "minimum_complaints": policy.minimum_complaints,
            "warn_bounce_ppm": policy.warn_bounce_ppm, "warn_complaint_ppm": policy.warn_complaint_ppm,
            "pause_bounce_ppm": policy.pause_bounce_ppm, "pause_complaint_ppm": policy.pause_complaint_ppm})
    });
    json!({"name": fields.name, "contact_email": fields.contact_email,
        "mode": fields.mode.and_then(|mode| Mode::try_from(mode).ok()).map(Mode::name), "policy": policy,
        "daily_send_quota": fields.daily_send_quota, "peak_send_rate_per_second": fields.peak_send_rate_per_second,
        "suspended": fields.suspended, "legal_hold": fields.legal_hold, "retention_days": fields.retention_days})
}

fn destination(made: &Destination) -> Value {
    json!({"name": made.name, "webhook_url": origin(&made.webhook_url), "dialect": made.dialect().name(),
        "enabled": made.enabled})
}

fn named(name: Option<&IdentityName>) -> &str {
    name.map_or("", |name| &name.value)
}

/// A URL without its path and query, in which tokens may stand.
fn origin(url: &str) -> &str {
    let end = url.match_indices('/').nth(2).map_or(url.len(), |(at, _)| at);
    url.get(..end).unwrap_or_default().split(['?', '#']).next().unwrap_or_default()
}
