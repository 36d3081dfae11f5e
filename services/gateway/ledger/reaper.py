"""Finishes what dead gateways left: requests whose lease ended are charged whole, rows in an outbox are written."""

from __future__ import annotations

import asyncio
import uuid

from services.gateway.budget.metrics import BudgetMetrics
from services.gateway.budget.models import Timings
from services.gateway.budget.scripts import BudgetScripts
from services.gateway.ledger.queue import LedgerQueue
from shared.domain.identity import SHARDS
from shared.domain.money import NANO
from shared.errors import DependencyUnavailable
from shared.telemetry import logs

_log = logs.logger("budget")
_BATCH = 50
_NEVER = 1e9  # seconds: rows are not fetched from the outbox while PostgreSQL takes none


class Reaper:
    """The sweeps of this gateway. Each gateway claims shards for an interval, so that they share the work, which is
    idempotent.
    """

    def __init__(self, scripts: BudgetScripts, queue: LedgerQueue, metrics: BudgetMetrics, timings: Timings) -> None:
        self._scripts, self._queue, self._metrics = scripts, queue, metrics
        self._who, self._every, self._orphan = uuid.uuid4().hex, timings.sweep, timings.orphan
        #: Seconds after a connection was made, or the server last refused scripts, in which nothing is reaped: after an
        #: outage of Redis, living gateways first renew the leases that ended in it. Sweeps go on, since they show
        #: whether the server runs scripts.
        self._grace = 2 * timings.renew
        self._cursors = ["0"] * SHARDS
        self._ages = [0] * SHARDS
        self._waiting = [0] * SHARDS

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._every)
            await asyncio.gather(*map(self.sweep, range(SHARDS)))
            self._metrics.outbox_age.set(max(self._ages) / 1000)
            self._metrics.outbox_rows.set(max(self._waiting))

    async def sweep(self, number: int) -> None:
        """Look after one shard, unless another gateway does or Redis is down."""
        executor = self._scripts.executor
        try:
            steady = await executor.steady_for(number)
            epoch = executor.epoch(number)  # of the server that answers, or of one before: then all is settled again
            orphan = _NEVER if self._queue.down else self._orphan
            found = await self._scripts.sweep(number, self._who, 0.9 * self._every, orphan, self._cursors[number])
            if found is None:
                self._ages[number] = self._waiting[number] = 0
                return
            expired = found.expired if steady >= self._grace else []
            for at in range(0, len(expired), _BATCH):
                rows = await self._scripts.reap(number, expired[at : at + _BATCH])
                for row in rows:
                    self._metrics.reaped.inc()
                    self._metrics.reaped_usd.inc(by=row.cost_nano / NANO)
                    self._metrics.spend.inc(row.details.service_type, by=row.cost_nano / NANO)
                    self._queue.add(row, epoch)
                    _log.warning("reservation_reaped", id=row.id, request_id=row.details.request_id)
        except DependencyUnavailable:
            return
        # A large outbox is read page by page: the oldest of all pages is known when the last was read
        first = self._cursors[number] == "0"
        self._ages[number] = found.oldest_ms if first else max(self._ages[number], found.oldest_ms)
        self._cursors[number], self._waiting[number] = found.cursor, found.waiting
        self._queue.add_orphans(found.rows, epoch)
