"""Places at FxA: the number of concurrent verifications, in all and per source.

A client that sends invented tokens fills only the places of its own address, and gets few once FxA has refused many of
them. When FxA asks for less (429), the places are halved, once for all requests under way. Each answer of FxA then
brings one back.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

#: Refused tokens in a minute after which a source has few places, since FxA counts them too.
MANY_REFUSED, FEW_PLACES = 60, 2
#: Number of sources whose refusals are counted.
_MOST_SOURCES = 10_000


class NoPlace(Exception):
    """No place became free in time."""


@dataclass(slots=True)
class _Source:
    """A source with verifications under way. ``users``: how many hold a place or wait for one."""

    places: asyncio.Semaphore
    few: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(FEW_PLACES))
    users: int = 0


class Places:
    """The places that verifications take and give back.

    :param most: places in all.
    :param of_source: places of one source.
    :param wait: seconds to wait for a place.
    """

    def __init__(self, most: int, of_source: int, wait: float, *, clock: Callable[[], float]) -> None:
        self._most, self._of_source = most, of_source
        self._wait, self._clock = wait, clock
        self.open = most
        #: How often the places have been halved.
        self.era = 0
        self._taken = 0
        self._queue: deque[asyncio.Future[None]] = deque()
        self._sources: dict[str, _Source] = {}
        self._minute = 0
        self._refused: Counter[str] = Counter()

    @asynccontextmanager
    async def take(self, source: str) -> AsyncIterator[None]:
        """A place for as long as the block lasts.

        :raises NoPlace: none became free in time.
        """
        mine = self._sources.setdefault(source, _Source(asyncio.Semaphore(self._of_source)))
        mine.users += 1
        try:
            async with AsyncExitStack() as held:
                try:
                    async with asyncio.timeout(self._wait):
                        if self._refusals()[source] >= MANY_REFUSED:
                            await held.enter_async_context(mine.few)
                        await held.enter_async_context(mine.places)
                        await self._acquire()
                        held.callback(self._release)
                except TimeoutError:
                    raise NoPlace from None
                yield
        finally:
            mine.users -= 1
            if not mine.users:
                del self._sources[source]

    def answered(self) -> None:
        """FxA gave an answer about a token."""
        self.open = min(self._most, self.open + 1)
        self._hand_out()

    def refused(self, source: str) -> None:
        """FxA refused a token of this source."""
        refusals = self._refusals()
        if source in refusals or len(refusals) < _MOST_SOURCES:
            refusals[source] += 1

    def halve(self, era: int) -> bool:
        """Halve the places, unless that has happened since ``era``. False if only one was left."""
        if era != self.era:
            return True
        if self.open == 1:
            return False
        self.era += 1
        self.open //= 2
        return True

    def _refusals(self) -> Counter[str]:
        minute = int(self._clock() // 60)
        if minute != self._minute:
            self._minute = minute
            self._refused.clear()
        return self._refused

    async def _acquire(self) -> None:
        if self._taken < self.open and not self._queue:
            self._taken += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn  # the place was counted when it was handed over
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release()
            raise

    def _release(self) -> None:
        self._taken -= 1
        self._hand_out()

    def _hand_out(self) -> None:
        while self._queue and self._taken < self.open:
            turn = self._queue.popleft()
            if not turn.done():
                self._taken += 1
                turn.set_result(None)
