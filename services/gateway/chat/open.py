"""The chat requests that this process has open: their limit, and their end when the process drains."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from services.gateway.chat.watch import Watch
from services.gateway.errors import Unavailable

#: Seconds that ended requests get to tell their clients and settle.
LAST_WORDS = 5.0


class OpenRequests:
    """:param limit: open requests of this process; 0 for none."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0
        self._watches: set[Watch] = set()
        self._closed = False
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return self._count

    def check(self) -> None:
        """:raises Unavailable: there is no place for one more, or the process drains."""
        if self._closed:
            raise Unavailable("The service is restarting. Try again.")
        if self._limit and self._count >= self._limit:
            raise Unavailable("Too many requests are open.")

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for one request, from its admission to its end.

        :raises Unavailable: as ``check``.
        """
        self.check()
        self._count += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._count -= 1
            if not self._count:
                self._empty.set()

    def watch(self, watch: Watch) -> None:
        self._watches.add(watch)

    def unwatch(self, watch: Watch) -> None:
        self._watches.discard(watch)

    async def finish(self, seconds: float) -> None:
        """Take no more; wait so long for those that are open, then end them with an error."""
        self._closed = True
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            for watch in tuple(self._watches):
                watch.end(Unavailable("The service is restarting. Try again."))
            try:
                async with asyncio.timeout(LAST_WORDS):
                    await self._empty.wait()
            except TimeoutError:
                pass  # what hangs is cancelled with its connection
