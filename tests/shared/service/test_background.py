"""Background loops survive unexpected errors, and end when asked, even if a cancellation gets lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from shared.errors import DependencyUnavailable
from shared.service import background
from shared.telemetry.metrics import Registry
from tests.support.waiting import happens, until


async def test_a_task_that_loses_a_cancellation_is_told_again() -> None:
    heard = 0

    async def deaf() -> None:
        nonlocal heard
        while heard < 2:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                heard += 1

    async with asyncio.timeout(5):
        async with background.running(Registry(), deaf=deaf):
            await asyncio.sleep(0)
    assert heard == 2


@pytest.mark.parametrize("outages", [0, 3])
async def test_work_that_is_repeated_comes_again_sooner_after_an_outage(outages: int) -> None:
    turns = 0

    async def work() -> None:
        nonlocal turns
        turns += 1
        if turns <= outages:
            raise DependencyUnavailable("postgres")

    registry = Registry()
    async with background.running(registry, work=background.every(3600, work, again=0.001)):
        await until(lambda: turns == outages + 1)
        assert not await happens(lambda: turns > outages + 1, 0.05)
    assert registry.background_failures.value("work") == 0


async def _cancelled() -> None:
    """Waits for a future that somebody else cancels."""
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


async def _broken() -> None:
    raise ValueError


@pytest.mark.parametrize("fault", [_broken, _cancelled])
async def test_a_loop_that_failed_is_counted_logged_and_run_again(
    fault: Callable[[], Awaitable[None]], capsys: pytest.CaptureFixture[str]
) -> None:
    registry, runs, done = Registry(), 0, asyncio.Event()

    async def loop() -> None:
        nonlocal runs
        runs += 1
        if runs <= 3:
            await fault()
        done.set()
        await asyncio.Event().wait()

    async with asyncio.timeout(5), background.running(registry, pause=0.001, odd=loop, good=asyncio.Event().wait):
        await done.wait()
    assert runs == 4
    assert registry.background_failures.value("odd") == 3
    assert b'background_failures_total{loop="good"} 0' in registry.render()
    said = capsys.readouterr().out
    assert said.count("background_failed") == 3
    assert said.count("in loop") == 1, "each failure brought its stack"


async def test_a_loop_that_returned_is_over() -> None:
    runs = 0

    async def once() -> None:
        nonlocal runs
        runs += 1

    async with asyncio.timeout(5):
        await background.supervised("once", once, Registry(), pause=0)
    assert runs == 1
