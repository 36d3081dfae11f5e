"""A user who is refused again and again before admission finds the door closed for a while."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from services.gateway.chat.request import parse
from services.gateway.errors import InvalidModel, InvalidRequest, RateLimited, RequestTooLarge, Unavailable, UserBlocked
from services.gateway.relay.bodies import PARSED_AT_ONCE, Bodies
from services.gateway.relay.door import MOST_REFUSALS, SECONDS, Door
from shared.errors import ServiceError
from tests.doubles.litellm import LiteLLMDouble
from tests.services.gateway.conftest import Gateway
from tests.services.gateway.relay.test_operation import NAMED
from tests.support.clock import Clock
from tests.support.configs import SETTINGS, upstream_at


def knock(door: Door, refusal: ServiceError | None = None, user: str = "u") -> None:
    with door.passing(user):
        if refusal is not None:
            raise refusal


def refuse(door: Door, times: int, refusal: ServiceError, user: str = "u") -> None:
    for _ in range(times):
        with pytest.raises(type(refusal)):
            knock(door, refusal, user)


@pytest.mark.parametrize("refusal", [InvalidRequest(), InvalidModel(), RequestTooLarge()])
def test_ten_refusals_in_ten_seconds_close_the_door_for_ten(refusal: ServiceError) -> None:
    clock = Clock()
    door = Door(clock)
    refuse(door, MOST_REFUSALS - 1, refusal)
    knock(door)
    clock.now += SECONDS
    refuse(door, 1, refusal)
    with pytest.raises(RateLimited) as closed:
        knock(door)
    assert (closed.value.status, closed.value.code) == (429, "rate_limit_exceeded")
    assert closed.value.headers["Retry-After"] == "10"
    knock(door, user="another")
    clock.now += SECONDS - 0.5
    with pytest.raises(RateLimited) as closed:
        knock(door)
    assert closed.value.headers["Retry-After"] == "1"
    clock.now += 0.5
    refuse(door, MOST_REFUSALS - 1, refusal)
    knock(door)


def test_refusals_that_are_further_apart_close_nothing() -> None:
    clock = Clock()
    door = Door(clock)
    for _ in range(5 * MOST_REFUSALS):
        refuse(door, 1, InvalidRequest())
        clock.now += SECONDS / (MOST_REFUSALS - 1) + 0.01
    knock(door)


def test_what_is_not_the_clients_fault_does_not_count() -> None:
    door = Door(Clock())
    refuse(door, 2 * MOST_REFUSALS, Unavailable())
    knock(door)


async def test_the_door_is_closed_before_a_body_is_looked_at(gateway: Gateway) -> None:
    for _ in range(MOST_REFUSALS):
        assert (await gateway.read(b"nonsense"))[0] == 400
    status, body, headers = await gateway.read()
    assert (status, json.loads(body)["error"]["code"]) == (429, "rate_limit_exceeded")
    assert 1 <= int(headers["Retry-After"]) <= SECONDS
    assert gateway.budgets.asks == []


@pytest.mark.parametrize("refusal", [UserBlocked(), Unavailable()])
async def test_refusals_count_also_where_the_user_is_asked_for_before_they_are_told(
    double: LiteLLMDouble, refusal: ServiceError
) -> None:
    dialect = replace(NAMED, in_order=True)
    async with Gateway(double, upstream_at(double.url), dialects=[dialect]).running() as gateway:
        gateway.budgets.refuse = refusal
        headers = {"Content-Type": "application/json", "x-name": "Ada"}
        statuses = []
        for _ in range(MOST_REFUSALS + 1):
            async with gateway.session.post(f"{gateway.url}/v1/chat/completions", data=b"{", headers=headers) as answer:
                statuses.append(answer.status)
    assert statuses == [refusal.status] * MOST_REFUSALS + [429]


async def test_bodies_that_wait_for_their_turn_are_not_looked_at_once_the_door_is_closed() -> None:
    """However many were read before the first of them was refused."""
    bodies = Bodies(SETTINGS.max_request_size_bytes)
    body = b'{"model":"m","messages":[{"role":"user","content":"%b"}],"n":9}' % (b"x" * 500_000)

    async def ask() -> None:
        with bodies.door.passing("u"):
            await bodies.parse(body, "u", lambda body: parse(body, frozenset()))

    refusals = await asyncio.gather(*(ask() for _ in range(50)), return_exceptions=True)
    looked_at = [refusal for refusal in refusals if isinstance(refusal, InvalidRequest)]
    assert MOST_REFUSALS <= len(looked_at) < MOST_REFUSALS + PARSED_AT_ONCE
    assert all(isinstance(refusal, RateLimited) for refusal in refusals if refusal not in looked_at)
