"""What a bench of the real program needs: ClickHouse and Sendtrail in processes of their own on loopback, and numbered events."""

import bisect
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ADMIN = "an administrator's key for benches"
PARTNER = "/api/v1/partner/email"
DATABASE = "bench"
# What the identifiers of events begin with; twelve digits follow.
NAME = "event-"
# Seconds that a start may take; the first of ClickHouse downloads it.
START_WITHIN = 300
# Events of one request at most: whoever was held back makes up for it.
BATCH = 2_000
# Answers other than 200, 429 and 503 that are put up with.
FAILURES = 50


class Failed(Exception):
    """There is no point in going on."""


def call(port, method, path, key=None, body=None, timeout=60):
    """One request on a connection of its own: status, headers, body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        connection.request(method, path, body, headers)
        reply = connection.getresponse()
        return reply.status, reply.headers, reply.read()
    finally:
        connection.close()


def last_lines(path, count=15):
    try:
        lines = path.read_text(errors="replace").splitlines()[-count:]
    except OSError as error:
        return f"{path}: {error}"
    return f"the last of {path}:\n" + "\n".join(f"    {line[:500]}" for line in lines)


def is_taken(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
        return True
    except OSError:
        return False


def free_port():
    """Below those that the system gives to outgoing connections: it is needed again after the outage."""
    for step in range(6_000):
        port = 20_000 + 2 * ((os.getpid() + step) % 6_000)
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    raise Failed("there is no free port between 20000 and 32000")


class ClickHouse:
    """docker/local/clickhouse. It ends with this program, however that ends: its standard input does."""

    def __init__(self, folder):
        self.data, self.log, self.scratch = folder / "clickhouse", folder / "clickhouse.log", folder / "scratch"
        self.scratch.mkdir()
        self.port, self.process = free_port(), None

    def start(self):
        """Starts it; gives the seconds until it answered."""
        begun = time.monotonic()
        arguments = ["--port", str(self.port), "--while-stdin-is-open", "--data", str(self.data)]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([ROOT / "docker/local/clickhouse", *arguments], stdin=subprocess.PIPE,
                                            stdout=subprocess.DEVNULL, stderr=log, env=dict(os.environ, TMPDIR=str(self.scratch)))
        while time.monotonic() - begun < START_WITHIN:
            # Whether it ended is asked first: what answers may be somebody else, who has its port.
            if self.process.poll() is not None:
                raise Failed(f"docker/local/clickhouse ended with {self.process.returncode}; {last_lines(self.log)}")
            try:
                if call(self.port, "GET", "/ping", timeout=2)[0] == 200:
                    return time.monotonic() - begun
            except (OSError, http.client.HTTPException):
                pass
            time.sleep(0.1)
        raise Failed(f"docker/local/clickhouse did not answer in {START_WITHIN} s; {last_lines(self.log)}")

    def kill(self):
        """SIGKILL. Its folder stays: it deletes that only when its input ends first."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(30)
            self.process.stdin.close()
            self.process = None

    def ask(self, sql):
        """Rows of text."""
        status, _, body = call(self.port, "POST", f"/?database={DATABASE}", body=sql.encode(), timeout=300)
        if status != 200:
            raise Failed(f"ClickHouse answers {status} to {sql!r}: {body.decode(errors='replace')[:1000]}")
        return [line.split("\t") for line in body.decode().splitlines()]


