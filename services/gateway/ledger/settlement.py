"""Settlements on their way to Redis: sent at once, kept and sent again until Redis took them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from services.gateway.budget.admission import Admission, place
from services.gateway.budget.metrics import BudgetMetrics
from services.gateway.budget.rows import Row, Settlement
from services.gateway.redis.wire import ScriptFailed
from shared.domain.money import NANO
from shared.errors import DependencyUnavailable

_BATCH = 200
_LEAST_PAUSE, _MOST_PAUSE = 0.05, 1.0

#: Given what was settled: its ledger row, the epoch of the server that took it, and how to settle it again.
Settled = Callable[[Row, str, Settlement], None]


class Settlements:
    """Off every latency path: ``add`` never waits and never fails, and needs no task unless Redis is in trouble."""

    def __init__(self, admission: Admission, metrics: BudgetMetrics, settled: Settled) -> None:
        self._admission, self._metrics, self._settled = admission, metrics, settled
        self._sent: set[str] = set()
        self._waiting: dict[str, Settlement] = {}
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def add(self, settlement: Settlement) -> None:
        number = place(settlement.user_id)[0]
        epoch = self._admission.executor.epoch(number)
        future = self._admission.executor.submit(*self._admission.settle_call(settlement))
        if future is None:
            self._wait(settlement)
            return
        self._sent.add(settlement.id)
        self._count()

        def answered(done: asyncio.Future[Any]) -> None:
            self._sent.discard(settlement.id)
            failure = None if done.cancelled() else done.exception()
            if done.cancelled() or isinstance(failure, ConnectionError | ScriptFailed):
                self._wait(settlement)
            else:
                self._take(settlement, done.result(), epoch)
            self._count()

        future.add_done_callback(answered)

    async def run(self) -> None:
        """Send again what Redis did not take, as long as it takes."""
        pause = _LEAST_PAUSE
        while True:
            await self._wake.wait()
            batch = list(self._waiting.values())[:_BATCH]
            if all(await asyncio.gather(*map(self._retry, batch))):
                pause = _LEAST_PAUSE
            else:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _MOST_PAUSE)
            if not self._waiting:
                self._wake.clear()

    async def drained(self, timeout: float) -> list[Settlement]:
        """Wait until Redis has taken everything; what it did not take in time."""
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            return list(self._waiting.values())
        return []

    async def _retry(self, settlement: Settlement) -> bool:
        number, *_ = call = self._admission.settle_call(settlement)
        executor = self._admission.executor
        before = executor.epoch(number)
        try:
            reply = await executor.run(*call)
        except DependencyUnavailable:
            return False
        self._waiting.pop(settlement.id, None)
        # Not known which server took it, if it changed meanwhile: then it is settled there once more
        self._take(settlement, reply, before if before == executor.epoch(number) else "")
        self._count()
        return True

    def _wait(self, settlement: Settlement) -> None:
        self._waiting[settlement.id] = settlement
        self._wake.set()
        self._count()

    def _take(self, settlement: Settlement, reply: bytes, epoch: str) -> None:
        """``FLAG SETTLED_MS``, or ``-`` when there is no row to write."""
        if reply != b"-":
            flag, _, settled_ms = reply.partition(b" ")
            lowers = flag == b"1"
            if lowers:
                self._metrics.lowered_usd.inc(by=(settlement.amount_nano - settlement.cost_nano) / NANO)
            self._settled(settlement.row(lowers, int(settled_ms)), epoch, settlement)

    def _count(self) -> None:
        left = len(self._waiting) + len(self._sent)
        self._metrics.unsettled.set(left)
        if left:
            self._idle.clear()
        else:
            self._idle.set()
