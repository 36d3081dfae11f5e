"""The total budget of a service type: sums per shard that the scripts keep, watched by every gateway."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.gateway.budget import resets
from services.gateway.budget.charging import Bounds
from services.gateway.budget.metrics import BudgetMetrics
from services.gateway.budget.models import Ask
from services.gateway.budget.refusals import Refusal
from services.gateway.budget.scripts import BudgetScripts, TotalsBegun
from services.gateway.ledger.storage import LedgerStorage, StillLedger
from shared.domain.identity import SHARDS
from shared.domain.money import NANO, usd_text
from shared.domain.service_types import ServiceType, ServiceTypes
from shared.errors import DependencyUnavailable
from shared.state.layout import SUM_RESERVED, SUM_SPENT
from shared.state.packed import period_of, sum_field, total_name
from shared.state.totals import Total, add_up, lost
from shared.telemetry import logs

_log = logs.logger("budget")
#: Sums that could not be read for so long are not known: nobody is admitted on them.
_STALE_SECONDS = 3.0
#: Rows of a shard's outbox beyond which its sums are not built: they are written to the ledger first.
_MOST_WAITING = 500
#: The same for sums that are good and built once more after a rollout: that waits for a calmer moment.
_FEW_WAITING = 50
#: Ms within which the last old gateway stops admitting after the last new one of a rollout has started.
_ROLLOUT_MS = 5 * 60 * 1000
#: Ms after which a build that nobody waits for is tried again, and within which the gateways of a rollout try theirs.
_RETRY_MS = 30_000


@dataclass(frozen=True, slots=True)
class _Known:
    """A total, and when it was read, by this process's clock."""

    total: Total
    read_at: float


