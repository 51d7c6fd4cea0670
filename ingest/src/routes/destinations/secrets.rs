//! Webhook secrets: made, checked, changed with an overlap, and sealed anew.

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rand::Rng;
use sendtrail_schemas::destination::{Destination, Dialect};
use sendtrail_schemas::directory::KeyOwner;
use sendtrail_schemas::ids::DestinationId;
use sendtrail_schemas::problem::Problem;
use sendtrail_schemas::record::{Change, RotateSecret};
use sendtrail_schemas::secret::hex;
use sendtrail_schemas::time::{DAY, SECOND};
use sendtrail_schemas::web::{Path, invalid, ok};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::own::anywhere;
use super::{DestinationView, Made, destination_id, find};
use crate::Ingest;
use crate::body::Json;
use crate::submit::Stamp;

/// Bytes of a secret of one's own, at most.
const MAX_BYTES: usize = 1_024;
/// The longest overlap, seconds: seven days.
const MAX_OVERLAP: u64 = 7 * 86_400;
/// Bytes of the key in a secret of Standard Webhooks ("Signature scheme": 24 to 64).
const STANDARD_KEY: std::ops::RangeInclusive<usize> = 24..=64;
/// Accounts that are looked at together.
const ACCOUNTS: usize = 1_000;

/// A secret of 32 random bytes in the form that a dialect's receivers know.
pub(super) fn make(dialect: Dialect) -> String {
    let mut key = [0u8; 32];
    rand::rng().fill_bytes(&mut key);
    match dialect {
        Dialect::Standard | Dialect::Securesmtp => format!("whsec_{}", BASE64_STANDARD.encode(key)),
        Dialect::Sendcomms | Dialect::Zmailer => format!("whsec_{}", hex(&key)),
        Dialect::Splashify | Dialect::Nexuspromail => hex(&key),
    }
}

/// Whether receivers of a dialect can verify with a secret.
pub(super) fn check(secret: &str, dialect: Dialect) -> Result<(), Problem> {
    if secret.is_empty() || secret.len() > MAX_BYTES {
        return Err(invalid("webhook_secret has 1 to 1024 bytes"));
    }
    if dialect.carries_several_signatures() {
        let encoded = secret.strip_prefix("whsec_").unwrap_or(secret);
        let fits = BASE64_STANDARD.decode(encoded).is_ok_and(|key| STANDARD_KEY.contains(&key.len()));
        if !fits {
            let name = dialect.name();
            return Err(invalid(format!(
                "webhook_secret of the dialect {name} is whsec_ and 24 to 64 bytes in base64"
            )));
        }
    }
    Ok(())
}

/// Another secret.
#[derive(Deserialize, ToSchema, Default)]
#[serde(default)]
pub(in crate::routes) struct RotateRequest {
    /// The new secret; absent: one is made, and shown in this answer only.
    webhook_secret: Option<String>,
    /// How long both secrets sign, where a dialect carries two signatures; 86400 by default.
    overlap_seconds: Option<u64>,
}

#[derive(Serialize, ToSchema)]
struct One {
    destination: DestinationView,
}

/// Change the secret without losing a delivery: both sign for a while, or the one before signs until a switch is asked for.
#[utoipa::path(post, path = "/destinations/{destination_id}/rotate-secret", tag = "webhooks",
    params(("destination_id" = String, Path)), request_body = RotateRequest,
    responses((status = 200, description = "the destination, with the secret if that was made", body = inline(One)),
        (status = 404, description = "NOT_FOUND")))]
pub(in crate::routes) async fn rotate(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    Path(destination): Path<String>,
    stamp: Stamp,
    Json(request): Json<RotateRequest>,
) -> Result<Response, Problem> {
    let id = destination_id(&destination)?;
    let account = ingest.account(owner.account.id())?;
    let dialect = find(&account, id)?.dialect();
    if let Some(secret) = &request.webhook_secret {
        check(secret, dialect)?;
    }
    let overlap = request.overlap_seconds.unwrap_or((DAY / SECOND) as u64);
    if overlap > MAX_OVERLAP {
        return Err(invalid("overlap_seconds is at most seven days"));
    }
    let made = request.webhook_secret.is_none();
    let secret = request.webhook_secret.unwrap_or_else(|| make(dialect));
    let rotate = RotateSecret {
        destination: Some(anywhere(id)),
        sealed_secret: ingest.seal(&secret, id),
        overlap: overlap as i64 * SECOND,
        ..RotateSecret::default()
    };
    ingest.command(account.id(), stamp, Change::RotateSecret(rotate)).await?;
    let made = Made { account: ingest.account(account.id())?, id, secret: Some(secret), made };
    Ok(ok(One { destination: made.view()? }))
}

