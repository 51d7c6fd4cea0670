//! Recipients of whom nothing may be kept (GDPR, article 17).

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use sendtrail_schemas::account::Erasure;
use sendtrail_schemas::address;
use sendtrail_schemas::directory::KeyOwner;
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::problem::{Code, Problem};
use sendtrail_schemas::record::{Change, EraseRecipient};
use sendtrail_schemas::time::Millis;
use sendtrail_schemas::web::{Path, account_id, ok};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::fresh;
use crate::Ingest;
use crate::submit::Stamp;

#[derive(Serialize, ToSchema)]
struct ErasureView {
    erasure_id: String,
    /// `PENDING` until it has reached every store, then `ERASED`.
    status: &'static str,
    requested_at: Millis,
    erased_at: Option<Millis>,
    /// Rows of the archive whose personal fields were cleared.
    rows: u64,
}

fn view(erasure: &Erasure) -> ErasureView {
    ErasureView {
        erasure_id: Uuid::from_slice(&erasure.erasure_id).unwrap_or_default().to_string(),
        status: if erasure.erased_at.is_some() { "ERASED" } else { "PENDING" },
        requested_at: Millis(erasure.requested_at),
        erased_at: erasure.erased_at.map(Millis),
        rows: erasure.rows,
    }
}

#[derive(Serialize, ToSchema)]
struct One {
    erasure: ErasureView,
}

#[derive(Serialize, ToSchema)]
struct Erasures {
    /// The newest first.
    erasures: Vec<ErasureView>,
}

impl Ingest {
    async fn erase(&self, account: AccountId, stamp: Stamp, recipient: String) -> Result<Response, Problem> {
        if !address::is_valid(&recipient) {
            return Err(Problem::new(Code::InvalidParam, format!("{recipient:?} is not an e-mail address")));
        }
        let erasure_id = fresh().as_bytes().to_vec();
        let change = EraseRecipient { erasure_id: erasure_id.clone(), recipient };
        self.command(account, stamp, Change::EraseRecipient(change)).await?;
        Ok((StatusCode::ACCEPTED, self.shown_erasure(account, &erasure_id)?).into_response())
    }

    fn shown_erasure(&self, account: AccountId, id: &[u8]) -> Result<Response, Problem> {
        let config = self.account(account)?;
        let found = config.erasures.iter().find(|erasure| erasure.erasure_id == id);
        let erasure = found.ok_or_else(|| Problem::new(Code::NotFound, "no such erasure, or it is long over"))?;
        Ok(ok(One { erasure: view(erasure) }))
    }

    fn find_erasure(&self, account: AccountId, id: &str) -> Result<Response, Problem> {
        let id = Uuid::parse_str(id);
        let id = id.map_err(|_| Problem::new(Code::InvalidParam, "erasure_id is not an identifier"))?;
        self.shown_erasure(account, id.as_bytes())
    }

    fn list_erasures(&self, account: AccountId) -> Result<Response, Problem> {
        let config = self.account(account)?;
        Ok(ok(Erasures { erasures: config.erasures.iter().rev().map(view).collect() }))
    }
}

/// Erase a recipient: their suppression at once, and whatever is personal in events received before. The rows stay, without
/// it, and so does every count. What comes late of messages from before is kept without it too. Mail sent afterwards is
/// another matter.
#[utoipa::path(delete, path = "/recipients/{email}", tag = "recipients", params(("email" = String, Path)),
    responses((status = 202, description = "the erasure, which goes on", body = inline(One)), (status = 400, description = "INVALID_PARAM"),
        (status = 409, description = "LEGAL_HOLD"), (status = 429, description = "ERASURE_LIMIT_REACHED")))]
pub(super) async fn delete(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    Path(email): Path<String>,
    stamp: Stamp,
) -> Result<Response, Problem> {
    ingest.erase(owner.account.id(), stamp, email).await
}

/// List the erasures of the last 15 days, and those under way.
#[utoipa::path(get, path = "/erasures", tag = "recipients",
    responses((status = 200, description = "erasures", body = inline(Erasures))))]
pub(super) async fn list(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
) -> Result<Response, Problem> {
    ingest.list_erasures(owner.account.id())
}

/// Show how far an erasure is.
#[utoipa::path(get, path = "/erasures/{erasure_id}", tag = "recipients", params(("erasure_id" = String, Path)),
    responses((status = 200, description = "the erasure", body = inline(One)), (status = 400, description = "INVALID_PARAM"),
        (status = 404, description = "NOT_FOUND")))]
pub(super) async fn get(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    Path(erasure): Path<String>,
) -> Result<Response, Problem> {
    ingest.find_erasure(owner.account.id(), &erasure)
}

/// Erase a recipient of an account.
#[utoipa::path(delete, path = "/accounts/{account_id}/recipients/{email}", tag = "admin", operation_id = "admin_erase_recipient",
    params(("account_id" = String, Path), ("email" = String, Path)),
    responses((status = 202, description = "the erasure, which goes on", body = inline(One)), (status = 400, description = "INVALID_PARAM"),
        (status = 404, description = "PARTNER_NOT_FOUND"), (status = 409, description = "LEGAL_HOLD"),
        (status = 429, description = "ERASURE_LIMIT_REACHED")))]
pub(super) async fn admin_delete(
    State(ingest): State<Ingest>,
    Path((account, email)): Path<(String, String)>,
    stamp: Stamp,
) -> Result<Response, Problem> {
    ingest.erase(account_id(&account)?, stamp, email).await
}

/// List an account's erasures of the last 15 days, and those under way.
#[utoipa::path(get, path = "/accounts/{account_id}/erasures", tag = "admin", operation_id = "admin_list_erasures",
    params(("account_id" = String, Path)),
    responses((status = 200, description = "erasures", body = inline(Erasures)), (status = 404, description = "PARTNER_NOT_FOUND")))]
pub(super) async fn admin_list(State(ingest): State<Ingest>, Path(account): Path<String>) -> Result<Response, Problem> {
    ingest.list_erasures(account_id(&account)?)
}
