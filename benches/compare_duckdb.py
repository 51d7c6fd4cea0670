"""What DuckDB takes for the same answers of the same files: python benches/compare_duckdb.py FOLDER ACCOUNT_ID"""

import sys
import time

import duckdb
from deltalake import DeltaTable

folder, account = sys.argv[1:3]
files = [uri.removeprefix("file://") for uri in DeltaTable(folder).file_uris()]
connection = duckdb.connect()
connection.execute("set threads = 2")
source = "read_parquet($files, hive_partitioning = true)"
message = connection.execute(f"select message_id from {source} where account_id = $account limit 1", {"files": files, "account": account}).fetchall()[0][0]
day = connection.execute(f"select max(dt)::date - 1 from {source}", {"files": files}).fetchall()[0][0]
questions = {
    "/stats: 14 days of one account, by hour and domain": f"""
        select date_trunc('hour', occurred_at), split_part(recipient, '@', 2), count(*) filter (event_type = 'Send'),
            count(*) filter (event_type = 'Delivery'), count(*) filter (event_type = 'Open'),
            count(*) filter (bounce.bounceType = 'Permanent')
        from {source} where account_id = $account group by all""",
    "/emails: a look-up by message id": f"select * from {source} where account_id = $account and message_id = $message",
    "/events: one account's bounces of a day": f"""
        select * from {source} where account_id = $account and event_type = 'Bounce'
            and occurred_at >= $day::date and occurred_at < $day::date + 1 order by occurred_at desc limit 1000""",
    "/events: the newest 50 of one account": f"select * from {source} where account_id = $account order by occurred_at desc limit 50",
}
for name, question in questions.items():
    parameters = {"files": files, "account": account}
    parameters |= {"message": message} if "$message" in question else {}
    parameters |= {"day": str(day)} if "$day" in question else {}
    times = []
    for _ in range(9):
        begun = time.perf_counter()
        connection.execute(question, parameters).fetchall()
        times.append(time.perf_counter() - begun)
    print(f"  {name:<58} {sorted(times)[4] * 1e3:10.2f} ms")
