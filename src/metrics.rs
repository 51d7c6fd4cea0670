//! What `/metrics` tells: every name with its unit and meaning, and how requests are measured.

use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, histogram};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;

/// Counters. Those without labels are told from the start, so that their first increase is seen.
const COUNTERS: [(&str, &str, bool); 36] = [
    ("sendtrail_events_accepted_total", "Events that POST /events took, duplicates included.", false),
    ("sendtrail_events_rejected_total", "Events that POST /events refused one by one.", false),
    ("sendtrail_events_total", "Canonical events: no duplicates, sends and changes of status included.", false),
    ("sendtrail_unreadable_bodies_total", "Times that a message's body could not be read for the moment.", false),
    ("sendtrail_messages_delivered_total", "Recipients handed to the transport.", false),
    ("sendtrail_dead_letters_total", "Records and messages set aside as dead letters.", false),
    ("sendtrail_partition_restarts_total", "Times that a partition went back to its checkpoint.", false),
    ("sendtrail_query_fallbacks_total", "Queries that the archive answered because ClickHouse did not.", false),
    ("sendtrail_archive_vacuumed_files_total", "Files deleted after they were merged.", false),
    ("sendtrail_archived_rows_total", "Rows written to Parquet files, by table.", true),
    ("sendtrail_archive_merges_total", "Merges of files, by table.", true),
    ("sendtrail_archive_seals_total", "Seals made of days that are over.", false),
    ("sendtrail_archive_seal_failures_total", "Times that the archive could not be sealed; the log says why.", false),
    ("sendtrail_erased_recipients_total", "Recipients that were erased.", false),
    ("sendtrail_erased_rows_total", "Rows of the archive whose personal fields were cleared.", false),
    ("sendtrail_erasure_failures_total", "Times that an erasure did not get on; the log says why.", false),
    ("sendtrail_exports_total", "Exports that were made.", false),
    ("sendtrail_exports_failed_total", "Exports that could not be made; the log says why.", false),
    ("sendtrail_exported_rows_total", "Rows of exports that were made.", false),
    ("sendtrail_archive_merged_rows_total", "Rows of merged files, by table.", true),
    ("sendtrail_webhook_attempts_total", "Attempts at webhooks, by what came of them.", true),
    (
        "sendtrail_webhook_health_changes_total",
        "Times that a destination was taken for another thing than before.",
        true,
    ),
    ("sendtrail_clickhouse_rows_total", "Rows inserted into ClickHouse, by table.", true),
    ("sendtrail_clickhouse_failures_total", "Inserts into ClickHouse that failed, by table.", true),
    ("sendtrail_source_messages_total", "Messages read from a Kafka source.", true),
    ("sendtrail_source_events_total", "Events that they told of.", true),
    ("sendtrail_source_unreadable_total", "Messages, or parts of one, that could not be read.", true),
    ("sendtrail_source_failures_total", "Times that a Kafka source had to begin anew.", true),
    ("sendtrail_source_gaps_total", "Records of sources passed over because others before them were missing.", false),
    ("sendtrail_rebalances_total", "Partitions that came to this server (to = here) or left it (to = away).", true),
    ("sendtrail_stale_views_total", "Views made known by a server that no longer owned their partition.", false),
    ("sendtrail_snapshot_bytes_total", "Bytes of snapshots written.", false),
    ("sendtrail_snapshot_restores_total", "Partitions whose state was taken from a snapshot.", false),
    ("sendtrail_intake_archived_bytes_total", "Bytes of intake written to the archive, compressed.", false),
    (
        "sendtrail_intake_archive_failures_total",
        "Times that intake could not be archived; it stays in the log, which says why.",
        false,
    ),
    ("sendtrail_http_requests_total", "Requests answered, by route and status.", true),
];

