//! The API's document, gathered from the routes themselves, and a page to read it.

use std::sync::LazyLock;

use axum::Json;
use axum::response::Html;
use sendtrail_ingest::Ingest;
use sendtrail_ingest::style::{SendcommsProblem, ZmailerProblem};
use sendtrail_query_api::Query;
use sendtrail_schemas::problem;
use utoipa::openapi::path::Operation;
use utoipa::openapi::schema::{AllOfBuilder, Schema};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{
    Components, Content, ContentBuilder, InfoBuilder, ObjectBuilder, OpenApi, OpenApiBuilder, Ref, RefOr,
    ResponseBuilder, SecurityRequirement,
};
use utoipa::{PartialSchema, ToSchema};
use utoipa_axum::router::OpenApiRouter;

const JSON: &str = "application/json";

/// Answers of every route that asks for a key.
const EVERYWHERE: [(&str, &str); 4] = [
    ("400", "INVALID_REQUEST, INVALID_PARAM"),
    ("401", "MISSING_AUTH, INVALID_KEY_FORMAT, KEY_NOT_FOUND, KEY_INACTIVE"),
    ("500", "INTERNAL_ERROR"),
    ("503", "UNAVAILABLE, DB_UNAVAILABLE; with Retry-After"),
];

/// Answers of every route that an account's key opens.
const BY_KEY: [(&str, &str); 2] =
    [("403", "INSUFFICIENT_SCOPE, IP_BLOCKED"), ("429", "RATE_LIMITED; with Retry-After")];

/// Answers of every route that takes a body.
const WITH_A_BODY: [(&str, &str); 3] =
    [("408", "REQUEST_TIMEOUT"), ("413", "PAYLOAD_TOO_LARGE"), ("415", "UNSUPPORTED_MEDIA_TYPE")];

/// The document as JSON.
pub async fn document() -> Json<&'static OpenApi> {
    static DOCUMENT: LazyLock<OpenApi> = LazyLock::new(build);
    Json(&DOCUMENT)
}

/// A page to read it.
pub async fn page() -> Html<&'static str> {
    Html(include_str!("docs.html"))
}

fn build() -> OpenApi {
    let (ingest, query) = documented_routes();
    let info = InfoBuilder::new()
        .title("Sendtrail")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some("Send mail, stream delivery events, and know what happened to every message."))
        .build();
    let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    let mut components = Components::new();
    components.security_schemes.insert("key".into(), bearer.into());
    components.schemas.insert(problem::Body::name().into(), problem::Body::schema());
    components.schemas.insert(SendcommsProblem::name().into(), SendcommsProblem::schema());
    components.schemas.insert(ZmailerProblem::name().into(), ZmailerProblem::schema());
    let mut inner = Vec::new();
    SendcommsProblem::schemas(&mut inner);
    components.schemas.extend(inner);
    let document = OpenApiBuilder::new()
        .info(info)
        .components(Some(components))
        .security(Some([SecurityRequirement::new("key", [""; 0])]))
        .build();
    let (_, of_ingest) = ingest.split_for_parts();
    let (_, of_query) = query.split_for_parts();
    let mut document = document.merge_from(of_ingest).merge_from(of_query);
    for (path, item) in &mut document.paths.paths {
        let methods = [
            ("get", &mut item.get),
            ("put", &mut item.put),
            ("post", &mut item.post),
            ("delete", &mut item.delete),
            ("patch", &mut item.patch),
        ];
        for (method, operation) in methods {
            if let Some(operation) = operation {
                operation.operation_id = Some(operation_id(method, path));
                complete(path, operation);
            }
        }
    }
    document
}

/// A name for an operation, from its method and path: `get_partner_email_emails_by_message_id`.
fn operation_id(method: &str, path: &str) -> String {
    let mut id = method.to_owned();
    // What is at the root would have the name of what is below the API's.
    let below = path.strip_prefix("/api/v1").unwrap_or_else(|| {
        id.push_str("_root");
        path
    });
    for segment in below.split('/').filter(|segment| !segment.is_empty()) {
        let parameter = segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
        id.push_str(if parameter.is_some() { "_by_" } else { "_" });
        id.push_str(&parameter.unwrap_or(segment).replace('-', "_"));
    }
    id
}

/// The form of errors below a path.
fn problem_of(path: &str) -> std::borrow::Cow<'static, str> {
    match path {
        path if path.starts_with("/api/v1/webhooks") => SendcommsProblem::name(),
        path if path.starts_with("/webhooks") => ZmailerProblem::name(),
        _ => problem::Body::name(),
    }
}

/// Says what goes for every route: a success says so, an error has one form.
fn complete(path: &str, operation: &mut Operation) {
    // Of the one the token is in the path, of the other a signature in the query.
    let opens_itself = ["/api/v1/inbound", "/api/v1/exports"].iter().any(|of| path.starts_with(of));
    if opens_itself {
        operation.security = Some(Vec::new());
    }
    let responses = &mut operation.responses.responses;
    let with_a_body = WITH_A_BODY.iter().filter(|_| operation.request_body.is_some());
    let by_key = !path.starts_with("/api/v1/admin") && !opens_itself;
    let by_key = BY_KEY.iter().filter(|_| by_key);
    for (status, description) in EVERYWHERE.iter().chain(with_a_body).chain(by_key) {
        let response = || RefOr::T(ResponseBuilder::new().description(*description).build());
        responses.entry((*status).to_owned()).or_insert_with(response);
    }
    for (status, response) in responses {
        let RefOr::T(response) = response else { continue };
        // A file, a text, or nothing.
        let is_other = !response.content.is_empty() && !response.content.contains_key(JSON);
        if is_other || matches!(&**status, "304" | "412" | "416") {
            continue;
        }
        let told = match response.content.swap_remove(JSON) {
            Some(RefOr::T(Content { schema, .. })) => schema,
            _ => None,
        };
        let schema = if status.starts_with('2') {
            success(told)
        } else {
            told.unwrap_or_else(|| Ref::from_schema_name(problem_of(path)).into())
        };
        response.content.insert(JSON.into(), RefOr::T(ContentBuilder::new().schema(Some(schema)).build()));
    }
}

/// `{"success":true}` and the fields of an answer.
fn success(fields: Option<RefOr<Schema>>) -> RefOr<Schema> {
    let flag = ObjectBuilder::new().property("success", bool::schema()).required("success").build();
    match fields {
        Some(fields) => Schema::from(AllOfBuilder::new().item(flag).item(fields).build()).into(),
        None => Schema::from(flag).into(),
    }
}

/// The routes without what serves them.
fn documented_routes() -> (OpenApiRouter<Ingest>, OpenApiRouter<Query>) {
    let ingest = OpenApiRouter::new()
        .nest("/api/v1/partner/email", sendtrail_ingest::partner_routes())
        .nest("/api/v1/admin", sendtrail_ingest::admin_routes())
        .nest("/api/v1/webhooks", sendtrail_ingest::sendcomms_routes())
        .nest("/api/v1/inbound", sendtrail_ingest::inbound_routes())
        .merge(sendtrail_ingest::zmailer_routes());
    let query = OpenApiRouter::new()
        .nest("/api/v1/partner/email", sendtrail_query_api::partner_routes())
        .nest("/api/v1/admin", sendtrail_query_api::admin_routes())
        .nest("/api/v1", sendtrail_query_api::link_routes());
    (ingest, query)
}
