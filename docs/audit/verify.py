#!/usr/bin/env python3
"""Checks a sealed archive or export of Sendtrail, written from docs/AUDIT.md alone.

    pip install pyarrow deltalake cryptography
    python3 verify.py FOLDER [PUBLIC_KEY ...]

FOLDER is that of a table (it has _delta_log and _seals) or of an export (it has seal.json). Without a key, the one that the
first seal names is taken. Ends with 1 when something is not as it was sealed.
"""

import base64
import bisect
import datetime
import hashlib
import hmac
import itertools
import json
import pathlib
import sys
import urllib.parse

import pyarrow as pa
import pyarrow.parquet as pq
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SEAL = "application/vnd.sendtrail.seal.v1+json"
ERASURE = "application/vnd.sendtrail.erasure.v1+json"
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
# The number of a row in its partition is in this column.
NUMBERS = {"events": "seq", "attempts": "offset"}
MAX_ROWS = 8_000_000
faults = []


def opened(path, kind, keys):
    """The document of an envelope and its hash, once the signature holds."""
    envelope = json.loads(path.read_bytes())
    payload = base64.b64decode(envelope["payload"])
    if not keys:
        keys.append(envelope["signatures"][0]["keyid"])
    if envelope["payloadType"] != kind:
        faults.append(f"{path.name}: it is of the type {envelope['payloadType']}, not {kind}")
        return None, hashlib.sha256(payload).hexdigest()
    signed = b"DSSEv1 %d %s %d " % (len(kind), kind.encode(), len(payload)) + payload
    for signature in envelope["signatures"]:
        for key in keys:
            try:
                public = Ed25519PublicKey.from_public_bytes(base64.b64decode(key))
                public.verify(base64.b64decode(signature["sig"]), signed)
                return json.loads(payload), hashlib.sha256(payload).hexdigest()
            except InvalidSignature:
                pass
    faults.append(f"{path.name}: it is not signed by {' or '.join(keys)}")
    return None, hashlib.sha256(payload).hexdigest()


def text(value):
    data = value.encode()
    return len(data).to_bytes(4, "big") + data


