//! Event destinations: the webhooks of a configuration set.

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use rand::Rng;
use sendtrail_schemas::account::{ConfigSet, Destination, Dialect};
use sendtrail_schemas::directory::KeyOwner;
use sendtrail_schemas::ids::DestinationId;
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::problem::{Code, Problem};
use sendtrail_schemas::record::{Change, CreateDestination, DestinationName, DestinationPatch};
use sendtrail_schemas::secret::NONCE_LENGTH;
use sendtrail_schemas::time::Millis;
use sendtrail_schemas::web::{Nothing, Path, created, id, invalid, ok};
use serde::{Deserialize, Serialize};
use url::Url;
use utoipa::ToSchema;

use super::config_sets::{find as find_set, set_id};
use super::{fresh, one_line};
use crate::Ingest;
use crate::body::Json;
use crate::submit::Stamp;

/// Attempts after the first that a schedule of one's own may have, and the longest wait, seconds.
const MAX_RETRIES: usize = 20;
const MAX_WAIT_SECONDS: u32 = 7 * 86_400;

/// A destination, or other values for one; in a patch, what is absent stays.
#[derive(Deserialize, ToSchema)]
pub(super) struct DestinationRequest {
    name: Option<String>,
    /// `WEBHOOK`.
    destination_type: Option<String>,
    webhook_url: Option<String>,
    /// Never shown again; a patch switches at once.
    webhook_secret: Option<String>,
    /// Empty: all.
    matching_event_types: Option<Vec<String>>,
    /// `splashify` (default) or `standard`.
    dialect: Option<String>,
    enabled: Option<bool>,
    /// Waits before the second and later attempts, instead of the dialect's.
    retry_schedule_seconds: Option<Vec<u32>>,
}

/// What was checked of a request.
struct Checked {
    types: Option<Vec<i32>>,
    dialect: Option<Dialect>,
}

impl DestinationRequest {
    fn check(&self, ingest: &Ingest) -> Result<Checked, Problem> {
        if let Some(name) = &self.name {
            one_line("name", name)?;
            if name.is_empty() || name.len() > 256 {
                return Err(invalid("name has 1 to 256 bytes"));
            }
        }
        if self.destination_type.as_deref().is_some_and(|kind| !kind.eq_ignore_ascii_case("WEBHOOK")) {
            return Err(invalid("destination_type is WEBHOOK"));
        }
        if let Some(url) = &self.webhook_url {
            check_url(url, ingest.limits().allow_http_webhooks)?;
        }
        if self.webhook_secret.as_ref().is_some_and(|secret| secret.is_empty() || secret.len() > 1_024) {
            return Err(invalid("webhook_secret has 1 to 1024 bytes"));
        }
        if let Some(schedule) = &self.retry_schedule_seconds
            && (schedule.len() > MAX_RETRIES || schedule.iter().any(|wait| *wait > MAX_WAIT_SECONDS))
        {
            return Err(invalid("retry_schedule_seconds has at most 20 waits of at most seven days"));
        }
        let dialect = self.dialect.as_deref().map(|text| {
            Dialect::parse(text).ok_or_else(|| invalid(format!("dialect {text:?} is neither splashify nor standard")))
        });
        let types = self.matching_event_types.as_ref().map(|names| {
            let read = |name: &String| {
                EventType::parse(name)
                    .map(|kind| kind as i32)
                    .ok_or_else(|| invalid(format!("matching_event_types: {name:?} is no event type")))
            };
            names.iter().map(read).collect::<Result<Vec<_>, _>>()
        });
        let (mut types, dialect) = (types.transpose()?, dialect.transpose()?);
        if let Some(types) = &mut types {
            types.sort_unstable();
            types.dedup();
        }
        Ok(Checked { types, dialect })
    }

    fn seal(&self, ingest: &Ingest, destination: DestinationId) -> Option<Vec<u8>> {
        let secret = self.webhook_secret.as_ref()?;
        let mut nonce = [0u8; NONCE_LENGTH];
        rand::rng().fill_bytes(&mut nonce);
        Some(ingest.parts().vault.seal(secret.as_bytes(), nonce, destination.bytes()))
    }
}

