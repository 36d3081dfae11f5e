"""A user's state in Redis, built from PostgreSQL: at first sight, after a restart of Redis, when a duration changes."""

from __future__ import annotations

from services.gateway.budget.metrics import BudgetMetrics
from services.gateway.budget.refusals import Refusal
from services.gateway.budget.scripts import BudgetScripts, Snapshot, UserBuild
from services.gateway.ledger.storage import LedgerStorage, UserRecord
from shared.domain.identity import split_user
from shared.domain.service_types import ServiceType, ServiceTypes
from shared.service.flight import Flight
from shared.state.packed import period_of
from shared.state.refusals import Word


class Rebuilder:
    def __init__(
        self, scripts: BudgetScripts, storage: LedgerStorage, service_types: ServiceTypes, metrics: BudgetMetrics
    ) -> None:
        self._scripts, self._storage, self._metrics = scripts, storage, metrics
        self._rows = service_types.by_name
        #: Builds a user's state, given the user and its service type, once for all who ask while it runs. Raises
        #: DependencyUnavailable, and InvalidToken if the user was erased.
        self.build = Flight(self._build)

    async def close(self) -> None:
        await self.build.close()

    async def _build(self, user_id: str, service_type: ServiceType) -> None:
        """Leave the state as it is if something changed in between: a settlement, an acknowledgement, an operator, or
        another gateway has built it. The caller sees whether it is there when it tries again.
        """
        snapshot = await self._scripts.snapshot(user_id)
        record = await self._storage.user(
            user_id,
            split_user(user_id)[0],
            service_type.name,
            service_type.duration_seconds,
            durations={name: row.duration_seconds for name, row in self._rows.items()},
            now=snapshot.now_ms // 1000,
            pending={name: row.admitted_ms for name, row in snapshot.rows.items()},
        )
        if record.erased:
            raise Refusal(Word.TOKEN).error()  # and Redis learns nothing of the user
        build = UserBuild(
            tier=record.tier,
            exception=record.exception.pack() if record.exception else "",
            period_seconds=record.period_seconds,
            period_index=record.period_index,
            spent_nano=_spent(snapshot, record),
            newest_index=max([record.newest_index, *_periods(snapshot, record)]),
            standing=record.standing,
            revoked_tokens=record.revoked_tokens,
            tokens_from=record.tokens_from,
        )
        if await self._scripts.load(user_id, snapshot, build):
            self._metrics.rebuilds.inc()


def _periods(snapshot: Snapshot, record: UserRecord) -> list[int]:
    return [period_of(row.admitted_ms, record.period_seconds) for row in snapshot.rows.values()]


def _spent(snapshot: Snapshot, record: UserRecord) -> int:
    """The ledger's sum, and the rows that are not in it yet, or in it at a price that was lowered since."""
    spent = record.spent_nano
    for name, row in snapshot.rows.items():
        if period_of(row.admitted_ms, record.period_seconds) == record.period_index:
            spent += row.cost_nano - record.written.get(name, 0)
    return spent