def encoded(kind, value):
    if value is None:
        return b"\0"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return b"\1" + text(value)
    if pa.types.is_int64(kind):
        return b"\2" + value.to_bytes(8, "big", signed=True)
    if pa.types.is_boolean(kind):
        return b"\3" + bytes([value])
    if pa.types.is_timestamp(kind):
        return b"\4" + ((value - EPOCH) // datetime.timedelta(microseconds=1)).to_bytes(8, "big", signed=True)
    if pa.types.is_list(kind):
        return b"\5" + len(value).to_bytes(4, "big") + b"".join(encoded(kind.value_type, one) for one in value)
    if pa.types.is_map(kind):
        entries = sorted((key.encode(), key, one) for key, one in value)
        body = b"".join(text(key) + encoded(kind.item_type, one) for _, key, one in entries)
        return b"\6" + len(entries).to_bytes(4, "big") + body
    raise ValueError(f"no encoding for {kind}")


def named(pairs):
    pairs = sorted(pairs, key=lambda pair: pair[0].encode())
    return len(pairs).to_bytes(4, "big") + b"".join(text(name) + body for name, body in pairs)


def parts(schema, row, personal):
    """The plain and the personal part of a row."""
    plain, private = [], []
    for field in schema:
        value = row.get(field.name)
        if value is None or field.name == "dt":
            continue
        if not pa.types.is_struct(field.type):
            (private if field.name in personal else plain).append((field.name, encoded(field.type, value)))
            continue
        mixed = f"{field.name}.*" in personal
        sides = ([], [])
        has_private = False
        for inner in field.type:
            side = mixed and f"!{field.name}.{inner.name}" not in personal
            has_private |= side
            if value[inner.name] is not None:
                sides[side].append((inner.name, encoded(inner.type, value[inner.name])))
        plain.append((field.name, b"\7" + named(sides[0])))
        if has_private:
            private.append((field.name, b"\7" + named(sides[1])))
    return named(plain), named(private)


def bare(schema, row, personal):
    """Whether a row holds nothing personal."""
    for field in schema:
        value = row.get(field.name)
        if value is None:
            continue
        if not pa.types.is_struct(field.type):
            if field.name in personal:
                return False
        elif f"{field.name}.*" in personal:
            if any(value[i.name] is not None and f"!{field.name}.{i.name}" not in personal for i in field.type):
                return False
    return True


def root(leaves):
    if not leaves:
        return hashlib.sha256().hexdigest()
    while len(leaves) > 1:
        pairs = [leaves[at : at + 2] for at in range(0, len(leaves), 2)]
        leaves = [hashlib.sha256(b"\1" + b"".join(pair)).digest() if len(pair) == 2 else pair[0] for pair in pairs]
    return leaves[0].hex()


def leaf(*data):
    return hashlib.sha256(b"\0" + b"".join(data)).digest()


def rows(path, columns=None):
    """The rows of a file, with the types of its columns, some thousand at once."""
    file = pq.ParquetFile(path)
    for batch in file.iter_batches(8192, columns=columns):
        for row in batch.to_pylist():
            yield file.schema_arrow, row


def numbered(folder, what):
    """The files of seals or tombstones, by number; others are passed over."""
    end, found = f".{what}.json", []
    for path in (folder / "_seals").glob(f"*{end}"):
        number = path.name.removesuffix(end)
        if number.isdecimal():
            found.append((int(number), path))
            if number != f"{int(number):06}":
                faults.append(f"{path.name} is no name of a {what}")
    return sorted(found)


def subject(dataset, schema, row, personal):
    """Whose salt is a row's."""
    if dataset == "events":
        person = row.get("recipient_folded") or row.get("recipient") or ""
    else:
        person = "" if bare(schema, row, personal) else row["delivery_id"]
    return hashlib.sha256(row["account_id"].encode() + b"\0" + person.encode()).digest()[:16]


def check_day(folder, files, seal, erased):
    number, personal, dataset = seal["number"], set(seal["personal"]), seal["subject"]["dataset"]
    column = NUMBERS[dataset]
    salts = (folder / "_seals" / f"{number:06}.salts").read_bytes()
    salts = {salts[at : at + 16]: salts[at + 16 : at + 32] for at in range(0, len(salts), 32)}
    order = {}
    for r in seal["subject"]["ranges"]:
        for seq in range(r["first"], r["last"] + 1):
            order[(r["partition"], seq)] = len(order)
    leaves = [None] * len(order)
    saltless = set()
    for path in files:
        for schema, row in rows(path):
            name = (row["partition"], row[column])
            if name not in order:
                continue
            at, place = f"partition {name[0]}, {column} {name[1]}", order[name]
            if leaves[place] is not None:
                faults.append(f"{at}: the row is there twice")
                continue
            plain, private = parts(schema, row, personal)
            commitment = bytes(32)
            if name in erased:
                commitment = bytes.fromhex(erased[name])
                if not bare(schema, row, personal):
                    faults.append(f"{at}: it was erased, and holds personal fields again")
            elif salt := salts.get(subject(dataset, schema, row, personal)):
                commitment = hmac.new(salt, private, hashlib.sha256).digest()
            else:
                faults.append(f"{at}: whom it is of was changed, or its salt is gone without a tombstone")
                saltless.add(name)
            leaves[place] = leaf(plain, commitment)
    side = folder / "_seals" / f"{number:06}.leaves"
    side = side.read_bytes() if side.exists() else b""
    names_rows = hashlib.sha256(side).hexdigest() == seal["leaves_sha256"]
    for name, place in order.items():
        if leaves[place] is None:
            faults.append(f"partition {name[0]}, {column} {name[1]}: the row is missing")
            leaves[place] = bytes(32)
        elif names_rows and name not in saltless and leaves[place][:8] != side[place * 8 : place * 8 + 8]:
            faults.append(f"partition {name[0]}, {column} {name[1]}: the row was changed")
    if root(leaves) != seal["root"]:
        faults.append(f"seal {number}: its rows are not as they were sealed")
    return len(order)


def check_places(by_day, sealed, dataset):
    """Whether rows stand on the day they were sealed on, and those that are not sealed yet are there once and come next."""
    column, unsealed = NUMBERS[dataset], {}
    for day, files in by_day.items():
        for path in files:
            for _, row in rows(path, ["partition", column]):
                partition, number = row["partition"], row[column]
                at = bisect.bisect(sealed, (partition, number, float("inf"))) - 1
                if at >= 0 and sealed[at][0] == partition and number <= sealed[at][2]:
                    if sealed[at][3] != day:
                        fault = "the row stands on another day than the one it was sealed on"
                        faults.append(f"partition {partition}, {column} {number}: {fault}")
                elif number in unsealed.setdefault(partition, set()):
                    faults.append(f"partition {partition}, {column} {number}: the row is there twice")
                else:
                    unsealed[partition].add(number)
    for partition, numbers in unsealed.items() if dataset == "events" else ():
        first, last = min(numbers), max(numbers)
        lasts = [one[2] for one in sealed if one[0] == partition]
        if last - first + 1 != len(numbers) or (lasts and first != max(lasts) + 1):
            faults.append(
                f"partition {partition}: there are {len(numbers)} rows that are not sealed yet, numbered from {first} to {last}:"
                " some are missing"
            )
    return sum(len(numbers) for numbers in unsealed.values())


def check_table(folder, keys):
    from deltalake import DeltaTable

    table = DeltaTable(str(folder))
    protocol = table.protocol()
    asked = set(protocol.reader_features or []) - {"timestampNtz", "v2Checkpoint", "vacuumProtocolCheck"}
    if protocol.min_reader_version == 2 or asked:
        faults.append(f"the table needs what is not known here: {', '.join(asked) or 'columnMapping'}")
    for action in pa.table(table.get_add_actions(flatten=True)).to_pylist():
        if f"dt={action['partition.dt']}/" not in urllib.parse.unquote(action["path"]):
            faults.append(f"{action['path']} in the Delta log: it is said to be of another day")
    dataset = table.metadata().name if table.metadata().name in NUMBERS else "events"
    by_day = {}
    for uri in table.file_uris():
        path = pathlib.Path(urllib.parse.unquote(uri.removeprefix("file://")))
        by_day.setdefault(str(path.relative_to(folder)).removeprefix("dt=")[:10], []).append(path)
    seals, erased, previous = [], {}, None
    for expected, (number, path) in enumerate(numbered(folder, "seal"), start=1):
        seal, digest = opened(path, SEAL, keys)
        if seal and (not seal["number"] == number == expected or seal["previous"] != previous):
            faults.append(f"seal {number}: it does not follow the seal before it")
        previous = digest
        seals += [seal] if seal else []
    committed, nothing = table.transaction_version("sendtrail-erasure") or 0, 0
    for number, path in numbered(folder, "erasure"):
        if number > committed:
            nothing += 1
            continue
        tombstone, _ = opened(path, ERASURE, keys)
        for row in tombstone["rows"] if tombstone else []:
            erased[(row["partition"], row["seq"])] = row["commitment"]
    if not seals:
        faults.append("there are no seals")
    checked, sealed = 0, []
    for seal in seals:
        of = seal["subject"]
        if (of["kind"], of.get("dataset")) != ("day", dataset):
            faults.append(f"seal {seal['number']} is not one of a day of {dataset}")
            continue
        ranges = [(r["partition"], r["first"], r["last"]) for r in of["ranges"]]
        ordered = all((one[0], one[2]) < other[:2] for one, other in itertools.pairwise(ranges))
        count = sum(last - first + 1 for _, first, last in ranges)
        if not ordered or any(first > last for _, first, last in ranges) or not count == seal["rows"] <= MAX_ROWS:
            faults.append(f"seal {seal['number']}: its ranges do not have {seal['rows']} rows")
            continue
        checked += check_day(folder, by_day.get(of["day"], []), seal, erased)
        sealed += [(*one, of["day"]) for one in ranges]
    sealed.sort()
    for one, other in itertools.pairwise(sealed):
        if one[0] == other[0] and one[2] >= other[1]:
            faults.append(f"partition {other[0]}, {NUMBERS[dataset]} {other[1]}: two seals are about it")
    unsealed = check_places(by_day, sealed, dataset)
    print(f"{unsealed} rows are not sealed yet, {nothing} tombstones came to nothing")
    return checked


def check_export(folder, keys):
    seal, _ = opened(folder / "seal.json", SEAL, keys)
    if not seal:
        return 0
    if (seal["number"], seal["previous"], seal["subject"]["kind"]) != (1, None, "export"):
        faults.append("seal.json is not the seal of an export")
        return 0
    for name in {path.name for path in folder.iterdir()} - {"seal.json", "job.json"} - {f["path"] for f in seal["files"]}:
        faults.append(f"{name} was not sealed")
    leaves = []
    for file in seal["files"]:
        path = folder / file["path"]
        if path.parent != folder:
            faults.append(f"{file['path']} is no name of a file beside the seal")
            continue
        if hashlib.sha256(path.read_bytes()).hexdigest() != file["sha256"]:
            faults.append(f"{file['path']} is not the file that was sealed")
        if seal["root"]:
            leaves += [leaf(parts(schema, row, set())[0]) for schema, row in rows(path)]
    if seal["root"] and root(leaves) != seal["root"]:
        faults.append("its rows are not as they were sealed")
    return seal["rows"]


def main():
    folder, keys = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2:]
    checked = check_export(folder, keys) if (folder / "seal.json").exists() else check_table(folder, keys)
    for fault in faults:
        print("FAULT ", fault)
    print(f"{checked} rows,", "NOT as they were sealed" if faults else "as they were sealed")
    sys.exit(1 if faults else 0)


main()
