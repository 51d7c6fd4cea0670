//! Events and sums from ClickHouse, and from the archive what ClickHouse keeps no longer.

mod deliveries;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use clickhouse::query::Query;
use clickhouse::{Client, Row};
use futures::TryFutureExt;
use sendtrail_schemas::address;
use sendtrail_schemas::clickhouse::tables::{HOURLY, HOURLY_GROUPS, SHOWN};
use sendtrail_schemas::clickhouse::{FORMAT, read_answer};
use sendtrail_schemas::event::Event;
use sendtrail_schemas::ids::{AccountId, ConfigSetId};
use sendtrail_schemas::rollup::{Apart, Dims, HourRows, Rollup, Sums, TagsApart};
use sendtrail_schemas::time::{Day, Hour, Millis};
use serde::Deserialize;

use crate::analytics::{Analytics, EventQuery, Position, UNASKED};
use crate::archive::{DataFusionAnalytics, Part};
use crate::reconcile::Numbered;
use crate::{Error, Rollups};

/// Rows of an answer: what this process has to hold.
const MAX_RESULT_ROWS: u32 = 1_000_000;

/// What one query may use of ClickHouse.
#[derive(Clone, Debug)]
pub struct ClickHouseBounds {
    /// How long it may take.
    pub time: Duration,
    /// Bytes of memory.
    pub memory: u64,
    /// Rows that it may read; 0: any number.
    pub rows: u64,
    /// Days since their receipt that it keeps events; 0: all.
    pub retention_days: u32,
}

/// How far ClickHouse is.
#[async_trait]
pub trait Replica: Send + Sync + 'static {
    /// Waits, not for long, until ClickHouse has what readers of the archive see of an account; whether it has.
    async fn is_ready(&self, account: AccountId) -> bool;

    /// Notes that it did not answer in time: it should not be asked before it is known to answer again.
    fn note_silence(&self);

    /// The first UTC day of receipt since when it has every event. Sums it has from the beginning.
    fn whole_since(&self) -> Option<Day>;
}

/// See the module.
pub struct ClickHouseAnalytics {
    client: Client,
    archive: Arc<DataFusionAnalytics>,
    replica: Arc<dyn Replica>,
    bounds: ClickHouseBounds,
}

impl ClickHouseAnalytics {
    /// Answers from ClickHouse and, of days before it, from an archive.
    pub fn new(
        client: Client,
        archive: Arc<DataFusionAnalytics>,
        replica: Arc<dyn Replica>,
        bounds: ClickHouseBounds,
    ) -> Self {
        Self { client, archive, replica, bounds }
    }

    /// A query for one account, within bounds. Values are bound, never written into it.
    fn query(&self, sql: &str, account: AccountId) -> Query {
        let bounds = &self.bounds;
        let mut query = self
            .client
            .query_raw(sql)
            .with_setting("max_execution_time", bounds.time.as_secs_f64().to_string())
            .with_setting("max_memory_usage", bounds.memory.to_string())
            .with_setting("max_result_rows", MAX_RESULT_ROWS.to_string())
            // For quotas that are keyed by client: each account has its own.
            .with_setting("quota_key", account.to_string());
        if bounds.rows > 0 {
            query = query.with_setting("max_rows_to_read", bounds.rows.to_string());
        }
        query.param("account", account.to_string())
    }

    fn whole_since(&self) -> Result<Day, Error> {
        self.replica.whole_since().ok_or_else(|| Error::Port("ClickHouse is not ready".into()))
    }

    /// The newest events of the days since one that match.
    async fn page(&self, wanted: &EventQuery, since: Day) -> Result<Vec<Event>, Error> {
        let mut filter = Filter::of_account();
        filter.since(since);
        filter.span(wanted.from, wanted.to);
        filter.events(wanted);
        let sql = format!(
            "SELECT {SHOWN} FROM (SELECT * FROM events WHERE {} \
             ORDER BY occurred_at DESC, event_id DESC, partition DESC, seq DESC LIMIT {{limit:UInt64}})",
            filter.text()
        );
        let query = filter.bind(self.query(&sql, wanted.account)).param("limit", wanted.limit as u64);
        let body = query.fetch_bytes(FORMAT)?.collect().map_err(Error::from).await?;
        Ok(read_answer(&body)?)
    }

