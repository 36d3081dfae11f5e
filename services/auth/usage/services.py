"""Figures of the overview, from the sums that the ledger keeps: no page sums up the ledger.

The users who spent most are looked up on demand, at most twice a minute and for a small part of the time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from aiohttp import web

from services.auth.usage import storage
from services.auth.usage.storage import Hour
from services.auth.users.operators import User, UserAdmin
from shared.domain.service_types import ServiceTypes
from shared.errors import DependencyUnavailable
from shared.service.flight import Flight
from shared.stores.postgres import Database
from shared.telemetry import logs

_HOUR = timedelta(hours=1)
_DAY = timedelta(days=1)

_NEAR_EVERY = 30.0
#: A look-up reads all who spent since yesterday: the next one waits for so many times as long as the last one took.
_NEAR_PAUSES = 20
_NEAR_WAIT = 0.1
_NEAR_EACH = 100
_NEAR_SHARE = 0.75
_NEAR_SHOWN = 10

_log = logs.logger("usage")


@dataclass(frozen=True, slots=True)
class NearLimit:
    """Users with little budget left, of those who spent most today and yesterday; the closest first.

    ``spenders``: those who spent most in their present period.
    """

    users: list[User]
    spenders: list[User]
    as_of: datetime


class Usage:
    """The figures of the overview.

    :param reports: connections for sums over many rows, which take longer than a request may.
    :param near_wait: seconds that the first page waits for the users near their limit.
    """

    def __init__(
        self,
        database: Database,
        reports: Database,
        users: UserAdmin,
        service_types: ServiceTypes,
        *,
        clock: Callable[[], float] = time.time,
        near_wait: float = _NEAR_WAIT,
    ) -> None:
        self._database, self._reports, self._users = database, reports, users
        self._service_types, self._clock, self._near_wait = service_types, clock, near_wait
        self._near: NearLimit | None = None
        self._near_after = 0.0
        self._asking = Flight(self._find_near_limit)

    async def hours(self, count: int) -> list[Hour]:
        """The last ``count`` hours, the present one included. Hours without requests are missing."""
        return await storage.read(self._database, self._hour() - (count - 1) * _HOUR, "hour")

    async def days(self, count: int) -> list[Hour]:
        """The last ``count`` days (UTC), today included. Days without requests are missing."""
        today = self._hour().replace(hour=0)
        return await storage.read(self._database, today - (count - 1) * _DAY, "day")

    def now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)

    def _hour(self) -> datetime:
        return self.now().replace(minute=0, second=0, microsecond=0)

    async def near_limit(self) -> NearLimit | None:
        """The users near their limit; None while they are unknown."""
        if self._clock() >= self._near_after:
            asking = self._asking.start()
            if self._near is None:
                await asyncio.wait([asking], timeout=self._near_wait)
        return self._near

    async def _find_near_limit(self) -> None:
        began, pause = self._clock(), 0.0
        try:
            budgets = {row.name: row.max_budget_nano for row in self._service_types.by_name.values()}
            names = await storage.spenders(self._reports, (self.now() - _DAY).date(), _NEAR_EACH, budgets)
            users = await self._users.some(names)
            pause = _NEAR_EVERY
        except DependencyUnavailable:
            _log.warning("near_limit_unknown")
            return
        finally:
            now = self._clock()
            self._near_after = now + max(pause, _NEAR_PAUSES * (now - began))
        near = sorted((user for user in users if user.spent.share >= _NEAR_SHARE), key=lambda user: -user.spent.share)
        spenders = sorted(users, key=lambda user: -user.spent.spent_nano)
        self._near = NearLimit(near[:_NEAR_SHOWN], spenders, self.now())

    async def close(self) -> None:
        """End the look-up that is under way."""
        await self._asking.close()


USAGE = web.AppKey("usage", Usage)
