//! An export as it is kept: what was asked for, and how far it is.

use sendtrail_audit::{SealedFile, Tree};
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::time::{DAY, Millis};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// What is exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dataset {
    /// Events that occurred in a span of time.
    Events,
    /// The suppression list.
    Suppressions,
    /// Changes of an account's standing, with their evidence.
    StatusChanges,
    /// Attempts at webhooks that began in a span of time.
    WebhookAttempts,
    /// Hourly sums.
    Stats,
    /// Who changed what of an account, and when.
    Activity,
}

impl Dataset {
    /// As in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Suppressions => "suppressions",
            Self::StatusChanges => "status_changes",
            Self::WebhookAttempts => "webhook_attempts",
            Self::Stats => "stats",
            Self::Activity => "activity",
        }
    }
}

/// How files are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Apache Parquet, zstd.
    #[default]
    Parquet,
    /// RFC 4180 with a line of names; blocks are columns such as `bounce.bounceType`, tags are JSON.
    Csv,
    /// A JSON object a line; what is null is left out.
    Ndjson,
}

impl Format {
    /// The ending of files.
    pub fn ending(self) -> &'static str {
        match self {
            Self::Parquet => "parquet",
            Self::Csv => "csv",
            Self::Ndjson => "ndjson",
        }
    }
}

/// Which rows, as `/events` has them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filters {
    /// Events of these types; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub event_types: Vec<String>,
    /// To this address, compared without case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipient: Option<String>,
    /// Of this message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    /// Through this configuration set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration_set_name: Option<String>,
    /// With this tag, `key:value` or `key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Attempts at this destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_id: Option<String>,
}

impl Filters {
    /// The types that are asked for.
    pub fn kinds(&self) -> impl Iterator<Item = EventType> + '_ {
        self.event_types.iter().filter_map(|name| EventType::parse(name))
    }
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// What.
    pub dataset: Dataset,
    /// From this time on. Suppressions need none.
    pub from: Option<Millis>,
    /// Before this time.
    pub to: Option<Millis>,
    /// Which of it.
    #[serde(default)]
    pub filters: Filters,
    /// How.
    #[serde(default)]
    pub format: Format,
}

/// A part of an export: one file, unless it has no rows, or more than fit. Days, so that a part is bounded and can be made again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The first word of its file's name.
    pub name: String,
    /// From this time on.
    pub from: Millis,
    /// Before this time.
    pub to: Millis,
}

impl Request {
    /// How many parts it has.
    pub fn parts_total(&self) -> usize {
        match self.from.zip(self.to).filter(|_| self.dataset != Dataset::Suppressions) {
            Some((from, to)) if from < to => (to.plus(-1).day() - from.day() + 1) as usize,
            Some(_) => 0,
            None => 1,
        }
    }

    /// Its parts, in their order.
    pub fn parts(&self) -> Vec<Part> {
        let name = self.dataset.name();
        let span = self.from.zip(self.to).filter(|_| self.dataset != Dataset::Suppressions);
        let Some((from, to)) = span else {
            let (from, to) = (self.from.unwrap_or(Millis(0)), self.to.unwrap_or(Millis(i64::MAX / 1_000)));
            return vec![Part { name: name.into(), from, to }];
        };
        let mut parts = Vec::new();
        let mut at = from;
        while at < to {
            let end = Millis::of_day(at.day()).plus(DAY).min(to);
            parts.push(Part { name: format!("{name}-{}", at.day_text()), from: at, to: end });
            at = end;
        }
        parts
    }
}

/// How an export stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It waits for its turn.
    Queued,
    /// It is being made.
    Running,
    /// Its files are there.
    Done,
    /// It could not be made.
    Failed,
    /// Its owner ended it.
    Cancelled,
}

impl Status {
    /// Whether nothing more will come of it.
    pub fn is_over(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }
}

/// An export.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// Its identifier.
    pub export_id: Uuid,
    /// Whose data; none: everybody's, for the operator.
    pub account_id: Option<Uuid>,
    /// Whether the operator asked for it: then its account does not see it.
    pub operators: bool,
    /// What was asked for.
    pub request: Request,
    /// How it stands.
    pub status: Status,
    /// When it was asked for.
    pub created_at: Millis,
    /// When it was over.
    pub finished_at: Option<Millis>,
    /// Parts that are made.
    pub parts_done: usize,
    /// Rows in the files.
    pub rows: u64,
    /// The files.
    pub files: Vec<SealedFile>,
    /// The tree over the rows, so that it goes on after a restart.
    pub tree: Tree,
    /// Why it failed.
    pub error: Option<String>,
}

impl Job {
    /// Whose data.
    pub fn account(&self) -> Option<AccountId> {
        self.account_id.map(AccountId)
    }

    /// Who asked for it: an account, or the operator.
    pub fn owner(&self) -> Option<Uuid> {
        self.account_id.filter(|_| !self.operators)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_are_days_that_cover_the_span(from in 0i64..200_000_000_000, span in 1i64..20 * DAY) {
            let (from, to) = (Millis(from), Millis(from + span));
            let request = Request {
                dataset: Dataset::Events, from: Some(from), to: Some(to), filters: Filters::default(), format: Format::Csv,
            };
            let parts = request.parts();
            prop_assert_eq!(parts.len(), request.parts_total());
            prop_assert_eq!((parts[0].from, parts[parts.len() - 1].to), (from, to));
            for pair in parts.windows(2) {
                prop_assert_eq!(pair[0].to, pair[1].from);
                prop_assert!(pair[0].name < pair[1].name);
            }
            for part in parts {
                prop_assert_eq!(part.from.day(), part.to.plus(-1).day());
                prop_assert_eq!(part.name, format!("events-{}", part.from.day_text()));
            }
        }
    }
}
