//! Configuration sets: sends that share destinations and suppression options.

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use sendtrail_schemas::account::{AccountConfig, ConfigSet, SuppressionOptions};
use sendtrail_schemas::directory::KeyOwner;
use sendtrail_schemas::event::Tags;
use sendtrail_schemas::ids::ConfigSetId;
use sendtrail_schemas::problem::{Code, Problem};
use sendtrail_schemas::record::{Change, ConfigSetPatch};
use sendtrail_schemas::time::Millis;
use sendtrail_schemas::web::{Nothing, Path, Query, created, id, invalid, ok, page};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::destinations::DestinationView;
use super::fresh;
use crate::Ingest;
use crate::body::Json;
use crate::intake::check_tags;
use crate::submit::Stamp;

/// A configuration set, or other values for one; in a patch, what is absent stays.
#[derive(Deserialize, ToSchema)]
pub(super) struct SetRequest {
    /// 1 to 256 of `[A-Za-z0-9_-]`, unique, case-sensitive.
    name: Option<String>,
    description: Option<String>,
    customer_id: Option<String>,
    sending_enabled: Option<bool>,
    reputation_tracking_enabled: Option<bool>,
    /// `NONE`, `BOUNCE`, `COMPLAINT` or `BOUNCE_AND_COMPLAINT` (default).
    suppression_options: Option<String>,
    tags: Option<Tags>,
}

impl SetRequest {
    fn check(&self) -> Result<Option<SuppressionOptions>, Problem> {
        if let Some(name) = &self.name {
            let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
            if name.is_empty() || name.len() > 256 || !name.bytes().all(fits) {
                return Err(invalid("name is 1 to 256 of A-Z, a-z, 0-9, _ and -"));
            }
        }
        let bounded = |text: &Option<String>, most| text.as_ref().is_none_or(|text| text.len() <= most);
        if !bounded(&self.description, 1_000) || !bounded(&self.customer_id, 256) {
            return Err(invalid("description has at most 1000 bytes, customer_id at most 256"));
        }
        if let Some(tags) = &self.tags {
            check_tags(tags).map_err(invalid)?;
        }
        let options = self.suppression_options.as_deref().map(|text| {
            let unknown = || invalid("suppression_options is NONE, BOUNCE, COMPLAINT or BOUNCE_AND_COMPLAINT");
            SuppressionOptions::parse(text).ok_or_else(unknown)
        });
        options.transpose()
    }
}

#[derive(Serialize, ToSchema)]
struct SetView {
    config_set_id: String,
    name: String,
    description: Option<String>,
    customer_id: Option<String>,
    sending_enabled: bool,
    reputation_tracking_enabled: bool,
    suppression_options: &'static str,
    tags: Tags,
    created_at: Millis,
    event_destinations: Vec<DestinationView>,
}

fn view(account: &AccountConfig, set: &ConfigSet) -> SetView {
    SetView {
        config_set_id: set.id().map(|id| id.to_string()).unwrap_or_default(),
        name: set.name.clone(),
        description: set.description.clone(),
        customer_id: set.customer_id.clone(),
        sending_enabled: set.sending_enabled,
        reputation_tracking_enabled: set.reputation_tracking_enabled,
        suppression_options: set.suppression_options().name(),
        tags: set.tags.clone(),
        created_at: Millis(set.created_at),
        event_destinations: set.destinations.iter().map(|dest| DestinationView::of(account, dest)).collect(),
    }
}

#[derive(Serialize, ToSchema)]
struct One {
    configuration_set: SetView,
}

/// The set of a path.
pub(super) fn set_id(text: &str) -> Result<ConfigSetId, Problem> {
    id(text, Code::ConfigSetNotFound, "configuration set")
}

pub(super) fn find(account: &AccountConfig, id: ConfigSetId) -> Result<&ConfigSet, Problem> {
    account.config_set_by_id(id).ok_or_else(|| Problem::new(Code::ConfigSetNotFound, "no such configuration set"))
}

/// Create a configuration set; an account has at most 100.
#[utoipa::path(post, path = "/configuration-sets", tag = "configuration sets", request_body = SetRequest,
    responses((status = 201, description = "the set", body = inline(One)), (status = 400, description = "INVALID_REQUEST, CONFIG_SET_LIMIT_REACHED"),
        (status = 409, description = "CONFIG_SET_NAME_TAKEN")))]
