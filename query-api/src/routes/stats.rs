//! Statistics: sums by day or hour and by group.

mod sums;

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use sendtrail_schemas::directory::KeyOwner;
use sendtrail_schemas::ids::ConfigSetId;
use sendtrail_schemas::problem::{Code, Problem};
use sendtrail_schemas::rollup::{Apart, Dims, Sums, TagsApart};
use sendtrail_schemas::time::{DAY, Millis};
use sendtrail_schemas::web::{Query as Params, dated, id, invalid_param, ok};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::events::time;
use crate::analytics::TagFilter;
use crate::{Answered, Query, Source};
use sums::sum_up;

/// Days of one answer.
const MAX_DAYS: i64 = 400;
/// Days when nothing is said.
const DEFAULT_DAYS: i64 = 14;

#[derive(Deserialize)]
pub(super) struct StatsParams {
    days: Option<String>,
    from: Option<String>,
    to: Option<String>,
    config_set_id: Option<String>,
    configuration_set_name: Option<String>,
    tag: Option<String>,
    granularity: Option<String>,
    group_by: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Granularity {
    Hour,
    Day,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum GroupBy {
    ConfigSet,
    RecipientDomain,
    Tag,
    FromDomain,
}

impl GroupBy {
    fn name(self) -> &'static str {
        match self {
            Self::ConfigSet => "config_set",
            Self::RecipientDomain => "recipient_domain",
            Self::Tag => "tag",
            Self::FromDomain => "from_domain",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::ConfigSet, Self::RecipientDomain, Self::Tag, Self::FromDomain].into_iter().find(|by| by.name() == text)
    }

    /// The groups of a row: several for tags, `None` for a row that has none.
    fn of(self, dims: &Dims) -> Vec<Option<String>> {
        match self {
            Self::ConfigSet => vec![dims.configuration_set_name.clone()],
            Self::RecipientDomain => vec![dims.recipient_domain.clone()],
            Self::FromDomain => vec![dims.from_domain.clone()],
            Self::Tag if dims.tags.is_empty() => vec![None],
            Self::Tag => {
                let name = |(key, value): (&String, &String)| {
                    Some(if value.is_empty() { key.clone() } else { format!("{key}:{value}") })
                };
                dims.tags.iter().map(name).collect()
            }
        }
    }
}

/// A configuration set that is asked for.
#[derive(Debug)]
struct WantedSet {
    /// Its name as events carry it.
    name: String,
    /// When it is asked for by its identifier: its events under whatever name, and those that came under its name
    /// when there was no such set.
    id: Option<ConfigSetId>,
}

impl WantedSet {
    fn matches(&self, dims: &Dims) -> bool {
        let named = dims.configuration_set_name.as_ref() == Some(&self.name);
        match (self.id, &dims.config_set_id) {
            (Some(id), Some(of)) => id.bytes() == of.as_slice(),
            _ => named,
        }
    }
}

/// What is asked for.
#[derive(Debug)]
struct Wanted {
    from: Millis,
    to: Millis,
    set: Option<WantedSet>,
    tag: Option<TagFilter>,
    granularity: Granularity,
    group_by: Option<GroupBy>,
}

impl Wanted {
    /// What the answer depends on.
    fn apart(&self) -> Apart {
        let by = |of: GroupBy| self.group_by == Some(of);
        let meanings = |tag: &TagFilter| {
            let owned = |(name, value): (&str, Option<&str>)| (name.to_owned(), value.map(str::to_owned));
            TagsApart::Of(tag.meanings().map(owned).collect())
        };
        Apart {
            config_set: by(GroupBy::ConfigSet) || self.set.is_some(),
            from_domain: by(GroupBy::FromDomain),
            recipient_domain: by(GroupBy::RecipientDomain),
            tags: match &self.tag {
                _ if by(GroupBy::Tag) => TagsApart::All,
                Some(tag) => meanings(tag),
                None => TagsApart::None,
            },
        }
    }
}

impl StatsParams {
    fn read(self, now: Millis, set_name: impl Fn(ConfigSetId) -> Option<String>) -> Result<Wanted, Problem> {
        let (from, to) = self.span(now)?;
        let granularity = match self.granularity.as_deref() {
            None | Some("day") => Granularity::Day,
            Some("hour") => Granularity::Hour,
            Some(other) => return Err(invalid_param(format!("granularity {other:?} is neither hour nor day"))),
        };
        let unknown = |text: &str| {
            invalid_param(format!("group_by {text:?} is none of config_set, recipient_domain, tag, from_domain"))
        };
        let group_by = self.group_by.as_deref().filter(|text| !text.is_empty());
        let group_by = group_by.map(|text| GroupBy::parse(text).ok_or_else(|| unknown(text))).transpose()?;
        let set = match (&self.config_set_id, self.configuration_set_name) {
            (Some(_), Some(_)) => {
                return Err(invalid_param("give config_set_id or configuration_set_name, not both"));
            }
            (Some(text), None) => {
                let set = id(text, Code::ConfigSetNotFound, "configuration set")?;
                let missing = || Problem::new(Code::ConfigSetNotFound, "no such configuration set");
                Some(WantedSet { name: set_name(set).ok_or_else(missing)?, id: Some(set) })
            }
            (None, name) => name.map(|name| WantedSet { name, id: None }),
        };
        let tag = self.tag.as_deref().map(TagFilter::parse);
        Ok(Wanted { from, to, set, tag, granularity, group_by })
    }

