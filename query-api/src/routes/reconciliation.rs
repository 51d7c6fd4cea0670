//! Reconciliation: what each store has of the same events.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::problem::{Code, Problem};
use sendtrail_schemas::rollup::Apart;
use sendtrail_schemas::time::{DAY, Hour, Millis};
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
/// How often sums are looked at before they are said to differ, and the time between.
const BRACKETS: u32 = 3;
const SETTLING: Duration = Duration::from_millis(300);

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

/// Events that happened in an hour, by store. `null`: there is no such store, or it keeps them no longer.
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
    /// `since`: what happened before that ClickHouse may keep no longer.
    async fn reconcile(
        &self,
        account: AccountId,
        from: Millis,
        to: Millis,
        since: Millis,
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
            self.replicated(account).await?;
            let mut rows = clickhouse.numbers(account, from, to).await?;
            rows.retain(|(_, partition, seq)| end.get(partition).is_none_or(|end| seq < end));
            stores.push((Store::ClickHouse, rows));
        }
        let mut compared = Compared::default();
        compare(&stores, &kept, since, &mut compared);
        drop(stores);
        let hours = (from.hour(), to.plus(-1).hour() + 1);
        for attempt in 1.. {
            let bracket = self.bracket(account, (from, to), hours).await?;
            let off = bracket.off(since);
            if attempt == BRACKETS && off.iter().any(|hour| bracket.moves(*hour)) {
                // Whether it is a difference, or only late, is not known.
                return Err(Error::Behind);
            }
            if attempt == BRACKETS || off.is_empty() {
                bracket.add_to(&mut compared.hours);
                break;
            }
            tokio::time::sleep(SETTLING).await;
        }
        Ok(compared)
    }

    /// Events come meanwhile: what is scanned lies between what sums are before it and after.
    async fn bracket(
        &self,
        account: AccountId,
        (from, to): (Millis, Millis),
        hours: (Hour, Hour),
    ) -> Result<Bracket, Error> {
        let parts = self.parts();
        let rollups = &*parts.source.rollups;
        let in_clickhouse = async || match &parts.clickhouse {
            Some(clickhouse) => Ok::<_, Error>(Some(sums_of(&**clickhouse, account, hours).await?.0)),
            None => Ok(None),
        };
        let (before, _) = sums_of(rollups, account, hours).await?;
        let clickhouse_before = in_clickhouse().await?;
        let mut scanned = BTreeMap::new();
        for (hour, row) in parts.files_scan(account, from, to).await? {
            *scanned.entry(hour).or_insert(0) += total(&row.sums);
        }
        let (after, overflowing) = sums_of(rollups, account, hours).await?;
        self.replicated(account).await?;
        let clickhouse = clickhouse_before.zip(in_clickhouse().await?).map(|(before, after)| [before, after]);
        Ok(Bracket { scanned, overflowing, rollups: [before, after], clickhouse })
    }

    /// Waits until ClickHouse has what the archive has: what is merely late must not look lost.
    async fn replicated(&self, account: AccountId) -> Result<(), Error> {
        match &self.parts().preferred {
            Some(preferred) if !preferred.replica.is_ready(account).await => Err(Error::Behind),
            _ => Ok(()),
        }
    }

    fn clickhouse_since(&self) -> Millis {
        let parts = self.parts();
        parts.clickhouse.as_ref().map_or(Millis(i64::MIN), |clickhouse| clickhouse.keeps_since(parts.clock.now()))
    }
}

/// By hour.
type HourSums = BTreeMap<Hour, u64>;

/// What a scan found, and what sums were before it and after.
struct Bracket {
    scanned: HourSums,
    /// Hours of too many rows.
    overflowing: Vec<Hour>,
    rollups: [HourSums; 2],
    clickhouse: Option<[HourSums; 2]>,
}

