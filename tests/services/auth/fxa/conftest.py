"""One set of RSA keys for the session, since making them is slow; everything else is new for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.local.fxa import KeyRing, SigningKey, StandIn
from tests.services.auth.fxa.harness import ISSUER, Clock, Rig, serve


@pytest.fixture(scope="session")
def signing_keys() -> list[SigningKey]:
    return [SigningKey.generate() for _ in range(3)]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stand_in(signing_keys: list[SigningKey], clock: Clock) -> StandIn:
    return StandIn(ISSUER, KeyRing(signing_keys), clock=clock)


@pytest.fixture
async def rig(stand_in: StandIn, redis_url: str, clock: Clock) -> AsyncIterator[Rig]:
    async with serve(stand_in.app()) as url:
        yield Rig(stand_in, url, redis_url, clock)
