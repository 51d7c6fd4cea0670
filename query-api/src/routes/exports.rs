//! Exports: asked for, looked at, cancelled, downloaded.

use axum::Extension;
use axum::body::Body as HttpBody;
use axum::extract::{Request as HttpRequest, State};
use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, CONTENT_DISPOSITION, RANGE};
use axum::response::{IntoResponse, Response};
use sendtrail_schemas::directory::KeyOwner;
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::problem::{Code, Problem};
use sendtrail_schemas::web::{Nothing, Path, Query as Params, account_id, created, id, invalid, object, ok};
use serde::Deserialize;
use tower_http::services::ServeFile;
use utoipa::ToSchema;
use uuid::Uuid;

mod form;

use super::Body;
use crate::Query;
use crate::exports::{Asker, Exports};
use form::{AllExports, ExportRequest, OneExport, view};

impl Query {
    fn exports(&self) -> Result<&Exports, Problem> {
        let none = || Problem::new(Code::DbUnavailable, "this server sees no archive to export from").retry_after(30);
        self.parts().exports.as_ref().ok_or_else(none)
    }

    async fn start_export(&self, asker: Asker, body: &[u8]) -> Result<Response, Problem> {
        let exports = self.exports()?;
        let request: ExportRequest = object(body)?;
        let account = match (asker, &request.account_id) {
            (Asker::Account(_), Some(_)) => return Err(invalid("account_id is the administrator's to name")),
            (Asker::Account(account), None) => Some(account),
            (Asker::Operator, Some(text)) => Some(self.known(text)?),
            (Asker::Operator, None) => None,
        };
        let request = request.read()?;
        let (starting, shown) = (exports.clone(), exports.clone());
        let job = tokio::task::spawn_blocking(move || starting.start(asker, account, request));
        let job = job.await.map_err(|_| Problem::internal())??;
        Ok(created(OneExport { export: view(&shown, &job, 0) }))
    }

    /// The account of an identifier, if there is one.
    pub(super) fn known(&self, text: &str) -> Result<AccountId, Problem> {
        let account = account_id(text)?;
        let known = self.parts().directory.account(account);
        known.map(|_| account).ok_or_else(|| Problem::new(Code::PartnerNotFound, "no such account"))
    }

    /// Does what reads or writes files beside the runtime's workers.
    async fn with_exports<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Exports) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let exports = self.exports()?.clone();
        tokio::task::spawn_blocking(move || work(&exports)).await.map_err(|_| Problem::internal())?
    }

    async fn list_exports(&self, asker: Asker) -> Result<Response, Problem> {
        let views = self.with_exports(move |exports| {
            let all = exports.list(Some(asker))?;
            Ok(all.iter().map(|job| view(exports, job, 0)).collect())
        });
        Ok(ok(AllExports { exports: views.await? }))
    }

    async fn show_export(&self, asker: Asker, text: &str) -> Result<Response, Problem> {
        let id = export_id(text)?;
        let shown = self.with_exports(move |exports| {
            let (job, running) = exports.get(asker, id).ok_or_else(missing)?;
            Ok(view(exports, &job, running))
        });
        Ok(ok(OneExport { export: shown.await? }))
    }

    async fn remove_export(&self, asker: Asker, text: &str) -> Result<Response, Problem> {
        let id = export_id(text)?;
        let removed = self.with_exports(move |exports| Ok(exports.remove(asker, id)?)).await?;
        if removed { Ok(ok(Nothing {})) } else { Err(missing()) }
    }

    async fn download(&self, asker: Asker, text: &str, name: &str, request: HttpRequest) -> Result<Response, Problem> {
        let (id, wanted) = (export_id(text)?, name.to_owned());
        let path = self.with_exports(move |exports| {
            let (job, _) = exports.get(asker, id).ok_or_else(missing)?;
            exports.file(&job, &wanted).ok_or_else(missing)
        });
        served(path.await?, name, request).await
    }
}

fn missing() -> Problem {
    Problem::new(Code::NotFound, "no such export, or no such file in it")
}

fn export_id(text: &str) -> Result<Uuid, Problem> {
    id(text, Code::NotFound, "export")
}

