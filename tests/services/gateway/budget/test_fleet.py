"""Several gateway processes on one Valkey and one PostgreSQL, with exact totals at the end."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.gateway.budget.services import Budgets
from services.local.postgres import PostgresServer
from services.local.process import free_port
from services.local.valkey import ValkeyServer
from shared.state import decisions, layout
from shared.stores import migrate
from shared.stores.postgres import Database
from shared.stores.redis import RedisError, connect
from shared.telemetry.metrics import Registry
from tests.services.gateway.budget.fleet import COMPLETION_NANO, PROMPT_NANO, Fleet, Upstream
from tests.services.gateway.budget.support import FAST, ledger, principal, row, rows as all_rows
from tests.support.waiting import until

FULL = bool(os.environ.get("MLPA_TEST_FULL"))
#: Clients of each gateway, and faults of each kind, of those that die; gateways of a Redis that restarts.
CLIENTS, TIMES, GATEWAYS = (30, 12, 3) if FULL else (10, 1, 2)
PROMPT, LIMIT = 20, 60
RESERVATION = PROMPT * PROMPT_NANO + LIMIT * COMPLETION_NANO
LEAST = PROMPT * PROMPT_NANO + 16 * COMPLETION_NANO
TIMINGS = {"lease": 1.0, "renew": 0.25, "flush": 0.05, "sweep": 0.2, "orphan": 0.5, "drain": 5}
USER = principal(row()).user_id


def config(redis_url: str, postgres_url: str, upstream: Upstream, budget: int, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "redis": redis_url,
        "postgres": postgres_url,
        "upstream": upstream.port,
        "row": {"max_budget_nano": budget},
        "timings": TIMINGS,
        "clients": 100,
        "prompt": PROMPT,
        "limit": LIMIT,
        "vanish": 0.0,
        "forever": False,
        "seed": 1,
    }
    return {**values, **changes}


class Watch:
    """The highest that spent + reserved was ever seen."""

    def __init__(self) -> None:
        self.most = 0
        self.samples = 0
        self.over = False

    @asynccontextmanager
    async def of(self, redis_url: str) -> AsyncIterator[Watch]:
        task = asyncio.create_task(self._watch(redis_url))
        try:
            yield self
        finally:
            self.over = True
            await task

    async def _watch(self, redis_url: str) -> None:
        client = connect(redis_url)
        while not self.over:
            try:
                state = (await decisions.read_users(client, [USER]))[0]
            except RedisError:
                state = None
            if state is not None:
                self.samples += 1
                self.most = max(self.most, state.spent_nano + state.reserved_nano)
            await asyncio.sleep(0.01)
        await client.aclose()


async def settled(database: Database, redis_url: str) -> list[dict[str, Any]]:
    """The ledger once no reservation is open and no row is waiting. A gateway finishes the work of dead ones."""
    client = connect(redis_url)
    number = layout.user_key(USER).partition("}")[0] + "}:"
    async with Budgets.open(redis_url, database, all_rows(), Registry(), timings=FAST):
        await until(lambda: client.exists(number + "leases", number + "outbox"), 45, equals=0)
    await client.aclose()
    return await ledger(database)


async def test_300_streams_of_one_user_over_3_gateways_spend_the_budget_and_no_more(
    redis_url: str, postgres_url: str
) -> None:
    """Refused clients ask again until nothing is left; the ledger equals upstream's deliveries, to the nano-dollar."""
    budget = 20 * RESERVATION
    async with (
        Upstream().running() as upstream,
        Watch().of(redis_url) as watch,
        Database.connect(postgres_url) as db,
        Fleet(**config(redis_url, postgres_url, upstream, budget)) as fleet,
    ):
        gateways = await fleet.start_many(3)
        results = await asyncio.gather(*(gateway.result() for gateway in gateways))
        rows = await settled(db, redis_url)

        assert all(result["exceeded"] > 0 for result in results)
        assert sum(result.get("served", 0) for result in results) == len(rows) == len(upstream.delivered)
        assert {one["id"]: one["cost_nano"] for one in rows} == upstream.delivered
        spent = sum(upstream.delivered.values())
        assert spent <= budget
        assert budget - spent < LEAST
        assert watch.samples > 20
        assert watch.most <= budget


@pytest.fixture
def kept_valkey(tmp_path: Path) -> Any:
    """A Valkey that survives its own death with everything it acknowledged."""
    options = {"appendonly": "yes", "appendfsync": "always"}
    with ValkeyServer(tmp_path / "kept", free_port(), options=options) as server:
        yield server


def outcome(upstream: Upstream, rows: list[dict[str, Any]], budget: int) -> int:
    """Every delivered request is in the ledger once, at its cost or above; returns the amount above."""
    charged = {one["id"]: one["cost_nano"] for one in rows}
    assert len(charged) == len(rows)
    missing = upstream.delivered.keys() - charged.keys()
    assert not missing
    for request, cost in upstream.delivered.items():
        assert charged[request] >= cost, request
    for one in rows:
        assert one["cost_nano"] <= budget
    return sum(charged.values()) - sum(upstream.delivered.values())


