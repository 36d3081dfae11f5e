"""Refused requests reach PostgreSQL in batches, and a flood is sampled and counted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.gateway.errors import BudgetExceeded, InvalidRequest, RateLimited
from services.gateway.ledger.refusals import BURST, PER_USER, RefusalLog
from shared.errors import DependencyUnavailable
from shared.stores.postgres import Database, DatabaseUnavailable, Query
from shared.telemetry.metrics import Registry
from tests.support.clock import Clock
from tests.support.exposition import metric

ROWS = Query.text("select * from refusals order by request_id, user_id")


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    async with Database.connect(postgres_url) as database:
        yield database


def refuse(log: RefusalLog, error: Any = None, *, user: str | None = "uid:ai", request: str = "r") -> None:
    log.add(error or RateLimited(), request_id=request, user_id=user, service_type="ai", model="gpt")


def unkept(registry: Registry, reason: str) -> float:
    return metric(registry, "refusals_unkept_total", reason=reason)


async def test_a_refusal_is_written_with_its_code_and_the_reason_for_operators(database: Database) -> None:
    log = RefusalLog(database, Registry())
    spent = BudgetExceeded()
    spent.why = "5 of 5 USD of the service type ai are spent."
    refuse(log, spent, request="first")
    refuse(log, DependencyUnavailable("redis", reason="ConnectionError"), user=None, request="second")
    await log.write()
    first, second = await database.fetch(ROWS)
    assert (first["request_id"], first["user_id"], first["service_type"], first["model"]) == (
        "first",
        "uid:ai",
        "ai",
        "gpt",
    )
    assert (first["code"], first["reason"]) == ("budget_exceeded", "5 of 5 USD of the service type ai are spent.")
    assert (second["user_id"], second["code"]) == (None, "unavailable")
    assert second["reason"] == "redis could not be asked: ConnectionError."


async def test_a_user_that_floods_hides_nobody_and_what_is_not_kept_is_counted(database: Database) -> None:
    registry, clock = Registry(), Clock()
    log = RefusalLog(database, registry, clock=clock)
    for _ in range(100):
        refuse(log)
    refuse(log, InvalidRequest())
    refuse(log, user="another:ai")
    await log.write()
    users = [row["user_id"] for row in await database.fetch(ROWS)]
    assert users == ["another:ai"] + ["uid:ai"] * (PER_USER + 1)
    assert unkept(registry, "user") == 100 - PER_USER
    clock.now += 60
    refuse(log)
    await log.write()
    assert len(await database.fetch(ROWS)) == PER_USER + 3


async def test_a_flood_of_many_users_is_sampled_at_the_process_own_rate(database: Database) -> None:
    registry, clock = Registry(), Clock()
    log = RefusalLog(database, registry, clock=clock)
    for number in range(BURST + 50):
        refuse(log, user=f"{number}:ai")
    assert unkept(registry, "process") == 50
    clock.now += 2
    for number in range(10):
        refuse(log, user=f"later {number}:ai")
    await log.write()
    assert len(await database.fetch(ROWS)) == BURST + 2
    assert unkept(registry, "process") == 58


async def test_what_postgresql_did_not_take_is_written_when_it_does(database: Database) -> None:
    log = RefusalLog(database, Registry())
    refuse(log)
    await database.execute(Query.text("alter table refusals rename to gone"))
    with pytest.raises(DatabaseUnavailable):
        await log.write()
    await database.execute(Query.text("alter table gone rename to refusals"))
    await log.write()
    await log.write()
    assert len(await database.fetch(ROWS)) == 1


async def test_the_rest_is_written_when_the_process_ends(database: Database) -> None:
    registry = Registry()
    log = RefusalLog(database, registry)
    async with log.running(registry):
        refuse(log)
    assert len(await database.fetch(ROWS)) == 1
