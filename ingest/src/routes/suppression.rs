//! The suppression list: addresses that must not be mailed.

use axum::Extension;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use sendtrail_schemas::account::Suppression;
use sendtrail_schemas::address;
use sendtrail_schemas::directory::KeyOwner;
use sendtrail_schemas::problem::{Code, Problem};
use sendtrail_schemas::record::Change;
use sendtrail_schemas::time::Millis;
use sendtrail_schemas::web::{Nothing, Path, Query, dated, invalid, ok, page};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::body::Json;
use crate::submit::Stamp;
use crate::{Ingest, SuppressionQuery};

const REASONS: [&str; 4] = ["BOUNCE", "COMPLAINT", "UNSUBSCRIBE", "MANUAL"];

fn reason(text: &str) -> Option<&'static str> {
    REASONS.into_iter().find(|reason| reason.eq_ignore_ascii_case(text))
}

#[derive(Serialize, ToSchema)]
struct SuppressionView {
    email: String,
    reason: String,
    details: Option<String>,
    created_at: Millis,
    event_id: Option<String>,
}

fn view(row: Suppression) -> SuppressionView {
    let Suppression { email, reason, details, created_at, event_id } = row;
    SuppressionView { email, reason, details, created_at: Millis(created_at), event_id }
}

#[derive(Deserialize)]
pub(super) struct ListQuery {
    reason: Option<String>,
    search: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct Suppressions {
    suppressions: Vec<SuppressionView>,
    next_cursor: Option<String>,
}

/// List suppressed addresses, in the order of addresses.
#[utoipa::path(get, path = "/suppression", tag = "suppression",
    params(("reason" = Option<String>, Query, description = "BOUNCE, COMPLAINT, UNSUBSCRIBE or MANUAL"),
        ("search" = Option<String>, Query, description = "a part of the address"),
        ("limit" = Option<u16>, Query, description = "1 to 1000"), ("cursor" = Option<String>, Query)),
    responses((status = 200, description = "suppressions", body = inline(Suppressions)), (status = 400, description = "INVALID_PARAM")))]
pub(super) async fn list(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    Query(query): Query<ListQuery>,
) -> Result<Response, Problem> {
    let limit = page(query.limit.as_deref())?;
    let unknown = || Problem::new(Code::InvalidParam, "reason is BOUNCE, COMPLAINT, UNSUBSCRIBE or MANUAL");
    let reason = query.reason.as_deref().map(|text| reason(text).ok_or_else(unknown)).transpose()?;
    let wanted = SuppressionQuery {
        after: query.cursor,
        reason: reason.map(Into::into),
        search: query.search.map(|search| search.to_lowercase()).filter(|search| !search.is_empty()),
        limit: limit + 1,
    };
    let account = owner.account.id();
    let as_of = ingest.settle(account).await;
    let shown = ingest.clone();
    let found = tokio::task::spawn_blocking(move || shown.parts().suppressions.list(account, &wanted));
    let mut found = found.await.map_err(|_| Problem::internal())??;
    let more = found.len() > limit;
    found.truncate(limit);
    let next_cursor = found.last().filter(|_| more).map(|last| address::fold(&last.email).into_owned());
    let shown = Suppressions { suppressions: found.into_iter().map(view).collect(), next_cursor };
    Ok(dated(ok(shown), as_of))
}

#[derive(Serialize, ToSchema)]
struct One {
    suppression: SuppressionView,
}

fn find(ingest: &Ingest, owner: &KeyOwner, email: &str) -> Result<Suppression, Problem> {
    let found = ingest.parts().suppressions.get(owner.account.id(), email)?;
    found.ok_or_else(|| Problem::new(Code::NotFound, "the address is not on the suppression list"))
}

/// Show a suppressed address.
#[utoipa::path(get, path = "/suppression/{email}", tag = "suppression", params(("email" = String, Path)),
    responses((status = 200, description = "the suppression", body = inline(One)), (status = 404, description = "NOT_FOUND")))]
pub(super) async fn get(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    Path(email): Path<String>,
) -> Result<Response, Problem> {
    let as_of = ingest.settle(owner.account.id()).await;
    // Also that there is none may be of before.
    let found = find(&ingest, &owner, &email).map(|found| ok(One { suppression: view(found) }));
    Ok(dated(found.unwrap_or_else(IntoResponse::into_response), as_of))
}

/// Why an address is suppressed.
#[derive(Deserialize, ToSchema)]
pub(super) struct SuppressionRequest {
    /// `BOUNCE`, `COMPLAINT`, `UNSUBSCRIBE` or `MANUAL` (default).
    reason: Option<String>,
    details: Option<String>,
}

/// Suppress an address, whatever its set's options; replaces an earlier entry.
#[utoipa::path(put, path = "/suppression/{email}", tag = "suppression", params(("email" = String, Path)),
    request_body = SuppressionRequest,
    responses((status = 200, description = "the suppression", body = inline(One)), (status = 400, description = "INVALID_REQUEST, INVALID_PARAM")))]
pub(super) async fn put(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    Path(email): Path<String>,
    stamp: Stamp,
    Json(request): Json<SuppressionRequest>,
) -> Result<Response, Problem> {
    if !address::is_valid(&email) {
        return Err(Problem::new(Code::InvalidParam, format!("{email:?} is not an e-mail address")));
    }
    let unknown = || invalid("reason is BOUNCE, COMPLAINT, UNSUBSCRIBE or MANUAL");
    let reason = reason(request.reason.as_deref().unwrap_or("MANUAL")).ok_or_else(unknown)?;
    if request.details.as_ref().is_some_and(|details| details.len() > 1_000) {
        return Err(invalid("details has at most 1000 bytes"));
    }
    let row =
        Suppression { email: email.clone(), reason: reason.into(), details: request.details, ..Suppression::default() };
    ingest.command(owner.account.id(), stamp, Change::PutSuppression(row)).await?;
    Ok(ok(One { suppression: view(find(&ingest, &owner, &email)?) }))
}

/// Allow an address to be mailed again.
#[utoipa::path(delete, path = "/suppression/{email}", tag = "suppression", params(("email" = String, Path)),
    responses((status = 200, description = "gone"), (status = 404, description = "NOT_FOUND")))]
pub(super) async fn delete(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    Path(email): Path<String>,
    stamp: Stamp,
) -> Result<Response, Problem> {
    ingest.command(owner.account.id(), stamp, Change::DeleteSuppression(email)).await?;
    Ok(ok(Nothing {}))
}
