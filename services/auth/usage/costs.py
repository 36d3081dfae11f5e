"""Spend, requests and tokens, summed up by any of the dimensions that the ledger keeps sums of."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from aiohttp import web

from services.auth.errors import InvalidRequest
from shared.stores.postgres import Database, Query

_DIMENSIONS = {
    "day": "to_char(hour at time zone 'UTC', 'YYYY-MM-DD')",
    **{name: name for name in ("service_type", "model", "purpose", "credential", "outcome")},
}
DIMENSIONS = tuple(_DIMENSIONS)
DEFAULT_DAYS, MOST_DAYS = 7, 400
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Span:
    """A span of time, its end excluded; ``first`` and ``last`` are the days of it."""

    since: datetime
    until: datetime

    @property
    def first(self) -> str:
        return f"{self.since:%Y-%m-%d}"

    @property
    def last(self) -> str:
        return f"{self.until - timedelta(microseconds=1):%Y-%m-%d}"

    @classmethod
    def of(cls, query: Mapping[str, str], now: datetime) -> Span:
        """The span of ``from`` and ``to``: days, which count as a whole, or times; without them the last 7 days.

        :raises InvalidRequest: malformed, empty, or too long.
        """
        tomorrow = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + _DAY
        until = _time("to", query["to"], whole_day=True) if query.get("to") else tomorrow
        since = _time("from", query["from"]) if query.get("from") else _back(until, DEFAULT_DAYS)
        if not since < until:
            raise InvalidRequest("from must be before to.")
        if until - since > MOST_DAYS * _DAY:
            raise InvalidRequest(f"from and to may be at most {MOST_DAYS} days apart.")
        return cls(since, until)

    def days(self) -> list[Span]:
        """The span, day by day."""
        found, since = [], self.since
        while since < self.until:
            until = min(self.until, since.replace(hour=0, minute=0, second=0, microsecond=0) + _DAY)
            found.append(Span(since, until))
            since = until
        return found


def _back(until: datetime, days: int) -> datetime:
    try:
        return until - days * _DAY
    except OverflowError as error:
        raise InvalidRequest("to is out of range.") from error


def _time(name: str, text: str, *, whole_day: bool = False) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
        if len(text) == len("2026-01-31"):
            return moment.replace(tzinfo=UTC) + (_DAY if whole_day else timedelta())
        if moment.tzinfo is None:
            raise ValueError
        return moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(f"{name} must be a day like 2026-01-31, or a time like 2026-01-31T18:00:00Z.") from error


def dimensions(text: str) -> tuple[str, ...]:
    """:raises InvalidRequest: it is not a list of dimensions, comma-separated, each once."""
    by = tuple(text.split(","))
    if len(set(by)) < len(by) or not set(by) <= set(_DIMENSIONS):
        raise InvalidRequest(f"by must be some of: {', '.join(_DIMENSIONS)}.")
    return by


@dataclass(frozen=True, slots=True)
class Cost:
    """A sum. ``of`` has the values of the dimensions that were asked for."""

    of: tuple[str, ...]
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost_nano: int


@lru_cache(maxsize=256)
def _query(by: tuple[str, ...]) -> Query:
    places = ", ".join(str(place + 1) for place in range(len(by)))
    return Query.text(
        f"""
        select {", ".join(f"{_DIMENSIONS[name]} as {name}" for name in by)}, sum(requests)::bigint as requests,
               sum(prompt_tokens)::bigint as prompt_tokens, sum(completion_tokens)::bigint as completion_tokens,
               sum(cost_nano)::bigint as cost_nano
        from ledger_hours where hour >= :since and hour < :until group by {places}
        having sum(requests) <> 0 or sum(cost_nano) <> 0 order by {places}
        """  # noqa: S608  ours
    )


class Costs:
    """What requests cost, by the dimensions asked for.

    :param reports: connections for sums over many rows, which take longer than a request may.
    """

    def __init__(self, reports: Database) -> None:
        self._reports = reports

    async def sums(self, span: Span, by: Sequence[str]) -> list[Cost]:
        """The sums of a span, in the order of their dimensions."""
        rows = await self._reports.fetch(_query(tuple(by)), since=span.since, until=span.until)
        return [Cost(tuple(row.pop(name) for name in by), **row) for row in rows]

    async def slices(self, span: Span, by: Sequence[str]) -> AsyncIterator[list[Cost]]:
        """The same, a part at a time: day by day, if the day is one of the dimensions."""
        for part in span.days() if "day" in by else [span]:
            yield await self.sums(part, by)


COSTS = web.AppKey("costs", Costs)
