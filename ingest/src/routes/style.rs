//! What each surface tells when something is wrong, in the form that its clients know.

use axum::Json;
use axum::extract::Request;
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sendtrail_schemas::problem::Problem;
use serde::Serialize;
use utoipa::ToSchema;

/// What S3's surface tells, beside its `{"success":true,"data"}`. The seed shows no error; ours.
#[derive(Serialize, ToSchema)]
pub struct SendcommsProblem {
    /// False.
    success: bool,
    error: SendcommsError,
}

/// What went wrong.
#[derive(Serialize, ToSchema)]
struct SendcommsError {
    /// The stable code.
    code: &'static str,
    /// For people; may change.
    message: String,
}

/// What S4's surface tells. The seed names codes and shows no body; ours.
#[derive(Serialize, ToSchema)]
pub struct ZmailerProblem {
    /// False.
    success: bool,
    /// For people; may change.
    error: String,
    /// The stable code.
    code: &'static str,
}

/// Tells problems as S3 does.
pub async fn sendcomms(request: Request, next: Next) -> Response {
    let tell = |problem: &Problem| {
        let error = SendcommsError { code: problem.code.name(), message: problem.message.clone() };
        Json(SendcommsProblem { success: false, error }).into_response()
    };
    restyled(next.run(request).await, tell)
}

/// Tells problems as S4 does.
pub async fn zmailer(request: Request, next: Next) -> Response {
    let tell = |problem: &Problem| {
        let (error, code) = (problem.message.clone(), problem.code.name());
        Json(ZmailerProblem { success: false, error, code }).into_response()
    };
    restyled(next.run(request).await, tell)
}

fn restyled(response: Response, tell: impl FnOnce(&Problem) -> Response) -> Response {
    let Some(problem) = response.extensions().get::<Problem>() else { return response };
    let mut told = tell(problem);
    *told.status_mut() = response.status();
    if let Some(seconds) = response.headers().get(header::RETRY_AFTER) {
        told.headers_mut().insert(header::RETRY_AFTER, seconds.clone());
    }
    told
}
