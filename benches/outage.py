#!/usr/bin/env python3
"""ClickHouse is killed for ten minutes while events come, and started again.

    cargo build --release && python3 benches/outage.py [--seconds 600] [--rate 500] [--out outage.json]

Starts docker/local/clickhouse and sendtrail in a folder of its own, on loopback, with `fallback = "archive"` and otherwise default
settings. Uniquely numbered events come throughout. While ClickHouse is down /events and /stats must answer as of a time that they
tell, which goes on, with all that was acknowledged before it and nothing that was never sent. Then ClickHouse is started again on
the same data, and once it has caught up every store must have what was acknowledged, once.

Prints a table, writes everything as JSON, and exits with 1 when anything differs; the folder with data and logs is kept then.
Ends by itself: every wait has a bound. Linux; Python's standard library only.
"""

import argparse
import http.client
import json
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from datetime import datetime, timedelta, timezone
from pathlib import Path

# Nothing is left beside the sources.
sys.dont_write_bytecode = True
from loopback import ADMIN, NAME, PARTNER, ROOT, ClickHouse, Failed, Sendtrail, Traffic, call, is_taken, last_lines  # noqa: E402

# Seconds of traffic before the outage, and after it is made up for.
AROUND = 15
# Seconds until answers must come from ClickHouse at first, and until everything is the same at the end.
SETTLE_WITHIN = 120
# Seconds for which nothing may be acknowledged, or the time that answers tell stand still, and until /health tells of the outage.
STILL = 30
# Events that a reconciliation compares at most, with some room.
RECONCILED = 1_900_000
# Faults that are told one by one.
TOLD = 50
# The metric of rows of events that were inserted.
INSERTED = "sendtrail_clickhouse_rows_total events"


class Probe:
    """One of the questions, and what its answers were like in one phase."""

    def __init__(self, path, read):
        self.path, self.read = path, read
        self.asked = self.dated = 0
        self.slowest = self.oldest = 0.0
        self.as_of, self.moved = None, time.monotonic()

    def shown(self):
        return {"asked": self.asked, "with_as_of": self.dated, "slowest_seconds": round(self.slowest, 3),
                "oldest_as_of_seconds": round(self.oldest, 3)}


def newest(answer):
    """How many events there are by the number of the newest."""
    events = answer["events"]
    return int(events[0]["event_id"].removeprefix(NAME)) + 1 if events else 0


# What is asked, and how the number of events is read from the answer.
QUESTIONS = [("/stats", lambda answer: answer["totals"]["sends"]), ("/events?event_type=send&limit=1", newest)]


