"""Opaque cursors of pages that are found by key."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

import msgspec

from services.auth.errors import InvalidRequest

_MAX = 1024


def encode(*key: str) -> str:
    """A cursor that stands for the key of the last row of a page."""
    return base64.urlsafe_b64encode(msgspec.json.encode(key)).decode().rstrip("=")


def decode(cursor: str, parts: int) -> Sequence[str]:
    """The key of a cursor.

    :param parts: how many values such a key has.
    :raises InvalidRequest: it isn't one of ours.
    """
    try:
        if len(cursor) > _MAX or not cursor.isascii():
            raise ValueError
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        key = msgspec.json.decode(raw, type=list[str])
        if len(key) != parts or any("\0" in value for value in key):
            raise ValueError
    except (ValueError, binascii.Error, msgspec.DecodeError) as error:
        raise InvalidRequest("cursor is not one that a page gave.") from error
    return key