class Sendtrail:
    """The program, with answers from ClickHouse and from the archive while that is down, and otherwise its own settings."""

    def __init__(self, binary, folder, clickhouse_port):
        self.binary, self.folder, self.log = binary, folder, folder / "server.log"
        self.settings = folder / "sendtrail.toml"
        self.settings.write_text(f'[clickhouse]\nurl = "http://127.0.0.1:{clickhouse_port}"\ndatabase = "{DATABASE}"\n'
                                 'fallback = "archive"\n')
        self.process, self.port = None, 0

    def start(self):
        # Nobody else's settings.
        env = {name: value for name, value in os.environ.items() if not name.startswith("SENDTRAIL_") and name != "FAILPOINTS"}
        env["SENDTRAIL_ADMIN_KEY"] = ADMIN
        where = ["--config", str(self.settings), "--data", str(self.folder / "data")]
        made = subprocess.run([self.binary, "migrate", *where], env=env, capture_output=True, text=True, timeout=START_WITHIN)
        if made.returncode:
            raise Failed(f"'sendtrail migrate' ended with {made.returncode}: {made.stdout}{made.stderr}")
        out = self.folder / "server.out"
        with open(out, "wb") as stdout, open(self.log, "wb") as stderr:
            self.process = subprocess.Popen([self.binary, "serve", *where, "--listen", "127.0.0.1:0"], env=env,
                                            stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
        until = time.monotonic() + START_WITHIN
        while not (found := re.search(r"listening on http://\S+:(\d+)\n", out.read_text())):
            self.check_alive()
            if time.monotonic() > until:
                raise Failed(f"the server does not listen after {START_WITHIN} s; {last_lines(self.log)}")
            time.sleep(0.1)
        self.port = int(found[1])

    def check_alive(self):
        if self.process.poll() is not None:
            raise Failed(f"the server ended with {self.process.returncode}; {last_lines(self.log)}")

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(30)

    def ask(self, method, path, body=None):
        """As the administrator."""
        status, _, reply = call(self.port, method, path, ADMIN, None if body is None else json.dumps(body))
        if not 200 <= status < 300:
            raise Failed(f"{method} {path} was answered {status}: {reply.decode(errors='replace')[:1000]}")
        return json.loads(reply)

    def make_account(self):
        """An account that nothing is refused to, and a key of it."""
        account = self.ask("POST", "/api/v1/admin/accounts", {
            "name": "bench", "contact_email": "a@b.example", "mode": "production", "daily_send_quota": 100_000_000,
            "peak_send_rate_per_second": 1_000_000, "policy": {"minimum_sends": 1_000_000_000}})["account"]["account_id"]
        return account, self.ask("POST", f"/api/v1/admin/accounts/{account}/keys", {})["key"]["api_key"]

    def metrics(self):
        """By name, added up over labels other than table."""
        found = {}
        for line in call(self.port, "GET", "/metrics", timeout=30)[2].decode().splitlines():
            if line.startswith("sendtrail_"):
                name, value = line.rsplit(" ", 1)
                table = re.search(r'[{,]table="(\w+)"', name)
                name = name.split("{")[0] + (f" {table[1]}" if table else "")
                found[name] = found.get(name, 0) + float(value)
        return found

    def health(self):
        """Its status and checks; 0 when there is no answer."""
        try:
            status, _, body = call(self.port, "GET", "/health", timeout=30)
            return status, json.loads(body)["checks"]
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            return 0, {"clickhouse": f"/health has no answer: {type(error).__name__}: {error}"}

    def memory(self):
        """MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) // 1024


class Traffic(threading.Thread):
    """Numbered events, one request after the other. One that is not taken is sent again as it was, so numbers are acknowledged
    in their order and without gaps."""

    def __init__(self, port, key, rate):
        super().__init__(daemon=True)
        self.port, self.key, self.rate = port, key, rate
        self.stopping, self.given_up = threading.Event(), threading.Event()
        self.offered = self.acknowledged = self.held = self.unheard = 0
        self.failed, self.broken, self.last, self.slowest = [], None, "not at all", 0.0
        self.counts, self.times, self.heard = [], [], time.monotonic()
        self.connection, self.seconds = None, 0.0

    def before(self, at):
        """How many were acknowledged before a time."""
        found = bisect.bisect_left(self.times, at)
        return self.counts[found - 1] if found else 0

    def quiet(self):
        """Seconds since something was acknowledged."""
        return time.monotonic() - self.heard

    def run(self):
        begun = time.monotonic()
        try:
            while not self.stopping.is_set():
                due = int((time.monotonic() - begun) * self.rate) - self.acknowledged
                if due > 0:
                    self.tell(self.acknowledged, self.acknowledged + min(due, BATCH))
                self.seconds = time.monotonic() - begun
                self.stopping.wait(0.1)
        except Exception as error:  # The main thread tells it.
            self.broken = f"events are not streamed any more: {type(error).__name__}: {error}"

    def tell(self, first, end):
        body = "".join(f'{{"event_type":"Send","message_id":"{NAME}{n:012}","event_id":"{NAME}{n:012}",'
                       f'"recipient":"u{n}@inbox.example","subject":"June"}}\n' for n in range(first, end)).encode()
        self.offered = end
        while True:
            begun = time.monotonic()
            status, reply = self.post(body)
            self.slowest = max(self.slowest, time.monotonic() - begun)
            self.last = f"{status or 'not at all'}: {reply[:300]}"
            if status == 200:
                if json.loads(reply).get("accepted") != end - first:
                    raise Failed(f"of events {first} to {end - 1} some were refused: {reply[:1000]}")
                self.counts.append(end)
                self.times.append(max(time.time(), self.times[-1] if self.times else 0))
                self.acknowledged, self.heard = end, time.monotonic()
                return
            if status in (429, 503):
                self.held += 1
            elif status == 0:
                self.unheard += 1
            else:
                self.failed.append(f"POST /events was answered {self.last}")
                if status < 500 or len(self.failed) > FAILURES:
                    raise Failed(self.failed[-1])
            if self.given_up.wait(0.25):
                raise Failed(f"events {first} to {end - 1} were never acknowledged; POST /events was answered {self.last}")

    def post(self, body):
        try:
            if self.connection is None:
                self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
            headers = {"Content-Type": "application/x-ndjson", "Authorization": f"Bearer {self.key}"}
            self.connection.request("POST", f"{PARTNER}/events", body, headers)
            reply = self.connection.getresponse()
            return reply.status, reply.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            self.connection.close()
            self.connection = None
            return 0, f"{type(error).__name__}: {error}"

    def stop(self):
        self.stopping.set()
        self.join(60)
        self.given_up.set()
        self.join(60)
