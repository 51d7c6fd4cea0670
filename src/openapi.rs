//! The API's document, gathered from the routes themselves, and a page to read it.

use std::sync::LazyLock;

use axum::Json;
use axum::response::Html;
use sendtrail_ingest::Ingest;
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
const EVERYWHERE: [(&str, &str); 3] = [
    ("401", "MISSING_AUTH, INVALID_KEY_FORMAT, KEY_NOT_FOUND, KEY_INACTIVE"),
    ("500", "INTERNAL_ERROR"),
    ("503", "UNAVAILABLE, DB_UNAVAILABLE; with Retry-After"),
];

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
    let document = OpenApiBuilder::new()
        .info(info)
        .components(Some(components))
        .security(Some([SecurityRequirement::new("key", [""; 0])]))
        .build();
    let (_, of_ingest) = ingest.split_for_parts();
    let (_, of_query) = query.split_for_parts();
    let mut document = document.merge_from(of_ingest).merge_from(of_query);
    for item in document.paths.paths.values_mut() {
        let methods = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch];
        methods.into_iter().flatten().for_each(complete);
    }
    document
}

/// Says what goes for every route: a success says so, an error has one form.
fn complete(operation: &mut Operation) {
    let responses = &mut operation.responses.responses;
    for (status, description) in EVERYWHERE {
        let response = || RefOr::T(ResponseBuilder::new().description(description).build());
        responses.entry(status.to_owned()).or_insert_with(response);
    }
    for (status, response) in responses {
        let RefOr::T(response) = response else { continue };
        let told = response.content.swap_remove(JSON);
        let schema =
            if status.starts_with('2') { success(told) } else { Ref::from_schema_name(problem::Body::name()).into() };
        response.content.insert(JSON.into(), RefOr::T(ContentBuilder::new().schema(Some(schema)).build()));
    }
}

/// `{"success":true}` and the fields of an answer.
fn success(told: Option<RefOr<Content>>) -> RefOr<Schema> {
    let flag = ObjectBuilder::new().property("success", bool::schema()).required("success").build();
    match told {
        Some(RefOr::T(Content { schema: Some(fields), .. })) => {
            Schema::from(AllOfBuilder::new().item(flag).item(fields).build()).into()
        }
        _ => Schema::from(flag).into(),
    }
}

/// The routes without what serves them.
fn documented_routes() -> (OpenApiRouter<Ingest>, OpenApiRouter<Query>) {
    let ingest = OpenApiRouter::new()
        .nest("/api/v1/partner/email", sendtrail_ingest::partner_routes())
        .nest("/api/v1/admin", sendtrail_ingest::admin_routes());
    let query = OpenApiRouter::new()
        .nest("/api/v1/partner/email", sendtrail_query_api::partner_routes())
        .nest("/api/v1/admin", sendtrail_query_api::admin_routes());
    (ingest, query)
}
