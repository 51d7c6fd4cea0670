//! Accounts and their standing, as the administrator sets them.

use axum::extract::State;
use axum::response::Response;
use sendtrail_schemas::account::{AccountConfig, Mode, Policy};
use sendtrail_schemas::address;
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::problem::{Code, Problem};
use sendtrail_schemas::record::{AccountFields, Body, Change, Pause, Resume, Tick};
use sendtrail_schemas::time::Millis;
use sendtrail_schemas::web::{Nothing, Path, Query, account_id, created, invalid, ok, page};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{fresh, one_line};
use crate::Ingest;
use crate::body::Json;
use crate::submit::Stamp;

/// What the administrator gives for an account; in a patch, what is absent stays.
#[derive(Deserialize, ToSchema)]
pub(super) struct AccountRequest {
    name: Option<String>,
    contact_email: Option<String>,
    /// `sandbox` or `production`.
    mode: Option<String>,
    policy: Option<PolicyRequest>,
    daily_send_quota: Option<u64>,
    peak_send_rate_per_second: Option<u32>,
    /// Its keys are refused (401 KEY_INACTIVE).
    suspended: Option<bool>,
    /// Nothing of it is erased, whoever asks and however old (409 LEGAL_HOLD).
    legal_hold: Option<bool>,
    /// Days after the receipt of an event after which its personal fields are erased, 15 to 36500; 0: never.
    #[schema(maximum = 36500)]
    retention_days: Option<u32>,
}

/// A policy by its name, with other values where given.
#[derive(Deserialize, ToSchema)]
pub(super) struct PolicyRequest {
    /// `splashify` or `zmailer`.
    name: Option<String>,
    minimum_sends: Option<u64>,
    minimum_complaints: Option<u64>,
    warn_bounce_ppm: Option<u32>,
    warn_complaint_ppm: Option<u32>,
    pause_bounce_ppm: Option<u32>,
    pause_complaint_ppm: Option<u32>,
}

impl PolicyRequest {
    fn read(self, before: Option<Policy>) -> Result<Policy, Problem> {
        let mut policy = match self.name.as_deref() {
            Some(name) => Policy::named(name)
                .ok_or_else(|| invalid(format!("policy {name:?} is neither splashify nor zmailer")))?,
            None => before.unwrap_or_else(Policy::splashify),
        };
        policy.minimum_sends = self.minimum_sends.unwrap_or(policy.minimum_sends);
        policy.minimum_complaints = self.minimum_complaints.unwrap_or(policy.minimum_complaints);
        policy.warn_bounce_ppm = self.warn_bounce_ppm.or(policy.warn_bounce_ppm);
        policy.warn_complaint_ppm = self.warn_complaint_ppm.or(policy.warn_complaint_ppm);
        policy.pause_bounce_ppm = self.pause_bounce_ppm.unwrap_or(policy.pause_bounce_ppm);
        policy.pause_complaint_ppm = self.pause_complaint_ppm.unwrap_or(policy.pause_complaint_ppm);
        Ok(policy)
    }
}

impl AccountRequest {
    fn read(self, before: Option<&AccountConfig>) -> Result<AccountFields, Problem> {
        if let Some(name) = &self.name {
            one_line("name", name)?;
            if name.trim().is_empty() || name.len() > 256 {
                return Err(invalid("name has 1 to 256 bytes"));
            }
        }
        if self.contact_email.as_deref().is_some_and(|email| !address::is_valid(email)) {
            return Err(invalid("contact_email is not an e-mail address"));
        }
        // Late events of a message take what they lack from its Send for so long.
        if self.retention_days.is_some_and(|days| days != 0 && !(15..=36_500).contains(&days)) {
            return Err(invalid("retention_days is 0, or 15 to 36500"));
        }
        let mode = self.mode.as_deref().map(read_mode).transpose()?;
        let policy =
            self.policy.map(|policy| policy.read(before.and_then(|account| account.policy.clone()))).transpose()?;
        Ok(AccountFields {
            name: self.name,
            contact_email: self.contact_email,
            mode: mode.map(|mode| mode as i32),
            policy,
            daily_send_quota: self.daily_send_quota,
            peak_send_rate_per_second: self.peak_send_rate_per_second,
            suspended: self.suspended,
            legal_hold: self.legal_hold,
            retention_days: self.retention_days,
        })
    }
}

