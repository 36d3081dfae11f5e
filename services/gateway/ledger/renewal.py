"""The open reservations of this process: renewed while they run, registered again where Redis forgot them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from services.gateway.budget.admission import Admission, RenewalState, place
from services.gateway.budget.metrics import BudgetMetrics
from services.gateway.budget.models import Reservation
from shared.errors import DependencyUnavailable
from shared.telemetry import logs

_log = logs.logger("budget")
_BATCH = 100  # per script call: a few hundred microseconds of Redis
_AFTER_FAILURE = 1.0
#: What a renewal tells of the user, and what the relay is told.
_LOST_RIGHT: dict[RenewalState, str] = {"blocked": "blocked", "revoked": "blocked", "token": "revoked"}


class Renewals:
    def __init__(self, admission: Admission, metrics: BudgetMetrics, *, every: float) -> None:
        self._admission, self._metrics, self._every = admission, metrics, every
        self._open: dict[int, dict[str, Reservation]] = {}
        self._count = 0
        self._now = asyncio.Event()
        self._changed: set[int] = set()
        admission.executor.on_epoch(self._on_epoch)

    def add(self, reservation: Reservation) -> None:
        number = place(reservation.ask.principal.user_id)[0]
        self._open.setdefault(number, {})[reservation.id] = reservation
        self._count += 1
        self._metrics.open.set(self._count)

    def remove(self, reservation: Reservation) -> None:
        """It is settled, or charged by the reaper: nothing to hold any more."""
        number = place(reservation.ask.principal.user_id)[0]
        if self._open.get(number, {}).pop(reservation.id, None) is not None:
            self._count -= 1
            self._metrics.open.set(self._count)

    async def run(self) -> None:
        """Renew everything now and then, and at once what another Redis server knows nothing of."""
        loop = asyncio.get_running_loop()
        due = loop.time() + self._every
        while True:
            try:
                async with asyncio.timeout_at(due):
                    await self._now.wait()
            except TimeoutError:
                whole = await self._renew(list(self._open))
                due = loop.time() + (self._every if whole else min(self._every, _AFTER_FAILURE))
            else:
                self._now.clear()
                changed, self._changed = self._changed, set()
                if not await self._renew(changed):
                    due = min(due, loop.time() + _AFTER_FAILURE)

    def _on_epoch(self, shards: list[int]) -> None:
        self._changed.update(shards)
        self._now.set()

    async def _renew(self, shards: Iterable[int]) -> bool:
        """False when Redis did not take some of it."""
        calls = []
        for number in shards:
            reservations = list(self._open.get(number, {}).values())
            calls += [
                self._renew_some(number, reservations[at : at + _BATCH]) for at in range(0, len(reservations), _BATCH)
            ]
        return all(await asyncio.gather(*calls))

    async def _renew_some(self, number: int, reservations: list[Reservation]) -> bool:
        try:
            states = await self._admission.renew(number, reservations)
        except DependencyUnavailable:
            return False
        for reservation, state in zip(reservations, states, strict=True):
            if reservation.settled or state == "ok":
                continue
            if state in ("reaped", "settled"):
                # Charged whole by a reaper while this process slept; what it still delivers is paid for
                _log.warning("reservation_lapsed", id=reservation.id, state=state)
                self.remove(reservation)
            elif reservation.on_revoked is not None:
                tell, reservation.on_revoked = reservation.on_revoked, None
                tell(_LOST_RIGHT[state])
        return True
