"""Health checks of LiteLLM's instances, in the background."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from services.gateway.upstream.balance import Instance
from shared.service import background
from shared.telemetry import logs
from shared.telemetry.metrics import Registry

#: Seconds between two checks of an instance that is out, so that it is used again soon.
WHILE_OUT = 1.0

_log = logs.logger("litellm")


@asynccontextmanager
async def checking(
    instances: Iterable[Instance], check: Callable[[Instance], Awaitable[bool]], interval: float, registry: Registry
) -> AsyncIterator[None]:
    """Check each instance every few seconds, for as long as the block lasts.

    :param check: whether an instance answers; it limits its own time.
    """
    async with AsyncExitStack() as stack:
        for instance in instances:
            loop = partial(_keep_checking, instance, check, interval)
            await stack.enter_async_context(background.running(registry, litellm_health=loop))
        yield


async def _keep_checking(instance: Instance, check: Callable[[Instance], Awaitable[bool]], interval: float) -> None:
    while True:
        was = instance.healthy
        try:
            passed = await check(instance)
        except Exception:
            instance.check_failed()  # an instance that can't be asked is not healthy
            raise
        if passed:
            instance.check_passed()
        else:
            instance.check_failed()
        if instance.healthy != was:
            name = instance.url.authority.rpartition("@")[2]  # without a password
            _log.warning("litellm_back" if instance.healthy else "litellm_out", instance=name)
        await asyncio.sleep(interval if instance.healthy else min(interval, WHILE_OUT))
