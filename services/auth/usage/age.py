"""The age of the ledger's oldest row, which shows whether the ledger is pruned."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import datetime

from shared.service import background
from shared.stores.postgres import Database, Query
from shared.telemetry.metrics import Registry

#: Seconds between two readings.
_EVERY = 3600.0
#: Seconds until it is read again when PostgreSQL does not answer.
_AGAIN = 60.0
_OLDEST = Query.text("select min(admitted_at) as oldest from ledger")


class LedgerAge:
    """A gauge of the age, read from the index once an hour."""

    def __init__(
        self, database: Database, registry: Registry, *, clock: Callable[[], float] = time.time, every: float = _EVERY
    ) -> None:
        self._database, self._registry = database, registry
        self._every, self._clock = every, clock
        self._age = registry.gauge("ledger_oldest_seconds", "Age of the ledger's oldest row; 0 without rows.")

    async def read(self) -> None:
        oldest: datetime | None = (await self._database.fetch(_OLDEST))[0]["oldest"]
        self._age.set(max(0.0, self._clock() - oldest.timestamp()) if oldest else 0)

    def running(self) -> AbstractAsyncContextManager[None]:
        return background.running(self._registry, ledger_age=background.every(self._every, self.read, again=_AGAIN))