fn check_url(text: &str, allow_http: bool) -> Result<(), Problem> {
    let url = Url::parse(text).map_err(|cause| invalid(format!("webhook_url: {cause}")))?;
    match url.scheme() {
        "https" => {}
        "http" if allow_http => {}
        _ => return Err(invalid("webhook_url begins with https://")),
    }
    if url.host_str().is_none_or(str::is_empty) || text.len() > 2_048 {
        return Err(invalid("webhook_url has a host and at most 2048 bytes"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(invalid("webhook_url holds credentials; sign with a secret instead"));
    }
    Ok(())
}

/// A destination as its owner sees it; never its secret.
#[derive(Serialize, ToSchema)]
pub(super) struct DestinationView {
    destination_id: String,
    name: String,
    destination_type: &'static str,
    webhook_url: String,
    has_secret: bool,
    matching_event_types: Vec<&'static str>,
    dialect: &'static str,
    enabled: bool,
    retry_schedule_seconds: Vec<u32>,
    created_at: Millis,
}

pub(super) fn view(destination: &Destination) -> DestinationView {
    DestinationView {
        destination_id: destination.id().map(|id| id.to_string()).unwrap_or_default(),
        name: destination.name.clone(),
        destination_type: "WEBHOOK",
        webhook_url: destination.webhook_url.clone(),
        has_secret: destination.sealed_secret.is_some(),
        matching_event_types: destination.matching_event_types().map(EventType::name).collect(),
        dialect: destination.dialect().name(),
        enabled: destination.enabled,
        retry_schedule_seconds: destination.retry_schedule_seconds.clone(),
        created_at: Millis(destination.created_at),
    }
}

#[derive(Serialize, ToSchema)]
struct One {
    event_destination: DestinationView,
}

fn destination_id(text: &str) -> Result<DestinationId, Problem> {
    id(text, Code::NotFound, "event destination")
}

fn find(set: &ConfigSet, id: DestinationId) -> Result<&Destination, Problem> {
    let found = set.destinations.iter().find(|destination| destination.destination_id == id.bytes());
    found.ok_or_else(|| Problem::new(Code::NotFound, "no such event destination"))
}

/// Create a destination; a set has at most five.
#[utoipa::path(post, path = "/configuration-sets/{config_set_id}/event-destinations", tag = "event destinations",
    params(("config_set_id" = String, Path)), request_body = DestinationRequest,
    responses((status = 201, description = "the destination, without its secret", body = inline(One)),
        (status = 400, description = "INVALID_REQUEST, DESTINATION_LIMIT_REACHED"), (status = 404, description = "CONFIG_SET_NOT_FOUND")))]
pub(super) async fn create(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    Path(set): Path<String>,
    stamp: Stamp,
    Json(request): Json<DestinationRequest>,
) -> Result<Response, Problem> {
    let set = set_id(&set)?;
    let Checked { types, dialect } = request.check(&ingest)?;
    let destination_id = DestinationId(fresh());
    let sealed_secret = request.seal(&ingest, destination_id);
    let destination = Destination {
        destination_id: destination_id.bytes().to_vec(),
        name: request.name.ok_or_else(|| invalid("name is needed"))?,
        webhook_url: request.webhook_url.ok_or_else(|| invalid("webhook_url is needed"))?,
        sealed_secret,
        matching_event_types: types.unwrap_or_default(),
        dialect: dialect.unwrap_or(Dialect::Splashify) as i32,
        enabled: request.enabled.unwrap_or(true),
        retry_schedule_seconds: request.retry_schedule_seconds.unwrap_or_default(),
        ..Destination::default()
    };
    let create = CreateDestination { config_set_id: set.bytes().to_vec(), destination: Some(destination) };
    let account = owner.account.id();
    ingest.command(account, stamp, Change::CreateDestination(create)).await?;
    let config = ingest.account(account)?;
    Ok(created(One { event_destination: view(find(find_set(&config, set)?, destination_id)?) }))
}

