//! What a sender has proved to control.

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use sendtrail_schemas::account::{AccountConfig, Identity, IdentityStatus, IdentityType};
use sendtrail_schemas::address;
use sendtrail_schemas::directory::KeyOwner;
use sendtrail_schemas::problem::{Code, Problem};
use sendtrail_schemas::record::{Change, IdentityName, SetIdentityStatus};
use sendtrail_schemas::time::Millis;
use sendtrail_schemas::web::{Nothing, Path, Query, account_id, created, invalid, ok, page};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::body::Json;
use crate::submit::Stamp;
use crate::{Ingest, Limits};

/// Mailbox providers whose domains nobody who sends through us can own (S2 "Public-domain caveat").
const PUBLIC_MAILBOXES: [&str; 26] = [
    "gmail.com",
    "googlemail.com",
    "yahoo.com",
    "ymail.com",
    "outlook.com",
    "hotmail.com",
    "live.com",
    "msn.com",
    "icloud.com",
    "me.com",
    "mac.com",
    "aol.com",
    "proton.me",
    "protonmail.com",
    "gmx.com",
    "gmx.de",
    "gmx.net",
    "web.de",
    "mail.com",
    "mail.ru",
    "yandex.com",
    "yandex.ru",
    "zoho.com",
    "rediffmail.com",
    "qq.com",
    "163.com",
];

/// An identity to prove.
#[derive(Deserialize, ToSchema)]
pub(super) struct IdentityRequest {
    /// `DOMAIN` or `EMAIL_ADDRESS`.
    identity_type: Option<String>,
    identity_value: Option<String>,
}

/// An identity, flat as S2 shows it.
#[derive(Serialize, ToSchema)]
struct IdentityView {
    identity_type: &'static str,
    identity_value: String,
    status: &'static str,
    created_at: Millis,
    verified_at: Option<Millis>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dns_records: Option<DnsRecords>,
}

/// The records that a domain must have.
#[derive(Serialize, ToSchema)]
struct DnsRecords {
    spf: DnsRecord,
    dkim: DnsRecord,
    dmarc: DnsRecord,
}

#[derive(Serialize, ToSchema)]
struct DnsRecord {
    #[serde(rename = "type")]
    kind: &'static str,
    hostname: String,
    value: String,
    pass: bool,
    found: Option<String>,
}

fn view(identity: &Identity, limits: &Limits) -> IdentityView {
    let (domain, selector, ours) = (&identity.value, &limits.dkim_selector, &limits.mail_domain);
    let record = |kind, hostname, value| DnsRecord { kind, hostname, value, pass: false, found: None };
    let dns_records = (identity.kind() == IdentityType::Domain).then(|| DnsRecords {
        spf: record("TXT", domain.clone(), format!("v=spf1 include:_spf.{ours} ~all")),
        dkim: record("CNAME", format!("{selector}._domainkey.{domain}"), format!("{selector}._domainkey.{ours}")),
        dmarc: record("TXT", format!("_dmarc.{domain}"), format!("v=DMARC1; p=quarantine; rua=mailto:dmarc@{ours}")),
    });
    IdentityView {
        identity_type: identity.kind().name(),
        identity_value: identity.value.clone(),
        status: identity.status().name(),
        created_at: Millis(identity.created_at),
        verified_at: identity.verified_at.map(Millis),
        dns_records,
    }
}

/// The identity of a path: type and value, in any case.
fn name(kind: &str, value: &str) -> Result<IdentityName, Problem> {
    let kind = IdentityType::parse(kind)
        .ok_or_else(|| Problem::new(Code::InvalidParam, "an identity is of type DOMAIN or EMAIL_ADDRESS"))?;
    Ok(IdentityName { kind: kind as i32, value: address::fold(value.trim()).into_owned() })
}

fn find(account: &AccountConfig, name: &IdentityName) -> Result<Identity, Problem> {
    let found = account.identity(name.kind(), &name.value).cloned();
    found.ok_or_else(|| Problem::new(Code::IdentityNotFound, "no such identity"))
}

