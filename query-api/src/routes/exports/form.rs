//! How exports are asked for, and shown.

use sendtrail_schemas::ids::DestinationId;
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::problem::Problem;
use sendtrail_schemas::time::{DAY, Millis};
use sendtrail_schemas::web::invalid;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::super::events::time;
use crate::analytics::UNASKED;
use crate::exports::{Dataset, Exports, Filters, Format, Job, Request, Status};

/// The longest span of an export, days.
const MAX_DAYS: i64 = 3_660;

/// What to export.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExportRequest {
    /// `events`, `suppressions`, `status_changes`, `webhook_attempts`, `stats` or `activity`.
    #[schema(value_type = String)]
    dataset: String,
    /// A day or a time, inclusive; of suppressions it may be left out. Of `stats`, hours that begin before `to`.
    from: Option<String>,
    /// A day or a time, exclusive.
    to: Option<String>,
    /// `parquet` (default), `csv` or `ndjson`.
    format: Option<String>,
    filters: Option<FiltersRequest>,
    /// Whose data; only the administrator names one, or none for everybody's.
    pub account_id: Option<String>,
}

/// Which rows; those of `/events`, and of attempts their destination.
#[derive(Deserialize, Default, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FiltersRequest {
    #[serde(default)]
    event_types: Vec<String>,
    recipient: Option<String>,
    message_id: Option<String>,
    configuration_set_name: Option<String>,
    tag: Option<String>,
    destination_id: Option<String>,
}

/// An export.
#[derive(Serialize, ToSchema)]
pub struct ExportView {
    export_id: String,
    account_id: Option<String>,
    dataset: Dataset,
    format: Format,
    from: Option<Millis>,
    to: Option<Millis>,
    /// `queued`, `running`, `done`, `failed` or `cancelled`.
    status: Status,
    created_at: Millis,
    finished_at: Option<Millis>,
    progress: ProgressView,
    /// When it is done.
    files: Vec<FileView>,
    error: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub struct ProgressView {
    /// Days, of which each becomes a file if it has rows, or several if it has very many.
    parts_done: usize,
    parts_total: usize,
    rows: u64,
}

#[derive(Serialize, ToSchema)]
pub struct FileView {
    name: String,
    rows: u64,
    bytes: u64,
    sha256: Option<String>,
    /// Where to download it for an hour, without a key.
    url: String,
}

pub fn view(exports: &Exports, job: &Job, running: u64) -> ExportView {
    let mut files: Vec<FileView> = Vec::new();
    if job.status == Status::Done {
        files.extend(job.files.iter().map(|file| FileView {
            name: file.path.clone(),
            rows: file.rows,
            bytes: file.bytes,
            sha256: Some(file.sha256.clone()),
            url: exports.link(job.export_id, &file.path),
        }));
        let seal = exports.file(job, "seal.json").and_then(|path| std::fs::metadata(path).ok());
        files.push(FileView {
            name: "seal.json".into(),
            rows: 0,
            bytes: seal.map_or(0, |seal| seal.len()),
            sha256: None,
            url: exports.link(job.export_id, "seal.json"),
        });
    }
    ExportView {
        export_id: job.export_id.to_string(),
        account_id: job.account_id.map(|account| account.to_string()),
        dataset: job.request.dataset,
        format: job.request.format,
        from: job.request.from,
        to: job.request.to,
        status: job.status,
        created_at: job.created_at,
        finished_at: job.finished_at,
        progress: ProgressView {
            parts_done: job.parts_done,
            parts_total: job.request.parts_total(),
            rows: job.rows + running,
        },
        files,
        error: job.error.as_ref().map(|_| "it could not be made; the server's log says why".into()),
    }
}

#[derive(Serialize, ToSchema)]
pub struct OneExport {
    pub export: ExportView,
}

#[derive(Serialize, ToSchema)]
pub struct AllExports {
    pub exports: Vec<ExportView>,
}

impl ExportRequest {
    pub fn read(self) -> Result<Request, Problem> {
        fn named<T: serde::de::DeserializeOwned>(what: &str, text: &str, all: &str) -> Result<T, Problem> {
            let read = serde_json::from_value(text.into());
            read.map_err(|_| invalid(format!("{what} is {all}")))
        }
        let all = "events, suppressions, status_changes, webhook_attempts, stats or activity";
        let dataset: Dataset = named("dataset", &self.dataset, all)?;
        let format = self.format.as_deref().map(|text| named("format", text, "parquet, csv or ndjson"));
        let at = |name: &str, text: &Option<String>| {
            let read = text.as_deref().map(|text| time(name, text)).transpose();
            read.map_err(|problem| invalid(problem.message))
        };
        let (from, to) = (at("from", &self.from)?, at("to", &self.to)?);
        if dataset != Dataset::Suppressions {
            let (Some(begin), Some(end)) = (from, to) else {
                return Err(invalid("from and to are needed: days, or RFC 3339 times"));
            };
            if begin >= end {
                return Err(invalid("from is before to"));
            }
            if end.0 - begin.0 > MAX_DAYS * DAY {
                return Err(invalid(format!("at most {MAX_DAYS} days")));
            }
        } else if let (Some(begin), Some(end)) = (from, to)
            && begin >= end
        {
            return Err(invalid("from is before to"));
        }
        let filters = self.filters.unwrap_or_default();
        for name in &filters.event_types {
            let kind = EventType::parse(name);
            let kind = kind.ok_or_else(|| invalid(format!("event_types: {name:?} is none that we know")))?;
            if dataset == Dataset::StatusChanges && !kind.is_status() {
                return Err(invalid(format!("event_types: {name:?} is no change of status")));
            }
            if dataset == Dataset::Activity && kind != UNASKED {
                return Err(invalid(format!("event_types: {name:?} is no change of configuration")));
            }
        }
        let of_events = [&filters.recipient, &filters.message_id, &filters.configuration_set_name, &filters.tag];
        let has_events = of_events.iter().any(|filter| filter.is_some()) || !filters.event_types.is_empty();
        let events = matches!(dataset, Dataset::Events | Dataset::StatusChanges | Dataset::Activity);
        if (has_events && !events) || (filters.destination_id.is_some() && dataset != Dataset::WebhookAttempts) {
            return Err(invalid(format!("there are filters that {} does not have", dataset.name())));
        }
        // As rows have it, whichever way it was written.
        let id = |text: String| {
            let known = text.parse::<DestinationId>().map(|id| id.to_string());
            known.map_err(|_| invalid(format!("filters.destination_id {text:?} is no identifier of a destination")))
        };
        let destination_id = filters.destination_id.map(id).transpose()?;
        Ok(Request {
            dataset,
            from,
            to,
            filters: Filters {
                event_types: filters.event_types,
                recipient: filters.recipient,
                message_id: filters.message_id,
                configuration_set_name: filters.configuration_set_name,
                tag: filters.tag,
                destination_id,
            },
            format: format.transpose()?.unwrap_or_default(),
        })
    }
}
