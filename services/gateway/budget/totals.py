"""The total budget of a service type: sums per shard that the scripts keep, watched by every gateway."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from services.gateway.budget.charging import Bounds
from services.gateway.budget.models import Ask
from services.gateway.budget.rows import parse_row, total_field
from services.gateway.errors import BudgetExceeded, BudgetReserved, MayCostTooMuch
from services.gateway.ledger.storage import LedgerStorage
from services.gateway.redis.executor import Executor
from services.gateway.redis.wire import Script
from shared.budget_state import shard_key
from shared.domain.identity import SHARDS
from shared.domain.service_types import ServiceTypes
from shared.errors import DependencyUnavailable
from shared.telemetry import logs

_log = logs.logger("budget")
_WATCH, _BEGIN, _LOAD = Script("totals"), Script("totals_begin"), Script("totals_load")
SCRIPTS = (_WATCH, _BEGIN, _LOAD)
#: Sums that could not be read for so long are not known: nobody is admitted on them.
_STALE_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class _Sum:
    period: int
    spent: int
    reserved: int
    read_at: float


@dataclass(frozen=True, slots=True)
class _Begun:
    """A shard when its sums were emptied: open reservations as (total, admitted ms, amount), and the outbox."""

    now_ms: int
    open: list[tuple[str, int, int]]
    rows: dict[str, str]


class Totals:
    """Asks nothing of Redis unless a row has a ``total_budget``."""

    def __init__(
        self, executor: Executor, storage: LedgerStorage, service_types: ServiceTypes, *, who: str, every: float
    ) -> None:
        self._executor, self._storage, self._who, self._every = executor, storage, who, every
        self._rows = {field: row for row in service_types.rows.values() if (field := total_field(row))}
        self._sums: dict[str, _Sum] = {}

    def check(self, ask: Ask, bounds: Bounds) -> int | None:
        """What all users of the service type together leave, in nano-dollars, at least ``least``; None for no limit.

        :raises BudgetExceeded, BudgetReserved, MayCostTooMuch: they leave less.
        :raises DependencyUnavailable: not known at the moment.
        """
        row = ask.principal.service_type
        field = total_field(row)
        if field not in self._rows:
            return None
        if not self._is_known(field):
            raise DependencyUnavailable("redis")
        known = self._sums[field]
        now = time.time()
        if int(now) // row.duration_seconds > known.period:
            return row.total_budget_nano
        room = row.total_budget_nano - known.spent - known.reserved
        if room >= bounds.least:
            return room
        unspent = row.total_budget_nano - known.spent
        if unspent < bounds.empty:
            resets = (known.period + 1) * row.duration_seconds - now
            raise BudgetExceeded("The budget of all users together is spent.", retry_after=resets)
        raise MayCostTooMuch if unspent < bounds.least else BudgetReserved

    def unknown(self) -> list[str]:
        """The service types whose total spend is not known at the moment: their chats are refused."""
        return [row.name for field, row in self._rows.items() if not self._is_known(field)]

    def _is_known(self, field: str) -> bool:
        known = self._sums.get(field)
        return known is not None and time.monotonic() - known.read_at <= _STALE_SECONDS

    async def run(self) -> None:
        while self._rows:
            await self.refresh()
            await asyncio.sleep(self._every)

    async def refresh(self) -> None:
        """Read the sums of all shards, and build those that Redis lost."""
        fields = tuple(self._rows)
        calls = [self._executor.run(number, _WATCH, (shard_key(number, "totals"),), fields) for number in range(SHARDS)]
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
        read_at = time.monotonic()
        for at, field in enumerate(fields):
            parts = [
                list(map(int, reply[3 * at : 3 * at + 3])) for reply in replies if not isinstance(reply, BaseException)
            ]
            period = max(part[0] for part in parts)
            current = [part for part in parts if part[0] == period]
            self._sums[field] = _Sum(
                period, sum(part[1] for part in current), sum(part[2] for part in current), read_at
            )

    async def _build(self, lost: list[int]) -> None:
        """Empty the sums of these shards, then add what was before: from the outbox, the leases and the ledger.

        :raises DependencyUnavailable:
        """
        begun = {number: found for number in lost if (found := await self._begin(number)) is not None}
        amounts: dict[int, dict[str, int]] = {number: {} for number in begun}

        def add(number: int, kind: str, field: str, period: int, amount: int) -> None:
            name = f"{kind}|{field}|{period}"
            amounts[number][name] = amounts[number].get(name, 0) + amount

        fields = {row.name: field for field, row in self._rows.items()}
        pending = []
        for number, shard in begun.items():
            for field, admitted_ms, amount in shard.open:
                add(number, "r", field, admitted_ms // 1000 // int(field.rpartition(":")[2]), amount)
            for name, entry in shard.rows.items():
                row = parse_row(name, entry)
                pending.append(name)
                if row.service_type in fields:
                    field = fields[row.service_type]
                    seconds = self._rows[field].duration_seconds
                    add(number, "s", field, row.admitted_ms // 1000 // seconds, row.cost_nano)
        if begun:
            moments = {number: shard.now_ms for number, shard in begun.items()}
            now = max(moments.values()) // 1000
            for field, kind in self._rows.items():
                period = now // kind.duration_seconds
                start = period * kind.duration_seconds
                spent = await self._storage.totals(kind.name, start, start + kind.duration_seconds, moments, pending)
                for number, amount in spent.items():
                    add(number, "s", field, period, amount)
        for number, sums in amounts.items():
            args = [self._who]
            for name, amount in sums.items():
                args += (name, str(amount))
            await self._executor.run(number, _LOAD, (shard_key(number, "totals"),), args)

    async def _begin(self, number: int) -> _Begun | None:
        """:raises DependencyUnavailable:"""
        keys = tuple(shard_key(number, name) for name in ("totals", "leases", "outbox"))
        reply = await self._executor.run(number, _BEGIN, keys, (self._who, shard_key(number, "u:")))
        if not reply:
            return None
        now, open_, rows = reply
        texts = [item.decode() for item in open_]
        found = zip(texts[::3], map(int, texts[1::3]), map(int, texts[2::3]), strict=True)
        entries = dict(zip(map(bytes.decode, rows[::2]), map(bytes.decode, rows[1::2]), strict=True))
        return _Begun(int(now), list(found), entries)