class Run:
    def __init__(self, args, folder):
        self.args, self.folder = args, folder
        self.begun, self.phase = time.monotonic(), "start"
        self.faults, self.faults_in_all = [], 0
        self.samples, self.compared, self.report = [], [], {}
        self.clickhouse = ClickHouse(folder)
        self.server, self.traffic = Sendtrail(args.binary, folder, self.clickhouse.port), None
        self.account, self.key = "", ""
        self.over = threading.Event()

    def say(self, text):
        print(f"{time.monotonic() - self.begun:7.0f} s  {text}", flush=True)

    def fault(self, text):
        self.faults_in_all += 1
        if len(self.faults) < TOLD:
            told = f"{datetime.now(timezone.utc):%H:%M:%S} {self.phase}: {text}"
            self.faults.append(told)
            print(f"DIFFERS  {told}", flush=True)

    def check_alive(self):
        self.server.check_alive()
        if self.traffic.broken:
            raise Failed(self.traffic.broken)
        if not self.traffic.stopping.is_set() and self.traffic.quiet() > STILL:
            raise Failed(f"no event was acknowledged for {STILL} s; POST /events was answered at last: {self.traffic.last}")

    def watch_server(self):
        """Memory and what waits, by the second."""
        while not self.over.wait(1):
            try:
                sample = {"second": round(time.monotonic() - self.begun, 1), "phase": self.phase}
                sample["rss_mib"] = self.server.memory()
                metrics = self.server.metrics()
            except (OSError, http.client.HTTPException, ValueError, TypeError):
                continue  # The main thread tells why there is no answer.
            names = {"lag_rows": "sendtrail_clickhouse_lag_rows events", "inserted_rows": INSERTED,
                     "failed_inserts": "sendtrail_clickhouse_failures_total events", "tail_rows": "sendtrail_tail_rows",
                     "log_disk_bytes": "sendtrail_log_disk_bytes", "log_queued_bytes": "sendtrail_log_queued_bytes",
                     "partition_lag_seconds": "sendtrail_partition_lag_seconds", "fallbacks": "sendtrail_query_fallbacks_total"}
            sample.update({short: metrics.get(name, 0) for short, name in names.items()})
            sample["acknowledged"] = self.traffic.acknowledged
            self.samples.append(sample)

    def check(self, probe, must_be_dated):
        """Asks, and looks whether the answer can be true; gives what it told and whether it is as of now, or None."""
        asked, begun = time.time(), time.monotonic()
        try:
            status, headers, body = call(self.server.port, "GET", PARTNER + probe.path, self.key)
        except (OSError, http.client.HTTPException) as error:
            self.fault(f"{probe.path} has no answer: {type(error).__name__}: {error}")
            return None
        probe.asked += 1
        probe.slowest = max(probe.slowest, time.monotonic() - begun)
        if status != 200:
            self.fault(f"{probe.path} was answered {status}: {body.decode(errors='replace')[:300]}")
            return None
        found, dated = probe.read(json.loads(body)), headers.get("Sendtrail-As-Of")
        as_of = datetime.fromisoformat(dated.replace("Z", "+00:00")).timestamp() if dated else asked
        least, most = self.traffic.before(as_of), self.traffic.offered
        told = f"as of {dated}" if dated else "as of now (without Sendtrail-As-Of)"
        if found < least:
            self.fault(f"{probe.path} tells of {found} events {told}; {least} were acknowledged before that")
        if found > most:
            self.fault(f"{probe.path} tells of {found} events {told}; only {most} were ever sent")
        if dated:
            probe.dated += 1
            probe.oldest = max(probe.oldest, asked - as_of)
        elif must_be_dated:
            self.fault(f"{probe.path} has no Sendtrail-As-Of while ClickHouse is down")
        if probe.as_of is None or as_of > probe.as_of:
            probe.as_of, probe.moved = as_of, time.monotonic()
        elif time.monotonic() - probe.moved > STILL:
            self.fault(f"{probe.path} does not come forward: it is {told}, as {STILL} s ago")
            probe.moved = time.monotonic()
        return found, not dated

    def watch(self, phase, seconds, every, until=None, down=False):
        """Asks again and again; whether what is waited for came in time."""
        self.phase, begun, said, came = phase, time.monotonic(), 0.0, False
        probes = [Probe(*question) for question in QUESTIONS]
        while not came and (passed := time.monotonic() - begun) < seconds:
            self.check_alive()
            answers = [self.check(probe, down) for probe in probes]
            if down:
                status, checks = self.server.health()
                if status != 200:
                    self.fault(f"/health is {status or 'not answered'} though the archive answers: {checks}")
                if checks.get("clickhouse") == "ok" and passed > STILL:
                    self.fault("/health says that ClickHouse is ok while it is down")
                if is_taken(self.clickhouse.port):
                    raise Failed(f"somebody else listens on port {self.clickhouse.port}, which was ClickHouse's: run this again")
            came = until is not None and until(answers)
            if self.samples and passed >= said:
                last, said = self.samples[-1], said + 30
                self.say(f"{phase}: {self.traffic.acknowledged:,} acknowledged, ClickHouse lacks {last['lag_rows']:,.0f} rows, "
                         f"{last['rss_mib']} MiB")
            if not came:
                time.sleep(max(0.0, min(every, seconds - (time.monotonic() - begun))))
        self.report.setdefault("phases", {})[phase] = {
            "seconds": round(time.monotonic() - begun, 1), **{probe.path: probe.shown() for probe in probes}}
        return came

    def as_of_now(self, answers):
        """Both answers are from ClickHouse."""
        return all(answer is not None and answer[1] for answer in answers)

    def settled(self, answers):
        """Nothing is under way any more."""
        metrics = self.server.metrics()
        lags = [metrics.get(f"sendtrail_clickhouse_lag_rows {table}", 0) for table in ("events", "deliveries")]
        return self.as_of_now(answers) and all(found == self.traffic.acknowledged for found, _ in answers) and not any(lags)

    def drive(self):
        took = self.clickhouse.start()
        self.say(f"ClickHouse answers on port {self.clickhouse.port} after {took:.1f} s")
        self.server.start()
        self.account, self.key = self.server.make_account()
        self.say(f"sendtrail answers on port {self.server.port}; {self.args.rate:g} events/s come")
        self.traffic = Traffic(self.server.port, self.key, self.args.rate)
        self.traffic.start()
        watching = threading.Thread(target=self.watch_server, daemon=True)
        watching.start()
        self.watch("before", AROUND, 1)
        if not self.watch("until ClickHouse answers at first", SETTLE_WITHIN, 1, self.as_of_now):
            raise Failed(f"ClickHouse never answered before the outage; /health: {self.server.health()[1]}; "
                         f"{last_lines(self.server.log)}")

        self.clickhouse.kill()
        killed, before = time.monotonic(), self.traffic.acknowledged
        if is_taken(self.clickhouse.port):
            raise Failed(f"something still listens on port {self.clickhouse.port} though ClickHouse was killed")
        self.say(f"ClickHouse is killed, for {self.args.seconds:g} s")
        self.watch("outage", self.args.seconds, 3, down=True)

        missed, inserted = self.traffic.acknowledged - before, self.server.metrics().get(INSERTED, 0)
        again, at = time.monotonic(), time.monotonic() - self.begun
        self.say(f"ClickHouse is started again; {missed:,} events were acknowledged without it")
        answered = self.clickhouse.start()
        patience = max(300.0, self.args.seconds)
        caught_up = self.watch("catching up", patience, 0.5, self.as_of_now)
        took = time.monotonic() - again
        first = next((sample["second"] - at for sample in self.samples if sample["inserted_rows"] > inserted), None)
        self.report["catching_up"] = {
            "outage_seconds": round(again - killed, 1), "events_acknowledged_meanwhile": missed, "caught_up": caught_up,
            "seconds_until_clickhouse_answered": round(answered, 1),
            "seconds_until_first_insert": None if first is None else round(first, 1),
            "seconds_until_answers_came_from_clickhouse": round(took, 1) if caught_up else None}
        if caught_up:
            self.say(f"caught up {took:.1f} s after the start: it answered after {answered:.1f} s")
        else:
            self.fault(f"ClickHouse has not caught up in {patience:.0f} s; /health: {self.server.health()[1].get('clickhouse')}")
        self.watch("after", AROUND, 1)
        self.traffic.stop()
        # Also whoever was given up at the end is compared: what is not acknowledged may be there, and is told.
        if self.traffic.broken:
            self.fault(self.traffic.broken)
            self.traffic.broken = None
        for text in self.traffic.failed:
            self.fault(text)
        if not self.watch("until all is settled", SETTLE_WITHIN, 1, self.settled):
            self.fault(f"not everything is in ClickHouse {SETTLE_WITHIN} s after the last event; /health: "
                       f"{self.server.health()[1].get('clickhouse')}")
        status, checks = self.server.health()
        if status != 200 or checks.get("clickhouse") != "ok":
            self.fault(f"/health is {status or 'not answered'} at the end: {checks}")
        self.over.set()
        watching.join(60)
        self.compare()

    def same(self, what, wanted, found):
        self.compared.append({"what": what, "wanted": wanted, "found": found, "same": wanted == found})
        if wanted != found:
            self.fault(f"{what}: {found}, not {wanted}")

    def compare(self):
        """Whether everybody has what was acknowledged, once."""
        self.phase, wanted, ask = "at the end", self.traffic.acknowledged, self.clickhouse.ask
        for path, read in QUESTIONS:
            answer = self.check(Probe(path, read), False)
            what = "the number of the newest" if read is newest else "totals.sends"
            self.same(f"{path}, {what}", wanted, answer and answer[0])
            self.same(f"{path} is as of now", True, answer and answer[1])
        of = (f"FROM (SELECT event_id, toUInt64OrNull(substring(event_id, {len(NAME) + 1})) AS n FROM events "
              f"WHERE account_id = '{self.account}' AND event_type = 'Send')")
        [counts] = ask("SELECT count(), uniqExact(event_id), "
                       f"uniqExactIf(n, n < {wanted}), countIf(n IS NULL OR n >= {wanted}) {of}")
        rows, distinct, there, strange = map(int, counts)
        self.same("ClickHouse, count() of these events", wanted, rows)
        self.same("ClickHouse, uniqExact(event_id)", wanted, distinct)
        self.same("ClickHouse, numbers that are missing", 0, wanted - there)
        self.same("ClickHouse, events that nobody acknowledged", 0, strange)
        if there != wanted:
            missing = ask(f"SELECT number FROM numbers({wanted}) WHERE number NOT IN "
                          f"(SELECT assumeNotNull(n) {of} WHERE n IS NOT NULL) ORDER BY number LIMIT 10")
            self.fault(f"missing in ClickHouse, the first: {', '.join(row[0] for row in missing)}")
        if distinct != rows:
            twice = ask(f"SELECT event_id, count() {of} GROUP BY event_id HAVING count() > 1 ORDER BY event_id LIMIT 10")
            self.fault(f"more than once in ClickHouse, the first: {', '.join(' x '.join(row) for row in twice)}")
        sums = ask(f"SELECT sum(sends) FROM stats_hourly WHERE account_id = '{self.account}'")
        self.same("ClickHouse, sum(sends) of stats_hourly", wanted, int(sums[0][0]))
        told = {int(row[0]): int(row[1]) for row in ask("SELECT partition, sum(`rows`) FROM events_progress GROUP BY partition")}
        partitions = ask("SELECT partition, count(), uniqExact(partition, seq), max(seq) - min(seq) + 1, "
                         f"countIf(account_id = '{self.account}' AND event_type = 'Send') FROM events "
                         "GROUP BY partition ORDER BY partition")
        for partition, count, numbers, span, ours in (map(int, row) for row in partitions):
            # The calls that made account and key are rows, too.
            what = f"partition {partition}, {ours} of these events and {count - ours} other rows:"
            self.same(f"{what} uniqExact(partition, seq)", count, numbers)
            self.same(f"{what} max(seq) - min(seq) + 1", count, span)
            self.same(f"{what} rows by events_progress", count, told.get(partition))
        self.reconcile()

    def reconcile(self):
        """What the server says of log, archive, ClickHouse and sums."""
        if self.traffic.acknowledged > RECONCILED:
            return self.say("too many events for a reconciliation; none is asked for")
        first = datetime.now(timezone.utc) - timedelta(seconds=time.monotonic() - self.begun)
        days = f"from={first:%Y-%m-%d}&to={datetime.now(timezone.utc) + timedelta(days=1):%Y-%m-%d}"
        until = time.monotonic() + 60
        while True:
            path = f"/api/v1/admin/reconciliation?{days}&account_id={self.account}"
            status, _, body = call(self.server.port, "GET", path, ADMIN, timeout=300)
            if status != 503 or time.monotonic() > until:
                break
            time.sleep(1)
        found = json.loads(body) if status == 200 else {"status": status, "told": body.decode(errors="replace")[:300]}
        self.same("reconciliation: log, archive, ClickHouse and sums are equal", True, found.get("equal"))
        if found.get("equal") is not True:
            self.fault(f"reconciliation: {json.dumps(found)[:2000]}")

    def stop(self):
        """Ends what this program started, and nothing else."""
        self.over.set()
        if self.traffic is not None and self.traffic.is_alive():
            self.traffic.stopping.set()
            self.traffic.given_up.set()
        self.server.stop()
        self.clickhouse.kill()

    def conclude(self):
        """The table and the report."""
        def at_most(phase):
            of = [sample["rss_mib"] for sample in self.samples if sample["phase"] == phase]
            half = len(of) // 2
            return [max(part, default=None) for part in (of[:half], of[half:])]

        memory = {phase: at_most(phase) for phase in ("before", "outage", "catching up", "after")}
        lag = max((int(sample["lag_rows"]) for sample in self.samples), default=None)
        traffic = self.traffic
        if traffic is not None:
            self.report["traffic"] = {
                "acknowledged": traffic.acknowledged, "per_second": round(traffic.acknowledged / max(traffic.seconds, 0.001), 1),
                "held_back": traffic.held, "without_answer": traffic.unheard, "slowest_seconds": round(traffic.slowest, 3)}
        self.report.update(arguments={**vars(self.args), "binary": str(self.args.binary)}, ok=not self.faults_in_all,
                           faults_in_all=self.faults_in_all, faults=self.faults, compared=self.compared,
                           rss_mib_at_most_by_halves=memory, lag_rows_at_most=lag, samples=self.samples)
        print(f"\n  {'phase':<34} {'s':>6} {'asked':>5} {'as of':>5} {'slowest':>9} {'oldest':>8}")
        for phase, told in self.report.get("phases", {}).items():
            for path, _ in QUESTIONS:
                of = told[path]
                print(f"  {phase:<34} {told['seconds']:>6} {of['asked']:>5} {of['with_as_of']:>5} "
                      f"{of['slowest_seconds']:>7.2f} s {of['oldest_as_of_seconds']:>6.2f} s  {path}")
        for name in ("traffic", "catching_up"):
            for key, value in self.report.get(name, {}).items():
                print(f"  {name.replace('_', ' ')}: {key.replace('_', ' ')}: {value}")
        print(f"  memory, MiB at most, in the first half of each phase and in the second: {memory}")
        print(f"  rows that ClickHouse lacked at most: {lag}")
        if traffic is not None and traffic.acknowledged < 0.95 * self.args.rate * traffic.seconds:
            print("  this machine did not keep up with the rate that was asked for: figures are of the one that was reached")
        print(f"\n  {'':<80} {'wanted':>12} {'found':>12}")
        for row in self.compared:
            print(f"  {row['what']:<80} {row['wanted']!s:>12} {row['found']!s:>12}{'' if row['same'] else '   DIFFERS'}")
        Path(self.args.out).write_text(json.dumps(self.report, indent=1) + "\n")
        print(f"\n{self.args.out} has everything, by the second")