async def test_gateways_that_die_hang_and_leave_never_overspend(
    kept_valkey: ValkeyServer, postgres_url: str, record_property: Any
) -> None:
    """SIGKILL, SIGSTOP, SIGTERM at random, vanishing clients, streams cut short, and Redis restarted with its data."""
    chance = random.Random(3)
    budget = 20_000 * RESERVATION
    kinds = [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM] * TIMES
    chance.shuffle(kinds)
    url = kept_valkey.url
    async with (
        Upstream(pace=0.005, cut=0.1).running() as upstream,
        Watch().of(url) as watch,
        Database.connect(postgres_url) as database,
        Fleet(**config(url, postgres_url, upstream, budget, clients=CLIENTS, vanish=0.2, forever=True)) as fleet,
    ):
        gateways = await fleet.start_many(3)
        for number, kind in enumerate(kinds):
            enough = len(upstream.delivered) + 3 * CLIENTS  # so that all gateways have requests open
            await until(lambda enough=enough: len(upstream.delivered) > enough)
            if number == len(kinds) // 2:
                await asyncio.to_thread(kept_valkey.process.kill)
                kept_valkey.process.start()
            at = chance.randrange(len(gateways))
            gateways[at].signal(kind)
            if kind is signal.SIGSTOP:
                # Longer than the lease: the others reap its requests, and it finds that out when it wakes
                await asyncio.sleep(1.6)
                gateways[at].signal(signal.SIGCONT)
                continue
            await gateways[at].result()
            gateways[at] = await fleet.start()
        await asyncio.gather(*(gateway.stop() for gateway in gateways))
        await fleet.start(begin=False)  # reaps what the others left
        rows = await settled(database, url)
        above = outcome(upstream, rows, budget)
        spent = sum(one["cost_nano"] for one in rows)
        record_property("charged_above_delivered_nano", above)
        assert spent <= budget
        assert watch.most <= budget
        assert {one["outcome"] for one in rows} >= {"success", "abort", "expired"}


@pytest.mark.parametrize("lost", [False, True], ids=["kept", "emptied"])
async def test_redis_restarted_under_load(tmp_path: Path, postgres_url: str, lost: bool, record_property: Any) -> None:
    """With its data: never over budget. Emptied: over by no more than what was open or not in the ledger yet."""
    options = {"appendonly": "yes", "appendfsync": "always"} if not lost else {}
    budget = 60 * RESERVATION
    with ValkeyServer(tmp_path / "valkey", free_port(), options=options) as valkey:
        async with (
            Upstream(pace=0.01).running() as upstream,
            Watch().of(valkey.url) as watch,
            Database.connect(postgres_url) as database,
            Fleet(**config(valkey.url, postgres_url, upstream, budget, clients=20, forever=True)) as fleet,
        ):
            gateways = await fleet.start_many(GATEWAYS)
            client = connect(valkey.url)
            reserved = 0
            for _ in range(2):
                await asyncio.sleep(0.5)
                state = (await decisions.read_users(client, [USER]))[0]
                reserved += state.reserved_nano if state is not None else 0
                await client.aclose()
                await asyncio.to_thread(valkey.process.kill)
                valkey.process.start()
            results = await asyncio.gather(*(gateway.result() for gateway in gateways))
            rows = await settled(database, valkey.url)
            outcome(upstream, rows, budget)
            spent = sum(one["cost_nano"] for one in rows)
            assert all(result["exceeded"] > 0 for result in results)
            assert budget - spent < LEAST
            record_property("over_budget_nano", spent - budget)
            record_property("bound_nano", reserved)
            if lost:
                assert spent - budget <= reserved
            else:
                assert spent <= budget
                assert watch.most <= budget


async def test_postgresql_away_for_a_while_costs_no_row(
    redis_url: str, own_postgres: PostgresServer, record_property: Any
) -> None:
    """Known users can still chat; the rows wait, and all of them arrive once it is back."""
    url = own_postgres.create_database("mlpa")
    await asyncio.to_thread(migrate.upgrade, url)
    away = 30 if FULL else 3
    budget = 4000 * RESERVATION
    async with (
        Upstream(pace=0.01).running() as upstream,
        Fleet(**config(redis_url, url, upstream, budget, clients=10, forever=True)) as fleet,
    ):
        gateways = await fleet.start_many(2)
        await asyncio.sleep(1)
        before = len(upstream.delivered)
        await asyncio.to_thread(own_postgres.process.pause)
        await asyncio.sleep(away)
        during = len(upstream.delivered) - before
        await asyncio.to_thread(own_postgres.process.resume)
        await asyncio.gather(*(gateway.stop() for gateway in gateways))
        async with Database.connect(url) as database:
            rows = await settled(database, redis_url)
            above = outcome(upstream, rows, budget)
    record_property("requests_served_without_postgresql", during)
    assert during > 20
    assert above >= 0
