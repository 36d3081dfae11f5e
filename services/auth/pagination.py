"""Pages that are found by key, in both directions, and the opaque cursors that lead to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, TypeVar

import msgspec

from services.auth.errors import InvalidRequest
from shared.domain.tokens import decode_bytes, encode_segment

#: Above every id in byte order.
LAST = "\U0010ffff"
_MAX = 1024
_PREVIOUS = "previous"
_T = TypeVar("_T")


class ForeignCursor(InvalidRequest):
    """A cursor that was not issued here."""

    message = "cursor is not one that a page gave."


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page begins: after the row with this key, or before it. Without a key it is the first page."""

    key: Sequence[str] | None
    backwards: bool = False


@dataclass(frozen=True, slots=True)
class Page(Generic[_T]):
    """A page of a list. ``next_cursor`` is None on the last page, ``previous_cursor`` on the first."""

    rows: list[_T]
    next_cursor: str | None = None
    previous_cursor: str | None = None


def place(cursor: str | None, parts: int) -> Place:
    """The place of a cursor; of the first page without one.

    :param parts: how many values the key of a row has.
    :raises ForeignCursor: the cursor was not issued here.
    """
    if not cursor:
        return Place(None)
    direction, *key = decode(cursor, parts + 1)
    return Place(key, direction == _PREVIOUS)


def page(place: Place, found: Sequence[_T], limit: int, key: Callable[[_T], Sequence[str]]) -> Page[_T]:
    """The page that begins at a place.

    :param found: rows in the direction of the place, nearest first: ``limit`` of them, and one more if there is one.
    :param key: the key of a row, which its cursors carry.
    """
    more, rows = len(found) > limit, list(found[:limit])
    if place.backwards:
        rows.reverse()
    follows = bool(rows) and (more or place.backwards)
    precedes = bool(rows) and place.key is not None and (more or not place.backwards)
    return Page(
        rows,
        encode("next", *key(rows[-1])) if follows else None,
        encode(_PREVIOUS, *key(rows[0])) if precedes else None,
    )


def encode(*key: str) -> str:
    """A cursor that stands for the key of the last row of a page."""
    return encode_segment(msgspec.json.encode(key))


def decode(cursor: str, parts: int) -> Sequence[str]:
    """The key of a cursor.

    :param parts: how many values such a key has.
    :raises ForeignCursor: it was not issued here.
    """
    try:
        if len(cursor) > _MAX:
            raise ForeignCursor
        key = msgspec.json.decode(decode_bytes(cursor), type=list[str])
    except ValueError as error:
        raise ForeignCursor from error
    if len(key) != parts or any("\0" in value for value in key):
        raise ForeignCursor
    return key


def moment(text: str) -> datetime:
    """A time in the key of a cursor; in UTC, since Python reads offsets that PostgreSQL refuses.

    :raises ForeignCursor: it is no time.
    """
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ForeignCursor from error