def positive(text):
    number = float(text)
    if not 0 < number < 1e9:
        raise argparse.ArgumentTypeError("must be more than 0")
    return number


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=positive, default=600, help="how long ClickHouse is down")
    parser.add_argument("--rate", type=positive, default=500, help="events a second, throughout")
    parser.add_argument("--out", default="outage.json", help="the report")
    parser.add_argument("--binary", type=Path, help="target/release/sendtrail, or target/debug/sendtrail where that is missing")
    args = parser.parse_args()
    built = [args.binary] if args.binary else [ROOT / "target" / profile / "sendtrail" for profile in ("release", "debug")]
    args.binary = next((path.resolve() for path in built if path.is_file()), None)
    if args.binary is None:
        parser.error(f"there is no {' and no '.join(map(str, built))}: run 'cargo build --release' first")
    if not Path(args.out).resolve().parent.is_dir():
        parser.error(f"there is no folder for {args.out}")
    # So that what was started is ended, too.
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda number, _: sys.exit(128 + number))
    folder, keep = Path(tempfile.mkdtemp(prefix="sendtrail-outage-")), False
    run = Run(args, folder)
    try:
        run.drive()
        keep = run.faults_in_all > 0
    except Failed as error:
        keep = True
        run.fault(f"given up: {error}")
    except Exception as error:  # Such as an answer that is not what it should be.
        keep = True
        traceback.print_exc()
        run.fault(f"given up: {type(error).__name__}: {error}")
    finally:
        run.stop()
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    run.conclude()
    if not keep:
        print("everything that was acknowledged is everywhere, once")
        return 0
    print(f"FAILED, data and logs are kept in {folder}; differences: {run.faults_in_all}", file=sys.stderr)
    for text in run.faults:
        print(f"  {text}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
