"""Waiting without a notification: a condition is tested repeatedly, until a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from inspect import isawaitable
from typing import Any

_PAUSE = 0.005
_ANY_TRUE = object()


async def until(
    condition: Callable[[], Any],
    seconds: float = 30,
    *,
    pause: float = _PAUSE,
    equals: Any = _ANY_TRUE,
    despite: Sequence[type[Exception]] = (),
) -> Any:
    """The first answer of ``condition``, which may be a coroutine function, that is true, or is what it should equal.

    :param despite: errors of ``condition`` that are no answer yet.
    :raises AssertionError: there was none in time.
    """
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(*despite):
            answer = condition()
            value = await answer if isawaitable(answer) else answer
            if value == equals if equals is not _ANY_TRUE else value:
                return value
        assert time.monotonic() < deadline, f"not true within {seconds:g} s"
        await asyncio.sleep(pause)


async def happens(condition: Callable[[], Any], seconds: float) -> bool:
    """Whether ``condition`` becomes true in time."""
    try:
        await until(condition, seconds, pause=0.05)
    except AssertionError:
        return False
    return True


def wait_until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    """``until`` for tests without an event loop.

    :raises AssertionError: there was no true answer in time.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not true within {seconds:g} s"
        time.sleep(_PAUSE)
    return value
