"""Work beside the requests: begun with what needs it, and ended for certain with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

#: How long a task may take to notice that it is cancelled before it is told again, in seconds.
_AGAIN = 0.5


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until they are over, whatever they end with.

    They are told again and again: before Python 3.12 a cancellation can get lost (asyncio.wait_for, which aiopg and
    redis-py use), and a loop that goes on for ever must not keep the process alive.
    """
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_AGAIN)


@asynccontextmanager
async def running(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs in the background for as long as the block lasts."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        await end(task)
