"""A user's state in Redis, built from PostgreSQL: at first sight, after a restart of Redis, when a duration changes."""

from __future__ import annotations

import asyncio

from services.gateway.budget.metrics import BudgetMetrics
from services.gateway.budget.scripts import BudgetScripts, Snapshot, UserBuild
from services.gateway.ledger.storage import LedgerStorage, UserRecord
from shared.domain.identity import split_user
from shared.domain.service_types import ServiceType, ServiceTypes
from shared.errors import DependencyUnavailable
from shared.service import background
from shared.state.packed import period_of

_TRIES = 20


class Rebuilder:
    def __init__(
        self, scripts: BudgetScripts, storage: LedgerStorage, service_types: ServiceTypes, metrics: BudgetMetrics
    ) -> None:
        self._scripts, self._storage, self._metrics = scripts, storage, metrics
        self._rows = service_types.rows
        self._running: dict[str, asyncio.Task[None]] = {}

    async def build(self, user_id: str, service_type: ServiceType) -> None:
        """Once, whoever asks while it runs. The build goes on when a caller is cancelled.

        :raises DependencyUnavailable:
        """
        task = self._running.get(user_id)
        if task is None:
            task = self._running[user_id] = asyncio.create_task(self._build(user_id, service_type))
            task.add_done_callback(lambda done: self._finished(user_id, done))
        await asyncio.shield(task)

    def _finished(self, user_id: str, task: asyncio.Task[None]) -> None:
        del self._running[user_id]
        if not task.cancelled():
            task.exception()  # every waiter that is left has been told

    async def close(self) -> None:
        await background.end(*self._running.values())

    async def _build(self, user_id: str, service_type: ServiceType) -> None:
        """Start anew when a settlement, an acknowledgement or an operator changed something in between."""
        for _ in range(_TRIES):
            snapshot = await self._scripts.snapshot(user_id)
            record = await self._storage.user(
                user_id,
                split_user(user_id)[0],
                service_type.name,
                service_type.duration_seconds,
                durations={name: row.duration_seconds for name, row in self._rows.items()},
                now=snapshot.now_ms // 1000,
                pending=list(snapshot.rows),
            )
            build = UserBuild(
                tier=record.tier,
                period_seconds=record.period_seconds,
                period_index=record.period_index,
                spent_nano=_spent(snapshot, record),
                newest_index=max([record.newest_index, *_periods(snapshot, record)]),
                standing=record.standing,
                revoked_tokens=record.revoked_tokens,
            )
            if await self._scripts.load(user_id, snapshot, build):
                self._metrics.rebuilds.inc()
                return
        raise DependencyUnavailable("redis")


def _periods(snapshot: Snapshot, record: UserRecord) -> list[int]:
    return [period_of(row.admitted_ms, record.period_seconds) for row in snapshot.rows.values()]


def _spent(snapshot: Snapshot, record: UserRecord) -> int:
    """The ledger's sum, and the rows that are not in it yet, or in it at a price that was lowered since."""
    spent = record.spent_nano
    for name, row in snapshot.rows.items():
        if period_of(row.admitted_ms, record.period_seconds) == record.period_index:
            spent += row.cost_nano - record.written.get(name, 0)
    return spent
