"""The delay of users whose budget is spent: all their periods end at the same moment, and they come back spread."""

from __future__ import annotations

from zlib import crc32

#: Seconds, or a part of the period if that is less, over which users are spread.
_MOST, _PART = 300, 0.1


def delay(user_id: str, period_seconds: int) -> float:
    """Seconds after the reset at which a user should come back: always the same ones, and evenly spread over users."""
    return crc32(user_id.encode()) / 2**32 * min(_MOST, _PART * period_seconds)
