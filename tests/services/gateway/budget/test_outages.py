"""Redis or PostgreSQL gone, hanging, or coming back: 503 within a second, nothing lost, nothing admitted twice."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from typing import Any

import psycopg2
import pytest
import redis
from structlog.testing import capture_logs

from services.gateway.budget.models import Delivery
from services.gateway.budget.services import Budgets
from services.gateway.redis import server_check
from services.gateway.redis.executor import Executor
from services.local.postgres import PostgresServer
from services.local.process import free_port
from services.local.valkey import ValkeyServer
from shared.domain.identity import shard
from shared.errors import DependencyUnavailable
from shared.state import layout
from shared.state.script import ScriptCall
from shared.stores import migrate
from shared.stores.postgres import Database
from shared.stores.redis import connect
from shared.telemetry.metrics import Registry
from tests.services.gateway.budget.clocked import ClockedExecutor
from tests.services.gateway.budget.support import (
    FAST,
    ask,
    delivered,
    opened,
    principal,
    row,
    rows,
    served,
    spent,
    total,
)
from tests.support.exposition import metric
from tests.support.sql import sql
from tests.support.waiting import until

_SHARD = shard(principal().identity)


async def unavailable(budgets: object, dependency: str) -> float:
    """How long it took to say so."""
    began = time.monotonic()
    with pytest.raises(DependencyUnavailable) as refusal:
        await budgets.admit(ask())  # type: ignore[attr-defined]
    assert refusal.value.dependency == dependency
    return time.monotonic() - began


async def test_without_redis_nobody_is_admitted(unused_port: int, postgres_url: str) -> None:
    async with opened(f"redis://127.0.0.1:{unused_port}", postgres_url) as (budgets, _, registry):
        assert await unavailable(budgets, "redis") < 1.5
        with pytest.raises(DependencyUnavailable):
            await budgets.check(principal())
        with pytest.raises(DependencyUnavailable):
            await budgets.redis_takes_writes()
        assert b'budget_refusals_total{reason="unavailable",service_type="ai"} 1' in registry.render()


class ForgetfulExecutor(ClockedExecutor):
    """A Redis that loses users as fast as gateways build them."""

    builds = 0

    def on_epoch(self, listener: Any) -> None:
        """It stays the same server."""

    async def run(self, shard: int, call: ScriptCall) -> Any:
        reply = await super().run(shard, call)
        if call.script.name == "load":
            self.builds += 1
            self.client.delete(layout.user_key(principal().user_id))
        return reply


async def test_a_user_that_redis_loses_again_and_again_is_refused_after_some_tries(
    redis_url: str, postgres_url: str
) -> None:
    with redis.Redis.from_url(redis_url) as client:
        executor: Any = ForgetfulExecutor(client, time.time_ns() // 1_000_000)
        async with Database.connect(postgres_url) as database:
            budgets = Budgets(executor, database, rows(), Registry(), FAST, 0)
            await unavailable(budgets, "redis")
            with pytest.raises(DependencyUnavailable) as refusal:
                await budgets.state(principal())
            assert refusal.value.dependency == "redis"
            assert executor.builds == 40
            await budgets._rebuilder.build.close()


async def test_a_redis_that_hangs_is_given_up_after_a_second(own_valkey: ValkeyServer, postgres_url: str) -> None:
    """An admission that may have reached it is withdrawn, whichever of the two it sees first."""
    async with opened(own_valkey.url, postgres_url, rows(max_streams=100)) as (budgets, database, _):
        held = await budgets.admit(ask())
        await asyncio.to_thread(own_valkey.process.pause)
        times = await asyncio.gather(*(unavailable(budgets, "redis") for _ in range(5)))
        assert max(times) < 1.8
        budgets.settle(held, delivered())
        await asyncio.to_thread(own_valkey.process.resume)

        async def settled() -> bool:
            try:
                state = await budgets.state(principal())
            except DependencyUnavailable:
                return False
            return (state.spent_nano, state.reserved_nano) == (50_000, 0)

        await until(settled)
        assert (await budgets.admit(ask())).rate_limits is not None
        await until(lambda: total(database), equals=(1, 50_000))


async def test_a_redis_that_was_away_for_longer_than_a_lease_charges_nobody_whole(
    own_valkey: ValkeyServer, postgres_url: str
) -> None:
    """The living renew before anybody reaps."""
    async with opened(own_valkey.url, postgres_url) as (budgets, database, registry):
        held = await budgets.admit(ask())
        await asyncio.to_thread(own_valkey.process.pause)
        await asyncio.sleep(2 * FAST.lease)
        await asyncio.to_thread(own_valkey.process.resume)

        async def seen() -> bool:
            try:
                return (await budgets.state(principal())).reserved_nano > 0
            except DependencyUnavailable:
                return False

        await until(seen)
        await asyncio.sleep(3 * FAST.sweep)
        budgets.settle(held, delivered())
        await until(lambda: total(database), equals=(1, 50_000))
        assert b"budget_reaped_total 0" in registry.render()


async def test_a_caller_that_goes_away_during_admission_leaves_nothing(redis_url: str, postgres_url: str) -> None:
    async with opened(redis_url, postgres_url) as (budgets, database, _):
        budgets.settle(await budgets.admit(ask()), Delivery("abort", sent=False))
        calls = [asyncio.create_task(budgets.admit(ask())) for _ in range(20)]
        await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        client = connect(redis_url)
        await until(lambda: client.exists(layout.SHARD_KEYS[shard(principal().identity)].leases), equals=0)
        assert (await budgets.state(principal())).reserved_nano == 0
        await until(lambda: total(database), equals=(1, 0))
        await client.aclose()


async def test_settlements_wait_for_redis_and_are_written_when_it_never_comes(
    own_valkey: ValkeyServer, postgres_url: str
) -> None:
    """A process that ends while Redis is down at least writes its costs to PostgreSQL."""
    hurried = dataclasses.replace(FAST, drain=0.5)
    async with opened(own_valkey.url, postgres_url, timings=hurried) as (budgets, _, registry):
        reservations = [await budgets.admit(ask()) for _ in range(3)]
        assert metric(registry, "budget_open_reservations") == 3
        await asyncio.to_thread(own_valkey.process.kill)
        for reservation in reservations:
            budgets.settle(reservation, delivered())
        await asyncio.sleep(0.2)
        assert b"budget_unsettled 3" in registry.render()
        own_valkey.process.start()
        await until(lambda: b"budget_unsettled 0" in registry.render())
        await until(lambda: spent(budgets), equals=150_000)
        last = await budgets.admit(ask())
        await asyncio.to_thread(own_valkey.process.kill)
        budgets.settle(last, delivered())
    async with Database.connect(postgres_url) as database:
        assert await total(database) == (4, 200_000)


async def test_rows_that_an_emptied_redis_lost_are_counted_again(own_valkey: ValkeyServer, postgres_url: str) -> None:
    """Settled, not in the ledger yet, and gone from Redis: the process that settled them still knows."""
    slow = dataclasses.replace(FAST, flush=1.5)
    async with opened(own_valkey.url, postgres_url, timings=slow) as (budgets, database, _):
        for _ in range(3):
            budgets.settle(await budgets.admit(ask()), delivered())
        await budgets._queue.all_settled(5)
        await asyncio.to_thread(own_valkey.process.kill)
        own_valkey.process.start()
        await until(lambda: spent(budgets), equals=150_000, despite=[DependencyUnavailable])
        await until(lambda: total(database), equals=(3, 150_000))
        assert await spent(budgets) == 150_000, "and only once"


async def test_without_postgresql_known_users_go_on_and_new_ones_wait(
    redis_url: str, own_postgres: PostgresServer
) -> None:
    url = own_postgres.create_database("mlpa")
    await asyncio.to_thread(migrate.upgrade, url)
    async with opened(redis_url, url) as (budgets, database, registry):
        budgets.settle(await budgets.admit(ask()), delivered())
        await asyncio.to_thread(own_postgres.process.kill)
        for _ in range(5):
            budgets.settle(await budgets.admit(ask()), delivered())
        with pytest.raises(DependencyUnavailable) as refusal:
            await budgets.admit(ask(principal(user=2)))
        assert refusal.value.dependency == "postgres"
        state = await budgets.state(principal())
        assert (state.spent_nano, state.reserved_nano) == (300_000, 0)
        await asyncio.sleep(0.6)
        age = next(line for line in registry.render().splitlines() if line.startswith(b"budget_outbox_oldest_seconds"))
        assert float(age.split()[1]) > 0.3
        await asyncio.to_thread(own_postgres.start)
        await until(lambda: total(database), 20, equals=(6, 300_000), despite=[DependencyUnavailable])
        budgets.settle(await budgets.admit(ask(principal(user=2))), Delivery("abort", sent=False))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["redis_keeps_nothing"]),
        ({"appendonly": "yes"}, []),
        ({"save": "3600 1"}, []),
        ({"appendonly": "yes", "maxmemory-policy": "allkeys-lru"}, ["redis_evicts"]),
        ({"maxmemory-policy": "volatile-ttl", "rename-command": 'CONFIG ""'}, ["redis_evicts"]),
    ],
)
async def test_a_server_that_is_not_fit_for_budgets_is_warned_of(
    tmp_path: object, options: dict[str, str], expected: list[str]
) -> None:
    with ValkeyServer(tmp_path / "valkey", free_port(), options=options) as server:  # type: ignore[operator]
        async with Executor.open(server.url, ()) as executor:
            link = await executor._owners[0].connect()
            assert await server_check.warnings(link) == expected


async def test_each_server_that_a_gateway_meets_is_counted_and_checked(
    own_valkey: ValkeyServer, postgres_url: str
) -> None:
    with capture_logs() as logged:
        async with opened(own_valkey.url, postgres_url) as (budgets, _, registry):
            for met in (1, 2):
                await until(lambda: served(budgets), despite=[DependencyUnavailable])
                assert metric(registry, "budget_redis_epochs_total") == met
                await until(lambda: budgets._checks, equals=set())
                assert [one["event"] for one in logged].count("redis_keeps_nothing") == met
                await asyncio.to_thread(own_valkey.process.kill)
                await asyncio.to_thread(own_valkey.process.start)


async def test_builds_that_wait_for_postgresql_end_with_the_gateway(redis_url: str, postgres_url: str) -> None:
    with contextlib.closing(psycopg2.connect(postgres_url)) as connection:
        connection.cursor().execute("lock table ledger")
        async with opened(redis_url, postgres_url) as (budgets, _, _):
            build = budgets._rebuilder.build.start(principal().user_id, row())
            await until(lambda: sql(postgres_url, "select 1 from pg_locks where not granted"))
        assert build.cancelled()


async def test_an_outbox_that_is_full_refuses_new_requests_and_loses_no_row(
    redis_url: str, own_postgres: PostgresServer
) -> None:
    """Only its shard's; open requests are settled beyond the limit. All of it ends when PostgreSQL is back."""
    url = own_postgres.create_database("mlpa")
    await asyncio.to_thread(migrate.upgrade, url)
    async with opened(redis_url, url, outbox_limit=10) as (budgets, database, registry):
        beside = next(who for user in range(2, 9) if shard((who := principal(user=user)).identity) != _SHARD)
        budgets.settle(await budgets.admit(ask(beside)), delivered())
        budgets.settle(await budgets.admit(ask()), delivered())
        await until(lambda: total(database), equals=(2, 100_000))
        await asyncio.to_thread(own_postgres.process.kill)
        held = [await budgets.admit(ask()) for _ in range(3)]
        for _ in range(10):
            budgets.settle(await budgets.admit(ask()), delivered())
        with pytest.raises(DependencyUnavailable) as refusal:
            await budgets.admit(ask())
        assert (refusal.value.dependency, refusal.value.status) == ("postgres", 503)
        for reservation in held:
            budgets.settle(reservation, delivered())
        budgets.settle(await budgets.admit(ask(beside)), delivered())

        async def shown() -> bool:
            text = registry.render()
            return b"budget_outbox_rows 13\n" in text and b"budget_outbox_limit_rows 10\n" in text

        await until(shown)
        await asyncio.to_thread(own_postgres.start)
        await until(lambda: total(database), 20, equals=(16, 800_000), despite=[DependencyUnavailable])
        await until(lambda: served(budgets), despite=[DependencyUnavailable])