#[derive(Serialize, ToSchema)]
struct Destinations {
    event_destinations: Vec<DestinationView>,
    next_cursor: Option<String>,
}

/// List a set's destinations.
#[utoipa::path(get, path = "/configuration-sets/{config_set_id}/event-destinations", tag = "event destinations",
    params(("config_set_id" = String, Path)),
    responses((status = 200, description = "destinations", body = inline(Destinations)), (status = 404, description = "CONFIG_SET_NOT_FOUND")))]
pub(super) async fn list(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    Path(set): Path<String>,
) -> Result<Response, Problem> {
    let account = ingest.account(owner.account.id())?;
    let set = find_set(&account, set_id(&set)?)?;
    Ok(ok(Destinations { event_destinations: set.destinations.iter().map(view).collect(), next_cursor: None }))
}

/// Show a destination, without its secret.
#[utoipa::path(get, path = "/configuration-sets/{config_set_id}/event-destinations/{destination_id}", tag = "event destinations",
    params(("config_set_id" = String, Path), ("destination_id" = String, Path)),
    responses((status = 200, description = "the destination", body = inline(One)), (status = 404, description = "CONFIG_SET_NOT_FOUND, NOT_FOUND")))]
pub(super) async fn get(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    Path((set, destination)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let account = ingest.account(owner.account.id())?;
    let set = find_set(&account, set_id(&set)?)?;
    Ok(ok(One { event_destination: view(find(set, destination_id(&destination)?)?) }))
}

/// Change a destination; what is absent stays. A new secret is effective with the next event.
#[utoipa::path(patch, path = "/configuration-sets/{config_set_id}/event-destinations/{destination_id}", tag = "event destinations",
    params(("config_set_id" = String, Path), ("destination_id" = String, Path)), request_body = DestinationRequest,
    responses((status = 200, description = "the destination", body = inline(One)), (status = 404, description = "CONFIG_SET_NOT_FOUND, NOT_FOUND")))]
pub(super) async fn patch(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    Path((set, destination)): Path<(String, String)>,
    stamp: Stamp,
    Json(request): Json<DestinationRequest>,
) -> Result<Response, Problem> {
    let (set, destination) = (set_id(&set)?, destination_id(&destination)?);
    let Checked { types, dialect } = request.check(&ingest)?;
    let sealed_secret = request.seal(&ingest, destination);
    let name = DestinationName { config_set_id: set.bytes().to_vec(), destination_id: destination.bytes().to_vec() };
    let patch = DestinationPatch {
        destination: Some(name),
        name: request.name,
        webhook_url: request.webhook_url,
        sealed_secret,
        has_matching_event_types: types.is_some(),
        matching_event_types: types.unwrap_or_default(),
        dialect: dialect.map(|dialect| dialect as i32),
        enabled: request.enabled,
        has_retry_schedule: request.retry_schedule_seconds.is_some(),
        retry_schedule_seconds: request.retry_schedule_seconds.unwrap_or_default(),
    };
    let account = owner.account.id();
    ingest.command(account, stamp, Change::PatchDestination(patch)).await?;
    let config = ingest.account(account)?;
    Ok(ok(One { event_destination: view(find(find_set(&config, set)?, destination)?) }))
}

/// Delete a destination; what was not delivered to it yet never is.
#[utoipa::path(delete, path = "/configuration-sets/{config_set_id}/event-destinations/{destination_id}", tag = "event destinations",
    params(("config_set_id" = String, Path), ("destination_id" = String, Path)),
    responses((status = 200, description = "gone"), (status = 404, description = "CONFIG_SET_NOT_FOUND, NOT_FOUND")))]
pub(super) async fn delete(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    Path((set, destination)): Path<(String, String)>,
    stamp: Stamp,
) -> Result<Response, Problem> {
    let name = DestinationName {
        config_set_id: set_id(&set)?.bytes().to_vec(),
        destination_id: destination_id(&destination)?.bytes().to_vec(),
    };
    ingest.command(owner.account.id(), stamp, Change::DeleteDestination(name)).await?;
    Ok(ok(Nothing {}))
}
