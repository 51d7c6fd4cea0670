//! The tables of ClickHouse, by version. What has been released is never changed, only added to.

/// What events add up to, by hour and by what they are told apart by.
macro_rules! hourly {
    () => {
        "SELECT `account_id`,
        toInt32(intDiv(toUnixTimestamp64Micro(`occurred_at`)
            - positiveModulo(toUnixTimestamp64Micro(`occurred_at`), 3600000000), 3600000000)) AS `hour`,
        `configuration_set_name`, `config_set_id`, `from_domain`, `recipient_domain`,
        CAST(`tags`, 'Array(Tuple(String, String))') AS `tags`,
        countIf(`event_type` = 'Send') AS `sends`, countIf(`event_type` = 'Delivery') AS `deliveries`,
        countIf(`event_type` = 'Bounce' AND lower(`block`['bounceType']) = 'permanent') AS `permanent_bounces`,
        countIf(`event_type` = 'Bounce' AND lower(`block`['bounceType']) != 'permanent') AS `transient_bounces`,
        countIf(`event_type` = 'Complaint') AS `complaints`, countIf(`event_type` = 'Reject') AS `rejects`,
        countIf(`event_type` = 'Open') AS `opens`, countIf(`event_type` = 'Open' AND `unique`) AS `unique_opens`,
        countIf(`event_type` = 'Click') AS `clicks`, countIf(`event_type` = 'Click' AND `unique`) AS `unique_clicks`,
        countIf(`event_type` = 'DeliveryDelay') AS `delays`,
        countIf(`event_type` = 'RenderingFailure') AS `rendering_failures`, countIf(`event_type` = 'Reply') AS `replies`
        FROM events WHERE `event_type` IN ('Send', 'Delivery', 'Bounce', 'Complaint', 'Reject', 'Open', 'Click', 'DeliveryDelay',
            'RenderingFailure', 'Reply')"
    };
}

/// See [`HOURLY`].
macro_rules! hourly_groups {
    () => {
        " GROUP BY `account_id`, `hour`, `configuration_set_name`, `config_set_id`, `from_domain`, `recipient_domain`, `tags`"
    };
}

/// Sums from the events themselves: further conditions go between this and [`HOURLY_GROUPS`].
pub const HOURLY: &str = hourly!();
/// See [`HOURLY`].
pub const HOURLY_GROUPS: &str = hourly_groups!();

/// The newest version of the tables that this program knows.
pub const VERSION: u32 = 2;

/// Where it is noted what the tables are: `version`, `database_id`, `lanes`, `retention_days`.
pub const META: &str = "CREATE TABLE IF NOT EXISTS sendtrail_meta \
    (`name` String, `value` String, `at` DateTime64(6, 'UTC') DEFAULT now64(6)) \
    ENGINE = ReplacingMergeTree(`at`) ORDER BY `name`";

/// Everything that [`MIGRATIONS`] make, in the order in which it can be dropped.
pub const ALL: [(&str, &str); 10] = [
    ("VIEW", "stats_hourly_view"),
    ("VIEW", "status_changes_view"),
    ("VIEW", "events_progress_view"),
    ("VIEW", "deliveries_progress_view"),
    ("TABLE", "stats_hourly"),
    ("TABLE", "status_changes"),
    ("TABLE", "events_progress"),
    ("TABLE", "deliveries_progress"),
    ("TABLE", "deliveries"),
    ("TABLE", "events"),
];

/// The tables whose rows expire, with the time by which they do. What is left in the others is small.
pub const EXPIRING: [(&str, &str); 2] = [("events", "received_at"), ("deliveries", "finished_at")];

/// What leads from each version to the next; each statement can be repeated.
///
/// `count() = uniqExact(partition, seq) = max(seq) - min(seq) + 1` holds for each partition of `events` and of
/// `deliveries`, until rows expire; `events_progress` and `deliveries_progress` keep the same for good, without a scan.
pub const MIGRATIONS: [&[&str]; VERSION as usize] = [FIRST, WITH_WEBHOOKS];

/// What attempts at webhooks tell besides, and types of events that nothing is added up of.
const WITH_WEBHOOKS: &[&str] = &[
    "ALTER TABLE deliveries
        ADD COLUMN IF NOT EXISTS `response` Nullable(String), ADD COLUMN IF NOT EXISTS `failure` LowCardinality(Nullable(String)),
        ADD COLUMN IF NOT EXISTS `event_received_at` Nullable(DateTime64(6, 'UTC')),
        ADD COLUMN IF NOT EXISTS `event_type` LowCardinality(Nullable(String)),
        ADD COLUMN IF NOT EXISTS `spent` Nullable(UInt32), ADD COLUMN IF NOT EXISTS `trigger` LowCardinality(Nullable(String))",
    concat!("ALTER TABLE stats_hourly_view MODIFY QUERY ", hourly!(), hourly_groups!()),
];

