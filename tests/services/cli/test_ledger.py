"""`mlpa ledger`: the rows that it deletes, and the differences that it finds."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal

import msgspec
import pytest
from click.testing import CliRunner, Result

from services.cli.ledger import ledger
from services.gateway.ledger.reconcile import Difference, differences
from services.gateway.ledger.storage import LedgerStorage
from shared.state.packed import Details, LedgerRow
from shared.stores.postgres import Database, Query
from shared.stores.redis import connect
from tests.services.gateway.budget.support import ask, delivered, opened, principal, rows
from tests.support.service_types import toml
from tests.support.sql import sql
from tests.support.waiting import until

DAY = 86_400


def run(postgres_url: str, redis_url: str, *args: str) -> Result:
    env = {"DATABASE_URL": postgres_url, "REDIS_URL": redis_url, "MLPA_DEBUG": "true", "MASTER_KEY": ""}
    return CliRunner().invoke(ledger, args, env=env)


def written(name: str, age_days: float, cost: int = 5) -> LedgerRow:
    at = int((time.time() - age_days * DAY) * 1000)
    details = Details("r", "ai", "m", "none", DAY)
    return LedgerRow(name, principal().user_id, cost, at, 1, 1, "success", details, settled_ms=at)


async def test_prune_deletes_what_is_older_and_never_the_current_period(postgres_url: str, unused_port: int) -> None:
    async with Database.connect(postgres_url) as database:
        await LedgerStorage(database).write([written(f"row{age}", age) for age in (0, 1, 29, 31, 89, 91, 400)])
        redis_url = f"redis://127.0.0.1:{unused_port}"
        result = await asyncio.to_thread(run, postgres_url, redis_url, "prune")
        assert (result.exit_code, result.output) == (0, "deleted 2\n")
        result = await asyncio.to_thread(run, postgres_url, redis_url, "prune", "--older-than", "1")
        assert (result.exit_code, result.output) == (0, "deleted 4\n")
        left = await database.fetch(Query.text("select id from ledger"))
        assert [row["id"] for row in left] == ["row0"]


def test_prune_keeps_the_longest_period(
    tmp_path: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, unused_port: int
) -> None:
    path = tmp_path / "types.toml"  # type: ignore[operator]
    path.write_text(toml(duration="30d"))
    monkeypatch.setenv("SERVICE_TYPES", str(path))
    result = run(f"postgresql://127.0.0.1:{unused_port}/x", "redis://127.0.0.1", "prune", "--older-than", "29")
    assert result.exit_code == 2
    assert "30 days" in result.output


async def test_reconcile_finds_a_counter_that_is_not_the_ledgers_sum(postgres_url: str, redis_url: str) -> None:
    async with opened(redis_url, postgres_url) as (budgets, database, _):
        budgets.settle(await budgets.admit(ask()), delivered())
        await until(lambda: database.fetch(Query.text("select 1 from ledger")))
        result = await asyncio.to_thread(run, postgres_url, redis_url, "reconcile")
        assert (result.exit_code, result.output) == (0, "no difference\n")
        await LedgerStorage(database).write([written("by hand", 0)])
        result = await asyncio.to_thread(run, postgres_url, redis_url, "reconcile")
        assert result.exit_code == 1
        assert json.loads(result.output) == {
            "user_id": principal().user_id,
            "book": "counter",
            "ledger_usd": 0.000050005,
            "other_usd": 0.00005,
            "likely_cause": Difference(principal().user_id, "counter", 50_005, 50_000).likely_cause,
        }


async def test_reconcile_finds_what_litellm_counted_and_the_ledger_did_not(postgres_url: str, redis_url: str) -> None:
    asked: list[tuple[Sequence[str], date, date]] = []

    async def spend(users: Sequence[str], start: date, end: date) -> Mapping[str, Decimal]:
        asked.append((users, start, end))
        return {principal().user_id: Decimal("0.000000011")}

    client = connect(redis_url)
    async with Database.connect(postgres_url) as database:
        await LedgerStorage(database).write([written("today", 0, 6), written("long ago", 5, 100)])
        found = await differences(database, client, rows(), spend, now=time.time, settle=0)
        assert found == [Difference(principal().user_id, "litellm", 6, 11)]
        assert (asked[0][2] - asked[0][1]).days == 1
        await LedgerStorage(database).write([written("today too", 0, 5)])
        assert await differences(database, client, rows(), spend, now=time.time, settle=0) == []
    await client.aclose()


async def test_reconcile_reads_users_page_by_page(postgres_url: str, redis_url: str) -> None:
    """1,203 users; LiteLLM is asked for 500 at a time, and again only for those who differ."""
    asked: list[int] = []
    odd = [f"{number:032x}:ai" for number in (0, 499, 500, 1202)]

    async def spend(users: Sequence[str], _start: date, _end: date) -> Mapping[str, Decimal]:
        asked.append(len(users))
        return dict.fromkeys(odd, Decimal("0.000000009"))

    async with Database.connect(postgres_url) as database, connect(redis_url) as client:
        made = [
            msgspec.structs.replace(written(f"row{number}", 0), user_id=f"{number:032x}:ai") for number in range(1203)
        ]
        await LedgerStorage(database).write(made)
        await database.execute(Query.text("delete from ledger"))  # what is pruned still counts
        found = await differences(database, client, rows(), spend, now=time.time, settle=0)
        assert found == [Difference(user, "litellm", 5, 9) for user in odd]
        assert asked == [500, 500, 203, 4]


def test_dependencies_that_are_away_are_named(unused_port: int) -> None:
    away = f"postgresql://127.0.0.1:{unused_port}/x"
    for args, fault in ((("prune",), "Connection refused"), (("reconcile",), "redis did not answer")):
        result = run(away, f"redis://127.0.0.1:{unused_port}", *args)
        assert result.exit_code == 1
        assert fault in result.output.splitlines()[-1]


def test_a_refusal_of_postgresql_is_not_called_an_outage(postgres_url: str, redis_url: str) -> None:
    sql(postgres_url, "alter table ledger rename to elsewhere; alter table user_spend rename to nowhere")
    for args in (("prune",), ("reconcile",)):
        result = run(postgres_url, redis_url, *args)
        assert result.exit_code == 1
        assert "undefined_table (SQLSTATE 42P01)" in result.output.splitlines()[-1]