    /// What happened before this may have been received so long ago that it is gone.
    pub(crate) fn keeps_since(&self, now: Millis) -> Millis {
        match self.bounds.retention_days {
            0 => Millis(i64::MIN),
            // Nothing is received before it happened, but for what is dated ahead.
            days => Millis::of_day(now.day() - days as Day + 1),
        }
    }

    /// The numbers of an account's events in a span of time, of ClickHouse alone.
    ///
    /// # Errors
    /// [`Error::ClickHouse`].
    pub(crate) async fn numbers(&self, account: AccountId, from: Millis, to: Millis) -> Result<Vec<Numbered>, Error> {
        let mut filter = Filter::of_account();
        filter.span(Some(from), Some(to));
        let sql = format!(
            "SELECT toUnixTimestamp64Micro(occurred_at), toUInt32(partition), toUInt64(seq) FROM events WHERE {}",
            filter.text()
        );
        let rows = filter.bind(self.query(&sql, account).with_setting("max_result_rows", "0"));
        let rows = rows.fetch_all::<(i64, u32, u64)>().await?;
        Ok(rows.into_iter().map(|(at, partition, seq)| (Millis(at.div_euclid(1_000)), partition, seq)).collect())
    }

    async fn sums(&self, query: Query) -> Result<Vec<(Hour, Rollup)>, Error> {
        let rows = query.fetch_all::<SumRow>().await?;
        rows.into_iter().map(SumRow::read).collect()
    }
}

#[async_trait]
impl Analytics for ClickHouseAnalytics {
    async fn events(&self, query: EventQuery) -> Result<Vec<Event>, Error> {
        let since = self.whole_since()?;
        let mut page = self.page(&query, since).await?;
        // Of the days before, only what may still be on the page.
        let mut older = query.clone();
        if page.len() == query.limit {
            let oldest = page.iter().map(Event::occurred).min();
            older.from = older.from.max(oldest);
        }
        page.extend(self.archive.events_in(older, Part::Before(since)).await?);
        page.sort_by_cached_key(|event| std::cmp::Reverse(Position::of(event)));
        page.truncate(query.limit);
        Ok(page)
    }

    async fn scan(
        &self,
        account: AccountId,
        from: Millis,
        to: Millis,
        apart: &Apart,
    ) -> Result<Vec<(Hour, Rollup)>, Error> {
        let since = self.whole_since()?;
        let mut filter = Filter::of_account();
        filter.since(since);
        filter.span(Some(from), Some(to));
        let inner = format!("({HOURLY} AND {}{HOURLY_GROUPS})", filter.text());
        let sql = added_up(&inner, apart, &mut filter);
        let mut sums = self.sums(filter.bind(self.query(&sql, account))).await?;
        sums.extend(self.archive.scan_in(account, from, to, Part::Before(since), apart).await?);
        Ok(sums)
    }
}

#[async_trait]
impl Rollups for ClickHouseAnalytics {
    async fn rows(&self, account: AccountId, from: Hour, to: Hour, apart: &Apart) -> Result<Vec<HourRows>, Error> {
        let mut filter = Filter::of_account();
        filter.conditions.push("`hour` >= {from:Int32} AND `hour` < {to:Int32}".into());
        let inner = format!("(SELECT * FROM stats_hourly WHERE {})", filter.text());
        let sql = added_up(&inner, apart, &mut filter);
        let query = filter.bind(self.query(&sql, account)).param("from", from).param("to", to);
        let mut hours: Vec<HourRows> = Vec::new();
        for (hour, row) in self.sums(query).await? {
            match hours.last_mut() {
                Some(HourRows::Exact(last, rows)) if *last == hour => rows.push(row),
                _ => hours.push(HourRows::Exact(hour, vec![row])),
            }
        }
        Ok(hours)
    }
}