const FIRST: &[&str] = &[
    "CREATE TABLE IF NOT EXISTS events (
        `account_id` UUID, `event_id` String, `event_type` LowCardinality(String),
        `occurred_at` DateTime64(6, 'UTC') CODEC(Delta, ZSTD), `received_at` DateTime64(6, 'UTC') CODEC(Delta, ZSTD),
        `original_occurred_at` Nullable(DateTime64(6, 'UTC')), `sent_at` Nullable(DateTime64(6, 'UTC')),
        `partition` UInt32, `seq` UInt64 CODEC(Delta, ZSTD), `offset` UInt64 CODEC(Delta, ZSTD),
        `message_id` String, `send_id` Nullable(String),
        `recipient` String, `recipient_folded` Nullable(String), `recipient_domain` LowCardinality(Nullable(String)),
        `from` Nullable(String), `from_domain` LowCardinality(Nullable(String)), `subject` Nullable(String),
        `configuration_set_name` LowCardinality(Nullable(String)), `config_set_id` Nullable(UUID),
        `customer_id` Nullable(String), `category` LowCardinality(Nullable(String)),
        `tags` Map(LowCardinality(String), String), `metadata` Nullable(String),
        `unique` Bool, `counted` Bool, `history` Bool, `destination_ids` Array(UUID),
        `block_type` LowCardinality(String), `block` Map(LowCardinality(String), String),
        `recipient_key` String MATERIALIZED ifNull(recipient_folded, recipient),
        INDEX by_message `message_id` TYPE bloom_filter(0.01) GRANULARITY 1,
        INDEX by_recipient `recipient_key` TYPE bloom_filter(0.01) GRANULARITY 1
    ) ENGINE = MergeTree PARTITION BY toDate(`received_at`)
    ORDER BY (`account_id`, `occurred_at`, `event_id`, `partition`, `seq`)
    SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1",
    "CREATE TABLE IF NOT EXISTS stats_hourly (
        `account_id` UUID, `hour` Int32 COMMENT 'hours of occurred_at since 1970-01-01T00:00Z',
        `start` DateTime64(0, 'UTC') ALIAS toDateTime64(toInt64(`hour`) * 3600, 0, 'UTC'),
        `configuration_set_name` LowCardinality(Nullable(String)), `config_set_id` Nullable(UUID),
        `from_domain` LowCardinality(Nullable(String)), `recipient_domain` LowCardinality(Nullable(String)),
        `tags` Array(Tuple(String, String)),
        `sends` UInt64, `deliveries` UInt64, `permanent_bounces` UInt64, `transient_bounces` UInt64,
        `complaints` UInt64, `rejects` UInt64, `opens` UInt64, `unique_opens` UInt64, `clicks` UInt64,
        `unique_clicks` UInt64, `delays` UInt64, `rendering_failures` UInt64, `replies` UInt64
    ) ENGINE = SummingMergeTree ORDER BY (`account_id`, `hour`, `configuration_set_name`, `config_set_id`,
        `from_domain`, `recipient_domain`, `tags`)
    SETTINGS non_replicated_deduplication_window = 10000, allow_nullable_key = 1",
    concat!(
        "CREATE MATERIALIZED VIEW IF NOT EXISTS stats_hourly_view TO stats_hourly AS ",
        hourly!(),
        hourly_groups!()
    ),
    "CREATE TABLE IF NOT EXISTS status_changes (
        `account_id` UUID, `occurred_at` DateTime64(6, 'UTC'), `event_type` LowCardinality(String), `event_id` String,
        `from` LowCardinality(String), `to` LowCardinality(String), `rule` LowCardinality(String),
        `numerator` UInt64, `denominator` UInt64, `limit_ppm` UInt64, `reason` String, `partition` UInt32, `seq` UInt64
    ) ENGINE = MergeTree ORDER BY (`account_id`, `occurred_at`, `partition`, `seq`)
    SETTINGS non_replicated_deduplication_window = 10000",
    "CREATE MATERIALIZED VIEW IF NOT EXISTS status_changes_view TO status_changes AS SELECT `account_id`, `occurred_at`,
        `event_type`, `event_id`, `block`['from'] AS `from`, `block`['to'] AS `to`, `block`['rule'] AS `rule`,
        toUInt64OrZero(`block`['numerator']) AS `numerator`, toUInt64OrZero(`block`['denominator']) AS `denominator`,
        toUInt64OrZero(`block`['limit_ppm']) AS `limit_ppm`, `block`['reason'] AS `reason`, `partition`, `seq`
    FROM events WHERE `event_type` IN ('AtRisk', 'Paused', 'Resumed', 'Healthy')",
    "CREATE TABLE IF NOT EXISTS events_progress (
        `partition` UInt32, `first` SimpleAggregateFunction(min, UInt64), `last` SimpleAggregateFunction(max, UInt64),
        `rows` SimpleAggregateFunction(sum, UInt64)
    ) ENGINE = AggregatingMergeTree ORDER BY `partition` SETTINGS non_replicated_deduplication_window = 10000",
    "CREATE MATERIALIZED VIEW IF NOT EXISTS events_progress_view TO events_progress AS
        SELECT `partition`, min(`seq`) AS `first`, max(`seq`) AS `last`, count() AS `rows` FROM events GROUP BY `partition`",
    "CREATE TABLE IF NOT EXISTS deliveries (
        `account_id` UUID, `delivery_id` String, `destination_id` UUID,
        `started_at` DateTime64(6, 'UTC') CODEC(Delta, ZSTD), `finished_at` DateTime64(6, 'UTC') CODEC(Delta, ZSTD),
        `partition` UInt32, `event_seq` UInt64, `offset` UInt64 CODEC(Delta, ZSTD), `seq` UInt64 ALIAS `offset`,
        `number` UInt32, `status` LowCardinality(String), `status_code` Nullable(UInt16), `error` Nullable(String),
        `next_due_at` Nullable(DateTime64(6, 'UTC')), `first_started_at` DateTime64(6, 'UTC')
    ) ENGINE = MergeTree PARTITION BY toDate(`finished_at`)
    ORDER BY (`account_id`, `destination_id`, `finished_at`, `partition`, `offset`)
    SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1",
    "CREATE TABLE IF NOT EXISTS deliveries_progress (
        `partition` UInt32, `first` SimpleAggregateFunction(min, UInt64), `last` SimpleAggregateFunction(max, UInt64),
        `rows` SimpleAggregateFunction(sum, UInt64)
    ) ENGINE = AggregatingMergeTree ORDER BY `partition` SETTINGS non_replicated_deduplication_window = 10000",
    "CREATE MATERIALIZED VIEW IF NOT EXISTS deliveries_progress_view TO deliveries_progress AS
        SELECT `partition`, min(`offset`) AS `first`, max(`offset`) AS `last`, count() AS `rows`
        FROM deliveries GROUP BY `partition`",
];

