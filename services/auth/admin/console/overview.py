"""The figures of the overview. Each part can be unavailable on its own, so that the page works during an outage."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

from aiohttp import web

from services.auth.admin.console import plots
from services.auth.admin.console.gateways import GatewayReport, Gateways
from services.auth.admin.console.plots import Plot
from services.auth.usage.services import NearLimit, Usage
from services.auth.usage.storage import Hour
from services.auth.usage.totals import TotalBudgets, TotalUse
from services.auth.users.operators import UserAdmin
from shared.domain.outcome import Outcome
from shared.errors import DependencyUnavailable
from shared.service.health import Health

_T = TypeVar("_T")

HOURS, DAYS = 24, 30
_OUTCOMES = ("success", "failed", "client left")


@dataclass(frozen=True, slots=True)
class Traffic:
    """Spend (nano-dollars, by service type) and requests (by how they ended) over a span of time."""

    spend: Plot
    requests: Plot
    tokens: int

    @property
    def failed_share(self) -> float:
        total = self.requests.total
        return sum(row.values[1] for row in self.requests.rows) / total if total else 0.0


@dataclass(frozen=True, slots=True)
class Overview:
    """The overview; a part is None when its figures are unavailable.

    ``rejections``: by the name of a verification and its step, since this process of auth started.
    """

    auth: tuple[str, dict[str, Any]]
    gateway: GatewayReport
    users: dict[str, int] | None
    traffic: Traffic | None
    near: NearLimit | None
    totals: list[TotalUse] | None
    rejections: dict[str, dict[str, int]]
    in_days: bool


class Overviews:
    def __init__(
        self,
        health: Health,
        gateways: Gateways,
        users: UserAdmin,
        usage: Usage,
        totals: TotalBudgets,
        rejections: Mapping[str, Callable[[], dict[str, int]]],
    ) -> None:
        self._health, self._gateways, self._users = health, gateways, users
        self._usage, self._totals, self._rejections = usage, totals, rejections

    async def read(self, *, in_days: bool, draining: bool) -> Overview:
        """The last 30 days, or the last 24 hours."""
        (_, health), gateway, users, traffic, near, totals = await asyncio.gather(
            self._health.readiness(draining=draining),
            self._gateways.report(),
            _or_none(self._users.counts),
            _or_none(self._days if in_days else self._hours),
            _or_none(self._usage.near_limit),
            _or_none(self._totals.read),
        )
        rejections = {
            name: {step: count for step, count in by_step().items() if count}
            for name, by_step in self._rejections.items()
        }
        return Overview(
            (health["status"], health["checks"]), gateway, users, traffic, near, totals, rejections, in_days
        )

    async def _hours(self) -> Traffic:
        newest = self._usage.now().replace(minute=0, second=0, microsecond=0)
        times = [newest - timedelta(hours=back) for back in reversed(range(HOURS))]
        return _traffic(times, await self._usage.hours(HOURS), long="%Y-%m-%d %H:00", short="%H:00")

    async def _days(self) -> Traffic:
        newest = self._usage.now().replace(hour=0, minute=0, second=0, microsecond=0)
        times = [newest - timedelta(days=back) for back in reversed(range(DAYS))]
        return _traffic(times, await self._usage.days(DAYS), long="%Y-%m-%d", short="%b %-d")


OVERVIEWS = web.AppKey("overviews", Overviews)


async def _or_none(ask: Callable[[], Awaitable[_T | None]]) -> _T | None:
    try:
        return await ask()
    except DependencyUnavailable:
        return None


def _traffic(times: Sequence[datetime], found: Sequence[Hour], *, long: str, short: str) -> Traffic:
    places = {at: place for place, at in enumerate(times)}
    types = sorted({hour.service_type for hour in found})
    spend = {name: [0.0] * len(times) for name in types}
    requests = {name: [0.0] * len(times) for name in _OUTCOMES}
    tokens = 0
    for hour in found:
        place = places.get(hour.at)
        if place is None:
            continue
        spend[hour.service_type][place] += hour.cost_nano
        requests[_outcome(hour.outcome)][place] += hour.requests
        tokens += hour.tokens
    labels, below = [at.strftime(long) for at in times], [at.strftime(short) for at in times]
    return Traffic(plots.stacked(labels, spend, short=below), plots.stacked(labels, requests, short=below), tokens)


def _outcome(outcome: str) -> str:
    if outcome == Outcome.SUCCESS:
        return _OUTCOMES[0]
    return _OUTCOMES[2] if outcome == Outcome.ABORT else _OUTCOMES[1]
