//! The tokens that SASL's OAUTHBEARER lets clients in by.
//!
//! librdkafka gets those of a server that gives them out (`sasl.oauthbearer.method=oidc`), again and again. Of those
//! that nobody signed it makes the first; that another is due it tells the binding, which drops that or asks here.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rdkafka::client::OAuthToken;
use rdkafka::config::ClientConfig;
use sendtrail_schemas::time::{Millis, SECOND};
use serde_json::{Map, Value};

/// For how many seconds a token is good unless the settings tell: as with librdkafka.
const LIFE: u32 = 3_600;

/// Refuses settings by which a client would wait for a token in silence, or have one later that says something else.
///
/// # Errors
/// What is wrong.
pub fn check(config: &ClientConfig) -> Result<(), &'static str> {
    let is = |name: &str, one: &str| config.get(name).is_some_and(|value| value.trim().eq_ignore_ascii_case(one));
    let is_sasl = is("security.protocol", "sasl_ssl") || is("security.protocol", "sasl_plaintext");
    // One is another name for the other.
    let is_bearer = is("sasl.mechanism", "OAUTHBEARER") || is("sasl.mechanisms", "OAUTHBEARER");
    if !is_sasl || !is_bearer {
        return Ok(());
    }
    if !["true", "t", "1"].into_iter().any(|yes| is("enable.sasl.oauthbearer.unsecure.jwt", yes)) {
        let why = "OAUTHBEARER needs a token: sasl.oauthbearer.method=oidc has it from a server, \
                   enable.sasl.oauthbearer.unsecure.jwt=true makes one that nobody signs";
        return if is("sasl.oauthbearer.method", "oidc") { Ok(()) } else { Err(why) };
    }
    let told = config.get("sasl.oauthbearer.config").unwrap_or_default();
    if told.split(' ').any(|part| part.starts_with("extension_")) {
        // The binding has no way to say them again.
        return Err("sasl.oauthbearer.config: a token is renewed without its extensions");
    }
    Ok(())
}

/// A token that nobody signed (RFC 7515, A.5), as `sasl.oauthbearer.config` describes it, good from now on.
///
/// # Errors
/// What is wrong with the description. librdkafka has checked it when it made the first token.
pub fn unsigned(config: &str, now: Millis) -> Result<OAuthToken, String> {
    let told = |name: &str| config.split(' ').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
    let principal = told("principal").ok_or("sasl.oauthbearer.config: no principal")?;
    let life = match told("lifeSeconds") {
        Some(life) => life.parse::<u32>().map_err(|cause| format!("sasl.oauthbearer.config: lifeSeconds: {cause}"))?,
        None => LIFE,
    };
    let issued = now.0 / SECOND;
    let expires = issued + i64::from(life);
    let scope: Vec<&str> = told("scope").into_iter().flat_map(|all| all.split(',')).filter(|s| !s.is_empty()).collect();
    let mut claims = Map::new();
    claims.insert(told("principalClaimName").unwrap_or("sub").to_owned(), principal.into());
    claims.insert("iat".to_owned(), issued.into());
    claims.insert("exp".to_owned(), expires.into());
    if !scope.is_empty() {
        claims.insert(told("scopeClaimName").unwrap_or("scope").to_owned(), scope.into());
    }
    let header = BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
    let claims = BASE64_URL_SAFE_NO_PAD.encode(Value::Object(claims).to_string());
    let token = format!("{header}.{claims}.");
    Ok(OAuthToken { token, principal_name: principal.to_owned(), lifetime_ms: expires * SECOND })
}

#[cfg(test)]
mod tests;
