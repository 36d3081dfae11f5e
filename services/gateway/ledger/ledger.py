"""Ledger rows on their way to PostgreSQL: in batches, written once, acknowledged to Redis, waiting while it is away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from services.gateway.budget.admission import Admission, place
from services.gateway.budget.metrics import BudgetMetrics
from services.gateway.budget.rows import Row, Settlement
from services.gateway.ledger.storage import LedgerStorage
from shared.errors import DependencyUnavailable
from shared.telemetry import logs

_log = logs.logger("budget")
_BATCH = 500
_MOST_PAUSE = 2.0


@dataclass(slots=True, eq=False)
class _Entry:
    """A row, the epoch of the Redis server whose outbox has it, and how to settle it again should that be lost."""

    row: Row
    epoch: str
    settlement: Settlement | None


class Ledger:
    """The rows of this process that PostgreSQL has not got yet.

    The outbox in Redis has them too, so that memory is bounded: beyond ``room`` rows are left there, and the sweep
    brings them when PostgreSQL is back.
    """

    def __init__(
        self,
        admission: Admission,
        storage: LedgerStorage,
        metrics: BudgetMetrics,
        *,
        every: float,
        room: int = 20_000,
    ) -> None:
        self._admission, self._storage, self._metrics = admission, storage, metrics
        self._every, self._room = every, room
        self._queue: dict[str, _Entry] = {}
        self._wake = asyncio.Event()
        self._down = False
        self._flushing = asyncio.Lock()
        self._settle_again: Callable[[Settlement], None] = lambda _: None

    def settles_with(self, add: Callable[[Settlement], None]) -> None:
        """How to settle what an emptied Redis forgot."""
        self._settle_again = add

    def add(self, row: Row, epoch: str, settlement: Settlement | None = None) -> None:
        if len(self._queue) >= self._room and row.id not in self._queue:
            return
        self._queue[row.id] = _Entry(row, epoch, settlement)
        self._metrics.ledger_queue.set(len(self._queue))
        self._wake.set()

    def add_orphans(self, rows: Iterable[Row], epoch: str) -> None:
        """Rows found in an outbox, perhaps this process's own."""
        for row in rows:
            known = self._queue.get(row.id)
            if known is None or (row.lowers and not known.row.lowers):
                self.add(row, epoch)

    async def run(self) -> None:
        """Write, forever. Rows are collected for a moment, so that many go in one statement."""
        pause = self._every
        while True:
            await self._wake.wait()
            await asyncio.sleep(pause)
            pause = self._every if await self.flush() else min(2 * pause, max(self._every, _MOST_PAUSE))
            if not self._queue:
                self._wake.clear()

    async def flush(self) -> bool:
        """Write what is queued, one flush at a time; False when a dependency failed."""
        async with self._flushing:
            return await self._flush()

    async def _flush(self) -> bool:
        while self._queue:
            batch = self._current(list(islice(self._queue.values(), _BATCH)))
            if not batch:
                return True  # all of it is being settled again, and comes back
            rows = [entry.row for entry in batch]
            try:
                await self._storage.write(rows)
                self._told(False)
                await self._acknowledge(rows)
            except DependencyUnavailable as failure:
                self._told(failure.dependency == "postgres")
                return False
            self._metrics.ledger_rows.inc(by=len(rows))
            for entry in batch:
                if self._queue.get(entry.row.id) is entry:
                    del self._queue[entry.row.id]
            self._metrics.ledger_queue.set(len(self._queue))
        return True

    async def drained(self, timeout: float, unsettled: Sequence[Settlement], now_ms: int) -> None:
        """The last flush of a process.

        What Redis would not take is written all the same: the reservation is charged by the reaper then, whose row
        comes second and changes nothing.
        """
        for settlement in unsettled:
            if settlement.admitted:
                self.add(settlement.row(False, now_ms), "")
        try:
            async with asyncio.timeout(timeout):
                while not await self.flush():  # noqa: ASYNC110 - PostgreSQL tells nobody that it's back
                    await asyncio.sleep(self._every)
        except TimeoutError:
            _log.error("ledger_rows_left", rows=len(self._queue))

    def _current(self, batch: list[_Entry]) -> list[_Entry]:
        """Those that may be written; the others go to Redis again first.

        A server that restarted empty lost the rows, and what they cost. Written to PostgreSQL now, they could be missed
        by a rebuild that came before, and counted by nobody.
        """
        ready = []
        for entry in batch:
            epoch = self._admission.executor.epoch(place(entry.row.user_id)[0])
            if entry.settlement is None or entry.row.lowers or not epoch or not entry.epoch or epoch == entry.epoch:
                ready.append(entry)
            else:
                del self._queue[entry.row.id]
                self._settle_again(entry.settlement)
        return ready

    async def _acknowledge(self, rows: Sequence[Row]) -> None:
        """Have Redis forget them; if it can't be told, the sweep finds them and says it again."""
        shards: dict[int, list[Row]] = {}
        for row in rows:
            shards.setdefault(place(row.user_id)[0], []).append(row)
        calls = [self._admission.acknowledge(number, some) for number, some in shards.items()]
        for result in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(result, BaseException) and not isinstance(result, DependencyUnavailable):
                raise result

    def _told(self, down: bool) -> None:
        if down != self._down:
            self._down = down
            if down:
                _log.warning("ledger_waits", rows=len(self._queue))
            else:
                _log.info("ledger_goes_on", rows=len(self._queue))
