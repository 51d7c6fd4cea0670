//! What is told without a key: health, metrics, and the API's document with a page to read it.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use metrics::gauge;
use metrics_exporter_prometheus::PrometheusHandle;
use sendtrail_eventlog::{EventLog, Pulse};
use sendtrail_ingest::Ingest;
use sendtrail_processor::SinkHandle;
use sendtrail_query_api::Query;
use sendtrail_schemas::problem::{Code, Problem};
use sendtrail_schemas::time::Millis;
use serde::Serialize;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{Components, InfoBuilder, OpenApi, OpenApiBuilder, SecurityRequirement};
use utoipa_axum::router::OpenApiRouter;

/// What health is judged by.
#[derive(Clone)]
pub struct Health {
    /// The log.
    pub log: Arc<dyn EventLog>,
    /// How far processors are.
    pub pulses: Vec<Arc<Pulse>>,
    /// What shows events to readers.
    pub sink: Arc<SinkHandle>,
    /// Metrics.
    pub metrics: PrometheusHandle,
}

/// Routes without keys.
pub fn routes(health: Health) -> Router {
    Router::new()
        .route("/health", get(show))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(document))
        .route("/docs", get(|| async { Html(include_str!("docs.html")) }))
        .with_state(health)
}

#[derive(Serialize)]
struct Shown {
    status: &'static str,
    checks: BTreeMap<&'static str, String>,
    timestamp: Millis,
}

impl Health {
    fn checks(&self) -> BTreeMap<&'static str, String> {
        let told = |failure: Option<String>| failure.unwrap_or_else(|| "ok".into());
        let status = self.log.status();
        let full = (status.disk_bytes >= status.disk_budget).then(|| "the disk budget is used up".to_owned());
        let mut halted = self.pulses.iter().enumerate();
        let halted = halted.find_map(|(number, pulse)| Some(format!("partition {number}: {}", pulse.halted()?)));
        BTreeMap::from([
            // S4 names these two.
            ("database", told(self.sink.failure())),
            ("ses_configured", "ok".to_owned()),
            ("log", told(status.failed.or(full))),
            ("processor", told(halted)),
        ])
    }
}

/// 200 when all is well, 503 with the part that fails.
async fn show(State(health): State<Health>) -> Response {
    let checks = health.checks();
    let well = checks.values().all(|check| check == "ok");
    let (status, word) = if well { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, "degraded") };
    (status, Json(Shown { status: word, checks, timestamp: Millis::wall() })).into_response()
}

async fn metrics(State(health): State<Health>) -> Response {
    let status = health.log.status();
    gauge!("sendtrail_log_disk_bytes").set(status.disk_bytes as f64);
    gauge!("sendtrail_log_queued_bytes").set(status.queued_bytes as f64);
    for (number, pulse) in health.pulses.iter().enumerate() {
        let lag = pulse.lag_millis() as f64 / 1_000.0;
        gauge!("sendtrail_partition_lag_seconds", "partition" => number.to_string()).set(lag);
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], health.metrics.render()).into_response()
}

async fn document() -> Json<&'static OpenApi> {
    static DOCUMENT: LazyLock<OpenApi> = LazyLock::new(openapi);
    Json(&DOCUMENT)
}

/// The API's document, gathered from the routes themselves.
fn openapi() -> OpenApi {
    let (ingest, query) = documented_routes();
    let info = InfoBuilder::new()
        .title("Sendtrail")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some("Send mail, stream delivery events, and know what happened to every message."))
        .build();
    let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    let mut components = Components::new();
    components.security_schemes.insert("key".into(), bearer.into());
    let document = OpenApiBuilder::new()
        .info(info)
        .components(Some(components))
        .security(Some([SecurityRequirement::new("key", [""; 0])]))
        .build();
    let (_, of_ingest) = ingest.split_for_parts();
    let (_, of_query) = query.split_for_parts();
    document.merge_from(of_ingest).merge_from(of_query)
}

/// The routes without what serves them, for the API's document.
fn documented_routes() -> (OpenApiRouter<Ingest>, OpenApiRouter<Query>) {
    let ingest = OpenApiRouter::new()
        .nest("/api/v1/partner/email", sendtrail_ingest::partner_routes())
        .nest("/api/v1/admin", sendtrail_ingest::admin_routes());
    let query = OpenApiRouter::new()
        .nest("/api/v1/partner/email", sendtrail_query_api::partner_routes())
        .nest("/api/v1/admin", sendtrail_query_api::admin_routes());
    (ingest, query)
}

/// Nothing is at this path.
pub async fn not_found(uri: Uri) -> Problem {
    Problem::new(Code::NotFound, format!("there is nothing at {}", uri.path()))
}

/// Something is at this path, but not with this method.
pub async fn method_not_allowed(uri: Uri) -> Problem {
    Problem::new(Code::MethodNotAllowed, format!("{} does not take this method", uri.path()))
}
