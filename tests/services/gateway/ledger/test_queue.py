"""Rows on their way to a PostgreSQL that is slow or down."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid

import pytest

from services.gateway.budget.models import Timings
from services.gateway.budget.services import Budgets
from services.gateway.ledger.storage import LedgerStorage
from services.local.postgres import PostgresServer
from services.local.valkey import ValkeyServer
from shared.domain.identity import SHARDS
from shared.errors import DependencyUnavailable
from shared.state import layout
from shared.state.packed import Details, LedgerRow, total_name
from shared.stores import migrate
from shared.stores.postgres import Database
from shared.stores.redis import RedisError, connect
from shared.telemetry.metrics import Registry
from tests.services.gateway.budget.support import FAST, ask, delivered, opened, principal, rows, spent, total
from tests.support.sql import sql
from tests.support.waiting import until

ROWS = 300


def made() -> LedgerRow:
    now_ms, details = int(time.time() * 1000), Details("r", "ai", "m", "chat", 86_400)
    user_id = principal().user_id
    return LedgerRow(uuid.uuid4().hex, user_id, 3, now_ms, 1, 2, "success", details, settled_ms=now_ms)


async def test_a_backlog_drains_where_a_full_batch_would_never_end_in_time(redis_url: str, postgres_url: str) -> None:
    """PostgreSQL takes 2 ms a row and ends statements after 200 ms, so that none is left after we gave up."""
    sql(
        postgres_url,
        "create function slow() returns trigger language plpgsql as"
        " $$ begin perform pg_sleep(0.002); return new; end $$;"
        "create trigger slow before insert on ledger for each row execute function slow();"
        f"alter database {postgres_url.rpartition('/')[2]} set statement_timeout = '200ms'",
    )
    async with opened(redis_url, postgres_url) as (budgets, database, _):
        for _ in range(ROWS // 2):
            budgets._queue.add(made())
        await until(lambda: total(database), 30, equals=(ROWS // 2, 3 * ROWS // 2))
        assert budgets._queue._at_once < 300
    sql(postgres_url, "drop trigger slow on ledger")
    async with opened(redis_url, postgres_url) as (budgets, _, _):
        budgets._queue._at_once = 10
        for _ in range(ROWS):
            budgets._queue.add(made())
        assert await budgets._queue.flush()
        assert budgets._queue._at_once > 200


async def test_rows_stay_in_redis_while_postgresql_is_away(redis_url: str, own_postgres: PostgresServer) -> None:
    url = own_postgres.create_database("mlpa")
    await asyncio.to_thread(migrate.upgrade, url)
    registry, still = Registry(), Timings(flush=0.02, sweep=3600, renew=3600, drain=0)
    async with (
        Database.connect(url) as database,
        Budgets.open(redis_url, database, rows(), registry, timings=still) as budgets,
    ):
        budgets.settle(await budgets.admit(ask()), delivered())
        await until(lambda: registry.render().count(b"budget_ledger_rows_total 1"))
        await asyncio.to_thread(own_postgres.stop)
        for _ in range(2):
            budgets.settle(await budgets.admit(ask()), delivered())
        await until(lambda: budgets._queue.down)
        budgets._queue._settled.clear()
        reaper = budgets._reaper
        reaper._orphan, reaper._grace, reaper._every = 0, -1, 0.01
        await asyncio.gather(*map(reaper.sweep, range(SHARDS)))
        assert budgets._queue._settled == {}
        assert max(reaper._ages) > 0
        budgets._queue.down = False
        await asyncio.sleep(0.05)
        await asyncio.gather(*map(reaper.sweep, range(SHARDS)))
        assert len(budgets._queue._settled) == 2


async def test_a_pruned_ledger_changes_no_budget(redis_url: str, postgres_url: str) -> None:
    async with opened(redis_url, postgres_url, timings=FAST) as (budgets, database, _):
        budgets.settle(await budgets.admit(ask()), delivered())
        await until(lambda: total(database), equals=(1, 50_000))
        assert await LedgerStorage(database).prune(time.time() + 60, 100) == 1
        async with connect(redis_url) as client:
            await client.flushall()
        await until(lambda: spent(budgets), equals=50_000)


async def test_an_active_users_identity_lives_as_long_as_the_user(redis_url: str, postgres_url: str) -> None:
    async with opened(redis_url, postgres_url) as (budgets, _, _), connect(redis_url) as client:
        budgets.settle(await budgets.admit(ask()), delivered())
        keys = [key async for key in client.scan_iter("*:[iu]:*")]
        assert len(keys) == 2
        for key in keys:
            await client.expire(key, 100)
        budgets.settle(await budgets.admit(ask()), delivered())
        assert [await client.ttl(key) > 170_000 for key in keys] == [True, True]


@pytest.mark.parametrize("left", ["a reservation", "a row"])
async def test_what_a_dead_gateway_left_counts_though_redis_was_emptied_before_it_was_written(
    own_valkey: ValkeyServer, postgres_url: str, left: str
) -> None:
    """A reaper has it, and nobody else, when the user and the totals are built again."""
    kinds = rows(total_budget_nano=10**12)
    name, totals = total_name(kinds.by_name["ai"]), layout.of_user(principal().user_id).totals
    async with opened(own_valkey.url, postgres_url, kinds) as (budgets, database, _), connect(own_valkey.url) as client:
        queue = budgets._queue
        await until(lambda: not budgets._totals.unknown())
        async with queue._flushing:
            reservation = await budgets.admit(ask())
            if left == "a row":
                budgets.settle(reservation, delivered(100, 1000))
                assert await queue.all_settled(5)
                queue._settled.clear()
            else:
                budgets._renewals.remove(reservation)
            await until(lambda: queue._settled)
            await asyncio.to_thread(own_valkey.process.kill)
            await asyncio.to_thread(own_valkey.start)

            async def spent() -> int | None:
                with contextlib.suppress(DependencyUnavailable, RedisError):
                    if await client.hexists(totals, layout.BUILT + name):
                        return (await budgets.state(principal())).spent_nano
                return None

            await until(lambda: spent(), equals=0)
        amount = reservation.amount_nano

        async def counted() -> bool:
            return await total(database) == (1, amount) and await spent() == amount

        await until(counted)
        await until(lambda: budgets._totals._known[name].total.spent_nano == amount)
