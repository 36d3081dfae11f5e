"""The open requests of this process: their limit, and their end when the process drains."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType

from services.gateway.errors import Unavailable
from services.gateway.relay.watch import Watch

#: Seconds that ended requests have to answer their clients and settle.
LAST_WORDS = 5.0


class OpenRequests:
    """The open requests of this process. A block within ``with`` is one of them, from its admission to its end.

    :param limit: how many there may be; 0 for no limit.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0
        #: The watches of those that are relayed.
        self.watches: set[Watch] = set()
        self._closed = False
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return self._count

    def check(self) -> None:
        """:raises Unavailable: there is no room for one more, or the process drains."""
        if self._closed:
            raise Unavailable("The service is restarting. Try again.")
        if self._limit and self._count >= self._limit:
            raise Unavailable("Too many requests are open.")

    def __enter__(self) -> None:
        """:raises Unavailable: as ``check``."""
        self.check()
        self._count += 1
        self._empty.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._count -= 1
        if not self._count:
            self._empty.set()

    async def finish(self, seconds: float) -> None:
        """Refuse new requests, wait for the open ones, and end the rest with an error."""
        self._closed = True
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            for watch in tuple(self.watches):
                watch.end(Unavailable("The service is restarting. Try again."))
            with suppress(TimeoutError):  # a request that hangs is cancelled with its connection
                async with asyncio.timeout(LAST_WORDS):
                    await self._empty.wait()
