"""Total budgets: the spend of all users of a service type together, and when it will reach the budget."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from services.auth.usage.services import Usage
from shared.domain.service_types import ServiceTypes
from shared.service.flight import Kept
from shared.state import decisions
from shared.stores.redis import Client, needed

_KEEP = 3.0
#: Hours whose spend is the pace: the present one, and the one before.
_PACE_HOURS = 2


@dataclass(frozen=True, slots=True)
class TotalUse:
    """A total budget in its current period, in nano-dollars.

    ``spent_nano`` is None while the gateways have not added it up. ``runs_out_at``: when the pace of the last two hours
    would spend the rest; None if it lasts until the reset.
    """

    service_type: str
    limit_nano: int
    spent_nano: int | None
    reserved_nano: int
    resets_at: datetime
    runs_out_at: datetime | None

    @property
    def share(self) -> float:
        return (self.spent_nano or 0) / self.limit_nano


class TotalBudgets:
    """The service types that have a total budget, read at most every few seconds."""

    def __init__(self, redis: Client, usage: Usage, service_types: ServiceTypes) -> None:
        self._redis, self._usage, self._types = redis, usage, service_types
        self._kept = Kept(self._read, _KEEP)

    async def read(self) -> list[TotalUse]:
        """:raises DependencyUnavailable: Redis or PostgreSQL could not be asked."""
        return await self._kept.get()

    async def _read(self) -> list[TotalUse]:
        rows = [row for row in self._types.by_name.values() if row.total_budget_nano]
        if not rows:
            return []
        with needed():
            totals = await decisions.totals(self._redis, rows)
        now = self._usage.now()
        begun = now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=_PACE_HOURS - 1)
        lately = await self._usage.hours(_PACE_HOURS)
        found = []
        for row in rows:
            index = int(now.timestamp()) // row.duration_seconds
            resets_at = datetime.fromtimestamp((index + 1) * row.duration_seconds, UTC)
            total = totals.get(row.name)
            if total is None:
                found.append(TotalUse(row.name, row.total_budget_nano, None, 0, resets_at, None))
                continue
            spent, reserved = (total.spent_nano, total.reserved_nano) if total.period_index == index else (0, 0)
            pace = sum(hour.cost_nano for hour in lately if hour.service_type == row.name)
            left = max(0, row.total_budget_nano - spent)
            seconds = left * (now - begun).total_seconds() / pace if pace else float("inf")
            ends = now + timedelta(seconds=seconds) if seconds < (resets_at - now).total_seconds() else None
            found.append(TotalUse(row.name, row.total_budget_nano, spent, reserved, resets_at, ends))
        return found
