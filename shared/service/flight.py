"""Shared runs: work that concurrent callers ask for is done once for all of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar, TypeVarTuple

from shared.service import background

Key = TypeVarTuple("Key")
Value = TypeVar("Value")


class Flight(Generic[*Key, Value]):
    """Single flights of a function: calls with equal arguments share one run, as long as it lasts.

    A run continues when its callers are cancelled, including the first one. All callers receive the same result, or the
    same exception. The next call after that begins a new run.
    """

    def __init__(self, work: Callable[[*Key], Coroutine[Any, Any, Value]]) -> None:
        self._work = work
        self._tasks: dict[tuple[*Key], asyncio.Task[Value]] = {}

    def start(self, *key: *Key) -> asyncio.Task[Value]:
        """The run for these arguments, started unless it is under way. Wait for it only with ``asyncio.shield``."""
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.create_task(self._work(*key))
            task.add_done_callback(lambda done: self._landed(key, done))
        return task

    def under_way(self, *key: *Key) -> bool:
        """Whether a call with these arguments would join a run."""
        return key in self._tasks

    async def __call__(self, *key: *Key) -> Value:
        """The result of the run for these arguments.

        :raises RuntimeError: the run asks for itself, and would wait forever.
        """
        task = self.start(*key)
        if task is asyncio.current_task():
            raise RuntimeError("a flight waits for itself")
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Cancel all runs, and wait for their end."""
        await background.end(*self._tasks.values())

    def _landed(self, key: tuple[*Key], task: asyncio.Task[Value]) -> None:
        del self._tasks[key]
        if not task.cancelled():
            task.exception()  # asyncio would report an exception that no caller is left to receive


class Kept(Generic[Value]):
    """The result of a function, shared by concurrent callers and kept for some seconds; failures are not kept."""

    def __init__(
        self,
        work: Callable[[], Coroutine[Any, Any, Value]],
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._work, self._seconds, self._clock = work, seconds, clock
        self._flight = Flight(self._run)
        self._last: tuple[float, Value] | None = None

    async def get(self) -> Value:
        """The result of at most so many seconds ago."""
        if self._last is not None and self._clock() < self._last[0]:
            return self._last[1]
        return await self._flight()

    async def _run(self) -> Value:
        value = await self._work()
        self._last = self._clock() + self._seconds, value
        return value
