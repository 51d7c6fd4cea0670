//! Accounts, their keys and their standing, as the administrator sets them.

use std::collections::BTreeSet;

use axum::extract::State;
use axum::response::Response;
use sendtrail_schemas::account::{AccountConfig, ApiKey, KeyForm, KeyScope, Mode, Policy};
use sendtrail_schemas::address;
use sendtrail_schemas::directory::hash_key;
use sendtrail_schemas::ids::{AccountId, KeyId};
use sendtrail_schemas::problem::{Code, Problem};
use sendtrail_schemas::record::{AccountFields, Body, Change, Pause, Resume, Tick};
use sendtrail_schemas::time::Millis;
use sendtrail_schemas::web::{Nothing, Path, Query, account_id, created, id, invalid, ok, page};
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

/// A new key.
#[derive(Deserialize, ToSchema)]
pub(super) struct KeyRequest {
    name: Option<String>,
    /// `pk_live` (default), `zm_live`, `zm_test` or `sk_live`; `in_rcs` or `in_wa` for the token of a callback's path.
    form: Option<String>,
    /// Whose callbacks come with an `in_rcs` token.
    customer_id: Option<String>,
    /// What it may be used for: `read`, `send` (mail and events), `manage` (everything else); absent: all of it.
    scopes: Option<Vec<String>>,
    /// From when on it is no longer good (RFC 3339); absent: it is until it is revoked.
    expires_at: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct NewKey {
    key: KeyView,
}

#[derive(Serialize, ToSchema)]
struct KeyView {
    key_id: String,
    name: String,
    form: &'static str,
    prefix: String,
    created_at: Millis,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_key: Option<String>,
    revoked_at: Option<Millis>,
    last_used_at: Option<Millis>,
    customer_id: Option<String>,
    /// `read`, `send`, `manage`; of a callback's token none.
    scopes: Vec<&'static str>,
    expires_at: Option<Millis>,
    /// Where callbacks are to be sent that this token lets in; shown once.
    #[serde(skip_serializing_if = "Option::is_none")]
    callback_path: Option<String>,
}

fn key_view(key: &ApiKey) -> KeyView {
    let scopes = KeyScope::ALL.into_iter().filter(|scope| key.may(*scope));
    KeyView {
        key_id: key.id().map(|id| id.to_string()).unwrap_or_default(),
        name: key.name.clone(),
        form: key.form().name(),
        prefix: key.prefix.clone(),
        created_at: Millis(key.created_at),
        api_key: None,
        revoked_at: key.revoked_at.map(Millis),
        last_used_at: key.last_used_at.map(Millis),
        customer_id: key.customer_id.clone(),
        scopes: if key.form().is_inbound() { Vec::new() } else { scopes.map(KeyScope::name).collect() },
        expires_at: key.expires_at.map(Millis),
        callback_path: None,
    }
}

/// Where callbacks come to that a token of a form lets in.
fn callback_path(form: KeyForm, token: &str) -> Option<String> {
    match form {
        KeyForm::InRcs => Some(format!("/api/v1/inbound/rcs/{token}")),
        KeyForm::InWhatsapp => Some(format!("/api/v1/inbound/whatsapp/{token}")),
        _ => None,
    }
}

/// A key of a form: its prefix and 56 random letters and digits (333 bits).
fn make_key(form: KeyForm) -> String {
    use rand::distr::{Alphanumeric, SampleString};
    format!("{}_{}", form.name(), Alphanumeric.sample_string(&mut rand::rng(), 56))
}

/// The scopes of a new key by their names.
fn scopes(names: Option<&[String]>, form: KeyForm) -> Result<Vec<i32>, Problem> {
    let Some(names) = names else { return Ok(Vec::new()) };
    if form.is_inbound() {
        return Err(invalid("the token of a callback's path has no scopes"));
    }
    let known = KeyScope::ALL.map(KeyScope::name).join(", ");
    let parse =
        |name: &String| KeyScope::parse(name).ok_or_else(|| invalid(format!("scope {name:?} is none of {known}")));
    let scopes: BTreeSet<KeyScope> = names.iter().map(parse).collect::<Result<_, _>>()?;
    match scopes.len() {
        0 => Err(invalid(format!("scopes is one of {known} at least"))),
        // What is good for everything stays so when there is more.
        3 => Ok(Vec::new()),
        _ => Ok(scopes.into_iter().map(|scope| scope as i32).collect()),
    }
}

/// Create a key. It is shown in this reply only.
#[utoipa::path(post, path = "/accounts/{account_id}/keys", tag = "admin", params(("account_id" = String, Path)),
    request_body = KeyRequest, responses((status = 201, description = "the key, shown once", body = inline(NewKey)), (status = 404, description = "PARTNER_NOT_FOUND")))]
