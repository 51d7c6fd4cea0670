//! Keys of accounts, as the administrator makes and revokes them.

use std::collections::BTreeSet;

use axum::extract::State;
use axum::response::Response;
use sendtrail_schemas::account::{ApiKey, KeyForm, KeyScope};
use sendtrail_schemas::directory::hash_key;
use sendtrail_schemas::ids::KeyId;
use sendtrail_schemas::problem::{Code, Problem};
use sendtrail_schemas::record::Change;
use sendtrail_schemas::time::Millis;
use sendtrail_schemas::web::{Nothing, Path, account_id, created, id, invalid, ok};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::fresh;
use crate::Ingest;
use crate::body::Json;
use crate::submit::Stamp;

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
