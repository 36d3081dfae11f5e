"""The formats of money, times and numbers on the pages."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from urllib.parse import quote

from services.auth.admin.times import rfc3339
from shared.domain.money import NANO
from shared.domain.outcome import Outcome

_THOUSAND = 1000


def usd(nano: float) -> str:
    """``$1,234.50``; below a dollar with two significant digits, and at least two decimals."""
    amount = Decimal(nano) / NANO
    if not nano:
        return "$0"
    if amount >= 1:
        return f"${amount:,.2f}"
    places = max(4, 1 - amount.adjusted())  # two digits that say something
    whole, _, decimals = f"{amount:.{places}f}".partition(".")
    return f"${whole}.{decimals.rstrip('0').ljust(2, '0')}"


def number(value: float) -> str:
    return f"{value:,.0f}"


def compact(value: float) -> str:
    """``950``, ``1.2k``, ``3.4M``."""
    for unit in ("", "k", "M", "B"):
        if abs(value) < _THOUSAND or unit == "B":
            return f"{value:.3g}{unit}" if unit else f"{value:.0f}"
        value /= _THOUSAND
    raise AssertionError("unreachable")


def percent(share: float) -> str:
    """Whole percents; never 100 % of what is not all, nor 0 % of something."""
    if 0 < share < 0.01:
        return "<1%"
    return f"{99 if 0.99 < share < 1 else share * 100:.0f}%"


def when(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def day(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d")


def duration(seconds: float) -> str:
    """``2 d 3 h``, ``5 h 12 min``, ``40 s``."""
    whole = max(0, int(seconds))
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, whole = divmod(whole, size)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"


def period(seconds: int) -> str:
    """The period of a budget: ``hour``, ``day``, ``7 days``."""
    count, unit = next((seconds // size, unit) for unit, size in (("day", 86400), ("hour", 3600)) if seconds >= size)
    return unit if count == 1 else f"{count} {unit}s"


def path(value: str) -> str:
    """A value as one segment of a path."""
    return quote(value, safe="")


def outcome_tone(outcome: str) -> str:
    """The tone of a request's badge."""
    return {Outcome.SUCCESS.value: "good", Outcome.ABORT.value: "plain"}.get(outcome, "bad")


def outcome_words(outcome: str) -> str:
    """What an outcome means."""
    return _OUTCOMES.get(outcome, "")


_OUTCOMES = {
    Outcome.SUCCESS.value: "The answer was complete.",
    Outcome.ERROR.value: "The model failed, or the answer broke off.",
    Outcome.ABORT.value: "The client left.",
    Outcome.TIMEOUT.value: "No data came in time.",
    Outcome.EXPIRED.value: "The gateway ended before the answer did; it is charged whole.",
}

FILTERS: dict[str, Any] = {
    one.__name__: one
    for one in (usd, number, compact, percent, when, day, duration, period, path, outcome_tone, outcome_words)
} | {"iso": rfc3339}
