"""The total budget of a service type: sums per shard that the scripts keep, watched by every gateway."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

from services.gateway.budget.charging import Bounds
from services.gateway.budget.models import Ask
from services.gateway.budget.scripts import BudgetScripts
from services.gateway.errors import BudgetExceeded, BudgetReserved, MayCostTooMuch
from services.gateway.ledger.storage import LedgerStorage
from shared.domain.identity import SHARDS
from shared.domain.service_types import ServiceTypes
from shared.errors import DependencyUnavailable
from shared.state.layout import SUM_RESERVED, SUM_SPENT
from shared.state.packed import period_of, sum_field, total_name
from shared.state.totals import Total, add_up
from shared.telemetry import logs

_log = logs.logger("budget")
#: Sums that could not be read for so long are not known: nobody is admitted on them.
_STALE_SECONDS = 3.0


class Totals:
    """Asks nothing of Redis unless a row has a ``total_budget``."""

    def __init__(
        self, scripts: BudgetScripts, storage: LedgerStorage, service_types: ServiceTypes, *, who: str, every: float
    ) -> None:
        self._scripts, self._storage, self._who, self._every = scripts, storage, who, every
        self._rows = {name: row for row in service_types.rows.values() if (name := total_name(row))}
        self._sums: dict[str, Total] = {}
        self._read_at = 0.0

    def check(self, ask: Ask, bounds: Bounds) -> int | None:
        """What all users of the service type together leave, in nano-dollars, at least ``least``; None for no limit.

        :raises BudgetExceeded, BudgetReserved, MayCostTooMuch: they leave less.
        :raises DependencyUnavailable: not known at the moment.
        """
        row = ask.principal.service_type
        name = total_name(row)
        if name not in self._rows:
            return None
        if not self._is_known(name):
            raise DependencyUnavailable("redis")
        known = self._sums[name]
        now = time.time()
        if int(now) // row.duration_seconds > known.period_index:
            return row.total_budget_nano
        refusal = known.refusal(row, bounds.least, bounds.empty)
        if refusal is None:
            return known.room(row)
        if refusal == "exceeded":
            resets = (known.period_index + 1) * row.duration_seconds - now
            raise BudgetExceeded("The budget of all users together is spent.", retry_after=resets)
        raise MayCostTooMuch if refusal == "large" else BudgetReserved

    def unknown(self) -> list[str]:
        """The service types whose total spend is not known at the moment: their chats are refused."""
        return [row.name for name, row in self._rows.items() if not self._is_known(name)]

    def _is_known(self, name: str) -> bool:
        return name in self._sums and time.monotonic() - self._read_at <= _STALE_SECONDS

    async def run(self) -> None:
        while self._rows:
            await self.refresh()
            await asyncio.sleep(self._every)

    async def refresh(self) -> None:
        """Read the sums of all shards, and build those that Redis lost."""
        names = tuple(self._rows)
        calls = [self._scripts.totals(number, names) for number in range(SHARDS)]
        replies = await asyncio.gather(*calls, return_exceptions=True)
        for reply in replies:
            if isinstance(reply, DependencyUnavailable):
                return
            if isinstance(reply, BaseException):
                raise reply
        lost = [number for number, reply in enumerate(replies) if not reply]
        if lost:
            try:
                await self._build(lost)
            except DependencyUnavailable as failure:
                _log.warning("totals_not_built", dependency=failure.dependency)
            return
        self._sums = add_up(names, [reply for reply in replies if not isinstance(reply, BaseException)])
        self._read_at = time.monotonic()

    async def _build(self, lost: list[int]) -> None:
        """Empty the sums of these shards, then add what was before: from the outbox, the leases and the ledger.

        :raises DependencyUnavailable:
        """
        begun = {
            number: found
            for number in lost
            if (found := await self._scripts.begin_totals(number, self._who)) is not None
        }
        sums: dict[int, Counter[str]] = {number: Counter() for number in begun}
        names = {row.name: name for name, row in self._rows.items()}
        for number, shard in begun.items():
            for total, admitted_ms, amount in shard.open:
                seconds = int(total.rpartition(":")[2])
                sums[number][sum_field(SUM_RESERVED, total, period_of(admitted_ms, seconds))] += amount
            for row in shard.rows:
                if (total := names.get(row.details.service_type, "")) in self._rows:
                    period = period_of(row.admitted_ms, self._rows[total].duration_seconds)
                    sums[number][sum_field(SUM_SPENT, total, period)] += row.cost_nano
        if begun:
            moments = {number: shard.now_ms for number, shard in begun.items()}
            pending = [row.id for shard in begun.values() for row in shard.rows]
            for total, kind in self._rows.items():
                period = period_of(max(moments.values()), kind.duration_seconds)
                start = period * kind.duration_seconds
                spent = await self._storage.totals(kind.name, start, start + kind.duration_seconds, moments, pending)
                for number, amount in spent.items():
                    sums[number][sum_field(SUM_SPENT, total, period)] += amount
        for number, fields in sums.items():
            await self._scripts.load_totals(number, self._who, fields)
