"""The background loops of budgets survive unexpected data in Redis, and leave room for admissions."""

from __future__ import annotations

import asyncio
import time

from services.gateway.budget.models import Timings
from services.local.valkey import ValkeyServer
from shared.domain.identity import shard
from shared.state.layout import SHARD_KEYS
from shared.stores.redis import connect
from tests.services.gateway.budget.support import ask, delivered, opened, principal
from tests.support.waiting import until


async def test_an_unreadable_row_in_an_outbox_does_not_end_the_reaper(redis_url: str, postgres_url: str) -> None:
    number = shard(principal().identity)
    long_ago = int(time.time() * 1000) - 60_000
    async with connect(redis_url) as redis, opened(redis_url, postgres_url) as (_, _, registry):
        await redis.hset(SHARD_KEYS[number].outbox, "odd", f"0|1|{long_ago}|u:ai|1|2|3|success|not JSON")
        await until(lambda: registry.background_failures.value("reaper") >= 2)


async def test_renewals_of_many_requests_are_sent_a_few_at_a_time(own_valkey: ValkeyServer, postgres_url: str) -> None:
    """What is admitted meanwhile waits for few of them only."""
    seldom = Timings(renew=3600, sweep=3600, totals=3600, drain=5)
    async with opened(own_valkey.url, postgres_url, timings=seldom) as (budgets, _, _):
        held = [await budgets.admit(ask(principal(user=user))) for user in range(40)]
        (link,) = budgets._scripts.executor.links()
        shards = {shard(one.ask.principal.identity) for one in held}
        assert len(shards) > 20
        await until(lambda: not link._pending)
        await asyncio.to_thread(own_valkey.process.pause)
        renewed = asyncio.create_task(budgets._renewals._renew(shards))
        await until(lambda: link._pending)
        sent = len(link._pending)
        await asyncio.to_thread(own_valkey.process.resume)
        assert await renewed
        assert 1 < sent < 10
        for one in held:
            budgets.settle(one, delivered())
