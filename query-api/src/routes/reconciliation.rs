//! Reconciliation: what each store has of the same events.

use axum::extract::State;
use axum::response::Response;
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::problem::{Code, Problem};
use sendtrail_schemas::time::{DAY, Millis};
use sendtrail_schemas::web::{Query as Params, account_id, invalid_param, ok};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::events::time;
use crate::reconcile::{Compared, Counts, Difference, Store, add_up, compare, total};
use crate::{Error, EventQuery, Query};

/// Events of each store that are compared at once.
const EVENTS: usize = 2_000_000;
/// Accounts that are looked at when none is named.
const ACCOUNTS: usize = 1_000;
/// The longest span.
const MAX_DAYS: i64 = 31;
/// Differences that are told.
const TOLD: usize = 10_000;

#[derive(Deserialize)]
pub(super) struct ReconcileParams {
    from: Option<String>,
    to: Option<String>,
    account_id: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct Reconciliation {
    from: Millis,
    to: Millis,
    /// Whether every store has the same rows, and the sums are theirs.
    equal: bool,
    hours: Vec<HourView>,
    differences: Vec<DifferenceView>,
}

/// Events that happened in an hour, by store. `null`: there is no such store.
#[derive(Serialize, ToSchema)]
struct HourView {
    hour: Millis,
    /// As far back as the log is kept.
    log: u64,
    archive: u64,
    clickhouse: Option<u64>,
    /// Events that the sums of `/stats` stand for, by the projection, by the archive, by ClickHouse.
    rollups: u64,
    archive_sums: u64,
    clickhouse_rollups: Option<u64>,
    equal: bool,
}

/// Rows by which a store differs from the others.
#[derive(Serialize, ToSchema)]
struct DifferenceView {
    account_id: String,
    /// `log`, `archive` or `clickhouse`.
    store: &'static str,
    /// `missing` or `twice`.
    difference: &'static str,
    partition: u32,
    first_seq: u64,
    last_seq: u64,
}

impl Query {
    async fn reconcile(
        &self,
        account: AccountId,
        from: Millis,
        to: Millis,
        left: &mut usize,
    ) -> Result<Compared, Error> {
        let parts = self.parts();
        // Of every type: what lists leave out is in the stores all the same.
        let kinds = EventType::ALL.to_vec();
        let query = EventQuery { from: Some(from), to: Some(to), kinds, ..EventQuery::of(account, usize::MAX) };
        // All that was acknowledged is compared.
        self.settled(account).await?;
        // What comes meanwhile is in one store before the others: the log, which has it first, tells where to end.
        let (log, kept, end) = parts.logged.numbers(account, from, to, *left).await?;
        // What is merely late must not look lost.
        self.settled(account).await?;
        let mut archive = parts.files.numbers(&query, *left).await?;
        archive.retain(|(_, partition, seq)| end.get(partition).is_none_or(|end| seq < end));
        *left = left.saturating_sub(archive.len().max(log.len()));
        let mut stores = vec![(Store::Log, log), (Store::Archive, archive)];
        if let Some(clickhouse) = &parts.clickhouse {
            if let Some(preferred) = &parts.preferred {
                // For it to have what the archive has.
                preferred.replica.is_ready(account).await;
            }
            let mut rows = clickhouse.numbers(account, from, to).await?;
            rows.retain(|(_, partition, seq)| end.get(partition).is_none_or(|end| seq < end));
            stores.push((Store::ClickHouse, rows));
        }
        let mut compared = Compared::default();
        compare(&stores, &kept, &mut compared);
        let hours = &mut compared.hours;
        let (first, last) = (from.hour(), to.plus(-1).hour() + 1);
        let mut summed = std::collections::BTreeMap::new();
        for (hour, row) in parts.files_scan(account, from, to).await? {
            *summed.entry(hour).or_insert(0) += total(&row.sums);
        }
        let rollups = parts.source.rollups.rows(account, first, last).await?;
        let overflowing = add_up(rollups, |hour, sum| hours.entry(hour).or_default().rollups += sum);
        // An hour of too many rows is counted from the events whenever it is asked for.
        for hour in overflowing {
            hours.entry(hour).or_default().rollups = summed.get(&hour).copied().unwrap_or_default();
        }
        for (hour, sum) in summed {
            hours.entry(hour).or_default().summed = sum;
        }
        if let Some(clickhouse) = &parts.clickhouse {
            let rows = crate::Rollups::rows(&**clickhouse, account, first, last).await?;
            add_up(rows, |hour, sum| hours.entry(hour).or_default().clickhouse_rollups += sum);
        }
        Ok(compared)
    }
}

/// Whether every store has as much of an hour. What the log has lost by its age is no difference: ranges tell the others.
fn is_equal(counts: &Counts, clickhouse: bool) -> bool {
    counts.archive >= counts.log
        && counts.rollups == counts.summed
        && (!clickhouse || (counts.clickhouse == counts.archive && counts.clickhouse_rollups == counts.summed))
}

/// Compare what log, archive, ClickHouse and hourly sums have, hour by hour and row by row.
#[utoipa::path(get, path = "/reconciliation", tag = "admin",
    params(("from" = String, Query, description = "a day or a whole hour, inclusive"),
        ("to" = String, Query, description = "a day or a whole hour, exclusive; at most 31 days after `from`"),
        ("account_id" = Option<String>, Query, description = "one account; else every account, of at most 1000")),
    responses((status = 200, description = "hours and differences", body = inline(Reconciliation)),
        (status = 400, description = "INVALID_PARAM, MISSING_PARAM"), (status = 404, description = "PARTNER_NOT_FOUND"),
        (status = 503, description = "DB_UNAVAILABLE, UNAVAILABLE")))]
