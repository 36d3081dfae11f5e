"""The end of a process: in order, and in time."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import unused_port

from shared.errors import ServiceError
from shared.service.protocol import ServiceSite
from shared.service.serve import DRAIN, Drain, Site, serve
from shared.service.web import Frame
from shared.telemetry.logs import UserDigest
from shared.telemetry.metrics import Registry


class Slow:
    """A service whose one request runs until the test ends it."""

    def __init__(self, drain: Drain) -> None:
        self.begun, self.end = asyncio.Event(), asyncio.Event()
        self.port = unused_port()
        self.app = web.Application()
        self.app[DRAIN] = drain
        self.app.router.add_post("/", self._handle)

    async def _handle(self, _request: web.Request) -> web.Response:
        self.begun.set()
        await self.end.wait()
        return web.Response(text="done")

    async def ask(self) -> str:
        """aiohttp's client does not repeat a POST that was cut off: the port may be another server's by then."""
        async with aiohttp.ClientSession() as session, session.post(f"http://127.0.0.1:{self.port}/") as response:
            return await response.text()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        """The task of ``serve``; its one request, sent by ``ask``, begins in the meantime."""
        frame = Frame(Registry(), _render, endpoints=["/"], user_digest=UserDigest(None))
        site = Site(self.app, self.port, lambda runner, sock: ServiceSite(runner, sock, frame))
        task = asyncio.create_task(serve(site, host="127.0.0.1", name="slow", hang_up=lambda: None))
        try:
            async with asyncio.timeout(10):
                yield task
        finally:
            task.cancel()

    async def closed(self) -> None:
        """Returns when it takes no more connections."""
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                return
            writer.close()
            await asyncio.sleep(0.01)


def _render(_request: web.Request | None, error: ServiceError) -> web.Response:
    return web.Response(status=error.status)


async def _asked(service: Slow) -> asyncio.Task[str]:
    """The request, once it runs."""
    while not service.begun.is_set():
        asked = asyncio.create_task(service.ask())
        await asyncio.wait([asked, asyncio.create_task(service.begun.wait())], return_when=asyncio.FIRST_COMPLETED)
    return asked


async def test_a_request_that_runs_is_waited_for_and_no_longer() -> None:
    service = Slow(Drain(limit=30))
    async with service.running() as served:
        asked = await _asked(service)
        os.kill(os.getpid(), signal.SIGTERM)
        await service.closed()
        await asyncio.sleep(2.2)  # longer than a request gets when the limit is over
        assert not served.done()
        service.end.set()
        assert await asked == "done"
        await served


async def test_a_request_that_takes_longer_than_the_limit_is_cut_off() -> None:
    service = Slow(Drain(limit=0.1))
    async with service.running() as served:
        asked = await _asked(service)
        os.kill(os.getpid(), signal.SIGTERM)
        await served
        with pytest.raises(aiohttp.ClientError):
            await asked


async def test_what_a_services_own_part_takes_counts_towards_the_limit() -> None:
    limits = []

    async def finish(limit: float) -> None:
        limits.append(limit)
        await asyncio.sleep(limit)

    service = Slow(Drain(limit=2, finish=finish))
    async with service.running() as served:
        asked = await _asked(service)
        began = time.monotonic()
        os.kill(os.getpid(), signal.SIGTERM)
        await served
        assert 2 <= time.monotonic() - began < 15  # two more to be cut off, and a busy machine
        assert limits == [2]
        with pytest.raises(aiohttp.ClientError):
            await asked
