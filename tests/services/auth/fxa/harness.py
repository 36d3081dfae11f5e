"""Verifiers on a real Valkey and a real FxA stand-in, with a clock that only tests move."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from services.auth.fxa.models import FxAConfig
from services.auth.fxa.services import FxAVerifier
from services.local.fxa import StandIn, TokenOrder
from shared.stores.redis import connect
from shared.telemetry.metrics import Registry
from tests.support.clock import Clock
from tests.support.waiting import until

ISSUER = "https://accounts.firefox.test"
SECRET = b"the secret of these tests"
UID = "0123456789abcdef0123456789abcdef"


class Rig:
    """One FxA and one Valkey, and as many verifiers as a test opens."""

    def __init__(self, stand_in: StandIn, url: str, redis_url: str, clock: Clock) -> None:
        self.fxa = stand_in
        self.url, self.redis_url, self.clock = url, redis_url, clock
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
        return self.fxa.faults.calls[endpoint]

    async def until_called(self, endpoint: str) -> None:
        await until(lambda: self.calls(endpoint))
