"""Limits per minute: exact among processes, kept in process while Redis is down."""

from __future__ import annotations

import asyncio

import pytest

from services.auth.errors import InvalidRequest, SlowDown
from services.auth.limits.services import WINDOW, Limits
from shared.errors import DependencyUnavailable
from shared.state import decisions
from shared.stores.redis import Client, connect
from shared.telemetry.metrics import Registry
from tests.support.clock import Clock

KINDS = {"few": 5, "any": 0}


async def taken(limits: Limits, kind: str, subject: str, times: int) -> int:
    """How many of so many at once get in."""
    answers = await asyncio.gather(*(limits.take((kind, subject)) for _ in range(times)), return_exceptions=True)
    assert all(answer is None or isinstance(answer, SlowDown) for answer in answers)
    return answers.count(None)


async def test_processes_share_a_limit_exactly_and_subjects_do_not(redis: Client) -> None:
    one, other = Limits(redis, Registry(), kinds=KINDS), Limits(redis, Registry(), kinds=KINDS)
    assert sum(await asyncio.gather(taken(one, "few", "a", 20), taken(other, "few", "a", 20))) == 5
    assert await taken(one, "few", "b", 20) == 5
    assert await taken(one, "any", "a", 50) == 50
    with pytest.raises(SlowDown) as refused:
        await one.take(("few", "a"))
    assert 1 <= (refused.value.retry_after or 0) <= 2 * WINDOW


async def test_redis_learns_no_subject_and_forgets_each(redis: Client) -> None:
    await Limits(redis, Registry(), kinds=KINDS).take_source("few", "192.0.2.77")
    (key,) = await redis.keys("*")
    assert b"192.0.2.77" not in key
    assert 0 < await redis.ttl(key) <= 2 * WINDOW


async def test_a_full_window_is_remembered_so_that_a_flood_costs_redis_nothing(redis: Client) -> None:
    clock = Clock(1_000_000.0)
    limits = Limits(redis, Registry(), kinds=KINDS, clock=clock)
    assert await taken(limits, "few", "a", 20) == 5
    calls = (await redis.info("stats"))["total_commands_processed"]
    assert await taken(limits, "few", "a", 100) == 0
    assert (await redis.info("stats"))["total_commands_processed"] == calls + 1, "the question itself"
    await redis.flushall()
    assert await taken(limits, "few", "a", 1) == 0
    clock.now += 2 * WINDOW
    assert await taken(limits, "few", "a", 20) == 5


async def test_another_call_comes_along_where_a_limit_is_counted(redis: Client) -> None:
    limits, call = Limits(redis, Registry(), kinds=KINDS), decisions.ask_known("a" * 32, "ai")
    known = await decisions.known(redis, "a" * 32, "ai")
    assert decisions.read_known(await limits.take(("few", "a"), ("few", "b"), beside=call)) == known
    assert await limits.take(("any", "a"), beside=call) is None


async def test_refusals_fill_a_window_of_their_own_and_only_those_of_the_client(redis: Client) -> None:
    limits = Limits(redis, Registry(), kinds={}, doors={"door": 3})

    async def refused(error: Exception) -> None:
        async with limits.failures("door", "192.0.2.1"):
            raise error

    for _ in range(5):
        with pytest.raises(DependencyUnavailable):
            await refused(DependencyUnavailable("redis"))
        with pytest.raises(ZeroDivisionError):
            await refused(ZeroDivisionError())
        with pytest.raises(SlowDown):
            await refused(SlowDown(1))
    outcomes = await asyncio.gather(*(refused(InvalidRequest()) for _ in range(20)), return_exceptions=True)
    assert sum(isinstance(outcome, InvalidRequest) for outcome in outcomes) == 3
    assert sum(isinstance(outcome, SlowDown) for outcome in outcomes) == 17
    async with limits.failures("door", "192.0.2.1"):
        await limits.take_source("door", "192.0.2.1")
    await limits.take_failure("door", "192.0.2.2")


async def test_without_redis_a_process_counts_by_itself_and_by_the_minute(unused_port: int) -> None:
    clock = Clock(1_000_000.0)
    async with connect(f"redis://127.0.0.1:{unused_port}/0") as nobody:
        limits = Limits(nobody, Registry(), kinds=KINDS, clock=clock)
        assert await taken(limits, "few", "a", 20) == 5
        assert await taken(limits, "few", "b", 3) == 3
        clock.now += WINDOW
        assert await taken(limits, "few", "a", 20) == 5
