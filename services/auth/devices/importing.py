"""Import of devices that another deployment has enrolled, since clients never attest again.

A file is CSV with a header, or JSON lines, with ``key_id_b64``, ``public_key_pem``, ``counter``, ``environment`` and
``bundle_id``. Production requires the last two, since otherwise a development key could pass for a production key;
elsewhere the first valid assertion fills in missing values. The file is read row by row and stored in batches.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import TextIO

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from services.auth.appattest.encoding import canonical_key_id, decode_key_id
from services.auth.appattest.errors import AppAttestError
from services.auth.devices.storage import ImportedDevice

BATCH = 5000
#: The columns of a file. Production needs all of them, others the first three.
COLUMNS = ("key_id_b64", "public_key_pem", "counter", "environment", "bundle_id")
_ENVIRONMENTS = ("production", "development")
#: Letters, digits, hyphens and periods: Apple's CFBundleIdentifier.
_BUNDLE_ID = re.compile(r"[A-Za-z0-9.-]{1,155}")
_NUMBER = re.compile(r"[0-9]{1,20}")
_MAX_COUNTER = 2**32 - 1  # four bytes in the authenticator data


class RowRefused(Exception):
    """A refused row; the message says why."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")


def read_rows(file: TextIO, *, production: bool) -> Iterator[ImportedDevice | RowRefused]:
    """The devices of a file, and its refused rows.

    :param production: the deployment accepts only production keys, so each row must say that its key is one.
    :raises ValueError: neither CSV with the columns nor JSON lines.
    """
    for row in _rows(file, COLUMNS if production else COLUMNS[:3]):
        if isinstance(row, ImportedDevice) and production and row.environment != "production":
            yield RowRefused(row.line, "environment is not production, which APP_ATTEST_PRODUCTION demands")
        elif isinstance(row, ImportedDevice) and production and row.bundle_id is None:
            yield RowRefused(row.line, "bundle_id is missing, which APP_ATTEST_PRODUCTION demands")
        else:
            yield row


def _rows(file: TextIO, needed: tuple[str, ...]) -> Iterator[ImportedDevice | RowRefused]:
    first = file.read(1)
    file.seek(0)
    if first in ("{", ""):
        yield from (_json_row(number, line, needed) for number, line in enumerate(file, 1) if line.strip())
        return
    rows = csv.DictReader(file)
    if not set(needed) <= set(rows.fieldnames or ()):
        raise ValueError(f"the header must have {', '.join(needed)}")
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield RowRefused(rows.reader.line_num, f"not CSV: {error}")
            continue
        yield _row(rows.line_num, row)


def _json_row(number: int, line: str, needed: tuple[str, ...]) -> ImportedDevice | RowRefused:
    try:
        given = json.loads(line)
    except (ValueError, RecursionError):
        return RowRefused(number, "not JSON")
    if not isinstance(given, dict) or not set(needed) <= given.keys():
        return RowRefused(number, f"not an object of {', '.join(needed)}")
    return _row(number, given)


def _row(number: int, row: Mapping[str, object]) -> ImportedDevice | RowRefused:
    key_id_b64, pem, counter = row["key_id_b64"], row["public_key_pem"], row["counter"]
    environment, bundle_id = row.get("environment") or None, row.get("bundle_id") or None
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
    if environment is not None and environment not in _ENVIRONMENTS:
        return RowRefused(number, "environment is neither production nor development")
    if bundle_id is not None and not (isinstance(bundle_id, str) and _BUNDLE_ID.fullmatch(bundle_id)):
        return RowRefused(number, "bundle_id is not a bundle id")
    return ImportedDevice(key_id, point, value, None if environment is None else str(environment), bundle_id, number)


def row_of(device: ImportedDevice) -> tuple[str, str, int, str, str]:
    """A device as a row of a file with ``COLUMNS``."""
    public_key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), device.public_key)
    pem = public_key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return device.key_id, pem.decode(), device.counter, device.environment or "", device.bundle_id or ""
