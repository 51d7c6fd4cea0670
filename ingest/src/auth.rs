//! Who calls: a partner by an account's key, or the administrator.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::Response;
use sendtrail_schemas::account::{KeyForm, KeyScope};
use sendtrail_schemas::directory::{KeyOwner, hash_key, same_hash};
use sendtrail_schemas::networks::{self, ClientAddress};
use sendtrail_schemas::problem::{Code, Problem};
use sendtrail_schemas::record::{Body, Change, Command};

use crate::Ingest;

/// Length of a native key (S2: "64 characters").
pub const KEY_LENGTH: usize = 64;

/// The bearer token of a request.
fn bearer(headers: &HeaderMap) -> Result<&str, Problem> {
    let value = headers
        .get(header::AUTHORIZATION)
        .ok_or_else(|| Problem::new(Code::MissingAuth, "send your API key: Authorization: Bearer pk_live_…"))?;
    let malformed = || Problem::new(Code::InvalidKeyFormat, "the Authorization header is not 'Bearer <key>'");
    let (scheme, token) = value.to_str().map_err(|_| malformed())?.split_once(' ').ok_or_else(malformed)?;
    if scheme.eq_ignore_ascii_case("bearer") { Ok(token.trim()) } else { Err(malformed()) }
}

fn is_native(key: &str) -> bool {
    let of_form = key.strip_prefix(KeyForm::PkLive.name()).and_then(|rest| rest.strip_prefix('_'));
    key.len() == KEY_LENGTH && of_form.is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_alphanumeric()))
}

/// Lets a partner's request through with its [`KeyOwner`] as an extension.
pub async fn partner(State(ingest): State<Ingest>, mut request: Request, next: Next) -> Result<Response, Problem> {
    let key = bearer(request.headers())?;
    if !is_native(key) {
        return Err(Problem::new(Code::InvalidKeyFormat, "a key is pk_live_ and 56 letters and digits"));
    }
    let owner = ingest.owner(key)?;
    is_from_within(&owner, &request)?;
    ingest.is_within_rate(&owner)?;
    may(&owner, &request)?;
    request.extensions_mut().insert(owner);
    Ok(next.run(request).await)
}

/// Where exports are, below the partner's routes.
const EXPORTS: &str = "/exports";

/// What a request wants to do: GET looks, and mail and events have a word of their own.
fn wanted(method: &Method, path: &str) -> KeyScope {
    let last = path.rsplit('/').next().unwrap_or_default();
    match *method {
        Method::GET | Method::HEAD => KeyScope::Read,
        Method::POST if matches!(last, "send" | "events") => KeyScope::Send,
        // Exports read, whatever their method.
        _ if path.starts_with(EXPORTS) => KeyScope::Read,
        _ => KeyScope::Manage,
    }
}

/// Whether the account may be used from where the request came.
fn is_from_within(owner: &KeyOwner, request: &Request) -> Result<(), Problem> {
    let listed = &owner.account.networks;
    if listed.is_empty() {
        return Ok(());
    }
    let address = request.extensions().get::<ClientAddress>().map(|client| client.0);
    let listed: Vec<_> = listed.iter().filter_map(|network| networks::parse(network).ok()).collect();
    if address.is_some_and(|address| networks::hold(&listed, address)) {
        return Ok(());
    }
    let address = address.map_or_else(|| "an unknown address".to_owned(), |address| address.to_string());
    Err(Problem::new(Code::IpBlocked, format!("{address} is not on the account's list of networks")))
}

fn may(owner: &KeyOwner, request: &Request) -> Result<(), Problem> {
    let scope = wanted(request.method(), request.uri().path());
    if owner.may(scope) {
        return Ok(());
    }
    let name = scope.name();
    Err(Problem::new(Code::InsufficientScope, format!("the key has not the scope {name:?}, which this needs")))
}

/// The same on S3's surface: `X-API-Key`, or a bearer token, of a native key.
pub async fn sendcomms(state: State<Ingest>, request: Request, next: Next) -> Result<Response, Problem> {
    one_of(&[KeyForm::PkLive], state, request, next).await
}

/// The same on S4's surface, also with keys of its own. A test key reaches the simulator only, so that it changes nothing here.
pub async fn zmailer(state: State<Ingest>, request: Request, next: Next) -> Result<Response, Problem> {
    one_of(&[KeyForm::PkLive, KeyForm::ZmLive], state, request, next).await
}