pub(super) async fn create(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    stamp: Stamp,
    Json(request): Json<SetRequest>,
) -> Result<Response, Problem> {
    let options = request.check()?;
    let name = request.name.ok_or_else(|| invalid("name is needed"))?;
    let set_id = ConfigSetId(fresh());
    let set = ConfigSet {
        config_set_id: set_id.bytes().to_vec(),
        name,
        description: request.description,
        customer_id: request.customer_id,
        sending_enabled: request.sending_enabled.unwrap_or(true),
        reputation_tracking_enabled: request.reputation_tracking_enabled.unwrap_or(true),
        suppression_options: options.unwrap_or(SuppressionOptions::BounceAndComplaint) as i32,
        tags: request.tags.unwrap_or_default(),
        ..ConfigSet::default()
    };
    let account = owner.account.id();
    ingest.command(account, stamp, Change::CreateConfigSet(set)).await?;
    let config = ingest.account(account)?;
    Ok(created(One { configuration_set: view(&config, find(&config, set_id)?) }))
}

#[derive(Deserialize)]
pub(super) struct ListQuery {
    limit: Option<String>,
    cursor: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct Sets {
    configuration_sets: Vec<SetView>,
    next_cursor: Option<String>,
}

/// List configuration sets, by name.
#[utoipa::path(get, path = "/configuration-sets", tag = "configuration sets",
    params(("limit" = Option<u16>, Query, description = "1 to 1000"), ("cursor" = Option<String>, Query)),
    responses((status = 200, description = "sets", body = inline(Sets))))]
pub(super) async fn list(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    Query(query): Query<ListQuery>,
) -> Result<Response, Problem> {
    let limit = page(query.limit.as_deref())?;
    let account = ingest.account(owner.account.id())?;
    let after = query.cursor.unwrap_or_default();
    let mut found = account.config_sets.iter().filter(|set| set.name > after);
    let sets: Vec<_> = found.by_ref().take(limit).collect();
    let next_cursor = found.next().and(sets.last()).map(|last| last.name.clone());
    Ok(ok(Sets { configuration_sets: sets.into_iter().map(|set| view(&account, set)).collect(), next_cursor }))
}

/// Show a configuration set.
#[utoipa::path(get, path = "/configuration-sets/{config_set_id}", tag = "configuration sets", params(("config_set_id" = String, Path)),
    responses((status = 200, description = "the set", body = inline(One)), (status = 404, description = "CONFIG_SET_NOT_FOUND")))]
pub(super) async fn get(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    Path(set): Path<String>,
) -> Result<Response, Problem> {
    let account = ingest.account(owner.account.id())?;
    Ok(ok(One { configuration_set: view(&account, find(&account, set_id(&set)?)?) }))
}

/// Change a configuration set; what is absent stays.
#[utoipa::path(patch, path = "/configuration-sets/{config_set_id}", tag = "configuration sets", params(("config_set_id" = String, Path)),
    request_body = SetRequest, responses((status = 200, description = "the set", body = inline(One)), (status = 404, description = "CONFIG_SET_NOT_FOUND"),
        (status = 409, description = "CONFIG_SET_NAME_TAKEN")))]
pub(super) async fn patch(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    Path(set): Path<String>,
    stamp: Stamp,
    Json(request): Json<SetRequest>,
) -> Result<Response, Problem> {
    let set = set_id(&set)?;
    let options = request.check()?;
    let patch = ConfigSetPatch {
        config_set_id: set.bytes().to_vec(),
        name: request.name,
        description: request.description,
        customer_id: request.customer_id,
        sending_enabled: request.sending_enabled,
        reputation_tracking_enabled: request.reputation_tracking_enabled,
        suppression_options: options.map(|options| options as i32),
        has_tags: request.tags.is_some(),
        tags: request.tags.unwrap_or_default(),
    };
    let account = owner.account.id();
    ingest.command(account, stamp, Change::PatchConfigSet(patch)).await?;
    let config = ingest.account(account)?;
    Ok(ok(One { configuration_set: view(&config, find(&config, set)?) }))
}

/// Delete a configuration set with its destinations.
#[utoipa::path(delete, path = "/configuration-sets/{config_set_id}", tag = "configuration sets", params(("config_set_id" = String, Path)),
    responses((status = 200, description = "gone"), (status = 404, description = "CONFIG_SET_NOT_FOUND")))]
pub(super) async fn delete(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    Path(set): Path<String>,
    stamp: Stamp,
) -> Result<Response, Problem> {
    let change = Change::DeleteConfigSet(set_id(&set)?.bytes().to_vec());
    ingest.command(owner.account.id(), stamp, change).await?;
    Ok(ok(Nothing {}))
}