/// Let the new secret sign alone from now on.
#[utoipa::path(post, path = "/destinations/{destination_id}/switch-secret", tag = "webhooks",
    params(("destination_id" = String, Path)),
    responses((status = 200, description = "the destination", body = inline(One)), (status = 404, description = "NOT_FOUND")))]
pub(in crate::routes) async fn switch(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    Path(destination): Path<String>,
    stamp: Stamp,
) -> Result<Response, Problem> {
    let id = destination_id(&destination)?;
    ingest.command(owner.account.id(), stamp, Change::SwitchSecret(anywhere(id))).await?;
    let account = ingest.account(owner.account.id())?;
    Ok(ok(One { destination: DestinationView::of(&account, find(&account, id)?) }))
}

#[derive(Serialize, ToSchema)]
struct Resealed {
    /// Destinations whose secrets are sealed with the key of now.
    resealed: u64,
    /// Destinations whose secrets no known key opens.
    unreadable: Vec<String>,
}

/// Seal every webhook secret with the key of now. Afterwards those of before are needed no more.
#[utoipa::path(post, path = "/secrets/reseal", tag = "admin",
    responses((status = 200, description = "how many", body = inline(Resealed))))]
pub(in crate::routes) async fn reseal(State(ingest): State<Ingest>, stamp: Stamp) -> Result<Response, Problem> {
    let mut told = Resealed { resealed: 0, unreadable: Vec::new() };
    let mut after = None;
    loop {
        let accounts = ingest.parts().directory.list(after, ACCOUNTS);
        let Some(last) = accounts.last() else { return Ok(ok(told)) };
        after = Some(last.id());
        for account in &accounts {
            for destination in account.destinations() {
                match ingest.resealed(destination) {
                    Ok(None) => {}
                    Ok(Some(rotate)) => {
                        let changed = ingest.command(account.id(), stamp.clone(), Change::RotateSecret(rotate)).await?;
                        told.resealed += u64::from(changed);
                    }
                    Err(id) => told.unreadable.push(id.to_string()),
                }
            }
        }
    }
}

impl Ingest {
    /// A destination's secrets sealed anew; none when they need not be.
    fn resealed(&self, destination: &Destination) -> Result<Option<RotateSecret>, DestinationId> {
        let (Some(id), Some(current)) = (destination.id(), &destination.sealed_secret) else { return Ok(None) };
        let vault = &self.parts().vault;
        let older = destination.older_secrets.iter().map(|old| &old.sealed);
        let mut all = std::iter::once(current).chain(&destination.previous_secret).chain(older.clone());
        if !all.any(|sealed| vault.is_outdated(sealed)) {
            return Ok(None);
        }
        let anew = |sealed: &Vec<u8>| {
            let secret = vault.open(sealed, id.bytes()).map_err(|_| id)?;
            // Secrets came in as text.
            String::from_utf8(secret).map(|secret| self.seal(&secret, id)).map_err(|_| id)
        };
        Ok(Some(RotateSecret {
            destination: Some(anywhere(id)),
            sealed_secret: current.clone(),
            resealed: Some(anew(current)?),
            resealed_previous: destination.previous_secret.as_ref().map(anew).transpose()?,
            resealed_older: older.map(anew).collect::<Result<_, _>>()?,
            ..RotateSecret::default()
        }))
    }

    /// The secret of a destination, for surfaces that show it.
    pub(in crate::routes) fn shown_secret(&self, destination: &Destination) -> Option<String> {
        let (id, sealed) = (destination.id()?, destination.sealed_secret.as_ref()?);
        String::from_utf8(self.parts().vault.open(sealed, id.bytes()).ok()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_that_are_made_fit_their_dialect_and_differ() {
        for dialect in Dialect::ALL {
            let (one, other) = (make(dialect), make(dialect));
            check(&one, dialect).unwrap();
            assert_ne!(one, other);
            assert!(one.len() >= 43, "{one}");
            assert_eq!(one.starts_with("whsec_"), !matches!(dialect, Dialect::Splashify | Dialect::Nexuspromail));
        }
        for secret in ["secret", "whsec_", "whsec_AAAA", "whsec_not base64 at all!!"] {
            assert!(check(secret, Dialect::Standard).is_err(), "{secret}");
        }
        assert!(check("secret", Dialect::Splashify).is_ok() && check("", Dialect::Splashify).is_err());
    }
}