fn read_mode(text: &str) -> Result<Mode, Problem> {
    Mode::parse(text).ok_or_else(|| invalid(format!("mode {text:?} is neither sandbox nor production")))
}

/// An account as the administrator sees it.
#[derive(Serialize, ToSchema)]
struct AccountView {
    account_id: String,
    name: String,
    contact_email: String,
    mode: &'static str,
    suspended: bool,
    legal_hold: bool,
    retention_days: u32,
    policy: PolicyView,
    daily_send_quota: u64,
    peak_send_rate_per_second: u32,
    reputation_status: &'static str,
    created_at: Millis,
}

#[derive(Serialize, ToSchema)]
struct PolicyView {
    name: String,
    minimum_sends: u64,
    minimum_complaints: u64,
    warn_bounce_ppm: Option<u32>,
    warn_complaint_ppm: Option<u32>,
    pause_bounce_ppm: u32,
    pause_complaint_ppm: u32,
}

fn view(account: &AccountConfig) -> AccountView {
    let policy = account.policy();
    AccountView {
        account_id: account.id().to_string(),
        name: account.name.clone(),
        contact_email: account.contact_email.clone(),
        mode: account.mode().name(),
        suspended: account.suspended,
        legal_hold: account.legal_hold,
        retention_days: account.retention_days,
        daily_send_quota: account.daily_quota(),
        peak_send_rate_per_second: account.peak_rate(),
        reputation_status: account.status().name(),
        created_at: account.created(),
        policy: PolicyView {
            name: policy.name,
            minimum_sends: policy.minimum_sends,
            minimum_complaints: policy.minimum_complaints,
            warn_bounce_ppm: policy.warn_bounce_ppm,
            warn_complaint_ppm: policy.warn_complaint_ppm,
            pause_bounce_ppm: policy.pause_bounce_ppm,
            pause_complaint_ppm: policy.pause_complaint_ppm,
        },
    }
}

#[derive(Serialize, ToSchema)]
struct One {
    account: AccountView,
}

/// Create an account. Sandbox and the splashify policy unless given otherwise.
#[utoipa::path(post, path = "/accounts", tag = "admin", request_body = AccountRequest,
    responses((status = 201, description = "the account", body = inline(One)), (status = 400, description = "INVALID_REQUEST")))]
pub(super) async fn create(
    State(ingest): State<Ingest>,
    stamp: Stamp,
    Json(request): Json<AccountRequest>,
) -> Result<Response, Problem> {
    if request.name.is_none() || request.contact_email.is_none() {
        return Err(invalid("name and contact_email are needed"));
    }
    let mut fields = request.read(None)?;
    fields.policy.get_or_insert_with(Policy::splashify);
    let account = AccountId(fresh());
    ingest.command(account, stamp, Change::CreateAccount(fields)).await?;
    Ok(created(One { account: view(&*ingest.account(account)?) }))
}

#[derive(Deserialize)]
pub(super) struct ListQuery {
    limit: Option<String>,
    cursor: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct Accounts {
    accounts: Vec<AccountView>,
    next_cursor: Option<String>,
}

/// List accounts, in the order of their identifiers.
#[utoipa::path(get, path = "/accounts", tag = "admin",
    params(("limit" = Option<u16>, Query, description = "1 to 1000"), ("cursor" = Option<String>, Query)),
    responses((status = 200, description = "accounts", body = inline(Accounts))))]
pub(super) async fn list(State(ingest): State<Ingest>, Query(query): Query<ListQuery>) -> Result<Response, Problem> {
    let limit = page(query.limit.as_deref())?;
    let malformed = |_| Problem::new(Code::InvalidParam, "cursor is not one of ours");
    let after = query.cursor.map(|cursor| cursor.parse::<AccountId>()).transpose().map_err(malformed)?;
    let found = ingest.parts().directory.list(after, limit + 1);
    let next_cursor = (found.len() > limit).then(|| found.get(limit - 1).map(|account| account.id().to_string()));
    let accounts = found.iter().take(limit).map(|account| view(account)).collect();
    Ok(ok(Accounts { accounts, next_cursor: next_cursor.flatten() }))
}

/// Show an account.
#[utoipa::path(get, path = "/accounts/{account_id}", tag = "admin", params(("account_id" = String, Path)),
    responses((status = 200, description = "the account", body = inline(One)), (status = 404, description = "PARTNER_NOT_FOUND")))]
