//! What is told without a key: health, metrics, and the API's document with a page to read it.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use metrics::gauge;
use metrics_exporter_prometheus::PrometheusHandle;
use sendtrail_eventlog::{EventLog, Pulse};
use sendtrail_ingest::sources::Status;
use sendtrail_processor::SinkHandle;
use sendtrail_processor::clickhouse::ClickHouseHandle;
use sendtrail_processor::delivery::Waits;
use sendtrail_schemas::problem::{Code, Problem};
use sendtrail_schemas::time::Millis;
use serde::Serialize;

use crate::openapi;

/// What health is judged by.
#[derive(Clone)]
pub struct Health {
    /// The log.
    pub log: Arc<dyn EventLog>,
    /// How far processors are.
    pub pulses: Vec<Arc<Pulse>>,
    /// What shows events to readers, if it is here.
    pub sink: Option<Arc<SinkHandle>>,
    /// The sink into ClickHouse, if there is one, and whether answers depend on it.
    pub clickhouse: Option<(ClickHouseHandle, bool)>,
    /// Sources, which others do not depend on.
    pub sources: Vec<(String, Status)>,
    /// Why mail waits, if it is delivered here.
    pub delivery: Option<Waits>,
    /// Metrics.
    pub metrics: PrometheusHandle,
}

/// Routes without keys.
pub fn routes(health: Health) -> Router {
    Router::new()
        .route("/health", get(show))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(openapi::document))
        .route("/docs", get(openapi::page))
        .with_state(health)
}

#[derive(Serialize)]
struct Shown {
    status: &'static str,
    checks: BTreeMap<&'static str, String>,
    timestamp: Millis,
}

impl Health {
    /// What there is to tell of each part, and whether all that is needed is well.
    fn checks(&self) -> (BTreeMap<&'static str, String>, bool) {
        let told = |failure: Option<String>| failure.unwrap_or_else(|| "ok".into());
        let status = self.log.status();
        let full = (status.disk_bytes >= status.disk_budget).then(|| "the disk budget is used up".to_owned());
        let mut checks = BTreeMap::from([
            // S4 names these two. Nothing has to be set up for mail to go out; why it waits, if it does, is told apart.
            ("database", told(self.sink.as_ref().and_then(|sink| sink.failure()))),
            ("ses_configured", "ok".to_owned()),
            ("log", told(status.failed.or(full))),
            ("processor", told(first_of(&self.pulses, Pulse::stuck))),
        ]);
        let mut well = checks.values().all(|check| check == "ok");
        if let Some((clickhouse, needed)) = &self.clickhouse {
            let failure = clickhouse.failure();
            well &= failure.is_none() || !needed;
            checks.insert("clickhouse", told(failure));
        }
        // Everything else goes on.
        if let Some(delivery) = &self.delivery {
            checks.insert("delivery", told(delivery.failure()));
        }
        if let Some(waiting) = first_of(&self.pulses, Pulse::webhooks_waiting) {
            checks.insert("webhooks", waiting);
        }
        if !self.sources.is_empty() {
            let mut failures = self.sources.iter();
            let failure = failures.find_map(|(name, status)| Some(format!("{name}: {}", status.failure()?)));
            checks.insert("sources", told(failure));
        }
        (checks, well)
    }
}

/// What the first partition tells that tells anything.
fn first_of(pulses: &[Arc<Pulse>], why: fn(&Pulse) -> Option<String>) -> Option<String> {
    let mut pulses = pulses.iter().enumerate();
    pulses.find_map(|(number, pulse)| Some(format!("partition {number}: {}", why(pulse)?)))
}

/// 200 when all is well, 503 with the part that fails.
async fn show(State(health): State<Health>) -> Response {
    let (checks, well) = health.checks();
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

/// Nothing is at this path.
pub async fn not_found(uri: Uri) -> Problem {
    Problem::new(Code::NotFound, format!("there is nothing at {}", uri.path()))
}

/// Something is at this path, but not with this method.
pub async fn method_not_allowed(uri: Uri) -> Problem {
    Problem::new(Code::MethodNotAllowed, format!("{} does not take this method", uri.path()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_partition_that_tells_something_is_named() {
        let pulses: Vec<Arc<Pulse>> = (0..3).map(|_| Arc::default()).collect();
        assert_eq!(first_of(&pulses, Pulse::stuck), None);
        pulses[2].halt("broken".into());
        pulses[1].trouble(Some("full".into()));
        pulses[0].webhooks_wait(Some("slow".into()));
        assert_eq!(first_of(&pulses, Pulse::stuck).as_deref(), Some("partition 1: full"));
        assert_eq!(first_of(&pulses, Pulse::webhooks_waiting).as_deref(), Some("partition 0: slow"));
    }
}
