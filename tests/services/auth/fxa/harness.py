"""Verifiers on a real Valkey and a real FxA stand-in, with a clock that only tests move."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web

from services.auth.fxa.models import FxAConfig
from services.auth.fxa.services import FxAVerifier
from services.local.fxa import StandIn, TokenOrder
from shared.stores.redis import connect
from shared.telemetry.metrics import Registry

ISSUER = "https://accounts.firefox.test"
SECRET = b"the secret of these tests"
UID = "0123456789abcdef0123456789abcdef"


class Clock:
    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@asynccontextmanager
async def serve(app: web.Application) -> AsyncIterator[str]:
    """The base URL of an app that is served on a free port."""
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


class Rig:
    """One FxA and one Valkey, and as many verifiers as a test opens."""

    def __init__(self, stand_in: StandIn, url: str, redis_url: str, clock: Clock) -> None:
        self.fxa = stand_in
        self.url = url
        self.redis_url = redis_url
        self.clock = clock
        self.config = FxAConfig(base_url=f"{url}/v1", issuer=ISSUER, cache_secret=SECRET, timeout=1)

    @asynccontextmanager
    async def verifier(
        self, registry: Registry | None = None, *, loaded: bool = True, **changes: Any
    ) -> AsyncIterator[FxAVerifier]:
        """A verifier with Redis and HTTP connections of its own; with its first key set, unless ``loaded`` is false."""
        async with (
            connect(self.redis_url) as redis,
            aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session,
            FxAVerifier.open(
                dataclasses.replace(self.config, **changes),
                redis=redis,
                session=session,
                registry=registry or Registry(),
                clock=self.clock,
            ) as verifier,
        ):
            if loaded:
                await verifier.keys.refresh()
            yield verifier

    def jwt(self, **order: Any) -> str:
        return self.fxa.mint(TokenOrder(**{"uid": UID, **order}))

    def opaque(self, **order: Any) -> str:
        return self.fxa.mint(TokenOrder(**{"uid": UID, **order, "kind": "opaque"}))

    def calls(self, endpoint: str) -> int:
        return self.fxa.calls.by_endpoint[endpoint]

    async def until_called(self, endpoint: str) -> None:
        async with asyncio.timeout(5):
            while not self.calls(endpoint):  # noqa: ASYNC110 - the stand-in counts, it does not tell
                await asyncio.sleep(0.002)


def metric(registry: Registry, name: str, **labels: str) -> float:
    """The value of one series of the exposition; 0 when it isn't there."""
    for line in registry.render().decode().splitlines():
        found = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
        if found and found[1] == name and dict(re.findall(r'(\w+)="([^"]*)"', found[2] or "")) == labels:
            return float(found[3])
    return 0.0
