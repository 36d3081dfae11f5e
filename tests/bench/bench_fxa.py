"""The cost of verifying FxA tokens: beside the one Redis command that it needs, and in calls to FxA."""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Self, TypeVar

import aiohttp
import uvloop
from aiohttp import web

from services.auth.fxa.local import verify_jwt
from services.auth.fxa.parse import JwtToken, parse
from services.auth.fxa.services import FxAVerifier
from services.local.faults import Fault
from services.local.fxa import StandIn
from services.local.fxa_keys import KeyRing
from services.local.process import free_port
from services.local.valkey import ValkeyServer
from shared.stores.redis import Client, connect
from tests.bench.figures import ROUNDS, Row, beside, spread, turns
from tests.services.auth.fxa.harness import ISSUER, Rig
from tests.support.clock import Clock
from tests.support.serving import serve

REQUESTS, AT_ONCE = 200, 8
GOAL = "at most 1.5x"
_T = TypeVar("_T")


class ServerThread:
    """An event loop in a thread of its own, so that the CPU time of the server alone can be read."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __init__(self) -> None:
        self._loop = uvloop.new_event_loop()  # as the services run
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    async def run(self, work: Awaitable[_T]) -> _T:
        async def awaited() -> _T:
            return await work

        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(awaited(), self._loop))

    async def cpu_seconds(self) -> float:
        future: Future[float] = Future()
        self._loop.call_soon_threadsafe(lambda: future.set_result(time.thread_time()))
        return await asyncio.wrap_future(future)

    @asynccontextmanager
    async def serving(self, server: AbstractAsyncContextManager[str]) -> AsyncIterator[str]:
        """A server's URL."""
        try:
            yield await self.run(server.__aenter__())
        finally:
            await self.run(server.__aexit__(None, None, None))


async def run() -> list[Row]:
    """Rows of (name, figure)."""
    with tempfile.TemporaryDirectory() as folder, ValkeyServer(Path(folder) / "valkey", free_port()) as valkey:
        stand_in = StandIn(ISSUER, KeyRing.open(), clock=(clock := Clock()))
        async with serve(stand_in.app()) as url:
            rig = Rig(stand_in, url, valkey.url, clock)
            return [*await _cpu(rig), await _local(rig), await _one_call(rig)]


async def _cpu(rig: Rig) -> list[Row]:
    # Each of those who ask at once has a token of its own: they would share one answer
    jwts, opaques = [rig.jwt() for _ in range(AT_ONCE)], [rig.opaque() for _ in range(AT_ONCE)]
    with ServerThread() as server:
        async with server.serving(_serve(rig)) as url, aiohttp.ClientSession(url) as client:
            bare, *cached = await turns(
                lambda: _load(server, client, "/bare", jwts),
                lambda: _load(server, client, "/cached", jwts),
                lambda: _load(server, client, "/cached", opaques),
                rounds=3 * ROUNDS,
            )
    return [
        (f"cached {kind}, beside a bare handler with one Redis GET", beside(times, bare, "us CPU", 1e6, goal=GOAL))
        for kind, times in zip(("JWT", "opaque token"), cached, strict=True)
    ]


@asynccontextmanager
async def _serve(rig: Rig) -> AsyncIterator[str]:
    async with (
        connect(rig.redis_url) as redis,
        rig.verifier() as verifier,
        serve(_app(redis, verifier)) as url,
    ):
        yield url


def _app(redis: Client, verifier: FxAVerifier) -> web.Application:
    async def bare(request: web.Request) -> web.Response:
        await redis.get(request.headers["Authorization"])
        return web.Response()

    async def cached(request: web.Request) -> web.Response:
        await verifier.verify(request.headers["Authorization"])
        return web.Response()

    app = web.Application()
    app.add_routes([web.get("/bare", bare), web.get("/cached", cached)])
    return app


async def _load(server: ServerThread, client: aiohttp.ClientSession, path: str, tokens: list[str]) -> float:
    """CPU seconds of the server per request, with a request of each token at a time."""

    async def some(token: str) -> None:
        for _ in range(REQUESTS // AT_ONCE):
            async with client.get(path, headers={"Authorization": token}) as response:
                assert response.status == 200

    await asyncio.gather(*map(some, tokens))
    before = await server.cpu_seconds()
    await asyncio.gather(*map(some, tokens))
    return (await server.cpu_seconds() - before) / REQUESTS


async def _local(rig: Rig) -> Row:
    async with rig.verifier(cache_ttl=0) as verifier:
        token, times = rig.jwt(), []
        for _ in range(ROUNDS):
            before = time.thread_time()
            for _ in range(REQUESTS):
                parsed = parse(token, issuer=ISSUER, now=rig.clock(), skew=30)
                assert isinstance(parsed, JwtToken)
                await verify_jwt(parsed, verifier.keys)

            times.append((time.thread_time() - before) / REQUESTS)
        return "JWT parsed and verified locally", spread(times, "us CPU", 1e6)


async def _one_call(rig: Rig) -> Row:
    rig.fxa.faults.set(Fault("verify", latency=0.1))
    calls = []
    for _ in range(ROUNDS):
        before, token = rig.calls("verify"), rig.opaque()
        async with rig.verifier() as here, rig.verifier() as there:
            await asyncio.gather(*((here, there)[number % 2].verify(token) for number in range(1000)))
        calls.append(rig.calls("verify") - before)
    return "calls to FxA for 1,000 verifications at once of a new opaque token", spread(calls)
