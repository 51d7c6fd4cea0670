#!/usr/bin/env python3
"""Checks a sealed archive or export of Sendtrail, written from docs/AUDIT.md alone.

    pip install pyarrow deltalake cryptography
    python3 verify.py FOLDER [PUBLIC_KEY ...]

FOLDER is that of a table (it has _delta_log and _seals) or of an export (it has seal.json). Without a key, the one that the
first seal names is taken. Ends with 1 when something is not as it was sealed.
"""

import base64
import datetime
import hashlib
import hmac
import json
import pathlib
import sys

import pyarrow as pa
import pyarrow.parquet as pq
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SEAL = "application/vnd.sendtrail.seal.v1+json"
ERASURE = "application/vnd.sendtrail.erasure.v1+json"
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
faults = []


def opened(path, kind, keys):
    """The document of an envelope and its hash, once the signature holds."""
    envelope = json.loads(path.read_bytes())
    payload = base64.b64decode(envelope["payload"])
    if not keys:
        keys.append(envelope["signatures"][0]["keyid"])
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


def rows(path):
    """The rows of a file, with the types of its columns, some thousand at once."""
    file = pq.ParquetFile(path)
    for batch in file.iter_batches(8192):
        for row in batch.to_pylist():
            yield file.schema_arrow, row


def check_day(folder, files, seal, erased):
    number, personal = seal["number"], set(seal["personal"])
    salts = (folder / "_seals" / f"{number:06}.salts").read_bytes()
    salts = {salts[at : at + 16]: salts[at + 16 : at + 32] for at in range(0, len(salts), 32)}
    order = {}
    for r in sorted(seal["subject"]["ranges"], key=lambda r: (r["partition"], r["first"])):
        for seq in range(r["first"], r["last"] + 1):
            order[(r["partition"], seq)] = len(order)
    leaves = [None] * len(order)
    for path in files:
        for schema, row in rows(path):
            name = (row["partition"], row["seq"])
            if name not in order:
                continue
            place = order[name]
            if leaves[place] is not None:
                faults.append(f"partition {name[0]}, seq {name[1]}: the row is there twice")
                continue
            plain, private = parts(schema, row, personal)
            if name in erased:
                commitment = bytes.fromhex(erased[name])
                if not bare(schema, row, personal):
                    faults.append(f"partition {name[0]}, seq {name[1]}: it was erased, and holds personal fields again")
            else:
                recipient = row.get("recipient_folded") or row.get("recipient") or ""
                subject = hashlib.sha256(row["account_id"].encode() + b"\0" + recipient.encode()).digest()[:16]
                salt = salts.get(subject)
                commitment = hmac.new(salt, private, hashlib.sha256).digest() if salt else bytes(32)
            leaves[place] = leaf(plain, commitment)
    side = (folder / "_seals" / f"{number:06}.leaves").read_bytes()
    for name, place in order.items():
        if leaves[place] is None:
            faults.append(f"partition {name[0]}, seq {name[1]}: the row is missing")
            leaves[place] = bytes(32)
        elif leaves[place][:8] != side[place * 8 : place * 8 + 8]:
            faults.append(f"partition {name[0]}, seq {name[1]}: the row was changed")
    if root(leaves) != seal["root"]:
        faults.append(f"seal {number}: its rows are not as they were sealed")
    return len(order)


def check_table(folder, keys):
    from deltalake import DeltaTable

    table = DeltaTable(str(folder))
    protocol = table.protocol()
    asked = set(protocol.reader_features or []) - {"timestampNtz", "v2Checkpoint", "vacuumProtocolCheck"}
    if protocol.min_reader_version == 2 or asked:
        faults.append(f"the table needs what is not known here: {', '.join(asked) or 'columnMapping'}")
    paths = [pathlib.Path(uri.removeprefix("file://")) for uri in table.file_uris()]
    sealed, erased, previous = [], {}, None
    for expected, path in enumerate(sorted((folder / "_seals").glob("*.seal.json")), start=1):
        seal, digest = opened(path, SEAL, keys)
        if seal and (seal["number"] != expected or seal["previous"] != previous):
            faults.append(f"seal {seal['number']}: it does not follow the seal before it")
        previous = digest
        sealed += [seal] if seal else []
    for path in (folder / "_seals").glob("*.erasure.json"):
        tombstone, _ = opened(path, ERASURE, keys)
        for row in tombstone["rows"] if tombstone else []:
            erased[(row["partition"], row["seq"])] = row["commitment"]
    if not sealed:
        faults.append("there are no seals")
    checked = 0
    for seal in sealed:
        files = [path for path in paths if f"dt={seal['subject']['day']}/" in str(path)]
        checked += check_day(folder, files, seal, erased)
    return checked


def check_export(folder, keys):
    seal, _ = opened(folder / "seal.json", SEAL, keys)
    if not seal:
        return 0
    leaves = []
    for file in seal["files"]:
        path = folder / file["path"]
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
