"""An FxA stand-in and verifiers that ask it, new for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.local.fxa import StandIn
from services.local.fxa_keys import KeyRing, SigningKey
from tests.services.auth.fxa.harness import ISSUER, Rig
from tests.support.clock import Clock
from tests.support.serving import serve


@pytest.fixture
def stand_in(fxa_keys: list[SigningKey], clock: Clock) -> StandIn:
    return StandIn(ISSUER, KeyRing(fxa_keys), clock=clock)


@pytest.fixture
async def rig(stand_in: StandIn, redis_url: str, clock: Clock) -> AsyncIterator[Rig]:
    async with serve(stand_in.app()) as url:
        yield Rig(stand_in, url, redis_url, clock)