/// Columns of `events` as events are read from them, of rows chosen by a query inside.
pub const SHOWN: &str = "toString(`account_id`) AS `account_id`, `event_id`, toString(`event_type`) AS `event_type`, \
    `occurred_at`, `received_at`, `original_occurred_at`, `sent_at`, toInt64(`partition`) AS `partition`, \
    toInt64(`seq`) AS `seq`, toInt64(`offset`) AS `offset`, `message_id`, `send_id`, `recipient`, `from`, `subject`, \
    CAST(`configuration_set_name`, 'Nullable(String)') AS `configuration_set_name`, \
    toString(`config_set_id`) AS `config_set_id`, `customer_id`, CAST(`category`, 'Nullable(String)') AS `category`, \
    CAST(`tags`, 'Map(String, String)') AS `tags`, `metadata`, `unique`, `counted`, `history`, \
    arrayMap(id -> toString(id), `destination_ids`) AS `destination_ids`, toString(`block_type`) AS `block_type`, \
    CAST(`block`, 'Map(String, String)') AS `block`";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::EventType;
    use crate::rollup::Sums;

    #[test]
    fn the_tables_know_every_column_and_type() {
        let all = MIGRATIONS.concat().join("\n");
        for field in super::super::row_schema().fields() {
            assert!(all.contains(&format!("`{}`", field.name())), "{}", field.name());
        }
        for field in crate::attempts::schema().fields() {
            assert!(all.contains(&format!("`{}`", field.name())), "{}", field.name());
        }
        for kind in EventType::ALL {
            let summed = Sums::of(kind, false, false) != Sums::default();
            assert_eq!(all.contains(&format!("'{}'", kind.name())), summed || kind.is_status(), "{kind:?}");
            assert_eq!(all.contains(&format!("`event_type` = '{}'", kind.name())), summed, "{kind:?}");
        }
        for (what, name) in ALL {
            let made = if what == "VIEW" { "CREATE MATERIALIZED VIEW" } else { "CREATE TABLE" };
            assert!(all.contains(&format!("{made} IF NOT EXISTS {name} ")), "{name}");
        }
        assert_eq!(all.matches("CREATE ").count(), ALL.len());
    }
}
