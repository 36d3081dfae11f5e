"""The bounds of a user's exception."""

from __future__ import annotations

import time

from services.auth.errors import InvalidRequest
from shared.domain.money import usd_to_nano
from shared.state.packed import Excepted

#: The longest exception, and the most money that one adds to a budget.
_MOST_DAYS, _MOST_EXTRA_USD = 31, 10_000


def excepted(until: float, extra_usd: float | str, *, without_rates: bool) -> Excepted:
    """An exception until a Unix time.

    :raises InvalidRequest: it has ended, lasts too long, gives nothing or too much.
    """
    try:
        extra = usd_to_nano(str(extra_usd))
    except ValueError as error:
        raise InvalidRequest(f"The extra budget is {error}.") from error
    if extra > usd_to_nano(str(_MOST_EXTRA_USD)):
        raise InvalidRequest(f"The extra budget is over {_MOST_EXTRA_USD} USD.")
    if not extra and not without_rates:
        raise InvalidRequest("An exception gives money, or lifts the rates.")
    if not 0 < until - time.time() <= _MOST_DAYS * 86_400:
        raise InvalidRequest(f"An exception ends in the future, at most {_MOST_DAYS} days ahead.")
    return Excepted(until, extra, without_rates)
