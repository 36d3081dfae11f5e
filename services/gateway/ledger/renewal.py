"""The open reservations of this process: renewed while they run, registered again where Redis forgot them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from services.gateway.budget.models import Reservation
from services.gateway.budget.refusals import Refusal
from services.gateway.budget.scripts import BudgetScripts
from shared.errors import DependencyUnavailable
from shared.state import layout
from shared.state.refusals import Word
from shared.telemetry import logs

_log = logs.logger("budget")
_BATCH = 100  # per script call: a few milliseconds of Redis
_AT_ONCE = 8  # calls to a server
_AFTER_FAILURE = 1.0


class Renewals:
    """The requests that this process admitted and has not settled."""

    def __init__(self, scripts: BudgetScripts, *, every: float) -> None:
        self._scripts, self._every = scripts, every
        self._open: dict[int, dict[str, Reservation]] = {}
        self._lapsed: set[str] = set()
        self._now = asyncio.Event()
        self._changed: set[int] = set()
        scripts.executor.on_epoch(self._on_epoch)

    def __len__(self) -> int:
        return sum(map(len, self._open.values()))

    def add(self, reservation: Reservation) -> None:
        number = layout.of_user(reservation.ask.principal.user_id).number
        self._open.setdefault(number, {})[reservation.id] = reservation

    def lapsed(self, reservation: Reservation) -> bool:
        """Whether a reaper has charged it whole, as far as this process knows."""
        return reservation.id in self._lapsed

    def remove(self, reservation: Reservation) -> bool:
        """Take out a reservation that is being settled; False if it was settled before."""
        self._lapsed.discard(reservation.id)
        number = layout.of_user(reservation.ask.principal.user_id).number
        return self._open.get(number, {}).pop(reservation.id, None) is not None

    async def run(self) -> None:
        """Renew all reservations periodically, and at once those that a new Redis server does not know."""
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
        """Renew the reservations of shards; False if Redis did not take all of them."""
        servers: dict[str, list[tuple[int, list[Reservation]]]] = {}
        for number in shards:
            reservations = list(self._open.get(number, {}).values())
            servers.setdefault(self._scripts.executor.epoch(number), []).extend(
                (number, reservations[at : at + _BATCH]) for at in range(0, len(reservations), _BATCH)
            )
        return all(await asyncio.gather(*map(self._renew_in_turn, servers.values())))

    async def _renew_in_turn(self, calls: list[tuple[int, list[Reservation]]]) -> bool:
        """Renew at one server, a few calls at a time, so that admissions get in between."""
        whole = True
        for at in range(0, len(calls), _AT_ONCE):
            whole &= all(await asyncio.gather(*(self._renew_some(*call) for call in calls[at : at + _AT_ONCE])))
        return whole

    async def _renew_some(self, number: int, reservations: list[Reservation]) -> bool:
        try:
            states = await self._scripts.renew(number, reservations, self._lapsed)
        except DependencyUnavailable:
            return False
        fresh = []
        for reservation, state in zip(reservations, states, strict=True):
            if state is Word.OK or reservation.id not in self._open[number]:
                continue
            if state in (Word.REAPED, Word.SETTLED):
                # Charged whole by a reaper while this process slept: what it still delivers is paid for
                if reservation.id not in self._lapsed:
                    _log.warning("reservation_lapsed", id=reservation.id, state=state.value)
                    self._lapsed.add(reservation.id)
                    fresh.append(reservation)
            elif not reservation.revoked.done():
                reservation.revoked.set_result(Refusal(state).error())
        return not fresh or await self._renew_some(number, fresh)  # their users may be blocked, too