/// A file, whole or in part (RFC 9110, ranges).
async fn served(path: std::path::PathBuf, name: &str, request: HttpRequest) -> Result<Response, Problem> {
    let mut plain = HttpRequest::new(HttpBody::empty());
    (*plain.method_mut(), *plain.headers_mut()) = (request.method().clone(), request.headers().clone());
    // Several parts at once are not served; all of it is, then (RFC 9110, 14.2).
    if plain.headers().get(RANGE).is_some_and(|range| range.as_bytes().contains(&b',')) {
        plain.headers_mut().remove(RANGE);
    }
    let served = ServeFile::new(path).try_call(plain).await.map_err(|cause| {
        tracing::error!(%cause, "a file of an export cannot be read");
        Problem::internal()
    })?;
    let mut response = served.map(HttpBody::new).into_response();
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
    if let Ok(value) = HeaderValue::try_from(format!("attachment; filename=\"{name}\"")) {
        headers.insert(CONTENT_DISPOSITION, value);
    }
    Ok(response)
}

/// Bytes.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "it stands for a body that is no JSON")]
struct FileBytes(Vec<u8>);

/// Begin an export; its files are there when its status is `done`, for seven days.
#[utoipa::path(post, path = "/exports", tag = "exports", request_body = ExportRequest,
    responses((status = 201, description = "it waits for its turn", body = inline(OneExport)), (status = 400, description = "INVALID_REQUEST"),
        (status = 429, description = "RATE_LIMITED"), (status = 503, description = "DB_UNAVAILABLE")))]
pub(super) async fn start(
    State(query): State<Query>,
    Extension(owner): Extension<KeyOwner>,
    Body(body): Body,
) -> Result<Response, Problem> {
    query.start_export(Asker::Account(owner.account.id()), &body).await
}

/// List the exports, the newest first.
#[utoipa::path(get, path = "/exports", tag = "exports",
    responses((status = 200, description = "exports", body = inline(AllExports)), (status = 503, description = "DB_UNAVAILABLE")))]
pub(super) async fn list(
    State(query): State<Query>,
    Extension(owner): Extension<KeyOwner>,
) -> Result<Response, Problem> {
    query.list_exports(Asker::Account(owner.account.id())).await
}

/// Show how far an export is, and its files.
#[utoipa::path(get, path = "/exports/{export_id}", tag = "exports", params(("export_id" = String, Path)),
    responses((status = 200, description = "the export", body = inline(OneExport)), (status = 404, description = "NOT_FOUND")))]
pub(super) async fn get(
    State(query): State<Query>,
    Extension(owner): Extension<KeyOwner>,
    Path(export): Path<String>,
) -> Result<Response, Problem> {
    query.show_export(Asker::Account(owner.account.id()), &export).await
}

/// Cancel an export that is under way, or delete one that is over.
#[utoipa::path(delete, path = "/exports/{export_id}", tag = "exports", params(("export_id" = String, Path)),
    responses((status = 200, description = "it is cancelled, or gone"), (status = 404, description = "NOT_FOUND")))]
pub(super) async fn remove(
    State(query): State<Query>,
    Extension(owner): Extension<KeyOwner>,
    Path(export): Path<String>,
) -> Result<Response, Problem> {
    query.remove_export(Asker::Account(owner.account.id()), &export).await
}

/// Download a file of an export. Takes `Range`.
#[utoipa::path(get, path = "/exports/{export_id}/files/{name}", tag = "exports",
    params(("export_id" = String, Path), ("name" = String, Path)),
    responses((status = 200, description = "the file, of its own type", content_type = "application/octet-stream", body = inline(FileBytes)),
        (status = 206, description = "a part of it", content_type = "application/octet-stream", body = inline(FileBytes)),
        (status = 304, description = "it is as it was (If-Modified-Since)"), (status = 404, description = "NOT_FOUND"),
        (status = 412, description = "it is newer (If-Unmodified-Since)"), (status = 416, description = "it has no such part")))]
pub(super) async fn file(
    State(query): State<Query>,
    Extension(owner): Extension<KeyOwner>,
    Path((export, name)): Path<(String, String)>,
    request: HttpRequest,
) -> Result<Response, Problem> {
    query.download(Asker::Account(owner.account.id()), &export, &name, request).await
}

/// Begin an export of an account, or of all.
#[utoipa::path(post, path = "/exports", tag = "admin", operation_id = "admin_start_export", request_body = ExportRequest,
    responses((status = 201, description = "it waits for its turn", body = inline(OneExport)), (status = 400, description = "INVALID_REQUEST"),
        (status = 404, description = "PARTNER_NOT_FOUND"), (status = 429, description = "RATE_LIMITED"),
        (status = 503, description = "DB_UNAVAILABLE")))]