    fn span(&self, now: Millis) -> Result<(Millis, Millis), Problem> {
        let tomorrow = Millis::of_day(now.day() + 1);
        let from = self.from.as_deref().map(|text| time("from", text)).transpose()?;
        let to = self.to.as_deref().map(|text| time("to", text)).transpose()?;
        let span = match (&self.days, from, to) {
            (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
                return Err(invalid_param("give days, or from and to, not both"));
            }
            (Some(days), None, None) => {
                let days = days.parse().ok().filter(|days| (1..=MAX_DAYS).contains(days));
                let days = days.ok_or_else(|| invalid_param(format!("days is a number from 1 to {MAX_DAYS}")))?;
                (tomorrow.plus(-days * DAY), tomorrow)
            }
            (None, from, to) => {
                let to = to.unwrap_or_else(|| tomorrow.max(from.map_or(tomorrow, |from| from.plus(1))));
                (from.unwrap_or_else(|| to.plus(-DEFAULT_DAYS * DAY)), to)
            }
        };
        if span.0 >= span.1 {
            return Err(invalid_param("from is before to"));
        }
        if span.1.0 - span.0.0 > MAX_DAYS * DAY {
            return Err(invalid_param(format!("at most {MAX_DAYS} days at once")));
        }
        Ok(span)
    }
}

#[derive(Serialize, ToSchema)]
struct StatsView {
    from: Millis,
    to: Millis,
    granularity: &'static str,
    group_by: Option<&'static str>,
    buckets: Vec<BucketView>,
    totals: TotalsView,
}

#[derive(Serialize, ToSchema)]
struct BucketView {
    bucket: String,
    group: Option<String>,
    #[serde(flatten)]
    sums: SumsView,
}

#[derive(Serialize, ToSchema)]
struct TotalsView {
    #[serde(flatten)]
    sums: SumsView,
    bounce_rate: f64,
    complaint_rate: f64,
}

#[derive(Serialize, ToSchema)]
struct SumsView {
    sends: u64,
    deliveries: u64,
    permanent_bounces: u64,
    transient_bounces: u64,
    complaints: u64,
    rejects: u64,
    opens: u64,
    unique_opens: u64,
    clicks: u64,
    unique_clicks: u64,
    delays: u64,
    rendering_failures: u64,
    replies: u64,
}

impl From<Sums> for SumsView {
    fn from(sums: Sums) -> Self {
        Self {
            sends: sums.sends,
            deliveries: sums.deliveries,
            permanent_bounces: sums.permanent_bounces,
            transient_bounces: sums.transient_bounces,
            complaints: sums.complaints,
            rejects: sums.rejects,
            opens: sums.opens,
            unique_opens: sums.unique_opens,
            clicks: sums.clicks,
            unique_clicks: sums.unique_clicks,
            delays: sums.delays,
            rendering_failures: sums.rendering_failures,
            replies: sums.replies,
        }
    }
}

/// Show counts by day or hour of occurrence, for all or by group. Every event counts once in `totals`, however many
/// tags it has.
#[utoipa::path(get, path = "/stats", tag = "statistics",
    params(("days" = Option<u16>, Query, description = "the last n UTC days, today included; 14 by default"),
        ("from" = Option<String>, Query, description = "a day or a time, inclusive"),
        ("to" = Option<String>, Query, description = "a day or a time, exclusive"),
        ("config_set_id" = Option<String>, Query), ("configuration_set_name" = Option<String>, Query),
        ("tag" = Option<String>, Query, description = "key:value or key"),
        ("granularity" = Option<String>, Query, description = "hour or day"),
        ("group_by" = Option<String>, Query, description = "config_set, recipient_domain, tag or from_domain")),
    responses((status = 200, description = "counts", body = StatsView), (status = 400, description = "INVALID_PARAM"),
        (status = 404, description = "CONFIG_SET_NOT_FOUND")))]
