"""Ledger rows on their way: to Redis, which settles them, and from there to PostgreSQL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from msgspec.structs import replace

from services.gateway.budget.metrics import BudgetMetrics
from services.gateway.budget.scripts import BudgetScripts
from services.gateway.ledger.storage import LedgerStorage
from shared.domain.money import NANO
from shared.domain.service_types import ServiceTypes
from shared.errors import DependencyUnavailable
from shared.state import layout
from shared.state.packed import LedgerRow, total_name
from shared.telemetry import logs

_log = logs.logger("budget")
_SETTLED_AT_ONCE = 200
_LEAST_WRITTEN, _MOST_WRITTEN = 10, 500  # rows of a batch
_LEAST_PAUSE, _MOST_PAUSE, _MOST_PAUSE_OF_WRITES = 0.05, 1.0, 2.0


@dataclass(slots=True, eq=False)
class _Settled:
    """A row that waits for PostgreSQL, and the epoch of the Redis server that had it; empty if that is unknown."""

    row: LedgerRow
    epoch: str


class LedgerQueue:
    """The rows of this process that PostgreSQL has not got yet, in two stages.

    A row is sent to Redis at once, and again until Redis has settled it; while ``room`` rows wait for that, the queue
    is ``full`` and nothing more should be admitted. Then it waits for the next batch that goes to PostgreSQL, and is
    acknowledged to Redis, whose outbox has it too: beyond ``room`` rows are left there, and the sweep brings them when
    PostgreSQL is back.
    """

    def __init__(
        self,
        scripts: BudgetScripts,
        storage: LedgerStorage,
        metrics: BudgetMetrics,
        service_types: ServiceTypes,
        *,
        every: float,
        room: int = 20_000,
    ) -> None:
        self._scripts, self._storage, self._metrics = scripts, storage, metrics
        self._service_types = service_types
        self._every, self._room = every, room
        self._sent = 0  # settlements that Redis has not answered yet
        self._unsettled: dict[int, dict[str, LedgerRow]] = {}  # by shard
        self._retried: set[int] = set()  # shards that settle again at the moment
        self._some_unsettled = asyncio.Event()
        self._all_settled = asyncio.Event()
        self._settled: dict[str, _Settled] = {}
        self._some_settled = asyncio.Event()
        self._flushing = asyncio.Lock()
        #: PostgreSQL took no rows the last time: further ones would only wait here.
        self.down = False
        self._at_once = _MOST_WRITTEN

    @property
    def unsettled(self) -> int:
        """Rows that Redis has not settled yet."""
        return self._sent + sum(map(len, self._unsettled.values()))

    @property
    def settled(self) -> int:
        """Rows that wait for PostgreSQL."""
        return len(self._settled)

    @property
    def full(self) -> bool:
        """Whether Redis has left so many settlements waiting that no more should come."""
        return self.unsettled >= self._room

    # --- to Redis -------------------------------------------------------------------------------------------------

    def settle(self, row: LedgerRow) -> None:
        """Settle a request. Never waits and never fails, and needs no task unless Redis is in trouble."""
        executor = self._scripts.executor
        number, call = self._scripts.settle_call(row)
        epoch = executor.epoch(number)
        future = executor.submit(number, call)
        if future is None:
            self._keep(number, row)
            return
        self._sent += 1

        def answered(done: asyncio.Future[Any]) -> None:
            self._sent -= 1
            if done.cancelled() or done.exception() is not None:
                self._keep(number, row)
            else:
                self._take(row, done.result(), epoch)
                self._look_whether_all()

        future.add_done_callback(answered)

    async def settle_again(self) -> None:
        """Send again what Redis did not take, as long as it takes. No shard waits for the server of another one."""
        self._retried.clear()
        self._some_unsettled.set()
        async with asyncio.TaskGroup() as group:
            while True:
                await self._some_unsettled.wait()
                self._some_unsettled.clear()
                for number in self._unsettled.keys() - self._retried:
                    self._retried.add(number)
                    group.create_task(self._settle_shard(number))

    async def _settle_shard(self, number: int) -> None:
        rows, pause = self._unsettled[number], _LEAST_PAUSE
        while rows:
            # One shows whether the server takes any; if not, another one is the first to be tried next
            first, *others = islice(rows.values(), _SETTLED_AT_ONCE)
            taken = await self._settle_again(number, first)
            if taken and all(await asyncio.gather(*(self._settle_again(number, row) for row in others))):
                pause = _LEAST_PAUSE
            else:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _MOST_PAUSE)
        del self._unsettled[number]
        self._retried.remove(number)
        self._look_whether_all()

    async def all_settled(self, timeout: float) -> bool:
        """Wait until Redis has taken everything; False when it has not in time."""
        try:
            async with asyncio.timeout(timeout):
                while self._sent or self._unsettled:
                    self._all_settled.clear()
                    await self._all_settled.wait()
        except TimeoutError:
            return False
        return True

    async def _settle_again(self, number: int, row: LedgerRow) -> bool:
        _, call = self._scripts.settle_call(row)
        executor, rows = self._scripts.executor, self._unsettled[number]
        before = executor.epoch(number)
        try:
            reply = await executor.run(number, call)
        except DependencyUnavailable:
            rows[row.id] = rows.pop(row.id)
            return False
        del rows[row.id]
        # Empty when the server changed meanwhile: it is unknown which of the two took it
        self._take(row, reply, before if before == executor.epoch(number) else "")
        return True

    def _keep(self, number: int, row: LedgerRow) -> None:
        self._unsettled.setdefault(number, {})[row.id] = row
        self._some_unsettled.set()

    def _take(self, row: LedgerRow, reply: bytes, epoch: str) -> None:
        """``FLAG SETTLED_MS``, with the time of admission of a row that lowers; ``-`` when there is no row to write."""
        if reply == b"-":
            return
        flag, settled_ms, *admitted_ms = reply.split()
        lowers = flag == b"1"
        if lowers:
            self._metrics.lowered_usd.inc(by=max(0, row.reserved_nano - row.cost_nano) / NANO)
        admitted = int(admitted_ms[0]) if admitted_ms else row.admitted_ms
        self.add(replace(row, lowers=lowers, settled_ms=int(settled_ms), admitted_ms=admitted), epoch)

    def _look_whether_all(self) -> None:
        if not (self._sent or self._unsettled):
            self._all_settled.set()

    # --- to PostgreSQL --------------------------------------------------------------------------------------------

    def add(self, row: LedgerRow, epoch: str = "") -> None:
        """Add a settled row. One without an epoch is not settled again."""
        if len(self._settled) >= self._room and row.id not in self._settled:
            return
        self._settled[row.id] = _Settled(row, epoch)
        self._some_settled.set()

    def add_orphans(self, rows: Iterable[LedgerRow], epoch: str) -> None:
        """Add rows found in an outbox, perhaps this process's own."""
        for row in rows:
            known = self._settled.get(row.id)
            if known is None or (row.lowers and not known.row.lowers):
                self.add(row, epoch)

    async def write(self) -> None:
        """Write, forever. Rows are collected for a moment, so that many go in one statement."""
        pause = self._every
        while True:
            await self._some_settled.wait()
            await asyncio.sleep(pause)
            pause = self._every if await self.flush() else min(2 * pause, max(self._every, _MOST_PAUSE_OF_WRITES))
            if not self._settled:
                self._some_settled.clear()

    async def flush(self) -> bool:
        """Write what is settled, one flush at a time; False when a dependency failed."""
        async with self._flushing:
            return await self._flush()

    async def drained(self, timeout: float) -> None:
        """At the end of a process, settle and write everything, each within ``timeout`` seconds.

        Settlements that Redis does not take are written nevertheless: the reaper then charges the reservation, and its
        row comes second and changes nothing.
        """
        if not await self.all_settled(timeout):
            now_ms = int(time.time() * 1000)
            for row in chain.from_iterable(rows.values() for rows in self._unsettled.values()):
                if row.admitted:
                    self.add(replace(row, settled_ms=now_ms))
        try:
            async with asyncio.timeout(timeout):
                while not await self.flush():  # noqa: ASYNC110 - PostgreSQL does not announce that it's back
                    await asyncio.sleep(self._every)
        except TimeoutError:
            _log.error("ledger_rows_left", rows=len(self._settled))

    async def _flush(self) -> bool:
        while self._settled:
            batch = self._current(list(islice(self._settled.values(), self._at_once)))
            if not batch:
                return True  # all of it is being settled again, and comes back
            rows = [entry.row for entry in batch]
            try:
                await self._storage.write(rows)
                self._log_outage(False)
                await self._acknowledge(rows)
            except DependencyUnavailable as failure:
                if failure.dependency == "postgres":
                    # Perhaps it is only slow, and would never take so many in time
                    self._at_once = max(_LEAST_WRITTEN, self._at_once // 2)
                self._log_outage(failure.dependency == "postgres")
                return False
            self._at_once = min(_MOST_WRITTEN, 2 * self._at_once)
            self._metrics.ledger_rows.inc(by=len(rows))
            for entry in batch:
                if self._settled.get(entry.row.id) is entry:
                    del self._settled[entry.row.id]
        return True

    def _current(self, batch: list[_Settled]) -> list[_Settled]:
        """Those that may be written; the others go to Redis again first.

        A server that restarted empty lost the rows, and what they cost. Written to PostgreSQL now, they could be missed
        by a rebuild that came before, and counted by nobody.
        """
        ready = []
        for entry in batch:
            epoch = self._scripts.executor.epoch(layout.of_user(entry.row.user_id).number)
            if entry.row.lowers or not epoch or not entry.epoch or epoch == entry.epoch:
                ready.append(entry)
            else:
                del self._settled[entry.row.id]
                kind = self._service_types.by_name.get(entry.row.details.service_type)
                self.settle(replace(entry.row, total=total_name(kind) if kind else ""))
        return ready

    async def _acknowledge(self, rows: Sequence[LedgerRow]) -> None:
        """Acknowledge rows. If Redis can't be reached, the sweep finds them, and they are acknowledged later.

        A server that is gone is not waited for, since rows of other servers are next.
        """
        shards: dict[int, list[LedgerRow]] = {}
        for row in rows:
            shards.setdefault(layout.of_user(row.user_id).number, []).append(row)
        reached = {number: some for number, some in shards.items() if self._scripts.executor.epoch(number)}
        calls = [self._scripts.acknowledge(number, some) for number, some in reached.items()]
        for result in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(result, BaseException) and not isinstance(result, DependencyUnavailable):
                raise result

    def _log_outage(self, down: bool) -> None:
        if down != self.down:
            self.down = down
            if down:
                _log.warning("ledger_waits", rows=len(self._settled))
            else:
                _log.info("ledger_goes_on", rows=len(self._settled))
