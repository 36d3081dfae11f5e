"""Background work ends, however hard it is of hearing."""

from __future__ import annotations

import asyncio

from shared import background


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
        async with background.running(deaf()):
            await asyncio.sleep(0)
    assert heard == 2


async def test_work_that_failed_keeps_nothing_from_ending() -> None:
    async def broken() -> None:
        raise ValueError

    async with background.running(broken()):
        await asyncio.sleep(0)