pub(super) async fn stats(
    State(query): State<Query>,
    Extension(owner): Extension<KeyOwner>,
    Params(params): Params<StatsParams>,
) -> Result<Response, Problem> {
    let parts = query.parts();
    let account = owner.account.id();
    let wanted = params.read(parts.clock.now(), |set| {
        let config = parts.directory.account(account)?;
        config.config_set_by_id(set).map(|set| set.name.clone())
    })?;
    let sums = |source: Source| sum_up(source, account, &wanted);
    let Answered { value: answer, as_of, .. } = query.answered(account, sums).await?;
    let text = |start: Millis| match wanted.granularity {
        Granularity::Hour => start.hour_text(),
        Granularity::Day => start.day_text(),
    };
    let rate = |part: u64| if answer.totals.sends == 0 { 0.0 } else { part as f64 / answer.totals.sends as f64 };
    let totals = TotalsView {
        bounce_rate: rate(answer.totals.permanent_bounces),
        complaint_rate: rate(answer.totals.complaints),
        sums: answer.totals.into(),
    };
    let bucket = |((start, group), sums): ((Millis, Option<String>), Sums)| BucketView {
        bucket: text(start),
        group,
        sums: sums.into(),
    };
    let shown = StatsView {
        from: wanted.from,
        to: wanted.to,
        granularity: if wanted.granularity == Granularity::Hour { "hour" } else { "day" },
        group_by: wanted.group_by.map(GroupBy::name),
        buckets: answer.buckets.into_iter().map(bucket).collect(),
        totals,
    };
    Ok(dated(ok(shown), as_of))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params() -> StatsParams {
        StatsParams {
            days: None,
            from: None,
            to: None,
            config_set_id: None,
            configuration_set_name: None,
            tag: None,
            granularity: None,
            group_by: None,
        }
    }

    #[test]
    fn the_default_is_14_utc_days_with_today() {
        let now = Millis::parse("2026-05-15T13:00:00Z").unwrap();
        let text = |params: StatsParams| {
            params.span(now).map(|(from, to)| (from.to_string(), to.to_string())).map_err(|p| p.code)
        };
        let days = |from: &str, to: &str| Ok((format!("{from}T00:00:00.000Z"), format!("{to}T00:00:00.000Z")));
        assert_eq!(text(params()), days("2026-05-02", "2026-05-16"));
        assert_eq!(text(StatsParams { days: Some("1".into()), ..params() }), days("2026-05-15", "2026-05-16"));
        let span = |from: &str, to: &str| StatsParams { from: Some(from.into()), to: Some(to.into()), ..params() };
        assert_eq!(text(span("2026-01-01", "2026-01-03")), days("2026-01-01", "2026-01-03"));
        assert_eq!(text(StatsParams { from: Some("2026-05-10".into()), ..params() }), days("2026-05-10", "2026-05-16"));
        for bad in [
            StatsParams { days: Some("0".into()), ..params() },
            StatsParams { days: Some("401".into()), ..params() },
            StatsParams { days: Some("x".into()), ..params() },
            StatsParams { days: Some("1".into()), from: Some("2026-01-01".into()), ..params() },
            span("2026-01-03", "2026-01-03"),
            span("2020-01-03", "2026-01-03"),
            span("yesterday", "2026-01-03"),
        ] {
            assert_eq!(text(bad), Err(Code::InvalidParam));
        }
    }

    #[test]
    fn what_a_tag_may_mean_is_bounded() {
        let meanings = |text: &str| TagFilter::parse(text).meanings().count();
        assert_eq!(["a", "a:b", "a:b:c", "", ":"].map(meanings), [1, 2, 3, 1, 2]);
        assert_eq!([257, 513].map(|colons| meanings(&":".repeat(colons))), [258, 2]);
        assert_eq!(meanings(&":".repeat(16_000)), 1);
    }
}
