#!/usr/bin/env python3
"""Three times what a server can take, on every surface at once, for two minutes.

    cargo build --release && python3 benches/overload.py [--seconds 120] [--out docs/overload]

Starts target/release/sendtrail on a folder of its own, measures what each surface takes when it is asked one after the other
(that is what can be sustained), offers three times as much whatever is answered, measures again, and then looks whether
everything that was acknowledged is there, once. Writes memory by the second as OUT.csv and OUT.svg. Python's standard library only.
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request

ADMIN = "an administrator's key for benches"
PARTNER = "/api/v1/partner/email"
BATCH = 200
# Requests of a surface that may wait for an answer; beyond, a client would time out, too.
OUTSTANDING = 400


class Surface:
    """One kind of request, and what became of those that were made."""

    def __init__(self, name, workers, make):
        self.name, self.workers, self.make = name, workers, make
        self.clear()
        self.acknowledged = 0

    def clear(self):
        self.ok = self.held = self.unheard = self.no_hint = self.units = 0
        self.other = {}
        self.slowest = 0.0

    def note(self, status, head, units, took):
        self.slowest = max(self.slowest, took)
        if status == 200:
            self.ok += 1
            self.units += units
            self.acknowledged += units
        elif status in (429, 503):
            self.held += 1
            self.no_hint += b"retry-after:" not in head.lower()
        else:
            self.other[status] = self.other.get(status, 0) + 1


class Connection:
    """Requests one after the other."""

    def __init__(self, port):
        self.port, self.streams = port, None

    async def call(self, request):
        was_idle = self.streams is not None
        answer = await self.try_to(request)
        # A server may close a connection that is idle. What changes nothing is asked again, as any client does.
        return await self.try_to(request) if not answer[0] and was_idle and request.startswith(b"GET") else answer

    async def try_to(self, request):
        try:
            if self.streams is None:
                self.streams = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 22)
            reader, writer = self.streams
            writer.write(request)
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            length = next((int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
            body = await reader.readexactly(length)
            return int(head.split(b" ", 2)[1]), head, body
        except (OSError, asyncio.IncompleteReadError):
            self.streams = None
            return 0, b"", b""


def request(method, path, key, body=b"", kind="application/json"):
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def one(surface, connection):
    sent, units = surface.make()
    begun = time.monotonic()
    status, head, body = await connection.call(sent)
    surface.note(status, head, units, time.monotonic() - begun)
    return status


async def closed(surfaces, port, seconds):
    """What is taken of each, asked one after the other; a second."""
    until = time.monotonic() + seconds

    async def work(surface):
        connection = Connection(port)
        while time.monotonic() < until:
            if await one(surface, connection) != 200:
                await asyncio.sleep(0.05)

    for surface in surfaces:
        surface.clear()
    await asyncio.gather(*(work(surface) for surface in surfaces for _ in range(surface.workers)))
    return {surface.name: surface.ok / seconds for surface in surfaces}


async def offered(surfaces, port, rates, seconds):
    """So many of each a second, whatever is answered."""

    async def offer(surface, rate):
        idle, under_way = [], set()
        begun, made = time.monotonic(), 0
        while (now := time.monotonic() - begun) < seconds:
            due = int(now * rate)
            while made < due:
                made += 1
                if len(under_way) >= OUTSTANDING:
                    surface.unheard += 1
                    continue
                connection = idle.pop() if idle else Connection(port)

                async def go(connection):
                    await one(surface, connection)
                    idle.append(connection)

                task = asyncio.ensure_future(go(connection))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
            await asyncio.sleep(0.005)
        await asyncio.gather(*under_way)

    for surface in surfaces:
        surface.clear()
    await asyncio.gather(*(offer(surface, 3 * rates[surface.name]) for surface in surfaces))


async def memory(pid, samples):
    while True:
        with open(f"/proc/{pid}/status") as status:
            rss = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
        samples.append((time.monotonic(), rss / 1024))
        await asyncio.sleep(1)


def draw(path, samples, begun, ended):
    width, height, top = 800, 240, max(rss for _, rss in samples) * 1.1
    last = samples[-1][0]
    x = lambda at: 40 + at / last * (width - 50)
    y = lambda rss: height - 20 - rss / top * (height - 30)
    line = " ".join(f"{x(at):.1f},{y(rss):.1f}" for at, rss in samples)
    with open(path, "w") as out:
        out.write(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">'
            f'<rect width="{width}" height="{height}" fill="white"/>'
            f'<rect x="{x(begun):.1f}" y="10" width="{x(ended) - x(begun):.1f}" height="{height - 30}" fill="#fde8e8"/>'
            f'<text x="{x(begun) + 6:.1f}" y="24">three times as much as can be taken</text>'
            f'<polyline points="{line}" fill="none" stroke="#1f4e9c" stroke-width="1.5"/>'
            f'<text x="4" y="{y(top / 1.1):.1f}">{top / 1.1:.0f}</text><text x="4" y="{height - 20}">0 MiB</text>'
            f'<text x="{width - 60}" y="{height - 5}">{last:.0f} s</text></svg>\n'
        )


async def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--out", default="overload")
    parser.add_argument("--program", default="target/release/sendtrail")
    args = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="sendtrail-overload-")
    environment = dict(os.environ, SENDTRAIL_ADMIN_KEY=ADMIN)
    server = subprocess.Popen([args.program, "serve", "--data", folder, "--listen", "127.0.0.1:0"], env=environment,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        port = next(int(line.rsplit(":", 1)[1]) for line in server.stdout if "listening on" in line)

        def ask(method, path, key=ADMIN, body=None):
            sent = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method,
                                          data=None if body is None else json.dumps(body).encode(),
                                          headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"})
            with urllib.request.urlopen(sent) as reply:
                return json.load(reply)

        accounts = []
        for name in ("events", "sends"):
            account = ask("POST", "/api/v1/admin/accounts", body={
                "name": name, "contact_email": "a@b.example", "mode": "production", "daily_send_quota": 100_000_000,
                "peak_send_rate_per_second": 1_000_000, "policy": {"minimum_sends": 1_000_000_000}})["account"]["account_id"]
            path = f"/api/v1/admin/accounts/{account}"
            key = ask("POST", f"{path}/keys", body={})["key"]["api_key"]
            ask("POST", f"{PARTNER}/identities", key, {"identity_type": "DOMAIN", "identity_value": f"{name}.example"})
            ask("POST", f"{path}/identities/DOMAIN/{name}.example/override", body={"status": "VERIFIED"})
            accounts.append(key)
        events_key, sends_key = accounts
        numbers = {"events": 0, "sends": 0}

        def events():
            first = numbers["events"]
            numbers["events"] += BATCH
            lines = "".join(f'{{"event_type":"Send","message_id":"m{n}","recipient":"u{n}@inbox.example","subject":"June"}}\n'
                            for n in range(first, first + BATCH))
            return request("POST", f"{PARTNER}/events", events_key, lines.encode(), "application/x-ndjson"), BATCH

        def sends():
            numbers["sends"] += 1
            body = {"from": "News <news@sends.example>", "to": [f"success+{numbers['sends']}@inbox.example"], "subject": "x",
                    "text_body": "y"}
            return request("POST", f"{PARTNER}/send", sends_key, json.dumps(body).encode()), 1

        def reads(path):
            return lambda: (request("GET", f"{PARTNER}{path}", events_key), 1)

        surfaces = [Surface("events", 3, events), Surface("send", 8, sends), Surface("stats", 1, reads("/stats")),
                    Surface("list", 1, reads("/events?limit=50")), Surface("reputation", 1, reads("/reputation"))]
        samples = []
        start = time.monotonic()
        watching = asyncio.ensure_future(memory(server.pid, samples))

        def tell(what, seconds):
            print(what)
            for surface in surfaces:
                print(f"  {surface.name:<11} taken {surface.ok / seconds:8.0f}/s  held back {surface.held / seconds:8.0f}/s"
                      f"  no answer awaited {surface.unheard / seconds:6.0f}/s  anything else {surface.other or 0}"
                      f"  without Retry-After {surface.no_hint}  slowest {surface.slowest:.1f} s")

        await closed(surfaces, port, 10)
        before = await closed(surfaces, port, 20)
        tell(f"sustained, by {sum(s.workers for s in surfaces)} clients, 20 s (events: batches of {BATCH})", 20)
        begun = time.monotonic() - start
        await offered(surfaces, port, before, args.seconds)
        ended = time.monotonic() - start
        tell(f"three times that, {args.seconds:.0f} s", args.seconds)
        await asyncio.sleep(5)
        await closed(surfaces, port, 20)
        tell("afterwards, 20 s", 20)
        for _ in range(120):
            totals = [ask("GET", f"{PARTNER}/stats", key)["totals"] for key in accounts]
            found = [totals[0]["sends"], totals[1]["sends"]]
            wanted = [surfaces[0].acknowledged, surfaces[1].acknowledged]
            if found == wanted:
                break
            await asyncio.sleep(1)
        print(f"acknowledged {wanted[0]} events and {wanted[1]} sends; there {found[0]} and {found[1]}")
        watching.cancel()
        samples = [(at - start, rss) for at, rss in samples]
        during = [rss for at, rss in samples if begun <= at <= ended]
        half = len(during) // 2
        print(f"memory, MiB: before {max(rss for at, rss in samples if at < begun):.0f}, under load {max(during[:half]):.0f} in the "
              f"first half and {max(during[half:]):.0f} in the second, at the end {samples[-1][1]:.0f}")
        with open(f"{args.out}.csv", "w") as out:
            out.write("second,rss_mib\n" + "".join(f"{at:.0f},{rss:.0f}\n" for at, rss in samples))
        draw(f"{args.out}.svg", samples, begun, ended)
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()
        shutil.rmtree(folder, ignore_errors=True)


asyncio.run(main())