pub(super) async fn reconciliation(
    State(query): State<Query>,
    Params(params): Params<ReconcileParams>,
) -> Result<Response, Problem> {
    let needed = |name: &str, text: &Option<String>| {
        let text = text.as_deref().ok_or_else(|| Problem::new(Code::MissingParam, format!("{name} is needed")))?;
        let at = time(name, text)?;
        if Millis::of_hour(at.hour()) == at { Ok(at) } else { Err(invalid_param(format!("{name} is a whole hour"))) }
    };
    let (from, to) = (needed("from", &params.from)?, needed("to", &params.to)?);
    if from >= to || to.0 - from.0 > MAX_DAYS * DAY {
        return Err(invalid_param(format!("from is before to, and at most {MAX_DAYS} days")));
    }
    let directory = &query.parts().directory;
    let accounts = match &params.account_id {
        Some(text) => {
            let account = account_id(text)?;
            directory.account(account).ok_or_else(|| Problem::new(Code::PartnerNotFound, "no such account"))?;
            vec![account]
        }
        None => directory.list(None, ACCOUNTS + 1).iter().map(|config| config.id()).collect(),
    };
    if accounts.len() > ACCOUNTS {
        return Err(invalid_param(format!("there are more than {ACCOUNTS} accounts: name one")));
    }
    let (mut all, mut differences, mut left) = (std::collections::BTreeMap::<_, Counts>::new(), Vec::new(), EVENTS);
    for account in accounts {
        let compared = query.reconcile(account, from, to, &mut left).await?;
        for (hour, counts) in compared.hours {
            all.entry(hour).or_default().add(&counts);
        }
        differences.extend(compared.ranges.into_iter().map(|range| DifferenceView {
            account_id: account.to_string(),
            store: range.store.name(),
            difference: match range.difference {
                Difference::Missing => "missing",
                Difference::Twice => "twice",
            },
            partition: range.partition,
            first_seq: range.first,
            last_seq: range.last,
        }));
    }
    differences.truncate(TOLD);
    let has_clickhouse = query.parts().clickhouse.is_some();
    let hours: Vec<HourView> = all
        .into_iter()
        .map(|(hour, counts)| HourView {
            hour: Millis::of_hour(hour),
            log: counts.log,
            archive: counts.archive,
            clickhouse: has_clickhouse.then_some(counts.clickhouse),
            rollups: counts.rollups,
            archive_sums: counts.summed,
            clickhouse_rollups: has_clickhouse.then_some(counts.clickhouse_rollups),
            equal: is_equal(&counts, has_clickhouse),
        })
        .collect();
    let equal = differences.is_empty() && hours.iter().all(|hour| hour.equal);
    Ok(ok(Reconciliation { from, to, equal, hours, differences }))
}