async fn one_of(
    forms: &[KeyForm],
    State(ingest): State<Ingest>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let headers = request.headers();
    let key = match headers.get("x-api-key") {
        Some(value) => value.to_str().map_err(|_| Problem::new(Code::InvalidKeyFormat, "the key is not text"))?,
        None => bearer(headers)?,
    };
    let owner = ingest.owner(key.trim())?;
    if !forms.contains(&owner.form) {
        return Err(Problem::new(Code::KeyNotFound, "keys of this form do not open this"));
    }
    is_from_within(&owner, &request)?;
    ingest.is_within_rate(&owner)?;
    may(&owner, &request)?;
    request.extensions_mut().insert(owner);
    Ok(next.run(request).await)
}

/// Lets the administrator's request through.
pub async fn admin(State(ingest): State<Ingest>, request: Request, next: Next) -> Result<Response, Problem> {
    let key = bearer(request.headers())?;
    if !same_hash(&hash_key(key), &ingest.parts().admin_key_hash) {
        return Err(Problem::new(Code::KeyNotFound, "this is not the administrator's key"));
    }
    Ok(next.run(request).await)
}

/// Keys whose use was noted this hour; beyond, all are noted again.
const REMEMBERED: usize = 100_000;

impl Ingest {
    /// Whether the account asks no more than it may.
    fn is_within_rate(&self, owner: &KeyOwner) -> Result<(), Problem> {
        match self.limits().requests_per_second {
            0 => Ok(()),
            rate => self.inner.requests.check(owner.account.id(), rate),
        }
    }

    /// Whose key this is. What it may be used for is another question.
    pub(crate) fn owner(&self, key: &str) -> Result<KeyOwner, Problem> {
        let unknown = || Problem::new(Code::KeyNotFound, "the key was revoked or never existed");
        let owner = self.parts().directory.authenticate(key).ok_or_else(unknown)?;
        if owner.account.suspended {
            return Err(Problem::new(Code::KeyInactive, "the account is suspended"));
        }
        let now = self.parts().clock.now().0;
        if owner.api_key().and_then(|key| key.expires_at).is_some_and(|until| until <= now) {
            return Err(Problem::new(Code::KeyInactive, "the key is past its time"));
        }
        self.note_use(&owner);
        Ok(owner)
    }

    /// Notes, once an hour, that a key is used.
    fn note_use(&self, owner: &KeyOwner) {
        let now = self.parts().clock.now();
        let noted = owner.api_key().and_then(|key| key.last_used_at);
        if noted.is_some_and(|last| last / sendtrail_schemas::time::HOUR >= i64::from(now.hour())) {
            return;
        }
        {
            let mut used = self.inner.used_keys.lock();
            if used.len() >= REMEMBERED {
                used.clear();
            }
            if !used.insert((owner.key, now.hour())) {
                return;
            }
        }
        let change = Some(Change::KeyUsed(owner.key.bytes().to_vec()));
        let appended = self.append(owner.account.id(), None, None, Body::Command(Command { change }));
        // Not worth waiting for, nor a refusal: the next hour notes it again.
        tokio::spawn(async move { drop(appended.await) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_request_wants_is_in_its_method_and_path() {
        let path = "/api/v1/partner/email/events";
        assert_eq!(wanted(&Method::GET, path), KeyScope::Read);
        assert_eq!(wanted(&Method::HEAD, path), KeyScope::Read);
        assert_eq!(wanted(&Method::POST, path), KeyScope::Send);
        assert_eq!(wanted(&Method::POST, "/send"), KeyScope::Send);
        assert_eq!(wanted(&Method::POST, "/exports"), KeyScope::Read);
        assert_eq!(wanted(&Method::DELETE, "/exports/x"), KeyScope::Read);
        assert_eq!(wanted(&Method::POST, "/api/v1/partner/email/events/replay"), KeyScope::Manage);
        assert_eq!(wanted(&Method::DELETE, "/api/v1/partner/email/suppression/send"), KeyScope::Manage);
    }

    #[test]
    fn a_native_key_has_64_characters() {
        assert!(is_native(&format!("pk_live_{}", "aB3".repeat(19).get(..56).unwrap())));
        assert!(!is_native(&format!("pk_live_{}", "a".repeat(55))));
        assert!(!is_native(&format!("sk_live_{}", "a".repeat(56))));
        assert!(!is_native(&format!("pk_live_{}-", "a".repeat(55))));
    }
}
