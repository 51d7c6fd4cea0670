-- Views over an archive for DuckDB. Paths are from the folder that holds `events` and `attempts`: `archive` in the data folder, or
-- what `archive.dir` names. With this repository at REPO:
--   cd DATA/archive && duckdb -init REPO/docs/duckdb.sql
-- Files of an export need none: SELECT * FROM 'events-*.parquet'.
-- Files are listed here by their names. While the server runs, merged files lie beside those they were merged from for a day
-- (archive.vacuum_after_hours); what counts then is the Delta log: use delta_scan('events') (INSTALL delta), or the list that
-- `deltalake` or Polars give. The views below take every row once, by its identity; `copies` tells how many there were.
CREATE OR REPLACE VIEW events AS
SELECT * FROM read_parquet('events/dt=*/*.parquet', hive_partitioning = true, union_by_name = true)
QUALIFY row_number() OVER (PARTITION BY "partition", seq) = 1;

-- Whether every partition is whole. Copies are rows of files that were merged, until they are deleted.
CREATE OR REPLACE VIEW audit AS
SELECT "partition", count(DISTINCT seq) AS rows, min(seq) AS first, max(seq) AS last,
    count(DISTINCT seq) = max(seq) - min(seq) + 1 AS whole, count(*) - count(DISTINCT seq) AS copies
FROM read_parquet('events/dt=*/*.parquet', hive_partitioning = true, union_by_name = true)
GROUP BY "partition" ORDER BY "partition";

-- What /stats counts, by UTC day and account.
CREATE OR REPLACE VIEW daily AS
SELECT account_id, occurred_at::DATE AS day,
    count(*) FILTER (event_type = 'Send') AS sends,
    count(*) FILTER (event_type = 'Delivery') AS deliveries,
    count(*) FILTER (event_type = 'Bounce' AND lower(bounce.bounceType) = 'permanent') AS permanent_bounces,
    count(*) FILTER (event_type = 'Bounce' AND lower(bounce.bounceType) <> 'permanent') AS transient_bounces,
    count(*) FILTER (event_type = 'Complaint') AS complaints,
    count(*) FILTER (event_type = 'Open') AS opens,
    count(*) FILTER (event_type = 'Open' AND "unique") AS unique_opens,
    count(*) FILTER (event_type = 'Click') AS clicks,
    count(*) FILTER (event_type = 'Click' AND "unique") AS unique_clicks
FROM events GROUP BY account_id, day ORDER BY account_id, day;