pub(super) async fn get(State(ingest): State<Ingest>, Path(account): Path<String>) -> Result<Response, Problem> {
    Ok(ok(One { account: view(&*ingest.account(account_id(&account)?)?) }))
}

/// Change an account; what is absent stays.
#[utoipa::path(patch, path = "/accounts/{account_id}", tag = "admin", params(("account_id" = String, Path)),
    request_body = AccountRequest, responses((status = 200, description = "the account", body = inline(One)), (status = 404, description = "PARTNER_NOT_FOUND")))]
pub(super) async fn patch(
    State(ingest): State<Ingest>,
    Path(account): Path<String>,
    stamp: Stamp,
    Json(request): Json<AccountRequest>,
) -> Result<Response, Problem> {
    let account = account_id(&account)?;
    let fields = request.read(Some(&*ingest.account(account)?))?;
    ingest.command(account, stamp, Change::PatchAccount(fields)).await?;
    Ok(ok(One { account: view(&*ingest.account(account)?) }))
}

/// Why.
#[derive(Deserialize, ToSchema)]
pub(super) struct ReasonRequest {
    reason: Option<String>,
    /// For a resume: the mode to go on in.
    mode: Option<String>,
}

impl ReasonRequest {
    fn reason(&self) -> Result<String, Problem> {
        let reason = self.reason.clone().filter(|reason| !reason.trim().is_empty() && reason.len() <= 2_000);
        reason.ok_or_else(|| invalid("reason has 1 to 2000 bytes"))
    }
}

/// Pause an account: no send is accepted after it. Pausing a paused account changes nothing.
#[utoipa::path(post, path = "/accounts/{account_id}/pause", tag = "admin", params(("account_id" = String, Path)),
    request_body = ReasonRequest, responses((status = 200, description = "the account", body = inline(One)), (status = 404, description = "PARTNER_NOT_FOUND")))]
pub(super) async fn pause(
    State(ingest): State<Ingest>,
    Path(account): Path<String>,
    stamp: Stamp,
    Json(request): Json<ReasonRequest>,
) -> Result<Response, Problem> {
    let account = account_id(&account)?;
    ingest.command(account, stamp, Change::Pause(Pause { reason: request.reason()? })).await?;
    Ok(ok(One { account: view(&*ingest.account(account)?) }))
}

/// Resume an account, in the sandbox if asked for. From then on the policy judges only what comes after.
#[utoipa::path(post, path = "/accounts/{account_id}/resume", tag = "admin", params(("account_id" = String, Path)),
    request_body = ReasonRequest, responses((status = 200, description = "the account", body = inline(One)), (status = 404, description = "PARTNER_NOT_FOUND")))]
pub(super) async fn resume(
    State(ingest): State<Ingest>,
    Path(account): Path<String>,
    stamp: Stamp,
    Json(request): Json<ReasonRequest>,
) -> Result<Response, Problem> {
    let account = account_id(&account)?;
    let mode = request.mode.as_deref().map(read_mode).transpose()?.map(|mode| mode as i32);
    ingest.command(account, stamp, Change::Resume(Resume { reason: request.reason()?, mode })).await?;
    Ok(ok(One { account: view(&*ingest.account(account)?) }))
}

/// A time to move to.
#[derive(Deserialize, ToSchema)]
pub(super) struct TickRequest {
    /// RFC 3339.
    #[schema(value_type = String, format = DateTime)]
    now: Millis,
}

/// Move the time of a simulated log forward.
#[utoipa::path(post, path = "/clock", tag = "admin", request_body = TickRequest,
    responses((status = 200, description = "moved"), (status = 404, description = "NOT_FOUND: time is not simulated")))]
pub(super) async fn tick(State(ingest): State<Ingest>, Json(request): Json<TickRequest>) -> Result<Response, Problem> {
    if !ingest.parts().clock.is_simulated() {
        return Err(Problem::new(Code::NotFound, "time is simulated only on a log that was created so"));
    }
    for partition in 0..ingest.parts().pulses.len() as u32 {
        let offset = ingest.durable(ingest.append_tick(partition, request.now, Body::Tick(Tick {}))).await?;
        let applied = ingest.parts().pulses[partition as usize].reached(offset + 1);
        // Time moves on even if a partition is slow to follow.
        let _ = tokio::time::timeout(ingest.limits().decision_timeout, applied).await;
    }
    Ok(ok(Nothing {}))
}
