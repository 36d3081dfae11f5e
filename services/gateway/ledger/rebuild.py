"""A user's state in Redis, built from PostgreSQL: at first sight, after a restart of Redis, when a duration changes."""

from __future__ import annotations

from dataclasses import replace

from services.gateway.budget.metrics import BudgetMetrics
from services.gateway.budget.refusals import Refusal
from services.gateway.budget.scripts import BudgetScripts
from services.gateway.ledger.storage import LedgerStorage
from shared.domain.service_types import ServiceType, ServiceTypes
from shared.service.flight import Flight
from shared.state.packed import period_of
from shared.state.refusals import Word


class Rebuilder:
    """The builder of users' states."""

    def __init__(
        self, scripts: BudgetScripts, storage: LedgerStorage, service_types: ServiceTypes, metrics: BudgetMetrics
    ) -> None:
        self._scripts, self._storage, self._metrics = scripts, storage, metrics
        self._rows = service_types.by_name
        #: Builds a user's state, given the user and its service type, once for all who ask while it runs. Raises
        #: DependencyUnavailable, and InvalidToken if the user was erased.
        self.build = Flight(self._build)

    async def _build(self, user_id: str, service_type: ServiceType) -> None:
        """Leave the state as it is if something changed in between: a settlement, an acknowledgement, an operator, or
        another gateway has built it. The caller sees whether it is there when it tries again.
        """
        snapshot = await self._scripts.snapshot(user_id)
        record = await self._storage.user(
            user_id,
            service_type,
            durations={name: row.duration_seconds for name, row in self._rows.items()},
            now=snapshot.now_ms // 1000,
            pending={name: row.admitted_ms for name, row in snapshot.rows.items()},
        )
        if record.erased:
            raise Refusal(Word.TOKEN).error()  # and Redis learns nothing of the user
        build = record.build
        spent, newest = build.spent_nano, build.newest_index
        for name, row in snapshot.rows.items():  # not in the ledger yet, or there at a price that was lowered since
            period = period_of(row.admitted_ms, build.period_seconds)
            newest = max(newest, period)
            if period == build.period_index:
                spent += row.cost_nano - record.written.get(name, 0)
        if await self._scripts.load(user_id, snapshot, replace(build, spent_nano=spent, newest_index=newest)):
            self._metrics.rebuilds.inc()