class Totals:
    """The total budgets as this gateway knows them. Redis is asked only if a row has a ``total_budget``.

    One gateway at a time reads the sums of the shards, and passes them to the others through Redis.
    """

    def __init__(
        self,
        scripts: BudgetScripts,
        storage: LedgerStorage,
        service_types: ServiceTypes,
        metrics: BudgetMetrics,
        *,
        every: float,
    ) -> None:
        self._scripts, self._storage, self._every = scripts, storage, every
        self._service_types, self._metrics = service_types, metrics
        self._rows: dict[str, ServiceType] = {}
        self._known: dict[str, _Known] = {}
        self._clock = 0.0  # Redis's, less this process's
        #: When this process took a row's new total budget, in ms by Redis's clock; 0: not known yet. Sums that were
        #: built before miss what it admitted since.
        self._since: dict[str, int] = {}
        self._take_table()
        self._since.clear()
        #: The time for which all sums are built once more, in ms by Redis's clock; 0: not known yet, None: they are.
        #: They may miss what gateways that were started before this one, without these total budgets, admitted.
        #: All gateways that start within 5 minutes need one build together, 5 to 10 minutes later.
        self._again: int | None = 0
        self._try_at = 0
        #: When this process tries to build the sums of new total budgets though another one reads the shards.
        self._try_new_at = 0

    def _take_table(self) -> None:
        """Take the rows that have a total budget now. Only between two readings, which know them by name."""
        rows = {name: row for row in self._service_types.by_name.values() if (name := total_name(row))}
        metrics = self._metrics
        for gauge in (metrics.total_limit, metrics.total_spent, metrics.total_reserved, metrics.total_known):
            gauge.preset_all([row.name for row in rows.values()])
        for row in [row for name, row in self._rows.items() if name not in rows]:
            for gauge in (metrics.total_limit, metrics.total_spent, metrics.total_reserved):
                gauge.set(0, row.name)
            metrics.total_known.set(1, row.name)
        self._since = {name: self._since.get(name, 0) for name in rows if name in self._since or name not in self._rows}
        self._rows = rows

    def check(self, ask: Ask, bounds: Bounds) -> int | None:
        """The rest of the service type's total budget in nano-dollars, at least ``least``; None without such a budget.

        :raises GatewayError: the rest is less.
        :raises DependencyUnavailable: it is not known at the moment.
        """
        row = ask.principal.service_type
        name = total_name(row)
        if name not in self._rows:
            return None
        if not self._is_known(name):
            raise DependencyUnavailable("redis")
        known = self._known[name].total
        now = time.monotonic() + self._clock
        if int(now) // row.duration_seconds > known.period_index:
            return row.total_budget_nano
        refusal = known.refusal(row, bounds.least, bounds.empty, now)
        if refusal is None:
            return known.room(row)
        raise Refusal(*refusal).error(
            resets.delay(ask.principal.user_id, row.duration_seconds),
            tier=row,
            budget=usd_text(row.total_budget_nano),
            spent=usd_text(known.spent_nano),
            reserved=usd_text(known.reserved_nano),
        )

    def unknown(self) -> list[str]:
        """The service types whose total spend is not known at the moment: their chats are refused."""
        return [row.name for name, row in self._rows.items() if not self._is_known(name)]

    def _is_known(self, name: str) -> bool:
        known = self._known.get(name)
        return known is not None and time.monotonic() - known.read_at <= _STALE_SECONDS

    async def run(self) -> None:
        while True:
            self._take_table()
            if self._rows:
                await self.refresh()
                self._show()
            await asyncio.sleep(self._every)

    async def refresh(self) -> None:
        """Learn the sums: from another gateway, or from the shards, and then build those that Redis lost."""
        names = tuple(self._rows)
        try:
            sums = await self._scripts.sums(names, self._every)
            # Late by the answer's travel time, never early: the old period's sums hold until it is over
            self._clock = sums.now_ms / 1000 - time.monotonic()
            self._since = {name: since or sums.now_ms for name, since in self._since.items()}
            for name, (read_at_ms, total) in sums.known.items():
                self._learn(name, total, read_at_ms / 1000 - self._clock)
            if self._again == 0:
                self._again = (sums.now_ms // _ROLLOUT_MS + 2) * _ROLLOUT_MS
                self._try_at = self._again + random.randrange(_RETRY_MS)  # noqa: S311 - the first one builds for all
            if sums.mine or (self._since and sums.now_ms >= self._try_new_at) or self._is_due(sums.now_ms):
                await self._read(names, sums.now_ms)
        except DependencyUnavailable as failure:
            if failure.dependency != "redis":
                _log.warning("totals_not_built", dependency=failure.dependency)

    async def _read(self, names: Sequence[str], now_ms: int) -> None:
        """Read the shards for all gateways."""
        replies = await self._ask(names, [self._since.get(name, 0) for name in names])
        found = add_up(names, replies)
        for name, total in found.items():
            self._since.pop(name, None)
            self._learn(name, total, now_ms / 1000 - self._clock)
        if found:
            await self._scripts.tell_sums(now_ms, found)
        most = _MOST_WAITING
        if self._again is not None and self._is_due(now_ms):  # the earlier sums hold until that build begins
            most = _FEW_WAITING
            self._try_at = now_ms + _RETRY_MS
            replies = await self._ask(names, [max(self._again, self._since.get(name, 0)) for name in names])
            if not any(lost(names, reply) for reply in replies):
                self._again = None
        if missing := {number: names_ for number, reply in enumerate(replies) if (names_ := lost(names, reply))}:
            self._try_new_at = now_ms + _RETRY_MS
            await self._build(missing, most)
            self._try_new_at = 0

    def _is_due(self, now_ms: int) -> bool:
        return self._again is not None and now_ms >= self._try_at

    async def _ask(self, names: Sequence[str], since: Sequence[int]) -> list[list[int]]:
        return await asyncio.gather(*(self._scripts.totals(number, names, since) for number in range(SHARDS)))

    def _learn(self, name: str, total: Total, read_at: float) -> None:
        known = self._known.get(name)
        if known is None or read_at >= known.read_at:
            self._known[name] = _Known(total, read_at)

    def _show(self) -> None:
        for name, row in self._rows.items():
            self._metrics.total_limit.set(row.total_budget_nano / NANO, row.name)
            self._metrics.total_known.set(int(self._is_known(name)), row.name)
            if known := self._known.get(name):
                self._metrics.total_spent.set(known.total.spent_nano / NANO, row.name)
                self._metrics.total_reserved.set(known.total.reserved_nano / NANO, row.name)

    async def _build(self, missing: Mapping[int, Sequence[str]], most: int) -> None:
        """Empty the sums of these shards, then add what was before: from the outbox, the leases and the ledger.

        Meanwhile nobody writes to the ledger. So what was settled before the sums were emptied is in the ledger or in
        the outbox (or in both, which is asked), and what is settled after that adds to the sums itself and is not in
        the ledger yet. The period is that in which the sums of a shard were emptied, by Redis's clock: requests of a
        later one all add to the sums themselves. The ledger is asked before, so that no sum is lost if it can't
        answer; only a period that has ended meanwhile is asked again.

        :param missing: names of totals by shard.
        :param most: rows of a shard's outbox beyond which it is left out.
        :raises DependencyUnavailable: Redis or PostgreSQL could not be asked.
        """
        async with self._storage.standing_still() as ledger:
            if ledger is None:
                return
            spent: dict[str, dict[int, int]] = {}  # by field
            for names in missing.values():
                await self._ask_spent(ledger, spent, names, int((time.monotonic() + self._clock) * 1000))
            build = uuid.uuid4().hex  # a call of an earlier one that comes late changes nothing
            begun = await self._begin(build, missing, most)
            rows = [row for shard in begun.values() for row in shard.rows]
            written = await ledger.written(rows)  # or without rows, that the ledger still stands still
            for number, shard in begun.items():
                await self._ask_spent(ledger, spent, missing[number], shard.now_ms)
            for number, shard in begun.items():
                fields = _reserved(shard)
                self._add_waiting(fields, missing[number], shard, written)
                for name in missing[number]:
                    field = sum_field(SUM_SPENT, name, period_of(shard.now_ms, self._rows[name].duration_seconds))
                    fields[field] += spent[field].get(number, 0)
                await self._scripts.load_totals(number, build, missing[number], fields, shard.now_ms)
        _log.info("totals_built", shards=len(begun))

    async def _ask_spent(
        self, ledger: StillLedger, spent: dict[str, dict[int, int]], names: Sequence[str], now_ms: int
    ) -> None:
        for name in names:
            row = self._rows[name]
            seconds, period = row.duration_seconds, period_of(now_ms, row.duration_seconds)
            if (field := sum_field(SUM_SPENT, name, period)) not in spent:
                spent[field] = await ledger.spent(row.name, period * seconds, (period + 1) * seconds)

    async def _begin(self, build: str, missing: Mapping[int, Sequence[str]], most: int) -> dict[int, TotalsBegun]:
        calls = [self._scripts.begin_totals(number, build, names, most) for number, names in missing.items()]
        begun = dict(zip(missing, await asyncio.gather(*calls), strict=True))
        if waiting := sum(shard is None for shard in begun.values()):
            _log.warning("totals_wait_for_outbox", shards=waiting)
        return {number: shard for number, shard in begun.items() if shard is not None}

    def _add_waiting(
        self, fields: Counter[str], names: Sequence[str], shard: TotalsBegun, written: Mapping[str, int]
    ) -> None:
        """Add what rows of the outbox will add to the ledger: one that is there already is only ever lowered."""
        of_type = {self._rows[name].name: name for name in names}
        for row in shard.rows:
            if name := of_type.get(row.details.service_type):
                period = period_of(row.admitted_ms, self._rows[name].duration_seconds)
                known = written.get(row.id)
                change = row.cost_nano if known is None else min(0, row.cost_nano - known) if row.lowers else 0
                fields[sum_field(SUM_SPENT, name, period)] += change


def _reserved(shard: TotalsBegun) -> Counter[str]:
    fields: Counter[str] = Counter()
    for name, admitted_ms, amount in shard.open:
        fields[sum_field(SUM_RESERVED, name, period_of(admitted_ms, int(name.rpartition(":")[2])))] += amount
    return fields
