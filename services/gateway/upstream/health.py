"""Health checks of LiteLLM's instances, beside the requests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from services.gateway.upstream.balance import Balancer, Instance
from shared import background, logs

#: Seconds between two checks of an instance that is out, so that it is used again soon.
WHILE_OUT = 1.0

_log = logs.logger("litellm")


class HealthChecks:
    """Asks every instance every so many seconds, for as long as the block lasts."""

    def __init__(self, balancer: Balancer, check: Callable[[Instance], Awaitable[bool]], interval: float) -> None:
        """:param check: answers within a time of its own, and raises nothing."""
        self._balancer = balancer
        self._check = check
        self._interval = interval
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._watch(instance)) for instance in self._balancer.instances]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await background.end(*self._tasks)

    async def _watch(self, instance: Instance) -> None:
        while True:
            was = instance.healthy
            if await self._check(instance):
                instance.check_passed()
            else:
                instance.check_failed()
            if instance.healthy != was:
                name = instance.url.authority.rpartition("@")[2]  # without a password
                _log.warning("litellm is back" if instance.healthy else "litellm is out", instance=name)
            await asyncio.sleep(self._interval if instance.healthy else min(self._interval, WHILE_OUT))