/// Gauges: name, unit, meaning.
const GAUGES: [(&str, Unit, &str); 20] = [
    ("sendtrail_log_disk_bytes", Unit::Bytes, "Bytes of the log on disk; 0 on Kafka."),
    ("sendtrail_log_queued_bytes", Unit::Bytes, "Bytes that wait to be written to the log."),
    (
        "sendtrail_partition_lag_seconds",
        Unit::Seconds,
        "How long the oldest record of a partition waits to be applied.",
    ),
    ("sendtrail_partitions_owned", Unit::Count, "Partitions that this server decides for."),
    ("sendtrail_state_rows_in_memory", Unit::Count, "Rows of the state kept in memory, by partition."),
    ("sendtrail_accounts_in_memory", Unit::Count, "Accounts kept in memory, by partition."),
    ("sendtrail_tail_rows", Unit::Count, "Events that readers see and that are in no file yet."),
    ("sendtrail_archive_files", Unit::Count, "Files of the archive, by table."),
    ("sendtrail_archive_bytes", Unit::Bytes, "Their bytes."),
    ("sendtrail_archive_rows", Unit::Count, "Their rows."),
    ("sendtrail_erasures_pending", Unit::Count, "Recipients that are being erased."),
    ("sendtrail_webhook_deliveries_in_memory", Unit::Count, "Webhooks in memory that wait for a turn, by partition."),
    ("sendtrail_webhook_attempts_under_way", Unit::Count, "Attempts that have not ended, by partition."),
    ("sendtrail_webhook_destinations_failing", Unit::Count, "Destinations that fail or are disabled, by partition."),
    (
        "sendtrail_webhook_overdue_seconds",
        Unit::Seconds,
        "How long what is due for a destination that works waits at most, by partition.",
    ),
    ("sendtrail_clickhouse_lag_rows", Unit::Count, "Rows that ClickHouse lacks, by table."),
    (
        "sendtrail_source_lag_messages",
        Unit::Count,
        "Messages of a Kafka source that are not in the log yet, by partition.",
    ),
    ("sendtrail_source_failing", Unit::Count, "1 while a Kafka source does not get on; /health says why."),
    (
        "sendtrail_snapshot_timestamp_seconds",
        Unit::Seconds,
        "When the last snapshot of a partition was written, since 1970.",
    ),
    (
        "sendtrail_checkpoint_timestamp_seconds",
        Unit::Seconds,
        "When all of a partition's state was known to be durable, since 1970.",
    ),
];

/// Histograms, all in seconds.
const HISTOGRAMS: [(&str, &str); 8] = [
    ("sendtrail_event_visible_seconds", "From an event's receipt until readers see it; the oldest of each batch."),
    ("sendtrail_checkpoint_seconds", "Making the state durable."),
    ("sendtrail_snapshot_seconds", "Writing one snapshot of a partition."),
    ("sendtrail_archive_commit_seconds", "Writing and committing files, by table."),
    ("sendtrail_webhook_attempt_seconds", "One attempt at a webhook."),
    ("sendtrail_webhook_first_attempt_seconds", "From an event's receipt to the first attempt at a webhook of it."),
    ("sendtrail_clickhouse_insert_seconds", "One insert into ClickHouse, by table."),
    ("sendtrail_http_request_seconds", "One request until the answer's head, by route."),
];

/// How often what was measured is put together, also when nobody asks for it.
const UPKEEP: Duration = Duration::from_secs(5);

/// Puts what was measured together, until it is told to stop: otherwise every measurement is kept until somebody asks.
pub async fn upkeep(metrics: PrometheusHandle, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(UPKEEP) => metrics.run_upkeep(),
            () = stop.cancelled() => return,
        }
    }
}

/// Says what every metric means.
pub fn describe() {
    for (name, meaning, labelled) in COUNTERS {
        describe_counter!(name, Unit::Count, meaning);
        if !labelled {
            counter!(name).absolute(0);
        }
    }
    for (name, unit, meaning) in GAUGES {
        describe_gauge!(name, unit, meaning);
    }
    for (name, meaning) in HISTOGRAMS {
        describe_histogram!(name, Unit::Seconds, meaning);
    }
}

/// A method by its name; anybody may make up others.
fn known(method: &Method) -> &'static str {
    let names = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"];
    names.into_iter().find(|name| *name == method.as_str()).unwrap_or("OTHER")
}

/// Measures requests by the route that answered them, never by the path that was asked for: anybody may ask for any.
pub async fn measure(request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let matched = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str);
    let route = format!("{} {matched}", known(request.method()));
    let response = next.run(request).await;
    let status = response.status().as_str().to_owned();
    counter!("sendtrail_http_requests_total", "route" => route.clone(), "status" => status).increment(1);
    histogram!("sendtrail_http_request_seconds", "route" => route).record(begun.elapsed().as_secs_f64());
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_that_are_made_up_are_one() {
        assert_eq!(known(&Method::PATCH), "PATCH");
        assert_eq!(known(&Method::from_bytes(b"AAAA1").unwrap()), "OTHER");
    }
}