/// Hourly rows, added up by what is told apart, in the order of hours.
fn added_up(rows: &str, apart: &Apart, filter: &mut Filter) -> String {
    let asked = |name: &str, kind: &str, is_asked: bool| match is_asked {
        true => format!("of.`{name}` AS `{name}`"),
        false => format!("CAST(NULL, 'Nullable({kind})') AS `{name}`"),
    };
    let tags = match &apart.tags {
        TagsApart::None => "CAST([], 'Array(Tuple(String, String))') AS `tags`".into(),
        TagsApart::All => "of.`tags` AS `tags`".into(),
        TagsApart::Of(wanted) => {
            let one = |(name, value): &(String, Option<String>)| {
                let name = format!("tag.1 = {}", filter.text_value(name));
                value
                    .as_ref()
                    .map_or(name.clone(), |value| format!("({name} AND tag.2 = {})", filter.text_value(value)))
            };
            let wanted: Vec<String> = wanted.iter().map(one).collect();
            format!("arrayFilter(tag -> {}, of.`tags`) AS `tags`", wanted.join(" OR "))
        }
    };
    let dims = [
        "of.`account_id` AS `account_id`".into(),
        "of.`hour` AS `hour`".into(),
        asked("configuration_set_name", "String", apart.config_set),
        asked("config_set_id", "UUID", apart.config_set),
        asked("from_domain", "String", apart.from_domain),
        asked("recipient_domain", "String", apart.recipient_domain),
        tags,
    ];
    let sums: Vec<String> = Sums::NAMES.iter().map(|name| format!("sum(of.`{name}`) AS `{name}`")).collect();
    let (dims, sums) = (dims.join(", "), sums.join(", "));
    format!(
        "SELECT {dims}, {sums} FROM {rows} AS of GROUP BY 1, 2, 3, 4, 5, 6, 7 ORDER BY 2 SETTINGS enable_positional_arguments = 1"
    )
}

/// Conditions and the values they are bound to.
struct Filter {
    conditions: Vec<String>,
    values: Vec<(String, Value)>,
}

enum Value {
    Number(i64),
    Text(String),
    Texts(Vec<String>),
}

impl Filter {
    fn of_account() -> Self {
        Self { conditions: vec!["account_id = {account:UUID}".into()], values: Vec::new() }
    }

    /// Binds a value; gives how it is called in a condition.
    fn value(&mut self, kind: &str, value: Value) -> String {
        let name = format!("v{}", self.values.len());
        let called = format!("{{{name}:{kind}}}");
        self.values.push((name, value));
        called
    }

    fn text_value(&mut self, text: &str) -> String {
        self.value("String", Value::Text(text.to_owned()))
    }

    fn time(&mut self, time: Millis) -> String {
        let micros = self.value("Int64", Value::Number(time.0.saturating_mul(1_000)));
        format!("fromUnixTimestamp64Micro({micros}, 'UTC')")
    }

    fn since(&mut self, day: Day) {
        if day > Day::MIN {
            let day = self.time(Millis::of_day(day));
            self.conditions.push(format!("received_at >= {day}"));
        }
    }

    fn span(&mut self, from: Option<Millis>, to: Option<Millis>) {
        for (bound, sign) in [(from, ">="), (to, "<")] {
            if let Some(bound) = bound {
                let bound = self.time(bound);
                self.conditions.push(format!("occurred_at {sign} {bound}"));
            }
        }
    }

