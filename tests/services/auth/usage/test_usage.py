"""The figures of the overview against the ledger that they are of."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta

import pytest

from services.auth.standing.changes import Changes
from services.auth.usage.services import Usage
from services.auth.users.operators import UserAdmin
from services.auth.users.spending import Spending
from shared.domain.money import NANO
from shared.domain.service_types import ServiceTypes
from shared.stores.postgres import Database, Query
from shared.stores.redis import connect
from shared.telemetry.metrics import Registry
from tests.services.auth.admin.conftest import Rows
from tests.support.clock import Clock
from tests.support.service_types import development, service_type

NOON = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
_ROW = (
    "insert into ledger values (%s, %s, %s, %s, 'gpt', 'chat', 10, 20, %s, 86400, "
    "floor(extract(epoch from %s::timestamptz) / 86400), %s, %s, %s)"
)


@pytest.fixture
def rows(postgres_url: str) -> Rows:
    return Rows(postgres_url)


@pytest.fixture
async def usage(postgres_url: str, redis_url: str) -> AsyncIterator[Usage]:
    redis, types = connect(redis_url), development()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(redis.aclose)
        database = await stack.enter_async_context(Database.connect(postgres_url, timeout=10))
        users = UserAdmin(
            database,
            Spending(database, redis, types),
            Changes(database, redis, Registry()),
            types,
            clock=NOON.timestamp,
        )
        yield Usage(database, database, users, types, clock=NOON.timestamp, near_wait=10)


def request(rows: Rows, name: str, at: datetime, cost: int = 100, outcome: str = "success", kind: str = "ai") -> None:
    rows.run(_ROW, name, name, f"{name}:{kind}", kind, cost, at, outcome, at, at)


async def test_hours_and_days_are_the_ledger_summed_up(usage: Usage, rows: Rows) -> None:
    request(rows, "a", NOON)
    request(rows, "b", NOON - timedelta(minutes=29), 50)
    request(rows, "c", NOON - timedelta(minutes=31), 7, "error")
    request(rows, "d", NOON - timedelta(days=20), 1000, kind="s2s")
    request(rows, "e", NOON - timedelta(days=200), 9999)
    found = [
        (hour.at, hour.service_type, hour.outcome, hour.requests, hour.cost_nano) for hour in await usage.hours(24)
    ]
    hour = NOON.replace(minute=0)
    assert found == [(hour - timedelta(hours=1), "ai", "error", 1, 7), (hour, "ai", "success", 2, 150)]
    days = await usage.days(30)
    assert [(day.at, day.cost_nano, day.tokens) for day in days] == [
        (datetime(2026, 2, 9, tzinfo=UTC), 1000, 30),
        (datetime(2026, 3, 1, tzinfo=UTC), 7, 30),
        (datetime(2026, 3, 1, tzinfo=UTC), 150, 60),
    ]


async def test_what_comes_late_or_is_lowered_is_counted_again(usage: Usage, rows: Rows) -> None:
    request(rows, "a", NOON)
    request(rows, "b", NOON, 5)
    rows.run("update ledger set cost_nano = 1 where id = 'a'")
    request(rows, "late", NOON - timedelta(hours=20), 3)
    assert [hour.cost_nano for hour in await usage.hours(24)] == [3, 6]
    rows.run("update ledger set outcome = 'error' where id = 'b'")
    found = [(hour.outcome, hour.requests, hour.cost_nano) for hour in await usage.hours(24)]
    assert sorted(found) == [("error", 1, 5), ("success", 1, 1), ("success", 1, 3)]


async def test_hours_outlive_the_rows_of_the_ledger(usage: Usage, rows: Rows) -> None:
    request(rows, "a", NOON - timedelta(days=5))
    request(rows, "b", NOON)
    rows.run("delete from ledger where id = 'a'")
    assert [day.cost_nano for day in await usage.days(30)] == [100, 100]


async def test_who_is_near_the_limit_is_sorted_by_what_is_left(usage: Usage, rows: Rows) -> None:
    for name, cost in [("0" * 32, 80_000_000), ("1" * 32, 74_000_000), ("2" * 32, 120_000_000), ("3" * 32, 99_000_000)]:
        rows.user(f"{name}:ai")
        request(rows, name, NOON, cost)
    near = await usage.near_limit()
    assert near is not None
    assert [user.row.identity[0] for user in near.users] == ["2", "3", "0"]
    assert near.users[0].spent.share == pytest.approx(1.2)


async def test_small_budgets_are_looked_at_beside_large_spend(usage: Usage, rows: Rows) -> None:
    """A hundred users of a large budget spend more than anybody of a small one can."""
    large, small = service_type(max_budget_nano=100 * NANO), service_type("s2s")
    usage._service_types = ServiceTypes({"ai": large, "s2s": small}, {})
    rows.run(
        "insert into user_spend select md5(n::text) || ':ai', '2026-03-01', 1000000000 from generate_series(1, 100) n"
    )
    rows.user(f"{'a' * 32}:s2s")
    request(rows, "a" * 32, NOON, 99_000_000, kind="s2s")
    near = await usage.near_limit()
    assert near is not None
    assert [user.row.user_id for user in near.users] == [f"{'a' * 32}:s2s"]


async def test_a_slow_look_up_of_who_is_near_the_limit_is_not_repeated_soon(usage: Usage) -> None:
    clock = Clock(NOON.timestamp())

    def ticking() -> float:
        clock.now += 10
        return clock.now

    usage._clock = ticking
    assert await usage.near_limit() is not None
    for seconds, again in ((100, False), (2000, True)):
        clock.now += seconds
        await usage.near_limit()
        assert usage._asking.under_way() == again


async def test_without_requests_there_is_nothing_and_nobody(usage: Usage) -> None:
    assert await usage.hours(24) == []
    near = await usage.near_limit()
    assert near is not None
    assert near.users == []


async def test_the_ledger_is_read_by_index(usage: Usage, rows: Rows, postgres_url: str) -> None:
    rows.run(
        "insert into ledger select n::text, 'r', 'u:ai', 'ai', 'm', 'chat', 1, 1, 1, 86400, 0, 'success', "
        "timestamptz '2026-02-01' + interval '1 minute' * n, now() from generate_series(1, 20000) n"
    )
    rows.run("analyze ledger")
    async with Database.connect(postgres_url) as database:
        plan = await database.fetch(
            Query.text(
                "explain select count(*) from ledger where admitted_at >= timestamptz '2026-02-05' "
                "and admitted_at < timestamptz '2026-02-05 02:00' group by service_type"
            )
        )
    assert "Seq Scan" not in str(plan)