pub(super) async fn create_key(
    State(ingest): State<Ingest>,
    Path(account): Path<String>,
    stamp: Stamp,
    Json(request): Json<KeyRequest>,
) -> Result<Response, Problem> {
    let account = account_id(&account)?;
    let form = request.form.as_deref().unwrap_or("pk_live");
    let form = KeyForm::parse(form)
        .ok_or_else(|| invalid(format!("form {form:?} is none of {}", KeyForm::ALL.map(KeyForm::name).join(", "))))?;
    let name = request.name.unwrap_or_default();
    if name.len() > 256 {
        return Err(invalid("name has at most 256 bytes"));
    }
    if request.customer_id.as_ref().is_some_and(|id| id.len() > 256) {
        return Err(invalid("customer_id has at most 256 bytes"));
    }
    let scopes = scopes(request.scopes.as_deref(), form)?;
    let expires_at = request.expires_at.as_deref().map(Millis::parse).transpose();
    let expires_at = expires_at.map_err(|cause| invalid(format!("expires_at: {cause}")))?;
    if expires_at.is_some_and(|until| until <= stamp.or_now(&ingest)) {
        return Err(invalid("expires_at is over"));
    }
    let (key_id, api_key) = (KeyId(fresh()), make_key(form));
    let key = ApiKey {
        key_id: key_id.bytes().to_vec(),
        hash: hash_key(&api_key).to_vec(),
        name,
        form: form as i32,
        prefix: api_key.chars().take(12).collect(),
        customer_id: request.customer_id,
        scopes,
        expires_at: expires_at.map(|until| until.0),
        ..ApiKey::default()
    };
    ingest.command(account, stamp, Change::CreateKey(key)).await?;
    let config = ingest.account(account)?;
    let key = config.keys.iter().find(|key| key.key_id == key_id.bytes()).ok_or_else(Problem::internal)?;
    let callback_path = callback_path(form, &api_key);
    Ok(created(NewKey { key: KeyView { api_key: Some(api_key), callback_path, ..key_view(key) } }))
}

#[derive(Serialize, ToSchema)]
struct Keys {
    keys: Vec<KeyView>,
    next_cursor: Option<String>,
}

/// List an account's keys; never the keys themselves.
#[utoipa::path(get, path = "/accounts/{account_id}/keys", tag = "admin", params(("account_id" = String, Path)),
    responses((status = 200, description = "keys", body = inline(Keys)), (status = 404, description = "PARTNER_NOT_FOUND")))]
pub(super) async fn list_keys(State(ingest): State<Ingest>, Path(account): Path<String>) -> Result<Response, Problem> {
    let config = ingest.account(account_id(&account)?)?;
    Ok(ok(Keys { keys: config.keys.iter().map(key_view).collect(), next_cursor: None }))
}

/// Revoke a key, at once.
#[utoipa::path(delete, path = "/accounts/{account_id}/keys/{key_id}", tag = "admin",
    params(("account_id" = String, Path), ("key_id" = String, Path)),
    responses((status = 200, description = "revoked"), (status = 404, description = "NOT_FOUND")))]
pub(super) async fn revoke_key(
    State(ingest): State<Ingest>,
    Path((account, key)): Path<(String, String)>,
    stamp: Stamp,
) -> Result<Response, Problem> {
    let key: KeyId = id(&key, Code::NotFound, "key")?;
    ingest.command(account_id(&account)?, stamp, Change::RevokeKey(key.bytes().to_vec())).await?;
    Ok(ok(Nothing {}))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_the_length_of_the_contract_and_differ() {
        let (one, other) = (make_key(KeyForm::PkLive), make_key(KeyForm::PkLive));
        assert_eq!(one.len(), 64);
        assert!(one.starts_with("pk_live_") && one != other);
    }
}