    fn events(&mut self, query: &EventQuery) {
        if query.kinds.is_empty() {
            self.conditions.push(format!("event_type != '{}'", UNASKED.name()));
        } else {
            let names = query.kinds.iter().map(|kind| kind.name().to_owned()).collect();
            let names = self.value("Array(String)", Value::Texts(names));
            self.conditions.push(format!("has({names}, event_type)"));
        }
        if let Some(recipient) = &query.recipient {
            let folded = self.text_value(&address::fold(recipient));
            // Where there is none it is empty, and nobody asks for that.
            self.conditions.push(format!("recipient_key = {folded} AND recipient_key != ''"));
        }
        if let Some(id) = &query.message_id {
            let id = self.text_value(id);
            self.conditions.push(format!("message_id = {id} AND message_id != ''"));
        }
        if let Some(name) = &query.configuration_set_name {
            let name = self.text_value(name);
            self.conditions.push(format!("configuration_set_name = {name}"));
        }
        if let Some(tag) = &query.tag {
            let mut meanings = Vec::new();
            for (key, value) in tag.meanings() {
                let key = self.text_value(key);
                meanings.push(match value {
                    None => format!("mapContains(tags, {key})"),
                    Some(value) => {
                        let value = self.text_value(value);
                        format!("(mapContains(tags, {key}) AND tags[{key}] = {value})")
                    }
                });
            }
            self.conditions.push(format!("({})", meanings.join(" OR ")));
        }
        if let Some(place) = &query.place {
            let at = self.time(place.received_at);
            let partition = self.value("Int64", Value::Number(i64::from(place.partition)));
            let seq = self.value("Int64", Value::Number(place.seq as i64));
            self.conditions.push(format!("received_at = {at} AND partition = {partition} AND seq = {seq}"));
        }
        if let Some(below) = query.below {
            let below = self.value("Int64", Value::Number(below as i64));
            self.conditions.push(format!("seq < {below}"));
        }
        if let Some(before) = &query.before {
            let at = self.time(before.occurred_at);
            let id = self.text_value(&before.event_id);
            let partition = self.value("Int64", Value::Number(i64::from(before.partition)));
            let seq = self.value("Int64", Value::Number(before.seq as i64));
            // The first is said once more by itself, so that the primary key is used.
            self.conditions.push(format!("occurred_at <= {at}"));
            self.conditions.push(format!("(occurred_at, event_id, partition, seq) < ({at}, {id}, {partition}, {seq})"));
        }
    }

    fn text(&self) -> String {
        self.conditions.join(" AND ")
    }

    fn bind(self, query: Query) -> Query {
        self.values.into_iter().fold(query, |query, (name, value)| match value {
            Value::Number(number) => query.param(&name, number),
            Value::Text(text) => query.param(&name, text),
            Value::Texts(texts) => query.param(&name, texts),
        })
    }
}

/// Its counts are in the order of [`Sums::NAMES`].
#[derive(Row, Deserialize)]
struct SumRow {
    #[serde(with = "clickhouse::serde::uuid")]
    #[expect(dead_code, reason = "asked for by the account")]
    account_id: uuid::Uuid,
    hour: i32,
    configuration_set_name: Option<String>,
    #[serde(with = "clickhouse::serde::uuid::option")]
    config_set_id: Option<uuid::Uuid>,
    from_domain: Option<String>,
    recipient_domain: Option<String>,
    tags: Vec<(String, String)>,
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

impl SumRow {
    fn read(self) -> Result<(Hour, Rollup), Error> {
        let dims = Dims {
            configuration_set_name: self.configuration_set_name,
            from_domain: self.from_domain,
            recipient_domain: self.recipient_domain,
            tags: self.tags.into_iter().collect(),
            config_set_id: self.config_set_id.map(|id| ConfigSetId(id).bytes().to_vec()),
        };
        let sums = Sums {
            sends: self.sends,
            deliveries: self.deliveries,
            permanent_bounces: self.permanent_bounces,
            transient_bounces: self.transient_bounces,
            complaints: self.complaints,
            rejects: self.rejects,
            opens: self.opens,
            unique_opens: self.unique_opens,
            clicks: self.clicks,
            unique_clicks: self.unique_clicks,
            delays: self.delays,
            rendering_failures: self.rendering_failures,
            replies: self.replies,
        };
        Ok((self.hour, Rollup { dims, sums }))
    }
}
