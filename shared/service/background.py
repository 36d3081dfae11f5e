"""Background work: loops that start and end with their owner and survive their failures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import sentry_sdk

from shared.errors import DependencyUnavailable
from shared.telemetry import logs

if TYPE_CHECKING:
    from shared.telemetry.metrics import Registry

#: How long a task may take to notice that it is cancelled before it is cancelled again, in seconds.
_AGAIN = 0.5
#: Seconds between the stack traces of a loop that keeps failing with the same kind of error.
_TRACE_EVERY = 60.0

Loop = Callable[[], Awaitable[object]]

_log = logs.logger("background")


def every(seconds: float, run: Loop, *, again: float | None = None) -> Loop:
    """A loop that runs something every so many seconds, or ``again`` seconds after a dependency was unavailable."""

    async def turns() -> None:
        while True:
            pause = seconds
            try:
                await run()
            except DependencyUnavailable:  # the log tells of the outage
                pause = min(seconds, again or seconds)
            await asyncio.sleep(pause)

    return turns


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until they have ended.

    They are cancelled again and again: before Python 3.12 a cancellation can get lost (in asyncio.wait_for, which aiopg
    and redis-py use), and an endless loop must not keep the process alive.
    """
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_AGAIN)


async def supervised(name: str, run: Loop, registry: Registry, *, pause: float = 1.0) -> None:
    """Run a loop until it returns. An unexpected error is logged and counted, and the loop runs again.

    :param name: the label of its failures.
    :param pause: seconds between a failure and the next run.
    """
    failures = registry.background_failures
    failures.preset(name)
    last: type[BaseException] | None = None
    traced = 0.0
    while True:
        try:
            await run()
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling()):
                raise  # the loop should end; otherwise something that it waited for was cancelled
            failures.inc(name)
            now = time.monotonic()
            if type(error) is last and now - traced < _TRACE_EVERY:
                _log.error("background_failed", loop=name, error=type(error).__name__)
            else:
                last, traced = type(error), now
                _log.exception("background_failed", loop=name, error=type(error).__name__)
                with sentry_sdk.new_scope() as scope:
                    scope.set_tag("loop", name)
                    sentry_sdk.capture_exception(error)
            await asyncio.sleep(pause)
        else:
            return


@asynccontextmanager
async def running(registry: Registry, *, pause: float = 1.0, **loops: Loop) -> AsyncIterator[None]:
    """Run named loops, supervised, for as long as the block lasts."""
    tasks = [
        asyncio.create_task(supervised(name, run, registry, pause=pause), name=name) for name, run in loops.items()
    ]
    try:
        yield
    finally:
        await end(*tasks)
