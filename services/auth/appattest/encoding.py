"""The text around the objects: base64, key ids and the signed client data."""

import base64
import binascii
import json
import math
import re
from collections.abc import Iterable
from typing import Any, NoReturn

from services.auth.appattest.errors import Malformed, Step

KEY_ID_BYTES = 32
MAX_CLIENT_DATA_BYTES = 4096
MAX_CLIENT_DATA_DEPTH = 8

# Strings are matched whole (also one that never ends), so that brackets in them don't count. Linear: no
# alternative can take back what another has matched.
_JSON_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


def decode_base64(text: str, *, max_bytes: int, strict: bool = False) -> bytes:
    """The bytes that `text` stands for, at most `max_bytes`.

    Takes the standard or the URL-safe alphabet (not both in one text), padded or not; with `strict` only
    RFC 4648 section 4: standard and padded. Never white space, and never bits beyond the last byte, so that in
    one form no two texts stand for the same bytes. Raises Malformed.
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
    """The 32 bytes of a key id as a client sends it. Raises Malformed.

    A space stands for a `+` that was not escaped in a query string (Firefox for iOS doesn't escape it).
    """
    key_id = decode_base64(text.replace(" ", "+"), max_bytes=KEY_ID_BYTES)
    if len(key_id) != KEY_ID_BYTES:
        raise Malformed(Step.BASE64, "a key id has 32 bytes")
    return key_id


def canonical_key_id(text: str) -> str:
    """The one name of a device: its key id in standard, padded base64. Raises Malformed."""
    return base64.b64encode(decode_key_id(text)).decode()


def parse_client_data(raw: bytes) -> dict[str, Any]:
    """The JSON object that a device signed over.

    Raises Malformed for anything but one UTF-8 object of at most 4 KiB and 8 levels, for a member that stands
    twice (two readers could take different ones), for numbers that JSON doesn't have (NaN, or too large for a
    double), and for text that isn't Unicode (lone surrogates in escapes), which could not be stored or logged.
    """
    if len(raw) > MAX_CLIENT_DATA_BYTES:
        raise Malformed(Step.JSON, "too long")
    try:
        text = raw.decode("utf-8")
        _bound_depth(text)
        value = json.loads(
            text,
            object_pairs_hook=_members,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except ValueError as error:  # JSONDecodeError, UnicodeError and our own; an integer of too many digits
        raise Malformed(Step.JSON, "not strict JSON") from error
    if not isinstance(value, dict):
        raise Malformed(Step.JSON, "not an object")
    return value


def _bound_depth(text: str) -> None:
    depth = 0
    for token in _JSON_TOKEN.finditer(text):
        if token[0] in "[{":
            depth += 1
        elif token[0] in "]}":
            depth -= 1
        if depth > MAX_CLIENT_DATA_DEPTH:
            raise ValueError("too deep")


def _members(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise ValueError("a member stands twice")
        members[name] = value
    return members


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError("not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("a number beyond a double")
    return value