pub(super) async fn admin_start(State(query): State<Query>, Body(body): Body) -> Result<Response, Problem> {
    query.start_export(Asker::Operator, &body).await
}

/// List the operator's exports, the newest first.
#[utoipa::path(get, path = "/exports", tag = "admin", operation_id = "admin_list_exports",
    responses((status = 200, description = "exports", body = inline(AllExports)), (status = 503, description = "DB_UNAVAILABLE")))]
pub(super) async fn admin_list(State(query): State<Query>) -> Result<Response, Problem> {
    query.list_exports(Asker::Operator).await
}

/// Show how far an operator's export is, and its files.
#[utoipa::path(get, path = "/exports/{export_id}", tag = "admin", operation_id = "admin_get_export",
    params(("export_id" = String, Path)),
    responses((status = 200, description = "the export", body = inline(OneExport)), (status = 404, description = "NOT_FOUND")))]
pub(super) async fn admin_get(State(query): State<Query>, Path(export): Path<String>) -> Result<Response, Problem> {
    query.show_export(Asker::Operator, &export).await
}

/// Cancel an operator's export that is under way, or delete one that is over.
#[utoipa::path(delete, path = "/exports/{export_id}", tag = "admin", operation_id = "admin_remove_export",
    params(("export_id" = String, Path)),
    responses((status = 200, description = "it is cancelled, or gone"), (status = 404, description = "NOT_FOUND")))]
pub(super) async fn admin_remove(State(query): State<Query>, Path(export): Path<String>) -> Result<Response, Problem> {
    query.remove_export(Asker::Operator, &export).await
}

/// Download a file of an operator's export. Takes `Range`.
#[utoipa::path(get, path = "/exports/{export_id}/files/{name}", tag = "admin", operation_id = "admin_export_file",
    params(("export_id" = String, Path), ("name" = String, Path)),
    responses((status = 200, description = "the file, of its own type", content_type = "application/octet-stream", body = inline(FileBytes)),
        (status = 206, description = "a part of it", content_type = "application/octet-stream", body = inline(FileBytes)),
        (status = 304, description = "it is as it was (If-Modified-Since)"), (status = 404, description = "NOT_FOUND"),
        (status = 412, description = "it is newer (If-Unmodified-Since)"), (status = 416, description = "it has no such part")))]
pub(super) async fn admin_file(
    State(query): State<Query>,
    Path((export, name)): Path<(String, String)>,
    request: HttpRequest,
) -> Result<Response, Problem> {
    query.download(Asker::Operator, &export, &name, request).await
}

#[derive(Deserialize)]
pub(super) struct LinkParams {
    expires: i64,
    signature: String,
}

/// Download a file by the link that an export tells, which needs no key and holds for an hour. Takes `Range`.
#[utoipa::path(get, path = "/exports/{export_id}/files/{name}", tag = "exports",
    params(("export_id" = String, Path), ("name" = String, Path), ("signature" = String, Query),
        ("expires" = i64, Query, description = "until when it holds, in seconds since 1970")),
    responses((status = 200, description = "the file, of its own type", content_type = "application/octet-stream", body = inline(FileBytes)),
        (status = 206, description = "a part of it", content_type = "application/octet-stream", body = inline(FileBytes)),
        (status = 304, description = "it is as it was (If-Modified-Since)"), (status = 401, description = "KEY_NOT_FOUND: not one of ours, or past its time"),
        (status = 404, description = "NOT_FOUND"),
        (status = 412, description = "it is newer (If-Unmodified-Since)"), (status = 416, description = "it has no such part")))]
pub(super) async fn linked(
    State(query): State<Query>,
    Path((export, name)): Path<(String, String)>,
    Params(params): Params<LinkParams>,
    request: HttpRequest,
) -> Result<Response, Problem> {
    let (id, wanted) = (export_id(&export)?, name.clone());
    let found = query.with_exports(move |exports| Ok(exports.linked(id, &wanted, params.expires, &params.signature)));
    let found = found.await?;
    let none = || Problem::new(Code::KeyNotFound, "the link is past its time, or not one of ours");
    served(found.ok_or_else(none)?, &name, request).await
}
