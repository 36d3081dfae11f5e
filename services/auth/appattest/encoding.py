"""The text around the objects: base64, key ids and the signed client data."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from services.auth.appattest.errors import Malformed, Step
from shared import strict_json

KEY_ID_BYTES = 32
MAX_CLIENT_DATA_BYTES = 4096
MAX_CLIENT_DATA_DEPTH = 8


def decode_base64(text: str, *, max_bytes: int, strict: bool = False) -> bytes:
    """The bytes that ``text`` encodes, at most ``max_bytes``.

    Takes the standard or the URL-safe alphabet (not both in one text), padded or not; with ``strict`` only
    RFC 4648 section 4: standard and padded. Never white space, and never bits beyond the last byte, so that in
    one form no two texts encode the same bytes.

    :raises Malformed: it does not encode bytes in this way.
    """
    if len(text) > (max_bytes + 2) // 3 * 4:
        raise Malformed(Step.BASE64, "too long")
    if not strict:
        if ("-" in text or "_" in text) and ("+" in text or "/" in text):
            raise Malformed(Step.BASE64, "two alphabets")
        text = text.replace("-", "+").replace("_", "/")
        if not text.endswith("="):
            text += "=" * (-len(text) % 4)
    try:
        decoded = base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise Malformed(Step.BASE64, "not base64") from error
    if base64.b64encode(decoded).decode() != text:
        raise Malformed(Step.BASE64, "not canonical")
    if len(decoded) > max_bytes:
        raise Malformed(Step.BASE64, "too long")
    return decoded


def decode_key_id(text: str) -> bytes:
    """The 32 bytes of a key id as a client sends it.

    A space stands for a ``+`` that was not escaped in a query string (Firefox for iOS doesn't escape it).

    :raises Malformed: it is not a key id.
    """
    key_id = decode_base64(text.replace(" ", "+"), max_bytes=KEY_ID_BYTES)
    if len(key_id) != KEY_ID_BYTES:
        raise Malformed(Step.BASE64, "a key id has 32 bytes")
    return key_id


def canonical_key_id(text: str) -> str:
    """The one name of a device: its key id in standard, padded base64.

    :raises Malformed: it is not a key id.
    """
    return base64.b64encode(decode_key_id(text)).decode()


def parse_client_data(raw: bytes) -> dict[str, Any]:
    """The JSON object that a device signed.

    :raises Malformed: it is not one UTF-8 object of at most 4 KiB and 8 levels in strict JSON.
    """
    if len(raw) > MAX_CLIENT_DATA_BYTES:
        raise Malformed(Step.JSON, "too long")
    try:
        value = strict_json.parse(raw, depth=MAX_CLIENT_DATA_DEPTH)
    except ValueError as error:
        raise Malformed(Step.JSON, "not strict JSON") from error
    if not isinstance(value, dict):
        raise Malformed(Step.JSON, "not an object")
    return value
