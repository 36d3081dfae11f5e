"""The background loops of budgets survive unexpected data in Redis."""

from __future__ import annotations

import time

from shared.domain.identity import shard
from shared.state.layout import SHARD_KEYS
from shared.stores.redis import connect
from tests.services.gateway.budget.support import opened, principal
from tests.support.waiting import until


async def test_an_unreadable_row_in_an_outbox_does_not_end_the_reaper(redis_url: str, postgres_url: str) -> None:
    number = shard(principal().identity)
    long_ago = int(time.time() * 1000) - 60_000
    async with connect(redis_url) as redis, opened(redis_url, postgres_url) as (_, _, registry):
        await redis.hset(SHARD_KEYS[number].outbox, "odd", f"0|1|{long_ago}|u:ai|1|2|3|success|not JSON")

        async def failed_twice() -> bool:
            return registry.background_failures.value("reaper") >= 2

        await until(failed_twice)
