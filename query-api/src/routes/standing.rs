//! How an account stands: reputation and quotas, from memory.

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use sendtrail_schemas::account::{AccountConfig, IdentityType, Mode};
use sendtrail_schemas::directory::KeyOwner;
use sendtrail_schemas::problem::{Code, Problem};
use sendtrail_schemas::reputation::{Counts, Reputation, Scope, WINDOW_HOURS};
use sendtrail_schemas::time::Millis;
use sendtrail_schemas::web::{dated, ok};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{Answered, Query};

/// Recipients a day that cost nothing in the sandbox (S2 "Sandbox vs Production").
const SANDBOX_FREE: u64 = 200;

#[derive(Serialize, ToSchema)]
struct ReputationView {
    window_days: u32,
    sent: u64,
    bounced: u64,
    complained: u64,
    bounce_rate: f64,
    complaint_rate: f64,
    status: &'static str,
    minimum_sends: u64,
    policy: String,
    since: Millis,
    paused: Option<PausedView>,
    scopes: Vec<ScopeView>,
}

#[derive(Serialize, ToSchema)]
struct PausedView {
    at: Millis,
    rule: String,
    numerator: u64,
    denominator: u64,
    window_start: Millis,
    event_id: Option<String>,
    reason: String,
}

#[derive(Serialize, ToSchema)]
struct ScopeView {
    /// `configuration_set` or `identity`.
    scope: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    config_set_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    configuration_set_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity_value: Option<String>,
    sent: u64,
    bounced: u64,
    complained: u64,
    bounce_rate: f64,
    complaint_rate: f64,
}

/// How an account stands, and as of when if that is not now.
async fn find(query: &Query, owner: &KeyOwner) -> Result<(Reputation, Option<Millis>), Problem> {
    let Answered { value, as_of, .. } = query.parts().accounts.reputation(owner.account.id()).await?;
    let found = value.ok_or_else(|| Problem::new(Code::PartnerNotFound, "no such account"))?;
    Ok((found, as_of))
}

fn paused(config: &AccountConfig) -> Option<PausedView> {
    config.paused.as_ref().map(|evidence| PausedView {
        at: Millis(evidence.at),
        rule: evidence.rule.clone(),
        numerator: evidence.numerator,
        denominator: evidence.denominator,
        window_start: Millis(evidence.window_start),
        event_id: Some(evidence.event_id.clone()).filter(|id| !id.is_empty()),
        reason: evidence.reason.clone(),
    })
}

fn scope(config: &AccountConfig, scope: &Scope, counts: Counts) -> ScopeView {
    let set = match scope {
        Scope::ConfigSet(id) => config.config_set_by_id(*id),
        Scope::Identity(..) => None,
    };
    let identity = match scope {
        Scope::Identity(kind, value) => Some((IdentityType::try_from(*kind).unwrap_or(IdentityType::Domain), value)),
        Scope::ConfigSet(_) => None,
    };
    ScopeView {
        scope: if identity.is_some() { "identity" } else { "configuration_set" },
        config_set_id: set.and_then(|set| set.id()).map(|id| id.to_string()),
        configuration_set_name: set.map(|set| set.name.clone()),
        identity_type: identity.map(|(kind, _)| kind.name()),
        identity_value: identity.map(|(_, value)| value.clone()),
        sent: counts.sent,
        bounced: counts.bounced,
        complained: counts.complained,
        bounce_rate: counts.bounce_rate(),
        complaint_rate: counts.complaint_rate(),
    }
}

/// Show the bounce and complaint counts of the last 14 days, the status, and what paused the account.
#[utoipa::path(get, path = "/reputation", tag = "statistics", responses((status = 200, description = "the reputation", body = ReputationView)))]
pub(super) async fn reputation(
    State(query): State<Query>,
    Extension(owner): Extension<KeyOwner>,
) -> Result<Response, Problem> {
    let (reputation, as_of) = find(&query, &owner).await?;
    let now = query.parts().clock.now();
    let config = &reputation.config;
    let counts = reputation.window.at(now);
    let window_start = Millis::of_hour(now.hour() - WINDOW_HOURS + 1);
    let scopes = reputation.scopes.iter().map(|(name, window)| scope(config, name, window.at(now)));
    let policy = config.policy();
    let shown = ReputationView {
        window_days: 14,
        sent: counts.sent,
        bounced: counts.bounced,
        complained: counts.complained,
        bounce_rate: counts.bounce_rate(),
        complaint_rate: counts.complaint_rate(),
        status: config.status().name(),
        minimum_sends: policy.minimum_sends,
        policy: policy.name,
        since: config.resumed_at.map_or(window_start, |resumed| window_start.max(Millis(resumed))),
        paused: paused(config),
        scopes: scopes.collect(),
    };
    Ok(dated(ok(shown), as_of))
}

#[derive(Serialize, ToSchema)]
struct QuotasView {
    daily_send_quota: u64,
    peak_send_rate_per_second: u32,
    sandbox: bool,
    sent_today: u64,
    sandbox_free_used_today: u64,
    reputation_status: &'static str,
}

/// Show what may be sent today, and how fast.
#[utoipa::path(get, path = "/quotas", tag = "statistics", responses((status = 200, description = "the quotas", body = QuotasView)))]
pub(super) async fn quotas(
    State(query): State<Query>,
    Extension(owner): Extension<KeyOwner>,
) -> Result<Response, Problem> {
    let (reputation, as_of) = find(&query, &owner).await?;
    let config = &reputation.config;
    // A day that is over says nothing of today.
    let today = reputation.usage_day == query.parts().clock.now().day();
    let (sent, sandbox) = if today { (reputation.sent_today, reputation.sandbox_sent_today) } else { (0, 0) };
    let shown = QuotasView {
        daily_send_quota: config.daily_quota(),
        peak_send_rate_per_second: config.peak_rate(),
        sandbox: config.mode() == Mode::Sandbox,
        sent_today: sent,
        sandbox_free_used_today: sandbox.min(SANDBOX_FREE),
        reputation_status: config.status().name(),
    };
    Ok(dated(ok(shown), as_of))
}