/// Begin to prove an identity: it is PENDING until its records are found, or an administrator overrides it.
#[utoipa::path(post, path = "/identities", tag = "identities", request_body = IdentityRequest,
    responses((status = 201, description = "the identity, flat", body = IdentityView), (status = 400, description = "INVALID_REQUEST"),
        (status = 409, description = "IDENTITY_EXISTS, with the identity's fields beside the error's", body = inline(Conflict<'static>))))]
pub(super) async fn create(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    stamp: Stamp,
    Json(request): Json<IdentityRequest>,
) -> Result<Response, Problem> {
    let kind = request.identity_type.as_deref().and_then(IdentityType::parse);
    let kind = kind.ok_or_else(|| invalid("identity_type is DOMAIN or EMAIL_ADDRESS"))?;
    let value = request.identity_value.unwrap_or_default();
    let value = address::fold(value.trim()).into_owned();
    let domain = match kind {
        IdentityType::Domain => value.as_str(),
        IdentityType::EmailAddress => value.rsplit_once('@').map_or("", |(_, domain)| domain),
    };
    let is_valid = match kind {
        IdentityType::Domain => address::is_valid(&format!("postmaster@{value}")),
        IdentityType::EmailAddress => address::is_valid(&value),
    };
    if !is_valid {
        let what = if kind == IdentityType::Domain { "a domain" } else { "an e-mail address" };
        return Err(invalid(format!("identity_value is not {what}")));
    }
    if PUBLIC_MAILBOXES.contains(&domain) {
        return Err(invalid(format!("{domain} is a public mailbox provider's; use a domain of your own")));
    }
    let id = owner.account.id();
    let identity = Identity { kind: kind as i32, value: value.clone(), ..Identity::default() };
    let made = ingest.command(id, stamp, Change::CreateIdentity(identity)).await;
    let account = ingest.account(id)?;
    let identity = IdentityName { kind: kind as i32, value };
    match made {
        Ok(_) => Ok(created(view(&find(&account, &identity)?, ingest.limits()))),
        Err(problem) if problem.code == Code::IdentityExists => {
            let conflict =
                Conflict { problem: problem.body(), identity: view(&find(&account, &identity)?, ingest.limits()) };
            Ok((StatusCode::CONFLICT, axum::Json(conflict)).into_response())
        }
        Err(problem) => Err(problem),
    }
}

/// The error, and the row that is there.
#[derive(Serialize, ToSchema)]
struct Conflict<'a> {
    #[serde(flatten)]
    problem: sendtrail_schemas::problem::Body<'a>,
    #[serde(flatten)]
    identity: IdentityView,
}

#[derive(Deserialize)]
pub(super) struct ListQuery {
    limit: Option<String>,
    cursor: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct Identities {
    identities: Vec<IdentityView>,
    next_cursor: Option<String>,
}

/// List identities.
#[utoipa::path(get, path = "/identities", tag = "identities",
    params(("limit" = Option<u16>, Query, description = "1 to 1000"), ("cursor" = Option<String>, Query)),
    responses((status = 200, description = "identities", body = inline(Identities))))]
pub(super) async fn list(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    Query(query): Query<ListQuery>,
) -> Result<Response, Problem> {
    let limit = page(query.limit.as_deref())?;
    let account = ingest.account(owner.account.id())?;
    let start = match query.cursor.as_deref() {
        None => 0,
        Some(cursor) => {
            let (kind, value) =
                cursor.split_once(':').ok_or_else(|| Problem::new(Code::InvalidParam, "cursor is not one of ours"))?;
            let after = name(kind, value)?;
            account.identity_position(after.kind(), &after.value).map_or_else(|at| at, |at| at + 1)
        }
    };
    let mut found = account.identities.iter().skip(start);
    let identities: Vec<_> = found.by_ref().take(limit).collect();
    let next_cursor = found.next().and(identities.last()).map(|last| format!("{}:{}", last.kind().name(), last.value));
    let identities = identities.into_iter().map(|identity| view(identity, ingest.limits())).collect();
    Ok(ok(Identities { identities, next_cursor }))
}

/// Show an identity.
#[utoipa::path(get, path = "/identities/{identity_type}/{identity_value}", tag = "identities",
    params(("identity_type" = String, Path), ("identity_value" = String, Path)),
    responses((status = 200, description = "the identity, flat", body = IdentityView), (status = 404, description = "IDENTITY_NOT_FOUND")))]
pub(super) async fn get(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    Path((kind, value)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let account = ingest.account(owner.account.id())?;
    Ok(ok(view(&find(&account, &name(&kind, &value)?)?, ingest.limits())))
}

/// Give an identity up: nothing more is sent from it.
#[utoipa::path(delete, path = "/identities/{identity_type}/{identity_value}", tag = "identities",
    params(("identity_type" = String, Path), ("identity_value" = String, Path)),
    responses((status = 200, description = "gone"), (status = 404, description = "IDENTITY_NOT_FOUND")))]
pub(super) async fn delete(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    Path((kind, value)): Path<(String, String)>,
    stamp: Stamp,
) -> Result<Response, Problem> {
    ingest.command(owner.account.id(), stamp, Change::DeleteIdentity(name(&kind, &value)?)).await?;
    Ok(ok(Nothing {}))
}

/// Ask for an identity's records to be looked up again. Until look-ups exist, what is PENDING stays so unless an
/// administrator overrides it.
#[utoipa::path(post, path = "/identities/{identity_type}/{identity_value}/verify", tag = "identities",
    params(("identity_type" = String, Path), ("identity_value" = String, Path)),
    responses((status = 200, description = "the identity, flat", body = IdentityView), (status = 404, description = "IDENTITY_NOT_FOUND")))]
pub(super) async fn verify(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    Path((kind, value)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let account = ingest.account(owner.account.id())?;
    Ok(ok(view(&find(&account, &name(&kind, &value)?)?, ingest.limits())))
}

/// A status by the administrator's word.
#[derive(Deserialize, ToSchema)]
pub(super) struct OverrideRequest {
    /// `PENDING`, `VERIFIED` or `FAILED`.
    status: Option<String>,
}

/// Override an identity's status.
#[utoipa::path(post, path = "/accounts/{account_id}/identities/{identity_type}/{identity_value}/override", tag = "admin",
    params(("account_id" = String, Path), ("identity_type" = String, Path), ("identity_value" = String, Path)),
    request_body = OverrideRequest,
    responses((status = 200, description = "the identity, flat", body = IdentityView), (status = 404, description = "IDENTITY_NOT_FOUND")))]
pub(super) async fn override_status(
    State(ingest): State<Ingest>,
    Path((account, kind, value)): Path<(String, String, String)>,
    stamp: Stamp,
    Json(request): Json<OverrideRequest>,
) -> Result<Response, Problem> {
    let account = account_id(&account)?;
    let identity = name(&kind, &value)?;
    let status = request.status.as_deref().and_then(IdentityStatus::parse);
    let status = status.ok_or_else(|| invalid("status is PENDING, VERIFIED or FAILED"))?;
    let set = SetIdentityStatus { identity: Some(identity.clone()), status: status as i32 };
    ingest.command(account, stamp, Change::SetIdentityStatus(set)).await?;
    Ok(ok(view(&find(&*ingest.account(account)?, &identity)?, ingest.limits())))
}
