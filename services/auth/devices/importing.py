"""Takes over devices that another deployment has enrolled, because clients never attest again.

A file is CSV with a header, or JSON lines, of ``key_id_b64``, ``public_key_pem``, ``counter``. It is read row by row
and stored in batches; bundle and environment are filled in by the first valid assertion.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TextIO

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from services.auth.appattest import AppAttestError, canonical_key_id, decode_key_id
from shared.postgres import Database, Query

BATCH = 5000
_COLUMNS = ("key_id_b64", "public_key_pem", "counter")
_NUMBER = re.compile(r"[0-9]{1,20}")
_MAX_COUNTER = 2**32 - 1  # four bytes in the authenticator data

_STORE = Query.text(
    """
    insert into devices (key_id, public_key, counter)
    select * from unnest(cast(:key_ids as text[]), cast(:public_keys as bytea[]), cast(:counters as bigint[]))
    on conflict (key_id) do update set counter = greatest(devices.counter, excluded.counter)
    """
)


@dataclass(frozen=True, slots=True)
class ImportedDevice:
    key_id: str
    public_key: bytes
    counter: int


class RowRefused(Exception):
    """A row that is not taken; the message says why."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")


def read_rows(file: TextIO) -> Iterator[ImportedDevice | RowRefused]:
    """The devices of a file, and the rows that are none.

    :raises ValueError: neither CSV with the three columns nor JSON lines.
    """
    first = file.read(1)
    file.seek(0)
    if first in ("{", ""):
        yield from (_json_row(number, line) for number, line in enumerate(file, 1) if line.strip())
        return
    rows = csv.DictReader(file)
    if not set(_COLUMNS) <= set(rows.fieldnames or ()):
        raise ValueError(f"the header must have {', '.join(_COLUMNS)}")
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield RowRefused(rows.reader.line_num, f"not CSV: {error}")
            continue
        yield _row(rows.line_num, row["key_id_b64"], row["public_key_pem"], row["counter"])


def _json_row(number: int, line: str) -> ImportedDevice | RowRefused:
    try:
        given = json.loads(line)
    except (ValueError, RecursionError):
        return RowRefused(number, "not JSON")
    if not isinstance(given, dict) or not set(_COLUMNS) <= given.keys():
        return RowRefused(number, f"not an object of {', '.join(_COLUMNS)}")
    return _row(number, given["key_id_b64"], given["public_key_pem"], given["counter"])


def _row(number: int, key_id_b64: object, pem: object, counter: object) -> ImportedDevice | RowRefused:
    try:
        key_id = canonical_key_id(str(key_id_b64))
    except AppAttestError:
        return RowRefused(number, "key_id_b64 is not base64 of 32 bytes")
    try:
        # a PEM on one line of CSV has its line ends written as \n
        key = serialization.load_pem_public_key(str(pem).replace("\\n", "\n").encode())
    except (ValueError, TypeError):
        return RowRefused(number, "public_key_pem is not a PEM public key")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        return RowRefused(number, "public_key_pem is not a P-256 key")
    point = key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    if hashlib.sha256(point).digest() != decode_key_id(key_id):
        return RowRefused(number, "the key id is not the SHA-256 of the public key")
    if not _NUMBER.fullmatch(str(counter)):
        return RowRefused(number, "counter is not a whole number")
    value = int(str(counter))
    if value > _MAX_COUNTER:
        return RowRefused(number, "counter is out of range")
    return ImportedDevice(key_id, point, value)


async def store(database: Database, devices: list[ImportedDevice]) -> None:
    """Store a batch; a known device keeps its larger counter and everything else.

    :raises DatabaseUnavailable:
    """
    newest: dict[str, ImportedDevice] = {}
    for device in devices:
        known = newest.get(device.key_id)
        if known is None or known.counter < device.counter:
            newest[device.key_id] = device
    batch = list(newest.values())
    await database.execute(
        _STORE,
        key_ids=[device.key_id for device in batch],
        public_keys=[device.public_key for device in batch],
        counters=[device.counter for device in batch],
    )