impl Bracket {
    fn hours(&self) -> BTreeSet<Hour> {
        let sums = [&self.scanned].into_iter().chain(&self.rollups).chain(self.clickhouse.iter().flatten());
        sums.flat_map(BTreeMap::keys).chain(&self.overflowing).copied().collect()
    }

    /// The sum of an hour: what was scanned, if that lies between.
    fn sum(&self, sums: &[HourSums; 2], hour: Hour) -> u64 {
        let [scanned, before, after] =
            [&self.scanned, &sums[0], &sums[1]].map(|of| of.get(&hour).copied().unwrap_or(0));
        if (before..=after).contains(&scanned) { scanned } else { after }
    }

    fn of(&self, hour: Hour) -> Counts {
        let summed = self.scanned.get(&hour).copied().unwrap_or(0);
        // An hour of too many rows is counted from the events whenever it is asked for.
        let rollups = if self.overflowing.contains(&hour) { summed } else { self.sum(&self.rollups, hour) };
        let clickhouse_rollups = self.clickhouse.as_ref().map_or(0, |sums| self.sum(sums, hour));
        Counts { summed, rollups, clickhouse_rollups, ..Counts::default() }
    }

    /// Hours whose sums do not lie where they should. What is shown a moment before its sum is, or after, looks as if they did
    /// not. ClickHouse may have forgotten what happened before `since`.
    fn off(&self, since: Millis) -> Vec<Hour> {
        let is_off = |hour: &Hour| {
            let counts = self.of(*hour);
            let clickhouse = self.clickhouse.is_some() && Millis::of_hour(*hour) >= since;
            counts.rollups != counts.summed || (clickhouse && counts.clickhouse_rollups != counts.summed)
        };
        self.hours().into_iter().filter(is_off).collect()
    }

    /// Whether sums of an hour became others meanwhile.
    fn moves(&self, hour: Hour) -> bool {
        let differ = |[before, after]: &[HourSums; 2]| before.get(&hour) != after.get(&hour);
        differ(&self.rollups) || self.clickhouse.as_ref().is_some_and(differ)
    }

    fn add_to(&self, hours: &mut BTreeMap<Hour, Counts>) {
        for hour in self.hours() {
            hours.entry(hour).or_default().add(&self.of(hour));
        }
    }
}

/// What hourly sums add up to, and hours of too many rows.
async fn sums_of(
    rollups: &dyn crate::Rollups,
    account: AccountId,
    (first, last): (Hour, Hour),
) -> Result<(HourSums, Vec<Hour>), Error> {
    let mut sums = BTreeMap::new();
    let overflowing = add_up(rollups.rows(account, first, last, &Apart::NONE).await?, |hour, sum| {
        *sums.entry(hour).or_insert(0) += sum;
    });
    Ok((sums, overflowing))
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
    let (mut all, mut differences, mut left) = (BTreeMap::<_, Counts>::new(), Vec::new(), EVENTS);
    let since = query.clickhouse_since();
    for account in accounts {
        let compared = query.reconcile(account, from, to, since, &mut left).await?;
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
    // What it keeps no longer is no difference.
    let has_clickhouse = |hour: Millis| query.parts().clickhouse.is_some() && hour >= since;
    let hours: Vec<HourView> = all
        .into_iter()
        .map(|(hour, counts)| (Millis::of_hour(hour), counts))
        .map(|(hour, counts)| HourView {
            hour,
            log: counts.log,
            archive: counts.archive,
            clickhouse: has_clickhouse(hour).then_some(counts.clickhouse),
            rollups: counts.rollups,
            archive_sums: counts.summed,
            clickhouse_rollups: has_clickhouse(hour).then_some(counts.clickhouse_rollups),
            equal: is_equal(&counts, has_clickhouse(hour)),
        })
        .collect();
    let equal = differences.is_empty() && hours.iter().all(|hour| hour.equal);
    Ok(ok(Reconciliation { from, to, equal, hours, differences }))
}
