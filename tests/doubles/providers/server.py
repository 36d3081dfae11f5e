"""The common part of the providers' doubles: a server in its own thread, and a record of all requests."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from aiohttp import web


@dataclass(frozen=True, slots=True)
class Arrived:
    """A request as it came to the provider."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]


class Refused(Exception):
    """The provider answers 400, with this text in its own envelope."""


class ProviderDouble:
    """One provider. ``url`` is what LiteLLM has for ``api_base``.

    It has a thread and a loop of its own, since it serves as long as LiteLLM does, which is longer than one test.
    """

    #: Path of a request, as aiohttp's router writes it.
    path: ClassVar[str]
    #: Paths beside it.
    more_paths: ClassVar[tuple[str, ...]] = ()
    #: What ``api_base`` ends with.
    base: ClassVar[str] = ""

    def __init__(self) -> None:
        self.arrived: list[Arrived] = []
        self.url = ""

    @property
    def last(self) -> Arrived:
        return self.arrived[-1]

    async def answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        """:raises Refused: the provider would."""
        raise NotImplementedError

    def refusal(self, message: str) -> dict[str, Any]:
        """The envelope of a 400."""
        raise NotImplementedError

    @contextmanager
    def running(self) -> Iterator[Self]:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name=type(self).__name__, daemon=True)
        thread.start()
        try:
            runner = asyncio.run_coroutine_threadsafe(self._start(), loop).result(10)
            yield self
            asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(10)
            loop.close()

    async def _start(self) -> web.AppRunner:
        app = web.Application(client_max_size=2**26)
        for path in (self.path, *self.more_paths):
            app.router.add_post(path, self._serve)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site.port}{self.base}"
        return runner

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        self.arrived.append(Arrived(request.path, dict(request.headers), body))
        try:
            return await self.answer(request, body)
        except Refused as refused:
            return web.json_response(self.refusal(str(refused)), status=400)


async def send_all(request: web.Request, parts: AsyncIterator[bytes], content_type: str) -> web.StreamResponse:
    """A stream, each part in a write of its own."""
    response = web.StreamResponse(headers={"Content-Type": content_type})
    await response.prepare(request)
    async for part in parts:
        await response.write(part)
    return response
